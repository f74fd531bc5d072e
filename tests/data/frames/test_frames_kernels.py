"""Packed frames against the loop that defines them, on random events and settings."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tbnn.bits import pack_bits_numpy
from tbnn.data.events import Events
from tbnn.data.frames import FrameSpec, events_to_words, pack, words_reference

SENSORS = [(2, 3, 7), (1, 1, 700), (2, 34, 34), (3, 1, 1), (2, 300, 2), (1, 1, 70_000)]
PLACES = ["u1", "i2", ">u2", "i4", "u8", "i8"]


@st.composite
def specs(draw, sensor, cuts=("bin_width", "bins", "count")):
    size = st.integers(1, 40)
    cut = draw(st.sampled_from(cuts))
    settings = {cut: draw(size), "late": "cut", "start": draw(st.sampled_from(["zero", "first"]))}
    if cut != "bins":
        settings |= {"steps": draw(st.integers(1, 12)), "hop": draw(st.none() | size)}
    settings["polarity"] = draw(st.sampled_from(["channels", "merge"]))
    if draw(st.booleans()):
        settings["size"] = (draw(st.integers(1, sensor[1])), draw(st.integers(1, sensor[2])))
    counting = draw(st.sampled_from(["bits", "at_least", "planes", "tau"]))
    if counting in ("at_least", "planes"):
        settings[counting] = draw(st.integers(1, 4))
    if counting == "tau":
        settings |= {"tau": draw(st.floats(10, 100)), "level": draw(st.floats(0.05, 0.8))}
    return FrameSpec(**settings)


@st.composite
def recordings(draw, sensor, base=0):
    """Few times and a corner of the sensor, so that times tie and pixels fire more than once."""
    count, rng = draw(st.integers(1, 60)), np.random.default_rng(draw(st.integers(0, 999)))
    corner = draw(st.sampled_from([1, 3, 10**6]))
    x, y = (side - 1 - rng.integers(0, min(side, corner), count) for side in (sensor[2], sensor[1]))
    kinds = [k for k in PLACES if np.iinfo(k).max >= max(sensor)]
    kind = draw(st.sampled_from(kinds))
    t = base + np.sort(rng.integers(0, draw(st.sampled_from([1, 20, 300])), count))
    p = rng.integers(0, sensor[0], count).astype(draw(st.sampled_from(["u1", "i8"])))
    return Events(x.astype(kind), y.astype(kind), t.astype(draw(st.sampled_from(["u4", "i8", ">i8"]))), p)


def packed(events, sensor, spec):
    frames = words_reference(events, sensor, spec)
    return pack_bits_numpy(frames.reshape(len(frames), -1))


@settings(max_examples=250, derandomize=True, deadline=None)
@given(st.data(), st.sampled_from(SENSORS))
def test_words_equal_the_reference(data, sensor):
    spec = data.draw(specs(sensor))
    events = data.draw(recordings(sensor))
    words = events_to_words(events, sensor, spec)
    assert words.dtype == np.int32
    np.testing.assert_array_equal(words, packed(events, sensor, spec))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_marking_equals_counting(data):
    """Frames that overlap little are marked, others counted: the bits do not tell."""
    sensor = (2, 3, 7)
    spec = data.draw(specs(sensor, cuts=("bin_width", "count")))
    events = data.draw(recordings(sensor))
    words = events_to_words(events, sensor, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "_CHEAP_OVERLAP", 0)
        np.testing.assert_array_equal(events_to_words(events, sensor, spec), words)
        patch.setattr(pack, "_CHEAP_OVERLAP", 10**9)
        np.testing.assert_array_equal(events_to_words(events, sensor, spec), words)


def events_at(*times, pixels=None):
    x = np.array(pixels or [0] * len(times))
    return Events(x, np.zeros_like(x), np.array(times), np.zeros_like(x))


LINE = (1, 1, 4)


@pytest.mark.parametrize(
    ("spec", "times", "expected"),
    [
        # Pixel i fires at times[i]; hand-computed words, pixel 0 the lowest bit.
        (FrameSpec(bin_width=10, steps=3), (0, 9, 10, 20), [0b0011, 0b0100, 0b1000]),
        (FrameSpec(bin_width=10, hop=5, steps=4), (0, 5, 9, 19), [0b0111, 0b0110, 0b1000, 0b1000]),
        (FrameSpec(bin_width=5, hop=10, steps=2), (4, 5, 9, 10), [0b0001, 0b1000]),
        (FrameSpec(bin_width=10, steps=2, start="first"), (105, 114, 115, 124), [0b0011, 0b1100]),
        (FrameSpec(bins=2), (7, 11, 12, 17), [0b0011, 0b0100]),
        (FrameSpec(bins=3), (5, 5, 6, 6), [0b0011, 0b1100, 0]),
        (FrameSpec(count=3, steps=2), (1, 1, 1, 9), [0b0111, 0b1000]),
        (FrameSpec(count=2, hop=1, steps=5), (1, 1, 1, 9), [0b0011, 0b0110, 0b1100, 0b1000, 0]),
        # exp(-(t_end - t) / 10) >= exp(-1.05): up to 10 us before the end.
        (FrameSpec(bin_width=5, steps=4, tau=10.0, level=0.35), (0, 4, 5, 9), [0b0011, 0b1111, 0b1100, 0]),
        (FrameSpec(count=2, steps=3, tau=10.0, level=0.35), (0, 2, 11, 12), [0b0011, 0b1110, 0]),
        (FrameSpec(bin_width=10, steps=1, size=(1, 2)), (0, 10, 10, 10), [0b01]),
    ],
)
def test_hand_computed(spec, times, expected):
    events, spec = events_at(*times, pixels=[0, 1, 2, 3]), spec.replace(late="cut")
    assert events_to_words(events, LINE, spec)[:, 0].tolist() == expected
    assert packed(events, LINE, spec)[:, 0].tolist() == expected


def test_counts_saturate_in_planes():
    counts = [0, 1, 2, 3, 4, 9]
    pixels = [i for i, n in enumerate(counts) for _ in range(n)]
    events = events_at(*range(len(pixels)), pixels=pixels)
    words = events_to_words(events, (1, 1, 6), FrameSpec(bin_width=100, steps=1, planes=2))
    assert words.tolist() == [[0b111010 | 0b111100 << 6]]
    words = events_to_words(events, (1, 1, 6), FrameSpec(bin_width=100, steps=1, at_least=4))
    assert words.tolist() == [[0b110000]]


def test_down_sampling_is_an_or_over_blocks():
    rng, sensor = np.random.default_rng(3), (2, 34, 51)
    n = 300
    events = Events(
        rng.integers(0, 51, n), rng.integers(0, 34, n), np.sort(rng.integers(0, 400, n)), rng.integers(0, 2, n)
    )
    spec = FrameSpec(bin_width=100, steps=4)
    full = words_reference(events, sensor, spec)
    blocks = full.reshape(4, 2, 17, 2, 17, 3).any((3, 5))
    small = events_to_words(events, sensor, spec.replace(size=(17, 17)))
    np.testing.assert_array_equal(small, pack_bits_numpy(blocks.reshape(4, -1)))
    merged = events_to_words(events, sensor, spec.replace(polarity="merge"))
    np.testing.assert_array_equal(merged, pack_bits_numpy(full.any(1).reshape(4, -1)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (FrameSpec(bin_width=10, steps=3), "expected events before 30 (3 steps of 10), got one at 40: {} 5 steps"),
        (
            FrameSpec(bin_width=10, hop=4, steps=3),
            "expected events before 18 (3 steps of 10, one every 4), got one at 40: {} 9 steps",
        ),
        (
            FrameSpec(bin_width=10, steps=3, start="first"),
            "expected events before 37 (3 steps of 10 from the first event at 7), got one at 40: {} 4 steps",
        ),
        (FrameSpec(count=1, steps=2), "expected at most 2 events (2 steps of 1), got 3: {} 3 steps"),
        (
            FrameSpec(count=2, hop=3, steps=1),
            "expected at most 2 events (1 steps of 2, one every 3), got 3: {} 2 steps",
        ),
    ],
)
def test_late_events_tell_the_steps_needed(spec, message):
    events = events_at(7, 9, 40)
    text = "a.h5: record 4: " + message.format("this recording needs")
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        events_to_words(events, LINE, spec, "a.h5: record 4")
    enough = int(text.split()[-2])
    events_to_words(events, LINE, spec.replace(steps=enough))
    with pytest.raises(ValueError, match=f"needs {enough} steps"):
        events_to_words(events, LINE, spec.replace(steps=enough - 1))


def test_strided_columns_and_bool_polarity():
    record = np.zeros(5, [("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "?")])
    record["x"], record["t"], record["p"] = [0, 3, 1, 2, 0], [0, 1, 12, 13, 14], [True, False, True, True, False]
    events = Events(record["x"], record["y"], record["t"], record["p"])
    words = events_to_words(events, (2, 1, 4), FrameSpec(bin_width=10, steps=2))
    assert words.tolist() == [[0b0001_1000], [0b0110_0001]]


def test_events_of_a_bad_recording_never_reach_the_kernels():
    bad = Events(np.array([0, 2**32]), np.array([0, 0]), np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(ValueError, match=r"^here: event 1: expected x in 0\.\.3, got 4294967296$"):
        events_to_words(bad, LINE, FrameSpec(bin_width=10, steps=1), "here")


@settings(max_examples=30, derandomize=True, deadline=None)
@example(1)
@given(st.integers(1, 2**40))
def test_times_far_from_zero(base):
    """No division and no rounding: only differences of times count, up to the largest time."""
    near = FrameSpec(bin_width=7, hop=3, steps=10, start="first")
    times = np.array([0, 2, 7, 8, 20, 33])
    expected = events_to_words(events_at(*times), LINE, near)
    for first in (base, 2**62 - 34):
        np.testing.assert_array_equal(events_to_words(events_at(*(times + first)), LINE, near), expected)
