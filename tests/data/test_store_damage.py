"""Damaged, foreign and wrong packed files: each is named, none is taken for data."""

import re
import shutil
import zlib

import h5py
import numpy as np
import pytest
from random_splits import random_splits

from tbnn.data import PackedFrames, read_info, store
from tbnn.data.store import PackedSplit, write_store


def test_truncated_at_any_length(packed):
    whole = packed.read_bytes()
    cut = packed.with_name("cut.h5")
    for length in sorted({0, 1, 7, 8, 100, len(whole) - 1, *range(512, len(whole), 997)}):
        cut.write_bytes(whole[:length])
        for read in (read_info, lambda path: PackedFrames(path, "train")):
            with pytest.raises(ValueError, match=re.escape(f"{cut}: expected a whole HDF5 file, got one that cannot")):
                read(cut)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_flipped_bits_never_pass_as_other_data(tmp_path, recipe, compression):
    """Each flip is found, or it lies in a part of the file that does not matter to this split."""
    packed, flipped = tmp_path / "whole.h5", tmp_path / "flipped.h5"
    write_store(packed, recipe, random_splits(recipe)[1], compression=compression)
    whole = packed.read_bytes()
    assert whole[8] >= 2  # the superblock's version: from 2 on, names and shapes carry checksums
    original = PackedFrames(packed, "train")
    rng = np.random.default_rng(0)
    messages = []
    for position in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        flipped.write_bytes(damaged)
        try:
            read = PackedFrames(flipped, "train")
            frames = read.batch(range(7))
        except ValueError as error:
            messages.append(str(error))
        else:
            np.testing.assert_array_equal(frames, original.frames)
            for name in ("labels", "index", "lengths", "events", "durations"):
                np.testing.assert_array_equal(getattr(read, name), getattr(original, name))
            assert read.info == original.info
    assert len(messages) > 20
    assert all(message.startswith(str(flipped)) for message in messages)


def test_a_flip_in_a_mapped_frame_is_found_at_that_recording_only(packed):
    data = PackedFrames(packed, "train")
    content = bytearray(packed.read_bytes())
    place = content.find(data.frames[3].tobytes())
    content[place + 5] ^= 4
    packed.write_bytes(content)
    damaged = PackedFrames(packed, "train")
    damaged.batch([0, 1, 2, 4, 5, 6])
    with pytest.raises(ValueError, match=re.escape(f"{packed}: train: recording 3: expected frames of CRC-32 ")):
        damaged[3]
    with pytest.raises(ValueError, match="recording 3"):
        damaged.check()


def test_gzip_and_mapped_files_hold_the_same(packed, recipe, tmp_path):
    write_store(tmp_path / "small.h5", recipe, random_splits(recipe)[1], compression="gzip")
    mapped, small = PackedFrames(packed, "test"), PackedFrames(tmp_path / "small.h5", "test")
    assert isinstance(mapped.frames, np.memmap)
    assert not isinstance(small.frames, np.memmap)
    np.testing.assert_array_equal(mapped.frames, small.frames)
    for data in (mapped, small):
        assert [w.tolist() for w, _ in data] == [w.tolist() for w, _ in mapped]
    with pytest.raises(ValueError, match="compression: expected one of none, gzip, got 'lz4'"):
        write_store(tmp_path / "x.h5", recipe, random_splits(recipe)[1], compression="lz4")


def test_what_is_done_to_frames_never_reaches_the_file(packed):
    before = packed.read_bytes()
    data = PackedFrames(packed, "train")
    data.batch([0, 1])[:] = 7
    data.frames[:] = -1
    del data
    assert packed.read_bytes() == before


def test_a_copy_for_another_process_maps_the_file_anew(packed):
    data = PackedFrames(packed, "train")
    state = data.__getstate__()
    assert not any(isinstance(value, np.memmap) for value in state.values())
    twin = PackedFrames.__new__(PackedFrames)
    twin.__setstate__(state)
    np.testing.assert_array_equal(twin.frames, data.frames)
    assert isinstance(twin.frames, np.memmap)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(OSError, match=r"a\.h5: expected 0\.00 GB of free disk space for the frames, got 0\.00 GB"):
        write_store(tmp_path / "a.h5", recipe, random_splits(recipe)[1])
    assert not list(tmp_path.iterdir())


def test_missing_file_says_how_to_make_it(tmp_path):
    for read in (read_info, lambda path: PackedFrames(path, "train")):
        with pytest.raises(FileNotFoundError, match=r"no\.h5: no such packed file; make it with tbnn\.data\.make"):
            read(tmp_path / "no.h5")


def test_unknown_split(packed):
    with pytest.raises(ValueError, match="split: expected one of train, validation, test, got 'dev'"):
        PackedFrames(packed, "dev")


def test_foreign_files(tmp_path):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(
        ValueError, match=re.escape(f"{path}: expected a packed file (attribute format = 'tbnn-frames'), got")
    ):
        read_info(path)
    path.write_text("not HDF5 at all")
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected a whole HDF5 file")):
        read_info(path)


def set_attribute(key, value):
    def edit(file):
        file.attrs[key] = value

    return edit


def drop_attribute(key):
    return lambda file: file.attrs.__delitem__(key)


def replace(name, change):
    """Replace a dataset by a changed one."""

    def edit(file):
        data = file[name][()]
        del file[name]
        file[name] = change(data)

    return edit


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


