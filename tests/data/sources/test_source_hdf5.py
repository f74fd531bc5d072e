"""tbnn's own HDF5 files of recordings, read a recording at a time."""

import re

import h5py
import numpy as np
import pytest
from write_sources import a_recipe, assert_same, random_events, write_events_hdf5

from tbnn.bits import unpack_bits_numpy
from tbnn.data.frames.spec import FrameSpec
from tbnn.data.recipe import Layout
from tbnn.data.sources import hdf5 as source_hdf5
from tbnn.data.sources import open_source

SENSOR = (2, 3, 7)


def events_recipe(**more):
    return a_recipe("events-hdf5", SENSOR, ("left", "right"), Layout(train="tiny.h5", test="tiny.h5"), **more)


def write_tiny(path, seed=0):
    """12 recordings for training and 5 for test, 1 to 39 events each."""
    rng = np.random.default_rng(seed)
    groups = {}
    for name, count in (("train", 12), ("test", 5)):
        recordings = [random_events(rng, SENSOR, int(n)) for n in rng.integers(1, 40, count)]
        groups[name] = (recordings, [i % 2 for i in range(count)])
    write_events_hdf5(path, groups, chunks=(16,), compression="gzip")
    return groups


@pytest.mark.parametrize("run", [1, 50, 1 << 18])
def test_events_come_back_in_any_order_and_run_length(tmp_path, monkeypatch, run):
    monkeypatch.setattr(source_hdf5, "_RUN_EVENTS", run)
    groups = write_tiny(tmp_path / "tiny.h5")
    found = open_source(events_recipe(), tmp_path)
    assert list(found) == ["train", "test"]
    for name, (recordings, labels) in groups.items():
        split = found[name]
        assert split.labels.tolist() == labels
        assert split.index.tolist() == list(range(len(labels)))
        assert split.names[1] == f"tiny.h5: /{name}: record 1"
        for i in [*range(len(labels)), *np.random.default_rng(1).permutation(len(labels))]:
            assert_same(split.read(int(i)), recordings[i])


@pytest.mark.parametrize(("chunk", "good", "bad"), [(-1, 0, 11), (0, 11, 0)])
def test_only_the_run_that_is_asked_for_is_read(tmp_path, monkeypatch, chunk, good, bad):
    """Damage far from the recording goes unseen: nothing else is unpacked."""
    monkeypatch.setattr(source_hdf5, "_RUN_EVENTS", 16)
    path = tmp_path / "tiny.h5"
    groups = write_tiny(path)
    with h5py.File(path) as file:
        chunks = file["train/t"].id
        place = chunks.get_chunk_info(chunk % chunks.get_num_chunks())
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = b"\xff" * place.size
    path.write_bytes(content)
    train = open_source(events_recipe(), tmp_path)["train"]
    assert_same(train.read(good), groups["train"][0][good])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: expected a whole HDF5 file"):
        train.read(bad)


def test_numbers_of_the_original(tmp_path):
    write_tiny(tmp_path / "tiny.h5")
    with h5py.File(tmp_path / "tiny.h5", "r+") as file:
        file["test/orig_index"] = np.arange(5) * 7 + 60001
    assert open_source(events_recipe(), tmp_path)["test"].index.tolist() == [60001, 60008, 60015, 60022, 60029]


def edit(name, index, value):
    def change(file):
        file[name][index] = value

    return change


