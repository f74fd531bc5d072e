# pyright: reportCallIssue=false
"""Kernels between floating-point spikes and packed ones, and sums over spikes and whole numbers."""

import numpy as np
from numba import prange

from tbnn.bits import WORD_BITS
from tbnn.ops.kernels import device_function, kernel

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


@kernel
def hold_counts(product, ones, alive, kept, kept_ones, sums, sums_ones):  # pyright: ignore
    """Copy whole numbers product (M, C·P), ones (M, groups·P) int32 to kept, kept_ones, of the same shapes; add them up.

    sums (tasks, 3, C) and sums_ones (tasks, 2, groups) int64, or (0, ...) for none: Σp, Σp², Σp·n and Σn, Σn² of the frames
    that are alive (M,). kept_ones may be (M, 0): n is then of no use.
    """
    frames, features = product.shape
    tasks = max(sums.shape[0], 1)
    share = (frames + tasks - 1) // tasks
    for task in prange(tasks):
        for m in range(task * share, min((task + 1) * share, frames)):
            p, to = product[m], kept[m]
            for f in range(features):
                to[f] = p[f]
            n, to = ones[m, : kept_ones.shape[1]], kept_ones[m]
            for f in range(n.size):
                to[f] = n[f]
        if sums.shape[0] > 0:
            total, total_ones = sums[task], sums_ones[task]
            total[:] = 0
            total_ones[:] = 0
            for m in range(task * share, min((task + 1) * share, frames)):
                if alive[m]:
                    _add_frame(product[m], ones[m, : kept_ones.shape[1]], total, total_ones)


@device_function
def _add_frame(product, ones, total, total_ones):  # pyright: ignore
    """Add a frame's whole numbers to sums (3, C) and (2, groups)."""
    channels, groups = total.shape[1], total_ones.shape[1]
    pixels = product.size // channels
    if pixels == 1 and groups == 1:  # a linear layer
        n = np.int64(ones[0]) if ones.size > 0 else np.int64(0)
        for c in range(channels):
            total[0, c] += np.int64(product[c])
        for c in range(channels):
            total[1, c] += np.int64(product[c]) * np.int64(product[c])
        for c in range(channels):
            total[2, c] += np.int64(product[c]) * n
    else:
        for c in range(channels):
            p = product[c * pixels : (c + 1) * pixels]
            a, b, d = np.int64(0), np.int64(0), np.int64(0)
            for i in range(pixels):
                a += np.int64(p[i])
                b += np.int64(p[i]) * np.int64(p[i])
            if ones.size > 0:
                g = c * groups // channels
                n = ones[g * pixels : (g + 1) * pixels]
                for i in range(pixels):
                    d += np.int64(p[i]) * np.int64(n[i])
            total[0, c] += a
            total[1, c] += b
            total[2, c] += d
    if ones.size > 0:
        for g in range(groups):
            n = ones[g * pixels : (g + 1) * pixels]
            a, b = np.int64(0), np.int64(0)
            for i in range(pixels):
                a += np.int64(n[i])
                b += np.int64(n[i]) * np.int64(n[i])
            total_ones[0, g] += a
            total_ones[1, g] += b
