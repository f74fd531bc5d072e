"""Networks as graphs of NIR and back: NIR's own equations, round trips bit for bit, and what is refused."""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tbnn.nn import (
    Adaptive,
    AdLIF,
    AvgPool2d,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Delay,
    DelayedLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
    Residual,
    SpikeDropout,
    Synaptic,
    TargetRate,
    TemporalBatchNorm,
    Voting,
    Winners,
)
from tbnn.nn.nir import to_nir
from tbnn.nn.nir_import import from_nir
from tbnn.nn.snntorch_export import OneToOne
from tests.nn.nir_graphs import DT, euler, spikes
from tests.nn.snntorch_nets import exact


def through_file(network: Network, path: Path, **options: Any) -> Network:
    nir.write(path / "network.nir", to_nir(network))
    return from_nir(path / "network.nir", **options)


SPREAD = torch.tensor([0.5, 0.25, 0.75, 0.0, 0.875])
BY_EQUATION = {
    "LIF": Leaky(0.75, 0.5, reset_mechanism="zero"),
    "LIF spread": Leaky(SPREAD, SPREAD + 0.5, reset_mechanism="zero"),
    "IF": Leaky(1.0, 2.0, reset_mechanism="zero"),
    "LI": LeakyIntegrator(SPREAD),
    "I": LeakyIntegrator(1.0),
    "CubaLIF": Synaptic(0.5, 0.75, reset_mechanism="zero"),
    "LI Threshold": Leaky(0.75, reset_mechanism="none"),
    "I Threshold": Leaky(1.0, 3.0, reset_mechanism="none"),
    "CubaLI Threshold": Synaptic(SPREAD, 0.5, reset_mechanism="none"),
}


@pytest.mark.parametrize("case", BY_EQUATION)
def test_the_nodes_obey_nirs_equations(case: str) -> None:
    layer = BY_EQUATION[case]
    current = (torch.randn(60, 3, 5) * 8).round() / 8
    graph = to_nir(Network([layer]), dt=DT, input_shape=[5])
    node, *threshold = (node for name, node in graph.nodes.items() if name.startswith("layer"))
    assert [type(one).__name__ for one in (node, *threshold)] == case.removesuffix(" spread").split()
    wants = euler(node, current.numpy(), threshold[0].threshold if threshold else None)
    got = layer(current)[0].numpy()
    assert 0 < abs(got).mean() != 1
    np.testing.assert_allclose(got, wants, rtol=1e-5, atol=1e-6)  # spikes: equal


def test_parameters_by_hand() -> None:
    """β = 1 − dt/τ, and an input that counts whole."""
    graph = to_nir(Network([nn.Linear(2, 3), Synaptic(0.5, 0.75, 0.25)]), dt=DT)
    node = graph.nodes["layer_1"]
    for name, want in (("tau_syn", 2e-3), ("tau_mem", 4e-3), ("w_in", 2), ("r", 4), ("v_threshold", 0.25)):
        np.testing.assert_allclose(getattr(node, name), np.full(3, want), rtol=1e-12)
    assert not np.stack([node.v_leak, node.v_reset]).any()
    assert node.metadata == {"reset_mechanism": "subtract"}
    assert graph.metadata == {"dt": DT, "source": "tbnn"}
    assert graph.edges == [("input", "layer_0"), ("layer_0", "layer_1"), ("layer_1", "output")]


@given(st.floats(2**-24, 1, width=32), st.sampled_from([1e-4, 1e-3, 1.0]))
def test_every_decay_comes_back(beta: float, dt: float) -> None:
    network = from_nir(to_nir(Network([Leaky(beta)]), dt=dt, input_shape=[2]))
    assert network.layers[0].beta.item() == beta  # type: ignore[union-attr, operator]


dyadic = st.integers(0, 7).map(lambda k: k / 8)
resets = st.sampled_from(["subtract", "zero", "none"])


@st.composite
def neurons(draw: Any, features: int) -> nn.Module:
    options = {"reset_mechanism": draw(resets)}
    theta = draw(st.sampled_from([0.5, 1.0, 1.25]))
    beta = draw(dyadic | st.just(1.0) | st.lists(dyadic, min_size=features, max_size=features).map(torch.tensor))
    neuron = draw(
        st.sampled_from([Leaky(beta, theta, **options), Synaptic(draw(dyadic), draw(dyadic), theta, **options)])
    )
    feedback = draw(st.sampled_from([None, nn.Linear(features, features, bias=False), OneToOne(-0.5)]))
    if feedback is None:
        return neuron
    return Recurrent(neuron, exact(nn.Sequential(feedback))[0], draw(st.integers(1, 3)))


