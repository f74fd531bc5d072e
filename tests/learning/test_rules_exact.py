"""Where theory says that a rule is back-propagation through time, it is; and where not, it is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.learning import Bptt, Eprop, Ostl, Ottt, Rtrl, Rule
from tbnn.learning.stages import Synapses
from tbnn.nn import (
    Adaptive,
    AdLIF,
    AvgPool2d,
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Neuron,
    Synaptic,
    TemporalBatchNorm,
)
from tests.learning.small_networks import batch, deep, gradients, one_layer, with_readout

SURROGATE: dict[str, Any] = {"gradient": "surrogate"}
SLOPES = [
    SURROGATE,
    {"target": "trace", "stats": "step", "differentiate_stats": False},
    {"target": "soft", "stats": "step", "differentiate_stats": False},
]
FULL = [{"target": "trace", "stats": "step"}, {"target": "soft", "stats": "step"}]


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12 + 1e-10 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("options", SLOPES, ids=["surrogate", "trace", "soft"])
def test_eprop_is_bptt_of_a_hidden_layer_without_recurrence(options: dict[str, Any]) -> None:
    x, y = batch(steps=40)  # eligibilities are folded twice on the way
    net = with_readout(**options)
    assert_same(gradients(Eprop(net), x, y), gradients(Bptt(net), x, y))


def test_eprop_hears_errors_whenever_they_come() -> None:
    x, y = batch(steps=45)
    net = with_readout(**SURROGATE)
    steps = [3, 4, 20, 38]  # none in a whole chunk, several in another
    loss = torch.stack([nn.functional.cross_entropy(net(x)[0][t], y) for t in steps]).sum()
    loss.backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    for several in (False, True):  # gradients pushed at every update, or at the end
        net.zero_grad()
        rule, state = Eprop(net), None
        for t, x_t in enumerate(x):
            state = rule.step(x_t, state)
            if t in steps:
                (rule.update if several else rule.credit)(y, 1.0)
        rule.finish()
        assert_same({name: p.grad for name, p in net.named_parameters() if p.grad is not None}, expected)


@pytest.mark.parametrize("options", SLOPES + FULL)
def test_ottt_is_bptt_of_one_layer(options: dict[str, Any]) -> None:
    x, y = batch(classes=9)
    net = one_layer(**options)
    assert_same(gradients(Ottt(net), x, y), gradients(Bptt(net), x, y))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Synaptic(0.75, 0.875, **SURROGATE),
        lambda: Adaptive(0.875, 0.75, 0.3, **SURROGATE),
        lambda: AdLIF(0.875, 0.75, 2.0, 1.0, **SURROGATE),
        lambda: AdLIF(0.875, 0.75, 2.0, 1.0, target="trace", stats="step"),
        lambda: Synaptic(0.75, 0.875, target="trace", stats="step"),
    ],
)
def test_traces_of_neurons_with_a_second_state(make: Callable[[], Neuron]) -> None:
    x, y = batch(classes=9)
    net = Network([BinaryLinear(6, 9), make()]).double()
    assert_same(gradients(Ottt(net), x, y), gradients(Bptt(net), x, y))
    net = with_readout(neuron=make())
    if net.layers[1].spike_gradient.gradient == "surrogate":  # pyright: ignore[reportAttributeAccessIssue]
        assert_same(gradients(Eprop(net, adaptation=False), x, y % 4), gradients(Bptt(net), x, y % 4))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("options", [SLOPES[0], SLOPES[2]], ids=["surrogate", "soft"])
def test_ostl_is_bptt_within_a_layer(options: dict[str, Any], recurrent: bool) -> None:
    x, y = batch(classes=9)
    net = one_layer(recurrent, **options)
    assert_same(gradients(Ostl(net), x, y), gradients(Bptt(net), x, y))


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_readout(recurrent=True, **SURROGATE),
        lambda: with_readout(recurrent=True, target="trace", stats="step"),
        lambda: deep(target="soft", stats="step"),
        lambda: with_readout(recurrent=True, neuron=Adaptive(0.875, learn_beta=True, **SURROGATE)),
    ],
)
def test_rtrl_is_bptt(make: Callable[[], Network]) -> None:
    x, y = batch(steps=6)
    net = make()
    assert_same(gradients(Rtrl(net), x, y), gradients(Bptt(net), x, y))


@pytest.mark.parametrize("rule", [Ottt, Eprop], ids=["ottt", "eprop"])
def test_recurrence_is_what_they_leave_out(rule: Callable[[nn.Module], Rule]) -> None:
    x, y = batch()
    net = with_readout(recurrent=True, **SURROGATE)
    got, exact = gradients(rule(net), x, y), gradients(Bptt(net), x, y)
    assert not torch.allclose(got["layers.0.weight"], exact["layers.0.weight"], rtol=0.1)
    torch.testing.assert_close(got["layers.2.weight"], exact["layers.2.weight"])  # the readout's is exact


def test_truncated_bptt_by_steps_is_that_of_pieces() -> None:
    x, y = batch()
    net = with_readout(recurrent=True, **SURROGATE)
    rule = Bptt(net, truncate=5)
    whole = gradients(rule, x, y)
    assert any(not torch.allclose(whole[k], v) for k, v in gradients(Bptt(net), x, y).items())
    net.zero_grad()
    state = None
    for t, x_t in enumerate(x, 1):
        state = rule.step(x_t, state)
        if t % 5 == 0 or t == len(x):
            rule.update(y, ((t - 1) % 5 + 1) / len(x))
    assert_same({n: p.grad for n, p in net.named_parameters() if p.grad is not None}, whole)


CONVOLUTIONS: list[Callable[[], nn.Module]] = [
    lambda: BinaryConv2d(2, 3, 3, padding=1),
    lambda: BinaryConv2d(2, 4, (3, 2), stride=(1, 2), padding="valid", groups=2, form="linear"),
    lambda: BinaryConv2d(2, 3, 2, padding="same"),  # one zero after, none before
    lambda: nn.Conv2d(2, 3, 3, padding="same"),
    lambda: nn.Conv2d(2, 3, 3, padding=1, dilation=2),
]


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_ottt_is_bptt_of_a_convolution(convolution: Callable[[], nn.Module]) -> None:
    layer = convolution()
    net = Network([layer, Leaky(0.875, **SURROGATE), Flatten()], (2, 6, 5)).double()
    x = (torch.rand(7, 2, 2, 6, 5) < 0.4).double()
    classes = net(x)[0].shape[2]
    y = torch.randint(0, classes, (2,))
    assert_same(gradients(Ottt(net), x, y), gradients(Bptt(net), x, y))


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_a_products_way_back_is_autograds(convolution: Callable[[], nn.Module]) -> None:
    layer = convolution().double()
    x = torch.rand(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    delta = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, delta)
    torch.testing.assert_close(Synapses(layer).back(x.detach(), delta), expected)


def test_norms_pools_and_deeper_layers_at_one_step() -> None:
    """In a sequence of one step there is no time to leave anything out."""
    layers = [
        BinaryConv2d(2, 4, 3, padding=1), TemporalBatchNorm(4), Leaky(0.875, **SURROGATE), MaxPool2d(2),
        BinaryConv2d(4, 5, 3, padding=1, bias=False), TemporalBatchNorm(5), Leaky(0.875, **SURROGATE), AvgPool2d(2),
        Flatten(), BinaryLinear(20, 4), LeakyIntegrator(0.5),
    ]  # fmt: skip
    net = Network(layers, (2, 8, 8)).double().eval()
    for norm in (net.layers[1], net.layers[5]):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.01, 0.05)
    x, y = (torch.rand(1, 3, 2, 8, 8) < 0.4).double(), torch.randint(0, 4, (3,))
    assert net(x)[1][6].v.gt(1).any(), "the second layer is silent: the test would compare zeros"
    assert_same(gradients(Ottt(net), x, y), gradients(Bptt(net), x, y))


def test_norms_in_time() -> None:
    net = Network([BinaryLinear(6, 9), TemporalBatchNorm(9), Leaky(0.875, **SURROGATE)]).double().eval()
    net.layers[1].running_var.uniform_(0.5, 2)
    x, y = batch(classes=9)
    assert_same(gradients(Ottt(net), x, y), gradients(Bptt(net), x, y))


def test_a_norm_follows_the_activity_in_training() -> None:
    net = Network([BinaryLinear(6, 9), TemporalBatchNorm(9), Leaky(0.875)])
    x, y = batch(classes=9)
    rule = Ottt(net)
    current = net.layers[0](x.float())
    for _ in range(80):
        rule.sequence(x.float(), y)
    torch.testing.assert_close(net.layers[1].running_mean, current.mean((0, 1)), rtol=0.2, atol=0.05)
    torch.testing.assert_close(net.layers[1].running_var, current.var((0, 1)), rtol=0.3, atol=0.05)
