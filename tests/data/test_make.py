"""From sources to packed files, the real ones included."""

import hashlib
import re

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbnn.bits import unpack_bits_numpy
from tbnn.data import PackedFrames, load_recipe, make, read_info
from tbnn.data.make import hold_out
from tbnn.data.recipe import recipe_hash


def unpacked(split):
    return unpack_bits_numpy(split.frames, split.info.bits)


def naive_frames(group, start, end, shape, bin_width):
    frames = np.zeros(shape, np.uint8)
    columns = (group[name][start:end].tolist() for name in ("t", "p", "y", "x"))
    for t, p, y, x in zip(*columns, strict=True):
        frames[t // bin_width, p, y, x] = 1
    return frames


def test_events_source_becomes_naive_frames(events_source, tmp_path):
    toml, folder = events_source
    path = make(toml, source=folder, cache=tmp_path / "cache")
    assert path.name == f"tiny-{recipe_hash(load_recipe(toml))[:12]}.h5"
    splits = {name: PackedFrames(path, name) for name in ("train", "validation", "test")}
    assert read_info(path).splits == {"train": 9, "validation": 3, "test": 12}
    assert sorted([*splits["train"].index, *splits["validation"].index]) == list(range(12))
    assert splits["test"].index.tolist() == list(range(12))
    with h5py.File(folder / "tiny.h5") as file:
        for name, split in splits.items():
            group = file["test" if name == "test" else "train"]
            for bits, label, i in zip(unpacked(split), split.labels, split.index, strict=True):
                start, end = group["offsets"][i : i + 2]
                expected = naive_frames(group, start, end, (5, 2, 3, 7), 100)
                np.testing.assert_array_equal(bits, expected.reshape(5, -1))
                assert label == group["labels"][i]


def test_bits_source_is_stacked_without_loss(bits_source, tmp_path):
    toml, folder = bits_source
    path = make(toml, source=folder, cache=tmp_path / "cache")
    with h5py.File(folder / "bits.h5") as file:
        for name in ("train", "validation", "test"):
            split = PackedFrames(path, name)
            spikes = file["test" if name == "test" else "train"]["spikes"][()][split.index]
            bits = unpacked(split)
            for step in range(12):
                np.testing.assert_array_equal(bits[:, step // 3, step % 3 * 5 : step % 3 * 5 + 5], spikes[:, step])


def test_made_once(events_source, tmp_path):
    toml, folder = events_source
    path = make(toml, source=folder, cache=tmp_path / "cache")
    made = path.stat()
    assert make(toml, cache=tmp_path / "cache") == path
    assert make(toml, source=tmp_path / "nowhere", cache=tmp_path / "cache") == path
    assert path.stat().st_ino == made.st_ino
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    make(toml, source=folder, cache=tmp_path / "cache")
    assert path.read_bytes() == content
    inode = path.stat().st_ino
    make(toml, source=folder, cache=tmp_path / "cache", force=True)
    assert path.stat().st_ino != inode
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_another_recipe_is_another_file(events_source, tmp_path):
    toml, folder = events_source
    first = make(toml, source=folder, cache=tmp_path / "cache")
    toml.write_text(toml.read_text().replace("seed = 3", "seed = 4"))
    second = make(toml, source=folder, cache=tmp_path / "cache")
    assert first != second
    assert read_info(first).recipe_hash != read_info(second).recipe_hash


def test_default_cache_is_the_users(events_source, tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "user" / name))
    toml, folder = events_source
    assert make(toml, source=folder).parent == tmp_path / "user" / "tbnn"


def test_missing_source_says_which_where_and_how(events_source, tmp_path):
    toml, _ = events_source
    with pytest.raises(
        FileNotFoundError, match=r"tiny: expected the recordings tiny\.h5, got no source.*--source FOLDER"
    ):
        make(toml, cache=tmp_path / "cache")
    nowhere = tmp_path / "nowhere"
    with pytest.raises(
        FileNotFoundError, match=rf"looked for tiny\.h5 in {re.escape(str(nowhere))}, .*--source FOLDER"
    ):
        make(toml, source=nowhere, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_checksum(events_source, tmp_path):
    toml, folder = events_source
    right = hashlib.sha256((folder / "tiny.h5").read_bytes()).hexdigest()
    toml.write_text(toml.read_text().replace('file = "tiny.h5"', f'file = "tiny.h5"\nsha256 = "{right}"'))
    path = make(toml, source=folder, cache=tmp_path / "cache")
    with h5py.File(folder / "tiny.h5", "r+") as file:
        file["train/x"][0] ^= 1
    with pytest.raises(ValueError, match=f"expected the SHA-256 {right} of the recipe tiny, got [0-9a-f]{{64}}"):
        make(toml, source=folder, cache=tmp_path / "cache", force=True)
    assert read_info(path).name == "tiny"


def write(name, index, value):
    def edit(file):
        file[name][index] = value

    return edit


def swap(name, value):
    def edit(file):
        del file[name]
        file[name] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.__delitem__("test"), "expected a group 'test', got none (the file has: train)"),
        (
            lambda f: f.__delitem__("train/p"),
            "/train/p: expected a dataset, got none (the group has: labels, offsets, t",
        ),
        (swap("train", np.arange(3)), "expected a group 'train', got a dataset"),
        (swap("train/x", np.zeros(9)), "/train/x: expected integers with 1 axes, got float64 (9,)"),
        (swap("train/x", np.zeros(9, np.uint8)), "/train: expected x, y, t and p of one length, got x 9, y "),
        (swap("train/offsets", np.zeros(4, int)), "/train/offsets: expected 13 entries, one more than labels, got 4"),
        (write("train/offsets", 0, 1), "/train/offsets: expected 0 to "),
        (write("train/offsets", -1, 9999), "got 0 to 9999"),
        (write("train/offsets", 3, 9999), "/train/offsets: expected rising values, got "),
        (
            lambda f: f["train/offsets"].__setitem__(2, f["train/offsets"][1]),
            "/train: record 1: expected at least one event",
        ),
        (write("train/labels", 5, 2), "/train/labels: expected 0..1, got 2 for record 5"),
        (swap("train/labels", np.zeros(0, int)), "/train/labels: expected at least one recording, got none"),
        (
            lambda f: f["train"].create_dataset("orig_index", data=np.arange(4)),
            "/train/orig_index: expected 12 entries, one a label, got 4",
        ),
        (write("test/x", 0, 7), "/test: record 0: event 0: expected x in 0..6, got 7"),
        (write("test/t", 0, 501), "/test: record 0: event 1: expected times in order, got "),
    ],
)
def test_damaged_events_source_is_named(events_source, tmp_path, edit, message):
    toml, folder = events_source
    with h5py.File(folder / "tiny.h5", "r+") as file:
        edit(file)
    with pytest.raises(ValueError, match="^" + re.escape(f"{folder / 'tiny.h5'}: ") + ".*" + re.escape(message)):
        make(toml, source=folder, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (write("train/spikes", (4, 7, 2), 2), "/train/spikes: record 4, step 7, channel 2: expected 0 or 1, got 2"),
        (swap("train/spikes", np.zeros((12, 11, 5), np.uint8)), "/train/spikes: expected (12, 12, 5), that is"),
        (
            swap("test/spikes", np.zeros((12, 12), np.uint8)),
            "/test/spikes: expected integers with 3 axes, got uint8 (12, 12)",
        ),
        (write("test/labels", 0, 3), "/test/labels: expected 0..2, got 3 for record 0"),
    ],
)
def test_damaged_bits_source_is_named(bits_source, tmp_path, edit, message):
    toml, folder = bits_source
    with h5py.File(folder / "bits.h5", "r+") as file:
        edit(file)
    with pytest.raises(ValueError, match="^" + re.escape(f"{folder / 'bits.h5'}: {message}")):
        make(toml, source=folder, cache=tmp_path / "cache")


