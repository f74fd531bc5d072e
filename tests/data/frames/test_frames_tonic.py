"""Packed frames against tonic's, bit for bit, on random events and on recordings of N-MNIST."""

import warnings

import h5py
import numpy as np
import pytest

from tbnn.bits import pack_bits_numpy
from tbnn.data.events import Events
from tbnn.data.frames import FrameSpec, events_to_words

SENSOR = (2, 34, 34)
TAU, LEVEL = 30_000.0, 0.3  # -tau * ln(level) = 36119.2: no event can lie on the edge


@pytest.fixture(scope="module")
def transforms():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tonic.transforms")


def record_of(events):
    record = np.zeros(len(events), dtype=[("x", int), ("y", int), ("t", int), ("p", int)])
    for name in "xytp":
        record[name] = getattr(events, name)
    return record


def random_recordings(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        n, last = int(rng.integers(2, 500)), int(rng.integers(200_000, 320_000))
        t = np.sort(rng.integers(0, last // 1000, n) * 1000)  # ties, and events on the edges of bins
        yield Events(rng.integers(0, 34, n), rng.integers(0, 34, n), t, rng.integers(0, 2, n))


def nmnist(folder, group, count=None):
    with h5py.File(folder / "nmnist_small/nmnist_small.h5") as file:
        data = file[group]
        offsets = data["offsets"][()]
        columns = [data[name][: offsets[count or -1]] for name in "xytp"]
    for start, end in zip(offsets[:-1][:count], offsets[1:][:count], strict=True):
        yield Events(*(column[start:end] for column in columns))


def check(frames, events, spec):
    """``frames`` of tonic, counts or 0/1, against ours."""
    bits = pack_bits_numpy((frames > 0).reshape(len(frames), -1))
    ours = spec if spec.bins else spec.replace(steps=len(frames), late="cut")
    np.testing.assert_array_equal(events_to_words(events, SENSOR, ours), bits, str(ours))


def check_all_modes(transforms, events):
    record, size = record_of(events), SENSOR[::-1]

    def to_frame(**options):
        return transforms.ToFrame(sensor_size=size, **options)(record.copy())

    check(to_frame(time_window=10_000, start_time=0), events, FrameSpec(bin_width=10_000, steps=1))
    frames = to_frame(time_window=10_000, start_time=0, end_time=330_000)
    check(frames, events, FrameSpec(bin_width=10_000, steps=1))
    assert len(frames) == 33
    counts = pack_bits_numpy(np.stack([np.minimum(frames, 3) >> plane & 1 for plane in (0, 1)], 1).reshape(33, -1))
    planes = events_to_words(events, SENSOR, FrameSpec(bin_width=10_000, steps=33, planes=2))
    np.testing.assert_array_equal(planes, counts)
    several = events_to_words(events, SENSOR, FrameSpec(bin_width=10_000, steps=33, at_least=2))
    np.testing.assert_array_equal(several, pack_bits_numpy((frames >= 2).reshape(33, -1)))
    check(to_frame(time_window=7_000), events, FrameSpec(bin_width=7_000, steps=1, start="first"))
    check(
        to_frame(time_window=9_000, overlap=4_000, include_incomplete=True),
        events,
        FrameSpec(bin_width=9_000, hop=5_000, steps=1, start="first"),
    )
    check(
        to_frame(time_window=20_000, overlap=19_000, start_time=0),
        events,
        FrameSpec(bin_width=20_000, hop=1_000, steps=1),
    )
    check(to_frame(event_count=50), events, FrameSpec(count=50, steps=1))
    check(to_frame(event_count=50, overlap=40, include_incomplete=True), events, FrameSpec(count=50, hop=10, steps=1))
    check(to_frame(n_time_bins=20), events, FrameSpec(bins=20))
    # tonic takes it that a first event is in the first frame, so there is no start_time here.
    surfaces = transforms.ToTimesurface(sensor_size=size, dt=10_000, tau=TAU)(record.copy())
    check(surfaces >= LEVEL, events, FrameSpec(bin_width=10_000, steps=1, start="first", tau=TAU, level=LEVEL))


def test_random_events(transforms):
    for events in random_recordings(15):
        check_all_modes(transforms, events)


def test_nmnist_recordings(transforms, shared_data):
    for events in nmnist(shared_data, "test", 20):
        check_all_modes(transforms, events)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["train", "test"])
def test_all_nmnist_recordings(transforms, shared_data, group):
    for events in nmnist(shared_data, group):
        check_all_modes(transforms, events)


def test_bins_of_a_short_recording_are_one_microsecond(transforms):
    """A recording of fewer microseconds than bins: tonic's bins have no width and hold nothing, ours are 1 us wide."""
    events = Events(np.array([0, 1, 2]), np.array([0, 0, 0]), np.array([5, 6, 9]), np.array([0, 0, 1]))
    frames = transforms.ToFrame(sensor_size=SENSOR[::-1], n_time_bins=8)(record_of(events))
    assert frames.sum() == 0
    words = events_to_words(events, SENSOR, FrameSpec(bins=8))
    assert np.bitwise_count(words).sum(1).tolist() == [1, 1, 0, 0, 1, 0, 0, 0]
