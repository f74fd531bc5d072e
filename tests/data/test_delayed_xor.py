"""Delayed exclusive or: both cues tell the class, nothing less does."""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from tbnn.bits import unpack_bits_numpy
from tbnn.data import PackedFrames, load_recipe, make
from tbnn.data.delayed_xor import DelayedXor, bits_of, delayed_xor_recordings
from tbnn.data.events import Sensor, check_events

SMALL = DelayedXor(samples=8, channels=3)


def recordings_of(xor, seed=1):
    return delayed_xor_recordings(xor, Sensor(1, 1, 2 * xor.channels), seed)


def decoded(events, xor):
    """The two bits of a recording without noise: the longest silence parts the cues; whose mean time is earlier came first."""
    bits = []
    t, group = np.sort(events.t), events.x // xor.channels
    cut = t[np.argmax(np.diff(t))]  # the last spike before the silence
    for cue in (events.t <= cut, events.t > cut):
        bits.append(int(events.t[cue & (group == 0)].mean() > events.t[cue & (group == 1)].mean()))
    return tuple(bits)


@given(
    channels=st.integers(1, 5),
    spikes=st.integers(1, 4),
    burst=st.integers(10, 5_000),
    delay=st.tuples(st.integers(30_000, 500_000), st.integers(0, 500_000)),
    seed=st.integers(0, 10**6),
)
def test_labels_by_a_decoder_of_the_spikes(channels, spikes, burst, delay, seed):
    xor = DelayedXor(4, channels, spikes, burst, delay[0], sum(delay), noise=0.0)
    recordings = recordings_of(xor, seed)
    for i, label in enumerate(recordings.labels):
        events = recordings.read(i)
        early, late = decoded(events, xor)
        assert (early, late) == tuple(int(bit) for bit in bits_of(i))
        assert early ^ late == label
        check_events(events, (1, 1, 2 * channels), "here")
        assert xor.lead <= events.t[0] <= events.t[-1] < xor.duration - xor.tail
        assert np.bincount(events.x, minlength=2 * channels).tolist() == [2 * spikes] * (2 * channels)


def test_the_delay_is_drawn_between_its_ends():
    """Measured from the end of the first cue to the start of the second, each known to within a part of a burst."""
    xor = DelayedXor(samples=200, channels=40, spikes=1, burst=100, delay_least=20_000, delay_most=30_000, noise=0.0)
    recordings = recordings_of(xor)
    silences = np.array([np.diff(recordings.read(i).t).max() for i in range(len(recordings))])
    assert (silences >= 20_000).all()
    assert (silences <= 30_000 + 2 * 100).all()
    assert abs(silences.mean() - 25_000) < 5 * 10_000 / np.sqrt(12 * 400)
    assert abs(np.corrcoef(silences, recordings.labels)[0, 1]) < 0.2
    fixed = dataclasses.replace(xor, delay_least=30_000)
    assert min(np.diff(recordings_of(fixed).read(i).t).max() for i in range(40)) >= 30_000