def test_truncated_source_is_named(events_source, tmp_path):
    toml, folder = events_source
    source = folder / "tiny.h5"
    whole = source.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        source.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(f"{source}: expected a whole HDF5 file")):
            make(toml, source=folder, cache=tmp_path / "cache")


def test_original_numbers_are_kept(events_source, tmp_path):
    toml, folder = events_source
    with h5py.File(folder / "tiny.h5", "r+") as file:
        file["test"]["orig_index"] = np.arange(60_000, 60_012, dtype=np.int32)
    path = make(toml, source=folder, cache=tmp_path / "cache")
    assert PackedFrames(path, "test").index.tolist() == list(range(60_000, 60_012))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=4, max_size=60), st.floats(0.15, 0.85), st.integers(0, 5))
def test_hold_out_is_stratified(labels, fraction, seed):
    labels = np.array(labels)
    held = hold_out(labels, fraction, np.random.default_rng(seed))
    assert held.sum() == round(fraction * len(labels))
    for label in range(5):
        assert abs(held[labels == label].sum() - fraction * (labels == label).sum()) < 1
    np.testing.assert_array_equal(held, hold_out(labels, fraction, np.random.default_rng(seed)))


def test_hold_out_draws_by_seed_and_refuses_nothing_and_all():
    labels = np.zeros(40, np.int64)
    draws = {tuple(hold_out(labels, 0.5, np.random.default_rng(seed))) for seed in range(4)}
    assert len(draws) == 4
    for fraction in (0.01, 0.99):
        with pytest.raises(ValueError, match="expected some of 40 recordings held out, some left, got"):
            hold_out(labels, fraction, np.random.default_rng(0))


def test_real_nmnist_equals_naive_frames(shared_data, tmp_path):
    path = make("nmnist_small", source=shared_data, cache=tmp_path)
    info = read_info(path)
    assert info.splits == {"train": 810, "validation": 90, "test": 100}
    train, validation = PackedFrames(path, "train"), PackedFrames(path, "validation")
    with h5py.File(shared_data / "nmnist_small/nmnist_small.h5") as file:
        for split, name in ((train, "train"), (PackedFrames(path, "test"), "test")):
            group, numbers = file[name], file[name]["orig_index"][()]
            for i in (0, 17, len(split) - 1):
                record = int(np.flatnonzero(numbers == split.index[i])[0])
                start, end = group["offsets"][record : record + 2]
                expected = naive_frames(group, start, end, (20, 2, 34, 34), 16_000)
                np.testing.assert_array_equal(unpack_bits_numpy(split.frames[i], 2312), expected.reshape(20, -1))
                assert split.labels[i] == group["labels"][record]
        together = np.concatenate([train.index, validation.index])
        np.testing.assert_array_equal(np.sort(together), np.sort(file["train/orig_index"][()]))
    shares = np.bincount(validation.labels) / np.bincount(np.concatenate([train.labels, validation.labels]))
    assert np.all(np.abs(shares - 0.1) < 0.015)


def test_real_braille_keeps_every_spike(shared_data, tmp_path):
    path = make("braille7", source=shared_data, cache=tmp_path)
    assert read_info(path).splits == {"train": 699, "validation": 123, "test": 140}
    with h5py.File(shared_data / "braille7/braille7.h5") as file:
        for name in ("train", "validation", "test"):
            split = PackedFrames(path, name)
            source = file["test" if name == "test" else "train"]
            np.testing.assert_array_equal(
                unpacked(split).reshape(len(split), 256, 12), source["spikes"][()][split.index]
            )
            np.testing.assert_array_equal(split.labels, source["labels"][()][split.index])
