"""Where something not finite comes from: the layer, the way, the step. And devices that do not match."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    Residual,
    Synaptic,
    detect_nonfinite,
)
from tbnn.nn.devices import check_devices

STEPS, BATCH = 6, 3


class Spoiler(nn.Module):
    """The identity; one value is spoilt on the way forward, one gradient on the way back."""

    def __init__(self, forward: int | None = None, backward: int | None = None, value: float = math.nan) -> None:
        super().__init__()
        self.at, self.value = (forward, backward), value

    def forward(self, x: Tensor) -> Tensor:
        forth, back = ((None if t is None else _only(x, t, self.value)) for t in self.at)
        if back is not None:
            x = _Scaled.apply(x, back)
        return x if forth is None else x + forth


def _only(x: Tensor, step: int, value: float) -> Tensor:
    """0, and ``value`` twice in each of the steps 1 and ``step``."""
    spoilt = torch.zeros_like(x)
    for t in {1, step}:
        spoilt[t].flatten()[:2] = value
    return spoilt


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, spoilt: Tensor) -> Tensor:
        ctx.spoilt = spoilt
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] + ctx.spoilt, None


def dense(middle: nn.Module) -> Network:
    return Network([BinaryLinear(8, 16), Leaky(0.9), middle, BinaryLinear(16, 4), LeakyIntegrator(0.9)])


def run(net: Network, x: Tensor | None = None) -> None:
    with detect_nonfinite(net):
        net(torch.ones(STEPS, BATCH, 8) if x is None else x)[0].mean(0).square().sum().backward()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_forward(value: float) -> None:
    message = "layers.2 (Spoiler), forward: 4 of 288 of the values of its output are not finite, the first at step 1"
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}$"):
        run(dense(Spoiler(forward=4, value=value)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_backward(value: float) -> None:
    message = (
        "layers.2 (Spoiler), backward: 4 of 288 of the gradients of its input are not finite, the latest at step 4"
    )
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}$"):
        run(dense(Spoiler(backward=4, value=value)))


def test_the_loss() -> None:
    net = dense(Spoiler())
    with detect_nonfinite(net):
        y, _ = net(torch.ones(STEPS, BATCH, 8))
        message = (
            r"the loss, backward: 24 of 72 of the gradients of the output of layers.4 \(LeakyIntegrator\) .* step 5"
        )
        with pytest.raises(FloatingPointError, match=message):
            (y * torch.ones_like(y).index_fill_(0, torch.tensor([2, 5]), math.inf)).sum().backward()


def test_a_spoilt_weight_is_named() -> None:
    net = dense(Spoiler())
    with torch.no_grad():
        net.layers[3].bias[1] = math.nan
    message = r"layers.3 \(BinaryLinear\), forward: 18 of 72 .* the first at step 0; not finite: its bias$"
    with pytest.raises(FloatingPointError, match=message):
        run(net)


def test_a_state_that_spikes_hide() -> None:
    """NaN is no spike: what leaves the neurons is finite, and the membrane tells."""
    net = Network([Leaky(0.9), BinaryLinear(8, 4), LeakyIntegrator(0.9)])
    net.layers[0].register_buffer("beta", torch.tensor(math.nan))
    with pytest.raises(FloatingPointError, match=r"layers.0 \(Leaky\), forward: 24 of 24 of the values of its v are"):
        run(net, torch.full((STEPS, BATCH, 8), 0.1))


def test_the_input() -> None:
    x = torch.ones(STEPS, BATCH, 8)
    x[2, 1, 3] = math.nan
    with pytest.raises(FloatingPointError, match=r"x, the network's input: 1 of 144 of its values .* first at step 2"):
        run(dense(Spoiler()), x)


def test_a_parameters_own_gradient() -> None:
    net = dense(Spoiler())
    net.layers[0].bias.register_hook(lambda g: g / 0)
    with pytest.raises(
        FloatingPointError, match=r"layers.0 \(BinaryLinear\), backward: 16 of 16 of the gradients of its bias"
    ):
        run(net)


def test_inside_of_other_layers_and_folded_ones() -> None:
    body = [BinaryConv2d(2, 2, 3, padding=1), Spoiler(backward=4), Leaky(0.9)]
    net = Network([
        nn.Conv2d(1, 2, 3, padding=1), Leaky(0.9), Residual(body), nn.MaxPool2d(2), Flatten(), BinaryLinear(8, 8),
        Recurrent(Synaptic(0.5, 0.9), BinaryLinear(8, 8)), BinaryLinear(8, 2), LeakyIntegrator(0.9),
    ])  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"layers.2\..*1 \(Spoiler\), backward: 4 of .* the latest at step 4"):
        run(net, (torch.rand(STEPS, BATCH, 1, 4, 4) < 0.5).float())


def test_the_same_numbers_and_nothing_left_behind() -> None:
    net, x = dense(nn.Identity()), (torch.rand(STEPS, BATCH, 8) < 0.5).float()
    net(x)[0].mean(0).square().sum().backward()
    want = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with detect_nonfinite(net):
        y, _ = net(x)
        y.mean(0).square().sum().backward()
    for parameter, gradient in zip(net.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-7)
        assert not parameter._backward_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    spoilt = dense(Spoiler(forward=2, backward=2))
    with pytest.raises(FloatingPointError):
        run(spoilt)
    spoilt(x)[0].sum().backward()  # nobody watches any more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": "meta"}, "Network: expected x on cpu, where its parameters are, got x on meta"),
        ({"mask": "meta"}, "Network: expected mask on cpu, where its parameters are, got mask on meta"),
        (
            {"state": "meta"},
            r"Network: expected state\[1\].v on cpu, where its parameters are, got state\[1\].v on meta",
        ),
        ({"network": "meta"}, "Network: expected x on meta, where its parameters are, got x on cpu"),
    ],
    ids=["x", "mask", "state", "network"],
)
def test_other_devices(arguments: dict[str, str], message: str) -> None:
    net, x = dense(nn.Identity()), torch.ones(STEPS, BATCH, 8)
    _, state = net(x)
    mask = torch.ones(STEPS, BATCH, dtype=torch.bool)
    check_devices(net, x, state, mask)
    moved = state[1]._replace(v=state[1].v.to(arguments.get("state", "cpu")))
    net = net.to(arguments.get("network", "cpu"))
    x, mask = x.to(arguments.get("x", "cpu")), mask.to(arguments.get("mask", "cpu"))
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_devices(net, x, (state[0], moved, *state[2:]), mask)


def test_a_network_without_parameters_has_the_inputs_device() -> None:
    x, mask = torch.ones(2, 2, 3), torch.ones(2, 2, device="meta")
    check_devices(Network([Flatten()]), x)
    with pytest.raises(ValueError, match="Network: expected mask on cpu, where x is, got mask on meta"):
        check_devices(Network([Flatten()]), x, None, mask)
