"""A dataset of seconds: two classes that differ in which half of the channels is active, and in when."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tbnn.train import DataConfig, ModelConfig, OptimConfig, TrainConfig

RECIPE = """
name = "halves"
title = "Two halves"
description = "Made by a test."
format = "bits-hdf5"
source = "a test"
licence = "none"
citation = ""
classes = ["left", "right"]
source_step = 10

[frames]
bin_width = 10
steps = 6

[[files]]
path = "halves.h5"

[layout]
train = "halves.h5"
test = "halves.h5"

[sensor]
channels = 2
height = 3
width = 4

[split]
validation = 0.25
seed = 3
"""


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """The recipe, its source and a cache, as a configuration."""
    folder = tmp_path_factory.mktemp("halves")
    (folder / "halves.toml").write_text(RECIPE)
    rng = np.random.default_rng(0)
    with h5py.File(folder / "halves.h5", "w") as file:
        for split in ("train", "test"):
            labels = (np.arange(48) % 2).astype(np.uint8)
            chance = np.where((np.arange(24) < 12)[None] == (labels == 0)[:, None], 0.5, 0.05)
            group = file.create_group(split)
            group["spikes"] = (rng.random((48, 6, 24)) < chance[:, None]).astype(np.uint8)
            group["labels"] = labels
    return DataConfig(dataset=str(folder / "halves.toml"), source=str(folder), cache=str(folder / "cache"))


@pytest.fixture
def config(halves: DataConfig, tmp_path: Path) -> TrainConfig:
    """A run of four epochs on it."""
    return TrainConfig(
        data=halves,
        model=ModelConfig(hidden=(16,)),
        optim=OptimConfig(epochs=4, batch_size=8, learning_rate=5e-3),
        output=str(tmp_path / "run"),
        device="cpu",
    )
