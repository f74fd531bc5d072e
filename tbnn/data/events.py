"""Events of a vision sensor, and the bit frames made of them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tbnn.bits import unpack_bits_numpy

IntArray = npt.NDArray[np.integer]
Unsigned = npt.NDArray[np.unsignedinteger]

LAST_TIME = 1 << 62  # microseconds; room above it for the arithmetic of frames
_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


class Sensor(NamedTuple):
    """The shape of one frame: channels (polarities), height and width in pixels; a plain tuple (C, H, W)."""

    channels: int
    height: int
    width: int

    @property
    def bits(self) -> int:
        """Bits in one frame, C * H * W."""
        return self.channels * self.height * self.width


@dataclass(frozen=True, eq=False)
class Events:
    """One recording in address-event form: four integer arrays of one length, in time order.

    ``x`` column and ``y`` row in pixels, ``t`` microseconds since the start of the recording,
    ``p`` polarity (0 = OFF, darker; 1 = ON, brighter).
    """

    x: IntArray
    y: IntArray
    t: IntArray
    p: IntArray

    def __len__(self) -> int:
        return len(self.t)


def check_events(events: Events, sensor: tuple[int, int, int], where: str) -> None:
    """Raise ``ValueError`` unless ``events`` is a recording that a sensor of shape (C, H, W) can have made.

    The message starts with ``where`` (file and record) and tells what was got and what was expected, for: arrays that
    are not one-dimensional integers or differ in length, an empty recording, events outside the sensor, a polarity
    out of range, negative times, times that run backward and times of 2^62 or later.
    """
    checked(events, sensor, where)


def checked(events: Events, sensor: tuple[int, int, int], where: str) -> tuple[Unsigned, Unsigned, Unsigned, Unsigned]:
    """:func:`check_events`, and x, y, t and p as :func:`unsigned` columns."""
    from tbnn.data.frames import cpu

    channels, height, width = sensor
    columns = {"x": events.x, "y": events.y, "t": events.t, "p": events.p}
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "biu":
            raise ValueError(f"{where}: {name}: expected a 1-D array of integers, got {column.dtype} {column.shape}")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{where}: expected x, y, t and p of one length, got {got}")
    if len(events) == 0:
        raise ValueError(f"{where}: expected at least one event, got an empty recording")
    x, y, t, p = (unsigned(column) for column in columns.values())
    for name, positive, size in (("x", x, width), ("y", y, height), ("p", p, channels)):
        if cpu.largest(positive) >= size:
            column = columns[name]
            bad = np.flatnonzero((column < 0) | (column >= size))[0]
            raise ValueError(f"{where}: event {bad}: expected {name} in 0..{size - 1}, got {column[bad]}")
    times = events.t
    if times[0] < 0:
        raise ValueError(f"{where}: event 0: expected a time of 0 or later, got {times[0]}")
    # Negative times are large ones as unsigned numbers: in order only if they are the last ones.
    if times[-1] < 0 or not cpu.ascending(t):
        i = np.flatnonzero(times[1:] < times[:-1])[0] + 1
        raise ValueError(f"{where}: event {i}: expected times in order, got {times[i]} after {times[i - 1]}")
    if times[-1] >= LAST_TIME:
        raise ValueError(f"{where}: event {len(times) - 1}: expected a time below 2^62, got {times[-1]}")
    return x, y, t, p


def unsigned(column: IntArray) -> Unsigned:
    """A column as a contiguous array of unsigned numbers of its width: a copy only where stride or byte order ask for it.

    Negative numbers become large ones, so that one comparison finds them too.
    """
    if not (column.flags.c_contiguous and column.dtype.isnative):
        column = np.ascontiguousarray(column, column.dtype.newbyteorder("="))
    return column.view(_UNSIGNED[column.itemsize])


def events_to_frames(
    events: Events, sensor: tuple[int, int, int], bin_width: int, steps: int, where: str = "events_to_frames"
) -> npt.NDArray[np.uint8]:
    """Mark in each time bin the pixels that fired: ``frames[t // bin_width, p, y, x] = 1``.

    Args:
        events: a recording that passes :func:`check_events`, which is called here.
        sensor: (C, H, W).
        bin_width: length of a time bin in microseconds.
        steps: number of bins, T.
        where: how error messages begin.

    Returns:
        uint8 0/1 (T, C, H, W); two events of one pixel and polarity in one bin count once.

    Raises:
        ValueError: as :func:`check_events`, a ``bin_width`` or ``steps`` below 1, or an event past the last bin
            (the message says how many steps the recording needs).

    >>> e = Events(x=np.array([1, 1]), y=np.array([0, 0]), t=np.array([3, 25]), p=np.array([0, 1]))
    >>> events_to_frames(e, (2, 1, 2), bin_width=10, steps=3).reshape(3, 4).tolist()
    [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    """
    if bin_width < 1 or steps < 1:
        raise ValueError(f"{where}: expected bin_width and steps of at least 1, got {bin_width} and {steps}")
    from tbnn.data.frames import FrameSpec, events_to_words

    words = events_to_words(events, sensor, FrameSpec(bin_width=bin_width, steps=steps), where)
    channels, height, width = sensor
    return unpack_bits_numpy(words, channels * height * width).reshape(steps, channels, height, width)
