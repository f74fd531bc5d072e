"""Every public class of tbnn.nn: it packs, or the reason why it does not."""

import inspect

import pytest
import torch
from torch import Tensor, nn

import tbnn.nn
from tbnn.nn import (
    Adaptive,
    AdLIF,
    AvgPool2d,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    CustomNeuron,
    Dale,
    DeepR,
    Delay,
    DelayedLinear,
    Distance,
    FixedWiring,
    Flatten,
    GivenWiring,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Neuron,
    Recurrent,
    Residual,
    SpikeDropout,
    Synaptic,
    TargetRate,
    TemporalBatchNorm,
    Voting,
    Winners,
)  # fmt: skip
from tbnn.nn.neuron import Coefficients
from tbnn.nn.wiring import Wiring
from tbnn.ops.lif import Second
from tbnn.sim import check_parity, pack, unpack

SHAPE = (2, 8, 8)
FLAT = [Flatten(), BinaryLinear(128, 6)]
EVEN = (torch.arange(6)[:, None] + torch.arange(128)) % 2 == 0  # every other synapse


def _wired(wiring: Wiring) -> list[nn.Module]:
    return [Flatten(), BinaryLinear(128, 6, form="linear", wiring=wiring)]


PACKS: dict[str, list[nn.Module]] = {
    "AdLIF": [*FLAT, AdLIF(0.5)],
    "Adaptive": [*FLAT, Adaptive(0.5)],
    "AvgPool2d": [AvgPool2d(2), BinaryConv2d(2, 3, 3), Leaky(0.5)],
    "BinaryConv1d": [BinaryConv1d(2, 4, 3), Leaky(0.5)],
    "BinaryConv2d": [BinaryConv2d(2, 4, 3), Leaky(0.5)],
    "BinaryLinear": FLAT,
    "Delay": [Flatten(), Delay(128, 3), BinaryLinear(128, 6), Leaky(0.5)],
    "DelayedLinear": [Flatten(), DelayedLinear(128, 6, 3), Leaky(0.5)],
    "Flatten": FLAT,
    "Leaky": [*FLAT, Leaky(0.5)],
    "LeakyIntegrator": [*FLAT, LeakyIntegrator(0.5)],
    "MaxPool2d": [MaxPool2d(2), Flatten(), BinaryLinear(32, 6)],
    "Network": FLAT,
    "Recurrent": [*FLAT, Recurrent(Leaky(0.5), BinaryLinear(6, 6), delay=2)],
    "Residual": [*FLAT, Leaky(0.5), Residual([BinaryLinear(6, 6), Leaky(0.5)])],
    "SpikeDropout": [*FLAT, SpikeDropout(0.5), Leaky(0.5)],
    "Synaptic": [*FLAT, Synaptic(0.5, 0.5)],
    "Dale": [*_wired(Dale(0.3)), Leaky(0.5)],
    "DeepR": [*_wired(DeepR(0.5)), Leaky(0.5)],
    "Distance": [*_wired(Distance(0.5)), Leaky(0.5)],
    "FixedWiring": [*_wired(FixedWiring(0.3)), Leaky(0.5)],
    "GivenWiring": [*_wired(GivenWiring(EVEN)), Leaky(0.5)],
    "TargetRate": [*FLAT, Leaky(0.5, activity=TargetRate(0.1))],
    "TemporalBatchNorm": [*FLAT, TemporalBatchNorm(6), Leaky(0.5)],
    "Voting": [*FLAT, LeakyIntegrator(0.5), Voting(2)],
    "Winners": [*FLAT, Leaky(0.5, activity=Winners(2))],
}

DOES_NOT = {
    "CustomNeuron": "the Python of its steps cannot be written to a file of bits",
    "StochasticLinear": "its units are random and its weights float",
    "Neuron": "the base of neurons; a subclass that overrides coefficients() packs",
    "Stateful": "the base of layers with a state",
    "CustomState": "a state",
    "LifState": "a state",
    "RecurrentState": "a state",
    "ResidualState": "a state",
    "FiringRates": "a measurement of a network",
    "Summary": "a description of a network",
}


VALUES = ("Dale", "DeepR", "Distance", "FixedWiring", "GivenWiring", "TargetRate", "Winners")
"""Arguments of layers, not layers."""


def test_every_class_has_its_line() -> None:
    classes = {name for name in tbnn.nn.__all__ if inspect.isclass(getattr(tbnn.nn, name))}
    assert classes == {*PACKS, *DOES_NOT}


@pytest.mark.parametrize("name", PACKS)
def test_a_class_that_packs(name: str) -> None:
    torch.manual_seed(0)
    shape = (2, 64) if name == "BinaryConv1d" else SHAPE
    net = Network(PACKS[name], shape).eval()
    x = (torch.rand(9, 2, *shape) < 0.4).float()
    packed = pack(net)
    assert any(isinstance(m, getattr(tbnn.nn, name)) for m in net.modules()) or name in VALUES
    assert check_parity(net, packed, x).equal
    result = packed.simulate(x)
    assert result.readout is not None or bool(result.output_spikes.any())  # type: ignore[union-attr]
    assert check_parity(unpack(packed), packed, x.flatten(2)).equal


class Quadratic(CustomNeuron):
    """A neuron of one's own."""

    def rest(self, current: Tensor) -> Tensor:
        return torch.zeros_like(current)

    def membrane(self, current: Tensor, spikes: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return v - 1, v * v + current


class Resonator(Neuron):
    """Two states of other coefficients, linear between spikes."""

    def coefficients(self) -> Coefficients:
        numbers = (0.75, -0.5, 0.0, 0.25, 1.0, 0.5, 0.0)
        return Coefficients(torch.tensor(0.75), Second(*map(torch.tensor, numbers)))


class Loud(Leaky):
    """A neuron with another sequence."""

    def forward(self, x: Tensor, state: object = None, mask: Tensor | None = None) -> tuple[Tensor, object]:
        return super().forward(2 * x, state, mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [False, True])
def test_a_custom_neuron_is_told_what_to_do(wrap: bool) -> None:
    layer = Recurrent(Quadratic(1.0), BinaryLinear(6, 6)) if wrap else Quadratic(1.0)
    with pytest.raises(
        ValueError, match=r"layers\.1: Quadratic does not pack: the Python of .*overrides only coefficients"
    ):
        pack(Network([BinaryLinear(8, 6), layer]))


def test_a_neuron_of_other_coefficients_packs() -> None:
    torch.manual_seed(0)
    net = Network([BinaryLinear(8, 16), Resonator(0.5), BinaryLinear(16, 3)]).eval()
    x = (torch.rand(20, 3, 8) < 0.4).float()
    packed = pack(net)
    assert check_parity(net, packed, x).equal
    assert check_parity(unpack(packed), packed, x).equal
    assert packed.simulate(x).counts.total.spikes > 0


def test_a_neuron_with_another_sequence_does_not() -> None:
    with pytest.raises(ValueError, match=r"layers\.1: Loud.* does not pack"):
        pack(Network([BinaryLinear(8, 6), Loud(0.9)]))
