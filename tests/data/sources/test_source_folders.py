"""Recordings in files of their own, one folder a class, in the layouts of the real datasets."""

import re
import shutil

import numpy as np
import pytest
import scipy.io
from write_sources import (
    a_recipe,
    assert_same,
    columns,
    random_events,
    write_aedat2,
    write_bin,
    write_dat,
)

from tbnn.data.events import Events
from tbnn.data.recipe import Layout
from tbnn.data.sources import open_source


def write_tree(folder, names, sensor, suffix, write, counts=(3, 2)):
    """``counts`` recordings in each folder, numbered 1, 2, ... 10, 11, ...; what was written, by path."""
    rng = np.random.default_rng(len(names))
    written = {}
    for at, count in zip(folder, counts, strict=False):
        for name in names:
            at.joinpath(name).mkdir(parents=True)
            for i in range(1, count + 1):
                path = at / name / f"{name}_{i}{suffix}"
                written[path] = random_events(rng, sensor, 40)
                write(path, written[path])
    return written


def test_nmnist(tmp_path):
    written = write_tree([tmp_path / "Train", tmp_path / "Test"], "0123456789", (2, 34, 34), ".bin", write_bin)
    layout = Layout(train="Train/*/*.bin", test="Test/*/*.bin", reader="bin")
    found = open_source(a_recipe("folders", (2, 34, 34), tuple("0123456789"), layout), tmp_path)
    assert {name: len(split) for name, split in found.items()} == {"train": 30, "test": 20}
    for split in found.values():
        for i, name in enumerate(split.names):
            assert split.labels[i] == int(name.split("/")[1])
            assert_same(split.read(i), written[tmp_path / name])


def test_nmnist_as_tonic_reads_it(tmp_path, monkeypatch):
    tonic = pytest.importorskip("tonic")
    root = tmp_path / "NMNIST"
    write_tree([root / "Train", root / "Test"], "0123456789", (2, 34, 34), ".bin", write_bin)
    monkeypatch.setattr(tonic.datasets.NMNIST, "_check_exists", lambda self: True)
    layout = Layout(train="Train/*/*.bin", test="Test/*/*.bin", reader="bin")
    found = open_source(a_recipe("folders", (2, 34, 34), tuple("0123456789"), layout), root)
    for name, split in found.items():
        theirs = tonic.datasets.NMNIST(str(tmp_path), train=name == "train")
        assert len(theirs) == len(split)
        for i, path in enumerate(theirs.data):
            events, label = theirs[i]
            mine = split.names.index(path.removeprefix(f"{root}/"))
            assert label == split.labels[mine]
            assert_same(split.read(mine), Events(events["x"], events["y"], events["t"], events["p"]))


def test_ncaltech101_as_tonic_reads_it_but_for_the_shift(tmp_path, monkeypatch):
    tonic = pytest.importorskip("tonic")
    classes = ("BACKGROUND_Google", "Faces_easy", "yin_yang")
    root = tmp_path / "NCALTECH101"
    written = write_tree([root / "Caltech101"], classes, (2, 180, 240), ".bin", write_bin)
    monkeypatch.setattr(tonic.datasets.NCALTECH101, "_check_exists", lambda self: True)
    layout = Layout(train="Caltech101/*/*.bin", reader="bin")
    split = open_source(a_recipe("folders", (2, 180, 240), classes, layout), root)["train"]
    theirs = tonic.datasets.NCALTECH101(str(tmp_path))
    assert len(theirs) == len(split) == 9
    for i, path in enumerate(theirs.data):
        events, label = theirs[i]
        mine = split.names.index(path.removeprefix(f"{root}/"))
        assert classes[split.labels[mine]] == label
        got = split.read(mine)
        assert_same(got, written[root / split.names[mine]])
        assert_same(
            Events(got.x - got.x.min(), got.y - got.y.min(), got.t, got.p),
            Events(events["x"], events["y"], events["t"], events["p"]),
        )


