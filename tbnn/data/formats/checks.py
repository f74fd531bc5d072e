"""What the readers of event files share: sizes, clocks that wrap, and the border every recording passes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, IntArray

Int64 = npt.NDArray[np.int64]

DISORDER = 65_536  # us; two to the power 16: more than the 14-bit clock of a DVS128, less than a lost recording part
TIME_LIMIT = 1 << 62  # differences of times below it fit in int64


def header_length(data: bytes, mark: bytes, end: bytes | None = None) -> int:
    """Bytes in the leading lines that start with ``mark``, the line ``end`` being the last where it stands."""
    start = 0
    while data.startswith(mark, start):
        stop = data.find(b"\n", start)
        if stop < 0:
            return len(data)
        line, start = data[start:stop], stop + 1
        if end is not None and line.rstrip() == end:
            break
    return start


def whole_records(path: Path, data: bytes, start: int, size: int) -> None:
    """Raise ``ValueError`` unless ``data`` from byte ``start`` on is one or more records of ``size`` bytes."""
    length = len(data) - start
    if length < size or length % size:
        raise ValueError(
            f"{path}: expected one or more records of {size} bytes from byte {start} on, got {length} bytes"
            f" ({length // size} whole records and {length % size} bytes)"
        )


def unwrap(clock: Int64, bits: int) -> Int64:
    """A counter of so many bits made to go on where it starts again at 0: a fall by more than half its range."""
    wraps = np.zeros(len(clock), np.int64)
    np.cumsum(clock[1:] - clock[:-1] < -(1 << (bits - 1)), out=wraps[1:])
    wraps <<= bits
    wraps += clock
    return wraps


def time_order(path: Path, t: Int64) -> npt.NDArray[np.intp] | None:
    """The stable order that sorts ``t`` (N,) in us, or None where it is sorted; steps too far back are an error."""
    outside = np.flatnonzero((t <= -TIME_LIMIT) | (t >= TIME_LIMIT))
    if outside.size:
        raise ValueError(f"{path}: event {outside[0]}: expected a time below 2**62 us, got {t[outside[0]]}")
    if np.all(t[1:] >= t[:-1]):
        return None
    late = np.maximum.accumulate(t)
    late -= t
    i = int(np.argmax(late))
    if late[i] > DISORDER:
        raise ValueError(
            f"{path}: event {i}: expected times in order, or at most {DISORDER} us back, got {t[i]} us after"
            f" {t[i] + late[i]} us"
        )
    return np.argsort(t, kind="stable")


def make_events(path: Path, x: IntArray, y: IntArray, t: Int64, p: IntArray, *, from_zero: bool) -> Events:
    """The recording with these columns (N,), sorted by time; ``from_zero`` counts times from the first event.

    Raises:
        ValueError: starts with ``path``: no events, a negative coordinate, a polarity other than 0 and 1, a time
            that lies more than ``DISORDER`` us before an earlier event's, or a negative time.
    """
    if len(t) == 0:
        raise ValueError(f"{path}: expected at least one event, got none")
    for name, column, most in (("x", x, None), ("y", y, None), ("p", p, 1)):
        bad = np.flatnonzero(column < 0 if most is None else (column < 0) | (column > most))
        if bad.size:
            expected = "0 or more" if most is None else "0 or 1"
            raise ValueError(f"{path}: event {bad[0]}: expected {name} of {expected}, got {column[bad[0]]}")
    order = time_order(path, t)
    if order is not None:
        x, y, t, p = x[order], y[order], t[order], p[order]
    if from_zero:
        t = t - t[0]
    elif t[0] < 0:
        raise ValueError(f"{path}: expected times of 0 or later, got {t[0]} us")
    return Events(x, y, t, p.astype(np.uint8, copy=False))
