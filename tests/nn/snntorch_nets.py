"""Networks of snntorch with weights exact in float, and their loop over time by hand."""

from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate as theirs
from torch import Tensor, nn

import tbnn

STATES = {snn.Leaky: 1, snn.Synaptic: 2, snn.RLeaky: 2, snn.RSynaptic: 3}


def exact(module: nn.Module) -> nn.Module:
    """Weights that are multiples of 1/8, so that the order of a sum does not matter."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                for value in layer.parameters():
                    value.copy_((6 * torch.randn_like(value)).round() / 8)
    return module


def loop(layers: list[Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """snntorch by hand: (spikes, membranes) of the last neuron."""
    state: dict[int, Any] = {}
    spikes, membranes = [], []
    for x_t in x:
        for place, layer in enumerate(layers):
            count = STATES.get(type(layer))
            if count is None:
                x_t = layer(x_t)
                continue
            out = layer(x_t, *state.get(place, [torch.zeros_like(x_t)] * count))
            state[place] = out[-count:]
            x_t = out[0]
        spikes.append(x_t)
        membranes.append(out[-1])
    return torch.stack(spikes), torch.stack(membranes)


def dense(make: Callable[[], nn.Module]) -> list[nn.Module]:
    return [nn.Linear(7, 6), make(), nn.Linear(6, 3, bias=False), make()]


def convolutional(make: Callable[[], nn.Module]) -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, 3, padding=1), make(), nn.AvgPool2d(2), nn.Conv2d(4, 3, 3, stride=2), make(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 3), snn.Leaky(0.5),
    ]  # fmt: skip


def recurrent(kind: Any, *decays: float, **options: Any) -> list[nn.Module]:
    first = kind(*decays, linear_features=6, **options)
    last = kind(*decays, all_to_all=False, V=torch.tensor([0.5, -0.25, 0.125]), **options)
    return [nn.Linear(7, 6), first, nn.Linear(6, 3), last]


def recurrent_conv(kind: Any, *decays: float) -> list[nn.Module]:
    first = kind(*decays, conv2d_channels=3, kernel_size=3)
    return [nn.Conv2d(2, 3, 3), first, nn.Flatten(), nn.Linear(192, 4), snn.Leaky(0.5)]


SPREAD = torch.tensor([0.5, 0.25, 0.75, 0.0, 1.0, 0.5])
CASES: dict[str, Callable[[], list[nn.Module]]] = {
    "leaky": lambda: dense(lambda: snn.Leaky(0.5)),
    "whole numbers": lambda: dense(lambda: snn.Leaky(1, threshold=2)),
    "learned": lambda: dense(lambda: snn.Leaky(0.75, threshold=0.5, learn_beta=True, learn_threshold=True)),
    "learned out of range": lambda: dense(lambda: snn.Leaky(torch.tensor(1.5), learn_beta=True)),
    "tensor beta": lambda: [nn.Linear(7, 6), snn.Leaky(SPREAD, threshold=SPREAD + 0.5, learn_beta=True)],
    "zero": lambda: dense(lambda: snn.Leaky(0.5, reset_mechanism="zero")),
    "none": lambda: dense(lambda: snn.Leaky(0.5, reset_mechanism="none")),
    "fast_sigmoid": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=theirs.fast_sigmoid(slope=5))),
    "sigmoid": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=theirs.sigmoid(slope=2))),
    "atan": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=theirs.atan(alpha=0.7))),
    "straight through": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=theirs.straight_through_estimator())),
    "heaviside": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=theirs.heaviside())),
    "signed": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=theirs.triangular(0.5))),
    "escape": lambda: dense(lambda: snn.Synaptic(0.5, 0.75, spike_grad=theirs.spike_rate_escape(2, 0.5))),
    "sparse": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=theirs.SFS(slope=2, B=-0.5))),
    "rleaky escape": lambda: recurrent(snn.RLeaky, 0.5, spike_grad=theirs.spike_rate_escape(slope=0.5)),
    "triangle": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=tbnn.surrogate.triangular(2.0))),
    "ridge": lambda: dense(lambda: snn.Leaky(0.5, spike_grad=tbnn.surrogate.ddt(lam=0.05, scale=0.5))),
    "synaptic": lambda: dense(lambda: snn.Synaptic(0.5, 0.75)),
    "learned synaptic": lambda: dense(
        lambda: snn.Synaptic(0.5, 0.75, learn_alpha=True, learn_beta=True, learn_threshold=True)
    ),
    "conv": lambda: convolutional(lambda: snn.Leaky(0.5)),
    "conv synaptic": lambda: convolutional(lambda: snn.Synaptic(0.5, 0.25)),
    "rleaky": lambda: recurrent(snn.RLeaky, 0.5, learn_beta=True, learn_threshold=True),
    "rleaky frozen": lambda: recurrent(snn.RLeaky, 0.5, learn_recurrent=False),
    "rleaky ridge": lambda: recurrent(snn.RLeaky, 0.5, spike_grad=tbnn.surrogate.ddt()),
    "rleaky none": lambda: recurrent(snn.RLeaky, 0.5, reset_mechanism="none"),
    "rsynaptic": lambda: recurrent(snn.RSynaptic, 0.5, 0.25, learn_alpha=True),
    "rleaky conv": lambda: recurrent_conv(snn.RLeaky, 0.5),
    "rsynaptic conv": lambda: recurrent_conv(snn.RSynaptic, 0.25, 0.5),
}


def build(case: str) -> tuple[nn.Sequential, Tensor]:
    net = exact(nn.Sequential(*CASES[case]()))
    assert isinstance(net, nn.Sequential)
    features = (2, 10, 10) if isinstance(net[0], nn.Conv2d) else (7,)
    return net, (torch.rand(12, 3, *features) < 0.4).float()


def in_order(module: nn.Module) -> list[Tensor]:
    """Parameters that learn, under one order on both sides: by size, then by value."""
    values = [p for p in module.parameters() if p.requires_grad]
    return sorted(values, key=lambda p: (p.numel(), p.ndim, p.detach().flatten().tolist()))


def assert_same_gradients(got: tuple[Any, ...], want: tuple[Any, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, b.abs().max().item()))
