# pyright: reportCallIssue=false
"""Kernels between floating-point spikes and packed ones."""

import numpy as np
from numba import prange

from tbnn.bits import WORD_BITS
from tbnn.ops.kernels import kernel

TILE = 512  # neurons of a task: whole words


@kernel
def pack_rows(values, words):  # pyright: ignore
    """Bits of values (M, N) to words (M, ceil(N/32)) uint32, padding bits 0; how many rows hold more than 0 and 1."""
    rows, n = values.shape
    zero, one = values.dtype.type(0), values.dtype.type(1)
    strange = 0
    for m in prange(rows):
        odd = np.uint32(0)
        for j in range(words.shape[1]):
            row, word = values[m, WORD_BITS * j : min(WORD_BITS * (j + 1), n)], np.uint32(0)
            for i in range(row.size):
                word |= np.uint32(row[i] != zero) << np.uint32(i)
                odd |= np.uint32((row[i] != zero) & (row[i] != one))
            words[m, j] = word
        strange += np.int64(odd)
    return strange


@kernel
def gradient_sums(grad, words, lengths, by_step, out):  # pyright: ignore
    """Fill out (2, 1 or T, F) with ΣG and ΣG·q over batch (and time): grad (1 or T, 1 or B, F), spikes words (T, B, W).

    Steps past a sequence's ``lengths`` (B,) do not count.
    """
    steps, batch, _ = words.shape
    features = grad.shape[2]
    tiles = (features + TILE - 1) // TILE
    groups = steps if by_step else 1
    for task in prange(groups * tiles):
        group, lo = task // tiles, task % tiles * TILE
        hi = min(lo + TILE, features)
        all_of, kept = out[0, group, lo:hi], out[1, group, lo:hi]
        all_of[:] = 0.0
        kept[:] = 0.0
        for t in range(group if by_step else 0, group + 1 if by_step else steps):
            for b in range(batch):
                if t >= lengths[b]:
                    continue
                g = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0, lo:hi]
                for f in range(g.size):
                    all_of[f] += np.float64(g[f])
                row = words[t, b]
                for j in range(lo // WORD_BITS, (hi + WORD_BITS - 1) // WORD_BITS):
                    word, first = row[j], WORD_BITS * j - lo
                    if word == np.uint32(0):
                        continue
                    part, total = g[first : first + WORD_BITS], kept[first : first + WORD_BITS]
                    for i in range(part.size):
                        total[i] += np.float64(part[i]) * np.float64((word >> np.uint32(i)) & np.uint32(1))
