"""The embedded digits shown row by row: a short sequence task that needs no download."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tbnn.data.digits import digit_images
from tbnn.data.events import Events, Sensor
from tbnn.data.recordings import Recordings

_SIDE = 8  # pixels of the images


@dataclass(frozen=True)
class DigitsRows:
    """scikit-learn's 8 x 8 digits, one row after another from the top.

    While a row is shown, the pixels whose ink, in [0, 1], is at least ``thresholds[p]`` spike in plane p once in every
    ``interval``, in its middle. Nothing is drawn at random. Chance level: 1/10, the classes are nearly equally frequent.

    Attributes:
        thresholds: of the planes, increasing, in (0, 1].
        row: microseconds that a row is shown.
        interval: microseconds from spike to spike; it must divide ``row``.

    Raises:
        ValueError: on a value outside its range.
    """

    thresholds: tuple[float, ...] = (0.25, 0.5, 0.75)
    row: int = 5_000
    interval: int = 1_000

    def __post_init__(self) -> None:
        edges = (0.0, *self.thresholds, 1.0 + 1e-9)
        if not self.thresholds or not all(low < high for low, high in pairwise(edges)):
            raise ValueError(f"thresholds: expected increasing numbers in (0, 1], got {list(self.thresholds)}")
        if self.interval < 1 or self.row < 1 or self.row % self.interval:
            raise ValueError(f"interval: expected a divisor of row, {self.row}, got {self.interval}")

    @property
    def duration(self) -> int:
        """Microseconds."""
        return _SIDE * self.row


def digits_rows_recordings(rows: DigitsRows, sensor: Sensor) -> Recordings:
    """The recordings of the 1,797 digits, in the order of :func:`tbnn.data.digits.digit_images`.

    Plane p is polarity p, a pixel's column its place in the row. Held out as the embedded digits are (the same
    ``[split]``), the same digits are held out: numbers and labels are the same.

    Raises:
        ValueError: a sensor other than one row of 8 pixels and a channel for each threshold.
    """
    expected = (len(rows.thresholds), 1, _SIDE)
    if tuple(sensor) != expected:
        raise ValueError(f"sensor: expected (channels, height, width) {expected}, got {tuple(sensor)}")
    images, labels = digit_images()
    times = np.arange(rows.row // rows.interval) * rows.interval + rows.interval // 2

    def read(i: int) -> Events:
        inked = images[i][:, None, None, :] >= np.array(rows.thresholds)[:, None]  # (row, 1, plane, column)
        row, k, plane, column = np.nonzero(np.broadcast_to(inked, (_SIDE, len(times), len(rows.thresholds), _SIDE)))
        return Events(x=column, y=np.zeros(len(row), np.int64), t=row * rows.row + times[k], p=plane)

    return Recordings(labels, np.arange(len(labels)), [f"digit {i}" for i in range(len(labels))], read)
