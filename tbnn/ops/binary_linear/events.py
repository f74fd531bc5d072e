# pyright: reportCallIssue=false
"""The event-driven binary product on the CPU: the weight columns of the active inputs, added up by bit-sliced counters.

popcount(s ∧ w_n) is the number of active inputs i whose column has bit n set. A row with more than half of its inputs
active adds the columns of the silent ones and takes that from popcount(w_n).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import prange

from tbnn.ops.binary_linear.counters import (
    BLOCK,
    PLANES,
    copy_bytes,
    count_columns,
    exchange_halves,
    list_bits,
    unpack_counts,
)
from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.binary_linear.vectors import LANES
from tbnn.ops.kernels import SERIAL_BELOW, device_function, kernel

ROWS = 16  # spike rows of a task: a strip of columns stays in the cache for all of them
NARROW = 64 * LANES  # outputs of a strip of one vector
PLACES = np.array(
    [[i for i in range(8) if byte >> i & 1] + [0] * (8 - byte.bit_count()) for byte in range(256)], np.uint8
)
FEW_BITS = 4  # up to so many bits of a word are listed one by one

count_narrow, count_wide = count_columns(1), count_columns(2)


class WeightColumns(NamedTuple):
    """Weight words (N, K) turned around, once per layer."""

    words: npt.NDArray[np.uint64]
    """(strips, 64·K + 1, 8 or 16): the outputs' bits of each input, and a column of zeros; on a cache line's border."""
    totals: npt.NDArray[np.int32]
    """(N,): popcount of each output's weights."""


def strip_width(outputs: int) -> int:
    """Words of a strip of columns: one vector where the outputs fit into it, else two."""
    return LANES if outputs <= NARROW else 2 * LANES


