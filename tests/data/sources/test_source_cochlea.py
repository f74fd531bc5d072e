"""SHD, SSC and N-TIDIGITS18: spike trains in seconds become events in microseconds."""

import re

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from write_sources import a_recipe, write_ntidigits, write_spikes

from tbnn.data.recipe import Layout
from tbnn.data.sources import open_source
from tbnn.data.sources.cochlea import _to_events

DIGITS = ("zero", "one", "null", "eins")
SPIKES = Layout(train="shd_train.h5", test="shd_test.h5")
NTIDIGITS = Layout(train="n-tidigits.hdf5", test="n-tidigits.hdf5")
NTI_CLASSES = ("z", "1", "2", "3", "4", "5", "6", "7", "8", "9", "o")


def shd_recipe(layout=SPIKES):
    return a_recipe("spikes-hdf5", (1, 1, 700), DIGITS, layout)


def random_trains(rng, count, units=700, dtype=np.float16):
    trains = []
    for size in rng.integers(1, 60, count):
        times = np.sort(rng.random(size) * 1.37).astype(dtype)
        trains.append((times, rng.integers(0, units, size).astype(np.uint16)))
    return trains


def write_shd(folder, seed=0):
    rng = np.random.default_rng(seed)
    written = {}
    for name, count in (("train", 8), ("test", 4)):
        written[name] = random_trains(rng, count)
        speakers = [(3 * i) % 5 for i in range(count)]
        write_spikes(folder / f"shd_{name}.h5", written[name], [i % 4 for i in range(count)], list(DIGITS), speakers)
    return written


def test_times_of_half_precision(tmp_path):
    """1.3 s in half precision is 1331/1024 s; times 10**6 it would be infinite."""
    times = np.array([0.0, 2.0**-14, 0.25, 0.5 + 2.0**-11, 1.3], np.float16)
    for name in ("train", "test"):
        write_spikes(tmp_path / f"shd_{name}.h5", [(times, np.arange(5, dtype=np.uint16))] * 4, [0, 1, 2, 3])
    events = open_source(shd_recipe(), tmp_path)["train"].read(0)
    assert events.t.tolist() == [0, 61, 250_000, 500_488, 1_299_805]
    assert events.x.tolist() == [0, 1, 2, 3, 4]
    assert not events.y.any()
    assert not events.p.any()


def test_shd_as_tonic_reads_it(tmp_path, monkeypatch):
    tonic = pytest.importorskip("tonic")
    root = tmp_path / "SHD"
    root.mkdir()
    write_shd(root)
    monkeypatch.setattr(tonic.datasets.SHD, "_check_exists", lambda self: True)
    found = open_source(shd_recipe(), root)
    assert list(found) == ["train", "test"]
    for name, split in found.items():
        theirs = tonic.datasets.SHD(str(tmp_path), train=name == "train")
        assert len(theirs) == len(split)
        np.testing.assert_array_equal(split.groups, theirs.speaker)
        for i in range(len(split)):
            (events, label), got = theirs[i], split.read(i)
            assert label == split.labels[i]
            np.testing.assert_array_equal(got.x, events["x"])
            assert np.all((got.t - events["t"] == 0) | (got.t - events["t"] == 1))  # tonic cuts, we round


def test_spikes_out_of_turn_are_sorted_and_ties_keep_their_order(tmp_path):
    trains = [(np.array([0.5, 0.25, 0.5, 0.0], np.float16), np.array([9, 8, 3, 1], np.uint16))] * 4
    for name in ("train", "test"):
        write_spikes(tmp_path / f"shd_{name}.h5", trains, [0, 1, 2, 3])
    split = open_source(shd_recipe(), tmp_path)["train"]
    assert split.groups is None
    assert split.read(2).x.tolist() == [1, 8, 9, 3]
    assert split.read(2).t.tolist() == [0, 250_000, 500_000, 500_000]


