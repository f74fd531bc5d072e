"""A live start: every spiking layer near the asked rate, whatever the density, the form, the decay or the depth."""

import logging
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tbnn.nn import BinaryLinear, FiringRates, Leaky, LeakyIntegrator, Network, Recurrent, Winners, calibrate
from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.pool import Flatten
from tbnn.nn.residual import Residual


def network(form: str, beta: float, depth: int, recurrent: bool, binary: bool = True, **arguments: Any) -> Network:
    layers: list[nn.Module] = []
    width = 50
    for _ in range(depth):
        layers.append(BinaryLinear(width, 60, form=form) if binary else nn.Linear(width, 60))
        neuron = Leaky(beta, **arguments)
        layers.append(Recurrent(neuron, BinaryLinear(60, 60, form=form)) if recurrent else neuron)
        width = 60
    return Network([*layers, BinaryLinear(width, 4, form=form), LeakyIntegrator(0.9)])


def frames(density: float, seed: int = 0) -> Tensor:
    return (torch.rand(12, 16, 50, generator=torch.Generator().manual_seed(seed)) < density).float()


def rates_of(net: Network, x: Tensor) -> dict[str, float]:
    with FiringRates(net) as rates, torch.no_grad():
        net(x)
    return rates.mean()


@given(
    density=st.sampled_from([0.005, 0.02, 0.1, 0.5, 0.96]),
    form=st.sampled_from(["affine", "linear"]),
    beta=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    depth=st.sampled_from([1, 2, 4]),
    recurrent=st.booleans(),
    rate=st.sampled_from([None, 0.03, 0.2]),
    seed=st.integers(0, 9),
)
@settings(max_examples=16)
@example(density=0.96, form="affine", beta=0.99, depth=6, recurrent=False, rate=None, seed=0)
@example(density=0.005, form="linear", beta=0.0, depth=3, recurrent=True, rate=None, seed=0)
def test_every_layer_fires_within_a_factor_of_two_of_the_rate(
    density: float, form: str, beta: float, depth: int, recurrent: bool, rate: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    net, x = network(form, beta, depth, recurrent), frames(density, seed)
    signs = [p.sign() for p in net.parameters() if p.ndim == 2]
    reached = calibrate(net, x) if rate is None else calibrate(net, x, rate=rate)
    asked = 0.1 if rate is None else rate
    measured = rates_of(net, x)
    assert len(measured) == depth
    for name, got in measured.items():
        assert asked / 2 <= got <= 2 * asked, (name, measured)
        assert reached[name] == pytest.approx(got, rel=0.1, abs=0.005)
    assert all(
        torch.equal(p.sign(), s) for p, s in zip((p for p in net.parameters() if p.ndim == 2), signs, strict=True)
    )


def test_a_saturated_network_comes_back() -> None:
    """Every neuron driven far beyond its threshold: 96 % and more firing before, a tenth after."""
    torch.manual_seed(0)
    net, x = network("affine", 0.9, 4, False), frames(0.5)
    with torch.no_grad():
        for layer in net.layers:
            if isinstance(layer, BinaryLinear):
                layer.weight.abs_().mul_(20)
                layer.bias.fill_(3.0)
    assert all(rate > 0.9 for rate in rates_of(net, x).values())
    calibrate(net, x)
    assert all(0.05 <= rate <= 0.2 for rate in rates_of(net, x).values())


def test_a_silent_network_wakes() -> None:
    torch.manual_seed(0)
    net, x = network("affine", 0.5, 4, True), frames(0.02)
    with torch.no_grad():
        for layer in net.layers:
            if isinstance(layer, BinaryLinear):
                layer.weight.mul_(1e-3)
    assert all(rate == 0 for rate in rates_of(net, x).values())
    calibrate(net, x)
    assert all(0.05 <= rate <= 0.2 for rate in rates_of(net, x).values())


@pytest.mark.parametrize(
    "arguments",
    [{"emit": "denoised"}, {"target": "trace"}, {"reset_mechanism": "zero"}, {"gradient": "surrogate"}],
    ids=str,
)
@pytest.mark.parametrize("binary", [True, False])
def test_every_kind_of_neuron_and_of_weight(arguments: dict[str, Any], binary: bool) -> None:
    torch.manual_seed(2)
    net, x = network("affine", 0.8, 3, False, binary, **arguments), frames(0.05)
    reached = calibrate(net, x)
    assert all(0.05 <= rate <= 0.2 for rate in reached.values())
    measured = rates_of(net.eval(), x)
    assert measured == pytest.approx(reached, rel=0.05)


@pytest.mark.parametrize("std", [None, 3.0])
def test_the_readout_s_mean_over_time_gets_the_asked_deviation(std: float | None) -> None:
    torch.manual_seed(0)
    net, x = network("affine", 0.8, 2, False), frames(0.1)
    calibrate(net, x) if std is None else calibrate(net, x, readout_std=std)
    assert net(x)[0].mean(0).std().item() == pytest.approx(std or 1.0, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(training: bool) -> None:
    net, x = network("affine", 0.8, 2, True, learn_beta=True, emit="denoised").train(training), frames(0.1)
    kept = {n: v.clone() for n, v in net.state_dict().items() if not n.endswith(("weight", "bias"))}
    calibrate(net, x)
    assert net.training is training
    assert all(torch.equal(net.state_dict()[name], value) for name, value in kept.items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("gain", [None, 0.2])
def test_feedback_gets_the_asked_gain_and_its_bias_the_same_factor(gain: float | None) -> None:
    torch.manual_seed(0)
    net, x = network("affine", 0.8, 1, True), frames(0.1)
    feedback = net.layers[1].recurrent_layer
    with torch.no_grad():
        feedback.bias.fill_(0.25)
    before = feedback.weight.detach().clone()
    calibrate(net, x) if gain is None else calibrate(net, x, feedback_gain=gain)
    factor = (gain or 0.5) / (before.abs().mean().item() * 60**0.5)
    torch.testing.assert_close(feedback.weight.detach(), factor * before)
    torch.testing.assert_close(feedback.bias.detach(), torch.full((60,), 0.25 * factor))


def test_packed_words_calibrate_alike() -> None:
    from tbnn import pack_bits

    torch.manual_seed(0)
    net, x = network("affine", 0.8, 2, False), frames(0.1)
    twin = network("affine", 0.8, 2, False)
    twin.load_state_dict(net.state_dict())
    assert calibrate(net, x) == calibrate(twin, pack_bits(x))


def test_a_rate_out_of_reach_is_said(caplog: pytest.LogCaptureFixture) -> None:
    net = network("affine", 0.8, 1, False)
    with caplog.at_level(logging.WARNING, logger="tbnn"):
        reached = calibrate(net, torch.zeros(5, 3, 50))
    assert reached == {"layers.1": 0.0}
    assert "layers.1 fires at 0, not at 0.1" in caplog.text


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.6, float("nan")])
def test_refused_rates(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"rate: expected a number in \(0, 0.5\], got {rate}"):
        calibrate(network("affine", 0.8, 1, False), frames(0.1), rate=rate)


def test_a_norm_without_weights_is_not_what_is_scaled() -> None:
    net = Network([BinaryLinear(50, 60), nn.LayerNorm(60, elementwise_affine=False), Leaky(0.9)])
    x = frames(0.1)
    reached = calibrate(net, x)
    assert reached["layers.2"] == pytest.approx(rates_of(net, x)["layers.2"], abs=1e-6)


@pytest.mark.parametrize("arguments", [{"feedback_gain": 0.0}, {"feedback_gain": -1.0}, {"readout_std": float("nan")}])
def test_gains_must_be_positive(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: expected a finite number > 0"):
        calibrate(network("affine", 0.9, 1, False), frames(0.1), **arguments)


def test_norms_and_residual_blocks_start_alive() -> None:
    """A norm's statistics come from the batch; every neuron, those inside a block too, starts near the rate."""
    torch.manual_seed(0)
    x = (torch.rand(8, 6, 2, 8, 8) < 0.1).float()
    block = Residual([BinaryConv2d(4, 4, 3, padding=1), TemporalBatchNorm(4), Leaky(0.9)])
    net = Network(
        [
            BinaryConv2d(2, 4, 3, padding=1),
            TemporalBatchNorm(4),
            Leaky(0.9),
            block,
            Flatten(),
            BinaryLinear(256, 3),
            LeakyIntegrator(0.9),
        ],
        (2, 8, 8),
    )
    reached = calibrate(net, x, rate=0.1)
    assert list(reached) == ["layers.2", "layers.3.body.layers.2"]
    assert all(abs(rate - 0.1) < 0.03 for rate in reached.values()), reached
    norm = net.layers[1]
    assert norm.momentum == 0.1
    current = net.layers[0](x)
    assert torch.allclose(norm.running_mean, current.mean((0, 1, 3, 4)), atol=1e-5)
    with FiringRates(net.train()) as rates, torch.no_grad():
        net(x)
    assert all(abs(rate - 0.1) < 0.04 for rate in rates.mean().values()), rates.mean()


def test_winners_are_chosen_among_neurons_that_would_fire(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    x = (torch.rand(10, 4, 50) < 0.1).float()
    net, free = Network([BinaryLinear(50, 100), Leaky(0.9, activity=Winners(1))]), Leaky(0.9)
    reached = calibrate(net, x)
    assert reached["layers.1"] <= 0.01
    assert abs(free(net.layers[0](x))[0].mean() - 0.1) < 0.02
    assert net.layers[1].winners == Winners(1)
    assert not caplog.records
