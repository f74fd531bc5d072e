"""Truncated and altered files: an error that names the file, or data that fit the recipe; nothing else."""

import gzip

import h5py
import numpy as np
import pytest
from write_sources import a_recipe, random_events, write_events_hdf5, write_idx, write_ntidigits, write_spikes

from tbnn.data.events import check_events
from tbnn.data.recipe import Layout
from tbnn.data.sources import guard, open_source


def small_events(path):
    rng = np.random.default_rng(0)
    recordings = [random_events(rng, (2, 3, 7), 9) for _ in range(6)]
    write_events_hdf5(path, {"train": (recordings, [0, 1] * 3)}, chunks=(16,), compression="gzip")
    return a_recipe("events-hdf5", (2, 3, 7), ("a", "b"), Layout(train=path.name))


def small_spikes(path):
    rng = np.random.default_rng(0)
    trains = [(np.sort(rng.random(9)), rng.integers(0, 700, 9)) for _ in range(4)]
    write_spikes(path, trains, [0, 1, 0, 1], ["a", "b"], [1, 2, 1, 2])
    return a_recipe("spikes-hdf5", (1, 1, 700), ("a", "b"), Layout(train=path.name))


def small_ntidigits(path):
    rng = np.random.default_rng(0)
    names = ["man-ae-a-1", "man-ae-a-2", "woman-b-a-1", "woman-b-a-12"]
    write_ntidigits(path, {"train": {n: (np.sort(rng.random(9)), rng.integers(0, 64, 9)) for n in names}})
    return a_recipe("ntidigits-hdf5", (1, 1, 64), ("1", "2"), Layout(train=path.name))


def small_idx(path):
    rng = np.random.default_rng(0)
    write_idx(path, rng.integers(0, 256, (3, 28, 28)).astype(np.uint8))
    write_idx(path.with_name("labels-idx1"), np.array([0, 1, 2], np.uint8))
    return a_recipe("smnist", (1, 1, 99), ("a", "b", "c"), Layout(train=path.name))


def small_gzip(path):
    recipe = small_idx(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    return recipe


def damaged(data, rng):
    """A copy cut short, or with one to eight bits or bytes changed, mostly near the start.

    Files with ragged arrays (their heaps start with "GCOL") are only cut: where lengths or places in them are altered,
    HDF5 2.0.0 itself may crash or loop for ever.
    """
    if b"GCOL" in data or rng.random() < 0.25:
        return data[: rng.integers(len(data))]
    out = bytearray(data)
    reach = len(out) if rng.random() < 0.5 else min(len(out), 3000)
    for at in rng.integers(0, reach, rng.integers(1, 9)):
        out[at] = rng.choice([out[at] ^ (1 << rng.integers(8)), 0, 255, rng.integers(256)])
    return bytes(out)


def problem_of(recipe, folder):
    """What reading everything complains of; "" when the data that come fit the recipe."""
    try:
        train = open_source(recipe, folder)["train"]
        assert len(train.labels) == len(train.index) == len(train.names)
        assert train.labels.min() >= 0
        assert train.labels.max() < len(recipe.classes)
        for i in range(min(len(train), 10)):
            check_events(train.read(i), recipe.sensor, "a recording that was let through")
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("write", [small_events, small_spikes, small_ntidigits, small_idx, small_gzip])
def test_damaged_copies(tmp_path, write):
    path = tmp_path / "images-idx3"
    recipe = write(path)
    data = path.read_bytes()
    assert problem_of(recipe, tmp_path) == ""
    rng = np.random.default_rng(5)
    problems = []
    guarded = recipe.format in ("spikes-hdf5", "ntidigits-hdf5")  # read in a process of its own each time
    for _ in range(40 if guarded else 120):
        path.write_bytes(damaged(data, rng))
        problems.append(problem_of(recipe, tmp_path))
    refused = [problem for problem in problems if problem]
    assert len(refused) > len(problems) // 6
    assert all(problem.startswith(str(tmp_path)) for problem in refused)


def test_a_file_that_would_hang_or_crash_hdf5_is_refused(tmp_path, monkeypatch):
    """The size of the third array in the heap, 512 bytes too large: HDF5 2.0.0 loops for ever."""
    monkeypatch.setattr(guard, "SECONDS", 2.0)
    path = tmp_path / "spikes.h5"
    recipe = small_spikes(path)
    data = bytearray(path.read_bytes())
    heap = data.find(b"GCOL")
    assert int.from_bytes(data[heap + 104 : heap + 112], "little") == 18  # 9 times of 2 bytes
    data[heap + 105] = 2
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^{path}: expected a whole HDF5 file, got one that "):
        open_source(recipe, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("write", [small_spikes, small_ntidigits])
def test_altered_ragged_files(tmp_path, monkeypatch, write):
    monkeypatch.setattr(guard, "SECONDS", 2.0)
    path = tmp_path / "images-idx3"
    recipe = write(path)
    data = path.read_bytes()
    heap = data.find(b"GCOL")
    rng = np.random.default_rng(3)
    for _ in range(150):
        out = bytearray(data)
        for at in (rng.integers(len(out)), max(heap, 0) + rng.integers(300)):
            out[at] = rng.choice([0, 255, out[at] ^ (1 << rng.integers(8))])
        path.write_bytes(out)
        problem = problem_of(recipe, tmp_path)
        assert not problem or problem.startswith(str(tmp_path))


def test_a_small_file_that_claims_a_terabyte_is_refused(tmp_path):
    path = tmp_path / "events.h5"
    recipe = small_events(path)
    with h5py.File(path, "r+") as file:
        for name in ("labels", "x"):
            del file[f"train/{name}"]
            file["train"].create_dataset(name, (1 << 40,), np.uint8, chunks=(1 << 16,), compression="gzip")
    with pytest.raises(ValueError, match=rf"^{path}: /train/\w+: expected at most [\d,]+ bytes in a file of this size"):
        open_source(recipe, tmp_path)
