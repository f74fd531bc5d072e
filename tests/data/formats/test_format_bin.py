"""N-MNIST's records: the writer's events back, tonic's reader on the same files, and real recordings."""

from pathlib import Path
from typing import cast

import h5py
import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from write_formats import bin_file, random_events

from tbnn.data.events import Events
from tbnn.data.formats import read_file

TONIC = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bin") / "a.bin"


def assert_same(got: Events, expected: Events) -> None:
    for name in "xytp":
        npt.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


def assert_as_tonic(path: Path) -> None:
    theirs = pytest.importorskip("tonic.io").read_mnist_file(str(path), TONIC)
    ours = read_file(path, "bin")
    assert_same(ours, Events(theirs["x"], theirs["y"], theirs["t"], theirs["p"]))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 80), duration=st.sampled_from([1, 300_000, 1 << 23]))
def test_written_events_come_back(path: Path, seed: int, n: int, duration: int) -> None:
    events = random_events(np.random.default_rng(seed), n, 240, 180, duration)
    path.write_bytes(bin_file(events))
    assert_same(read_file(path, "bin"), events)
    assert_as_tonic(path)


@given(seed=st.integers(0, 2**32 - 1), start=st.integers(8_380_000, 8_500_000))
def test_the_clock_goes_on_after_overflows(path: Path, seed: int, start: int) -> None:
    """Recordings that pass 2**23 us have overflow records, which are no events."""
    events = random_events(np.random.default_rng(seed), 40, 240, 180, 60_000, start)
    path.write_bytes(bin_file(events))
    assert_same(read_file(path, "bin"), events)
    assert_as_tonic(path)


def test_a_file_of_overflows_is_read_at_once(path: Path) -> None:
    """200,000 overflow records, each of which a loop would add to all the times after it."""
    path.write_bytes(bytes([0, 240, 0, 0, 0]) * 200_000 + bytes([3, 4, 128, 0, 9]))
    events = read_file(path, "bin")
    assert (events.t.tolist(), events.p.tolist()) == ([200_000 * 8192 + 9], [1])


def test_record_by_hand(path: Path) -> None:
    path.write_bytes(bytes([5, 7, 0x81, 0x02, 0x03]) + bytes([6, 8, 0x01, 0x02, 0x04]))
    events = read_file(path, "bin")
    assert events.x.tolist() == [5, 6]
    assert events.y.tolist() == [7, 8]
    assert events.p.tolist() == [1, 0]
    assert events.t.tolist() == [0x010203, 0x010204]


def test_real_recordings(path: Path, shared_data: Path) -> None:
    with h5py.File(shared_data / "nmnist_small/nmnist_small.h5") as file:
        group = cast(h5py.Group, file["test"])
        offsets = np.asarray(group["offsets"])
        for i in range(0, 100, 9):
            part = slice(int(offsets[i]), int(offsets[i + 1]))
            x, y, p, t = (np.asarray(group[name])[part] for name in "xypt")
            records = np.stack([x, y, p << 7 | (t >> 16).astype(np.uint8), t >> 8 & 255, t & 255], axis=1)
            path.write_bytes(records.astype(np.uint8).tobytes())
            assert_same(read_file(path, "bin"), Events(x, y, t, p))
            assert_as_tonic(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "one or more records of 5 bytes from byte 0 on, got 0 bytes"),
        (bytes(12), "got 12 bytes .2 whole records and 2 bytes."),
        (bytes([0, 240, 0, 0, 0]), "expected at least one event, got none"),
        (bytes([1, 1, 127, 0, 0]) + bytes(5), "event 1: expected times in order, or at most 65536 us back, got 0 us"),
    ],
)
def test_damage(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_file(path, "bin")
    assert str(error.value).startswith(f"{path}: ")
