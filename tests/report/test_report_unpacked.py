"""Pages of convolutional and other networks; one that does not pack gets its page too, which says why."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tbnn.nn import BinaryConv2d, BinaryLinear, Delay, Flatten, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.report.collect import plot_raster, report_run, storage_rows
from tbnn.sim import pack
from tbnn.train import ModelConfig, OptimConfig, TrainConfig, train
from tbnn.train.run import load_run


def page_of(config: TrainConfig, model: ModelConfig, tmp_path: Path) -> tuple[str, list[str]]:
    """Train for an epoch, write page and raster; the page and the lines of the command."""
    run = load_run(train(replace(config, model=model, optim=OptimConfig(epochs=1, batch_size=12)), quiet=True))
    path, lines = report_run(run, [], 0)
    plot_raster(run, "test", 0, tmp_path / "raster.png")
    assert (tmp_path / "raster.png").read_bytes().startswith(b"\x89PNG")
    return path.read_text(), lines


def test_a_convolutional_network_is_packed(config: TrainConfig, tmp_path: Path) -> None:
    page, _ = page_of(config, ModelConfig(network="nmnist_conv", hidden=(3,)), tmp_path)
    assert "Not packed" not in page
    assert "parity" in page


def test_a_ternary_network_of_synaptic_neurons_is_packed(config: TrainConfig, tmp_path: Path) -> None:
    model = ModelConfig(hidden=(8,), bits=1.58, form="linear", neuron="synaptic")
    page, lines = page_of(config, model, tmp_path)
    assert "with ternary weights" in lines[0]
    assert "Not packed" not in page


def test_a_network_of_full_precision_is_not(config: TrainConfig, tmp_path: Path) -> None:
    page, _ = page_of(config, ModelConfig(hidden=(8,), bits=0, sparsity=0.5), tmp_path)
    assert "Not packed: layers.0: expected weights of 1 to 8 bits" in page


@pytest.mark.parametrize("bits", [1, 4])
def test_the_rows_of_storage_add_up_to_the_network(bits: int) -> None:
    feedback = Recurrent(Leaky(torch.rand(6), torch.rand(6)), BinaryLinear(6, 6))
    layers = [BinaryConv2d(2, 3, 3, bits=bits), Leaky(0.5), Flatten(), Delay(75, 4), BinaryLinear(75, 6), feedback]
    packed = pack(Network([*layers, BinaryLinear(6, 2), LeakyIntegrator(0.5)], (2, 7, 7)))
    rows = storage_rows(packed)
    assert [row["layer"] for row in rows[-2:]] == ["layers.6", "neurons"]
    assert sum(row["packed_bytes"] for row in rows) == packed.packed_bytes
    assert sum(row["float32_bytes"] for row in rows) == packed.float32_bytes
    assert sum(row["weights"] for row in rows) == packed.weights
