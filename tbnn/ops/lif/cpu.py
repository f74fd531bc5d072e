"""The neuron's equation on the CPU, a row of neurons at a time, and the scan that takes it through a sequence.

Arrays are (T, B, F), parameters (F,). Parallel over samples and tiles of neurons; a task's states stay in L2. Loops
write one array and read few: more than eight, and the compiler gives up proving that they do not overlap.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange

from tbnn.ops.kernels import device_function, kernel

TILE = 1024  # neurons of a row worked on at once
LANES = 1 << 15  # membranes of a task
SUBTRACT, ZERO, NONE = 0, 1, 2
RESETS = {"subtract": SUBTRACT, "zero": ZERO, "none": NONE}

# Rows of ``Layer.coefficients``; those from RHO on are ``Second``'s, in its order.
BETA, THRESHOLD, GAIN, RHO, FROM_V, FROM_CURRENT, FROM_SPIKE, CURRENT_GAIN, TO_V, TO_THRESHOLD = range(10)
COEFFICIENTS, WITHOUT_SECOND = TO_THRESHOLD + 1, RHO

Array = np.ndarray[Any, Any]


class Layer(NamedTuple):
    """What a kernel knows of a layer of neurons."""

    coefficients: Array
    """(3 or 10, F): β, θ, ``trace_gain``, and the second state's where there is one."""
    reset: int
    refractory: int
    winners: int
    """0: as many as there are."""
    lengths: Array
    """(B,) int64: steps of each sequence; what lies beyond is neither read nor, but for the output, written."""


class Course(NamedTuple):
    """States through a sequence: v and, where there is a second state, w."""

    start: Array
    """(1 or 2, 1, B, F)"""
    steps: Array
    """(1 or 2, T, B, F); (1, 0, B, F) where there is no such course."""


@device_function
def membrane_row(before, current, beta, threshold, reset, v):  # pyright: ignore
    """One step of a row of plain membranes: ``v = β·before + current − θ·1[before > θ]``, or another reset."""
    zero = before.dtype.type(0)
    if reset == SUBTRACT:
        for f in range(v.size):
            drop = threshold[f] if before[f] > threshold[f] else zero
            v[f] = beta[f] * before[f] + current[f] - drop
    elif reset == ZERO:
        for f in range(v.size):
            kept = zero if before[f] > threshold[f] else before[f]
            v[f] = beta[f] * kept + current[f]
    else:
        for f in range(v.size):
            v[f] = beta[f] * before[f] + current[f]


@device_function
def advance_row(v_before, w_before, fired, current, coefficients, lo, reset, kept, v, w):  # pyright: ignore
    """``cell.advance`` for a row, given the last step's spikes; without a second state w is not touched."""
    hi = lo + v.size
    beta, threshold = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi]
    if reset == ZERO:
        one = v.dtype.type(1)
        for f in range(v.size):
            kept[f] = (one - fired[f]) * v_before[f]
    else:
        kept = v_before
    if coefficients.shape[0] == WITHOUT_SECOND:
        for f in range(v.size):
            v[f] = beta[f] * kept[f] + current[f]
    else:
        rho, from_v, from_current = (
            coefficients[RHO, lo:hi],
            coefficients[FROM_V, lo:hi],
            coefficients[FROM_CURRENT, lo:hi],
        )
        from_spike, gain, to_v = (
            coefficients[FROM_SPIKE, lo:hi],
            coefficients[CURRENT_GAIN, lo:hi],
            coefficients[TO_V, lo:hi],
        )
        for f in range(v.size):
            w[f] = rho[f] * w_before[f] + from_v[f] * kept[f] + from_current[f] * current[f] + from_spike[f] * fired[f]
        for f in range(v.size):
            v[f] = beta[f] * kept[f] + to_v[f] * w[f] + gain[f] * current[f]
    if reset == SUBTRACT:
        for f in range(v.size):
            v[f] -= threshold[f] * fired[f]


@device_function
def state_row(course, i, t, b, lo, hi):  # pyright: ignore
    """State i after step t; −1 is the start."""
    return course.start[i, 0, b, lo:hi] if t < 0 else course.steps[i, t, b, lo:hi]


@device_function
def level_row(course, coefficients, t, b, lo, hi, buffer):  # pyright: ignore
    """What is compared with θ: v itself, or v − ``to_threshold``·w, laid into ``buffer``."""
    v = state_row(course, 0, t, b, lo, hi)
    if coefficients.shape[0] == WITHOUT_SECOND:
        return v
    w, share = state_row(course, 1, t, b, lo, hi), coefficients[TO_THRESHOLD, lo:hi]
    for f in range(hi - lo):
        buffer[f] = v[f] - share[f] * w[f]
    return buffer


@device_function
def above_row(level, threshold, fired):  # pyright: ignore
    """fired = 1 where level > θ."""
    one, zero = level.dtype.type(1), level.dtype.type(0)
    for f in range(level.size):
        fired[f] = one if level[f] > threshold[f] else zero


