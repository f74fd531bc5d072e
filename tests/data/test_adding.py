"""The adding problem in spikes."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from tbnn.data import PackedFrames, load_recipe, make
from tbnn.data.adding import Adding, adding_recordings
from tbnn.data.events import Sensor, check_events


def recordings_of(adding, seed=1):
    return adding_recordings(adding, Sensor(1, 1, adding.values + 1), seed)


@given(slots=st.integers(2, 60), values=st.integers(2, 6), slot=st.integers(1, 3000), seed=st.integers(0, 10**6))
def test_labels_by_a_decoder_of_the_spikes(slots, values, slot, seed):
    adding = Adding(samples=1, slots=slots, values=values, slot=slot)
    recordings = recordings_of(adding, seed)
    for i, label in enumerate(recordings.labels):
        events = recordings.read(i)
        check_events(events, (1, 1, values + 1), "here")
        assert events.t[-1] < adding.duration
        symbols = {}
        for t, x in zip(events.t // slot, events.x, strict=True):
            if x < values:
                assert int(t) not in symbols  # one symbol a slot
                symbols[int(t)] = int(x)
        assert sorted(symbols) == list(range(slots))
        first, second = (int(t) for t in events.t[events.x == values] // slot)
        assert first < slots // 2 <= second
        assert symbols[first] + symbols[second] == label


def test_shares_and_chance():
    adding = Adding(samples=30, values=5)
    recordings = recordings_of(adding)
    assert adding.classes == 9
    assert (np.bincount(recordings.labels) / 30).tolist() == [1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert np.bincount(recordings.labels).max() / len(recordings) == 1 / 5


def test_symbols_marks_and_times_are_uniform():
    adding = Adding(samples=100, slots=10, values=4, slot=1000)
    events = [recordings_of(adding).read(i) for i in range(1600)]
    x, t = np.concatenate([e.x for e in events]), np.concatenate([e.t for e in events])
    share = np.bincount(x[x < 4]) / 16_000
    np.testing.assert_allclose(share, 0.25, atol=0.015)
    np.testing.assert_allclose(np.bincount(t[x == 4] // 1000) / 1600, 0.2, atol=0.045)
    np.testing.assert_allclose(np.bincount(t % 1000 // 100) / len(t), 0.1, atol=0.01)


def test_counts_say_little_and_both_marked_values_say_all():
    """The sum leans a little towards what was frequent; that fades with the number of slots."""
    recordings = recordings_of(Adding())
    bags = np.stack([np.bincount(recordings.read(i).x, minlength=5) for i in range(2000)])
    order = np.random.default_rng(0).permutation(2000)
    train, test = order[:1000], order[1000:]
    model = LogisticRegression(max_iter=2000).fit(bags[train], recordings.labels[train])
    assert model.score(bags[test], recordings.labels[test]) < 0.25 + 0.07


def test_recordings_depend_on_seed_and_number_only():
    small = Adding(samples=2)
    few, many, other = recordings_of(small), recordings_of(Adding(samples=9)), recordings_of(small, seed=2)
    for i in (0, 5, 31):
        assert few.labels[i] == many.labels[i]
        for got in (few.read(i), many.take(np.array([40, i])).read(1)):
            np.testing.assert_array_equal([got.t, got.x], [many.read(i).t, many.read(i).x])
        assert few.read(i).t.tolist() != other.read(i).t.tolist()
    assert few.read(0).t.tolist() != few.read(16).t.tolist()
    assert len(set(many.names)) == len(many) == 144


def test_the_shipped_recipe_holds_every_spike_apart(tmp_path):
    """A symbol and a mark may meet in a bin, in channels of their own: no spike is lost."""
    path = make("adding", cache=tmp_path)
    sizes = {name: len(PackedFrames(path, name)) for name in ("train", "validation", "test")}
    assert sizes == {"train": 1360, "validation": 240, "test": 400}
    words = PackedFrames(path, "test").frames
    assert words.shape == (400, 100, 1)
    assert (np.bitwise_count(words.view(np.uint32)).sum(1) == 52).all()
    recipe = load_recipe("adding")
    with pytest.raises(ValueError, match=re.escape("frames.steps: expected frames for 100000 us, got 99000 us")):
        dataclasses.replace(recipe, frames=recipe.frames.replace(steps=99))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"slots": 1}, "slots: expected at least 2, got 1"),
        ({"values": 1}, "values: expected at least 2, got 1"),
        ({"slot": 0}, "slot: expected at least 1, got 0"),
    ],
)
def test_impossible_sequences(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Adding(**fields)


def test_sensor_must_fit():
    with pytest.raises(ValueError, match=re.escape("expected (channels, height, width) (1, 1, 5), got (1, 1, 4)")):
        adding_recordings(Adding(), Sensor(1, 1, 4), seed=0)
