# pyright: reportCallIssue=false
"""The scan of packed neurons on the CPU: integer products become currents, membranes and packed spikes in one pass.

It repeats, operation by operation and in the same order, the roundings of ``BinaryLinear`` and ``lif`` in float32. A tile of
neurons goes through all steps of a call before the next one, so that its rows stay in L1.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import prange

from tbnn.bits import WORD_BITS
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.lif.cpu import NONE, membrane_row
from tbnn.ops.packed_lif.compare import greater64

TILE = 512  # neurons: whole words, so that no two tasks share one
GROUP = 64  # neurons compared at once
TASKS = 64  # at most about so many, for as many threads; each has memory of its own to ask for

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

NO_INTS, NOTHING = np.empty((0, 0, 0), np.int32), np.empty(0, np.float32)
NO_VALUES = np.empty((0, 0, 0), np.float32)


class Drive(NamedTuple):
    """What drives neurons, before it is a current: ``scale·product + offset·ones + bias + added``, in this order.

    C scales serve C·P neurons, P pixels each; a linear layer has P = 1.
    """

    product: Ints
    """(T, B, C·P): integer sums over the spikes; (0, 0, 0): the current is ``added``."""
    ones: Ints
    """(T, B, groups·P): the number of spikes under the product, per group of channels."""
    scale: Floats
    """(C,)"""
    offset: Floats
    """(C,), or (0,) for none."""
    bias: Floats
    """(C,), or (0,) for none."""
    added: Floats
    """(T, B, C·P), or (0, 0, 0) for none."""


class Neurons(NamedTuple):
    """The constants of plain neurons, laid out for the kernels by :func:`neurons_of`."""

    beta: Floats
    threshold: Floats
    own_beta: int
    """1: one value a neuron; 0: one for all, spread over a tile."""
    own_threshold: int
    reset: int


def neurons_of(beta: Floats, threshold: Floats, reset: int, features: int) -> Neurons:
    """β and θ, (1,) or (features,) each, as rows that reach to whole groups."""
    rows = []
    for values in (beta, threshold):
        # One group more: a band of pixels may end in the middle of one.
        size = TILE if values.size == 1 else (-(-features // GROUP) + 1) * GROUP
        row = np.full(size, values[0], np.float32)
        row[: values.size] = values
        rows.append(row)
    return Neurons(rows[0], rows[1], int(beta.size > 1), int(threshold.size > 1), reset)


def drive_of(current: Floats) -> Drive:
    """Currents (T, B, N) that are ready."""
    return Drive(NO_INTS, NO_INTS, NOTHING, NOTHING, NOTHING, current)


@device_function
def _scaled(product, ones, scale, offset, bias, lo, out):  # pyright: ignore
    """A row's currents where each neuron has its own scale: product, scale, offset and bias (N,), ones one number."""
    hi = lo + out.size
    p, s = product[lo:hi], scale[lo:hi]
    for i in range(out.size):
        out[i] = np.float32(p[i]) * s[i]
    if offset.size > 0:
        spikes, o = np.float32(ones), offset[lo:hi]
        for i in range(out.size):
            out[i] += spikes * o[i]
    if bias.size > 0:
        b = bias[lo:hi]
        for i in range(out.size):
            out[i] += b[i]


@device_function
def _scaled_channels(product, ones, scale, offset, bias, lo, out):  # pyright: ignore
    """The same where each channel's pixels share a scale: product (N,), scale, offset and bias (C,), ones (groups·pixels,)."""
    channels = scale.size
    pixels = product.size // channels
    groups = ones.size // pixels
    i = 0
    while i < out.size:
        c, pixel = (lo + i) // pixels, (lo + i) % pixels
        count = min(pixels - pixel, out.size - i)
        p, y, factor = product[lo + i : lo + i + count], out[i : i + count], scale[c]
        for j in range(count):
            y[j] = np.float32(p[j]) * factor
        if offset.size > 0:
            first, addend = c * groups // channels * pixels + pixel, offset[c]
            spikes = ones[first : first + count]
            for j in range(count):
                y[j] += np.float32(spikes[j]) * addend
        if bias.size > 0:
            constant = bias[c]
            for j in range(count):
                y[j] += constant
        i += count