def test_cifar10dvs(tmp_path):
    classes = ("airplane", "truck")
    written = write_tree([tmp_path], classes, (2, 128, 128), ".aedat", write_aedat2, counts=(12,))
    for path in list(written):
        path.rename(path.with_name(f"cifar10_{path.name}"))
    layout = Layout(train="*/cifar10_*.aedat", reader="aedat2")
    found = open_source(a_recipe("folders", (2, 128, 128), classes, layout), tmp_path)
    assert list(found) == ["train"]
    train = found["train"]
    expected = [f"{name}/cifar10_{name}_{i}.aedat" for name in classes for i in range(1, 13)]
    assert list(train.names) == expected  # 2 before 10
    assert train.labels.tolist() == [0] * 12 + [1] * 12
    assert train.index.tolist() == list(range(24))
    for i, name in enumerate(train.names):
        assert_same(train.read(i), written[tmp_path / name.replace("cifar10_", "")])


def test_ncars_at_whatever_depth(tmp_path):
    sensor, folders = (2, 100, 120), ("background", "cars")
    places = [tmp_path / "Prophesee_Dataset_n_cars/n-cars_train", tmp_path / "n-cars_test/test"]
    written = write_tree(places, folders, sensor, "_td.dat", write_dat)
    layout = Layout(train="**/n-cars_train/**/*.dat", test="**/n-cars_test/**/*.dat", reader="dat", folders=folders)
    found = open_source(a_recipe("folders", sensor, ("background", "car"), layout), tmp_path)
    assert {name: len(split) for name, split in found.items()} == {"train": 6, "test": 4}
    for split in found.values():
        for i, name in enumerate(split.names):
            assert split.labels[i] == ("cars" in name.split("/")[-2])
            assert_same(split.read(i), written[tmp_path / name])


def write_mat(path, events):
    """As in ASL-DVS: rows from below."""
    named = {"ts": events.t, "x": events.x, "y": 179 - events.y, "pol": events.p}
    scipy.io.savemat(path, {name: column[:, None] for name, column in named.items()}, do_compression=True)


def test_asldvs_as_tonic_reads_it(tmp_path, monkeypatch):
    tonic = pytest.importorskip("tonic")
    sensor, letters = (2, 180, 240), ("a", "b", "y")
    root = tmp_path / "ASLDVS"
    written = write_tree([root], letters, sensor, ".mat", write_mat, counts=(2,))
    monkeypatch.setattr(tonic.datasets.ASLDVS, "_check_exists", lambda self: True)
    layout = Layout(train="*/*.mat", reader="mat", flip_y=True)
    split = open_source(a_recipe("folders", sensor, letters, layout), root)["train"]
    theirs = tonic.datasets.ASLDVS(str(tmp_path))
    for i, path in enumerate(theirs.data):
        events, label = theirs[i]
        mine = split.names.index(path.removeprefix(f"{root}/"))
        assert letters[split.labels[mine]] == chr(ord("a") + label)
        got = split.read(mine)
        assert_same(got, written[root / split.names[mine]])
        assert_same(got, Events(*(events[name].ravel() for name in ("x", "y", "t", "p"))))


def write_plain(path, events):
    np.save(path, columns(events, "txyp"))


def test_pokerdvs_as_tonic_reads_it(tmp_path, monkeypatch):
    tonic = pytest.importorskip("tonic")
    sensor, folders = (2, 35, 35), ("cl", "he", "di", "sp")
    root = tmp_path / "POKERDVS"
    write_tree([root / "pips_train", root / "pips_test"], folders, sensor, ".npy", write_plain)
    monkeypatch.setattr(tonic.datasets.POKERDVS, "_check_exists", lambda self: True)
    layout = Layout(train="pips_train/*/*.npy", test="pips_test/*/*.npy", reader="npy", columns="txyp", folders=folders)
    found = open_source(a_recipe("folders", sensor, ("club", "heart", "diamond", "spade"), layout), root)
    for name, split in found.items():
        theirs = tonic.datasets.POKERDVS(str(tmp_path), train=name == "train")
        events = {tuple(map(tuple, e.tolist())): label for e, label in (theirs[i] for i in range(len(theirs)))}
        mine = [split.read(i) for i in range(len(split))]
        assert events == {
            tuple(map(tuple, columns(e, "txyp").tolist())): label for e, label in zip(mine, split.labels, strict=True)
        }


