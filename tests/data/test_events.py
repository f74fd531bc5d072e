"""Events and frames, against a naive loop and against tonic."""

import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbnn.data import Events, check_events, events_to_frames

SENSOR = (2, 3, 7)


def naive_frames(rows, sensor, bin_width, steps):
    frames = np.zeros((steps, *sensor), np.uint8)
    for x, y, t, p in rows:
        frames[t // bin_width][p][y][x] = 1
    return frames


def make_events(rows, t_dtype=np.int64):
    x, y, t, p = np.array(rows, np.int64).reshape(-1, 4).T
    return Events(x=x.astype(np.uint8), y=y.astype(np.uint8), t=t.astype(t_dtype), p=p.astype(np.uint8))


def random_rows(rng, count, sensor=SENSOR, last=500):
    t = np.sort(rng.integers(0, last, count))
    columns = [
        rng.integers(0, sensor[2], count),
        rng.integers(0, sensor[1], count),
        t,
        rng.integers(0, sensor[0], count),
    ]
    return np.stack(columns, axis=1).tolist()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_frames_equal_naive_loop(data):
    sensor = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    bin_width, steps = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 6))
    row = st.tuples(
        st.integers(0, sensor[2] - 1),
        st.integers(0, sensor[1] - 1),
        st.integers(0, bin_width * steps - 1),
        st.integers(0, sensor[0] - 1),
    )
    rows = sorted(data.draw(st.lists(row, min_size=1, max_size=30)), key=lambda r: r[2])
    events = make_events(rows, data.draw(st.sampled_from([np.uint32, np.int64, np.uint16])))
    frames = events_to_frames(events, sensor, bin_width, steps)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, naive_frames(rows, sensor, bin_width, steps))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frames_equal_tonic_clamped(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transforms = pytest.importorskip("tonic.transforms")
    rows = random_rows(np.random.default_rng(seed), 300)
    events = make_events(rows)
    record = np.zeros(len(rows), dtype=[("x", int), ("y", int), ("t", int), ("p", int)])
    for name in "xytp":
        record[name] = getattr(events, name)
    to_frame = transforms.ToFrame(sensor_size=SENSOR[::-1], time_window=100, start_time=0, end_time=500)
    np.testing.assert_array_equal(events_to_frames(events, SENSOR, 100, 5), np.minimum(to_frame(record), 1))


GOOD = [[1, 2, 10, 0], [6, 0, 10, 1], [0, 1, 499, 1]]


def changed(row, column, value):
    rows = [list(r) for r in GOOD]
    rows[row][column] = value
    return make_events(rows)


def with_columns(**columns):
    good = make_events(GOOD)
    return Events(**{name: columns.get(name, getattr(good, name)) for name in "xytp"})


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (changed(1, 0, 7), "event 1: expected x in 0..6, got 7"),
        (changed(2, 1, 3), "event 2: expected y in 0..2, got 3"),
        (changed(0, 3, 2), "event 0: expected p in 0..1, got 2"),
        (with_columns(x=np.array([1, -1, 0])), "event 1: expected x in 0..6, got -1"),
        (changed(0, 2, -5), "event 0: expected a time of 0 or later, got -5"),
        (changed(2, 2, 9), "event 2: expected times in order, got 9 after 10"),
        (changed(2, 2, -9), "event 2: expected times in order, got -9 after 10"),
        (changed(1, 2, -9), "event 1: expected times in order, got -9 after 10"),
        (changed(2, 2, 2**62), "event 2: expected a time below 2^62, got 4611686018427387904"),
        (
            with_columns(t=np.array([1, 2, 2**63], np.uint64)),
            "event 2: expected a time below 2^62, got 9223372036854775808",
        ),
        (with_columns(x=np.array([1, 2**32, 0])), "event 1: expected x in 0..6, got 4294967296"),
        (with_columns(y=np.array([1, 2, 512], ">i2")), "event 2: expected y in 0..2, got 512"),
        (with_columns(x=np.array([1, 9, 0, 9, 9, 9])[::2]), "event 2: expected x in 0..6, got 9"),
        (with_columns(t=np.array([10, 9, 12], np.uint32)), "event 1: expected times in order, got 9 after 10"),
        (with_columns(p=np.zeros(2, np.uint8)), "expected x, y, t and p of one length, got x 3, y 3, t 3, p 2"),
        (make_events([]), "expected at least one event, got an empty recording"),
        (with_columns(t=np.array([1.0, 2.0, np.nan])), "t: expected a 1-D array of integers, got float64 (3,)"),
        (with_columns(x=np.zeros((3, 1), int)), "x: expected a 1-D array of integers, got int64 (3, 1)"),
    ],
)
def test_check_events_names_place_got_and_expected(events, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"a.h5: record 4: {message}") + "$"):
        check_events(events, SENSOR, "a.h5: record 4")
    with pytest.raises(ValueError, match=re.escape(message)):
        events_to_frames(events, SENSOR, 100, 5)


def test_good_events_pass():
    check_events(make_events(GOOD), SENSOR, "here")


def test_late_event_tells_steps_needed():
    with pytest.raises(
        ValueError, match=re.escape("expected events before 400 (4 steps of 100), got one at 499: this")
    ):
        events_to_frames(make_events(GOOD), SENSOR, 100, 4)
    with pytest.raises(ValueError, match="needs 5 steps"):
        events_to_frames(make_events(GOOD), SENSOR, 100, 4)
    assert events_to_frames(make_events(GOOD), SENSOR, 100, 5)[4].sum() == 1


def test_edges_of_a_bin():
    frames = events_to_frames(make_events([[0, 0, 99, 0], [1, 0, 100, 0]]), SENSOR, 100, 2)
    assert frames[0, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert frames[1, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("bin_width", "steps"), [(0, 5), (100, 0)])
def test_empty_time_axis_is_refused(bin_width, steps):
    with pytest.raises(ValueError, match=f"of at least 1, got {bin_width} and {steps}"):
        events_to_frames(make_events(GOOD), SENSOR, bin_width, steps)
