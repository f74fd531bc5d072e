"""A surrogate's scale from the ridge slope on the trace: against the formulas written out, and where it does not hold."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn.learning import match_scale
from tbnn.nn import Adaptive, BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, calibrate
from tbnn.surrogate import Surrogate, atan, boxcar, fast_sigmoid, sigmoid
from tbnn.train.config import ModelConfig

BETA, T, B, INPUTS, HIDDEN = 0.8, 30, 7, 12, 9


def network_of(surrogate: Surrogate | None = None, recurrent: bool = False, **options: Any) -> Network:
    torch.manual_seed(1)
    neuron = Leaky(BETA, gradient="surrogate", surrogate=surrogate or atan(), **options)
    layer = Recurrent(neuron, BinaryLinear(HIDDEN, HIDDEN)) if recurrent else neuron
    network = Network([BinaryLinear(INPUTS, HIDDEN), layer, BinaryLinear(HIDDEN, 3), LeakyIntegrator(0.9)])
    calibrate(network, spikes(), rate=0.2)
    return network


def spikes() -> Tensor:
    return (torch.rand(T, B, INPUTS, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def scale_of(network: Network) -> float:
    layer: Any = network.layers[1]
    return getattr(layer, "neuron", layer).spike_gradient.scale


def written_out(network: Network, surrogate: Surrogate, recurrent: bool, lam: float) -> float:
    """The docstring's ratio, in float64: traces of current and spikes, a regression a neuron, means over all."""
    layer: Any = network.layers[1]
    current = network.layers[0](spikes()).detach()
    out = layer(current)[0].detach()
    if recurrent:
        before = torch.cat([torch.zeros_like(out[:1]), out[:-1]])
        current = current + layer.recurrent_layer(before).detach()
    driven = down = torch.zeros(B, HIDDEN, dtype=torch.float64)
    levels, rates, held = [], [], []
    for i, q in zip(current.double(), out.double(), strict=True):
        driven = BETA * driven + i
        levels.append(driven - down - 1)
        rates.append((1 - BETA) * driven)
        down = BETA * down + q
        held.append((1 - BETA) * down)
    raw, q = torch.stack(rates), torch.stack(held)
    x, passes = raw.clamp(-0.05, 1), (raw >= -0.05) & (raw <= 1)
    covariance = ((x - x.mean((0, 1))) * (q - q.mean((0, 1)))).mean((0, 1))
    slope = covariance / (q.var((0, 1), correction=0) + lam * (1 - BETA) / (1 + BETA))
    wanted = (slope * (1 - BETA) * passes).mean()
    return (wanted / surrogate.derivative(torch.stack(levels)).mean()).item()


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("surrogate", [atan(), fast_sigmoid(), sigmoid(4.0), boxcar()])
def test_the_scale_is_the_ratio_of_the_mean_slopes(surrogate: Surrogate, recurrent: bool) -> None:
    network = network_of(surrogate, recurrent)
    found = match_scale(network, spikes(), lam=0.02)
    assert list(found) == ["layers.1"]
    assert found["layers.1"] == scale_of(network)
    assert found["layers.1"] == pytest.approx(written_out(network, surrogate, recurrent, 0.02), rel=1e-3)


def test_it_depends_on_the_activity_alone_and_a_factor_multiplies_it() -> None:
    network = network_of()
    first = match_scale(network, spikes())["layers.1"]
    network.layers[1].spike_gradient = replace(network.layers[1].spike_gradient, scale=40.0)
    assert match_scale(network, spikes()) == {"layers.1": first}
    assert match_scale(network, spikes(), factor=3.0)["layers.1"] == pytest.approx(3 * first)
    assert match_scale(network, spikes())["layers.1"] == first


def test_a_matched_gradient_does_not_depend_on_the_surrogates_height() -> None:
    """sigmoid(25) passes many times as much as fast_sigmoid(100); matched, both pass as much on average."""
    gradients = []
    for surrogate in (sigmoid(25.0), fast_sigmoid(100.0)):
        network, norms = network_of(surrogate), []
        for matched in (False, True):
            if matched:
                match_scale(network, spikes())
            network.zero_grad()
            network(spikes())[0].square().sum().backward()
            norms.append(network.layers[0].weight.grad.norm().item())  # pyright: ignore[reportOptionalMemberAccess]
        gradients.append(norms)
    apart, together = (abs(torch.tensor(a / b).log().item()) for a, b in zip(*gradients, strict=True))
    assert together < 0.5 * apart


def test_it_changes_nothing_but_scales() -> None:
    network = network_of().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    out = network(spikes())[0]
    match_scale(network, spikes())
    assert network.training
    assert torch.equal(network(spikes())[0], out)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.layers.append(Leaky(0.5, target="trace"))
    kept = network.layers[4].spike_gradient
    assert list(match_scale(network, spikes())) == ["layers.1"]
    assert network.layers[4].spike_gradient is kept


def test_a_layer_far_from_its_threshold_keeps_its_scale() -> None:
    network = network_of(boxcar())
    network.layers[0].weight.data *= 1e-6
    assert match_scale(network, spikes()) == {"layers.1": 1.0}


def test_neurons_with_an_adaptive_threshold_too() -> None:
    network = network_of()
    network.layers[1] = Adaptive(0.9, 0.95, gradient="surrogate")
    assert 0 < match_scale(network, spikes())["layers.1"] < 10


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda: Network([BinaryLinear(INPUTS, 3), Leaky(0.9)]), {}, "expected a network with neurons of gradient='surrogate'"),
        (lambda: network_of(reset_mechanism="zero"), {}, r"match_scale: layers\.1: target='trace' holds for reset 'subtract'"),
        (network_of, {"lam": 0.0}, "lam: expected a finite number > 0, got 0"),
        (network_of, {"factor": float("nan")}, "factor: expected a finite number > 0, got nan"),
    ],
)  # fmt: skip
def test_refusals(make: Any, options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        match_scale(make(), spikes(), **options)


def test_the_option_of_training_needs_a_surrogate() -> None:
    assert ModelConfig(gradient="surrogate", match_scale=True).match_scale
    with pytest.raises(ValueError, match=r"model\.match_scale: expected model\.gradient 'surrogate', got 'ddt'"):
        ModelConfig(match_scale=True)
