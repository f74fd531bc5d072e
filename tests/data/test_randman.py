"""Smooth random manifolds as spike times."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from tbnn.data.events import Sensor, check_events
from tbnn.data.randman import Manifold, Randman, manifolds, randman_recordings

SMALL = Randman(samples=100)


def spike_times(recordings):
    """(N, units), microseconds."""
    events = [recordings.read(i) for i in range(len(recordings))]
    return np.stack([e.t[np.argsort(e.x)] for e in events])


def by_the_formula(randman, seed_of_class, x):
    """The published sum, number by number, over a grid for its range: one dimension."""
    a, b, c = np.random.default_rng(seed_of_class).random((3, randman.units, 1, randman.terms))
    grid = np.linspace(0, 1, 4097)
    out = []
    for n in range(randman.units):

        def f(at, n=n):
            return sum(
                k**-randman.alpha * a[n, 0, k - 1] * np.sin(2 * np.pi * (k * b[n, 0, k - 1] * at + c[n, 0, k - 1]))
                for k in range(1, randman.terms + 1)
            )

        low, high = f(grid).min(), f(grid).max()
        out.append((f(x) - low) / (high - low))
    return np.clip(np.stack(out, axis=1), 0, 1)


@pytest.mark.parametrize(("alpha", "terms"), [(3.0, 10), (2.0, 31), (1.0, 1000), (0.7, 1000), (50.0, 1)])
def test_terms_end_at_an_amplitude_of_a_thousandth(alpha, terms):
    assert Randman(alpha=alpha).terms == terms


def test_manifold_is_the_published_sum():
    randman = Randman(units=5, alpha=2.0)
    x = np.random.default_rng(1).random(50)
    got = manifolds(randman, seed=8)[3](x[:, None])
    np.testing.assert_allclose(got, by_the_formula(randman, (8, 0, 3), x), atol=1e-12)


@given(alpha=st.floats(1.5, 5), dim=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_each_unit_spans_zero_to_one(alpha, dim, seed):
    """The range of a product of independent factors is found on one grid a dimension: nothing lies outside it."""
    draw = np.random.default_rng(seed)
    manifold = Manifold(Randman(units=4, dim=dim, alpha=alpha), draw)
    y = manifold(draw.random((3000, dim)))
    assert 0 <= y.min() <= y.max() <= 1
    assert ((y == 0) | (y == 1)).mean() < 0.001  # nothing had to be clipped
    if dim == 1:
        on_grid = manifold(np.linspace(0, 1, 4097)[:, None])
        np.testing.assert_allclose([on_grid.min(0), on_grid.max(0)], [[0] * 4, [1] * 4], atol=1e-12)
    elif dim == 2:
        line = np.linspace(0, 1, 200)
        on_grid = manifold(np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2))
        np.testing.assert_allclose([on_grid.min(0), on_grid.max(0)], [[0] * 4, [1] * 4], atol=0.03)


def test_smoothness_grows_with_alpha():
    """Total variation falls; near points of the manifold have near spike times."""
    x = np.linspace(0, 1, 4001)[:, None]
    variation, jump = [], []
    for alpha in (1.0, 1.5, 2.0, 3.0, 5.0):
        y = Manifold(Randman(alpha=alpha, units=6), np.random.default_rng(2))(x)
        variation.append(np.abs(np.diff(y, axis=0)).sum(0).mean())
        jump.append(np.abs(np.diff(y, axis=0)).max())
    assert variation == sorted(variation, reverse=True)
    assert variation[0] > 5 * variation[3]
    assert jump[3] < 0.005 < 0.02 < jump[0]


@pytest.mark.parametrize("dim", [1, 2])
def test_every_unit_spikes_once_and_counts_say_nothing(dim):
    randman = dataclasses.replace(SMALL, dim=dim, samples=5)
    recordings = randman_recordings(randman, Sensor(1, 1, 20), seed=1)
    for i in range(len(recordings)):
        events = recordings.read(i)
        check_events(events, (1, 1, 20), "here")
        assert sorted(events.x.tolist()) == list(range(20))
        assert events.t.max() < randman.duration


def test_nearest_neighbour_tells_classes_by_all_units_but_not_by_one():
    recordings = randman_recordings(SMALL, Sensor(1, 1, 20), seed=1)
    times, labels = spike_times(recordings), recordings.labels
    assert np.bincount(labels).tolist() == [100] * 10

    def accuracy(units):
        nearest = KNeighborsClassifier(1).fit(times[:500, :units], labels[:500])
        return nearest.score(times[500:, :units], labels[500:])

    assert accuracy(20) > 0.97
    assert accuracy(1) < 0.3


def test_spike_times_are_the_manifold_of_the_class():
    recordings = randman_recordings(SMALL, Sensor(1, 1, 20), seed=6)
    times, classes = spike_times(recordings), manifolds(SMALL, 6)
    for i in (0, 3, 17, 999):
        x = np.random.default_rng((6, i + 1)).random((1, 1))
        expected = np.minimum(np.floor(classes[i % 10](x)[0] * 100_000), 99_999)
        np.testing.assert_array_equal(times[i], expected)


def test_recordings_depend_on_seed_and_number_only():
    few = randman_recordings(dataclasses.replace(SMALL, samples=2), Sensor(1, 1, 20), seed=1)
    many = randman_recordings(SMALL, Sensor(1, 1, 20), seed=1)
    other = randman_recordings(SMALL, Sensor(1, 1, 20), seed=2)
    np.testing.assert_array_equal(spike_times(few), spike_times(many.take(np.arange(20))))
    assert not np.array_equal(spike_times(few), spike_times(other.take(np.arange(20))))
    assert few.read(3).t.tolist() == few.read(3).t.tolist()
    assert len(set(many.names)) == len(many) == 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": 1}, "classes: expected at least 2, got 1"),
        ({"units": 0}, "units: expected at least 1, got 0"),
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"duration": 0}, "duration: expected at least 1, got 0"),
        ({"alpha": 0.5}, "alpha: expected a number above 0.5, got 0.5"),
        ({"alpha": float("nan")}, "alpha: expected a number above 0.5, got nan"),
    ],
)
def test_impossible_manifolds(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Randman(**fields)


def test_sensor_must_fit():
    with pytest.raises(ValueError, match=re.escape("expected (channels, height, width) (1, 1, 20), got (2, 1, 20)")):
        randman_recordings(SMALL, Sensor(2, 1, 20), seed=0)
