# pyright: reportCallIssue=false
"""A recurrent layer on the CPU: all steps of a sequence in one call, forward; and what its weights' gradient adds up.

The feedback is the event-driven product of :mod:`tbnn.ops.binary_linear.events`, in integers; scaling and adding round as
the layer and the neuron do in torch, one operation at a time, so that the spikes are the same bits.
"""

import numpy as np
from numba import prange

from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.binary_linear.events import count_rows
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.lif.cpu import BETA, NONE, THRESHOLD, above_row, membrane_row
from tbnn.ops.packed_lif.compare import greater64
from tbnn.ops.recurrent_lif.product import STRIP, add_listed

WORD = 64  # spikes of a word
CHUNK = 48  # rows of gradients that stay in the cache while the inputs' columns are added up


@device_function
def feedback_row(product, ones, feedback, x, current):  # pyright: ignore
    """current = x + (scale·product + offset·ones + bias)."""
    scale, offset, bias = feedback.scale, feedback.offset, feedback.bias
    kind = x.dtype.type
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
def returned_row(words, feedback, ones, shift, product):  # pyright: ignore
    """product (1, N) = the weights' values times a row of spikes, words (1, K); ones (1,) = how many there are."""
    count = np.int32(0)
    for k in range(words.shape[1]):
        count += np.int32(popcount64(words[0, k]))
    ones[0] = count
    shift[0] = np.int32(feedback.constant) * count
    for plane in range(feedback.factors.size):
        count_rows(
            words, ones, feedback.columns[plane], feedback.totals[plane], feedback.places, 0, 1,
            feedback.factors[plane], shift, plane > 0, product,
        )  # fmt: skip
        shift[0] = 0


@kernel
def recurrent_scan(x, coefficients, reset, feedback, rows, v_start, trace_start, v, traces, words, out):  # pyright: ignore
    """Fill v and out (T, B, N), traces (T or 0, B, N) and words[delay:], from words[:delay], the spikes on their way.

    words (delay + T, B, ceil(N/64)) uint64; coefficients (3, N) as in :mod:`tbnn.ops.lif.cpu`. A task takes ``rows``
    samples, a step at a time, so that memory is read in long runs.
    """
    steps, batch, features = x.shape
    delay = words.shape[0] - steps
    beta, threshold = coefficients[BETA], coefficients[THRESHOLD]
    for task in prange((batch + rows - 1) // rows):
        ones, shift = np.empty(1, np.int32), np.empty(1, np.int32)
        product, current = np.empty((1, features), np.int32), np.empty(features, x.dtype)
        for t in range(steps):
            for b in range(task * rows, min((task + 1) * rows, batch)):
                returned_row(words[t, b : b + 1], feedback, ones, shift, product)
                feedback_row(product[0], ones[0], feedback, x[t, b], current)
                before = v_start[b] if t == 0 else v[t - 1, b]
                membrane_row(before, current, beta, threshold, reset, v[t, b])
                above_row(v[t, b], threshold, out[t, b])
                pack_above(v[t, b], threshold, words[t + delay, b])
                if traces.shape[0] > 0:
                    faded = trace_start[b] if t == 0 else traces[t - 1, b]
                    membrane_row(faded, current, beta, threshold, NONE, traces[t, b])


@device_function
def list_rows(words, lists, counts):  # pyright: ignore
    """lists (64·K, CHUNK) uint16: the rows of words (rows, K) in which each bit is set; counts (64·K,) how many."""
    counts[:] = 0
    for r in range(words.shape[0]):
        for k in range(words.shape[1]):
            word = words[r, k]
            while word:
                i = WORD * k + np.int64(popcount64(~word & (word - np.uint64(1))))
                lists[i, counts[i]] = r
                counts[i] += 1
                word &= word - np.uint64(1)


@kernel
def weight_gradient(grad, words, tasks, dweight):  # pyright: ignore
    """dweight (N, N) turned around, [input, output] = Σ over rows of spike·grad: grad (R, N), words (R, ceil(N/64)).

    Parallel over outputs. Each input's rows are added where it spiked, a chunk of rows and a strip of outputs at a time.
    """
    rows, outputs = grad.shape
    inputs, width = dweight.shape[0], words.shape[1]
    strips = (outputs + STRIP - 1) // STRIP
    each = (strips + tasks - 1) // tasks
    for task in prange(tasks):
        lists, counts = np.empty((WORD * width, CHUNK), np.uint16), np.empty(WORD * width, np.int64)
        first_strip, last_strip = min(strips, task * each), min(strips, (task + 1) * each)
        dweight[:, first_strip * STRIP : last_strip * STRIP] = 0
        for first in range(0, rows, CHUNK):
            list_rows(words[first : first + CHUNK], lists, counts)
            for strip in range(first_strip, last_strip):
                lo, hi = strip * STRIP, min((strip + 1) * STRIP, outputs)
                if hi - lo == STRIP and grad.itemsize == 4:
                    for k in range(inputs):
                        if counts[k] > 0:
                            add_listed(
                                lists.ctypes.data + 2 * CHUNK * k, counts[k],
                                grad.ctypes.data + 4 * (first * outputs + lo), 4 * outputs,
                                dweight.ctypes.data + 4 * (k * outputs + lo),
                            )  # fmt: skip
                else:
                    for k in range(inputs):
                        total = dweight[k, lo:hi]
                        for i in range(counts[k]):
                            row = grad[first + lists[k, i], lo:hi]
                            for f in range(total.size):
                                total[f] += row[f]