def test_noise_is_a_poisson_process_of_its_rate():
    xor = DelayedXor(samples=100, channels=5, noise=20.0)
    recordings = recordings_of(xor)
    extra = sum(len(recordings.read(i)) for i in range(200)) - 200 * 10 * 2 * xor.spikes
    expected = 20.0 * xor.duration * 1e-6 * 10 * 200
    assert abs(extra - expected) < 4 * np.sqrt(expected)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Of the shipped recipe: (N, T, channels), labels and numbers of all splits."""
    path = make("delayed_xor", cache=tmp_path_factory.mktemp("cache"))
    parts = [PackedFrames(path, name) for name in ("train", "validation", "test")]
    bits = np.concatenate([unpack_bits_numpy(part.frames, part.info.bits) for part in parts])
    return bits, np.concatenate([p.labels for p in parts]), np.concatenate([p.index for p in parts])


def forest(x, labels):
    """Accuracy of a random forest on the second half."""
    half = len(x) // 2
    return RandomForestClassifier(100, random_state=0).fit(x[:half], labels[:half]).score(x[half:], labels[half:])


def test_neither_counts_nor_a_window_with_one_cue_tell_the_class(frames):
    """1,000 test recordings: chance is 0.5 +- 0.016. The bits themselves are easy to read from a window."""
    bits, labels, numbers = frames
    assert bits.shape == (2000, 100, 20)
    early, late = bits_of(numbers)
    before, after = bits[:, :20], bits[:, 30:]  # the second cue starts after 65 ms, the first one ends before 15 ms
    for x in (bits.sum(1), before.reshape(2000, -1), bits[:, 15:65].reshape(2000, -1), after.reshape(2000, -1)):
        assert abs(forest(x, labels) - 0.5) < 0.065
    first = bits[:, 5:15].reshape(2000, -1)
    assert forest(first, early) > 0.99
    assert abs(forest(first, late) - 0.5) < 0.065


def test_pairs_are_equally_frequent_and_so_are_classes():
    recordings = recordings_of(dataclasses.replace(SMALL, samples=100))
    early, late = bits_of(recordings.index)
    assert np.bincount(2 * early + late).tolist() == [50] * 4
    assert np.bincount(recordings.labels).tolist() == [100] * 2


def test_recordings_depend_on_seed_and_number_only():
    few, many = recordings_of(SMALL), recordings_of(dataclasses.replace(SMALL, samples=80))
    other = recordings_of(SMALL, seed=2)
    for i in (0, 5, 15):
        for got in (few.read(i), many.take(np.array([40, i])).read(1)):
            np.testing.assert_array_equal([got.t, got.x], [many.read(i).t, many.read(i).x])
        assert few.read(i).t.tolist() != other.read(i).t.tolist()
    assert few.read(0).t.tolist() != few.read(4).t.tolist()
    assert len(set(many.names)) == len(many) == 160


@pytest.mark.parametrize("steps", [100, 300, 1000])
def test_any_length_of_memory(steps, tmp_path):
    recipe = load_recipe("delayed_xor")
    delay = 1000 * steps - 30_000
    text = (
        f'name = "mine"\ntitle = "x"\ndescription = ""\nsource = "x"\nlicence = "x"\ncitation = ""\nformat = "{recipe.format}"\n'
        f'classes = ["a", "b"]\n[sensor]\nchannels = 1\nheight = 1\nwidth = 4\n[frames]\nbin_width = 1000\nsteps = {steps}\n'
        f"[split]\ntest = 0.2\nvalidation = 0.2\nseed = 0\n"
        f"[delayed_xor]\nsamples = 10\nchannels = 2\ndelay_least = {delay // 2}\ndelay_most = {delay}\n"
    )
    (tmp_path / "mine.toml").write_text(text)
    assert PackedFrames(make(tmp_path / "mine.toml", cache=tmp_path), "test").frames.shape == (4, steps, 1)
    (tmp_path / "short.toml").write_text(text.replace(f"steps = {steps}", f"steps = {steps - 1}"))
    with pytest.raises(ValueError, match=f"frames.steps: expected frames for {steps}000 us, got {steps - 1}000 us"):
        load_recipe(tmp_path / "short.toml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 1}, "samples: expected at least 2, got 1"),
        ({"channels": 0}, "channels: expected at least 1, got 0"),
        ({"spikes": 0}, "spikes: expected at least 1, got 0"),
        ({"spikes": 6, "burst": 5}, "burst: expected at least 6, got 5"),
        ({"delay_least": -1}, "delay_least: expected at least 0, got -1"),
        ({"delay_least": 9, "delay_most": 8}, "delay_most: expected at least 9, got 8"),
        ({"lead": -1}, "lead: expected at least 0, got -1"),
        ({"tail": -1}, "tail: expected at least 0, got -1"),
        ({"noise": -0.5}, "noise: expected 0 or more spikes a second, got -0.5"),
        ({"noise": float("nan")}, "noise: expected 0 or more spikes a second, got nan"),
    ],
)
def test_impossible_cues(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DelayedXor(**fields)


def test_sensor_must_fit():
    with pytest.raises(ValueError, match=re.escape("expected (channels, height, width) (1, 1, 6), got (1, 1, 3)")):
        delayed_xor_recordings(SMALL, Sensor(1, 1, 3), seed=0)


def test_one_bit_leaves_both_classes_equally_frequent():
    early, late = bits_of(np.arange(400))
    for known in (early, late):
        for bit in (0, 1):
            assert Fraction(int((early ^ late)[known == bit].sum()), int((known == bit).sum())) == Fraction(1, 2)