@st.composite
def chains(draw: Any) -> Network:
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=draw(st.booleans())), draw(neurons(after))]
        if draw(st.booleans()):
            layers.append(Delay(after, 3, learn=False))
    if draw(st.booleans()):
        layers += [nn.Linear(sizes[-1], 3), LeakyIntegrator(draw(dyadic))]
    return exact(Network(layers))  # type: ignore[return-value]


@given(chains())
def test_chains_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, network: Network) -> None:
    back = through_file(network, tmp_path_factory.getbasetemp())
    x = spikes(12, 3, network.layers[0].in_features)  # type: ignore[arg-type]
    assert torch.equal(back(x)[0], network(x)[0])
    again = to_nir(back)
    for name, node in to_nir(network).nodes.items():
        assert type(again.nodes[name]) is type(node)


def spatial() -> Network:
    network = Network(
        [
            nn.Conv2d(2, 4, (3, 1), padding="same", groups=2, bias=False), Leaky(0.5), SpikeDropout(0.5), AvgPool2d(2),
            nn.Conv2d(4, 3, 3, stride=(2, 1), padding=1, dilation=(1, 2)), Recurrent(Leaky(1.0, 2.0), nn.Conv2d(3, 3, 3, padding=1)),
            nn.AvgPool2d((2, 1), divisor_override=1), Delay(3, 4, delay=torch.tensor([4, 0, 2]), learn=False),
            nn.Dropout(), nn.Flatten(3, -1), Flatten(), nn.Linear(30, 8), Synaptic(0.5, 0.75), Voting(4),
        ],
        input_shape=(2, 14, 14),
    )  # fmt: skip
    return exact(network).eval()  # type: ignore[return-value]


def test_convolutions_pools_and_delays_come_back_bit_for_bit(tmp_path: Path) -> None:
    network = spatial()
    back = through_file(network, tmp_path)
    assert back.input_shape == (2, 14, 14)
    x = spikes(30, 3, 2, 14, 14)
    y = network(x)[0]
    assert 0.05 < y.mean() < 0.95
    assert torch.equal(back(x)[0], y)
    assert [getattr(layer, "divisor_override", None) for layer in back.layers].count(1) == 1


def test_one_dimensional_convolutions_come_back(tmp_path: Path) -> None:
    layers = [nn.Conv1d(2, 4, 3, 2, 1), Leaky(0.5), BinaryConv1d(4, 3, 3, padding="same"), LeakyIntegrator(0.5)]
    network = exact(Network(layers, input_shape=(2, 9)))
    back = through_file(network, tmp_path)  # type: ignore[arg-type]
    x = spikes(10, 3, 2, 9)
    torch.testing.assert_close(back(x)[0], network(x)[0])


