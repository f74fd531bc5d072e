"""Evidence accumulation: cues from the left and the right, a delay, and the question of which were more."""

from dataclasses import dataclass

import numpy as np

from tbnn.data.events import Events, Sensor
from tbnn.data.recordings import Recordings

CLASSES = 2
GROUPS = 4  # left, right, recall, background


@dataclass(frozen=True)
class Evidence:
    """An odd number of cues, each from the left or the right; the class is the side of most.

    Four groups of neurons: one fires during each cue from the left, one during each from the right, one while the answer is
    asked for, one always::

        cue pause cue pause … cue pause | delay | recall

    All spikes are Poisson's. Each cue is on the recording's own side with chance ``bias``, as far as that side has the
    majority in the end; so no single cue tells more than ``bias``, and what is asked for lies ``delay`` before.
    Chance level: 1/2, both classes are equally frequent.

    Source: the task of Morcos & Harvey, "History-dependent variability in population dynamics during evidence accumulation
    in cortex", 2016, as spikes in Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking
    neurons", 2020 (7 cues of 100 ms with pauses of 50 ms, a delay of 500 to 1,500 ms, 40 Hz, background 10 Hz, bias 0.7).

    Attributes:
        samples: recordings of each class.
        neurons: of each group.
        cues: an odd number of them.
        cue, pause, delay, recall: microseconds.
        rate: spikes a second of a group that fires.
        noise: spikes a second of every neuron besides, and of the background alone.
        bias: chance of a cue on the recording's side, in [0.5, 1].

    Raises:
        ValueError: on a value outside its range.
    """

    samples: int = 500
    neurons: int = 10
    cues: int = 7
    cue: int = 60_000
    pause: int = 30_000
    delay: int = 220_000
    recall: int = 150_000
    rate: float = 40.0
    noise: float = 10.0
    bias: float = 0.7

    def __post_init__(self) -> None:
        least = {"samples": 2, "neurons": 1, "cues": 1, "cue": 1, "pause": 0, "delay": 0, "recall": 1}
        for key, bound in least.items():
            if getattr(self, key) < bound:
                raise ValueError(f"{key}: expected at least {bound}, got {getattr(self, key)}")
        if self.cues % 2 == 0:
            raise ValueError(f"cues: expected an odd number, so that one side has more, got {self.cues}")
        for key in ("rate", "noise"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ValueError(f"{key}: expected 0 or more spikes a second, got {getattr(self, key)}")
        if not 0.5 <= self.bias <= 1:
            raise ValueError(f"bias: expected a chance in [0.5, 1], got {self.bias}")

    @property
    def duration(self) -> int:
        """Microseconds of every recording."""
        return self.cues * (self.cue + self.pause) + self.delay + self.recall


def sides_of(evidence: Evidence, label: int, rng: np.random.Generator) -> np.ndarray:
    """The side of each cue of a recording of a class, 0 left or 1 right: most are ``label``."""
    own = rng.random(evidence.cues) < evidence.bias
    if 2 * own.sum() < evidence.cues:
        own = ~own  # the recording was of the other side, and is seen in a mirror
    return np.where(own, label, 1 - label)


def evidence_recordings(evidence: Evidence, sensor: Sensor, seed: int) -> Recordings:
    """All recordings: groups left, right, recall and background are ``neurons`` columns each of the one row.

    Recording i depends on (seed, i) and is of class ``i % 2``.

    Raises:
        ValueError: a sensor other than one row of ``4 * evidence.neurons`` pixels and one channel.
    """
    width = GROUPS * evidence.neurons
    if tuple(sensor) != (1, 1, width):
        raise ValueError(f"sensor: expected (channels, height, width) {(1, 1, width)}, got {tuple(sensor)}")
    numbers = np.arange(CLASSES * evidence.samples)

    def read(i: int) -> Events:
        rng = np.random.default_rng((seed, i + 1))
        period = evidence.cue + evidence.pause
        windows = [(k * period, evidence.cue, int(side)) for k, side in enumerate(sides_of(evidence, i % 2, rng))]
        windows.append((evidence.duration - evidence.recall, evidence.recall, 2))
        t, x = [], []
        for start, length, group in windows:
            counts = rng.poisson(evidence.rate * length * 1e-6, evidence.neurons)
            t.append(start + rng.integers(0, length, counts.sum()))
            x.append(group * evidence.neurons + np.repeat(np.arange(evidence.neurons), counts))
        counts = rng.poisson(evidence.noise * evidence.duration * 1e-6, width)
        t.append(rng.integers(0, evidence.duration, counts.sum()))
        x.append(np.repeat(np.arange(width), counts))
        times, columns = np.concatenate(t), np.concatenate(x)
        order = np.argsort(times, kind="stable")
        zeros = np.zeros(len(times), np.int64)
        return Events(x=columns[order], y=zeros, t=times[order], p=zeros)

    return Recordings(numbers % CLASSES, numbers, [f"sample {i}" for i in numbers], read)
