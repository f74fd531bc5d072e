"""The losses a training run may be told to use."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tbnn.losses import cross_entropy, rate_target, temporal_efficient_training
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.train import ModelConfig, OptimConfig, TrainConfig, load_run, train
from tbnn.train.log import read_metrics
from tbnn.train.step import objective
from tbnn.train.work import evaluate_run


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_objective_is_the_sum_of_its_parts(recurrent: bool) -> None:
    first = Recurrent(Leaky(0.9), BinaryLinear(7, 7)) if recurrent else Leaky(0.9)
    network = Network(
        [BinaryLinear(9, 7), first, BinaryLinear(7, 5), Leaky(0.9), BinaryLinear(5, 3), LeakyIntegrator(0.9)]
    )
    x, labels = (torch.rand(6, 4, 9) < 0.5).float(), torch.tensor([0, 1, 2, 1])
    optim = OptimConfig(loss="tet", tet_lambda=0.3, label_smoothing=0.1, rate_weight=2.0, rate_target=0.2)
    loss, readout = objective(network, x, labels, optim)
    rates, y = [], x
    for layer in network.layers:
        out = layer(y)
        y = out[0] if isinstance(out, tuple) else out
        if isinstance(out, tuple) and layer is not network.layers[-1]:
            rates.append(rate_target(y, 0.2))
    assert len(rates) == 2
    assert torch.equal(readout, y)
    tet = temporal_efficient_training(y, labels, 0.3, label_smoothing=0.1)
    torch.testing.assert_close(loss, tet + 2 * (rates[0] + rates[1]))
    plain, _ = objective(network, x, labels, OptimConfig(readout="count", tet_lambda=0.3))
    assert torch.equal(plain, cross_entropy(y, labels, "count"))
    assert not any(m._forward_hooks for m in network.modules())


def test_hooks_go_when_the_network_fails() -> None:
    network = Network([BinaryLinear(9, 7), Leaky(0.9), BinaryLinear(8, 3), LeakyIntegrator(0.9)])  # 7 is not 8
    with pytest.raises((ValueError, RuntimeError)):
        objective(network, torch.zeros(6, 4, 9), torch.zeros(4, dtype=torch.int64), OptimConfig())
    assert not any(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize("options", [{"loss": "tet"}, {"readout": "count"}], ids=["tet", "count"])
def test_learns_to_tell_the_halves(config: TrainConfig, options: dict[str, str]) -> None:
    optim = replace(config.optim, epochs=12, **options)  # pyright: ignore[reportArgumentType]
    run = load_run(train(replace(config, optim=optim), quiet=True))
    assert evaluate_run(run, "test").accuracy > 0.8
    history = read_metrics(run.folder)
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_the_regulariser_brings_rates_to_their_target(config: TrainConfig, rate: float, tmp_path: Path) -> None:
    errors = []
    for weight in (0.0, 30.0):
        optim = replace(config.optim, epochs=12, rate_weight=weight, rate_target=rate)
        folder = train(replace(config, optim=optim, output=str(tmp_path / f"{weight}")), quiet=True)
        errors.append(abs(read_metrics(folder)[-1]["rate/layers.1"] - rate))
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tet_lambda": 1.0}, r"optim.tet_lambda: expected a number in \[0, 1\), got 1.0"),
        ({"rate_weight": -1.0}, "optim.rate_weight: expected a number >= 0, got -1"),
        ({"rate_target": 1.0}, r"optim.rate_target: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_options_that_are_refused(options: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        OptimConfig(**options)  # pyright: ignore[reportArgumentType]


def test_rates_of_denoised_values_are_refused() -> None:
    model = ModelConfig(emit="denoised")
    with pytest.raises(ValueError, match=r"rate_weight: expected 0 with model.emit='denoised'"):
        TrainConfig(model=model, optim=OptimConfig(rate_weight=1.0))
