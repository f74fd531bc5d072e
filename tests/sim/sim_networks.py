"""Random networks for the tests of tbnn.sim, exact in float32 or not."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent

SIZES = st.one_of(st.integers(1, 9), st.sampled_from([31, 32, 33, 63, 64, 65, 70]))
RESETS = ("subtract", "zero", "none")


@dataclass(frozen=True)
class Case:
    """A network and its input (T, B, features) of 0 and 1."""

    network: Network
    x: Tensor


@dataclass(frozen=True)
class Shape:
    """What a network is made of."""

    sizes: list[int]
    recurrent: list[bool]
    resets: list[str]
    forms: list[str]
    blocks: list[int | None]
    biases: list[bool]
    ending: str  # integrator, linear or spikes
    steps: int
    batch: int
    seed: int


@st.composite
def shapes(draw: st.DrawFn, max_steps: int = 20, forms: tuple[str, ...] = ("affine", "linear")) -> Shape:
    depth = draw(st.integers(1, 4))

    def each(strategy: st.SearchStrategy[object], extra: int = 0) -> list[object]:
        return draw(st.lists(strategy, min_size=depth + extra, max_size=depth + extra))

    return Shape(
        each(SIZES, 2),
        each(st.booleans()),
        each(st.sampled_from(RESETS)),
        each(st.sampled_from(forms), 1),
        each(st.sampled_from([None, 32, 64]), 1),
        each(st.booleans(), 1),
        draw(st.sampled_from(["integrator", "linear", "spikes"])),
        draw(st.integers(1, max_steps)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 2**31 - 1)),
    )


def dyadic(shape: Shape) -> Case:
    """A network whose every product, sum and membrane is exact in float32 (for up to 12 steps).

    The rows of the weights are ±2^-k, so that with lam=0 the linear form's scales are; beta is 0, 1/2 or 1.
    """
    generator = torch.Generator().manual_seed(shape.seed)

    def multiples_of_a_quarter(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high + 1, size, generator=generator) / 4

    def linear(inputs: int, outputs: int, k: int) -> BinaryLinear:
        form = shape.forms[k]
        lam = 0.0 if form == "linear" else 0.01
        layer = BinaryLinear(inputs, outputs, shape.biases[k], form=form, lam=lam, block=shape.blocks[k])
        sign = 2.0 * torch.randint(0, 2, (outputs, inputs), generator=generator) - 1
        layer.weight.data = sign * 2.0 ** -torch.randint(0, 3, (outputs, 1), generator=generator)
        if layer.bias is not None:
            layer.bias.data = multiples_of_a_quarter(-8, 8, outputs)
        return layer

    def neuron(size: int, k: int) -> Leaky:
        shared = k % 2 == 0
        beta = torch.randint(0, 3, () if shared else (size,), generator=generator) / 2
        return Leaky(beta, multiples_of_a_quarter(-1, 8, *([] if shared else [size])), reset_mechanism=shape.resets[k])

    return _case(shape, linear, neuron, lambda size: torch.randint(0, 3, (size,), generator=generator) / 2)


def rough(shape: Shape) -> Case:
    """A network in which everything is rounded: normal weights and biases, any beta and threshold."""
    generator = torch.Generator().manual_seed(shape.seed)

    def linear(inputs: int, outputs: int, k: int) -> BinaryLinear:
        layer = BinaryLinear(inputs, outputs, shape.biases[k], form=shape.forms[k], block=shape.blocks[k])
        layer.weight.data = torch.randn(outputs, inputs, generator=generator)
        if layer.bias is not None:
            layer.bias.data = torch.randn(outputs, generator=generator)
        return layer

    def neuron(size: int, k: int) -> Leaky:
        beta = torch.rand(size, generator=generator) if k % 2 else 0.9
        threshold = 0.5 + torch.rand(size if k % 2 else (), generator=generator)
        return Leaky(beta, threshold, reset_mechanism=shape.resets[k], learn_beta=k % 2 == 1)

    return _case(shape, linear, neuron, lambda size: torch.rand(size, generator=generator))


def _case(shape: Shape, linear: object, neuron: object, readout_beta: object) -> Case:
    layers: list[nn.Module] = []
    for k, recurrent in enumerate(shape.recurrent):
        inputs, size = shape.sizes[k : k + 2]
        layers.append(linear(inputs, size, k))
        layers.append(Recurrent(neuron(size, k), linear(size, size, k)) if recurrent else neuron(size, k))
        layers.append(nn.Dropout(0.5))
    if shape.ending != "spikes":
        layers.append(linear(*shape.sizes[-2:], -1))
    if shape.ending == "integrator":
        layers.append(LeakyIntegrator(readout_beta(shape.sizes[-1])))
    generator = torch.Generator().manual_seed(shape.seed + 1)
    x = torch.rand(shape.steps, shape.batch, shape.sizes[0], generator=generator) < 0.4
    return Case(Network(layers).eval(), x.float())


@torch.no_grad()
def run_layers(network: Network, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The output of every spiking layer by name, and the last layer's, from the model in evaluation."""
    network.eval()
    spikes = {}
    for name, layer in network.named_children():
        assert name == "layers"
        for index, module in layer.named_children():
            x = module(x)
            if isinstance(x, tuple):
                x = x[0]
            if isinstance(module, (Leaky, Recurrent)):
                spikes[f"layers.{index}"] = x
    return spikes, x


def small_network() -> Network:
    """7 -> 40 recurrent -> 5 with blocks, both forms, a shared and a separate beta."""
    torch.manual_seed(1)
    return Network(
        [
            BinaryLinear(7, 40),
            Leaky(0.9),
            BinaryLinear(40, 40, bias=False, block=32),
            Recurrent(Leaky(torch.rand(40), torch.rand(40)), BinaryLinear(40, 40, form="linear")),
            BinaryLinear(40, 5),
            LeakyIntegrator(0.95),
        ]
    ).eval()


def small_input() -> Tensor:
    """(T, B, features) = (9, 3, 7)."""
    return (torch.rand(9, 3, 7, generator=torch.Generator().manual_seed(2)) < 0.5).float()
