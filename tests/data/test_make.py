"""From sources to packed files, the real ones included."""

import hashlib
import os
import re
from functools import partial

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbnn.bits import unpack_bits_numpy
from tbnn.data import PackedFrames, load_recipe, make, read_info
from tbnn.data.recipe import Split, recipe_hash
from tbnn.data.recordings import Recordings
from tbnn.data.split import hold_out


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
    assert sorted(p.name for p in path.parent.iterdir()) == [f".{path.name}.lock", path.name]


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
    nowhere = tmp_path / "nowhere"
    for source, looked in ((None, tmp_path / "cache" / "sources" / "tiny"), (nowhere, nowhere)):
        with pytest.raises(FileNotFoundError) as error:
            make(toml, source=source, cache=tmp_path / "cache")
        message = str(error.value)
        assert message.startswith(f"tiny: expected tiny.h5, looked in {looked}, found no such file. By hand: get")
        assert f"put it at {looked / 'tiny.h5'}, or name the folder that holds tiny.h5 with --source FOLDER" in message
        assert not (tmp_path / "cache").exists()


def test_checksum(events_source, tmp_path):
    toml, folder = events_source
    right = hashlib.sha256((folder / "tiny.h5").read_bytes()).hexdigest()
    toml.write_text(toml.read_text().replace('path = "tiny.h5"', f'path = "tiny.h5"\nsha256 = "{right}"'))
    path = make(toml, source=folder, cache=tmp_path / "cache")
    with h5py.File(folder / "tiny.h5", "r+") as file:
        file["train/x"][0] ^= 1
    with pytest.raises(ValueError, match=f"expected the SHA-256 {right} of the recipe tiny, got [0-9a-f]{{64}}"):
        make(toml, source=folder, cache=tmp_path / "cache", force=True)
    assert read_info(path).name == "tiny"
    assert make(toml, source=folder, cache=tmp_path / "cache") == path  # the cache is of the pinned content


def test_recordings_without_a_checksum_are_watched(events_source, tmp_path, caplog):
    toml, folder = events_source
    path = make(toml, source=folder, cache=tmp_path / "cache")
    before = path.read_bytes()
    with h5py.File(folder / "tiny.h5", "r+") as file:
        file["train/x"][0] = (file["train/x"][0] + 1) % 7
    os.utime(folder / "tiny.h5", ns=(1, 1))
    with caplog.at_level("INFO", logger="tbnn"):
        assert make(toml, source=folder, cache=tmp_path / "cache") == path
    assert "the recordings have changed; it is made again" in caplog.text
    assert path.read_bytes() != before
    inode = path.stat().st_ino
    make(toml, source=folder, cache=tmp_path / "cache")
    assert path.stat().st_ino == inode


def test_other_frames_are_another_file(events_source, tmp_path):
    toml, folder = events_source
    make_it = partial(make, toml, source=folder, cache=tmp_path / "cache")
    plain, binned, small = make_it(), make_it(bins=3), make_it(bins=3, size=(1, 2))
    assert len({plain, binned, small, make_it(bins=3, planes=2)}) == 4
    assert read_info(plain).steps == 5
    assert (read_info(binned).steps, read_info(binned).bin_width) == (3, 0)
    assert read_info(small).sensor == (2, 1, 2)
    assert make_it(bins=None) == plain
    with pytest.raises(ValueError, match=r"tiny: size: expected at most the sensor's \(3, 7\), got \(4, 4\)"):
        make_it(size=4)
    with pytest.raises(
        ValueError, match="tiny: bin_width, bins, count: expected exactly one of them, got bin_width, bins"
    ):
        make_it(bins=3, bin_width=50)
    with pytest.raises(TypeError, match="bin: unknown setting; expected one of at_least, bin_width, bins"):
        make_it(bin=3)


def test_a_file_of_an_older_schema_is_made_again_and_said_so(events_source, tmp_path, caplog):
    toml, folder = events_source
    path = make(toml, source=folder, cache=tmp_path / "cache")
    content = path.read_bytes()
    old = path.with_name("tiny-0123456789ab.h5")
    path.replace(old)
    with h5py.File(old, "r+") as file:
        file.attrs["schema"] = 1
    with caplog.at_level("INFO", logger="tbnn"):
        assert make(toml, source=folder, cache=tmp_path / "cache").read_bytes() == content
    assert f"{old} cannot be used with schema 2; {path.name} is made (expected schema 2, got 1" in caplog.text


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


