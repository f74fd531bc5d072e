"""The magnitude above which values are kept, exactly so many of them, in linear time.

The threshold is found by halving an interval and counting the values that reach its middle, which the processor does
many at a time. The interval is one of integers, the bits of |x|, which order as |x| does: 31 halvings find any float32.
Of a longer run a histogram of the leading bits first leaves only the values near the threshold.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from tbnn.ops.kernels import device_function, kernel

Array = npt.NDArray[Any]

LONG = 1 << 17  # longer runs are searched by all threads together
NARROW_FROM = 1 << 12  # runs from here on are narrowed by a histogram first
CHUNKS = 16  # of a long run; fixed, so that the number of threads changes nothing


def tile_of(n: int) -> int:
    """How many neighbouring columns are gathered together: lines of memory are used whole, memory stays small."""
    return 64 if n <= 1 << 14 else 16


class Bits:
    """How |x| of a dtype reads as an integer: the integer's dtype, the sign's mask, the histogram's shift and size."""

    def __init__(self, dtype: Any) -> None:
        wide = np.dtype(dtype) == np.float64
        self.dtype = np.int64 if wide else np.int32
        self.mask = (1 << 63) - 1 if wide else (1 << 31) - 1
        self.infinity = 0x7FF << 52 if wide else 0xFF << 23
        self.shift = 50 if wide else 19
        self.bins = (self.infinity >> self.shift) + (1 << 12)  # room for NaN, whose bits are above infinity's


@device_function
def gather(columns, first, rows):  # pyright: ignore
    """rows[i, k] = columns[k, first + i]."""
    width, n = rows.shape[0], columns.shape[0]
    for k in range(n):
        for i in range(width):
            rows[i, k] = columns[k, first + i]


@device_function
def scatter(rows, columns, first):  # pyright: ignore
    """columns[k, first + i] = rows[i, k]."""
    width, n = rows.shape[0], columns.shape[0]
    for k in range(n):
        for i in range(width):
            columns[k, first + i] = rows[i, k]


@device_function
def count_from(x, least):  # pyright: ignore
    """How many values have |x| >= least."""
    count = 0
    for i in range(x.size):
        count += 1 if np.abs(x[i]) >= least else 0
    return count


@device_function
def halve(x, keep, low, high, cell, cell_bits):  # pyright: ignore
    """(t, reached): the largest t with bits in low…high that >= keep values reach, or one that exactly keep reach."""
    while low < high:
        middle = low + (high - low + 1) // 2
        cell_bits[0] = middle
        reached = count_from(x, cell[0])
        if reached == keep:
            return cell[0], reached
        if reached > keep:
            low = middle
        else:
            high = middle - 1
    cell_bits[0] = low
    return cell[0], count_from(x, cell[0])


@device_function
def histogram(bits, mask, shift, counts):  # pyright: ignore
    """Count the leading bits of |x|."""
    counts[:] = 0
    for i in range(bits.size):
        counts[(bits[i] & mask) >> shift] += 1


@device_function
def bin_of(counts, keep):  # pyright: ignore
    """(bin of the keep-th largest, how many lie above that bin)."""
    above = 0
    for b in range(counts.size - 1, 0, -1):
        if above + counts[b] >= keep:
            return b, above
        above += counts[b]
    return 0, above


@device_function
def pick(x, bits, mask, shift, chosen, out):  # pyright: ignore
    """Copy the values of one bin to ``out``; how many they are."""
    count = 0
    for i in range(x.size):
        if (bits[i] & mask) >> shift == chosen:
            out[count] = x[i]
            count += 1
    return count


@device_function
def last_tie(x, tau, surplus):  # pyright: ignore
    """The last index at which |x| = tau is still kept, when the ``surplus`` last such values are not."""
    if surplus > 0:
        for i in range(x.size - 1, -1, -1):
            if np.abs(x[i]) == tau:
                surplus -= 1
                if surplus == 0:
                    return i - 1
    return x.size


@device_function
def threshold(x, bits, keep, mask, shift, infinity, counts, near, cell, cell_bits):  # pyright: ignore
    """(τ, last) so that |x| > τ, or |x| = τ at an index <= last, holds for the ``keep`` largest of x, first of equals."""
    if x.size < NARROW_FROM:
        tau, reached = halve(x, keep, 0, infinity, cell, cell_bits)
    else:
        histogram(bits, mask, shift, counts)
        chosen, above = bin_of(counts, keep)
        found = pick(x, bits, mask, shift, chosen, near)
        low = chosen << shift
        tau, reached = halve(near[:found], keep - above, low, low + (1 << shift) - 1, cell, cell_bits)
        reached += above
    return tau, last_tie(x, tau, reached - keep)