@device_function
def current_row(drive, t, b, lo, out):  # pyright: ignore
    """The currents of neurons lo … lo + out.size at step t of sample b."""
    if drive.product.size > 0:
        product, ones = drive.product[t, b], drive.ones[t, b]
        if drive.scale.size == product.size and ones.size == 1:
            _scaled(product, ones[0], drive.scale, drive.offset, drive.bias, lo, out)
        else:
            _scaled_channels(product, ones, drive.scale, drive.offset, drive.bias, lo, out)
        if drive.added.size > 0:
            more = drive.added[t, b, lo : lo + out.size]
            for i in range(out.size):
                out[i] += more[i]
    else:
        out[:] = drive.added[t, b, lo : lo + out.size]


@device_function
def pack_row(v, threshold, count, words):  # pyright: ignore
    """Bits v > threshold of ``count`` neurons to words, uint32; both rows reach to whole groups of GROUP."""
    for group in range((count + GROUP - 1) // GROUP):
        bits = greater64(v.ctypes.data + 4 * GROUP * group, threshold.ctypes.data + 4 * GROUP * group)
        left = count - GROUP * group
        if left < GROUP:
            bits &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
        words[2 * group] = np.uint32(bits)
        if left > WORD_BITS:
            words[2 * group + 1] = np.uint32(bits >> np.uint64(WORD_BITS))


@kernel
def packed_scan(drive, neurons, v, watched, seen, words):  # pyright: ignore
    """Advance neurons by a :class:`Drive`: v (B, N) in place, words (T, B, ceil(N/32)) uint32 filled; padding bits are 0.

    seen (T, B, K): the membranes of neurons ``watched`` (K,), ascending, after each step.
    """
    steps, batch, _ = words.shape
    features = v.shape[1]
    tiles = (features + TILE - 1) // TILE
    share = max(1, batch * tiles // TASKS)
    for task in prange((batch * tiles + share - 1) // share):
        current, before, after = np.empty(TILE, np.float32), np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
        for tile in range(task * share, min((task + 1) * share, batch * tiles)):
            b, lo = tile // tiles, tile % tiles * TILE
            count = min(TILE, features - lo)
            beta, theta = neurons.beta[lo * neurons.own_beta :], neurons.threshold[lo * neurons.own_threshold :]
            first, last = 0, 0
            if watched.size > 0:
                first, last = np.searchsorted(watched, lo), np.searchsorted(watched, lo + count)
            before[:count] = v[b, lo : lo + count]
            for t in range(steps):
                current_row(drive, t, b, lo, current[:count])
                membrane_row(before[:count], current[:count], beta[:count], theta[:count], neurons.reset, after[:count])
                pack_row(after, theta, count, words[t, b, lo // WORD_BITS :])
                for k in range(first, last):
                    seen[t, b, k] = after[watched[k] - lo]
                before, after = after, before
            v[b, lo : lo + count] = before[:count]


@kernel
def packed_integrate(drive, neurons, v, out):  # pyright: ignore
    """Membranes that never spike: out (T, B, N) from a :class:`Drive`, v (B, N) in place."""
    steps, batch, features = out.shape
    tiles = (features + TILE - 1) // TILE
    for task in prange(batch * tiles):
        b, lo = task // tiles, task % tiles * TILE
        count = min(TILE, features - lo)
        beta, current = neurons.beta[lo * neurons.own_beta :][:count], np.empty(count, np.float32)
        for t in range(steps):
            current_row(drive, t, b, lo, current)
            before = v[b, lo : lo + count] if t == 0 else out[t - 1, b, lo : lo + count]
            membrane_row(before, current, beta, beta, NONE, out[t, b, lo : lo + count])
        v[b, lo : lo + count] = out[steps - 1, b, lo : lo + count]


@kernel
def drive_values(drive, out):  # pyright: ignore
    """A :class:`Drive`'s currents, out (T, B, N)."""
    steps, batch, features = out.shape
    tiles = (features + TILE - 1) // TILE
    for task in prange(steps * batch * tiles):
        t, rest = task // (batch * tiles), task % (batch * tiles)
        lo = rest % tiles * TILE
        current_row(drive, t, rest // tiles, lo, out[t, rest // tiles, lo : min(lo + TILE, features)])