def some(labels, groups=None):
    names = [f"recording {i}" for i in range(len(labels))]
    return Recordings(np.array(labels), np.arange(len(labels)), names, lambda i: None, groups)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.integers(0, 4), min_size=4, max_size=60),
    st.floats(0.15, 0.85),
    st.integers(0, 5),
    st.sampled_from(["random", "hash"]),
)
def test_hold_out_is_stratified(labels, fraction, seed, rule):
    labels, split = np.array(labels), Split(validation=0.5, seed=seed, rule=rule)
    held, again = (hold_out(some(labels), fraction, split, np.random.default_rng(seed), "x") for _ in range(2))
    assert held.sum() == round(fraction * len(labels))
    for label in range(5):
        assert abs(held[labels == label].sum() - fraction * (labels == label).sum()) < 1
    np.testing.assert_array_equal(held, again)


def test_a_hash_split_is_the_same_for_ever():
    """Computed by hand with sha256sum: which of "1/recording 0" ... "1/recording 7" come first."""
    digests = [hashlib.sha256(f"1/recording {i}".encode()).hexdigest() for i in range(8)]
    split = Split(validation=0.5, seed=1, rule="hash")
    held = hold_out(some([0] * 8), 0.25, split, np.random.default_rng(9), "x")
    assert set(np.flatnonzero(held)) == set(sorted(range(8), key=digests.__getitem__)[:2])
    other = hold_out(some([0] * 8), 0.25, Split(validation=0.5, seed=2, rule="hash"), np.random.default_rng(9), "x")
    assert not np.array_equal(held, other)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(0, 6), min_size=4, max_size=60), st.floats(0.05, 0.6), st.integers(0, 5))
def test_groups_are_held_out_whole(groups, fraction, seed):
    groups = np.array([0, 1, *groups])
    split = Split(validation=0.5, seed=seed, by_group=True)
    held = hold_out(some(np.zeros(len(groups), int), groups), fraction, split, np.random.default_rng(0), "x")
    assert held.any()
    assert not held.all()
    assert not set(groups[held]) & set(groups[~held])
    people = len(set(groups))
    assert len(set(groups[held])) == max(1, round(fraction * people))


def test_groups_that_nobody_knows():
    with pytest.raises(
        ValueError, match=r"x: split\.by_group: expected a source that names people or speakers, got none"
    ):
        hold_out(some([0, 1]), 0.5, Split(validation=0.5, seed=0, by_group=True), np.random.default_rng(0), "x")


def test_hold_out_draws_by_seed_and_refuses_nothing_and_all():
    split = Split(validation=0.5, seed=0)
    draws = {tuple(hold_out(some([0] * 40), 0.5, split, np.random.default_rng(seed), "x")) for seed in range(4)}
    assert len(draws) == 4
    for fraction in (0.01, 0.99):
        with pytest.raises(ValueError, match="x: split: expected some of 40 recordings held out, some left, got"):
            hold_out(some([0] * 40), fraction, split, np.random.default_rng(0), "x")


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


def test_a_dataset_is_downloaded_into_a_folder_of_its_own(events_source, tmp_path, monkeypatch):
    """With --source naming a folder for many datasets, with one naming this one, and without."""
    toml, folder = events_source
    toml.write_text(
        toml.read_text().replace('path = "tiny.h5"', 'path = "tiny.h5"\nurls = ["http://127.0.0.1:9/t.h5"]')
    )
    asked = []

    def download(_, part, __):
        asked.append(part.parent)
        part.write_bytes((folder / "tiny.h5").read_bytes())

    monkeypatch.setattr("tbnn.data.fetch._download", download)
    many, own, cache = tmp_path / "many", tmp_path / "own" / "tiny", tmp_path / "cache"
    paths = [make(toml, source=source, cache=cache, force=True) for source in (many, own, None)]
    assert asked == [many / "tiny", own, cache / "sources" / "tiny"]
    make(toml, source=many, cache=cache, force=True)
    make(toml, source=folder, cache=cache, force=True)  # it is there already
    assert len(asked) == 3
    assert len(set(paths)) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_nothing_is_written_into_a_folder_that_has_everything(events_source, tmp_path):
    toml, folder = events_source
    toml.write_text(
        toml.read_text().replace('path = "tiny.h5"', 'path = "tiny.h5"\nurls = ["http://127.0.0.1:9/t.h5"]')
    )
    before = sorted(folder.iterdir())
    make(toml, source=folder, cache=tmp_path / "cache")
    assert sorted(folder.iterdir()) == sorted([*before, tmp_path / "cache"])
