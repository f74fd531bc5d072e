"""tonic's data sets and transforms, there and back."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tbnn.data.augment import sample_rng
from tbnn.data.events import Events, check_events
from tbnn.data.tonic import from_tonic, numpy_seeded, to_tonic, tonic_recordings, transformed

SENSOR = (2, 34, 34)
SIZE = (34, 34, 2)  # tonic's order


def recording(seed: int, count: int = 300, until: int = 300_000) -> Events:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 34, (2, count), np.uint8)
    return Events(x, y, np.sort(rng.integers(0, until, count)), rng.integers(0, 2, count, np.uint8))


def equal(a: Events, b: Events) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("x", "y", "t", "p"))


def write_nmnist(path: Path, events: Events) -> None:
    """40 bits an event: x, y, polarity and 23 bits of time, most significant first (Orchard et al. 2015)."""
    octets = np.stack([events.x, events.y, events.p << 7 | events.t >> 16, events.t >> 8 & 255, events.t & 255], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(octets.astype(np.uint8).tobytes())


@pytest.fixture
def nmnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """tonic's N-MNIST with two recordings of three digits, and no download."""
    datasets = pytest.importorskip("tonic.datasets")
    monkeypatch.setattr(datasets.NMNIST, "_check_exists", lambda _self: True)
    for digit in (0, 3, 7):
        for i in range(2):
            write_nmnist(tmp_path / f"NMNIST/Train/{digit}/{i:05}.bin", recording(10 * digit + i))
    return lambda **options: datasets.NMNIST(str(tmp_path), train=True, **options)


def test_round_trip() -> None:
    events = recording(1)
    array = to_tonic(events)
    assert array.dtype.names == ("x", "y", "t", "p")
    assert equal(from_tonic(array), events)
    array["x"] = 0
    assert events.x.any()


