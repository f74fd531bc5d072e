"""Variation of packed bits, compiled: one walk over the set bits of a sample takes each to its new place.

The definition is :mod:`tbnn.data.augment.reference`; the random numbers are those of :mod:`tbnn.data.augment.streams`.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import intrinsic

from tbnn.data.augment import streams

Words = npt.NDArray[np.int32]
Whole = int | np.int64
Key = np.uint64
Box = tuple[Whole, Whole, Whole, Whole, Whole, Whole]  # half-open ranges of t, y, x

# numba takes a sum of signed and unsigned 64-bit integers for a float, so that all numbers in a hash are unsigned.
_GOLDEN = np.uint64(streams.GOLDEN)
_FACTOR_1, _FACTOR_2 = np.uint64(streams.FACTOR_1), np.uint64(streams.FACTOR_2)
_ONE, _S11, _S27, _S30, _S31, _S32 = (np.uint64(n) for n in (1, 11, 27, 30, 31, 32))


class Settings(NamedTuple):
    """The settings of a sample's variation with the sizes of its frames."""

    shift: int
    flip: bool
    crop: int
    time_shift: int
    time_jitter: int
    drop: float
    drop_time: float
    drop_area: float
    polarity_flip: bool
    cut_mix: float
    channels: int
    height: int
    width: int


class Plan(NamedTuple):
    """What was drawn for one sample: half-open ranges and moves; the per-bit draws come on top."""

    gap_start: Whole  # frames erased
    gap_stop: Whole
    hole: tuple[Whole, Whole, Whole, Whole]  # y, y, x, x of the rectangle erased
    window: tuple[Whole, Whole, Whole, Whole]  # y, y, x, x of the window kept
    dt: Whole
    dy: Whole
    dx: Whole
    flip: bool
    swap: bool


