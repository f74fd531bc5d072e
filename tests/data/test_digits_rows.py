"""The embedded digits row by row."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbnn.bits import unpack_bits_numpy
from tbnn.data import PackedFrames, make
from tbnn.data.digits import digit_images
from tbnn.data.digits_rows import DigitsRows, digits_rows_recordings
from tbnn.data.events import Sensor, check_events


@given(
    sixteenths=st.sets(st.integers(1, 15), min_size=1, max_size=5).map(sorted),
    repeats=st.integers(1, 6),
    interval=st.integers(1, 2000),
    i=st.integers(0, 1796),
)
def test_spikes_are_the_thresholded_image(sixteenths, repeats, interval, i):
    rows = DigitsRows(tuple(n / 16 for n in sixteenths), repeats * interval, interval)
    recordings = digits_rows_recordings(rows, Sensor(len(sixteenths), 1, 8))
    events = recordings.read(i)
    check_events(events, (len(sixteenths), 1, 8), "here")
    image, label = digit_images()[0][i], digit_images()[1][i]
    counts = np.zeros((len(sixteenths), 8, 8), np.int64)
    np.add.at(counts, (events.p, events.t // rows.row, events.x), 1)
    for plane, n in zip(counts, sixteenths, strict=True):
        np.testing.assert_array_equal(plane, repeats * (np.round(image * 16) >= n))
    assert recordings.labels[i] == label
    assert events.t[-1] < rows.duration
    assert set((events.t % interval).tolist()) == {interval // 2}


def test_the_same_digits_are_held_out_and_frames_hold_every_spike(tmp_path):
    rows, seen = make("digits_rows", cache=tmp_path), make("digits", cache=tmp_path)
    images, labels = digit_images()
    for name in ("train", "validation", "test"):
        mine, theirs = PackedFrames(rows, name), PackedFrames(seen, name)
        np.testing.assert_array_equal(mine.index, theirs.index)
        np.testing.assert_array_equal(mine.labels, labels[mine.index])
        frames = unpack_bits_numpy(mine.frames, 24).reshape(-1, 8, 5, 3, 8)  # (N, row, step, plane, column)
        expected = images[mine.index][:, :, None, None, :] >= np.array([0.25, 0.5, 0.75])[:, None]
        np.testing.assert_array_equal(frames, np.broadcast_to(expected, frames.shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thresholds": ()}, "thresholds: expected increasing numbers in (0, 1], got []"),
        ({"thresholds": (0.0, 0.5)}, "thresholds: expected increasing numbers in (0, 1], got [0.0, 0.5]"),
        ({"thresholds": (0.5, 0.5)}, "thresholds: expected increasing numbers in (0, 1], got [0.5, 0.5]"),
        ({"thresholds": (0.5, 1.1)}, "thresholds: expected increasing numbers in (0, 1], got [0.5, 1.1]"),
        ({"thresholds": (float("nan"),)}, "thresholds: expected increasing numbers in (0, 1], got [nan]"),
        ({"interval": 3}, "interval: expected a divisor of row, 5000, got 3"),
        ({"interval": 0}, "interval: expected a divisor of row, 5000, got 0"),
        ({"row": 0}, "interval: expected a divisor of row, 0, got 1000"),
    ],
)
def test_impossible_rows(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DigitsRows(**fields)


def test_sensor_must_fit():
    with pytest.raises(ValueError, match=re.escape("expected (channels, height, width) (3, 1, 8), got (2, 8, 8)")):
        digits_rows_recordings(DigitsRows(), Sensor(2, 8, 8))
