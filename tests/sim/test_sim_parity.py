"""The comparison of a packed network with its model: it passes what is equal and finds what is not."""

import json
from dataclasses import replace

import pytest
import torch
from sim_networks import small_input, small_network
from torch import Tensor

from tbnn.bits import pack_bits
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, Winners
from tbnn.sim import LayerParity, PackedLeaky, PackedLinear, PackedNetwork, Parity, check_parity, pack


def changed(packed: PackedNetwork, index: int, **tensors: Tensor) -> PackedNetwork:
    """The network with other tensors in one layer."""
    layers = list(packed.layers)
    layers[index] = replace(layers[index], **tensors)
    return replace(packed, layers=tuple(layers))


def two_neurons(threshold: float = 1.0) -> Network:
    """One input; neurons that get 1 and -1 from it and forget at once; both feed a second neuron and its readout."""
    first, second, last = (BinaryLinear(*sizes, False, form="linear", lam=0.0) for sizes in ((1, 2), (2, 1), (1, 1)))
    first.weight.data = torch.tensor([[1.0], [-1.0]])
    second.weight.data = torch.tensor([[1.0, 1.0]])
    last.weight.data = torch.tensor([[1.0]])
    forget = {"reset_mechanism": "none"}
    return Network(
        [first, Leaky(0.0, threshold, **forget), second, Leaky(0.0, 0.5, **forget), last, LeakyIntegrator(0.0)]
    )


X = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(4, 1, 1).repeat(1, 2, 1)
X[:, 1] = 0  # the second sample gets nothing


@pytest.mark.parametrize("convert", [lambda x: x, pack_bits, Tensor.bool])
def test_equal(convert: object) -> None:
    network = small_network().train()
    parity = check_parity(network, pack(network), convert(small_input()))
    assert parity.equal
    assert parity.ok
    assert parity.readout_difference == 0
    assert parity.layers == (LayerParity("layers.1", 1080, 0, 0, 0), LayerParity("layers.3", 1080, 0, 0, 0))
    assert network.training
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_spike_too_many_far_from_the_threshold_breaks_it() -> None:
    network = two_neurons(1.25)
    packed = changed(pack(network), 1, threshold=torch.tensor([0.75]))
    parity = check_parity(network, packed, X)
    assert parity.layers[0] == LayerParity("layers.1", 16, 2, 0, 1)
    assert not parity.ok
    assert "BROKEN" in parity.summary()


def test_a_spike_at_the_threshold_is_tolerated_and_what_follows_is_not_judged() -> None:
    network = two_neurons()
    parity = check_parity(network, changed(pack(network), 1, threshold=torch.tensor([0.999999])), X)
    # Steps 0 and 2 of the first sample: the first is tolerated, everything after it in that sample follows from it.
    assert parity.layers == (LayerParity("layers.1", 16, 2, 1, 1), LayerParity("layers.3", 8, 2, 0, 2))
    assert parity.ok
    assert not parity.equal
    assert parity.readout_difference == 0  # of what is judged: the second sample
    assert "within the contract" in parity.summary()


@pytest.mark.parametrize(("off", "near"), [(0.5e-5, True), (2e-5, False)])
def test_the_tolerance_is_relative_to_the_membrane(off: float, near: bool) -> None:
    # v = 4 against thresholds of 4·(1 + off) in the model, 3.5 in the packed network.
    network = two_neurons(4 * (1 + off))
    network.layers[0].weight.data *= 4
    parity = check_parity(network, changed(pack(network), 1, threshold=torch.tensor([3.5])), X)
    assert parity.ok == near


@pytest.mark.parametrize("index", [2, 4])
def test_a_wrong_sign_is_found(index: int) -> None:
    network = two_neurons(0.5)
    packed = pack(network)
    layer = packed.layers[index]
    assert isinstance(layer, PackedLinear)
    parity = check_parity(network, changed(packed, index, planes=torch.zeros_like(layer.planes)), X)
    assert not parity.ok
    assert not parity.equal


def test_a_readout_off_by_little_or_much() -> None:
    network = small_network()
    packed, x = pack(network), small_input()
    bias = packed.layers[4].bias
    little = check_parity(network, changed(packed, 4, bias=bias + 1e-7), x)
    assert little.ok
    assert not little.equal
    assert 0 < little.readout_difference < 1e-5
    much = check_parity(network, changed(packed, 4, bias=bias + 1e-3), x)
    assert not much.ok


def test_feedback_is_compared() -> None:
    network = small_network()
    packed = pack(network)
    layer = packed.layers[3]
    assert isinstance(layer, PackedLeaky)
    feedback = replace(layer.feedback, planes=torch.zeros_like(layer.feedback.planes))
    assert not check_parity(network, changed(packed, 3, feedback=feedback), small_input()).ok


@pytest.mark.parametrize("recurrent", [False, True])
def test_denoised_spikes_and_a_spiking_output(recurrent: bool) -> None:
    neuron = Leaky(0.9, emit="denoised", per_channel=False)
    hidden = Recurrent(neuron, BinaryLinear(40, 40)) if recurrent else neuron
    network = Network([BinaryLinear(7, 40), hidden, BinaryLinear(40, 9), Leaky(0.8)])
    network(small_input())
    parity = check_parity(network, pack(network), small_input())
    assert parity.ok
    assert parity.readout_difference is None
    assert [layer.compared for layer in parity.layers] == [9 * 3 * 40, 9 * 3 * 9]
    other = Network([*network.layers[:3], Leaky(0.2)])
    assert not check_parity(other, pack(network), small_input()).ok


def test_the_report_is_plain() -> None:
    parity = Parity((LayerParity("layers.1", 10, 3, 1, 2),), 0.25, True, False)
    assert parity.ok
    assert json.loads(json.dumps(parity.as_dict())) == parity.as_dict()
    assert parity.as_dict()["ok"] is True
    assert parity.summary() == (
        "parity within the contract: 3 of 10 spikes differ (1 at the threshold, 2 after those); "
        "readout differs by at most 0.25"
    )


def test_other_winners_break_it_and_equal_ones_do_not() -> None:
    """Winners are tolerated at a tie only: a wrong constant is found, the right network passes."""
    torch.manual_seed(3)
    layers = [BinaryLinear(9, 30), Leaky(0.5, activity=Winners(3)), BinaryLinear(30, 4), LeakyIntegrator(0.5)]
    network = Network(layers).eval()
    x = (torch.rand(12, 4, 9, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    packed = pack(network)
    assert check_parity(network, packed, x).equal
    assert not check_parity(network, changed(packed, 1, beta=torch.tensor([0.25])), x).ok