@kernel
def _of_rows(x, bits, n, run, keeps, mask, shift, infinity, bins, chunk, tau, last):  # pyright: ignore
    """The thresholds of every run of x (outer·n,); tau, last (outer, runs)."""
    runs = tau.shape[1]
    units = tau.shape[0] * runs
    for task in prange((units + chunk - 1) // chunk):
        counts, near = np.empty(bins, np.int64), np.empty(run, x.dtype)
        cell_bits = np.empty(1, bits.dtype)
        cell = cell_bits.view(x.dtype)
        for unit in range(task * chunk, min((task + 1) * chunk, units)):
            o, r = unit // runs, unit % runs
            lo, hi = o * n + r * run, o * n + min((r + 1) * run, n)
            tau[o, r], last[o, r] = threshold(
                x[lo:hi], bits[lo:hi], keeps[r], mask, shift, infinity, counts, near, cell, cell_bits
            )


@kernel
def _of_columns(x, bits, run, tile, keeps, mask, shift, infinity, bins, tau, last):  # pyright: ignore
    """The thresholds of every run along the middle axis of x (outer, n, inner); tau, last (outer, runs, inner)."""
    outer, n, inner = x.shape
    tiles = (inner + tile - 1) // tile
    for task in prange(outer * tiles):
        o, first = task // tiles, task % tiles * tile
        width = min(tile, inner - first)
        counts, near = np.empty(bins, np.int64), np.empty(run, x.dtype)
        cell_bits = np.empty(1, bits.dtype)
        cell = cell_bits.view(x.dtype)
        rows, row_bits = np.empty((width, run + 16), x.dtype), np.empty((width, run + 16), bits.dtype)
        for r in range(tau.shape[1]):
            lo, size = r * run, min(run, n - r * run)
            gather(x[o, lo : lo + size], first, rows)
            gather(bits[o, lo : lo + size], first, row_bits)
            for i in range(width):
                tau[o, r, first + i], last[o, r, first + i] = threshold(
                    rows[i, :size], row_bits[i, :size], keeps[r], mask, shift, infinity, counts, near, cell, cell_bits
                )


@kernel
def _histograms(bits, mask, shift, counts):  # pyright: ignore
    """One histogram for each chunk of a long run; counts (CHUNKS, bins)."""
    size = (bits.size + CHUNKS - 1) // CHUNKS
    for c in prange(CHUNKS):
        histogram(bits[c * size : min((c + 1) * size, bits.size)], mask, shift, counts[c])


@kernel
def _pick_long(x, bits, mask, shift, chosen, starts, near):  # pyright: ignore
    """The values of one bin of a long run, each chunk's from ``starts`` on."""
    size = (bits.size + CHUNKS - 1) // CHUNKS
    for c in prange(CHUNKS):
        lo, hi = c * size, min((c + 1) * size, bits.size)
        pick(x[lo:hi], bits[lo:hi], mask, shift, chosen, near[starts[c] : starts[c + 1]])


@kernel
def _finish_long(x, near, keep, above, low, high, cell, cell_bits, tau, last):  # pyright: ignore
    """The threshold of a long run from the values near it."""
    for _ in prange(1):
        t, reached = halve(near, keep - above, low, high, cell, cell_bits)
        tau[0], last[0] = t, last_tie(x, t, reached + above - keep)


def _of_long(x: Array, keep: int, how: Bits) -> tuple[float, int]:
    """The threshold of one long run x (n,)."""
    bits, counts = x.view(how.dtype), np.empty((CHUNKS, how.bins), np.int64)
    _histograms(bits, how.mask, how.shift, counts, work=x.size)
    from_top = np.cumsum(counts.sum(0)[::-1])
    at = int(np.searchsorted(from_top, keep))
    chosen, above = how.bins - 1 - at, int(from_top[at - 1]) if at else 0
    starts = np.concatenate([[0], np.cumsum(counts[:, chosen])])
    near = np.empty(int(starts[-1]), x.dtype)
    _pick_long(x, bits, how.mask, how.shift, chosen, starts, near, work=x.size)
    cell_bits, tau, last = np.empty(1, how.dtype), np.empty(1), np.empty(1, np.int64)
    low = chosen << how.shift
    high = low + (1 << how.shift) - 1
    _finish_long(x, near, keep, above, low, high, cell_bits.view(x.dtype), cell_bits, tau, last, work=0)
    return float(tau[0]), int(last[0])


def thresholds(x: Array, run: int, keeps: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """(τ, last) of every run along the middle axis of x (outer, n, inner), each (outer, runs, inner).

    Of run r the ``keeps[r]`` largest |x| have |x| > τ, or |x| = τ at an index within the run of at most ``last``.
    """
    outer, n, inner = x.shape
    how, runs = Bits(x.dtype), keeps.size
    tau, last = np.empty((outer, runs, inner)), np.empty((outer, runs, inner), np.int64)
    if inner > 1:
        bits = x.view(how.dtype)
        _of_columns(
            x, bits, run, tile_of(run), keeps, how.mask, how.shift, how.infinity, how.bins, tau, last, work=x.size
        )
    elif run >= LONG:
        flat = x.reshape(outer, n)
        for o in range(outer):
            for r in range(runs):
                tau[o, r, 0], last[o, r, 0] = _of_long(flat[o, r * run : (r + 1) * run], int(keeps[r]), how)
    else:
        flat, chunk = x.reshape(-1), max(1, NARROW_FROM // run)
        bits = flat.view(how.dtype)
        tau2, last2 = tau[:, :, 0], last[:, :, 0]
        _of_rows(
            flat, bits, n, run, keeps, how.mask, how.shift, how.infinity, how.bins, chunk, tau2, last2, work=x.size
        )
    return tau, last
