"""Turned weights, what codes lose, rates, and controls, against sequences and networks worked out by hand."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tbnn
from tbnn.compare.mechanism import (
    Flips,
    control,
    gradient_norms,
    gradient_over_time,
    reconstruction_errors,
    target_and_copy,
)
from tbnn.losses import cross_entropy
from tbnn.nn import (
    Adaptive,
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    Network,
    Neuron,
    Recurrent,
    Residual,
    Synaptic,
)
from tbnn.ops.lif import SpikeGradient, lif, reference
from tbnn.surrogate import signed


def bits(*shape: int) -> Tensor:
    return (torch.rand(*shape) < 0.3).float()


def set_weights(layer: Any, values: list[list[float]]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values).view_as(layer.weight))


def test_flips_of_a_constructed_sequence() -> None:
    network = Network([BinaryLinear(4, 1), BinaryLinear(1, 2, bits=2, form="linear"), LeakyIntegrator(0.9)])
    first, second = network.layers[0], network.layers[1]
    set_weights(first, [[1.0, -1.0, 1.0, -1.0]])
    set_weights(second, [[1.0], [1.0]])
    flips = Flips(network)
    assert flips.observe() == {"layers.0": 0.0, "layers.1": 0.0, "all": 0.0}
    set_weights(first, [[-1.0, -2.0, 0.5, -1.0]])  # one sign turns; magnitudes do not count
    assert flips.observe() == {"layers.0": 0.25, "layers.1": 0.0, "all": 1 / 6}
    set_weights(first, [[1.0, 1.0, 0.5, -1.0]])  # it turns back, another turns
    set_weights(second, [[-1.0], [1.0]])
    assert flips.observe() == {"layers.0": 0.5, "layers.1": 0.5, "all": 0.5}
    for sign in (-1.0, 1.0):  # more turns than two count as two
        set_weights(first, [[sign, 1.0, 0.5, -1.0]])
        flips.observe()
    found = flips.report()
    assert found.epochs["layers.0"] == [0.0, 0.25, 0.5, 0.25, 0.25]
    assert found.ever == {"layers.0": 0.5, "layers.1": 0.5, "all": 0.5}
    assert found.oscillated == {"layers.0": 0.25, "layers.1": 0.0, "all": 1 / 6}


def test_flips_see_levels_of_many_bits_and_pruned_weights() -> None:
    many = Network([BinaryLinear(3, 1, bits=8, form="linear")])
    set_weights(many.layers[0], [[1.0, -0.5, 0.25]])
    flips = Flips(many)
    set_weights(many.layers[0], [[1.0, -0.5, 0.5]])
    assert 0 < flips.observe()["all"] < 1
    pruned = Network([BinaryLinear(4, 1, bits=None, sparsity=0.5)])
    set_weights(pruned.layers[0], [[1.0, 2.0, 0.1, 0.2]])
    flips = Flips(pruned)
    set_weights(pruned.layers[0], [[3.0, 2.0, 0.5, 0.2]])
    assert flips.observe()["all"] == 0
    set_weights(pruned.layers[0], [[3.0, 0.2, 0.5, 0.2]])  # one comes, one goes
    assert flips.observe()["all"] == 0.5


def test_a_network_without_binary_weights_has_no_flips() -> None:
    flips = Flips(Network([nn.Linear(3, 2), LeakyIntegrator(0.9)]))
    assert flips.observe() == {"all": 0.0}
    assert flips.report().ever == {"all": 0.0}


def test_weights_lose_what_the_ridge_leaves() -> None:
    layer = BinaryLinear(40, 6)
    w = layer.weight.detach()
    q = (w > 0).float()
    found = reconstruction_errors(Network([layer, LeakyIntegrator(0.9)]), bits(3, 2, 40)).weights["layers.0"]
    expected = (tbnn.ddt(w, q, dim=1) - w).square().sum() / w.square().sum()
    assert found == pytest.approx(expected.item(), rel=1e-4)
    assert 0.1 < found < 0.5  # of a uniform distribution 1/4


def by_ddt(x: Tensor, q: Tensor, **blocks: Any) -> float:
    """1 − R² of the blocks from :func:`tbnn.ddt`, over which ``dim`` runs."""
    dim = blocks.get("dim")
    mean = x.mean() if dim is None else x.mean(dim, keepdim=True)
    return ((tbnn.ddt(x, q, **blocks) - x).square().sum() / (x - mean).square().sum()).item()


def test_a_soft_target_loses_what_the_ridge_leaves() -> None:
    network, x = Network([Leaky(0.75, 1.0), LeakyIntegrator(0.9)]), torch.randn(11, 5, 7)
    v, out = torch.zeros(5, 7), torch.zeros(5, 7)
    levels, spikes = [], []
    for x_t in x:
        v = 0.75 * v + x_t - out
        out = (v > 1).float()
        levels.append(v - 1)
        spikes.append(out)
    soft = torch.atan(math.pi * torch.stack(levels)) / math.pi + 0.5
    q = torch.stack(spikes)
    found = reconstruction_errors(network, x)
    assert found.spikes["layers.0"] == pytest.approx(by_ddt(soft, q, dim=(0, 1)), rel=1e-4)
    assert found.rates["layers.0"] == pytest.approx(q.mean().item())
    whole = Network([Leaky(0.75, 1.0, per_channel=False), LeakyIntegrator(0.9)])
    assert reconstruction_errors(whole, x).spikes["layers.0"] == pytest.approx(by_ddt(soft, q), rel=1e-4)


@pytest.mark.parametrize("stats", ["sequence", "step"])
def test_a_trace_target_loses_what_the_ridge_leaves(stats: str) -> None:
    neuron = Leaky(0.75, 0.5, target="trace", stats=stats)
    x = torch.randn(11, 5, 7) * 0.3
    spikes = neuron(x)[0].detach()
    traces, counts = [torch.zeros(5, 7)], [torch.zeros(5, 7)]
    for x_t, q_t in zip(x, spikes, strict=True):
        traces.append(0.75 * traces[-1] + x_t)
        counts.append(0.75 * counts[-1] + q_t)
    target = (0.25 / 0.5 * torch.stack(traces[1:])).clamp(-0.05, 1)
    copy_of = 0.25 * torch.stack(counts[1:])
    found = reconstruction_errors(Network([neuron, LeakyIntegrator(0.9)]), x).spikes["layers.0"]
    lam = 0.01 * 0.25 / 1.75  # in units of a trace's q²
    blocks = (0, 1) if stats == "sequence" else (1, 2)
    assert found == pytest.approx(by_ddt(target, copy_of, dim=blocks, lam=lam), rel=1e-4)


@pytest.mark.parametrize("target", ["soft", "trace"])
@pytest.mark.parametrize("make", [lambda **k: Synaptic(0.5, 0.75, **k), lambda **k: Adaptive(0.75, 0.9, **k)])
def test_targets_are_those_that_the_reference_regresses_on(
    make: Callable[..., Neuron], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    neuron, x = make(target=target), torch.randn(9, 4, 6)
    spikes = neuron(x)[0].detach()
    seen: list[Tensor] = []
    regress = reference._denoise

    def spy(x: Tensor, q: Tensor, *others: Any) -> Tensor:
        seen.extend([x.detach(), q.detach()])
        return regress(x, q, *others)

    monkeypatch.setattr(reference, "_denoise", spy)
    beta, second = neuron.coefficients()
    lif(x, beta, neuron.threshold, second=second, gradient=neuron.spike_gradient, backend="reference")
    torch.testing.assert_close(target_and_copy(neuron, x, spikes), tuple(seen), rtol=1e-5, atol=1e-5)


def test_recurrent_layers_are_measured_with_their_feedback_by_step() -> None:
    layer = Recurrent(Leaky(0.75), BinaryLinear(6, 6), delay=2)
    x = torch.randn(9, 4, 6)
    spikes = layer(x)[0].detach()
    back = torch.cat([torch.zeros(2, 4, 6), spikes[:-2]])
    alone = Leaky(0.75, stats="step")
    whole = x + layer.recurrent_layer(back).detach()
    assert torch.equal(alone(whole)[0], spikes)
    found = reconstruction_errors(Network([layer, LeakyIntegrator(0.9)]), x)
    expected = reconstruction_errors(Network([alone, LeakyIntegrator(0.9)]), whole)
    assert found.spikes["layers.0"] == pytest.approx(expected.spikes["layers.0"], rel=1e-5)
    assert list(found.weights) == ["layers.0.recurrent_layer"]


def test_silent_and_saturated_neurons_are_counted() -> None:
    x = torch.tensor([-1.0, 0.4, 5.0, 5.0]).expand(20, 3, 4)
    found = reconstruction_errors(Network([Leaky(0.5), LeakyIntegrator(0.9)]), x)
    assert found.silent["layers.0"] == 0.5  # 0.4/(1 − 0.5) = 0.8 stays below 1
    assert found.saturated["layers.0"] == 0.5
    assert found.rates["layers.0"] == 0.5
    assert reconstruction_errors(Network([Leaky(0.5)]), -torch.ones(5, 2, 3)).spikes["layers.0"] == pytest.approx(1)


def test_padding_does_not_count() -> None:
    network = Network([BinaryConv2d(1, 4, 3), Leaky(0.9, target="trace"), Flatten(), LeakyIntegrator(0.9)]).train()
    x = bits(8, 1, 1, 6, 6)
    alone = reconstruction_errors(network, x[:5])
    padded = reconstruction_errors(network, x, torch.arange(8).unsqueeze(1) < 5)
    for a, b in zip(alone, padded, strict=True):
        assert list(a) == list(b)
        assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-5)
    assert network.training


def test_denoised_neurons_are_measured_by_their_bits() -> None:
    x = torch.randn(10, 6, 5)
    denoised, plain = (Network([Leaky(0.75, emit=emit), LeakyIntegrator(0.9)]) for emit in ("denoised", "bits"))
    denoised(x)
    first, second = reconstruction_errors(denoised, x), reconstruction_errors(plain, x)
    assert first.rates == second.rates
    assert first.spikes["layers.0"] == pytest.approx(second.spikes["layers.0"])


def plain_network() -> Network:
    hidden = [BinaryLinear(20, 15), Leaky(0.9), BinaryLinear(15, 12), Recurrent(Leaky(0.8), BinaryLinear(12, 12))]
    return Network([*hidden, BinaryLinear(12, 4), LeakyIntegrator(0.9)])


def backward(network: Network, x: Tensor) -> Tensor:
    y, _ = network(x)
    cross_entropy(y, torch.arange(x.shape[1]) % 4).backward()
    return y.detach()


@pytest.mark.parametrize("kind", ["readout", "zero"])
def test_only_the_readout_learns(kind: str) -> None:
    network, x = plain_network(), bits(9, 5, 20)
    controlled = control(copy.deepcopy(network), kind)
    assert torch.equal(backward(network, x), backward(controlled, x))
    norms, found = gradient_norms(network), gradient_norms(controlled)
    assert all(norm > 0 for norm in norms.values())
    assert found == {**dict.fromkeys(norms, 0.0), "layers.4": norms["layers.4"]}


def test_zero_gradients_still_pass_where_there_is_no_spike() -> None:
    block = Residual([Leaky(0.9), BinaryLinear(6, 6)], BinaryLinear(6, 6), join="current")
    network = Network([BinaryLinear(8, 6), block, LeakyIntegrator(0.9)])
    control(network, "zero")
    backward(network, bits(5, 3, 8))
    norms = gradient_norms(network)
    assert all(norm > 0 for norm in norms.values())  # the first layer's through the shortcut alone
    assert not gradient_over_time(network, bits(5, 3, 8), lambda y: y.square().sum())["layers.1.body.layers.0"].any()


def test_a_constant_surrogate_passes_every_membrane_alike() -> None:
    # y = Σ of spikes, one neuron: dL/dI[t] = Σ_{s≥t} 0.5^(s−t), however far the membrane is from its threshold.
    network = control(Network([Leaky(0.5), LeakyIntegrator(1.0)]), "constant")
    x = torch.tensor([0.5, 300.0, -70.0, 0.75]).reshape(4, 1, 1)
    found = gradient_over_time(network, x, lambda y: y[-1].sum())["layers.0"]
    assert found.tolist() == [1.875, 1.75, 1.5, 1.0]
    written = Leaky(**network.layers[0].__dict__["made_with"])
    assert written.spike_gradient == network.layers[0].spike_gradient


@pytest.mark.parametrize("gradient", [{}, {"target": "trace"}, {"gradient": "surrogate", "scale": 0.5}])
def test_a_constant_surrogate_leaves_the_forward_pass(gradient: dict[str, Any]) -> None:
    network, x = plain_network(), bits(9, 5, 20)
    network.layers[1].spike_gradient = SpikeGradient(**gradient)
    controlled = control(copy.deepcopy(network), "constant")
    assert torch.equal(backward(network, x), backward(controlled, x))
    kinds = {m.spike_gradient.gradient for m in controlled.modules() if isinstance(m, Neuron)}
    assert kinds == {"surrogate"}
    wide = [p.grad for p in controlled.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in wide)


def test_controls_that_make_no_sense_are_refused() -> None:
    spiking = Network([BinaryLinear(3, 2), Leaky(0.9)])
    with pytest.raises(ValueError, match="expected one of 'readout'"):
        control(plain_network(), "none")
    for kind in ("readout", "zero"):
        with pytest.raises(ValueError, match="needs a readout that trains"):
            control(spiking, kind)
    with pytest.raises(ValueError, match=r"layers.0: control 'constant' needs emit='bits'"):
        control(Network([Leaky(0.9, emit="denoised")]), "constant")


def test_a_surrogate_without_a_soft_spike_reconstructs_nothing() -> None:
    net = Network([BinaryLinear(6, 8), Leaky(0.9, gradient="surrogate", surrogate=signed())])
    found = reconstruction_errors(net, (torch.rand(5, 3, 6) < 0.5).float())
    assert math.isnan(found.spikes["layers.1"])
    assert found.rates["layers.1"] > 0