def replace(name, value):
    def change(file):
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("train", None), "expected a group 'train', got none"),
        (replace("train/t", None), "/train/t: expected a dataset, got none"),
        (replace("train/x", np.zeros(3)), "/train/x: expected integers with 1 axes, got float64"),
        (replace("train/x", np.zeros(3, int)), "/train: expected x, y, t and p of one length, got x 3"),
        (replace("train/labels", np.zeros(0, int)), "/train/labels: expected at least one recording"),
        (edit("train/labels", 3, 2), r"/train/labels: expected 0\.\.1, got 2 for record 3"),
        (edit("train/offsets", 0, 1), "/train/offsets: expected 0 to"),
        (edit("train/offsets", 4, 10**6), "/train/offsets: expected rising values"),
        (replace("train/offsets", np.arange(5)), "/train/offsets: expected 13 entries"),
        (replace("train/orig_index", np.arange(3)), "/train/orig_index: expected 12 entries"),
        (replace("train/orig_index", np.repeat(4, 12)), "/train/orig_index: expected every number once, got 4"),
    ],
)
def test_defects_of_the_file_show_at_once(tmp_path, change, message):
    write_tiny(tmp_path / "tiny.h5")
    with h5py.File(tmp_path / "tiny.h5", "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / 'tiny.h5'))}: {message}"):
        open_source(events_recipe(), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", 7, r"event 0: expected x in 0\.\.6, got 7"),
        ("p", 2, r"event 0: expected p in 0\.\.1, got 2"),
        ("t", 10**9, "event 1: expected times in order"),
    ],
)
def test_defects_of_a_recording_show_when_it_is_read(tmp_path, name, value, message):
    groups = write_tiny(tmp_path / "tiny.h5")
    record = next(i for i, events in enumerate(groups["train"][0]) if i > 2 and len(events) > 1)
    with h5py.File(tmp_path / "tiny.h5", "r+") as file:
        file[f"train/{name}"][file["train/offsets"][record]] = value
    train = open_source(events_recipe(), tmp_path)["train"]
    assert_same(train.read(record - 1), groups["train"][0][record - 1])
    where = re.escape(f"{tmp_path / 'tiny.h5'}: /train: record {record}: ")
    with pytest.raises(ValueError, match=f"^{where}{message}"):
        train.read(record)


def bits_recipe():
    frames = FrameSpec(bin_width=60, steps=4)
    layout = Layout(train="bits.h5", test="bits.h5")
    return a_recipe("bits-hdf5", (5, 1, 1), ("a", "b", "c"), layout, frames=frames, stack=3, source_step=20)


def write_bits(path, records=9):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name in ("train", "test"):
            file[f"{name}/spikes"] = rng.integers(0, 2, (records, 12, 5), np.uint8)
            file[f"{name}/labels"] = np.arange(records) % 3


@pytest.mark.parametrize("together", [1, 4, 1000])
def test_bits_are_stacked_without_loss(tmp_path, monkeypatch, together):
    monkeypatch.setattr(source_hdf5, "_RUN_BITS", together * 60)
    write_bits(tmp_path / "bits.h5")
    found = open_source(bits_recipe(), tmp_path)
    with h5py.File(tmp_path / "bits.h5") as file:
        for name in ("train", "test"):
            split, spikes = found[name], file[f"{name}/spikes"][()]
            assert split.words is not None
            for i in (8, 0, 3, 4, 5):
                bits = unpack_bits_numpy(split.words(i), 15)
                for step in range(12):
                    np.testing.assert_array_equal(bits[step // 3, step % 3 * 5 : step % 3 * 5 + 5], spikes[i, step])


def test_defects_of_bits(tmp_path):
    path = tmp_path / "bits.h5"
    write_bits(path)
    with h5py.File(path, "r+") as file:
        file["train/spikes"][7, 2, 3] = 2
    train = open_source(bits_recipe(), tmp_path)["train"]
    with pytest.raises(
        ValueError, match=r"bits\.h5: /train/spikes: record 7, step 2, channel 3: expected 0 or 1, got 2"
    ):
        train.words(7)
    with pytest.raises(ValueError, match=r"bits\.h5: /train/spikes: record 0: expected to be asked for frames"):
        train.read(0)
    with h5py.File(path, "r+") as file:
        del file["test/spikes"]
        file["test/spikes"] = np.zeros((9, 12, 4), np.uint8)
    with pytest.raises(ValueError, match=r"/test/spikes: expected \(9, 12, 5\), .* got \(9, 12, 4\)"):
        open_source(bits_recipe(), tmp_path)


def test_the_shared_recordings(shared_data):
    """As the files themselves say, read another way."""
    classes = tuple("0123456789")
    layout = Layout(train="nmnist_small.h5", test="nmnist_small.h5")
    recipe = a_recipe("events-hdf5", (2, 34, 34), classes, layout)
    found = open_source(recipe, shared_data / "nmnist_small")
    with h5py.File(shared_data / "nmnist_small/nmnist_small.h5") as file:
        for name, count in (("train", 900), ("test", 100)):
            group, split = file[name], found[name]
            assert len(split) == count
            np.testing.assert_array_equal(split.labels, group["labels"])
            np.testing.assert_array_equal(split.index, group["orig_index"])
            everything = {key: group[key][()] for key in "xytp"}
            for i in range(0, count, 9):
                start, end = group["offsets"][i : i + 2]
                events = split.read(i)
                for key in "xytp":
                    np.testing.assert_array_equal(getattr(events, key), everything[key][start:end])
