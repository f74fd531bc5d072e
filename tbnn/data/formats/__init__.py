"""Readers of the file formats in which recordings of event cameras are given out."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from tbnn.data.events import Events, Sensor
from tbnn.data.formats.aedat import read_aedat2, read_aedat3
from tbnn.data.formats.aedat4 import read_aedat4
from tbnn.data.formats.arrays import read_npy
from tbnn.data.formats.bin import read_bin
from tbnn.data.formats.matlab import read_mat
from tbnn.data.formats.prophesee import read_dat, read_evt2, read_evt3

_PLAIN = {
    "bin": read_bin,
    "aedat2": read_aedat2,
    "aedat3": read_aedat3,
    "aedat4": read_aedat4,
    "dat": read_dat,
    "evt2": read_evt2,
    "evt3": read_evt3,
}
READERS = (*_PLAIN, "npy", "mat")

__all__ = ["READERS", "read_file"]


def read_file(
    path: Path,
    reader: str,
    *,
    sensor: Sensor | None = None,
    columns: str = "",
    time_scale: float = 1.0,
    flip_y: bool = False,
) -> Events:
    """Read one recording.

    Events are in time order: cameras give some out of turn, so an event up to 65,536 us before an earlier one is
    sorted in (events of one time keep the file's order) and one further back is an error. Times count from the first
    event, except with "bin" and "npy", whose recordings have their own 0. Coordinates are 0 or more; whether they
    lie on the sensor is for :func:`tbnn.data.events.check_events` to say.

    At no moment is more than 160 times the file's size and 16 MiB allocated: sizes a file claims are held against its
    length first, and what compressed ones unpack to is limited (32 times in "aedat4", 16 times in "mat").

    Args:
        path: the file.
        reader: one of ``READERS``; the functions of that name tell the formats.
        sensor: for ``flip_y``.
        columns: "npy" only: the order of the columns x, y, t, p in an array (N, 4), as "xypt".
        time_scale: "npy" and "mat" only: microseconds in a unit of the file's times.
        flip_y: count rows from the other end, ``y = height - 1 - y``.

    Returns:
        x and y int16 or int32, t int64 in us, p uint8 (0 or 1), each (N,), N at least 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: starts with ``path``: a file that is not whole or not of that format, and arguments that do not
            go with it.
    """
    if reader not in READERS:
        raise ValueError(f"{path}: expected a reader of {', '.join(READERS)}, got {reader!r}")
    if columns and reader != "npy":
        raise ValueError(f"{path}: expected columns with the reader npy only, got {columns!r} with {reader}")
    if not (math.isfinite(time_scale) and time_scale > 0) or (time_scale != 1 and reader not in ("npy", "mat")):
        raise ValueError(
            f"{path}: expected a time_scale above 0, and 1 with readers but npy and mat, got {time_scale} with {reader}"
        )
    if flip_y and sensor is None:
        raise ValueError(f"{path}: expected a sensor to flip rows on, got none")
    if reader == "npy":
        events = read_npy(path, columns, time_scale)
    elif reader == "mat":
        events = read_mat(path, time_scale)
    else:
        events = _PLAIN[reader](path)
    if not flip_y or sensor is None:
        return events
    bad = np.flatnonzero(events.y >= sensor.height)
    if bad.size:
        raise ValueError(
            f"{path}: event {bad[0]}: expected y in 0..{sensor.height - 1} to flip, got {events.y[bad[0]]}"
        )
    return replace(events, y=sensor.height - 1 - events.y.astype(np.int32))
