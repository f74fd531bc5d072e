# pyright: reportCallIssue=false
"""Patches of packed frames on the CPU, a strip of neighbouring windows at once.

A strip's lanes are windows next to each other. One 64-bit piece of a frame's row holds what they all see of it: lane l
finds its bits ``l·stride`` further on. So a row of the window costs a shift, a mask and an OR for all lanes together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from tbnn.ops.binary_linear.tile import STRIP
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.patches.reference import Windows
from tbnn.ops.patches.strip import gather_word

WIDE = 64  # bits of a word
PIECE = WIDE  # bits of a frame's row seen at once
REACH = 32  # columns that a run of taps may span, so that a piece serves several windows

Fields = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def runs_of(windows: Windows) -> tuple[list[tuple[int, int]], int]:
    """(first tap, taps) of the runs that a window's row falls into, and how many windows one piece serves."""
    taps, step = windows.kernel[1], windows.dilation[1]
    most = min((REACH - 1) // step + 1, taps)
    room = PIECE - (most - 1) * step - 1
    return [(j, min(most, taps - j)) for j in range(0, taps, most)], room // windows.stride[1] + 1


def fields_of(windows: Windows, runs: list[tuple[int, int]], channels: int, per_group: int) -> Fields:
    """The table of fields for gather_word, in the order of a patch's 64-bit words, and where each word's fields start.

    A field is bits that lie side by side in a piece (runs, channels, rows) and in one word of the patch.
    """
    (kh, kw), (dh, dw), rows = windows.kernel, windows.dilation, windows.extent[0]
    # (piece, offset in it, bits, place in the patch): neighbouring columns together, others bit by bit.
    parts = [
        (run * channels * rows + i * dh, t * dw, taps if dw == 1 else 1, i * kw + j + t)
        for i in range(kh)
        for run, (j, taps) in enumerate(runs)
        for t in range(1 if dw == 1 else taps)
    ]
    c = np.repeat(np.arange(per_group), len(parts))
    piece, offset, bits, place = np.tile(np.array(parts), (per_group, 1)).T
    piece, place = piece + c * rows, place + c * kh * kw
    head = np.minimum(bits, WIDE - place % WIDE)
    over = bits > head  # what does not fit into the word goes into the next one
    word = np.concatenate([place // WIDE, (place // WIDE + 1)[over]])
    taken = np.concatenate([head, (bits - head)[over]])
    table = [
        np.concatenate([piece, piece[over]]),
        np.concatenate([offset, (offset + head)[over]]),
        (1 << taken) - 1,
        np.concatenate([place % WIDE, np.zeros(over.sum(), np.int64)]),
    ]
    order = np.argsort(word, kind="stable")
    return np.stack(table, 1)[order], np.searchsorted(word[order], np.arange(word.max() + 2))


@device_function
def piece_of(words, m, row, width, x):  # pyright: ignore
    """Columns x ... x+63 of a row of ``width`` bits that starts at bit ``row`` of words[m]; zeros outside of it."""
    lo, hi = max(x, 0), min(x + PIECE, width)
    if hi <= lo:
        return np.uint64(0)
    word, bit, count = (row + lo) >> 6, (row + lo) & 63, hi - lo
    piece = words[m, word] >> np.uint64(bit)
    if bit + count > 64:
        piece |= words[m, word + 1] << np.uint64(64 - bit)
    if count < 64:
        piece &= (np.uint64(1) << np.uint64(count)) - np.uint64(1)
    return piece << np.uint64(lo - x)


@device_function
def load_pieces(words, m, size, top, x, columns, pieces, busy):  # pyright: ignore
    """Fill pieces (runs, C, rows) of frame m, whose strip starts in column x; busy (rows): the OR over all channels."""
    channels, height, width = size
    busy[:] = 0
    for run in range(columns.size):
        for c in range(channels):
            for y in range(pieces.shape[2]):
                piece = np.uint64(0)
                if top <= y < top + height:
                    piece = piece_of(words, m, (c * height + y - top) * width, width, x + columns[run])
                pieces[run, c, y] = piece
                busy[y] |= piece


@device_function
def any_of(busy, y, rows, step):  # pyright: ignore
    """Whether a bit is set in the window's rows."""
    seen = np.uint64(0)
    for i in range(rows):
        seen |= busy[y + i * step]
    return seen != 0


@device_function
def gather(pieces, channel, y, table, starts, shifts, patches):  # pyright: ignore
    """Fill patches (words, STRIP): the windows of a strip whose rows start at y, of the group that starts at channel."""
    base = pieces.ctypes.data + 8 * (channel * pieces.shape[2] + y)
    for k in range(patches.shape[0]):
        gather_word(
            table.ctypes.data, starts[k], starts[k + 1], base, shifts.ctypes.data, patches.ctypes.data + 8 * STRIP * k
        )


@device_function
def lane_shifts(lanes, stride):  # pyright: ignore
    """Where in a piece each lane's bits start; lanes out of use see what the first one sees."""
    shifts = np.zeros(STRIP, np.uint64)
    for lane in range(lanes):
        shifts[lane] = np.uint64(lane * stride)
    return shifts


@kernel
def bit_patches_cpu(words, size, window, stride, dilation, before, extent, lanes, columns, table, starts, out):  # pyright: ignore
    """Fill out (M, OH, OW, groups, K) uint32 from words (M, ...) uint64 of frames ``size`` = (C, H, W)."""
    frames, rows, width, groups, words_out = out.shape
    strips = (width + lanes - 1) // lanes
    for task in prange(frames * strips):
        m, first = task // strips, task % strips * lanes
        used = min(lanes, width - first)
        shifts = lane_shifts(lanes, stride[1])
        pieces = np.empty((columns.size, size[0], extent), np.uint64)
        busy = np.empty(extent, np.uint64)
        patches = np.empty((starts.size - 1, STRIP), np.uint64)
        load_pieces(words, m, size, before[0], first * stride[1] - before[1], columns, pieces, busy)
        for y in range(rows):
            if not any_of(busy, y * stride[0], window[0], dilation[0]):
                out[m, y, first : first + used] = 0
                continue
            for g in range(groups):
                gather(pieces, g * (size[0] // groups), y * stride[0], table, starts, shifts, patches)
                for lane in range(used):
                    for k in range(words_out):
                        out[m, y, first + lane, g, k] = np.uint32(patches[k >> 1, lane] >> np.uint64(32 * (k & 1)))


def arguments(shape: Sequence[int], windows: Windows, groups: int) -> tuple[Any, ...]:
    """What the kernels need to know of frames and windows."""
    runs, lanes = runs_of(windows)
    columns = np.array([j * windows.dilation[1] for j, _ in runs])
    table, starts = fields_of(windows, runs, shape[0], shape[0] // groups)
    geometry = windows.kernel, windows.stride, windows.dilation, windows.before, windows.extent[0]
    return (tuple(shape), *geometry, min(lanes, STRIP), columns, table, starts)
