"""The scan that takes a layer of neurons through a sequence on the CPU, and the sums over its block on the way.

Parallel over samples and tiles of neurons; a task's states stay in L2.
"""

import numpy as np
import torch
from numba import prange

from tbnn.ops.kernels import SERIAL_BELOW, device_function, kernel
from tbnn.ops.lif.rows import (
    BETA,
    COEFFICIENTS,
    CURRENT_GAIN,
    FROM_CURRENT,
    FROM_SPIKE,
    FROM_V,
    GAIN,
    NONE,
    RESETS,
    RHO,
    SUBTRACT,
    THRESHOLD,
    TILE,
    TO_THRESHOLD,
    TO_V,
    WITHOUT_SECOND,
    ZERO,
    Array,
    Course,
    Layer,
    above_row,
    advance_row,
    level_row,
    membrane_row,
    scratch,
    spike_row,
    state_row,
)
from tbnn.ops.lif.target import INTEGRATE, SOFT, TRACE, Estimator, add_sums, q_row, x_row

__all__ = [
    "BETA", "COEFFICIENTS", "CURRENT_GAIN", "FROM_CURRENT", "FROM_SPIKE", "FROM_V", "GAIN", "NONE", "RESETS", "RHO", "SUBTRACT",
    "THRESHOLD", "TILE", "TO_THRESHOLD", "TO_V", "WITHOUT_SECOND", "ZERO", "Array", "Course", "Layer", "above_row", "level_row",
    "membrane_row", "rows_for_sums", "rows_per_task", "scan", "scan_sums", "state_row",
]  # fmt: skip

LANES = 1 << 15  # membranes of a task
GROUPS = 16  # about so many tasks when sums are taken, on however few threads: their number decides about rounding
FEWEST = 4  # samples of such a task: a sum over its neurons at each step costs as much as one sample

NO_SUMS = np.empty((0, 4, 0, 0))


@device_function
def pair_sums(estimator, layer, real, driven, spikes, t, b, lo, v, fired, x, q, buffer, spare, sums):  # pyright: ignore
    """Add step t's x, q, q² and x·q to sums (4, neurons); ``fired`` are its spikes."""
    coefficients, hi = layer.coefficients, lo + x.size
    beta, threshold, gain = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi], coefficients[GAIN, lo:hi]
    second = coefficients.shape[0] > WITHOUT_SECOND
    level = v
    if second:
        level = level_row(driven, coefficients, t, b, lo, hi, buffer)
    elif estimator.kind == TRACE:
        level = driven.steps[0, t, b, lo:hi]
    x_row(estimator, level, threshold, gain, x)
    if estimator.kind == SOFT:
        add_sums(x, fired, True, sums[0], sums[1], sums[2], sums[3])
    else:
        q_row(
            estimator.kind, v, level, beta, threshold, gain, real, driven, spikes, coefficients, t, b, lo, spare, q
        )  # fmt: skip
        add_sums(x, q, False, sums[0], sums[1], sums[2], sums[3])


