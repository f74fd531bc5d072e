"""torch.autocast around a training step: products of bits and membranes stay exact, networks learn."""

import pytest
import torch
from torch import Tensor, nn

from tbnn.losses import cross_entropy
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

NETWORKS = {
    "dense": lambda: Network([BinaryLinear(600, 40), Leaky(0.9), BinaryLinear(40, 3), LeakyIntegrator(0.9)]),
    "conv": lambda: Network(
        [
            BinaryConv2d(1, 8, 5, padding=2, bits=2),
            TemporalBatchNorm(8),
            Leaky(0.9),
            MaxPool2d(2),
            Flatten(),
            BinaryLinear(8 * 10 * 15, 3),
            LeakyIntegrator(0.9),
        ],
        (1, 20, 30),
    ),
    "recurrent": lambda: Network(
        [
            BinaryLinear(600, 40),
            Recurrent(Leaky(0.9), BinaryLinear(40, 40)),
            BinaryLinear(40, 40),
            Recurrent(Synaptic(0.5, 0.9), BinaryLinear(40, 40)),
            BinaryLinear(40, 3),
            LeakyIntegrator(0.9),
        ]
    ),
}


def batch() -> tuple[Tensor, Tensor]:
    """Two thirds of the inputs are on, so that sums pass 256, from where on bfloat16 rounds; each class its own half more."""
    labels = torch.arange(12) % 3
    rate = torch.full((12, 3, 200), 0.6)
    rate[torch.arange(12), labels] = 0.9
    return (torch.rand(5, 12, 600) < rate.reshape(12, 600)).float(), labels


def everything(net: Network, x: Tensor, labels: Tensor, autocast: bool) -> list[Tensor]:
    seen: list[Tensor] = []
    keep = [m.register_forward_hook(lambda _m, _a, out: seen.append(out[0])) for m in net.layers if not isinstance(m, nn.Flatten)]  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, _ = net(x)
        loss = cross_entropy(y, labels)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
    for hook in keep:
        hook.remove()
    return [loss, y, *seen, *gradients]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_numbers_are_those_without(name: str) -> None:
    net, (x, labels) = NETWORKS[name](), batch()
    for got, want in zip(everything(net, x, labels, True), everything(net, x, labels, False), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns(name: str) -> None:
    net, (x, labels) = NETWORKS[name](), batch()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, fused=True)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(net(x)[0], labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_float_layers_change_to_half_precision_and_neurons_do_not() -> None:
    net = Network([nn.Linear(20, 8), Leaky(0.9, learn_beta=True), nn.Linear(8, 3), LeakyIntegrator(0.9)])
    x = (torch.rand(6, 2, 20) < 0.5).float()
    currents: list[Tensor] = []
    net.layers[0].register_forward_hook(lambda _m, _a, out: currents.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        y, state = net(x)
    assert currents[0].dtype == torch.bfloat16
    assert y.dtype == state[1].v.dtype == state[3].v.dtype == torch.float32
    spikes, _ = net.layers[1](currents[0].float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.layers[1](currents[0])[0], spikes)
        net(x, state)  # the state goes on
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_without_autocast_half_precision_stays() -> None:
    assert Leaky(0.9).bfloat16()(torch.ones(3, 2, 4, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