def test_validation_has_a_file_of_its_own_and_labels_follow_names(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train", "valid", "test"):
        keys = ["Eins", "null", "ONE", "zero"]
        write_spikes(tmp_path / f"ssc_{name}.h5", random_trains(rng, 5), [0, 1, 2, 3, 0], keys)
    found = open_source(
        shd_recipe(Layout(train="ssc_train.h5", validation="ssc_valid.h5", test="ssc_test.h5")), tmp_path
    )
    assert list(found) == ["train", "validation", "test"]
    assert found["validation"].labels.tolist() == [3, 2, 1, 0, 3]
    assert found["validation"].names[4] == "ssc_valid.h5: record 4"


def test_speakers_may_be_names(tmp_path):
    write_shd(tmp_path)
    with h5py.File(tmp_path / "shd_train.h5", "r+") as file:
        del file["extra/speaker"]
        file["extra/speaker"] = np.array([b"c41", b"a7", b"c41", b"b", b"b", b"a7", b"c41", b"b"])
    assert open_source(shd_recipe(), tmp_path)["train"].groups.tolist() == [2, 0, 2, 1, 1, 0, 2, 1]


def replace(name, value):
    def change(file):
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


def ragged(name, value):
    def change(file):
        file[name][2] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("spikes", None), "expected a group 'spikes', got none"),
        (replace("spikes/units", None), "/spikes/units: expected a dataset, got none"),
        (
            replace("spikes/times", np.zeros(8)),
            "/spikes/times: expected arrays or texts of free length with 1 axes, got float64",
        ),
        (replace("labels", np.zeros(7, int)), "/spikes/times: expected 7 rows, one a label, got 8"),
        (replace("labels", np.full(8, 4)), r"/labels: expected 0\.\.3, got 4 for record 0"),
        (replace("extra/speaker", np.zeros(3, int)), "/extra/speaker: expected 8 entries, one a label, got 3"),
        (replace("extra/keys", np.array([b"zero"])), "/extra/keys: expected 4 classes, got 1"),
        (replace("extra/keys", np.array([b"\xff"])), "/extra/keys: expected texts"),
    ],
)
def test_defects_of_a_file(tmp_path, change, message):
    write_shd(tmp_path)
    with h5py.File(tmp_path / "shd_train.h5", "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / 'shd_train.h5'))}: {message}"):
        open_source(shd_recipe(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ragged("spikes/times", np.array([0.1], np.float16)), "expected as many times as units, got"),
        (ragged("spikes/times", np.array([], np.float16)), "expected as many times as units, got"),
        (ragged("spikes/units", np.arange(700, 790, dtype=np.uint16)), "expected as many times as units, got"),
    ],
)
def test_lengths_that_differ(tmp_path, change, message):
    write_shd(tmp_path)
    with h5py.File(tmp_path / "shd_train.h5", "r+") as file:
        change(file)
    train = open_source(shd_recipe(), tmp_path)["train"]
    train.read(1)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / 'shd_train.h5'))}: record 2: {message}"):
        train.read(2)


@pytest.mark.parametrize(
    ("times", "units", "message"),
    [
        ([0.1, np.nan], [1, 2], "spike 1: expected a time of 0 s or later, got nan"),
        ([0.1, np.inf], [1, 2], "spike 1: expected a time of 0 s or later, got inf"),
        ([-0.1, 0.1], [1, 2], "spike 0: expected a time of 0 s or later, got -0.0999"),
        ([0.1, 0.2], [1, 700], r"event 1: expected x in 0\.\.699, got 700"),
        ([], [], "expected at least one event"),
    ],
)
def test_defects_of_a_recording(tmp_path, times, units, message):
    trains = [(np.array([0.5]), np.array([3])), (np.array(times, np.float16), np.array(units, np.uint16))] * 2
    for name in ("train", "test"):
        write_spikes(tmp_path / f"shd_{name}.h5", trains, [0, 1, 2, 3])
    train = open_source(shd_recipe(), tmp_path)["train"]
    assert len(train.read(2)) == 1
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / 'shd_train.h5'))}: record 1: {message}"):
        train.read(1)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2**45), st.integers(0, 63)), min_size=1, max_size=30))
def test_whole_microseconds_come_back(spikes):
    """Times that were microseconds, stored as seconds in double precision, are the same again; truncation loses some."""
    t, x = np.array(spikes).T
    got = _to_events(t / 1e6, x, (1, 1, 64), "here")
    order = np.argsort(t, kind="stable")
    np.testing.assert_array_equal(got.t, t[order])
    np.testing.assert_array_equal(got.x, x[order])


def nti_recipe():
    return a_recipe("ntidigits-hdf5", (1, 1, 64), NTI_CLASSES, NTIDIGITS)


def write_nti(folder, seed=0):
    rng = np.random.default_rng(seed)
    names = {
        "train": [
            "man-ae-a-1",
            "man-ae-b-1",
            "woman-ae-a-z",
            "man-fd-a-o",
            "man-ae-a-19z",
            "woman-bh-b-9",
            "man-fd-b-2o",
        ],
        "test": ["woman-xy-a-z1", "woman-xy-b-3"],
    }
    halves = {
        half: dict(zip(wanted, random_trains(rng, len(wanted), 64, np.float64), strict=True))
        for half, wanted in names.items()
    }
    write_ntidigits(folder / "n-tidigits.hdf5", halves)
    return halves


