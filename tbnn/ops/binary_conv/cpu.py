# pyright: reportCallIssue=false
"""The binary convolution on the CPU: the patches of a strip of windows, times all weights, before the next strip."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import prange

from tbnn.ops.binary_linear.tile import STRIP, strip_popcounts
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.patches.cpu import any_of, gather, lane_shifts, load_pieces

TILE = 4  # weight rows held in registers together


class ConvKernel(NamedTuple):
    """Weights and geometry as the kernels see them; numba's parallel loops take no tuples inside of tuples.

    ``band`` rows of windows are a task; they see ``extent`` rows of the frame.
    """

    planes: npt.NDArray[np.uint64]
    """(P, N, K)"""
    factors: npt.NDArray[np.int32]
    """(P,)"""
    constant: int
    rows: int
    """Of windows, OH; ``width``: of a row, OW."""
    width: int
    groups: int
    channels: int
    """Of a frame; ``frame_rows`` and ``frame_width`` its height and width."""
    frame_rows: int
    frame_width: int
    window_rows: int
    row_step: int
    """The stride, ``column_step`` along a row; ``row_dilation`` between the rows of a window."""
    column_step: int
    row_dilation: int
    above: int
    """Rows of zeros above the frame, columns ``left`` of it."""
    left: int
    band: int
    extent: int
    lanes: int
    """Windows of a strip, side by side."""
    columns: npt.NDArray[np.int64]
    table: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    """How a patch's words are put together: see :func:`tbnn.ops.patches.cpu.fields_of`."""


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
def _multiply(patches, plane, n0, n1, factor, shift, add, counts, out, place, used):  # pyright: ignore
    """out[n0:n1, place:place+used]: here the windows of a strip are the columns, the weights the rows.

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
            row, here, some = out[n + i, place : place + used], counts[i], np.int32(0)
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


@device_function
def scratch_for(kernel):  # pyright: ignore
    """Memory for :func:`convolve`."""
    extent, words = kernel.extent, kernel.starts.size - 1
    return (
        lane_shifts(kernel.lanes, kernel.column_step),
        np.empty((kernel.columns.size, kernel.channels, extent), np.uint64),  # pieces
        np.empty(extent, np.uint64),  # busy
        np.empty((words, STRIP), np.uint64),  # one row's patches
        np.zeros((words, STRIP), np.uint64),  # patches
        np.full((1, words), ~np.uint64(0)),  # a row of weights that counts the spikes
        np.empty((1, STRIP), np.int32),
        np.empty((TILE, STRIP), np.int32),
        np.empty(STRIP, np.int32),
    )


@device_function
def convolve(words, m, kernel, first_row, rows, scratch, out, totals):  # pyright: ignore
    """Window rows first_row … first_row + rows of frame m: out (N, rows·OW) and totals (groups, rows·OW), int32, filled.

    Returns how often a spike met a bit of the last plane, or of both where there are two.
    """
    shifts, pieces, busy, row, patches, every, ones, counts, shift = scratch
    width, step, planes, groups = kernel.width, kernel.row_step, kernel.planes, kernel.groups
    size = (kernel.channels, kernel.frame_rows, kernel.frame_width)
    strips = (width + kernel.lanes - 1) // kernel.lanes
    together = max(STRIP // width, 1) if strips == 1 else 1  # rows of windows in a strip
    channels, outputs = kernel.channels // groups, out.shape[0] // groups
    top, met = kernel.above - first_row * step, np.int64(0)
    for first in range(0, width, kernel.lanes):
        used = min(kernel.lanes, width - first)
        load_pieces(words, m, size, top, first * kernel.column_step - kernel.left, kernel.columns, pieces, busy)
        for y in range(0, rows, together):
            count, place = min(together, rows - y), y * width + first
            seen = False
            for i in range(count):
                seen |= any_of(busy, (y + i) * step, kernel.window_rows, kernel.row_dilation)
            if not seen:
                out[:, place : place + count * used] = 0
                totals[:, place : place + count * used] = 0
                continue
            for g in range(groups):
                _gather_rows(
                    pieces, g * channels, y * step, count, step, used, kernel.table, kernel.starts, shifts, row, patches
                )
                one_row(every.ctypes.data, 0, patches.ctypes.data, patches.shape[0], ones.ctypes.data, 0)
                totals[g, place : place + count * used] = ones[0, : count * used]
                for lane in range(STRIP):
                    shift[lane] = kernel.constant * ones[0, lane]
                for j in range(planes.shape[0]):
                    n0, n1, factor = g * outputs, (g + 1) * outputs, kernel.factors[j]
                    kept = _multiply(patches, planes[j], n0, n1, factor, shift, j > 0, counts, out, place, count * used)
                    if j == planes.shape[0] - 1 or planes.shape[0] == 2:
                        met += kept
    return met


@kernel
def binary_conv2d_cpu(words, kernel, out, totals, met):  # pyright: ignore
    """The convolution of frames, words (M, ...) uint64, by a :class:`ConvKernel`.

    out (M, N, OH·OW) int32 = Σ_j factor_j·popcount(window ∧ plane_j) + constant·popcount(window); totals (M, groups, OH·OW)
    int32: popcount(window); met (M, bands) int64: see :func:`convolve`.
    """
    rows, width, band = kernel.rows, kernel.width, kernel.band
    bands = (rows + band - 1) // band
    for task in prange(out.shape[0] * bands):
        m, first = task // bands, task % bands * band
        count = min(band, rows - first)
        here = slice(first * width, (first + count) * width)
        scratch = scratch_for(kernel)
        met[m, first // band] = convolve(words, m, kernel, first, count, scratch, out[m, :, here], totals[m, :, here])
