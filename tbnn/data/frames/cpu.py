"""Kernels that check events and pack them into frames, compiled, on one core: see :mod:`tbnn.data.frames.pack`.

Columns come as contiguous unsigned arrays. A frame is the events number lo[k] <= i < hi[k] of a recording; lo and hi
never fall. ``columns``, ``rows`` and ``bases`` say which bit of a frame an event (x, y, p) is: their sum.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Int64s = npt.NDArray[np.int64]
Uint32s = npt.NDArray[np.uint32]
Unsigned = npt.NDArray[np.unsignedinteger]

_ONE = np.uint32(1)
_FIVE, _LOW = np.uint64(5), np.uint64(31)  # 32 bits a word, as in tbnn.bits


@njit(cache=True, nogil=True)
def largest(column: Unsigned) -> int:
    """The largest of a column, which has at least one element; the compiler turns this loop into SIMD."""
    top = column[0]
    for i in range(len(column)):
        top = max(top, column[i])
    return top


@njit(cache=True, nogil=True)
def ascending(t: npt.NDArray[np.integer]) -> bool:
    """Whether no time is before the one before it; without an early exit, so that the loop becomes SIMD."""
    backward = 0
    for i in range(1, len(t)):
        backward |= t[i] < t[i - 1]
    return backward == 0


@njit(cache=True, nogil=True)
def first_from(t: npt.NDArray[np.integer], i: int, edge: int | np.int64) -> int:
    """The first index from ``i`` on with ``t[index] >= edge``, ``len(t)`` without one: a search with growing steps."""
    n = len(t)
    if i >= n or np.int64(t[i]) >= edge:
        return i
    step = 1
    while i + step < n and np.int64(t[i + step]) < edge:
        i += step
        step *= 2
    end = min(i + step, n)
    while end - i > 1:  # t[i] < edge, and t[end] >= edge or end == n
        middle = (i + end) >> 1
        if np.int64(t[middle]) < edge:
            i = middle
        else:
            end = middle
    return end


@njit(cache=True, nogil=True)
def time_windows(t: npt.NDArray[np.integer], begin: int, length: int, hop: int, i: int, lo: Int64s, hi: Int64s) -> None:
    """Fill ``lo`` and ``hi`` (T,) of frames that hold begin + k * hop <= t < begin + k * hop + length.

    No event before number ``i`` lies in a frame.
    """
    first = after = i
    for k in range(len(lo)):
        start = begin + k * hop
        first = first_from(t, after if hop >= length else first, start)
        after = first_from(t, max(first, after), start + length)
        lo[k], hi[k] = first, after


@njit(cache=True, nogil=True)
def surface_windows(t: npt.NDArray[np.integer], horizon: int, lo: Int64s, hi: Int64s) -> None:
    """Move ``lo`` (T,) to the first event that lies ``horizon`` or less before event ``hi[k] - 1``."""
    first = 0
    for k in range(len(lo)):
        if lo[k] < hi[k]:  # a frame past the recording's end stays empty
            first = first_from(t, first, np.int64(t[hi[k] - 1]) - horizon)
            lo[k] = first


@njit(cache=True, nogil=True)
def mark(
    x: Unsigned,
    y: Unsigned,
    p: Unsigned,
    lo: Int64s,
    hi: Int64s,
    columns: Uint32s,  # (W,)
    rows: Uint32s,  # (H,)
    bases: Uint32s,  # (C,)
    words: Uint32s,  # (T * words of a frame,), zeros
) -> None:
    """Set the bits of frames in which one event sets a bit; an event of several frames is looked at again in each."""
    width = len(words) // len(lo)
    for k in range(len(lo)):
        frame = np.uint64(k * width)
        for i in range(np.uint64(lo[k]), np.uint64(hi[k])):
            bit = np.uint64(columns[x[i]] + rows[y[i]] + bases[p[i]])
            words[frame + (bit >> _FIVE)] |= _ONE << np.uint32(bit & _LOW)


@njit(cache=True, nogil=True)
def tally(
    x: Unsigned,
    y: Unsigned,
    p: Unsigned,
    lo: Int64s,
    hi: Int64s,
    columns: Uint32s,
    rows: Uint32s,
    bases: Uint32s,
    at_least: int,
    planes: int,
    counts: npt.NDArray[np.integer],  # (pixels without planes,), zeros before and after; up to at_least + 2^planes - 2
    words: Uint32s,  # (T * words of a frame,), zeros
) -> None:
    """Pack the counts of frames that share no event; only pixels that fired are touched."""
    width, pixels = len(words) // len(lo), np.uint64(len(counts))
    below, most = np.int32(at_least - 1), np.int32(at_least + (1 << planes) - 2)
    for k in range(len(lo)):
        frame = np.uint64(k * width)
        for i in range(np.uint64(lo[k]), np.uint64(hi[k])):
            bit = np.uint64(columns[x[i]] + rows[y[i]] + bases[p[i]])
            counts[bit] += np.uint8(counts[bit] < most)
        for i in range(np.uint64(lo[k]), np.uint64(hi[k])):
            bit = np.uint64(columns[x[i]] + rows[y[i]] + bases[p[i]])
            level = np.uint32(max(np.int32(counts[bit]) - below, np.int32(0)))
            counts[bit] = 0  # a pixel's second event finds a level of 0 and sets nothing
            for plane in range(planes):
                words[frame + (bit >> _FIVE)] |= (level >> np.uint32(plane) & _ONE) << np.uint32(bit & _LOW)
                bit += pixels


@njit(cache=True, nogil=True, inline="always")
def flip(words: Uint32s, bit: np.uint64, level: np.int32, top: np.int32, planes: int, pixels: np.uint64) -> None:
    """Flip the planes in which a pixel of ``level`` and one of ``level - 1`` differ, both kept within 0 .. top.

    There is no branch that the processor could guess wrong, which costs more than a plane that stays as it is.
    """
    zero = np.int32(0)
    flips = np.uint32(min(max(level, zero), top)) ^ np.uint32(min(max(level - np.int32(1), zero), top))
    for plane in range(planes):
        words[bit >> _FIVE] ^= (flips >> np.uint32(plane) & _ONE) << np.uint32(bit & _LOW)
        bit += pixels


@njit(cache=True, nogil=True)
def slide(
    x: Unsigned,
    y: Unsigned,
    p: Unsigned,
    lo: Int64s,
    hi: Int64s,
    columns: Uint32s,
    rows: Uint32s,
    bases: Uint32s,
    at_least: int,
    planes: int,
    counts: npt.NDArray[np.integer],  # of the events left ... entered - 1
    now: Uint32s,  # (words of a frame,), the frame of these counts
    left: int,
    entered: int,
    words: Uint32s,  # (T * words of a frame,)
) -> None:
    """Pack the counts of frames that overlap: an event enters once and leaves once, however many frames it is in.

    A stream goes on from ``counts`` and ``now`` with ``left`` and ``entered`` the ``lo`` and ``hi`` of the last frame.
    """
    width, pixels = len(now), np.uint64(len(counts))
    below, top = np.int32(at_least - 1), np.int32((1 << planes) - 1)
    for k in range(len(lo)):
        for i in range(np.uint64(left), np.uint64(min(lo[k], entered))):
            bit = np.uint64(columns[x[i]] + rows[y[i]] + bases[p[i]])
            count = counts[bit]
            counts[bit] = count - np.int32(1)
            flip(now, bit, count - below, top, planes, pixels)
        for i in range(np.uint64(max(entered, lo[k])), np.uint64(hi[k])):
            bit = np.uint64(columns[x[i]] + rows[y[i]] + bases[p[i]])
            count = counts[bit] + np.int32(1)
            counts[bit] = count
            flip(now, bit, count - below, top, planes, pixels)
        left, entered = lo[k], hi[k]
        frame = np.uint64(k * width)
        for j in range(np.uint64(width)):  # numba takes longer over a slice of this length
            words[frame + j] = now[j]