def test_binary_weights_are_written_out_with_their_norms(tmp_path: Path) -> None:
    layers = [
        BinaryConv2d(2, 4, 3, bits=2), TemporalBatchNorm(4), Leaky(0.5), Flatten(), BinaryLinear(144, 6, bits=None),
        nn.Identity(), Recurrent(Leaky(0.5), BinaryLinear(6, 6, sparsity=0.5, form="linear")), nn.Linear(6, 5),
        TemporalBatchNorm(5), LeakyIntegrator(0.5),
    ]  # fmt: skip
    network = Network(layers, input_shape=(2, 8, 8))
    x = spikes(20, 3, 2, 8, 8)
    network(x)  # the norms' statistics
    network.eval()
    graph = to_nir(network)
    assert graph.nodes["layer_0"].metadata == {"bits": 2, "form": "affine"}
    assert graph.nodes["layer_4"].metadata == {}
    back = through_file(network, tmp_path)
    weight = network.layers[6].recurrent_layer.quantized_weight()  # type: ignore[union-attr, operator]
    assert torch.equal(back.layers[4].recurrent_layer.weight, weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(back.layers[3].weight, layers[4].quantized_weight())  # type: ignore[operator, arg-type]
    torch.testing.assert_close(back(x)[0], network(x)[0], rtol=1e-4, atol=1e-4)
    assert isinstance(network.layers[1], TemporalBatchNorm)  # untouched


def test_latent_weights_of_binary_layers(tmp_path: Path) -> None:
    network = spatial()
    back = through_file(
        network, tmp_path, weights="binary", binary={"bits": 1.58, "form": "linear"}, neuron={"lam": 0.5}
    )
    kinds = [type(layer) for layer in back.layers]
    assert kinds[:2] + kinds[-3:] == [BinaryConv2d, Leaky, BinaryLinear, Synaptic, BinaryLinear]
    assert isinstance(back.layers[4].recurrent_layer, BinaryConv2d)  # type: ignore[union-attr]
    assert torch.equal(back.layers[0].weight, network.layers[0].weight)  # type: ignore[arg-type]
    assert back.layers[0].bits == 1.58  # type: ignore[union-attr]
    assert back.layers[1].spike_gradient.lam == 0.5  # type: ignore[union-attr]


def test_what_a_neuron_learns_or_holds_is_written_as_it_is_now() -> None:
    learned = Leaky(0.5, learn_beta=True, learn_threshold=True)
    held = Leaky(0.5, activity=TargetRate(0.05))
    network = Network([nn.Linear(4, 4), learned, nn.Linear(4, 4), held])
    with torch.no_grad():
        learned.beta.fill_(-0.5)
        learned.threshold.fill_(0.75)
    for _ in range(20):
        network(spikes(20, 8, 4))
    back = from_nir(to_nir(network)).layers
    assert (back[1].beta, back[1].threshold) == (0, 0.75)  # type: ignore[union-attr]
    theta = held.effective_threshold(torch.Size([4])).expand(4)
    assert not torch.equal(theta, torch.ones(4))
    assert torch.equal(back[3].threshold.expand(4), theta)  # type: ignore[union-attr, operator]


REFUSED = {
    r"layers.0 \(MaxPool2d\).*no node": ([MaxPool2d(2)], (2, 4, 4)),
    r"layers.0 \(Adaptive\).*no node": ([Adaptive(0.5)], (3,)),
    r"layers.0 \(AdLIF\).*no node": ([AdLIF(0.5)], (3,)),
    r"layers.0 \(Residual\).*no node": ([Residual([nn.Linear(3, 3), Leaky(0.5)])], (3,)),
    r"layers.0 \(DelayedLinear\).*no node": ([DelayedLinear(3, 3, 2)], (3,)),
    r"layers.0 \(ReLU\).*no node": ([nn.ReLU()], (3,)),
    r"layers.1 \(Leaky\): refractory: expected 0, got 2": ([nn.Identity(), Leaky(0.5, refractory=2)], (3,)),
    r"layers.0 \(Leaky\): activity": ([Leaky(0.5, activity=Winners(1))], (3,)),
    r"layers.0 \(Leaky\): emit: expected 'bits', got 'denoised'": ([Leaky(0.5, emit="denoised")], (3,)),
    r"layers.0 \(Leaky\): beta: expected values below 1": ([Leaky(torch.tensor([0.5, 1.0, 1.0]))], (3,)),
    r"layers.0 \(Synaptic\): alpha: expected values below 1": ([Synaptic(1.0, 0.5)], (3,)),
    r"layers.0 \(Recurrent\): neuron: expected Leaky or Syn": ([Recurrent(Adaptive(0.5), nn.Linear(3, 3))], (3,)),
    r"layers.0 \(Recurrent\): refractory": ([Recurrent(Leaky(0.5, refractory=1), nn.Linear(3, 3))], (3,)),
    r"\(Recurrent\): recurrent_layer \(ReLU\)": ([Recurrent(Leaky(0.5), nn.ReLU())], (3,)),
    r"layers.0 \(Linear\): expected flat features": ([nn.Linear(3, 3)], (2, 3)),
    r"layers.0 \(Linear\): mat1": ([nn.Linear(4, 3)], (3,)),
    r"padding_mode: expected 'zeros'": ([nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")], (2, 4, 4)),
    r"ceil_mode": ([nn.AvgPool2d(2, ceil_mode=True)], (2, 4, 4)),
    r"divisor_override: expected None or 1, got 3": ([nn.AvgPool2d(2, divisor_override=3)], (2, 4, 4)),
    r"layers.0: expected a binary layer right before a norm": ([TemporalBatchNorm(3)], (3,)),
    r"start_dim": ([nn.Flatten(1, -1)], (2, 3)),
    r"input_shape: expected the sizes": ([Leaky(0.5)], None),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_nir_cannot_say(message: str) -> None:
    layers, shape = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        to_nir(Network(layers), input_shape=shape)


def test_arguments_out_of_range() -> None:
    network = Network([nn.Linear(2, 3)])
    graph = to_nir(network)
    for call, message in (
        (lambda: to_nir(nn.Linear(2, 3)), "to_nir: expected a tbnn.nn.Network, got Linear"),  # type: ignore[arg-type]
        (lambda: to_nir(network, dt=0), "dt: expected seconds > 0, got 0"),
        (lambda: from_nir(graph, dt=-1), "dt: expected seconds > 0, got -1"),
        (lambda: from_nir(graph, weights="ternary"), "weights: expected 'float' or 'binary', got 'ternary'"),
        (lambda: from_nir(graph, binary={}), "binary: options of binary layers need weights='binary'"),
        (lambda: from_nir(graph, neuron={"bets": 1}), "neuron: expected some of .*, got 'bets'"),  # type: ignore[typeddict-unknown-key]
        (lambda: from_nir(network), "expected a nir.NIRGraph or a path, got Network"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (lambda: to_nir(Network([nn.Linear(2, 3)])), lambda: from_nir("network.nir")):
        with pytest.raises(ValueError, match=r"pip install 'tbnn\[exchange\]'"):
            call()
