"""Evidence accumulation: the majority of cues is the class, and each part of a recording is where it should be."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbnn.data import load_recipe, make
from tbnn.data.events import Sensor, check_events
from tbnn.data.evidence import Evidence, evidence_recordings, sides_of

CLEAR = Evidence(samples=20, neurons=8, rate=300.0, noise=0.0)


def recordings_of(evidence, seed=1):
    return evidence_recordings(evidence, Sensor(1, 1, 4 * evidence.neurons), seed)


@given(
    cues=st.integers(0, 4).map(lambda n: 2 * n + 1),
    cue=st.integers(20_000, 100_000),
    pause=st.integers(0, 50_000),
    delay=st.integers(0, 500_000),
    seed=st.integers(0, 10**6),
)
def test_the_side_of_most_cues_is_the_class(cues, cue, pause, delay, seed):
    evidence = Evidence(2, 30, cues, cue, pause, delay, 50_000, rate=500.0, noise=0.0)
    recordings = recordings_of(evidence, seed)
    for i, label in enumerate(recordings.labels):
        events = recordings.read(i)
        check_events(events, (1, 1, 120), "here")
        group = events.x // 30
        cue_of = events.t // (cue + pause)
        sides = [np.bincount(group[(cue_of == k) & (group < 2)], minlength=2) for k in range(cues)]
        assert all((side == 0).sum() == 1 for side in sides)  # each cue is on one side alone
        assert int(sum(side[1] > 0 for side in sides) * 2 > cues) == label
        assert (events.t[group == 2] >= evidence.duration - evidence.recall).all()
        assert not (group == 3).any()
        assert events.t.max() < evidence.duration


def test_cues_are_on_their_recordings_side_with_the_given_chance():
    """Of mirrored sequences too: sequences of a majority have chance p^k q^(n−k) + q^k p^(n−k)."""
    rng, evidence = np.random.default_rng(0), Evidence(cues=3, bias=0.7)
    own = np.array([(sides_of(evidence, 1, rng) == 1).sum() for _ in range(20_000)])
    three = 0.7**3 + 0.3**3
    assert set(own) == {2, 3}
    assert abs((own == 3).mean() - three) < 4 * np.sqrt(three * (1 - three) / 20_000)
    mirrored = np.array([(sides_of(evidence, 0, rng) == 0).sum() for _ in range(20_000)])
    assert abs((mirrored == 3).mean() - three) < 4 * np.sqrt(three * (1 - three) / 20_000)


def test_rates_are_those_asked_for():
    evidence = Evidence(samples=100)
    recordings = recordings_of(evidence)
    events = [recordings.read(i) for i in range(200)]
    counts = np.sum([np.bincount(e.x // 10, minlength=4) for e in events], 0)
    noise = 10.0 * 1.0 * 10 * 200
    for got, expected in ((counts[2], noise + 40.0 * 0.15 * 10 * 200), (counts[3], noise)):
        assert abs(got - expected) < 4 * np.sqrt(expected)
    cues = 2 * noise + 40.0 * 7 * 0.06 * 10 * 200
    assert abs(counts[:2].sum() - cues) < 4 * np.sqrt(cues)


def test_recordings_depend_on_seed_and_number_only():
    few, many = recordings_of(CLEAR), recordings_of(dataclasses.replace(CLEAR, samples=40))
    np.testing.assert_array_equal(few.read(7).t, many.read(7).t)
    assert few.read(7).t.tolist() != recordings_of(CLEAR, 2).read(7).t.tolist()
    assert np.bincount(many.labels).tolist() == [40, 40]


def test_the_shipped_recipe_has_a_thousand_steps(tmp_path):
    recipe = load_recipe("evidence")
    assert recipe.evidence is not None
    assert recipe.evidence.duration == recipe.duration == 1_000_000
    with pytest.raises(ValueError, match="steps"):
        make("evidence", cache=tmp_path, steps=900)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cues": 4}, "cues: expected an odd number, so that one side has more, got 4"),
        ({"samples": 1}, "samples: expected at least 2, got 1"),
        ({"cue": 0}, "cue: expected at least 1, got 0"),
        ({"rate": -1.0}, "rate: expected 0 or more spikes a second, got -1.0"),
        ({"noise": float("nan")}, "noise: expected 0 or more spikes a second, got nan"),
        ({"bias": 0.4}, "bias: expected a chance in [0.5, 1], got 0.4"),
    ],
)
def test_bad_values(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Evidence(**fields)


def test_another_sensor_is_refused():
    with pytest.raises(ValueError, match=re.escape("expected (channels, height, width) (1, 1, 32), got (1, 1, 40)")):
        evidence_recordings(CLEAR, Sensor(1, 1, 40), 0)
