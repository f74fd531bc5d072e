"""Networks of tbnn as networks of snntorch, and back: the same spikes, the same gradients, and what is refused."""

import copy

import pytest
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from tbnn.nn import (
    Adaptive,
    AdLIF,
    BinaryLinear,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    Synaptic,
    TargetRate,
    Winners,
)
from tbnn.nn.config import network_from_config, network_to_config
from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.delay import Delay
from tbnn.nn.dropout import SpikeDropout
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.pool import AvgPool2d, Flatten, MaxPool2d, Voting
from tbnn.nn.snntorch import from_snntorch
from tbnn.nn.snntorch_export import OneToOne, SnntorchNetwork, to_snntorch
from tbnn.surrogate import signed
from tests.nn.snntorch_nets import CASES, assert_same_gradients, build, in_order, loop


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case: str) -> None:
    net, x = build(case)
    ours = from_snntorch(net)
    there = to_snntorch(ours)
    back = from_snntorch(there)
    leaf = [x.clone().requires_grad_() for _ in range(3)]
    outs = [module(one)[0] for module, one in zip((ours, there, back), leaf, strict=True)]
    weights = torch.randn_like(outs[0])
    wants = torch.autograd.grad(outs[0], [leaf[0], *in_order(ours)], weights)
    for module, out, one in zip((there, back), outs[1:], leaf[1:], strict=True):
        assert torch.equal(out, outs[0])
        assert_same_gradients(torch.autograd.grad(out, [one, *in_order(module)], weights), wants)
    assert [repr(layer) for layer in back.layers] == [repr(layer) for layer in ours.layers]


def test_export_of_binary_layers_and_pools() -> None:
    """Affine weights with sparsity, tbnn's pools and norm, the membrane as readout."""
    ours = Network(
        [
            BinaryConv2d(2, 4, 3, padding="same", sparsity=0.5), TemporalBatchNorm(4), Leaky(0.5),
            MaxPool2d(2), AvgPool2d(2), Flatten(), BinaryLinear(16, 8),
            TemporalBatchNorm(8, affine=False), Recurrent(Synaptic(0.5, 0.75), BinaryLinear(8, 8)),
            Recurrent(Leaky(0.5), OneToOne(0.25)), BinaryLinear(8, 3, bits=1.58), LeakyIntegrator(0.9),
        ],
        input_shape=(2, 8, 8),
    )  # fmt: skip
    x = (torch.rand(9, 4, 2, 8, 8) < 0.4).float()
    ours(x)
    ours.eval()
    there = to_snntorch(ours)
    want = ours(x)[0]
    for given in (x, x.flatten(2)):
        torch.testing.assert_close(there(given)[0], want, rtol=1e-4, atol=1e-4)
    back = from_snntorch(there)
    torch.testing.assert_close(back(x.flatten(2))[0], want, rtol=1e-4, atol=1e-4)
    assert not back.training
    assert want.abs().max() > 0.1


def test_a_decay_that_stops_short_of_one_and_a_frozen_one() -> None:
    """The trace target's learned decays end at 0.9999; a parameter that does not learn goes on not to."""
    trace = Leaky(0.5, learn_beta=True, target="trace")
    still = Synaptic(0.5, 0.25, learn_alpha=True, learn_beta=True, learn_threshold=True)
    with torch.no_grad():
        trace.beta.fill_(2.0)
    still.alpha.requires_grad_(False)
    still.threshold.requires_grad_(False)
    there = to_snntorch(Network([trace, still]))
    assert there.layers[0].beta.item() == pytest.approx(0.9999)
    assert [name for name, value in there.named_parameters() if value.requires_grad] == [
        "layers.0.beta",
        "layers.1.beta",
    ]


def test_a_converted_network_is_a_configuration() -> None:
    ours = from_snntorch(build("rsynaptic")[0])
    again = network_from_config(network_to_config(ours))
    assert repr(again) == repr(ours)
    assert again.layers[1].neuron.alpha.item() == 0.5
    again.load_state_dict(ours.state_dict())
    x = (torch.rand(6, 2, 7) < 0.5).float()
    assert torch.equal(again(x)[0], ours(x)[0])


def test_an_exported_network_hides_nothing() -> None:
    net, x = build("rsynaptic")
    alive = len(SpikingNeuron.instances)
    there = to_snntorch(from_snntorch(net))
    assert len(SpikingNeuron.instances) == alive
    whole, last = there(x)
    first, middle = there(x[:5])
    second, end = there(x[5:], middle)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(end[1][2], last[1][2])
    assert torch.equal(copy.deepcopy(there)(x)[0], whole)
    assert {value.numel() for name, value in there.named_buffers() if name.endswith((".mem", ".spk", ".syn"))} == {0}
    with pytest.raises(ValueError, match=r"expected \(T, B, features...\), got \(3, 7\)"):
        there(x[0])
    with pytest.raises(ValueError, match="state: expected one entry for each of 4 layers, got 1"):
        there(x, (None,))


def test_what_snntorch_does_not_have_is_refused() -> None:
    linear = nn.Linear(4, 4)
    for layer, message in (
        (Adaptive(0.5, 0.5), r"layers.1 \(Adaptive\): snntorch has no counterpart"),
        (AdLIF(0.5, 0.5), r"layers.1 \(AdLIF\): snntorch has no counterpart"),
        (Delay(4, 2), r"layers.1 \(Delay\): snntorch has no counterpart"),
        (SpikeDropout(0.5), r"\(SpikeDropout\): snntorch has no counterpart"),
        (Voting(2), r"\(Voting\): snntorch has no counterpart"),
        (nn.Flatten(1), r"\(Flatten\): start_dim: expected an axis after time and batch, got 1"),
        (Leaky(0.5, activity=Winners(1)), r"\(Leaky\): activity: expected None, got a Winners"),
        (Leaky(0.5, activity=TargetRate(0.1)), r"\(Leaky\): activity: expected None, got a TargetRate"),
        (Leaky(0.5, refractory=2), r"\(Leaky\): refractory: expected 0, got 2"),
        (Leaky(0.5, emit="denoised"), r"\(Leaky\): emit: expected 'bits', got 'denoised'"),
        (Leaky(0.5, gradient="surrogate", scale=2.0), r"\(Leaky\): scale: expected 1"),
        (Leaky(0.5, target="trace", surrogate=signed()), r"\(Leaky\): surrogate.ddt: base: expected .* soft spike"),
        (Synaptic(0.5, 0.5, reset_mechanism="zero"), r"\(Synaptic\): reset_mechanism='zero'"),
        (Recurrent(Leaky(0.5, reset_mechanism="zero"), linear), r"\(Recurrent\): reset_mechanism='zero'"),
        (Recurrent(Leaky(0.5), linear, delay=2), r"\(Recurrent\): delay: expected 1, got 2"),
        (Recurrent(AdLIF(0.5, 0.5), linear), r"\(Recurrent\): neuron: expected Leaky or Synaptic, got AdLIF"),
        (Recurrent(Leaky(0.5), nn.Identity()), r"\(Recurrent\): recurrent_layer: .* got Identity"),
    ):
        with pytest.raises(ValueError, match=message):
            to_snntorch(Network([linear, layer]))
    with pytest.raises(ValueError, match=r"to_snntorch: expected a tbnn.nn.Network, got Linear"):
        to_snntorch(linear)


def test_the_loop_takes_plain_layers() -> None:
    net, x = build("synaptic")
    assert torch.equal(SnntorchNetwork(net)(x)[0], loop(list(net), x)[0])
