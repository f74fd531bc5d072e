# pyright: reportCallIssue=false
"""A recurrent layer on the CPU, forward: some steps of a sequence in one call.

The feedback is the event-driven product of :mod:`tbnn.ops.binary_linear.events`, in integers; scaling and adding round as
the layer and the neuron do in torch, one operation at a time, so that the spikes are the same bits.
"""

import numpy as np
from numba import prange

from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.binary_linear.events import count_rows
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.lif.rows import (
    BETA,
    NONE,
    RHO,
    THRESHOLD,
    above_row,
    advance_row,
    level_row,
    membrane_row,
    scratch,
    spike_row,
    state_row,
)
from tbnn.ops.packed_lif.compare import greater64

WORD = 64  # spikes of a word
TOGETHER = 16  # samples whose feedback is worked out in one call


@device_function
def feedback_row(product, ones, feedback, x, current):  # pyright: ignore
    """current = x + (scale·product + offset·ones + bias)."""
    scale, offset, bias = feedback.scale, feedback.offset, feedback.bias
    kind = x.dtype.type
    if offset.size == 0 and bias.size == 0:
        for f in range(current.size):
            current[f] = x[f] + kind(product[f]) * scale[f]
        return
    for f in range(current.size):
        current[f] = kind(product[f]) * scale[f]
    if offset.size > 0:
        count = kind(ones)
        for f in range(current.size):
            current[f] += count * offset[f]
    if bias.size > 0:
        for f in range(current.size):
            current[f] += bias[f]
    for f in range(current.size):
        current[f] = x[f] + current[f]


@device_function
def pack_above(v, threshold, words):  # pyright: ignore
    """The bits v > threshold of a row, 64 to a word."""
    whole = v.size // WORD if v.itemsize == 4 else 0
    for k in range(whole):
        words[k] = greater64(v.ctypes.data + 4 * WORD * k, threshold.ctypes.data + 4 * WORD * k)
    for k in range(whole, words.size):
        word = np.uint64(0)
        for i in range(min(WORD, v.size - WORD * k)):
            word |= np.uint64(v[WORD * k + i] > threshold[WORD * k + i]) << np.uint64(i)
        words[k] = word


@device_function
def returned_rows(words, feedback, ones, shift, product):  # pyright: ignore
    """product (R, N) = the weights' values times R <= TOGETHER rows of spikes, words (R, K); ones (R,) = how many there are."""
    rows = words.shape[0]
    for r in range(rows):
        count = np.int32(0)
        for k in range(words.shape[1]):
            count += np.int32(popcount64(words[r, k]))
        ones[r] = count
        shift[r] = np.int32(feedback.constant) * count
    for plane in range(feedback.factors.size):
        count_rows(
            words, ones, feedback.columns[plane], feedback.totals[plane], feedback.places, 0, rows,
            feedback.factors[plane], shift, plane > 0, product,
        )  # fmt: skip
        shift[:] = 0


@device_function
def neuron_row(layer, real, traces, spikes, waiting, current, t, b, room, words):  # pyright: ignore
    """One step of a sample's neurons, as :func:`tbnn.ops.lif.cpu.scan` does it; words (K,): its spikes."""
    coefficients, n = layer.coefficients, current.size
    second = 1 if coefficients.shape[0] > RHO else 0
    kept, buffer, silent = room[0, :n], room[1, :n], room[2, :n]
    threshold, v = coefficients[THRESHOLD], real.steps[0, t, b]
    if spikes.start.size == 0:
        membrane_row(state_row(real, 0, t - 1, b, 0, n), current, coefficients[BETA], threshold, layer.reset, v)
        pack_above(v, threshold, words)
        if spikes.steps.shape[1] > 0:
            above_row(v, threshold, spikes.steps[0, t, b])
    else:
        advance_row(
            state_row(real, 0, t - 1, b, 0, n), state_row(real, second, t - 1, b, 0, n),
            state_row(spikes, 0, t - 1, b, 0, n), current, coefficients, 0, layer.reset, kept, v,
            real.steps[second, t, b],
        )  # fmt: skip
        level = level_row(real, coefficients, t, b, 0, n, buffer)
        fired = spikes.steps[0, t, b]
        spike_row(level, threshold, waiting[b] if layer.refractory > 0 else waiting[0], layer, kept, fired)
        pack_above(fired, silent, words)
    if traces.steps.shape[1] > 0:
        advance_row(
            state_row(traces, 0, t - 1, b, 0, n), state_row(traces, second, t - 1, b, 0, n), silent, current,
            coefficients, 0, NONE, kept, traces.steps[0, t, b], traces.steps[second, t, b],
        )  # fmt: skip


@device_function
def silent_row(spikes, t, b, words):  # pyright: ignore
    """A step past the end of a sample's sequence: no spikes."""
    words[:] = 0
    if spikes.steps.shape[1] > 0:
        fired = spikes.steps[0, t, b]
        fired[:] = 0


@kernel
def recurrent_scan(current, layer, real, traces, spikes, waiting, feedback, first, delay, rows, words, total):  # pyright: ignore
    """Go through steps first … of a sequence: current (t, B, N), what arrives from outside.

    Fills the courses that have steps, words[first + delay:] (delay + T, B, ceil(N/64)) uint64 from words[first:], and
    total, all current that arrives, where it has steps. Other arguments as :func:`tbnn.ops.lif.cpu.scan`'s. A task takes
    ``rows`` samples.
    """
    steps, batch, features = current.shape
    for task in prange((batch + rows - 1) // rows):
        ones, shift = np.empty(TOGETHER, np.int32), np.empty(TOGETHER, np.int32)
        product = np.empty((TOGETHER, features), np.int32)
        room = scratch(4, features, current)
        room[2, :features] = 0
        for t in range(steps):
            for lo in range(task * rows, min((task + 1) * rows, batch), TOGETHER):
                hi = min(lo + TOGETHER, min((task + 1) * rows, batch))
                returned_rows(words[first + t, lo:hi], feedback, ones, shift, product)
                for b in range(lo, hi):
                    left = words[first + t + delay, b]
                    if t >= layer.lengths[b]:
                        silent_row(spikes, t, b, left)
                        continue
                    row = total[t, b] if total.shape[0] > 0 else room[3, :features]
                    feedback_row(product[b - lo], ones[b - lo], feedback, current[t, b], row)
                    neuron_row(layer, real, traces, spikes, waiting, row, t, b, room, left)