def write_with_crc(split, recording, word):
    """Put a word at the end of a recording's frames, and the checksum that goes with it."""

    def edit(file):
        frames, crc = file[f"{split}/frames"][()], file[f"{split}/crc"][()]
        frames[recording, -1, -1] = word
        crc[recording] = zlib.crc32(frames[recording])
        for name, data in (("frames", frames), ("crc", crc)):
            del file[f"{split}/{name}"]
            file[f"{split}/{name}"] = data

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_attribute("schema", 99), "expected schema 2, got 99; make the file again"),
        (drop_attribute("schema"), "expected schema 2, got None"),
        (
            set_attribute("format", "other"),
            "expected a packed file (attribute format = 'tbnn-frames'), got format = 'other'",
        ),
        (drop_attribute("licence"), "attribute licence: expected text, got None"),
        (set_attribute("recipe_hash", 3), "attribute recipe_hash: expected text, got"),
        (set_attribute("bits", 43), "attribute bits: expected 42 for sensor (2, 3, 7), got 43"),
        (set_attribute("steps", 0), "attribute steps: expected 1 positive integers, got"),
        (
            set_attribute("steps", 6),
            "train/frames: expected int32 (7, 6, 2), by labels, steps and sensor, got int32 (7, 5, 2)",
        ),
        (set_attribute("sensor", [2, 3]), "attribute sensor: expected 3 positive integers, got array([2, 3])"),
        (
            set_attribute("classes", '["left", 3]'),
            "attribute classes: expected a JSON list of names, got '[\"left\", 3]'",
        ),
        (set_attribute("classes", '["left"'), "attribute classes: expected a JSON list of names"),
        (
            set_attribute("classes", '["left"]'),
            "attribute classes: expected ('left', 'right') as in recipe, got ('left',)",
        ),
        (set_attribute("time_unit", "u3"), "attribute time_unit: expected 'us' as in recipe, got 'u3'"),
        (set_attribute("recipe", "{}"), "attribute recipe_hash: expected "),
        (lambda f: f.__delitem__("validation"), "expected a group 'validation', got none (the file has: test, train)"),
        (
            lambda f: f.__delitem__("test/labels"),
            "/test/labels: expected a dataset, got none (the group has: crc, durations, events, frames, index, lengths)",
        ),
        (replace("train/labels", put(2, 2)), "train/labels: expected 0..1, got 2 at 2"),
        (replace("train/labels", put(3, -1)), "train/labels: expected 0..1, got -1 at 3"),
        (replace("train/labels", lambda a: a[:-1]), "train/frames: expected int32 (6, 5, 2), by labels"),
        (
            replace("train/labels", lambda a: a.astype(float)),
            "/train/labels: expected integers with 1 axes, got float64",
        ),
        (replace("test/index", lambda a: a[:-1]), "test/index: expected int64 (4,), got int64 (3,)"),
        (replace("train/frames", lambda a: a.astype(np.int64)), "train/frames: expected int32 (7, 5, 2), by labels"),
        (replace("train/frames", lambda a: a[..., :1]), "train/frames: expected int32 (7, 5, 2), by labels"),
        (replace("train/frames", put((6, 4, 1), 1 << 10)), "train: recording 6: expected frames of CRC-32 "),
        (
            write_with_crc("train", 6, 1 << 10),
            "train: recording 6: expected zeros past bit 42 of a frame, got ones",
        ),
        (write_with_crc("train", 0, -(1 << 31)), "train: recording 0: expected zeros past bit 42 of a frame"),
        (replace("train/lengths", put(2, 6)), "train/lengths: expected 1..5, got 6 at 2"),
        (replace("train/lengths", put(1, 0)), "train/lengths: expected 1..5, got 0 at 1"),
        (replace("train/crc", lambda a: a.astype(np.int64)), "train/crc: expected uint32 (7,), got int64 (7,)"),
    ],
)
def test_wrong_content_is_named(packed, tmp_path, edit, message):
    path = tmp_path / "edited.h5"
    shutil.copy(packed, path)
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}: {message}")):
        PackedFrames(path, "train").check()


@pytest.mark.parametrize(
    ("frames", "labels", "message"),
    [
        (np.zeros((7, 5, 2), np.int32), np.full(7, 2), "train/labels: expected 0..1, got 2 at 0"),
        (np.zeros((7, 4, 2), np.int32), np.zeros(7, int), "train: recording 0: expected int32 (5, 2)"),
        (np.full((7, 5, 2), -1, np.int32), np.zeros(7, int), "train: recording 0: expected zeros past bit 42"),
        (np.zeros((7, 5, 2), np.int64), np.zeros(7, int), "train: recording 0: expected int32 (5, 2)"),
        (np.zeros((0, 5, 2), np.int32), np.zeros(0, int), "train: expected at least one recording, got none"),
    ],
)
def test_wrong_arrays_are_not_written(tmp_path, recipe, frames, labels, message):
    splits = random_splits(recipe)[1]
    splits["train"] = PackedSplit.of(frames, labels)
    with pytest.raises(ValueError, match=re.escape(message)):
        write_store(tmp_path / "a.h5", recipe, splits)
    assert not list(tmp_path.iterdir())


def test_missing_split_is_not_written(tmp_path, recipe):
    splits = random_splits(recipe)[1]
    del splits["test"]
    with pytest.raises(ValueError, match="expected the splits train, validation, test, got train, validation"):
        write_store(tmp_path / "a.h5", recipe, splits)
