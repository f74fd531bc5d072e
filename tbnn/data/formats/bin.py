"""The 5-byte records of N-MNIST and N-Caltech101 (``.bin``)."""

from pathlib import Path

import numpy as np

from tbnn.data.events import Events
from tbnn.data.formats.checks import make_events, whole_records

OVERFLOW_ROW = 240  # no such row in the sensor: the record marks a wrap of the camera's clock
OVERFLOW = 1 << 13  # us


def read_bin(path: Path) -> Events:
    """Records of 40 bits, big-endian: x (8), y (8), polarity (1), time in us (23); times are kept as they are.

    A record in row 240 is no event: it and all after it happened another 8,192 us later. The format has no header, so
    a file of another kind shows only by its length or by times out of order.

    Source: Orchard, Jayawant, Cohen, Thakor 2015, Frontiers in Neuroscience 9:437, and the reader for MATLAB and
    Python the authors give with the data (``Read_Ndataset.m``, ``eventvision.py``).
    """
    data = path.read_bytes()
    whole_records(path, data, 0, 5)
    records = np.frombuffer(data, np.uint8).reshape(-1, 5)  # (N, 5)
    x, y, high, middle, low = records.T
    t = (high & 127).astype(np.int64) << 16
    t |= middle.astype(np.int64) << 8
    t |= low
    overflow = y == OVERFLOW_ROW
    t += OVERFLOW * np.cumsum(overflow, dtype=np.int64)
    event = ~overflow
    return make_events(
        path, x[event].astype(np.int16), y[event].astype(np.int16), t[event], high[event] >> 7, from_zero=False
    )
