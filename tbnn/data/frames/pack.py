"""Events become packed frames: which events a frame holds, and the kernels' tables."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tbnn.bits import words_for
from tbnn.data.events import Events, checked
from tbnn.data.frames.spec import FrameSpec

Int64s = npt.NDArray[np.int64]
Unsigned = npt.NDArray[np.unsignedinteger]

_CHEAP_OVERLAP = 4  # up to so many frames an event, marking it in each costs less than counting


class Columns(NamedTuple):
    """Checked events as the kernels take them: (E,) of one width, uint8 or uint16 or uint32; ``t`` uint32 or int64."""

    x: Unsigned
    y: Unsigned
    p: Unsigned
    t: npt.NDArray[np.integer]


class Tables(NamedTuple):
    """The bit of an event (x, y, p) in its frame, without planes: ``columns[x] + rows[y] + bases[p]``, uint32."""

    columns: npt.NDArray[np.uint32]  # (W,)
    rows: npt.NDArray[np.uint32]  # (H,)
    bases: npt.NDArray[np.uint32]  # (C,)
    pixels: int  # bits of a frame without planes
    words: int  # words of a frame


def events_to_words(
    events: Events, sensor: tuple[int, int, int], spec: FrameSpec, where: str = "events_to_words"
) -> npt.NDArray[np.int32]:
    """Pack the events of a recording into bit frames.

    Bit ``c * h * w + y * w + x`` of a row is pixel (c, y, x) of frame k, with (channels, h, w) = ``spec.shape(sensor)``;
    :class:`FrameSpec` says which events a frame holds and what they set, :func:`words_reference` says it as a loop.

    Columns of 1 byte (x, y, p) and of 4 or 8 bytes (t) are read where they lie, and so are x and y of 2 bytes; others
    are copied to those types. Beyond that the memory is the result, 16 bytes a frame and, with counts or overlap, one
    count a pixel.

    Args:
        events: a recording that passes :func:`tbnn.data.check_events`, which is called here.
        sensor: (C, H, W).
        spec: how events become frames.
        where: how error messages begin.

    Returns:
        int32 (T, W), T = ``spec.frames``: 32 bits a word as in :mod:`tbnn.bits`, padded with zeros.

    Raises:
        ValueError: as :func:`tbnn.data.check_events`, a ``spec.size`` larger than the sensor, and with
            ``late="error"`` events past the last frame (the message says how many steps the recording needs).

    >>> e = Events(x=np.array([1, 1]), y=np.array([0, 0]), t=np.array([3, 25]), p=np.array([0, 1]))
    >>> events_to_words(e, (2, 1, 2), FrameSpec(bin_width=10, steps=3)).tolist()
    [[2], [0], [8]]
    """
    tables = tables_of(tuple(sensor), spec)
    columns = columns_of(checked(events, sensor, where), sensor)
    if spec.late == "error":
        _check_late(columns.t, spec, where)
    lo, hi = windows_of(columns.t, spec)
    words = np.zeros((spec.frames, tables.words), np.uint32)
    fill(columns, lo, hi, tables, spec, words)
    return words.view(np.int32)


def columns_of(columns: tuple[Unsigned, Unsigned, Unsigned, Unsigned], sensor: tuple[int, int, int]) -> Columns:
    """The x, y, t and p of checked events, in few types, so that few versions of the kernels are compiled."""
    x, y, t, p = columns
    place, polarity = types_of(sensor)
    if x.itemsize == y.itemsize == p.itemsize == 1:
        place = polarity = np.uint8
    elif place == np.uint8 and x.itemsize == y.itemsize == 2:
        place = np.uint16
    times = t.view(np.int64) if t.itemsize == 8 else t.astype(np.uint32, copy=False)
    return Columns(x.astype(place, copy=False), y.astype(place, copy=False), p.astype(polarity, copy=False), times)


def types_of(sensor: tuple[int, int, int]) -> tuple[type[np.unsignedinteger], type[np.unsignedinteger]]:
    """The smallest of the kernels' types that hold x and y, and p."""
    if max(sensor) <= 1 << 8:
        return np.uint8, np.uint8
    return (np.uint16, np.uint8) if max(sensor) <= 1 << 16 and sensor[0] <= 1 << 8 else (np.uint32, np.uint32)


@lru_cache(maxsize=32)
def tables_of(sensor: tuple[int, int, int], spec: FrameSpec) -> Tables:
    """The tables of a sensor; raises ``ValueError`` as :meth:`FrameSpec.shape`."""
    shape = spec.shape(sensor)
    channels, height, width = sensor
    pixels = shape.bits // spec.planes
    if shape.bits >= 1 << 31:
        raise ValueError(f"size: expected a frame of fewer than 2^31 bits, got {shape}")
    columns = np.arange(width, dtype=np.int64) * shape.width // width
    rows = np.arange(height, dtype=np.int64) * shape.height // height * shape.width
    bases = np.arange(channels, dtype=np.int64) * (0 if spec.polarity == "merge" else shape.height * shape.width)
    tables = (table.astype(np.uint32) for table in (columns, rows, bases))
    return Tables._make((*tables, pixels, words_for(shape.bits)))


