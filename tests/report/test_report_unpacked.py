"""A run whose network does not pack still gets its page, and the page says why nothing is packed."""

from dataclasses import replace
from pathlib import Path

from tbnn.report.collect import plot_raster, report_run
from tbnn.train import ModelConfig, OptimConfig, TrainConfig, train
from tbnn.train.run import load_run


def test_a_convolutional_network(config: TrainConfig, tmp_path: Path) -> None:
    model = ModelConfig(network="nmnist_conv", hidden=(3,))
    run = load_run(train(replace(config, model=model, optim=OptimConfig(epochs=1, batch_size=12)), quiet=True))
    path, _ = report_run(run, [], 0)
    assert "Not packed: layers.0: BinaryConv2d" in path.read_text()
    plot_raster(run, "test", 0, tmp_path / "raster.png")
    assert (tmp_path / "raster.png").read_bytes().startswith(b"\x89PNG")


def test_a_ternary_network_of_synaptic_neurons(config: TrainConfig, tmp_path: Path) -> None:
    model = ModelConfig(hidden=(8,), bits=1.58, form="linear", neuron="synaptic")
    run = load_run(train(replace(config, model=model, optim=OptimConfig(epochs=1, batch_size=12)), quiet=True))
    path, lines = report_run(run, [], 0)
    page = path.read_text()
    assert "with ternary weights" in lines[0]
    assert "Not packed: layers.0" in page
    plot_raster(run, "test", 0, tmp_path / "raster.png")
    assert (tmp_path / "raster.png").stat().st_size > 1000
