"""Whole networks under torch.compile, torch.export and gradient checkpointing: the same numbers."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
    Synaptic,
    TemporalBatchNorm,
)


def network() -> Network:
    layers = [
        BinaryConv2d(1, 3, 3, padding=1, bits=1.58, form="linear"), TemporalBatchNorm(3), Leaky(0.9), MaxPool2d(2),
        Flatten(), BinaryLinear(12, 16, sparsity=0.5), Recurrent(Synaptic(0.5, 0.9), BinaryLinear(16, 16)),
        BinaryLinear(16, 3), LeakyIntegrator(0.9),
    ]  # fmt: skip
    return Network(layers, (1, 4, 4))


def readout_and_gradients(run: object, net: Network, x: Tensor) -> list[Tensor]:
    y = run(x)[0]  # pyright: ignore[reportCallIssue]
    assert y.abs().sum() > 0
    return [y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))]


@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
@pytest.mark.parametrize("how", ["compile", "checkpoint"])
def test_the_same_numbers(how: str) -> None:
    net, x = network(), (torch.rand(5, 4, 1, 4, 4) < 0.4).float()
    net(x)  # the running statistics have moved once on either side
    if how == "compile":
        run = torch.compile(net, backend="aot_eager")
    else:
        run = lambda x: checkpoint(net, x, use_reentrant=False)  # noqa: E731
    for got, want in zip(readout_and_gradients(run, net, x), readout_and_gradients(net, net, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)  # of a bias before a norm only rounding is left


@pytest.mark.filterwarnings("ignore")
def test_export_unrolls_the_sequence() -> None:
    net, x = network().eval(), (torch.rand(5, 4, 1, 4, 4) < 0.4).float()
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x)[0], net(x)[0])
