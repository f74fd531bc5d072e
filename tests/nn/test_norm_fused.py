"""Batch norms between binary weights and neurons: run as one with them, and layer by layer, they are the same."""

import copy

import pytest
import torch
from torch import Tensor, nn

import tbnn.nn.network
from tbnn.nn import BinaryConv2d, BinaryLinear, Leaky, Network, TemporalBatchNorm
from tbnn.nn.fused import group_at


def linear(norm: nn.Module) -> Network:
    return Network([BinaryLinear(30, 6, bias=False), norm, Leaky(0.9), BinaryLinear(6, 4), Leaky(0.9)])


def convolution(norm: nn.Module) -> Network:
    return Network([BinaryConv2d(2, 6, 3, padding=1, bias=False), norm, Leaky(0.9), BinaryConv2d(6, 2, 3), Leaky(0.9)])


CASES = {
    "temporal, linear": (linear, lambda: TemporalBatchNorm(6), (30,)),
    "temporal, convolution": (convolution, lambda: TemporalBatchNorm(6), (2, 6, 7)),
    "fixed scale": (linear, lambda: TemporalBatchNorm(6, affine=False), (30,)),
    "BatchNorm1d": (linear, lambda: nn.BatchNorm1d(6), (30,)),
    "BatchNorm2d": (convolution, lambda: nn.BatchNorm2d(6), (2, 6, 7)),
    "cumulative": (convolution, lambda: nn.BatchNorm2d(6, momentum=None), (2, 6, 7)),
}


def outcome(net: Network, xs: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    """Spikes and gradients of two batches in training, then what is left in the norm, then evaluation."""
    found = []
    for x in xs:
        y, _ = net(x, None, mask)
        found += [y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))]
    net.eval()
    y, _ = net(xs[0], None, mask)
    found += [y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))]
    return found + [b for b in net.layers[1].buffers() if b.is_floating_point() or b.ndim == 0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers(case: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    build, norm, features = CASES[case]
    net = build(norm()).double()
    xs = [(torch.rand(7, 3, *features) < 0.4).double() for _ in range(2)]
    mask = torch.arange(7).unsqueeze(1) < torch.tensor([7, 4, 2]) if masked else None
    group = group_at(list(net.layers), 0)
    assert group is not None
    assert group.norm is net.layers[1]
    apart = copy.deepcopy(net)
    fused = outcome(net, xs, mask)
    assert 0 < fused[0].mean() < 1
    monkeypatch.setattr(tbnn.nn.network, "group_at", lambda *_: None)
    for got, wanted in zip(fused, outcome(apart, xs, mask), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


def test_which_norms_run_alone() -> None:
    def groups(*layers: nn.Module) -> bool:
        return group_at(list(layers), 0) is not None

    weights = BinaryLinear(30, 6)
    assert groups(weights, TemporalBatchNorm(6), Leaky(0.9))
    assert not groups(weights, TemporalBatchNorm(5), Leaky(0.9))  # its own error says what is wrong
    assert not groups(weights, nn.BatchNorm1d(6, affine=False), Leaky(0.9))
    assert not groups(weights, nn.BatchNorm1d(6, track_running_stats=False), Leaky(0.9))
    assert not groups(weights, nn.LayerNorm(6), Leaky(0.9))
    assert not groups(BinaryConv2d(2, 6, 3), nn.BatchNorm1d(6), Leaky(0.9))
