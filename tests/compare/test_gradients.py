"""Gradients by layer and over time against hand-made sums; the smoothed gradient against closed forms and enumeration."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tbnn.compare import gradients
from tbnn.compare.gradients import (
    cosine,
    current_gradients,
    gradient_norms,
    gradient_over_time,
    smoothed_gradient,
    weight_gradients,
)
from tbnn.losses import cross_entropy
from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    Synaptic,
    TemporalBatchNorm,
)


def bits(*shape: int) -> Tensor:
    return (torch.rand(*shape) < 0.3).float()


def dense(**neuron: object) -> Network:
    return Network(
        [
            BinaryLinear(20, 15, estimator="ste"),
            Leaky(0.9, **neuron),  # pyright: ignore[reportArgumentType]
            BinaryLinear(15, 12, estimator="ste"),
            Recurrent(Synaptic(0.5, 0.8), BinaryLinear(12, 12, estimator="ste")),
            BinaryLinear(12, 4),
            LeakyIntegrator(0.9),
        ]
    )


@pytest.mark.parametrize("neuron", [{"gradient": "surrogate"}, {"target": "soft"}, {"target": "trace"}])
def test_gradients_of_currents_add_up_to_those_of_weights(neuron: dict[str, str]) -> None:
    # With the straight-through estimator dL/dW = Σ_{t,b} dL/dI_t·x_tᵀ, and dL/dbias = Σ_{t,b} dL/dI_t.
    network, x, labels = dense(**neuron), bits(9, 5, 20), torch.tensor([0, 1, 2, 3, 0])

    def loss_of(y: Tensor) -> Tensor:
        return cross_entropy(y, labels)

    currents = current_gradients(network, x, loss_of)
    assert list(currents) == ["layers.1", "layers.3"]
    hidden = network.layers[1](network.layers[0](x))[0].detach()
    loop = network.layers[3](network.layers[2](hidden))[0].detach()
    back = torch.cat([torch.zeros_like(loop[:1]), loop[:-1]])
    assert all(p.grad is None for p in network.parameters())
    loss_of(network(x)[0]).backward()  # fused, as in training
    for layer, entering, name in (
        (network.layers[0], x, "layers.1"),
        (network.layers[2], hidden, "layers.3"),
        (network.layers[3].recurrent_layer, back, "layers.3"),
    ):
        expected = torch.einsum("tbo,tbi->oi", currents[name], entering)
        assert expected.abs().max() > 0
        torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(layer.bias.grad, currents[name].sum((0, 1)), rtol=1e-4, atol=1e-7)
    norms = gradient_norms(network)
    assert list(norms) == ["layers.0", "layers.2", "layers.3.recurrent_layer", "layers.4"]
    assert norms["layers.2"] == pytest.approx(network.layers[2].weight.grad.norm().item())


def test_gradients_over_time_are_norms_of_steps() -> None:
    network, x, labels = dense(), bits(9, 5, 20), torch.tensor([0, 1, 2, 3, 0])

    def loss_of(y: Tensor) -> Tensor:
        return cross_entropy(y, labels, "last")

    over_time = gradient_over_time(network, x, loss_of)
    currents = current_gradients(network, x, loss_of)
    assert over_time["layers.3"].shape == (9,)
    for name, g in currents.items():
        expected = torch.tensor([math.sqrt(sum(v * v for v in step.flatten().tolist())) for step in g])
        torch.testing.assert_close(over_time[name], expected)


def test_gradients_over_time_follow_the_membranes_decay() -> None:
    # One neuron, one input, readout y = Σ of its spikes: dL/dI[t] = Σ_{s≥t} β^(s−t)·slope(u[s]), the reset detached.
    neuron = Leaky(0.5, gradient="surrogate")
    network = Network([neuron, LeakyIntegrator(1.0)])
    x = torch.tensor([0.5, 1.0, 0.25, 0.75]).reshape(4, 1, 1)
    u = torch.tensor([0.5, 1.25, -0.125, 0.6875]) - 1  # v = .5, 1.25 (spikes), .25 + .625 − 1, .75 − .0625
    slope = neuron.spike_gradient.surrogate.derivative(u)
    expected = [sum(0.5 ** (s - t) * slope[s].item() for s in range(t, 4)) for t in range(4)]
    found = gradient_over_time(network, x, lambda y: y[-1].sum())["layers.0"]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_convolutions_norms_and_masks_leave_the_network_as_it_was() -> None:
    layers = [
        BinaryConv2d(2, 3, 3),
        TemporalBatchNorm(3),
        Leaky(0.9),
        Flatten(),
        BinaryLinear(48, 4),
        LeakyIntegrator(0.9),
    ]
    network, x = Network(layers), bits(7, 3, 2, 6, 6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mask = torch.arange(7).unsqueeze(1) < torch.tensor([7, 4, 5])
    over_time = gradient_over_time(network, x, lambda y: y.square().sum(), mask)
    found = weight_gradients(network, x, lambda y: y.square().sum(), mask)
    assert over_time["layers.2"].shape == (7,)
    assert list(found) == ["layers.0.weight", "layers.4.weight"]
    assert all(g.abs().sum() > 0 for g in found.values())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    currents = current_gradients(network, x, lambda y: y.square().sum(), mask)["layers.2"]
    assert not currents[~mask].any()


def test_layers_without_a_gradient_have_norm_zero() -> None:
    network = dense()
    network(bits(4, 2, 20))
    assert set(gradient_norms(network).values()) == {0.0}
    found = gradient_over_time(network, bits(4, 2, 20), lambda y: (0 * y.detach()).sum())
    assert all(not norms.any() for norms in found.values())


def test_a_layer_that_runs_twice_is_refused() -> None:
    neuron = Leaky(0.9)
    with pytest.raises(ValueError, match=r"layers.0: expected a layer that runs once"):
        gradient_over_time(Network([neuron, neuron]), bits(4, 2, 3), lambda y: y.sum())


def test_cosines_of_parts_and_of_all() -> None:
    a = {"one": torch.tensor([1.0, 0.0]), "two": torch.tensor([[2.0]]), "zero": torch.zeros(2)}
    b = {"one": torch.tensor([0.0, 3.0]), "two": torch.tensor([[-1.0]]), "zero": torch.ones(2)}
    found = cosine(a, b)
    assert found["one"] == 0
    assert found["two"] == -1
    assert math.isnan(found["zero"])
    assert found["all"] == pytest.approx(-2 / math.sqrt(5 * 12))
    assert cosine([torch.full((2,), 1e-30)], [torch.full((2,), 1e-30)])["all"] == pytest.approx(1)
    with pytest.raises(ValueError, match="same tensors twice"):
        cosine(a, [torch.ones(1)])
    with pytest.raises(ValueError, match=r"0: expected one shape"):
        cosine([torch.ones(2)], [torch.ones(3)])


class Stateless(nn.Module):
    """A function of a weight, as a network."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.weight.square() * x + self.weight, None


