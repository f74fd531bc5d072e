"""Packed spikes between layers: the same numbers and gradients as spikes that are numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tbnn.bits import pack_bits
from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Residual,
    TargetRate,
)
from tbnn.nn.fused import sees_no_current
from tbnn.nn.wire import Wire
from tbnn.ops.max_pool.reference import max_pool_reference

Pair = tuple[int, int]


def spikes(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape) < density).float()


def wire_of(values: Tensor) -> tuple[Wire, Tensor]:
    """A wire whose thread holds nothing, and the leaf its gradient arrives at."""
    leaf = torch.zeros_like(values).requires_grad_()
    return Wire(pack_bits(values.flatten(2)), leaf * 1.0), leaf


@given(
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(2, 9), st.sampled_from([2, 5, 17, 34, 65, 130])),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
@example(2, (34, 34), (2, 2), (2, 2), (0, 0), 0.2)
@example(1, (5, 7), (2, 2), (2, 2), (0, 0), 0.4)  # rows and columns that no window reaches
@example(1, (2, 2), (3, 3), (1, 1), (1, 1), 0.5)
@settings(deadline=None, derandomize=True, max_examples=80)
def test_a_pool_of_bits_is_max_pooling(
    channels: int, size: Pair, kernel: Pair, stride: Pair, padding: Pair, density: float
) -> None:
    kernel = (min(kernel[0], size[0]), min(kernel[1], size[1]))
    padding = (min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2))
    x = spikes((3, 2, channels, *size), density).double()
    numbers = x.clone().requires_grad_()
    wanted = max_pool_reference(numbers.reshape(-1, *size), kernel, stride, padding)
    wanted = wanted.reshape(3, 2, channels, *wanted.shape[-2:])
    wire, leaf = wire_of(x)
    got = wire.pooled(kernel, stride, padding).values()
    assert torch.equal(got, wanted)
    dy = torch.randn(got.shape, dtype=torch.double)
    got.backward(dy)
    wanted.backward(dy)
    torch.testing.assert_close(leaf.grad, numbers.grad)


def test_values_and_flattening_keep_the_gradient() -> None:
    x = spikes((4, 2, 3, 5), 0.5)
    wire, leaf = wire_of(x)
    flat = wire.flat()
    assert flat.features == (15,)
    dy = torch.randn(4, 2, 15)
    assert torch.equal(flat.values(), x.flatten(2))
    flat.values().backward(dy)
    assert torch.equal(leaf.grad, dy.view_as(x))  # pyright: ignore


def network(memory: str = "speed") -> Network:
    torch.manual_seed(0)
    layers = [
        BinaryConv2d(2, 4, 3, padding=1), Leaky(0.9), MaxPool2d(3, 2, 1), BinaryConv2d(4, 6, 3), Leaky(0.8), MaxPool2d(2),
        Flatten(), BinaryLinear(24, 20), Leaky(0.9), BinaryLinear(20, 5), LeakyIntegrator(0.9),
    ]  # fmt: skip
    return Network(layers, (2, 12, 12), memory)


def outcome(net: Network, x: Tensor) -> list[Tensor]:
    y, _ = net(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))]


@pytest.mark.parametrize("memory", ["speed", "minimal"])
def test_what_the_layers_hand_on_stays_packed(memory: str) -> None:
    net, x = network(memory), spikes((6, 3, 2, 12, 12), 0.3)
    seen: list[Any] = []
    hook = sees_no_current(lambda _, args, out: seen.append((args[0], out[0])), nor_spikes=True)
    hooks = [layer.register_forward_hook(hook) for layer in net.layers if isinstance(layer, Leaky)]
    packed = outcome(net, x)
    assert [bool(out.any()) for _, out in seen] == [False] * 3  # threads, no spikes
    assert all(out.untyped_storage().nbytes() <= 8 for _, out in seen)
    for handle in hooks:
        handle.remove()
    for layer in net.layers:
        layer.register_forward_hook(lambda *_: None)  # every layer by itself, on numbers
    for got, wanted in zip(packed, outcome(net, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_spikes_that_are_looked_at_are_numbers() -> None:
    net, x = network(), spikes((6, 3, 2, 12, 12), 0.3)
    seen: list[Tensor] = []
    net.layers[1].register_forward_hook(sees_no_current(lambda _, __, out: seen.append(out[0])))
    net(x)
    assert 0 < seen[0].mean() < 1
    rates = Network([BinaryLinear(8, 16), Leaky(0.9, activity=TargetRate(0.1)), BinaryLinear(16, 4), Leaky(0.9)])
    rates(spikes((20, 4, 8), 0.9))
    assert rates.layers[1].homeostasis.offset.abs().max() > 0  # pyright: ignore


def test_a_gradient_that_two_paths_share_is_left_alone() -> None:
    """Layers write their inputs' gradient over their output's where no one else has it."""
    torch.manual_seed(0)
    body = [BinaryLinear(24, 24), Leaky(0.9)]
    shortcut = [BinaryLinear(24, 24), Leaky(0.8)]
    net = Network(
        [BinaryLinear(30, 24), Leaky(0.9), Residual(Network([*body, nn.Identity()]), Network([*shortcut, nn.Identity()]), "current")]
    )  # fmt: skip
    x = spikes((5, 3, 30), 0.4)
    fused = outcome(net, x)
    for layer in [*net.layers, *body, *shortcut]:
        layer.register_forward_hook(lambda *_: None)
    for got, wanted in zip(fused, outcome(net, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["speed", "minimal"])
def test_a_second_backward_pass_finds_what_the_first_did(memory: str) -> None:
    """Writing over gradients leaves what is kept for backward alone."""
    net, x = network(memory), spikes((6, 3, 2, 12, 12), 0.3)
    loss, parameters = net(x)[0].square().sum(), list(net.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    for got, wanted in zip(torch.autograd.grad(loss, parameters), first, strict=True):
        assert torch.equal(got, wanted)
