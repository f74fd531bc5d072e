"""Firing rates by hand, and what is said about a dead or a saturated layer."""

import pytest
import torch
from torch import nn

from tbnn.nn import BinaryLinear, FiringRates, Leaky, Network, Recurrent, health_warnings
from tbnn.nn.health import firing_rate, spiking_layers


def test_rates_by_hand() -> None:
    """Without memory a neuron fires where its current is above 1: 3 of 8, then 4 of 4, so 7 of 12."""
    net = Network([Leaky(0.0, reset_mechanism="none")])
    first = torch.tensor([2.0, 2, 0, 2, 0, 0, 1, 0.5]).reshape(2, 2, 2)
    with FiringRates(net) as rates:
        net(first)
        assert rates.mean() == {"layers.0": 3 / 8}
        net(torch.full((2, 1, 2), 5.0))
    assert rates.mean() == {"layers.0": pytest.approx(7 / 12)}
    net(torch.zeros(2, 2, 2))  # outside the block: not counted
    assert rates.mean() == {"layers.0": pytest.approx(7 / 12)}


def test_two_layers_and_a_recurrent_one_have_a_name_each() -> None:
    feedback = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(feedback.weight)
    net = Network([Leaky(0.0, 0.5), Recurrent(Leaky(0.0, 0.25), feedback), Leaky(0.0, 2.0)])
    assert list(spiking_layers(net)) == ["layers.0", "layers.1", "layers.2"]
    with FiringRates(net) as rates:
        net(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]).reshape(2, 2, 2))
    assert rates.mean() == {"layers.0": 1 / 8, "layers.1": 1 / 8, "layers.2": 0.0}


def test_hooks_leave_with_the_block_even_after_an_error() -> None:
    net = Network([Leaky(0.5)])
    with pytest.raises(ValueError, match="expected floating point"), FiringRates(net) as rates:
        net(torch.zeros(0, 1, 1))
    assert rates.mean() == {}
    assert not net.layers[0]._forward_hooks


@pytest.mark.parametrize("arguments", [{}, {"per_channel": False}, {"stats": "step"}], ids=str)
@pytest.mark.parametrize("offset", [0.2, -0.6])
def test_denoised_spikes_are_counted_in_evaluation(arguments: dict[str, object], offset: float) -> None:
    bits, denoised = Leaky(0.8), Leaky(0.8, emit="denoised", **arguments)  # type: ignore[arg-type]
    x = torch.randn(30, 4, 3, 5) + offset
    denoised(x)
    denoised.eval()
    assert firing_rate(denoised, denoised(x)[0]) == pytest.approx(bits(x)[0].mean().item(), abs=1e-7)


def test_warnings_name_the_layer_and_its_rate() -> None:
    lines = health_warnings({"quiet": 0.0009, "fine": 0.1, "edge": 0.001, "top": 0.9, "loud": 0.9512, "off": 0.0})
    assert len(lines) == 3
    assert lines[0].startswith("quiet is dead: it fires at 0.090%")
    assert lines[1].startswith("loud is saturated: it fires at 95.1%")
    assert lines[2].startswith("off is dead: it fires at 0.000%")


def test_dead_and_saturated_layers_of_a_network_are_found() -> None:
    net = Network([Leaky(0.5, 1e3), Leaky(0.5, -1.0)])
    with FiringRates(net) as rates:
        net(torch.rand(20, 2, 5))
    lines = health_warnings(rates.mean())
    assert [line.split(":")[0] for line in lines] == ["layers.0 is dead", "layers.1 is saturated"]


def test_constant_blocks_are_named() -> None:
    net = Network([BinaryLinear(8, 4, block=4), Leaky(0.5)])
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.tensor([1.0, -1, 1, -1, 1, 1, -1, -1]).expand(4, 8))
    assert health_warnings({}, net) == []
    with torch.no_grad():
        net.layers[0].weight[0, :4] = 0.5
        net.layers[0].weight[2] = -0.5
    (line,) = health_warnings({}, net)
    assert line == "layers.0 has 3 of 8 weight blocks of one value only (Var(q) = 0): their weights are their mean"
