"""Delayed exclusive or: a generated dataset whose class only a memory of the first cue can tell."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, Sensor
from tbnn.data.recordings import Recordings

CLASSES = 2


@dataclass(frozen=True)
class DelayedXor:
    """Two bits, one early and one late; the class is their exclusive or.

    A bit is a cue of two bursts, one on each of two groups of channels: group 0 first for a 0, group 1 first for a 1.
    In its burst each channel spikes once in each of ``spikes`` equal parts of it. Between, before and after the cues
    there are noise spikes only::

        lead | first cue, 2 bursts | delay | second cue, 2 bursts | tail

    Chance level: 1/2. The four pairs of bits are equally frequent and everything else is drawn without regard to them;
    so a window that holds nothing of one of the cues says nothing about the class. Neither do the spikes without their
    times: each channel gives ``2 * spikes`` of them and its noise in every recording. (Counts of frames keep that as far
    as ``burst`` is a multiple of their bin width.)

    The task is the working-memory task "delayed XOR" of neuroscience, with the bits coded by order; the code is ours.

    Attributes:
        samples: recordings of each class.
        channels: channels of each of the two groups.
        spikes: spikes of a channel in a burst.
        burst: microseconds of a burst.
        delay_least, delay_most: microseconds between the cues, drawn uniformly for each recording; equal: fixed.
        lead: microseconds before the first cue.
        tail: microseconds after the second cue; after a shorter delay there are more of them.
        noise: noise spikes of a channel in a second, a Poisson process.

    Raises:
        ValueError: on a value outside its range.
    """

    samples: int = 1000
    channels: int = 10
    spikes: int = 2
    burst: int = 5_000
    delay_least: int = 50_000
    delay_most: int = 70_000
    lead: int = 5_000
    tail: int = 5_000
    noise: float = 5.0

    def __post_init__(self) -> None:
        least = {"samples": 2, "channels": 1, "spikes": 1, "burst": self.spikes, "delay_least": 0, "lead": 0, "tail": 0}
        for key, bound in {**least, "delay_most": self.delay_least}.items():
            if getattr(self, key) < bound:
                raise ValueError(f"{key}: expected at least {bound}, got {getattr(self, key)}")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise: expected 0 or more spikes a second, got {self.noise}")

    @property
    def duration(self) -> int:
        """Microseconds of every recording."""
        return self.lead + 4 * self.burst + self.delay_most + self.tail


def bits_of(i: int | npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The early and the late bit of recording i: 0 0, 1 0, 0 1, 1 1, and again."""
    number = np.asarray(i, np.int64)
    return number & 1, number >> 1 & 1


def delayed_xor_recordings(xor: DelayedXor, sensor: Sensor, seed: int) -> Recordings:
    """All recordings: group g is columns ``g * channels`` and on of the one row; recording i depends on (seed, i).

    Raises:
        ValueError: a sensor other than one row of ``2 * xor.channels`` pixels and one channel.
    """
    width = 2 * xor.channels
    if tuple(sensor) != (1, 1, width):
        raise ValueError(f"sensor: expected (channels, height, width) {(1, 1, width)}, got {tuple(sensor)}")
    numbers = np.arange(CLASSES * xor.samples)
    early, late = bits_of(numbers)

    def read(i: int) -> Events:
        rng = np.random.default_rng((seed, i + 1))
        delay = int(rng.integers(xor.delay_least, xor.delay_most, endpoint=True))
        cues = xor.lead, xor.lead + 2 * xor.burst + delay
        parts = np.arange(xor.spikes)[:, None] + rng.random((len(cues), 2, xor.spikes, xor.channels))
        within = (parts * (xor.burst / xor.spikes)).astype(np.int64)  # (cue, group, spike, channel)
        first = np.array([[bit != group for group in (0, 1)] for bit in (early[i], late[i])], np.int64) * xor.burst
        t = within + (np.array(cues)[:, None] + first)[:, :, None, None]
        x = np.broadcast_to(np.arange(width).reshape(2, 1, xor.channels), t.shape)
        noise = rng.poisson(xor.noise * xor.duration * 1e-6, width)
        t = np.concatenate([t.ravel(), rng.integers(0, xor.duration, noise.sum())])
        x = np.concatenate([x.ravel(), np.repeat(np.arange(width), noise)])
        order = np.argsort(t, kind="stable")
        zeros = np.zeros(len(t), np.int64)
        return Events(x=x[order], y=zeros, t=t[order], p=zeros)

    return Recordings(early ^ late, numbers, [f"sample {i}" for i in numbers], read)