@device_function
def winners_row(level, threshold, winners, margins, fired):  # pyright: ignore
    """Of the neurons that fired only the ``winners`` furthest above their threshold stay; of equals, the first."""
    zero = level.dtype.type(0)
    count = 0
    for f in range(level.size):
        if fired[f] > zero:
            margins[count] = level[f] - threshold[f]
            count += 1
    if count <= winners:
        return
    last = np.partition(margins[:count], count - winners)[count - winners]
    equals = winners
    for f in range(count):
        if margins[f] > last:
            equals -= 1
    for f in range(level.size):
        if fired[f] > zero:
            margin = level[f] - threshold[f]
            if margin == last and equals > 0:
                equals -= 1
            elif margin <= last:
                fired[f] = zero


@device_function
def rest_row(refractory, waiting, fired):  # pyright: ignore
    """Count the refractory steps that are left."""
    one, zero = waiting.dtype.type(1), waiting.dtype.type(0)
    steps = waiting.dtype.type(refractory)
    for f in range(waiting.size):
        waiting[f] = steps if fired[f] > zero else max(zero, waiting[f] - one)


@device_function
def spike_row(level, threshold, waiting, layer, margins, fired):  # pyright: ignore
    """fired = ``cell.spikes_of``; waiting goes one step on."""
    above_row(level, threshold, fired)
    if layer.refractory > 0:
        one, zero = level.dtype.type(1), level.dtype.type(0)
        for f in range(level.size):
            fired[f] *= one if waiting[f] == zero else zero
    if layer.winners > 0:
        winners_row(level, threshold, layer.winners, margins, fired)
    if layer.refractory > 0:
        rest_row(layer.refractory, waiting, fired)


@kernel
def scan(current, layer, real, traces, spikes, waiting, rows):  # pyright: ignore
    """Fill the courses that have steps; a task takes ``rows`` samples, and with winners all neurons of each.

    ``spikes`` has a start, the spikes before the first step, unless v > θ tells them. waiting (B, F), or (1, 1) without
    refractory steps, enters as the state before and leaves as the state after.
    """
    steps, batch, features = current.shape
    coefficients, v_start, v_steps, out = layer.coefficients, real.start[0, 0], real.steps[0], spikes.steps[0]
    second = 1 if coefficients.shape[0] > WITHOUT_SECOND else 0
    with_traces, with_spikes, plain = traces.steps.shape[1] > 0, spikes.steps.shape[1] > 0, spikes.start.size == 0
    tile = features if layer.winners > 0 else TILE
    tiles = (features + tile - 1) // tile
    for task in prange((batch + rows - 1) // rows * tiles):
        first = task // tiles * rows
        lo = task % tiles * tile
        hi = min(lo + tile, features)
        beta, threshold = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi]
        room = 0 if plain else hi - lo
        kept, buffer = np.empty(room, current.dtype), np.empty(room, current.dtype)
        silent = np.zeros(room, current.dtype)
        for t in range(steps):
            for b in range(first, min(first + rows, batch)):
                if t >= layer.lengths[b]:
                    if with_spikes:
                        out[t, b, lo:hi] = 0
                    continue
                current_t, v = current[t, b, lo:hi], v_steps[t, b, lo:hi]
                before = v_start[b, lo:hi] if t == 0 else v_steps[t - 1, b, lo:hi]
                if plain:
                    membrane_row(before, current_t, beta, threshold, layer.reset, v)
                    if with_spikes:
                        above_row(v, threshold, out[t, b, lo:hi])
                else:
                    w_before, w = state_row(real, second, t - 1, b, lo, hi), real.steps[second, t, b, lo:hi]
                    fired = state_row(spikes, 0, t - 1, b, lo, hi)
                    advance_row(before, w_before, fired, current_t, coefficients, lo, layer.reset, kept, v, w)
                    level = level_row(real, coefficients, t, b, lo, hi, buffer)
                    waiting_b = waiting[b, lo:hi] if layer.refractory > 0 else waiting[0]
                    spike_row(level, threshold, waiting_b, layer, kept, out[t, b, lo:hi])
                if with_traces:
                    faded, w_faded = state_row(traces, 0, t - 1, b, lo, hi), state_row(traces, second, t - 1, b, lo, hi)
                    trace, w_trace = traces.steps[0, t, b, lo:hi], traces.steps[second, t, b, lo:hi]
                    advance_row(faded, w_faded, silent, current_t, coefficients, lo, NONE, kept, trace, w_trace)


def rows_per_task(batch: int, features: int, winners: int = 0) -> int:
    """How many samples one task takes: all cores busy, the membranes of a step in L2, memory read in long runs."""
    tile = features if winners > 0 else min(features, TILE)
    tiles = -(-features // tile)
    fair = -(-batch * tiles // torch.get_num_threads()) // tiles
    return max(1, min(batch, fair, LANES // tile))
