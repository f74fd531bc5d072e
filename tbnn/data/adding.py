"""The adding problem in spikes: a generated dataset in which two of many symbols count."""

from dataclasses import dataclass

import numpy as np

from tbnn.data.events import Events, Sensor
from tbnn.data.recordings import Recordings


@dataclass(frozen=True)
class Adding:
    """A sequence of symbols, two of them marked: the class is the sum of the two marked values.

    In each of ``slots`` slots one of ``values`` channels spikes once: the symbol is that channel's number. The marker's
    channel, after them, spikes in one slot of the first half and in one of the second. All times are uniform in their
    slot; slots, and the symbols that are not marked, are drawn uniformly for each recording.

    Chance level: 1/values. All pairs of marked values are equally frequent, so the sum ``s`` of the ``2 * values - 1``
    possible ones has the share ``(values - |s - (values - 1)|) / values^2``, at most 1/values; and who knows one of the two
    marked values still has ``values`` equally frequent sums before them.

    Paper: S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997, experiment 4, there
    with real values and a real sum. One mark in each half is the later custom.

    Attributes:
        samples: recordings of each of the ``values^2`` pairs of marked values.
        slots: length of the sequence.
        values: number of symbols; they stand for 0 to values - 1.
        slot: microseconds of a slot.

    Raises:
        ValueError: on a value outside its range.
    """

    samples: int = 125
    slots: int = 50
    values: int = 4
    slot: int = 2_000

    def __post_init__(self) -> None:
        for key, least in (("samples", 1), ("slots", 2), ("values", 2), ("slot", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: expected at least {least}, got {getattr(self, key)}")

    @property
    def classes(self) -> int:
        """Number of possible sums."""
        return 2 * self.values - 1

    @property
    def duration(self) -> int:
        """Microseconds."""
        return self.slots * self.slot


def adding_recordings(adding: Adding, sensor: Sensor, seed: int) -> Recordings:
    """All recordings: value v is column v of the one row, the marker the last; recording i depends on (seed, i).

    Raises:
        ValueError: a sensor other than one row of ``adding.values + 1`` pixels and one channel.
    """
    width = adding.values + 1
    if tuple(sensor) != (1, 1, width):
        raise ValueError(f"sensor: expected (channels, height, width) {(1, 1, width)}, got {tuple(sensor)}")
    numbers = np.arange(adding.samples * adding.values**2)
    marked = np.stack([numbers % adding.values, numbers // adding.values % adding.values], axis=1)  # (N, 2)
    middle = adding.slots // 2

    def read(i: int) -> Events:
        rng = np.random.default_rng((seed, i + 1))
        at = np.array([rng.integers(middle), rng.integers(middle, adding.slots)])
        symbols = rng.integers(adding.values, size=adding.slots)
        symbols[at] = marked[i]
        slots = np.concatenate([np.arange(adding.slots), at])
        t = slots * adding.slot + rng.integers(adding.slot, size=len(slots))
        x = np.concatenate([symbols, np.full(2, adding.values)])
        order = np.argsort(t, kind="stable")
        zeros = np.zeros(len(t), np.int64)
        return Events(x=x[order], y=zeros, t=t[order], p=zeros)

    return Recordings(marked.sum(1), numbers, [f"sample {i}" for i in numbers], read)
