"""The shipped recipes of recorded datasets, against small sources in the datasets' formats."""

import re
from types import ModuleType

import h5py
import numpy as np
import pytest
from write_sources import assert_same, random_events, write_aedat2, write_aedat3, write_bin, write_idx, write_table

from tbnn.data.events import Events
from tbnn.data.recipe_toml import load_recipe
from tbnn.data.sources import open_source

RECORDED = (
    "asldvs", "braille27", "cifar10dvs", "dvsgesture", "dvslip", "ncaltech101", "ncars", "nmnist", "ntidigits", "pokerdvs",
    "shd", "smnist", "ssc",
)  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_a_recipe_tells_how_to_get_its_files(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert len(recipe.description) > 100
    assert all(file.md5 or file.sha256 for file in recipe.files)
    unreachable = not recipe.files or not all(file.urls for file in recipe.files)
    assert recipe.manual or not unreachable
    if recipe.split.test:
        assert recipe.split.rule == "hash"
        assert "tbnn's own" in recipe.description.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "classes", "groups", "folders"),
    [
        ("asldvs", 24, False, ()),
        ("braille27", 27, False, ()),
        ("cifar10dvs", 10, False, ()),
        ("dvsgesture", 11, True, ()),
        ("dvslip", 100, False, ()),
        ("ncaltech101", 101, False, ()),
        ("ncars", 2, False, ("background", "cars")),
        ("nmnist", 10, False, ()),
        ("ntidigits", 11, True, ()),
        ("pokerdvs", 4, False, ("cl", "he", "di", "sp")),
        ("shd", 20, True, ()),
        ("smnist", 10, False, ()),
        ("ssc", 35, False, ()),
    ],
)
def test_classes_and_people(name, classes, groups, folders):
    recipe = load_recipe(name)
    assert len(recipe.classes) == classes
    assert recipe.split.by_group == groups
    assert recipe.layout.folders == folders


def test_checksums_are_those_of_tonic():
    """Read from tonic's classes, which name the same files."""
    datasets = pytest.importorskip("tonic").datasets
    theirs = {
        "nmnist": {"train.zip": datasets.NMNIST.train_md5, "test.zip": datasets.NMNIST.test_md5},
        "ncaltech101": {"Caltech101.zip": datasets.NCALTECH101.file_md5},
        "dvslip": {"DVS-Lip.zip": datasets.DVSLip.file_md5},
        "pokerdvs": {
            "pips_train.tar.gz": datasets.POKERDVS.train_md5,
            "pips_test.tar.gz": datasets.POKERDVS.test_md5,
        },
        "shd": {"shd_train.h5.zip": datasets.SHD.train_md5, "shd_test.h5.zip": datasets.SHD.test_md5},
        "ssc": {
            "ssc_train.h5.zip": datasets.SSC.train_md5,
            "ssc_valid.h5.zip": datasets.SSC.valid_md5,
            "ssc_test.h5.zip": datasets.SSC.test_md5,
        },
        "ntidigits": {"n-tidigits.hdf5": datasets.NTIDIGITS18.file_md5},
        "smnist": {
            "train-images-idx3-ubyte.gz": datasets.SMNIST.train_images_md5,
            "train-labels-idx1-ubyte.gz": datasets.SMNIST.train_labels_md5,
            "t10k-images-idx3-ubyte.gz": datasets.SMNIST.test_images_md5,
            "t10k-labels-idx1-ubyte.gz": datasets.SMNIST.test_labels_md5,
        },
    }
    for name, files in theirs.items():
        assert {file.path: file.md5 for file in load_recipe(name).files} == files
    assert list(load_recipe("dvslip").classes) == datasets.DVSLip.classes


def test_nmnist_layout(tmp_path):
    recipe, rng = load_recipe("nmnist"), np.random.default_rng(0)
    for split in ("Train", "Test"):
        for digit in "0123456789":
            (tmp_path / split / digit).mkdir(parents=True)
            for i in (1, 2):
                write_bin(tmp_path / split / digit / f"0000{i}.bin", random_events(rng, recipe.sensor, 20))
    found = open_source(recipe, tmp_path)
    assert {name: len(split) for name, split in found.items()} == {"train": 20, "test": 20}
    assert len(found["test"].read(19)) == 20


def test_cifar10dvs_layout(tmp_path):
    recipe, rng = load_recipe("cifar10dvs"), np.random.default_rng(0)
    for name in recipe.classes:
        (tmp_path / name).mkdir()
        for i in (0, 1):
            write_aedat2(tmp_path / name / f"cifar10_{name}_{i}.aedat", random_events(rng, recipe.sensor, 20))
    (tmp_path / "airplane.zip").write_bytes(b"")
    assert len(open_source(recipe, tmp_path)["train"]) == 20


def test_dvsgesture_layout(tmp_path):
    recipe, rng = load_recipe("dvsgesture"), np.random.default_rng(0)
    (tmp_path / "DvsGesture").mkdir()
    for user, listing in (("user01_led", "trials_to_train.txt"), ("user24_led", "trials_to_test.txt")):
        (tmp_path / "DvsGesture" / listing).write_text(f"{user}.aedat\n")
        write_aedat3(tmp_path / f"DvsGesture/{user}.aedat", random_events(rng, recipe.sensor, 200))
        write_table(tmp_path / f"DvsGesture/{user}_labels.csv", [(i + 1, 1000 * i, 60_000) for i in range(11)])
    train = open_source(recipe, tmp_path)["train"]
    assert train.labels.tolist() == list(range(11))
    assert len(train.read(10)) > 10


def test_smnist_layout(tmp_path):
    recipe, rng = load_recipe("smnist"), np.random.default_rng(0)
    for images, labels in (("train-images-idx3", "train-labels-idx1"), ("t10k-images-idx3", "t10k-labels-idx1")):
        write_idx(tmp_path / f"{images}-ubyte", rng.integers(0, 256, (4, 28, 28)).astype(np.uint8))
        write_idx(tmp_path / f"{labels}-ubyte", np.arange(4, dtype=np.uint8))
    found = open_source(recipe, tmp_path)
    assert found["train"].read(3).t.max() < recipe.duration


def test_braille27_conversion_gives_what_the_recipe_reads(tmp_path, monkeypatch):
    """The lines in the recipe, run on data of the release's shape: [taxel][sign] of times in seconds."""
    recipe, rng = load_recipe("braille27"), np.random.default_rng(0)
    letters = [*recipe.classes] * 2
    samples = [
        [[np.sort(rng.random(rng.integers(0, 4)) * 1.3).tolist() for _ in range(2)] for _ in range(12)] for _ in letters
    ]
    pandas = ModuleType("pandas")
    pandas.read_pickle = lambda path: {"events": samples, "letter": letters}
    monkeypatch.setitem(__import__("sys").modules, "pandas", pandas)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"\n\n((?:    .*\n)+)", recipe.manual + "\n")[1]
    exec(compile(re.sub(r"^    ", "", code, flags=re.MULTILINE), "the recipe", "exec"), {})
    with h5py.File("braille27.h5") as file:
        assert set(file["train"]) == {"x", "y", "t", "p", "offsets", "labels"}
    train = open_source(recipe, tmp_path)["train"]
    assert train.labels.tolist() == [*range(27), *range(27)]
    for i in range(len(train)):
        spikes = sorted(
            (round(t * 1e6), x, p) for x, taxel in enumerate(samples[i]) for p, times in enumerate(taxel) for t in times
        )
        t, x, p = np.array(spikes).T
        assert_same(train.read(i), Events(x, 0 * x, t, p))