def test_single_digits_of_ntidigits(tmp_path):
    halves = write_nti(tmp_path)
    found = open_source(nti_recipe(), tmp_path)
    train, test = found["train"], found["test"]
    assert train.index.tolist() == [0, 1, 2, 3, 5]
    assert train.labels.tolist() == [1, 1, 0, 10, 9]
    assert train.groups.tolist() == [0, 0, 2, 1, 3]  # in the order of man-ae, man-fd, woman-ae, woman-bh
    assert test.index.tolist() == [1]
    assert test.labels.tolist() == [3]
    assert train.names[3] == "n-tidigits.hdf5: man-fd-a-o"
    for i, name in enumerate(train.names):
        times, units = halves["train"][name.removeprefix("n-tidigits.hdf5: ")]
        events = train.read(i)
        np.testing.assert_array_equal(events.t, np.rint(times * 1e6))
        np.testing.assert_array_equal(events.x, units)


def test_ntidigits_as_tonic_reads_it(tmp_path, monkeypatch):
    tonic = pytest.importorskip("tonic")
    root = tmp_path / "NTIDIGITS18"
    root.mkdir()
    write_nti(root)
    monkeypatch.setattr(tonic.datasets.NTIDIGITS18, "_check_exists", lambda self: True)
    found = open_source(nti_recipe(), root)
    order = "o123456789z"  # tonic's labels
    for name, split in found.items():
        theirs = tonic.datasets.NTIDIGITS18(str(tmp_path), train=name == "train", single_digits=True)
        assert len(theirs) == len(split)
        for i in range(len(split)):
            (events, label), got = theirs[i], split.read(i)
            assert order[label] == NTI_CLASSES[split.labels[i]]
            np.testing.assert_array_equal(got.x, events["x"])
            assert np.all((got.t - events["t"] == 0) | (got.t - events["t"] == 1))
        theirs.data.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("train_labels", None), "/+train_labels: expected a dataset, got none"),
        (replace("train_addresses", None), "expected a group 'train_addresses', got none"),
        (replace("train_labels", np.array([b"man-ae-1"])), "/train_labels: record 0: expected sex-speaker-time-digits"),
        (replace("train_labels", np.array([b"man-ae-a-x"])), "/train_labels: man-ae-a-x: expected a digit of z, 1, 2"),
        (replace("train_labels", np.array([b"man-ae-a-1"] * 2)), "/train_labels: expected every name once"),
        (
            replace("train_labels", np.array([b"man-ae-a-12"])),
            "/train_labels: expected at least one recording, got none",
        ),
    ],
)
def test_defects_of_ntidigits(tmp_path, change, message):
    write_nti(tmp_path)
    path = tmp_path / "n-tidigits.hdf5"
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {message}"):
        open_source(nti_recipe(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("train_addresses/man-ae-b-1", None), "/train_addresses: expected a dataset man-ae-b-1, got none"),
        (replace("train_addresses/man-ae-b-1", np.zeros(99, int)), "man-ae-b-1: expected as many times as units"),
        (replace("train_addresses/man-ae-b-1", np.array([b"a"])), "/train_addresses/man-ae-b-1: expected"),
    ],
)
def test_defects_of_a_digit(tmp_path, change, message):
    write_nti(tmp_path)
    path = tmp_path / "n-tidigits.hdf5"
    with h5py.File(path, "r+") as file:
        change(file)
    train = open_source(nti_recipe(), tmp_path)["train"]
    train.read(0)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {message}"):
        train.read(1)


def test_addresses_may_be_floats_that_are_whole(tmp_path):
    write_nti(tmp_path)
    with h5py.File(tmp_path / "n-tidigits.hdf5", "r+") as file:
        for name, units in (("man-ae-a-1", [5.0, 63.0]), ("man-ae-b-1", [5.0, 63.5])):
            replace(f"train_addresses/{name}", np.array(units))(file)
            replace(f"train_timestamps/{name}", np.array([0.25, 0.5]))(file)
    train = open_source(nti_recipe(), tmp_path)["train"]
    assert train.read(0).x.tolist() == [5, 63]
    with pytest.raises(ValueError, match=r"man-ae-b-1: spike 1: expected a unit in 0\.\.63, got 63\.5"):
        train.read(1)