def sum_of(y: Tensor, labels: Tensor) -> Tensor:
    return y.sum()


def test_the_smoothed_gradient_of_a_parabola_is_its_own() -> None:
    w, x = torch.randn(3, 4), torch.randn(3, 4)
    found = smoothed_gradient(Stateless(w), x, x, sum_of, sigma=0.5, samples=4800)
    exact = {"weight": 2 * w * x + 1}
    assert cosine(found.gradient, exact)["all"] > 0.999
    torch.testing.assert_close(found.gradient["weight"], exact["weight"], rtol=0, atol=0.25)
    step = 0.5 * w.abs().mean().item()
    assert found.loss == pytest.approx(((w**2 + step**2) * x + w).sum().item(), abs=0.1)
    assert found.ceiling["all"] > 0.999


class Signs(nn.Module):
    """A linear layer of hard signs, without any gradient."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, (self.weight > 0).to(x.dtype) * 2 - 1)


def enumerated(network: Network, x: Tensor, labels: Tensor, sigma: float) -> dict[str, Tensor]:
    """∇ Σ_signs L(signs)·Π Φ(±w/σ), over all the patterns of signs that the weights can have."""
    named = dict(network.named_parameters())
    weights = [p.detach().double().requires_grad_() for p in named.values()]
    chances = torch.cat([torch.special.ndtr(w / (sigma * w.detach().abs().mean())).flatten() for w in weights])
    total: Tensor = torch.zeros((), dtype=torch.float64)
    saved = [p.detach().clone() for p in named.values()]
    with torch.no_grad():
        for pattern in itertools.product((-1.0, 1.0), repeat=len(chances)):
            signs = torch.tensor(pattern)
            for part, p in zip(signs.split([p.numel() for p in saved]), named.values(), strict=True):
                p.copy_(part.view_as(p))
            loss = cross_entropy(network(x)[0], labels).item()
            with torch.enable_grad():
                total = total + loss * torch.where(signs > 0, chances, 1 - chances).prod()
        for p, before in zip(named.values(), saved, strict=True):
            p.copy_(before)
    return dict(zip(named, torch.autograd.grad(total, weights), strict=True))


def test_the_smoothed_gradient_of_hard_steps_is_that_of_the_sum_over_all_signs() -> None:
    network = Network([Signs(2, 2), Leaky(0.9), Signs(2, 2), LeakyIntegrator(0.9)])
    x, labels = bits(6, 8, 2), torch.randint(2, (8,))
    exact = enumerated(network, x, labels, 0.7)
    found = smoothed_gradient(network, x, labels, cross_entropy, sigma=0.7, samples=1000)
    agreement = cosine(found.gradient, {n: g.float() for n, g in exact.items()})
    assert agreement["all"] > 0.97
    largest = max(g.abs().max().item() for g in exact.values())
    for name, g in exact.items():
        torch.testing.assert_close(found.gradient[name].double(), g, rtol=0, atol=0.1 * largest)
    # And few samples know how little they know: on average over seeds the ceiling is the cosine with the exact gradient.
    few = [smoothed_gradient(network, x, labels, cross_entropy, 0.7, 16, seed) for seed in range(30)]
    met = sum(cosine(f.gradient, {n: g.float() for n, g in exact.items()})["all"] for f in few) / len(few)
    told = sum(f.ceiling["all"] for f in few) / len(few)
    assert 0.4 < met < 0.95
    assert told == pytest.approx(met, abs=0.1)


def test_orthogonal_directions_are_exact_on_what_is_linear() -> None:
    class Linear(Stateless):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return self.weight * x, None

    w, x = torch.randn(50, 2), torch.randn(50, 2)
    found = smoothed_gradient(Linear(w), x, x, sum_of, samples=200)  # independent ones would reach √(200/300) = 0.82
    assert cosine([found.gradient["weight"]], [x])["all"] > 0.98
    fewer = smoothed_gradient(Linear(w), x, x, sum_of, samples=100)
    assert cosine([fewer.gradient["weight"]], [x])["all"] == pytest.approx(fewer.ceiling["all"], abs=0.08)


def test_smoothing_leaves_the_network_as_it_was_and_repeats() -> None:
    network, x, labels = dense(), bits(4, 5, 20), torch.tensor([0, 1, 2, 3, 0])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = (smoothed_gradient(network, x, labels, cross_entropy, samples=4, seed=1) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert list(first.gradient) == [name for name, p in network.named_parameters() if p.ndim == 2]
    assert all(torch.equal(first.gradient[name], g) for name, g in second.gradient.items())
    one = smoothed_gradient(network, x, labels, cross_entropy, samples=4, names=["layers.4.weight"])
    assert list(one.gradient) == ["layers.4.weight"]


@pytest.mark.parametrize("rounding", [{}, {"bits": 1.58, "sparsity": 0.5, "block": 8}, {"bits": None}])
def test_networks_run_together_lose_what_they_lose_alone(
    rounding: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [
        BinaryLinear(20, 15, **rounding),
        Leaky(0.9),
        Recurrent(Synaptic(0.5, 0.8), BinaryLinear(15, 15, **rounding), delay=2),
        nn.Linear(15, 4),
        LeakyIntegrator(0.9),
    ]
    network, x, labels = Network(layers), bits(9, 5, 20), torch.tensor([0, 1, 2, 3, 0])
    mask = torch.arange(9).unsqueeze(1) < torch.tensor([9, 3, 9, 5, 1])

    def loss(y: Tensor, labels: Tensor) -> Tensor:
        sizes.append(y.shape[1])
        return cross_entropy(y, labels)

    for given in (None, mask):
        sizes: list[int] = []
        together = smoothed_gradient(network, x, labels, loss, samples=10, mask=given)
        with monkeypatch.context() as patch:
            patch.setattr(gradients, "_together", lambda *_: None)
            alone = smoothed_gradient(network, x, labels, loss, samples=10, mask=given)
        assert set(sizes) == {5}
        assert together.loss == pytest.approx(alone.loss, rel=1e-5)
        for name, g in alone.gradient.items():
            torch.testing.assert_close(together.gradient[name], g, rtol=1e-3, atol=1e-4)
    taken = {"layers.0.weight": layers[0].weight.detach().unsqueeze(0)}
    assert gradients._together(network, taken) is not None
    assert gradients._together(Network([BinaryLinear(20, 15, scope="tensor", sparsity=0.5)]), taken) is None


def test_wrong_arguments_of_smoothing_are_refused() -> None:
    network, x = dense(), bits(4, 2, 20)
    for settings, words in (
        ({"sigma": 0.0}, "sigma: expected"),
        ({"samples": 3}, "samples: expected an even number"),
        ({"names": ["layers.9.weight"]}, "names: expected parameters"),
        ({"names": ["layers.0.bias"]}, "layers.0.bias: expected values that are not all 0"),
    ):
        with pytest.raises(ValueError, match=words):
            smoothed_gradient(network, x, torch.tensor([0, 1]), cross_entropy, **settings)  # pyright: ignore[reportArgumentType]