def write_structured(path, events):
    """As in DVS-Lip."""
    array = np.zeros(len(events), [("t", "<i4"), ("x", "i1"), ("y", "i1"), ("p", "i1")])
    for name in array.dtype.names:
        array[name] = getattr(events, name)
    np.save(path, array)


def test_dvslip_as_tonic_reads_it(tmp_path):
    tonic = pytest.importorskip("tonic")
    sensor = (2, 128, 128)
    classes = tuple(tonic.datasets.DVSLip.classes)
    places = [tmp_path / "DVSLip/DVS-Lip/train", tmp_path / "DVSLip/DVS-Lip/test"]
    write_tree(places, classes, sensor, ".npy", write_structured, counts=(2, 1))
    layout = Layout(train="DVS-Lip/train/*/*.npy", test="DVS-Lip/test/*/*.npy", reader="npy")
    found = open_source(a_recipe("folders", sensor, classes, layout), tmp_path / "DVSLip")
    train = found["train"]
    theirs = tonic.datasets.DVSLip(str(tmp_path), train=True)
    assert len(theirs) == len(train) == 200
    for i in range(0, 200, 7):
        events, label = theirs[i]
        mine = train.names.index(theirs.data[i].removeprefix(f"{tmp_path}/DVSLip/"))
        assert label == train.labels[mine]
        assert_same(train.read(mine), Events(events["x"], events["y"], events["t"], events["p"].astype(int)))


@pytest.fixture
def tree(tmp_path):
    write_tree([tmp_path / "Train", tmp_path / "Test"], "ab", (2, 34, 34), ".bin", write_bin)
    layout = Layout(train="Train/*/*.bin", test="Test/*/*.bin", reader="bin")
    return a_recipe("folders", (2, 34, 34), ("a", "b"), layout), tmp_path


def test_hidden_files_are_passed_over(tree):
    recipe, folder = tree
    (folder / "Train/a/._a_1.bin").write_bytes(b"from another system")
    assert len(open_source(recipe, folder)["train"]) == 6


def test_defects_of_the_tree(tree):
    recipe, folder = tree
    (folder / "Train/c").mkdir()
    shutil.copy(folder / "Train/a/a_1.bin", folder / "Train/c/c_1.bin")
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(folder))}/Train/c/c_1\.bin: .* named after one of a, b, got c"
    ):
        open_source(recipe, folder)
    shutil.rmtree(folder / "Train/c")
    for i in (1, 2):
        (folder / f"Train/b/b_{i}.bin").unlink()
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(folder))}: expected 2 or more train recordings of b, got 1"
    ):
        open_source(recipe, folder)
    shutil.rmtree(folder / "Test/b")
    shutil.copy(folder / "Train/b/b_3.bin", folder / "Train/b/b_4.bin")
    with pytest.raises(ValueError, match="expected 1 or more test recordings of b, got 0"):
        open_source(recipe, folder)
    shutil.rmtree(folder / "Test")
    with pytest.raises(FileNotFoundError, match=rf"^{re.escape(str(folder))}: expected the test .* found none"):
        open_source(recipe, folder)


def test_defects_of_a_recording(tree):
    recipe, folder = tree
    path = folder / "Train/b/b_2.bin"
    path.write_bytes(bytes([34, 0, 0, 0, 0]))
    train = open_source(recipe, folder)["train"]
    i = train.names.index("Train/b/b_2.bin")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: event 0: expected x in 0\.\.33, got 34"):
        train.read(i)
    path.write_bytes(b"1234")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: "):
        train.read(i)