@intrinsic
def _lowest(_context: Any, _word: Any) -> Any:
    """The number of the lowest set bit of a nonzero uint32, as LLVM's cttz."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, 1))

    return types.uint32(types.uint32), codegen


@njit(cache=True)
def _mix64(z: Key) -> Key:
    z = (z ^ (z >> _S30)) * _FACTOR_1
    z = (z ^ (z >> _S27)) * _FACTOR_2
    return z ^ (z >> _S31)


@njit(cache=True)
def _fold(key: Key, value: Whole) -> Key:
    return _mix64((key ^ np.uint64(value)) + _GOLDEN)


@njit(cache=True)
def _draw(key: Key, n: Whole) -> Key:
    return _mix64(key + (np.uint64(n) + _ONE) * _GOLDEN)


@njit(cache=True)
def _below(key: Key, n: Whole, size: Whole) -> Whole:
    return np.int64(((_draw(key, n) >> _S32) * np.uint64(size)) >> _S32)


@njit(cache=True)
def _unit(key: Key, n: Whole) -> float:
    return np.float64(_draw(key, n) >> _S11) * 2.0**-53


@njit(cache=True)
def _move(key: Key, n: Whole, most: int, size: int) -> Whole:
    """A move in ±most along an axis of ``size``; none along an axis of 1."""
    return 0 if size == 1 else _below(key, n, 2 * most + 1) - most


@njit(cache=True)
def _window(key: Key, n: int, most: int, size: int) -> tuple[Whole, Whole]:
    """A range smaller than ``size`` by up to ``most``, anywhere inside."""
    margin = 0 if size == 1 else _below(key, n, most + 1)
    start = _below(key, n + 1, margin + 1)
    return start, start + size - margin


@njit(cache=True)
def _hole(key: Key, share: float, height: int, width: int) -> tuple[Whole, Whole, Whole, Whole]:
    """A rectangle of up to ``share`` of the area: pixels first, then their height among those that fit, then the place."""
    pixels = _below(key, 0, np.int64(share * (height * width)) + 1)
    if pixels == 0:
        return 0, 0, 0, 0
    least = (pixels + width - 1) // width
    rows = least + _below(key, 1, min(height, pixels) - least + 1)
    columns = pixels // rows
    y, x = _below(key, 2, height - rows + 1), _below(key, 3, width - columns + 1)
    return y, y + rows, x, x + columns


@njit(cache=True)
def _plan(key: Key, s: Settings, steps: int) -> Plan:
    gap = _fold(key, streams.DROP_TIME)
    gap_length = _below(gap, 0, np.int64(s.drop_time * steps) + 1)
    gap_start = _below(gap, 1, steps - gap_length + 1)
    hole = _hole(_fold(key, streams.DROP_AREA), s.drop_area, s.height, s.width)
    crop = _fold(key, streams.CROP)
    y0, y1 = _window(crop, 0, s.crop, s.height)
    x0, x1 = _window(crop, 2, s.crop, s.width)
    shift = _fold(key, streams.SHIFT)
    return Plan(
        gap_start,
        gap_start + gap_length,
        hole,
        (y0, y1, x0, x1),
        _move(_fold(key, streams.TIME_SHIFT), 0, s.time_shift, steps),
        _move(shift, 0, s.shift, s.height),
        _move(shift, 1, s.shift, s.width),
        s.flip and _below(_fold(key, streams.FLIP), 0, 2) == 1,
        s.polarity_flip and _below(_fold(key, streams.POLARITY_FLIP), 0, 2) == 1,
    )


@njit(cache=True)
def _side(key: Key, n: int, share: float, size: int) -> tuple[Whole, Whole]:
    """A range of ``share`` of ``size`` on average, but at least 1, anywhere inside."""
    length = min(size, max(1, np.int64(share * size + _unit(key, n))))
    start = _below(key, n + 1, size - length + 1)
    return start, start + length


@njit(cache=True)
def _box(key: Key, steps: int, height: int, width: int) -> Box:
    """A box in space and time: the largest of three uniform numbers is the cube root of a uniform one, its volume."""
    share = max(_unit(key, 0), _unit(key, 1), _unit(key, 2))
    t0, t1 = _side(key, 3, share, steps)
    y0, y1 = _side(key, 5, share, height)
    x0, x1 = _side(key, 7, share, width)
    return t0, t1, y0, y1, x0, x1


@njit(cache=True)
def _walk(
    words: Words,  # (T, W)
    key: Key,
    s: Settings,
    box: Box,
    inside: bool,  # keep what lands in the box; else what lands outside
    out: Words,  # (T, W), set bits are added
) -> Whole:
    """Take the set bits to their new places and return the number of bits they set."""
    steps = words.shape[0]
    plan = _plan(key, s, steps)
    hole, window = plan.hole, plan.window
    drop, jitter = _fold(key, streams.DROP), _fold(key, streams.TIME_JITTER)
    area = s.height * s.width
    bits = s.channels * area
    count = 0
    for k in range(steps):
        if plan.gap_start <= k < plan.gap_stop:
            continue
        for w in range(words.shape[1]):
            word = np.uint32(words[k, w])
            while word:
                i = np.int64(w * 32 + _lowest(word))  # pyright: ignore[reportCallIssue]
                word = np.uint32(word & (word - np.uint32(1)))
                if i >= bits or (s.drop > 0 and _unit(drop, k * bits + i) < s.drop):
                    continue
                channel = i // area
                y = (i - channel * area) // s.width
                x = i - channel * area - y * s.width
                if hole[0] <= y < hole[1] and hole[2] <= x < hole[3]:
                    continue
                if not (window[0] <= y < window[1] and window[2] <= x < window[3]):
                    continue
                to = k + plan.dt
                if s.time_jitter > 0:
                    to += _move(jitter, k * bits + i, s.time_jitter, steps)
                y += plan.dy
                x = (s.width - 1 - x if plan.flip else x) + plan.dx
                if not (0 <= to < steps and 0 <= y < s.height and 0 <= x < s.width):
                    continue
                in_box = box[0] <= to < box[1] and box[2] <= y < box[3] and box[4] <= x < box[5]
                if in_box != inside:
                    continue
                place = (channel ^ 1 if plan.swap else channel) * area + y * s.width + x
                bit = np.uint32(1) << np.uint32(place & 31)
                old = np.uint32(out[to, place >> 5])
                count += (old & bit) == 0
                out[to, place >> 5] = np.int32(old | bit)
    return count


@njit(cache=True)
def _key(seed: int, epoch: int, index: np.int64) -> Key:
    return _fold(_fold(_fold(np.uint64(0), seed), epoch), index)


@njit(cache=True)
def _is_mixed(key: Key, cut_mix: float) -> bool:
    return cut_mix > 0 and _unit(_fold(key, streams.CUT_MIX), 0) < cut_mix


@njit(cache=True, nogil=True)
def augment_batch(
    words: Words,  # (B, T, W)
    partners: Words,  # (B, T, W), not looked at without cut_mix
    index: npt.NDArray[np.int64],  # (B,)
    seed: int,
    epoch: int,
    s: Settings,
    out: Words,  # (B, T, W), zeros
    mix: npt.NDArray[np.float32],  # (B,), ones
) -> None:
    """Fill ``out`` and ``mix``."""
    for b in range(words.shape[0]):
        key = _key(seed, epoch, index[b])
        if not _is_mixed(key, s.cut_mix):
            _walk(words[b], key, s, (0, 0, 0, 0, 0, 0), False, out[b])
            continue
        box = _box(_fold(key, streams.BOX), words.shape[1], s.height, s.width)
        own = _walk(words[b], key, s, box, False, out[b])
        other = _walk(partners[b], _fold(key, streams.PARTNER_SAMPLE), s, box, True, out[b])
        if own + other > 0:
            mix[b] = own / (own + other)


@njit(cache=True)
def choose_mixed(index: npt.NDArray[np.int64], seed: int, epoch: int, cut_mix: float) -> npt.NDArray[np.bool_]:
    """Which of the samples ``index`` (B,) are mixed."""
    mixed = np.empty(len(index), np.bool_)
    for b in range(len(index)):
        mixed[b] = _is_mixed(_key(seed, epoch, index[b]), cut_mix)
    return mixed


@njit(cache=True)
def choose_partners(index: npt.NDArray[np.int64], seed: int, epoch: int, samples: int) -> npt.NDArray[np.int64]:
    """The partners of the samples ``index`` (B,), among the others."""
    partner = np.empty(len(index), np.int64)
    for b in range(len(index)):
        ahead = 1 + _below(_fold(_key(seed, epoch, index[b]), streams.PARTNER), 0, max(1, samples - 1))
        partner[b] = (index[b] + ahead) % samples
    return partner
