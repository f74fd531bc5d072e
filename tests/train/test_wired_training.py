"""Dale's law, sparse wiring and DEEP R from the configuration to the packed network."""

from dataclasses import replace
from typing import Any

import pytest

from tbnn.nn.weights import BinaryWeight
from tbnn.train import ModelConfig, TrainConfig, load_run, train
from tbnn.train.work import evaluate_run, pack_run, simulate_run


@pytest.mark.parametrize(
    "options",
    [
        {"wiring": "deep_r", "wiring_share": 0.5, "inhibitory": 0.2},
        {"wiring": "fixed", "wiring_share": 0.5},
        {"wiring": "distance", "wiring_length": 0.5, "recurrent": True},
        {"inhibitory": 0.3},
    ],
    ids=lambda options: options.get("wiring", "dale"),
)
def test_wired_networks_train_pack_and_simulate(config: TrainConfig, options: dict[str, Any]) -> None:
    model = replace(config.model, form="linear", target="trace", hidden=(24,), **options)
    folder = train(replace(config, model=model, optim=replace(config.optim, epochs=12)), quiet=True)
    run = load_run(folder)
    layers = [layer for layer in run.network.modules() if isinstance(layer, BinaryWeight)]
    if "wiring" in options:
        assert all(layer.density < 0.8 for layer in layers[:-1])
        assert layers[-1].density == 1  # the readout
    if options.get("wiring") == "deep_r":
        assert layers[0].rewirings is not None
        assert int(layers[0].rewirings) > 0
    if "inhibitory" in options:
        assert all(layer.signs is not None for layer in layers)
    assert evaluate_run(run, "test").accuracy > 0.85
    pack_run(run)
    assert simulate_run(folder, "test")["parity"]["equal"]


def test_wirings_are_for_dense_binary_networks() -> None:
    with pytest.raises(ValueError, match="expected a 'dense' network of binary weights, got 'dense', 'float'"):
        ModelConfig(wiring="fixed", weights="float")
    with pytest.raises(ValueError, match="got 'vgg11', 'binary'"):
        ModelConfig(inhibitory=0.2, network="vgg11")