def windows_of(t: npt.NDArray[np.integer], spec: FrameSpec) -> tuple[Int64s, Int64s]:
    """Which events the frames of a recording hold: frame k those number ``lo[k] <= i < hi[k]``, int64 (T,) each.

    A time surface is a window too: its bit is set when the pixel has an event in the last ``horizon`` microseconds
    before the frame's end.
    """
    from tbnn.data.frames import cpu

    if spec.count is not None:
        first = np.arange(spec.frames, dtype=np.int64) * spec.stride
        lo, hi = np.minimum(first, len(t)), np.minimum(first + spec.count, len(t))
        if spec.tau is not None:
            cpu.surface_windows(t, spec.horizon, lo, hi)
        return lo, hi
    first, last = int(t[0]), int(t[-1])
    if spec.bins is not None:
        begin, width = first, max(1, (last - first) // spec.bins)
    else:
        begin, width = first if spec.start == "first" else 0, spec.bin_width or 1
    lo, hi = np.empty(spec.frames, np.int64), np.empty(spec.frames, np.int64)
    length = width if spec.tau is None else spec.horizon
    cpu.time_windows(t, begin + width - length, length, spec.stride or width, 0, lo, hi)
    return lo, hi


def way_of(spec: FrameSpec) -> str:
    """The kernel for a spec: "mark" bits, "tally" counts of frames that share no event, "slide" over ones that do."""
    length = spec.bin_width or spec.count or 0
    if spec.tau is not None:
        if spec.bin_width is None:
            return "slide"
        length = spec.horizon
    if spec.at_least == spec.planes == 1 and length <= _CHEAP_OVERLAP * spec.stride:
        return "mark"
    return "tally" if spec.tau is None and length <= spec.stride else "slide"


@dataclass(eq=False)
class Counts:
    """What frames that overlap leave behind for the next ones: see :func:`tbnn.data.frames.cpu.slide`."""

    counts: npt.NDArray[np.integer]  # (pixels,) of the events left <= i < entered
    now: npt.NDArray[np.uint32]  # (words,) their frame
    left: int = 0
    entered: int = 0

    @classmethod
    def none(cls, tables: Tables, spec: FrameSpec) -> "Counts":
        """Before the first event; the smaller the counts, the more of them the caches hold."""
        small = way_of(spec) == "tally" and spec.at_least + (1 << spec.planes) - 2 < 1 << 8
        return cls(np.zeros(tables.pixels, np.uint8 if small else np.int32), np.zeros(tables.words, np.uint32))


def fill(
    columns: Columns,
    lo: Int64s,
    hi: Int64s,
    tables: Tables,
    spec: FrameSpec,
    words: npt.NDArray[np.uint32],
    state: Counts | None = None,
) -> None:
    """Set the bits of ``words``, zeros (T, W), from the events ``lo[k] <= i < hi[k]`` of each frame.

    A stream gives the ``state`` after its last frame, which is brought up to date.
    """
    from tbnn.data.frames import cpu

    x, y, p, _ = columns
    flat, where = words.reshape(-1), (tables.columns, tables.rows, tables.bases)
    how = way_of(spec)
    if how == "mark":
        cpu.mark(x, y, p, lo, hi, *where, flat)
        return
    state = state or Counts.none(tables, spec)
    if how == "tally":
        cpu.tally(x, y, p, lo, hi, *where, spec.at_least, spec.planes, state.counts, flat)
        return
    limits = (spec.at_least, spec.planes)
    cpu.slide(x, y, p, lo, hi, *where, *limits, state.counts, state.now, state.left, state.entered, flat)
    state.left, state.entered = int(lo[-1]), int(hi[-1])


def _check_late(t: npt.NDArray[np.integer], spec: FrameSpec, where: str) -> None:
    if spec.bins is not None:
        return
    length = spec.bin_width or spec.count or 0
    end = (spec.frames - 1) * spec.stride + length
    origin = int(t[0]) if spec.start == "first" and spec.count is None else 0
    last = len(t) - 1 if spec.count is not None else int(t[-1]) - origin
    if last < end:
        return
    steps = f"{spec.frames} steps of {length}" + (f", one every {spec.stride}" if spec.hop else "")
    if spec.count is not None:
        got = f"expected at most {end} events ({steps}), got {len(t)}"
    else:
        since = f" from the first event at {origin}" if spec.start == "first" else ""
        got = f"expected events before {origin + end} ({steps}{since}), got one at {t[-1]}"
    raise ValueError(f"{where}: {got}: this recording needs {(last - length) // spec.stride + 2} steps")