@kernel
def _scan(current, layer, real, traces, spikes, waiting, rows, estimator, driven, sums, by_step):  # pyright: ignore
    """:func:`scan`, and where ``sums`` has groups :func:`scan_sums`."""
    steps, batch, features = current.shape
    coefficients, v_start, v_steps, out = layer.coefficients, real.start[0, 0], real.steps[0], spikes.steps[0]
    second = 1 if coefficients.shape[0] > WITHOUT_SECOND else 0
    with_traces, with_spikes, plain = traces.steps.shape[1] > 0, spikes.steps.shape[1] > 0, spikes.start.size == 0
    with_sums = sums.shape[0] > 0
    tile = features if layer.winners > 0 else TILE
    tiles = (features + tile - 1) // tile
    for task in prange((batch + rows - 1) // rows * tiles):
        group, part = task // tiles, task % tiles
        first = group * rows
        lo = part * tile
        hi = min(lo + tile, features)
        n = hi - lo
        beta, threshold = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi]
        room = scratch(6, n, current)
        kept, buffer, silent, x, q, spare = (
            room[0, :n], room[1, :n], room[2, :n], room[3, :n], room[4, :n], room[5, :n],
        )  # fmt: skip
        silent[:] = 0
        total = np.zeros((4, n if with_sums else 0), np.float64)
        for t in range(steps):
            for b in range(first, min(first + rows, batch)):
                if t >= layer.lengths[b]:
                    if with_spikes:
                        out[t, b, lo:hi] = 0
                    continue
                current_t = current[t, b, lo:hi]
                v = v_steps[t, b, lo:hi]
                fired = buffer
                if plain:
                    before = v_start[b, lo:hi] if t == 0 else v_steps[t - 1, b, lo:hi]
                    membrane_row(before, current_t, beta, threshold, layer.reset, v)
                    if with_spikes:
                        fired = out[t, b, lo:hi]
                        above_row(v, threshold, fired)
                else:
                    before = state_row(real, 0, t - 1, b, lo, hi)
                    w_before, w = state_row(real, second, t - 1, b, lo, hi), real.steps[second, t, b, lo:hi]
                    last = state_row(spikes, 0, t - 1, b, lo, hi)
                    advance_row(before, w_before, last, current_t, coefficients, lo, layer.reset, kept, v, w)
                    level = level_row(real, coefficients, t, b, lo, hi, buffer)
                    waiting_b = waiting[b, lo:hi] if layer.refractory > 0 else waiting[0]
                    fired = out[t, b, lo:hi]
                    spike_row(level, threshold, waiting_b, layer, kept, fired)
                if with_traces:
                    faded, w_faded = state_row(traces, 0, t - 1, b, lo, hi), state_row(traces, second, t - 1, b, lo, hi)
                    trace, w_trace = traces.steps[0, t, b, lo:hi], traces.steps[second, t, b, lo:hi]
                    advance_row(faded, w_faded, silent, current_t, coefficients, lo, NONE, kept, trace, w_trace)
                if with_sums:
                    pair_sums(estimator, layer, real, driven, spikes, t, b, lo, v, fired, x, q, kept, spare, total)
            if with_sums and by_step:
                for k in range(4):
                    sums[group, k, t, part] = total[k].sum()
                total[:] = 0
        if with_sums and not by_step:
            sums[group, :, 0, lo:hi] = total


def scan(
    current: Array, layer: Layer, real: Course, traces: Course, spikes: Course, waiting: Array, rows: int,
    work: int = SERIAL_BELOW,
) -> None:  # fmt: skip
    """Fill the courses that have steps; a task takes ``rows`` samples, and with winners all neurons of each.

    ``spikes`` has a start, the spikes before the first step, unless v > θ tells them. waiting (B, F), or (1, 1) without
    refractory steps, enters as the state before and leaves as the state after.
    """
    _scan(current, layer, real, traces, spikes, waiting, rows, Estimator(INTEGRATE), real, NO_SUMS, False, work=work)


def scan_sums(
    current: Array, layer: Layer, real: Course, traces: Course, spikes: Course, waiting: Array, estimator: Estimator, by_step: bool
) -> Array:  # fmt: skip
    """:func:`scan`, and in the same pass Σx, Σq, Σq², Σxq: (4, 1, F), or with ``by_step`` (4, T, tiles of neurons).

    Of a SOFT or a TRACE estimator. The same numbers on any number of threads: tasks and the order of sums depend on the
    shape alone.
    """
    steps, batch, features = current.shape
    winners = layer.winners
    rows = rows_for_sums(batch, features, winners)
    tiles = 1 if winners > 0 else -(-features // TILE)
    sums = np.empty((-(-batch // rows), 4, steps if by_step else 1, tiles if by_step else features))
    driven = traces if estimator.kind == TRACE else real
    _scan(
        current, layer, real, traces, spikes, waiting, rows, estimator, driven, sums, by_step, work=current.size
    )  # fmt: skip
    return sums.sum(0)


def rows_for_sums(batch: int, features: int, winners: int = 0) -> int:
    """How many samples one task takes where sums are taken."""
    tile = features if winners > 0 else min(features, TILE)
    tiles = -(-features // tile)
    return min(batch, max(FEWEST, min(-(-batch * tiles // GROUPS), LANES // tile)))


def rows_per_task(batch: int, features: int, winners: int = 0) -> int:
    """How many samples one task takes: all cores busy, the membranes of a step in L2, memory read in long runs."""
    tile = features if winners > 0 else min(features, TILE)
    tiles = -(-features // tile)
    fair = -(-batch * tiles // torch.get_num_threads()) // tiles
    return max(1, min(batch, fair, LANES // tile))
