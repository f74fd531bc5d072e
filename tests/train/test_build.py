"""Configurations become the networks they name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tbnn.nn import AdLIF, BinaryConv2d, BinaryLinear, Leaky, Recurrent, Synaptic, TargetRate, Winners
from tbnn.train import ModelConfig, TrainConfig
from tbnn.train.build import build_network
from tbnn.train.parse import Parser, add_arguments, config_from_file, configured
from tbnn.train.run import write_config


def model(*arguments: str) -> ModelConfig:
    parser = Parser()
    add_arguments(parser, TrainConfig)
    return configured(parser, parser.parse_args(list(arguments)), TrainConfig).model


def test_bits_and_sparsity_reach_every_layer() -> None:
    config = model(
        "--model.bits", "1.58", "--model.n_of_m", "[2,4]", "--model.form", "linear", "--model.recurrent", "true"
    )
    network = build_network(config, (1, 1, 8), 3)
    layers = [layer for layer in network.modules() if isinstance(layer, BinaryLinear)]
    assert len(layers) == 3
    assert all((layer.bits, layer.sparsity, layer.form) == (1.58, (2, 4), "linear") for layer in layers)
    shares = [(layer.codes()[0] == 0).float().mean() for layer in layers[:2]]
    assert min(shares) >= 0.5  # half pruned, and what rounds to 0
    dense = build_network(
        model("--model.bits", "0", "--model.sparsity", "0.75", "--model.scope", "tensor"), (1, 1, 8), 3
    )
    first = dense.layers[0]
    assert isinstance(first, BinaryLinear)
    assert (first.bits, first.sparsity, first.scope) == (None, 0.75, "tensor")


@pytest.mark.parametrize(
    ("arguments", "kind", "wanted"),
    [
        (["synaptic", "--model.alpha", "0.5"], Synaptic, {"alpha": 0.5}),
        (["adlif", "--model.rho", "0.75", "--model.learn_beta", "true"], AdLIF, {"rho": 0.75}),
        (["leaky", "--model.refractory", "2"], Leaky, {"refractory": 2}),
    ],
    ids=["synaptic", "adlif", "leaky"],
)
def test_neurons(arguments: list[str], kind: type, wanted: dict[str, Any]) -> None:
    neuron = build_network(model("--model.neuron", *arguments), (1, 1, 8), 3).layers[1]
    assert type(neuron) is kind
    for name, value in wanted.items():
        assert getattr(neuron, name) == value


def test_activity() -> None:
    winners = build_network(model("--model.activity", "winners", "--model.activity_rate", "0.1"), (1, 1, 8), 3).layers[
        1
    ]
    assert isinstance(winners, Leaky)
    assert winners.winners == Winners(0.1)
    rate = build_network(model("--model.activity", "rate"), (1, 1, 8), 3).layers[1]
    assert isinstance(rate, Leaky)
    assert rate.homeostasis is not None
    assert rate.homeostasis.target == TargetRate(0.02)


@pytest.mark.parametrize(
    ("name", "hidden", "sensor"),
    [
        ("nmnist_conv", "[3,4]", (2, 12, 12)),
        ("vgg11", "[1]", (2, 32, 32)),
        ("spiking_resnet", "[3,4]", (2, 16, 16)),
        ("dvsgesture_conv", "[2]", (2, 32, 32)),
    ],
)
def test_convolutional_networks(name: str, hidden: str, sensor: tuple[int, int, int]) -> None:
    network = build_network(model("--model.network", name, "--model.hidden", hidden), sensor, 3)
    assert any(isinstance(layer, BinaryConv2d) for layer in network.modules())
    assert not any(isinstance(layer, Recurrent) for layer in network.modules())
    assert network(torch.zeros(2, 2, sensor[0] * sensor[1] * sensor[2]))[0].shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_of_m": (4, 2)}, r"sparsity: expected \(n, m\) with integers 1 <= n <= m, got \(4, 2\)"),
        ({"sparsity": 1.0}, r"sparsity: expected a fraction in \[0, 0.999\]"),
        ({"bits": 9}, "bits: expected"),
        ({"network": "vgg11", "recurrent": True}, "model.recurrent: expected false for the network 'vgg11'"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(ModelConfig(**settings), (2, 32, 32), 3)


def test_a_saved_configuration_comes_back(tmp_path: Path) -> None:
    config = TrainConfig(model=ModelConfig(n_of_m=(2, 4), hidden=(3, 5)))
    write_config(tmp_path, config)
    assert config_from_file(tmp_path / "config.yaml") == config
    with pytest.raises(ValueError, match=r"model.n_of_m: expected it or model.sparsity, got \[2, 4\] and 0.5"):
        ModelConfig(n_of_m=(2, 4), sparsity=0.5)
