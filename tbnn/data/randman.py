"""Smooth random manifolds read as spike times: a generated dataset that only timing can tell apart."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, Sensor
from tbnn.data.recordings import Recordings

FloatArray = npt.NDArray[np.float64]

_PRECISION = 1e-3  # terms of lower amplitude are left out
_MOST_TERMS = 1000
_GRID = 4097  # points at which a factor's range is measured


@dataclass(frozen=True)
class Randman:
    """Each class is a smooth random manifold of dimension ``dim`` in the cube [0, 1]^units.

    A point ``x`` of [0, 1]^dim, drawn uniformly for each recording, lies on the manifold of its class at::

        y_n(x) = prod_d sum_{k=1..K} k^-alpha a sin(2 pi (k b x_d + c)),   a, b, c ~ U(0, 1) for each n, d, k

    scaled to the range [0, 1] for each unit n. Unit n spikes once, at ``y_n * duration``: the number of spikes is the
    same in all recordings. The larger ``alpha``, the smoother the manifold.

    Paper: F. Zenke, T. P. Vogels, "The remarkable robustness of surrogate gradient learning for instilling complex
    function in spiking neural networks", Neural Computation 33(4), 2021. K is the last term of amplitude 0.001 or more,
    at most 1000, as in the authors' program ``randman``; that gives frequency k the amplitude (k + 1)^-alpha and scales
    by the range of the samples drawn. Here the range is that of the manifold, found on a grid of 4,097 points a
    dimension, so that a recording does not depend on the others.

    Attributes:
        classes: number of manifolds.
        units: number of units, N.
        dim: dimension of the manifolds, D.
        alpha: exponent by which the amplitudes fall.
        samples: recordings of each class.
        duration: microseconds.

    Raises:
        ValueError: on a value outside its range.
    """

    classes: int = 10
    units: int = 20
    dim: int = 1
    alpha: float = 3.0
    samples: int = 1000
    duration: int = 100_000

    def __post_init__(self) -> None:
        for key, least in (("classes", 2), ("units", 1), ("dim", 1), ("samples", 1), ("duration", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: expected at least {least}, got {getattr(self, key)}")
        if not 0.5 < self.alpha < float("inf"):  # the series must converge
            raise ValueError(f"alpha: expected a number above 0.5, got {self.alpha}")

    @property
    def terms(self) -> int:
        """K."""
        return max(1, min(int(_PRECISION ** (-1 / self.alpha) + 1e-9), _MOST_TERMS))


class Manifold:
    """One random manifold: ``manifold(x)`` maps points (S, dim) of the unit cube to (S, units) in [0, 1]."""

    def __init__(self, randman: Randman, rng: np.random.Generator) -> None:
        k = np.arange(1, randman.terms + 1)
        amplitude, stretch, self._phase = rng.random((3, randman.units, randman.dim, randman.terms))
        self._amplitude = amplitude * k**-randman.alpha
        self._frequency = k * stretch
        grid = np.linspace(0.0, 1.0, _GRID)
        low = high = np.ones(randman.units)
        for d in range(randman.dim):
            # The factors vary independently: the extremes of a product are products of extremes.
            values = np.stack([self._factor(grid, n, d) for n in range(randman.units)])
            ends = np.stack([side * end for side in (low, high) for end in (values.min(1), values.max(1))])
            low, high = ends.min(0), ends.max(0)
        self._low, self._range = low, high - low

    def __call__(self, x: FloatArray) -> FloatArray:
        units, dim = self._amplitude.shape[:2]
        y = [np.prod([self._factor(x[:, d], n, d) for d in range(dim)], axis=0) for n in range(units)]
        return np.clip((np.stack(y, axis=1) - self._low) / self._range, 0.0, 1.0)

    def _factor(self, x: FloatArray, n: int, d: int) -> FloatArray:
        """The sum over k of unit n, dimension d: (S,)."""
        waves = np.sin(2 * np.pi * (np.outer(x, self._frequency[n, d]) + self._phase[n, d]))
        return waves @ self._amplitude[n, d]


def manifolds(randman: Randman, seed: int) -> list[Manifold]:
    """The manifold of each class; class c depends on ``(seed, c)`` only."""
    return [Manifold(randman, np.random.default_rng((seed, 0, c))) for c in range(randman.classes)]


def randman_recordings(randman: Randman, sensor: Sensor, seed: int) -> Recordings:
    """All recordings, in turn from class to class: unit n is column n of the one row; recording i depends on (seed, i).

    Raises:
        ValueError: a sensor other than one row of ``randman.units`` pixels and one channel.
    """
    if tuple(sensor) != (1, 1, randman.units):
        raise ValueError(f"sensor: expected (channels, height, width) {(1, 1, randman.units)}, got {tuple(sensor)}")
    classes = manifolds(randman, seed)
    labels = np.arange(randman.samples * randman.classes) % randman.classes

    def read(i: int) -> Events:
        x = np.random.default_rng((seed, i + 1)).random((1, randman.dim))
        y = classes[labels[i]](x)[0]
        t = np.minimum((y * randman.duration).astype(np.int64), randman.duration - 1)
        order = np.argsort(t, kind="stable")
        zeros = np.zeros(randman.units, np.int64)
        return Events(x=order, y=zeros, t=t[order], p=zeros)

    return Recordings(labels, np.arange(len(labels)), [f"sample {i}" for i in range(len(labels))], read)
