"""Kernels of the simulator: popcount products become currents, currents become packed spikes.

They repeat, operation by operation and in the same order, the roundings of ``BinaryLinear`` and ``lif`` in float32.
"""

import numpy as np
from numba import prange

from tbnn.bits import WORD_BITS
from tbnn.ops.kernels import kernel
from tbnn.ops.lif.cpu import NONE, TILE, membrane_row

# A task fills whole words, so no two tasks share one.
TILE_WORDS = TILE // WORD_BITS


@kernel
def scale_block(product, ones, scale, offset, first, bias, y):  # pyright: ignore
    """y += scale·product + offset·ones (or = with ``first``), then + bias; offset and bias where they have values.

    product (M, N) and ones (M,) int32; scale (N,), offset and bias (N,) or (0,), and y (M, N) float32.
    """
    rows, columns = product.shape
    with_offset, with_bias = offset.size > 0, bias.size > 0
    for m in prange(rows):
        term = np.empty(columns, np.float32)
        spikes = np.float32(ones[m])
        for n in range(columns):
            term[n] = np.float32(product[m, n]) * scale[n]
        if with_offset:
            for n in range(columns):
                term[n] += spikes * offset[n]
        if first:
            y[m] = term
        else:
            for n in range(columns):
                y[m, n] += term[n]
        if with_bias:
            for n in range(columns):
                y[m, n] += bias[n]


@kernel
def scale_channels(product, totals, scale, offset, bias, y):  # pyright: ignore
    """y[m, n] = scale[n]·product[m, n] + offset[n]·totals[m] + bias[n]; offset and bias where they have values.

    product (M, N, P) and totals (M, P) int32; scale (N,), offset and bias (N,) or (0,), and y (M, N, P) float32.
    """
    frames, channels, pixels = product.shape
    for task in prange(frames * channels):
        m, n = task // channels, task % channels
        for i in range(pixels):
            y[m, n, i] = np.float32(product[m, n, i]) * scale[n]
        if offset.size > 0:
            for i in range(pixels):
                y[m, n, i] += np.float32(totals[m, i]) * offset[n]
        if bias.size > 0:
            for i in range(pixels):
                y[m, n, i] += bias[n]


@kernel
def packed_lif(current, beta, threshold, reset, v, words):  # pyright: ignore
    """Advance neurons by current (T, B, N) float32: v (B, N) in place, words (T, B, ceil(N/32)) uint32 filled.

    Element i of a row is bit i % WORD_BITS of word i // WORD_BITS, as in :mod:`tbnn.bits`; padding bits are 0.
    """
    steps, batch, features = current.shape
    tiles = (words.shape[2] + TILE_WORDS - 1) // TILE_WORDS
    for task in prange(batch * tiles):
        b = task // tiles
        first_word = task % tiles * TILE_WORDS
        last_word = min(first_word + TILE_WORDS, words.shape[2])
        lo, hi = first_word * WORD_BITS, min(last_word * WORD_BITS, features)
        beta_n, theta_n = beta[lo:hi], threshold[lo:hi]
        before, after = v[b, lo:hi].copy(), np.empty(hi - lo, v.dtype)
        for t in range(steps):
            membrane_row(before, current[t, b, lo:hi], beta_n, theta_n, reset, after)
            for j in range(first_word, last_word):
                word = np.uint32(0)
                start = (j - first_word) * WORD_BITS
                for i in range(min(WORD_BITS, hi - lo - start)):
                    word |= np.uint32(after[start + i] > theta_n[start + i]) << np.uint32(i)
                words[t, b, j] = word
            before, after = after, before
        v[b, lo:hi] = before


@kernel
def integrate(current, beta, v, out):  # pyright: ignore
    """Membranes that never spike: out (T, B, N) from current (T, B, N), v (B, N) in place."""
    steps, batch, features = current.shape
    tiles = (features + TILE - 1) // TILE
    for task in prange(batch * tiles):
        b = task // tiles
        lo = task % tiles * TILE
        hi = min(lo + TILE, features)
        for t in range(steps):
            before = v[b, lo:hi] if t == 0 else out[t - 1, b, lo:hi]
            membrane_row(before, current[t, b, lo:hi], beta[lo:hi], beta[lo:hi], NONE, out[t, b, lo:hi])
        v[b, lo:hi] = out[steps - 1, b, lo:hi]
