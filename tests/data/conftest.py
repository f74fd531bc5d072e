"""Small recipes and sources for the tests of tbnn.data."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from random_splits import random_splits

from tbnn.data import FrameSpec
from tbnn.data.events import Sensor
from tbnn.data.recipe import Layout, Recipe, SourceFile, Split
from tbnn.data.store import write_store

SHARED = Path(__file__).parents[2] / "../shared/data"

EVENTS_TOML = """
name = "tiny"
title = "Tiny events"
description = "Made by a test."
format = "events-hdf5"
source = "a test"
licence = "none"
citation = ""
classes = ["left", "right"]

[[files]]
path = "tiny.h5"

[layout]
train = "tiny.h5"
test = "tiny.h5"

[frames]
bin_width = 100
steps = 5

[sensor]
channels = 2
height = 3
width = 7

[split]
validation = 0.25
seed = 3
"""

BITS_TOML = """
name = "tiny_bits"
title = "Tiny bits"
description = "Made by a test."
format = "bits-hdf5"
source = "a test"
licence = "none"
citation = ""
classes = ["a", "b", "c"]
source_step = 20
stack = 3

[[files]]
path = "bits.h5"

[layout]
train = "bits.h5"
test = "bits.h5"

[frames]
bin_width = 60
steps = 4

[sensor]
channels = 5
height = 1
width = 1

[split]
validation = 0.5
seed = 3
"""


def tiny_recipe(
    sensor: tuple[int, int, int] = (2, 3, 7), steps: int = 5, classes: tuple[str, ...] = ("left", "right")
) -> Recipe:
    return Recipe(
        name="tiny",
        title="Tiny",
        description="",
        format="events-hdf5",
        source="a test",
        licence="none",
        citation="",
        classes=classes,
        sensor=Sensor(*sensor),
        frames=FrameSpec(bin_width=100, steps=steps),
        split=Split(validation=0.25, seed=3),
        files=(SourceFile(path="tiny.h5"),),
        layout=Layout(train="tiny.h5", test="tiny.h5"),
    )


def write_events_source(path: Path, records: int = 12, seed: int = 0) -> None:
    """Random recordings of the tiny events recipe, 1 to 39 events each."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for name in ("train", "test"):
            lengths = rng.integers(1, 40, records)
            total = int(lengths.sum())
            group = file.create_group(name)
            group["x"] = rng.integers(0, 7, total, np.uint8)
            group["y"] = rng.integers(0, 3, total, np.uint8)
            group["p"] = rng.integers(0, 2, total, np.uint8)
            group["t"] = np.concatenate([np.sort(rng.integers(0, 500, n)) for n in lengths]).astype(np.uint32)
            group["offsets"] = np.concatenate([[0], np.cumsum(lengths)])
            group["labels"] = (np.arange(records) % 2).astype(np.uint8)


def write_bits_source(path: Path, records: int = 12, seed: int = 0) -> None:
    """Random recordings of the tiny bits recipe: 12 steps of 5 channels."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for name in ("train", "test"):
            group = file.create_group(name)
            group["spikes"] = rng.integers(0, 2, (records, 12, 5), np.uint8)
            group["labels"] = (np.arange(records) % 3).astype(np.uint8)


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe()


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    return tiny_recipe


@pytest.fixture
def events_source(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe file and a folder with its source."""
    (tmp_path / "tiny.toml").write_text(EVENTS_TOML)
    write_events_source(tmp_path / "tiny.h5")
    return tmp_path / "tiny.toml", tmp_path


@pytest.fixture
def bits_source(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe file and a folder with its source."""
    (tmp_path / "bits.toml").write_text(BITS_TOML)
    write_bits_source(tmp_path / "bits.h5")
    return tmp_path / "bits.toml", tmp_path


@pytest.fixture
def packed(tmp_path: Path, recipe: Recipe) -> Path:
    """A packed file of the tiny recipe, of :func:`random_splits`."""
    path = tmp_path / "tiny.h5"
    write_store(path, recipe, random_splits(recipe)[1])
    return path


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the recordings are not here ({SHARED})")
    return SHARED
