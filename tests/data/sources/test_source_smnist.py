"""Spiking sequential MNIST: threshold crossings of images in idx files."""

import gzip
import re
import struct

import numpy as np
import pytest
from write_sources import a_recipe, write_idx

from tbnn.data.recipe import Layout
from tbnn.data.sources import open_source
from tbnn.data.sources.smnist import crossings

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DIGITS = tuple("0123456789")
LAYOUT = Layout(train=NAMES[0] + ".gz", test=NAMES[2] + ".gz")


def smnist_recipe(units=99):
    return a_recipe("smnist", (1, 1, units), DIGITS, LAYOUT)


def random_images(rng, count):
    """Strokes of grey on black, with the values at the edges of thresholds among them."""
    images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
    images[rng.random(images.shape) < 0.5] = 0
    images[rng.random(images.shape) < 0.2] = 255
    images[rng.random(images.shape) < 0.1] = 127
    return images


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    written = {}
    for images, labels, count in ((NAMES[0], NAMES[1], 7), (NAMES[2], NAMES[3], 3)):
        written[images] = random_images(rng, count)
        written[labels] = rng.integers(0, 10, count).astype(np.uint8)
        write_idx(tmp_path / images, written[images])
        write_idx(tmp_path / labels, written[labels])
    return tmp_path, written


def compress(folder):
    for name in NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()


def test_a_line_of_five_pixels_by_hand():
    """Five units: thresholds 0 and 254; unit 4 upward, unit 2 downward, unit 0 white; two steps a pixel."""
    events = crossings(np.array([0, 254, 255, 100, 255], np.uint8), 5)
    expected = [(0, 4), (1, 4), (4, 0), (4, 2), (5, 0), (5, 2), (6, 4), (7, 4), (8, 0), (9, 0)]
    assert list(zip((events.t // 1000).tolist(), events.x.tolist(), strict=True)) == expected


@pytest.mark.parametrize("compressed", [False, True])
def test_as_tonic_encodes(files, tmp_path, compressed):
    tonic = pytest.importorskip("tonic")
    folder, written = files
    (tmp_path / "smnist").mkdir()
    for name in NAMES:
        (tmp_path / "smnist" / name).write_bytes((folder / name).read_bytes())
    if compressed:
        compress(folder)
    for name, split in open_source(smnist_recipe(), folder).items():
        theirs = tonic.datasets.SMNIST(str(tmp_path), train=name == "train", duplicate=True)
        assert len(theirs) == len(split)
        assert split.labels.tolist() == written[NAMES[1 if name == "train" else 3]].tolist()
        for i in range(len(split)):
            events, label = theirs[i]
            got = split.read(i)
            assert label == split.labels[i]
            order = np.lexsort((events["x"], events["t"]))
            np.testing.assert_array_equal(got.t, events["t"][order])
            np.testing.assert_array_equal(got.x, events["x"][order])
            assert got.t.max() < 1_568_000


def test_other_numbers_of_units(files, tmp_path):
    tonic = pytest.importorskip("tonic")
    folder, _ = files
    (tmp_path / "smnist").mkdir()
    for name in NAMES:
        (tmp_path / "smnist" / name).write_bytes((folder / name).read_bytes())
    for units in (5, 7, 21, 79, 199):
        theirs = tonic.datasets.SMNIST(str(tmp_path), num_neurons=units)
        events = theirs[2][0]
        got = open_source(smnist_recipe(units), folder)["train"].read(2)
        order = np.lexsort((events["x"], events["t"]))
        np.testing.assert_array_equal(got.x, events["x"][order])
    for units in (98, 3):
        with pytest.raises(ValueError, match=r"sensor: expected \(1, 1, odd number of 5 or more\)"):
            open_source(smnist_recipe(units), folder)


def test_names_do_not_depend_on_compression(files):
    folder, _ = files
    plain = open_source(smnist_recipe(), folder)["train"].names
    compress(folder)
    assert plain == open_source(smnist_recipe(), folder)["train"].names
    assert plain[6] == "train-images-idx3-ubyte: image 6"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (NAMES[0], lambda data: data[:-1], "expected 7 items, that is 5488 bytes, got 5487 bytes"),
        (NAMES[0], lambda data: data + b"x", "expected 7 items, that is 5488 bytes, got more"),
        (NAMES[0], lambda data: data[:9], "expected an idx file that starts with"),
        (NAMES[0], lambda data: b"", "expected an idx file that starts with"),
        (NAMES[0], lambda data: data[:3] + b"\1" + data[4:], "expected an idx file that starts with"),
        (NAMES[0], lambda data: data[:15] + b"\x1b" + data[16:], "expected an idx file that starts with"),
        (NAMES[0], lambda data: data[:4] + b"\xff" * 4 + data[8:], "expected 4294967295 items, .* got 5488 bytes"),
        (NAMES[1], lambda data: data[:8] + b"\x0a" + data[9:], r"expected 0\.\.9, got 10 for record 0"),
        (NAMES[1], lambda data: struct.pack(">II", 0x801, 6) + data[9:], "expected 7 labels, one an image, got 6"),
        (NAMES[1], lambda data: struct.pack(">II", 0x801, 0), "expected at least one recording"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_defects(files, name, damage, message, compressed):
    folder, _ = files
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    if compressed:
        compress(folder)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(folder / name))}(\.gz)?: {message}"):
        open_source(smnist_recipe(), folder)


def test_missing_labels_and_empty_images(files):
    folder, written = files
    written[NAMES[0]][3] = 0
    write_idx(folder / NAMES[0], written[NAMES[0]])
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(folder / NAMES[0]))}: image 3: expected at least one event"
    ):
        open_source(smnist_recipe(), folder)["train"].read(3)
    (folder / NAMES[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{NAMES[1]}\.gz: expected this file, plain or with \.gz"):
        open_source(smnist_recipe(), folder)