def weight_columns(w: npt.NDArray[np.uint64]) -> WeightColumns:
    """The columns of weight words w (N, K), for :func:`binary_events_cpu`."""
    outputs, words = w.shape
    width = strip_width(outputs)
    strips = -(-outputs // (64 * width))
    # torch's memory begins at a cache line; a column across two would be read twice.
    columns = torch.empty((strips, 64 * words + 1, width), dtype=torch.int64).numpy().view(np.uint64)
    columns[:, -1] = 0
    _turn(w, columns, work=w.size)
    return WeightColumns(columns, np.bitwise_count(w).sum(-1, dtype=np.int32))


@device_function
def _turn_squares(bits):  # pyright: ignore
    """LANES squares of 64 by 64 bits, (64, LANES) words, transposed in place by halves [Warren, Hacker's Delight, 7-3]."""
    step, mask = 32, np.uint64(0xFFFFFFFF)
    while step:
        for high in range(0, 64, 2 * step):
            for i in range(high, high + step):
                row = bits.ctypes.data + 8 * LANES * i
                exchange_halves(row, row + 8 * LANES * step, step, mask)
        step //= 2
        mask ^= mask << np.uint64(step)


@kernel
def _turn(w, columns):  # pyright: ignore
    """columns (strips, 64·K + 1, width) from words (N, K)."""
    outputs, words = w.shape
    strips, _, width = columns.shape
    parts = width // LANES
    for task in prange(strips * parts * words):
        k, part = task % words, task // words
        strip, lane0 = part // parts, part % parts * LANES
        bits = np.empty((64, LANES), np.uint64)
        for lane in range(LANES):
            n0 = (strip * width + lane0 + lane) * 64
            for i in range(64):
                bits[i, lane] = w[n0 + i, k] if n0 + i < outputs else np.uint64(0)
        _turn_squares(bits)
        for i in range(64):
            for lane in range(LANES):
                columns[strip, 64 * k + i, lane0 + lane] = bits[i, lane]


@device_function
def _list_active(row, flip, places, indices, start):  # pyright: ignore
    """The places of the bits of row ^ flip to indices[start:], and up to 8 words of no meaning after them."""
    count = start
    for k in range(row.shape[0]):
        word = row[k] ^ flip
        bits = np.int64(popcount64(word))
        if bits <= FEW_BITS:
            if bits:
                for i in range(FEW_BITS):
                    indices[count + i] = 64 * k + np.int64(popcount64(~word & (word - np.uint64(1))))
                    word &= word - np.uint64(1)
            count += bits
        else:
            for q in range(8):
                byte = (word >> np.uint64(8 * q)) & np.uint64(255)
                list_bits(places.ctypes.data, byte, 64 * k + 8 * q, indices.ctypes.data + 4 * count)
                count += np.int64(popcount64(byte))


@kernel
def weigh_ones(s, weights):  # pyright: ignore
    """Σ over the set bits of words s (M, K) uint64 of their inputs' weights (64·K,) int64."""
    total = np.int64(0)
    for m in prange(s.shape[0]):
        some = np.int64(0)
        for k in range(s.shape[1]):
            word = s[m, k]
            while word:
                some += weights[64 * k + np.int64(popcount64(~word & (word - np.uint64(1))))]
                word &= word - np.uint64(1)
        total += some
    return total


@device_function
def _write_counts(planes, step, levels, factor, shift, add, out):  # pyright: ignore
    """64 counts from the counters at the address planes to the address out."""
    for first in range(0, levels, 8):
        offset = np.int32(0) if first else shift
        unpack_counts(planes, step, first, min(first + 8, levels), factor << first, offset, add or first > 0, out)


@device_function
def _count_row(indices, blocks, levels, columns, width, planes, tail, outputs, factor, shift, add, out):  # pyright: ignore
    """At most ``width`` words of outputs to the address out; all but numbers are addresses, tail one of 64 int32."""
    if width == LANES:
        count_narrow(indices, blocks, levels, columns, planes)
    else:
        count_wide(indices, blocks, levels, columns, planes)
    whole = outputs // 64
    for word in range(whole):
        _write_counts(planes + 8 * word, 16 * width, levels, factor, shift, add, out + 256 * word)
    if outputs % 64:
        rest = 4 * (outputs % 64)
        copy_bytes(tail, out + 256 * whole, rest)
        _write_counts(planes + 8 * whole, 16 * width, levels, factor, shift, add, tail)
        copy_bytes(out + 256 * whole, tail, rest)


@device_function
def count_rows(s, ones, columns, totals, places, m0, m1, factor, shift, add, out):  # pyright: ignore
    """out[m0:m1]: the active inputs listed row by row, then strip by strip of columns."""
    inputs = 64 * s.shape[1]
    starts = np.empty(ROWS + 1, np.int64)
    actives = np.empty(ROWS, np.int64)
    starts[0] = 0
    for m in range(m0, m1):
        actives[m - m0] = min(np.int64(ones[m]), inputs - ones[m])
        starts[m - m0 + 1] = starts[m - m0] + (actives[m - m0] + BLOCK - 1) // BLOCK * BLOCK
    indices = np.empty(starts[m1 - m0] + 8, np.uint32)
    for m in range(m0, m1):
        i = m - m0
        flipped = 2 * np.int64(ones[m]) > inputs
        flip = ~np.uint64(0) if flipped else np.uint64(0)
        _list_active(s[m], flip, places, indices, starts[i])
        indices[starts[i] + actives[i] : starts[i + 1]] = inputs
        if flipped:
            for n in range(out.shape[1]):
                out[m, n] = (out[m, n] if add else np.int32(0)) + factor * totals[n] + shift[m]
    width = columns.shape[2]
    memory = np.empty(PLANES * 2 * width + 16, np.uint64)
    planes = (memory.ctypes.data + 127) // 128 * 128  # a vector across cache lines would be read twice
    tail = np.empty(64, np.int32)
    for strip in range(columns.shape[0]):
        n0 = strip * 64 * width
        for m in range(m0, m1):
            i = m - m0
            flipped = 2 * np.int64(ones[m]) > inputs
            levels = 1
            while actives[i] >> levels:
                levels += 1
            _count_row(
                indices.ctypes.data + 4 * starts[i],
                (starts[i + 1] - starts[i]) // BLOCK,
                levels,
                columns.ctypes.data + strip * columns.shape[1] * width * 8,
                width,
                planes,
                tail.ctypes.data,
                min(64 * width, out.shape[1] - n0),
                np.int32(-factor if flipped else factor),
                np.int32(0) if flipped else shift[m],
                add or flipped,
                out.ctypes.data + 4 * (m * out.shape[1] + n0),
            )


@kernel
def _events(s, ones, columns, totals, places, factor, shift, add, out):  # pyright: ignore
    """See :func:`binary_events_cpu`."""
    rows = s.shape[0]
    for task in prange((rows + ROWS - 1) // ROWS):
        m0 = task * ROWS
        count_rows(s, ones, columns, totals, places, m0, min(m0 + ROWS, rows), factor, shift, add, out)


@device_function
def _few_events(s, ones, columns, totals, places, factor, shift, add, out):  # pyright: ignore
    """The same without threads, whose start is half the time of one row."""
    rows = s.shape[0]
    for m0 in range(0, rows, ROWS):
        count_rows(s, ones, columns, totals, places, m0, min(m0 + ROWS, rows), factor, shift, add, out)


def binary_events_cpu(
    s: npt.NDArray[np.uint64],
    ones: npt.NDArray[np.int32],
    columns: WeightColumns,
    factor: int,
    shift: npt.NDArray[np.int32],
    add: bool,
    out: npt.NDArray[np.int32],
    *,
    work: int = SERIAL_BELOW,
) -> None:
    """out (M, N) int32 = factor·popcount(s_m ∧ w_n) + shift_m, plus what was there if ``add``.

    Spike words s (M, K) and w's columns; ``ones`` (M,) is the popcount of s's rows. ``work`` decides about threads.
    """
    arguments = (s, ones, columns.words, columns.totals, PLACES, np.int32(factor), shift, add, out)
    if work < SERIAL_BELOW:
        _few_events(*arguments)
    else:
        _events(*arguments, work=work)
