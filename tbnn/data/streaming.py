"""Endless streams of events as packed frames; :mod:`tbnn.data.live` has sources that do not end.

tail_events or udp_events or any generator  --Events-->  stream_frames  --words (k, W)-->  a network, step by step
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, Sensor, checked
from tbnn.data.frames.pack import Columns, Counts, columns_of, fill, tables_of, types_of, way_of
from tbnn.data.frames.spec import FrameSpec
from tbnn.data.live import UdpEvents, events_to_records, records_to_events, send_udp, tail_events, udp_events

__all__ = [
    "FrameStream",
    "UdpEvents",
    "events_to_records",
    "records_to_events",
    "send_udp",
    "stream_frames",
    "tail_events",
    "udp_events",
]

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.int32]


class FrameStream:
    """Frames of events that come in pieces: ``push`` them in time order, get the frames that are complete.

    The rows of all pushes and of ``flush``, one after another, are those of :func:`tbnn.data.frames.events_to_words` on
    all the events, however they were cut into pieces. ``spec`` may be the one of a recipe: its ``steps`` and ``late``
    say where a recording ends and are not used. Times go on over pushes; a camera's clock seldom starts near 0, so
    ``start="first"`` is what a live stream needs.

    Memory: the events of one frame, at most ``max_events`` of 13 bytes or less and twice that while it grows, and those
    of a push.

    Args:
        sensor: (C, H, W).
        spec: how events become frames, with ``bin_width`` or ``count``.
        max_events: the most events that one frame may hold.
        overflow: with more, "error", or "drop" the frame's oldest.
        max_gap: the most frames between two events, or before the first one, that may hold no event.
        gap: with more, "error", or "skip": ``max_gap`` of them are given, the others left out and counted in
            ``skipped``.
        where: how error messages begin.

    Attributes:
        frame: number of the next frame; with time bins it begins at ``frame * spec.stride``, counted from ``spec.start``.
        skipped: number of frames left out.

    Raises:
        ValueError: a spec with ``bins``, and options out of range.

    >>> e = Events(x=np.array([1, 1]), y=np.array([0, 0]), t=np.array([3, 25]), p=np.array([0, 1]))
    >>> stream = FrameStream((2, 1, 2), FrameSpec(bin_width=10, steps=1))
    >>> stream.push(e).tolist(), stream.flush().tolist()
    ([[2], [0]], [[8]])
    """

    def __init__(
        self,
        sensor: tuple[int, int, int],
        spec: FrameSpec,
        *,
        max_events: int = 10_000_000,
        overflow: str = "error",
        max_gap: int = 1000,
        gap: str = "error",
        where: str = "FrameStream",
    ) -> None:
        if spec.bins is not None:
            raise ValueError(f"{where}: expected a spec with bin_width or count, got bins: a stream has no length")
        if max_events < max(spec.count or 0, 1) or max_gap < 0:
            least = max(spec.count or 0, 1)
            raise ValueError(
                f"{where}: expected max_events of at least {least} and max_gap of 0 or more, got {max_events}, {max_gap}"
            )
        if overflow not in ("error", "drop") or gap not in ("error", "skip"):
            raise ValueError(f"{where}: expected overflow error or drop and gap error or skip, got {overflow}, {gap}")
        self.sensor, self.spec, self.where = Sensor(*sensor), spec, where
        self.max_events, self.max_gap = max_events, max_gap
        self._drop, self._skip = overflow == "drop", gap == "skip"
        self._tables = tables_of(self.sensor, spec)
        place, polarity = types_of(self.sensor)
        self._types = (place, place, polarity, np.int64)
        self._restart()

    def _restart(self) -> None:
        self.frame = self.skipped = 0
        self._room = Columns._make(np.empty(0, dtype) for dtype in self._types)
        self._begin = self._end = 0  # of the events held in that room
        self._passed = 0  # events before those held
        self._origin = 0
        self._last: int | None = None
        self._state = Counts.none(self._tables, self.spec) if way_of(self.spec) != "mark" else None

    def push(self, events: Events) -> Words:
        """Take the next events, none or more, and return the frames that are complete, int32 (k, W), k >= 0.

        A frame is complete once an event past its end has come, or its ``count`` of events.

        Raises:
            ValueError: as :func:`tbnn.data.check_events`, for times before the last push's, and where ``overflow`` or
                ``gap`` says so. The stream is then as before this push.
        """
        if len(events) == 0:
            return np.zeros((0, self._tables.words), np.int32)
        new = columns_of(checked(events, self.sensor, self.where), self.sensor)
        t0, t1 = int(new.t[0]), int(new.t[-1])
        if self._last is None:
            self._origin = t0 if self.spec.start == "first" else 0
        elif t0 < self._last:
            raise ValueError(f"{self.where}: event 0: expected times in order over pushes, got {t0} after {self._last}")
        skips = self._skips(new.t)
        held, total = self._append(new), self._passed + self._end - self._begin + len(new.t)
        if self.spec.count is not None:
            done = max((total - self.spec.count) // self.spec.stride + 1, 0)
        else:
            done = max((t1 - self._origin - (self.spec.bin_width or 0)) // self.spec.stride + 1, 0)
        lo, hi = self._windows(held, _without(self.frame, done, skips))
        keep = self._needed(held, done)
        if self._drop:
            lo, keep = np.maximum(lo, hi - self.max_events), max(keep, len(held.t) - self.max_events)
        self._check_size(lo, hi, len(held.t) - keep if self.spec.count is None else 0)
        words = self._fill(held, lo, hi, keep)
        self._last, self._passed = t1, self._passed + keep
        self._begin, self._end = self._begin + keep, self._end + len(new.t)
        self.frame, self.skipped = done, self.skipped + sum(end - begin for begin, end in skips)
        return words

    def flush(self) -> Words:
        """The frames that have begun and wait for more events, int32 (k, W); the next push begins a new stream."""
        held = Columns._make(column[self._begin : self._end] for column in self._room)
        if self._last is None:
            return np.zeros((0, self._tables.words), np.int32)
        reached = self._passed + len(held.t) - 1 if self.spec.count is not None else self._last - self._origin
        lo, hi = self._windows(held, [(self.frame, reached // self.spec.stride + 1)])
        if self._drop:
            lo = np.maximum(lo, hi - self.max_events)
        words = self._fill(held, lo, hi, len(held.t))
        self._restart()
        return words

    def _append(self, new: Columns) -> Columns:
        """The events held and the new ones after them, in room that doubles; nothing else changes."""
        held = self._end - self._begin
        if self._end + len(new.t) > len(self._room.t):
            size = 2 * (held + len(new.t))
            room = Columns._make(np.empty(size, dtype) for dtype in self._types)
            for column, old in zip(room, self._room, strict=True):
                column[:held] = old[self._begin : self._end]
            self._room, self._begin, self._end = room, 0, held
        end = self._end + len(new.t)
        for column, fresh in zip(self._room, new, strict=True):
            column[self._end : end] = fresh
        return Columns._make(column[self._begin : end] for column in self._room)

    def _window(self) -> tuple[int, int]:
        """Where frame 0's window begins and its length, microseconds; a time surface looks back from its frame's end."""
        width = self.spec.bin_width or 0
        length = width if self.spec.tau is None else self.spec.horizon
        return self._origin + width - length, length

    def _skips(self, t: npt.NDArray[np.integer]) -> list[tuple[int, int]]:
        """Frames to leave out, begin and end of each run of them; raises where the stream does not skip."""
        if self.spec.count is not None:
            return []
        (begin, length), hop = self._window(), self.spec.stride
        wide = self.max_gap * hop + length
        far = np.flatnonzero(t[1:] - t[:-1] > wide) if int(t[-1]) - int(t[0]) > wide else ()
        pairs = [(self._last, int(t[0])), *((int(t[i]), int(t[i + 1])) for i in far)]
        skips = []
        for before, after in pairs:
            first = 0 if before is None else max((before - begin) // hop + 1, 0)
            end = (after - begin - length) // hop + 1
            if end - first > self.max_gap:
                if not self._skip:
                    raise ValueError(
                        f"{self.where}: expected at most {self.max_gap} frames without events, got {end - first}"
                        f" between {'the start' if before is None else before} and {after}"
                    )
                skips.append((first + self.max_gap, end))
        return skips

    def _windows(self, held: Columns, runs: list[tuple[int, int]]) -> tuple[Int64s, Int64s]:
        """Which of the events held the frames of some runs hold: lo, hi (k,)."""
        from tbnn.data.frames import cpu

        sizes = [max(end - begin, 0) for begin, end in runs]
        lo, hi = np.empty(sum(sizes), np.int64), np.empty(sum(sizes), np.int64)
        if self.spec.count is not None:
            first = np.arange(runs[0][0], runs[0][0] + len(lo)) * self.spec.stride - self._passed
            hi[:] = np.minimum(first + self.spec.count, len(held.t))
            # A time surface may have let go of events of its frame that lie too far back.
            lo[:] = np.clip(first, 0, len(held.t))
            if self.spec.tau is not None:
                cpu.surface_windows(held.t, self.spec.horizon, lo, hi)
            return lo, hi
        (begin, length), hop, at = self._window(), self.spec.stride, 0
        for (first, _), size in zip(runs, sizes, strict=True):
            part = slice(at, at + size)
            cpu.time_windows(held.t, begin + first * hop, length, hop, 0, lo[part], hi[part])
            at += size
        return lo, hi

    def _needed(self, held: Columns, frame: int) -> int:
        """How many of the events held no frame from number ``frame`` on can hold."""
        from tbnn.data.frames import cpu

        if self.spec.count is not None and self.spec.tau is None:
            return min(frame * self.spec.stride - self._passed, len(held.t))
        if self.spec.count is not None:
            return cpu.first_from(held.t, 0, int(held.t[-1]) - self.spec.horizon)
        return cpu.first_from(held.t, 0, self._window()[0] + frame * self.spec.stride)

    def _check_size(self, lo: Int64s, hi: Int64s, begun: int) -> None:
        most = max(int((hi - lo).max(initial=0)), begun)
        if most > self.max_events:
            raise ValueError(f"{self.where}: expected at most {self.max_events} events in a frame, got {most}")

    def _fill(self, held: Columns, lo: Int64s, hi: Int64s, keep: int) -> Words:
        """Pack frames; then let go of the first ``keep`` events held."""
        words, state = np.zeros((len(lo), self._tables.words), np.uint32), self._state
        if len(lo):
            fill(held, lo, hi, self._tables, self.spec, words, state)
        if state is not None and way_of(self.spec) == "slide":
            # One more frame, thrown away, that holds no event before `keep` and no new one.
            lo, hi = np.array([keep]), np.array([max(state.entered, keep)])
            fill(held, lo, hi, self._tables, self.spec, np.empty((1, self._tables.words), np.uint32), state)
            state.left, state.entered = 0, state.entered - keep
        return words.view(np.int32)


def _without(begin: int, end: int, skips: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The runs of begin ... end - 1 that lie between the ``skips``, which are in order."""
    edges = [begin, *(edge for skip in skips for edge in skip), end]
    return list(zip(edges[::2], edges[1::2], strict=True))


def stream_frames(
    chunks: Iterable[Events],
    sensor: tuple[int, int, int],
    spec: FrameSpec,
    *,
    max_events: int = 10_000_000,
    overflow: str = "error",
    max_gap: int = 1000,
    gap: str = "error",
) -> Iterator[Words]:
    """The frames of a stream of events as they are complete, int32 (k, W), k >= 1; at its end those that have begun.

    Arguments and errors are those of :class:`FrameStream`.

    >>> pieces = (Events(*(np.array([v]) for v in e)) for e in [(1, 0, 3, 0), (1, 0, 25, 1)])
    >>> [words.tolist() for words in stream_frames(pieces, (2, 1, 2), FrameSpec(bin_width=10, steps=1))]
    [[[2], [0]], [[8]]]
    """
    stream = FrameStream(
        sensor, spec, max_events=max_events, overflow=overflow, max_gap=max_gap, gap=gap, where="stream_frames"
    )
    for events in chunks:
        words = stream.push(events)
        if len(words):
            yield words
    words = stream.flush()
    if len(words):
        yield words