def test_fields_may_come_in_any_order_and_type() -> None:
    array = np.array(
        [(1.9, True, 3, 5), (2.0, False, 4, 6)], [("t", np.float64), ("p", bool), ("y", np.int16), ("x", np.int8)]
    )
    expected = Events(np.array([5, 6]), np.array([3, 4]), np.array([1, 2]), np.array([1, 0]))
    assert equal(from_tonic(array), expected)
    assert equal(from_tonic(array[:, None]), expected)
    audio = np.array([(10, 699, 1), (11, 0, 1)], [("t", int), ("x", int), ("p", int)])
    heard = Events(np.array([699, 0]), np.zeros(2, int), np.array([10, 11]), np.array([0, 0]))
    assert equal(from_tonic(audio, channels=1), heard)
    assert from_tonic(audio).p.tolist() == [1, 1]
    signed = np.array([(0, 0, -1), (1, 0, 1)], [("t", int), ("x", int), ("p", np.int8)])
    assert from_tonic(signed).p.tolist() == [0, 1]
    assert equal(from_tonic(audio[["t", "x"]]), heard)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)), r"file: expected a structured array \(E,\) with fields x and t, got float64 \(3, 4\)"),
        (np.zeros(3, [("x", int), ("y", int)]), r"file: expected a structured array .* got fields x, y \(3,\)"),
        (np.zeros(3, [("x", float), ("t", int)]), "file: x: expected whole numbers, got float64"),
        (np.array([(0, 3), (0, 2)], [("x", int), ("t", int)]), "file: event 1: expected times in order, got 2 after 3"),
        (np.array([(0, np.nan)], [("x", int), ("t", float)]), "file: expected finite times, got nan"),
    ],
)
def test_other_arrays_are_refused(array: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_tonic(array, "file")


def test_tonic_reads_what_was_written(nmnist: Any) -> None:
    recordings = tonic_recordings(nmnist(), name="nmnist")
    assert recordings.labels.tolist() == [0, 0, 3, 3, 7, 7]
    assert recordings.index.tolist() == list(range(6))
    assert recordings.names[5] == "nmnist/5"
    for i, seed in enumerate((0, 1, 30, 31, 70, 71)):
        events = recordings.read(i)
        check_events(events, SENSOR, "nmnist")
        assert equal(events, recording(seed))
    assert equal(recordings.take(np.array([4])).read(0), recording(70))


def test_labels_come_from_the_items_where_targets_are_not_what_they_give(nmnist: Any) -> None:
    assert tonic_recordings(nmnist(target_transform=lambda t: 9 - t)).labels.tolist() == [9, 9, 6, 6, 2, 2]
    items = [(to_tonic(recording(i)), target) for i, target in enumerate(("b", "a", b"b", np.int64(0)))]
    assert tonic_recordings(items, ["a", "b"]).labels.tolist() == [1, 0, 1, 0]
    assert equal(tonic_recordings(items, ["a", "b"]).read(2), recording(2))


@pytest.mark.parametrize(
    ("target", "classes", "message"),
    [
        ("c", ["a", "b"], "mine/0: expected a target that is a number or one of classes, got 'c' and the classes a, b"),
        ("c", None, "mine/0: expected .* got 'c' and no classes"),
        (2, ["a", "b"], r"mine/0: expected a target that is a whole number in 0\.\.1, got 2"),
        (-1, None, "mine/0: expected a target that is a whole number of 0 or more, got -1"),
        (0.5, None, "mine/0: expected a target that is a whole number of 0 or more, got 0.5"),
        ([1, 2], None, "mine/0: expected a target that is a whole number"),
    ],
)
def test_targets_that_are_no_labels_are_refused(target: object, classes: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tonic_recordings([(to_tonic(recording(0)), target)], classes, "mine")


def test_empty_data_sets_and_damaged_recordings_are_refused() -> None:
    with pytest.raises(ValueError, match="mine: expected at least one recording, got none"):
        tonic_recordings([], name="mine")
    with pytest.raises(ValueError, match="list/0: event 1: expected times in order"):
        tonic_recordings([(to_tonic(recording(0))[::-1], 0)]).read(0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DropEvent", {"p": 0.3}),
        ("DropEventByTime", {"duration_ratio": 0.3}),
        ("DropEventByArea", {"sensor_size": SIZE, "area_ratio": 0.3}),
        ("TimeJitter", {"std": 2000.0}),
        ("TimeSkew", {"coefficient": (0.5, 1.5), "offset": (0, 9)}),
        ("SpatialJitter", {"sensor_size": SIZE, "clip_outliers": True}),
        ("UniformNoise", {"sensor_size": SIZE, "n": 40}),
        ("RandomTimeReversal", {"p": 0.5}),
        ("RandomFlipLR", {"sensor_size": SIZE}),
        ("RandomFlipPolarity", {}),
        ("EventDrop", {"sensor_size": SIZE}),
    ],
)
def test_random_transforms_give_valid_recordings_and_repeat_themselves(name: str, options: dict[str, Any]) -> None:
    transform = getattr(pytest.importorskip("tonic.transforms"), name)(**options)
    events, before = recording(1), to_tonic(recording(1))
    runs = [transformed(events, transform, SENSOR, sample_rng(0, epoch, 5)) for epoch in (*range(16), *range(16))]
    for run in runs:
        check_events(run, SENSOR, name)
    assert all(equal(a, b) for a, b in zip(runs[:16], runs[16:], strict=True))
    assert any(not equal(run, runs[0]) for run in runs[:16])
    assert np.array_equal(to_tonic(events), before)


def test_transforms_do_what_they_say() -> None:
    transforms = pytest.importorskip("tonic.transforms")
    events = recording(2)
    dropped = transformed(events, transforms.DropEvent(p=0.25), SENSOR)
    assert len(dropped) == 225
    assert not transformed(events, transforms.MergePolarities(), SENSOR).p.any()
    cropped = transformed(events, transforms.CenterCrop(SIZE, (20, 10)), (2, 10, 20))
    inside = (events.x >= 7) & (events.x < 27) & (events.y >= 12) & (events.y < 22)
    assert np.array_equal(cropped.t, events.t[inside])
    half = transformed(events, transforms.Downsample(time_factor=0.001, spatial_factor=0.5), (2, 17, 17))
    assert np.array_equal(half.x, events.x // 2)
    assert np.array_equal(half.t, events.t // 1000)
    composed = transforms.Compose([transforms.RefractoryPeriod(delta=100), transforms.Denoise(filter_time=50_000)])
    assert 0 < len(transformed(events, composed, SENSOR)) < len(events)


def test_results_that_are_no_recordings_are_refused() -> None:
    transforms = pytest.importorskip("tonic.transforms")
    events = recording(2)
    with pytest.raises(ValueError, match="Denoise: expected at least one event, got an empty recording"):
        transformed(events, transforms.Denoise(filter_time=0), SENSOR)
    with pytest.raises(ValueError, match="ToFrame: expected a structured array"):
        transformed(events, transforms.ToFrame(SIZE, n_time_bins=3), SENSOR)
    with pytest.raises(ValueError, match=r"UniformNoise: event \d+: expected x in 0\.\.8"):
        transformed(events, transforms.UniformNoise(SIZE, n=20), (2, 34, 9), sample_rng(0, 0, 0))


def test_the_global_generator_is_put_back() -> None:
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    with numpy_seeded(sample_rng(0, 0, 1)):
        inside = np.random.random()  # noqa: NPY002
    with pytest.raises(ZeroDivisionError), numpy_seeded(sample_rng(0, 0, 2)):
        np.random.random(1 // 0)  # noqa: NPY002
    assert np.array_equal(np.random.random(3), expected)  # noqa: NPY002
    with numpy_seeded(sample_rng(0, 0, 1)):
        assert np.random.random() == inside  # noqa: NPY002
