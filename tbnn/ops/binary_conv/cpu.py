# pyright: reportCallIssue=false
"""The binary convolution on the CPU: the patches of a strip of windows, times all weights, before the next strip."""

import numpy as np
from numba import prange

from tbnn.ops.binary_linear.tile import STRIP, strip_popcounts
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.patches.cpu import any_of, gather, lane_shifts, load_pieces

TILE = 4  # weight rows held in registers together

four_rows = strip_popcounts(TILE)
one_row = strip_popcounts(1)


@device_function
def _gather_rows(pieces, channel, y, count, step, width, table, starts, shifts, row, patches):  # pyright: ignore
    """Fill patches (words, STRIP) with ``count`` rows of ``width`` windows, one row after the other."""
    if count == 1:
        gather(pieces, channel, y, table, starts, shifts, patches)
        return
    for i in range(count):
        gather(pieces, channel, y + i * step, table, starts, shifts, row)
        for k in range(patches.shape[0]):
            for lane in range(width):
                patches[k, i * width + lane] = row[k, lane]


@device_function
def _multiply(patches, plane, n0, n1, factor, shift, add, counts, out, m, place, used):  # pyright: ignore
    """out[m, n0:n1, place:place+used]: here the windows of a strip are the columns, the weights the rows.

    Returns the sum of the popcounts.
    """
    words, stride, columns = patches.shape[0], plane.shape[1] * 8, patches.ctypes.data
    n, total = n0, np.int64(0)
    while n < n1:
        height = TILE if n + TILE <= n1 else 1
        rows = plane.ctypes.data + n * stride
        if height == TILE:
            four_rows(rows, stride, columns, words, counts.ctypes.data, STRIP * 4)
        else:
            one_row(rows, stride, columns, words, counts.ctypes.data, STRIP * 4)
        for i in range(height):
            row, here, some = out[m, n + i, place : place + used], counts[i], np.int32(0)
            if add:
                for lane in range(used):
                    row[lane] += factor * here[lane]
            else:
                for lane in range(used):
                    row[lane] = factor * here[lane] + shift[lane]
            for lane in range(used):
                some += here[lane]
            total += some
        n += height
    return total


@kernel
def binary_conv2d_cpu(
    words, planes, factors, constant, grid, groups, size, window, stride, dilation, before, extent, lanes, columns, table,
    starts, out, totals, met,
):  # pyright: ignore  # fmt: skip
    """out (M, N, OH·OW) int32 = Σ_j factor_j·popcount(window ∧ plane_j) + constant·popcount(window).

    Frames: words (M, ...) uint64, size = (C, H, W), grid = (OH, OW); planes (P, N, K) uint64. totals (M, groups, OH·OW)
    int32: popcount(window); met (M, strips) int64: the sum of all popcounts with the last plane, or with all if P is 2.
    """
    rows, width = grid
    strips = (width + lanes - 1) // lanes
    together = max(STRIP // width, 1) if strips == 1 else 1  # rows of windows in a strip
    channels, outputs = size[0] // groups, out.shape[1] // groups
    for task in prange(out.shape[0] * strips):
        m, first = task // strips, task % strips * lanes
        used = min(lanes, width - first)
        shifts = lane_shifts(lanes, stride[1])
        pieces = np.empty((columns.size, size[0], extent), np.uint64)
        busy = np.empty(extent, np.uint64)
        row = np.empty((starts.size - 1, STRIP), np.uint64)
        patches = np.zeros((starts.size - 1, STRIP), np.uint64)
        every = np.full((1, starts.size - 1), ~np.uint64(0))  # a row of weights that counts the spikes
        ones, counts, shift = (
            np.empty((1, STRIP), np.int32),
            np.empty((TILE, STRIP), np.int32),
            np.empty(STRIP, np.int32),
        )
        load_pieces(words, m, size, before[0], first * stride[1] - before[1], columns, pieces, busy)
        met[m, first // lanes] = 0
        for y in range(0, rows, together):
            count, place = min(together, rows - y), y * width + first
            seen = False
            for i in range(count):
                seen |= any_of(busy, (y + i) * stride[0], window[0], dilation[0])
            if not seen:
                out[m, :, place : place + count * used] = 0
                totals[m, :, place : place + count * used] = 0
                continue
            for g in range(groups):
                y0, channel = y * stride[0], g * channels
                _gather_rows(pieces, channel, y0, count, stride[0], used, table, starts, shifts, row, patches)
                one_row(every.ctypes.data, 0, patches.ctypes.data, patches.shape[0], ones.ctypes.data, 0)
                totals[m, g, place : place + count * used] = ones[0, : count * used]
                for lane in range(STRIP):
                    shift[lane] = constant * ones[0, lane]
                for j in range(planes.shape[0]):
                    n0, n1 = g * outputs, (g + 1) * outputs
                    kept = _multiply(
                        patches, planes[j], n0, n1, factors[j], shift, j > 0, counts, out, m, place, count * used
                    )
                    if j == planes.shape[0] - 1 or planes.shape[0] == 2:
                        met[m, first // lanes] += kept
