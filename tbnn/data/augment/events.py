"""Variation of recordings in address-event form, before they become frames.

Every function takes a recording that :func:`tbnn.data.events.check_events` accepts, does not change it, and returns
another such recording: in time order, inside the sensor, inside the duration 0 .. t of the last event. What leaves is
lost; an operation that would leave no event at all does nothing instead, as a recording has at least one.
"""

import math

import numpy as np
import numpy.typing as npt

from tbnn.data.augment.spec import Augment
from tbnn.data.events import Events, IntArray, check_events

Sizes = tuple[int, int, int]  # (C, H, W)


def drop_events(events: Events, share: float, rng: np.random.Generator) -> Events:
    """Erase each event with probability ``share`` (EventDrop, Gu et al. 2021: random drop)."""
    return _keep(events, rng.random(len(events)) >= share)


def drop_time(events: Events, share: float, rng: np.random.Generator) -> Events:
    """Erase the events of one stretch of time of up to ``share`` of the duration, its length uniform (EventDrop)."""
    duration = int(events.t[-1]) + 1
    start, stop = _stretch(duration, int(rng.integers(int(share * duration) + 1)), rng)
    return _keep(events, (events.t < start) | (events.t >= stop))


def drop_area(events: Events, sensor: Sizes, share: float, rng: np.random.Generator) -> Events:
    """Erase the events in a rectangle of up to ``share`` of the area, uniform, its height any that fits (EventDrop)."""
    height, width = sensor[1:]
    pixels = int(rng.integers(int(share * (height * width)) + 1))
    if pixels == 0:
        return events
    rows = int(rng.integers(-(-pixels // width), min(height, pixels) + 1))
    y0, y1 = _stretch(height, rows, rng)
    x0, x1 = _stretch(width, pixels // rows, rng)
    return _keep(events, (events.y < y0) | (events.y >= y1) | (events.x < x0) | (events.x >= x1))


def crop(events: Events, sensor: Sizes, most: int, rng: np.random.Generator) -> Events:
    """Keep a window smaller than the frame by up to ``most`` pixels along each axis, where it is."""
    keep = np.ones(len(events), np.bool_)
    for column, size in ((events.y, sensor[1]), (events.x, sensor[2])):
        margin = int(rng.integers(most + 1)) if size > 1 else 0
        start, stop = _stretch(size, size - margin, rng)
        keep &= (column >= start) & (column < stop)
    return _keep(events, keep)


def time_jitter(events: Events, std_us: float, rng: np.random.Generator) -> Events:
    """Move each event by its own normally distributed time of standard deviation ``std_us``, rounded to microseconds."""
    moves = np.rint(rng.normal(0, std_us, len(events))).astype(np.int64)
    return _moved_in_time(events, events.t.astype(np.int64) + moves)


def time_shift(events: Events, most_us: int, rng: np.random.Generator) -> Events:
    """Move all events by one time, uniform in ±``most_us`` microseconds."""
    return _moved_in_time(events, events.t.astype(np.int64) + int(rng.integers(-most_us, most_us + 1)))


def flip(events: Events, sensor: Sizes, rng: np.random.Generator) -> Events:
    """With probability 1/2 left and right change places."""
    if rng.random() < 0.5:
        return events
    return _with(events, x=sensor[2] - 1 - events.x.astype(np.int64))


def shift(events: Events, sensor: Sizes, most: int, rng: np.random.Generator) -> Events:
    """Move all events by (dy, dx), each uniform in ±``most`` pixels; not along an axis of one pixel."""
    dy, dx = (
        int(move) if size > 1 else 0 for move, size in zip(rng.integers(-most, most + 1, 2), sensor[1:], strict=True)
    )
    y, x = events.y.astype(np.int64) + dy, events.x.astype(np.int64) + dx
    keep = (y >= 0) & (y < sensor[1]) & (x >= 0) & (x < sensor[2])
    return _keep(_with(events, x=x, y=y), keep) if keep.any() else events


def polarity_flip(events: Events, rng: np.random.Generator) -> Events:
    """With probability 1/2 polarities 2i and 2i + 1 change places: ON and OFF."""
    return events if rng.random() < 0.5 else _with(events, p=events.p.astype(np.int64) ^ 1)


def cut_mix(events: Events, other: Events, sensor: Sizes, rng: np.random.Generator) -> tuple[Events, float]:
    """Replace what happens in a random box in space and time by what happens there in ``other``.

    The box has a volume share uniform in (0, 1) and sides in proportion to the sensor's and to the longer duration
    (CutMix, Yun et al. 2019, with λ ~ Beta(1, 1)).

    Returns:
        The mixed recording, and the share of its events that are the first one's: that of the label (EventMix, Shen et
        al. 2023). (``events``, 1.0) when both shares are empty.
    """
    share = float(rng.random()) ** (1 / 3)
    duration = int(max(events.t[-1], other.t[-1])) + 1
    # Sides are whole and at least 1; rounding up or down at random keeps their mean.
    sides = [min(size, max(1, int(share * size + rng.random()))) for size in (duration, *sensor[1:])]
    box = [_stretch(size, side, rng) for size, side in zip((duration, *sensor[1:]), sides, strict=True)]
    parts = (_take(events, ~_within(events, box)), _take(other, _within(other, box)))
    total = len(parts[0]) + len(parts[1])
    if total == 0:
        return events, 1.0
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y", "t", "p")}
    return _take(Events(**columns), np.argsort(columns["t"], kind="stable")), len(parts[0]) / total


def augment_events(
    events: Events,
    sensor: Sizes,
    augment: Augment,
    rng: np.random.Generator,
    *,
    frame_us: int,
    partner: Events | None = None,
) -> tuple[Events, float]:
    """Vary a recording by all operations of ``augment``, in the order given there.

    Args:
        events: a recording, which is not changed.
        sensor: (C, H, W).
        augment: what is varied; its frames count as ``frame_us`` microseconds. Times move by any number of microseconds:
            ``time_shift`` by up to that many frames, ``time_jitter`` normally with the standard deviation of a uniform
            number of ±time_jitter frames, frame_us * sqrt(j * (j + 1) / 3).
        rng: of this sample in this epoch: :func:`tbnn.data.augment.sample_rng`. The variation is not the one that packed
            bits get with the same seed.
        frame_us: duration of a frame in microseconds.
        partner: another sample's recording, with ``cut_mix``; it is varied by itself before it is mixed in.

    Returns:
        A recording that :func:`tbnn.data.events.check_events` accepts, and the share of the label that stays with the
        sample, 1.0 where it was not mixed.

    Raises:
        ValueError: a recording that the sensor cannot have made, settings that do not suit it, a ``frame_us`` below 1, a
            partner missing or not needed.

    >>> from tbnn.data.augment.streams import sample_rng
    >>> e = Events(x=np.array([0, 2]), y=np.array([0, 0]), t=np.array([3, 25]), p=np.array([0, 1]))
    >>> varied, mix = augment_events(e, (2, 1, 3), Augment(drop=0.5), sample_rng(0, 0, 1), frame_us=10)
    >>> 1 <= len(varied) <= 2, mix
    (True, 1.0)
    """
    augment.check(sensor)
    if frame_us < 1:
        raise ValueError(f"frame_us: expected at least 1 microsecond, got {frame_us}")
    if (partner is None) == (augment.cut_mix > 0):
        got = "none" if partner is None else "one"
        raise ValueError(f"partner: expected a recording with cut_mix and only then, got {got} with {augment}")
    check_events(events, sensor, "events")
    varied = _varied(events, sensor, augment, rng, frame_us)
    if partner is None or rng.random() >= augment.cut_mix:
        return varied, 1.0
    check_events(partner, sensor, "partner")
    return cut_mix(varied, _varied(partner, sensor, augment, rng, frame_us), sensor, rng)


def _varied(events: Events, sensor: Sizes, augment: Augment, rng: np.random.Generator, frame_us: int) -> Events:
    """All operations that are on, but cut_mix."""
    if augment.drop:
        events = drop_events(events, augment.drop, rng)
    if augment.drop_time:
        events = drop_time(events, augment.drop_time, rng)
    if augment.drop_area:
        events = drop_area(events, sensor, augment.drop_area, rng)
    if augment.crop:
        events = crop(events, sensor, augment.crop, rng)
    if augment.time_jitter:
        events = time_jitter(events, frame_us * math.sqrt(augment.time_jitter * (augment.time_jitter + 1) / 3), rng)
    if augment.time_shift:
        events = time_shift(events, augment.time_shift * frame_us, rng)
    if augment.flip:
        events = flip(events, sensor, rng)
    if augment.shift:
        events = shift(events, sensor, augment.shift, rng)
    if augment.polarity_flip:
        events = polarity_flip(events, rng)
    return events


def _stretch(size: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
    """A range of ``length`` anywhere in 0 .. size."""
    start = int(rng.integers(size - length + 1))
    return start, start + length


def _within(events: Events, box: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Which events lie in a box of ranges of t, y and x."""
    inside = np.ones(len(events), np.bool_)
    for column, (start, stop) in zip((events.t, events.y, events.x), box, strict=True):
        inside &= (column >= start) & (column < stop)
    return inside


def _moved_in_time(events: Events, t: npt.NDArray[np.int64]) -> Events:
    """The events at their new times ``t``, put in order; those outside the recording's duration are lost."""
    keep = np.flatnonzero((t >= 0) & (t <= int(events.t[-1])))
    order = keep[np.argsort(t[keep], kind="stable")]
    return _take(_with(events, t=t), order) if len(order) else events


def _keep(events: Events, keep: npt.NDArray[np.bool_]) -> Events:
    """The events where ``keep`` is True; all of them where it nowhere is."""
    return _take(events, keep) if keep.any() else events


def _take(events: Events, which: npt.NDArray[np.bool_ | np.intp]) -> Events:
    return Events(events.x[which], events.y[which], events.t[which], events.p[which])


def _with(events: Events, **columns: IntArray) -> Events:
    """Other columns, their type kept; times become int64."""
    new = vars(events) | {name: c if name == "t" else c.astype(vars(events)[name].dtype) for name, c in columns.items()}
    return Events(**new)
