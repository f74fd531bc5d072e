"""Every layer and neuron of the library as packed bits: the spikes of the model, in memory, from a file, in pieces."""

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tbnn.bits import pack_bits
from tbnn.nn import (
    Adaptive,
    AdLIF,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Delay,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Neuron,
    Recurrent,
    Residual,
    Synaptic,
    Winners,
)  # fmt: skip
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.pool import Voting
from tbnn.nn.zoo import spiking_resnet
from tbnn.sim import PackedNetwork, check_parity, pack

GRIDS = [(1, 0.0), (1.58, 0.0), (1, 0.5), (1.58, 0.8), (2, 0.0), (3, 0.5), (5, 0.0), (8, 0.9), (1, (2, 4)), (4, (1, 4))]
RESETS = ("subtract", "zero", "none")


@dataclass(frozen=True)
class Case:
    """A network in evaluation and its input (T, B, features...) of 0 and 1."""

    network: Network
    x: Tensor


def neuron_of(draw: st.DrawFn, generator: torch.Generator, dyadic: bool) -> Neuron:
    """Any neuron; dyadic ones have constants of few bits."""

    def decay() -> float:
        return draw(st.sampled_from([0.0, 0.5, 1.0])) if dyadic else float(torch.rand((), generator=generator))

    gates = {"refractory": draw(st.integers(0, 2)), "activity": draw(st.sampled_from([None, None, Winners(3)]))}
    options = {"reset_mechanism": draw(st.sampled_from(RESETS)), "gradient": "surrogate", **gates}
    threshold = draw(st.sampled_from([0.5, 1.0, 1.5]))
    kind = draw(st.sampled_from(["leaky", "leaky", "synaptic", "adaptive", "adlif"]))
    if kind == "leaky":
        return Leaky(decay(), threshold, **options)  # type: ignore[arg-type]
    if kind == "synaptic":
        return Synaptic(decay(), decay(), threshold, **options)  # type: ignore[arg-type]
    if kind == "adaptive":
        return Adaptive(decay(), decay(), 0.25, threshold, **options)  # type: ignore[arg-type]
    return AdLIF(decay(), decay(), 0.5, 0.25, threshold, **options)  # type: ignore[arg-type]


def settled(layer: nn.Module, draw: st.DrawFn, generator: torch.Generator, dyadic: bool) -> nn.Module:
    """A layer of weights with weights; dyadic ones are ±2^-k, in the linear form exact in float32."""
    weight: Tensor = layer.weight.data  # type: ignore[assignment]
    if dyadic:
        row = 2.0 ** -torch.randint(0, 3, (weight.shape[0], *[1] * (weight.ndim - 1)), generator=generator)
        layer.weight.data = (2.0 * torch.randint(0, 2, weight.shape, generator=generator) - 1) * row
    else:
        layer.weight.data = torch.randn(weight.shape, generator=generator)
    if layer.bias is not None:
        bias = torch.randint(-4, 5, layer.bias.shape, generator=generator) / 4
        layer.bias.data = bias if dyadic else bias + torch.rand(bias.shape, generator=generator)
    return layer


@st.composite
def flat_networks(draw: st.DrawFn, dyadic: bool) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    sizes = draw(st.lists(st.sampled_from([3, 8, 31, 33, 64, 70]), min_size=2, max_size=4))

    def linear(inputs: int, outputs: int) -> BinaryLinear:
        bits, sparsity = (1, 0.0) if dyadic else draw(st.sampled_from(GRIDS))
        form = "linear" if dyadic else draw(st.sampled_from(["affine", "linear"]))
        options = {"bits": bits, "sparsity": sparsity, "form": form, "lam": 0.0 if dyadic else 0.01}
        layer = BinaryLinear(inputs, outputs, draw(st.booleans()), block=draw(st.sampled_from([None, 32])), **options)  # type: ignore[arg-type]
        return settled(layer, draw, generator, dyadic)  # type: ignore[return-value]

    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers.append(linear(inputs, outputs))
        neuron = neuron_of(draw, generator, dyadic)
        layers.append(Recurrent(neuron, linear(outputs, outputs)) if draw(st.booleans()) else neuron)
    layers += [linear(sizes[-1], 4), LeakyIntegrator(0.5)]
    x = (torch.rand(draw(st.integers(1, 8)), draw(st.integers(1, 3)), sizes[0], generator=generator) < 0.4).float()
    return Case(Network(layers).eval(), x)


@st.composite
def conv_networks(draw: st.DrawFn, dyadic: bool) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    size = (draw(st.sampled_from([1, 2, 4])), draw(st.integers(5, 9)), draw(st.sampled_from([5, 8, 33])))

    def options() -> dict[str, object]:
        bits, sparsity = (1, 0.0) if dyadic else draw(st.sampled_from(GRIDS[:8]))
        form = "linear" if dyadic else draw(st.sampled_from(["affine", "linear"]))
        return {"bits": bits, "sparsity": sparsity, "form": form, "lam": 0.0 if dyadic else 0.01}

    groups = draw(st.sampled_from([1, 1, size[0]]))
    stride = draw(st.integers(1, 2))
    padding = draw(st.sampled_from([0, 1, "same"])) if stride == 1 else draw(st.sampled_from([0, 1]))
    window = draw(st.sampled_from([1, 2, 3, (3, 2)]))
    first = BinaryConv2d(size[0], 4, window, stride, padding, groups=groups, **options())  # type: ignore[arg-type]
    layers: list[nn.Module] = [settled(first, draw, generator, dyadic)]
    if not dyadic and draw(st.booleans()):
        norm = TemporalBatchNorm(4)
        norm.running_mean.add_(0.3)
        norm.running_var.mul_(1.7)
        layers.append(norm)
    layers.append(neuron_of(draw, generator, dyadic))
    if draw(st.booleans()):
        layers.append(MaxPool2d(2, stride=draw(st.integers(1, 2)), padding=draw(st.integers(0, 1))))
    with torch.no_grad():
        shape = Network(layers, size)(torch.zeros(1, 1, *size))[0].shape[2:]
    last = BinaryLinear(shape.numel(), 3, **options())  # type: ignore[arg-type]
    layers += [Flatten(), settled(last, draw, generator, dyadic), LeakyIntegrator(0.5)]
    x = (torch.rand(draw(st.integers(1, 5)), draw(st.integers(1, 3)), *size, generator=generator) < 0.3).float()
    return Case(Network(layers, size).eval(), x)


@st.composite
def residual_networks(draw: st.DrawFn, dyadic: bool) -> Case:
    """Blocks of every join, with and without a shortcut of their own, and delays."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    size = draw(st.sampled_from([5, 32, 40]))

    def linear(inputs: int, outputs: int) -> nn.Module:
        options = {"form": "linear", "lam": 0.0 if dyadic else 0.01}
        return settled(BinaryLinear(inputs, outputs, **options), draw, generator, dyadic)  # type: ignore[arg-type]

    layers: list[nn.Module] = [linear(9, size), neuron_of(draw, generator, dyadic)]
    for join in draw(st.lists(st.sampled_from(["or", "and", "iand", "current"]), min_size=1, max_size=3)):
        if draw(st.booleans()):
            delay = torch.randint(0, 4, (size,), generator=generator)
            layers.append(Delay(size, 3, delay=delay, learn=False))
        ends: list[nn.Module] = [] if join == "current" else [neuron_of(draw, generator, dyadic)]
        own = join == "current" or draw(st.booleans())
        shortcut = (
            [linear(size, size), *([] if join == "current" else [neuron_of(draw, generator, dyadic)])] if own else None
        )
        layers.append(Residual([linear(size, size), *ends], shortcut, join))
        if join == "current":
            layers.append(neuron_of(draw, generator, dyadic))
    layers += [linear(size, 4), LeakyIntegrator(0.5)]
    x = (torch.rand(draw(st.integers(1, 9)), draw(st.integers(1, 3)), 9, generator=generator) < 0.4).float()
    return Case(Network(layers).eval(), x)


def packed_in_a_file(network: Network) -> PackedNetwork:
    """Packed, saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tbnn"
        pack(network).save(path)
        return PackedNetwork.load(path)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(case=st.one_of(flat_networks(dyadic=True), conv_networks(dyadic=True), residual_networks(dyadic=True)))
def test_exact_networks_are_equal_bit_for_bit(case: Case) -> None:
    packed = packed_in_a_file(case.network)
    parity = check_parity(case.network, packed, case.x)
    assert parity.equal, parity.summary()
    words = packed.simulate(pack_bits(case.x.flatten(2)))
    assert torch.equal(words.readout, packed.simulate(case.x).readout)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(case=st.one_of(flat_networks(dyadic=False), conv_networks(dyadic=False), residual_networks(dyadic=False)))
def test_rounded_networks_keep_the_contract(case: Case) -> None:
    parity = check_parity(case.network, packed_in_a_file(case.network), case.x)
    assert parity.ok, parity.summary()


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    case=st.one_of(flat_networks(dyadic=False), conv_networks(dyadic=False), residual_networks(dyadic=False)),
    data=st.data(),
)
def test_a_simulation_in_pieces_is_the_whole(case: Case, data: st.DataObject) -> None:
    packed = pack(case.network)
    whole = packed.simulate(case.x, record=("spikes",))
    cut = data.draw(st.integers(0, len(case.x)))
    state, parts = None, []
    for piece in (case.x[:cut], case.x[cut:]):
        if len(piece):
            result = packed.simulate(piece, record=("spikes",), state=state)
            state = result.state
            parts.append(result)
    assert torch.equal(torch.cat([p.readout for p in parts]), whole.readout)  # type: ignore[arg-type]
    for name, spikes in whole.spikes.items():
        assert torch.equal(torch.cat([p.spikes[name] for p in parts]), spikes)


@pytest.mark.parametrize(("bits", "sparsity"), GRIDS)
@pytest.mark.parametrize("form", ["affine", "linear"])
def test_planes_hold_the_values(bits: float, sparsity: object, form: str) -> None:
    torch.manual_seed(0)
    layer = BinaryLinear(70, 9, bits=bits, sparsity=sparsity, form=form)  # type: ignore[arg-type]
    packed = pack(Network([layer])).linear_layers[0]
    assert torch.equal(packed.values(), layer.codes().values.int())
    stored = packed.spec.bits + packed.spec.zeros
    assert packed.planes.shape == (stored, 9, 3)
    weight = packed.values() * packed.scale + (0 if packed.offset is None else packed.offset)
    torch.testing.assert_close(weight, layer.quantized_weight().detach())


def test_effective_operations_count_the_weights_that_are_not_zero() -> None:
    torch.manual_seed(0)
    layer = BinaryLinear(64, 10, bits=3, sparsity=0.75)
    x = (torch.rand(5, 4, 64) < 0.3).float()
    counts = pack(Network([layer])).simulate(x).counts.layers[0]
    nonzero = (layer.codes().values != 0).float()
    assert counts.effective_synops == int((x.flatten(0, 1) @ nonzero.T).sum())
    assert counts.dense_synops == 5 * 4 * 64 * 10


def test_a_residual_network_of_the_zoo() -> None:
    torch.manual_seed(0)
    net = spiking_resnet((4, 8), 5, input_shape=(2, 16, 16))
    x = (torch.rand(4, 2, 2, 16, 16) < 0.2).float()
    net(x)
    net.eval()
    assert check_parity(net, pack(net), x).ok


@pytest.mark.parametrize("readout", [True, False])
def test_voters_at_the_end(readout: bool) -> None:
    torch.manual_seed(0)
    end = LeakyIntegrator(0.5) if readout else Leaky(0.5)
    net = Network([BinaryLinear(9, 40), Leaky(0.5), BinaryLinear(40, 12), end, Voting(4)]).eval()
    x = (torch.rand(6, 3, 9) < 0.4).float()
    packed = packed_in_a_file(net)
    assert check_parity(net, packed, x).ok
    torch.testing.assert_close(packed.simulate(x).readout, net(x)[0])
    with pytest.raises(ValueError, match="what voters say is no bits"):
        pack(Network([BinaryLinear(9, 40), Leaky(0.5), Voting(4), BinaryLinear(10, 2)]))


def test_one_dimension_and_groups() -> None:
    torch.manual_seed(1)
    layers = [BinaryConv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bits=2), Leaky(0.5), Flatten()]
    net = Network([*layers, BinaryLinear(6 * 15, 5), LeakyIntegrator(0.5)], (4, 31)).eval()
    assert check_parity(net, pack(net), (torch.rand(6, 3, 4, 31) < 0.3).float()).ok


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([BinaryConv2d(2, 3, 3)], (3, 8, 8), r"layers\.0: expected frames \(2, H, W\), got \(3, 8, 8\)"),
        ([BinaryConv2d(2, 3, 3), MaxPool2d(2)], (2, 8, 8), r"expected bits, got values before layers\.1|layers\.1: "),
        ([MaxPool2d(2)], None, r"layers\.0: expected frames \(C, H, W\)"),
        ([BinaryConv2d(2, 3, 3), Recurrent(Leaky(0.9), BinaryLinear(3, 3))], (2, 8, 8), r"layers\.1: .*flat features"),
    ],
)
def test_what_does_not_fit_is_named(layers: list[nn.Module], shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(Network(layers, shape))


@pytest.mark.parametrize(("bits", "sparsity"), [(1, 0.0), (1.58, 0.0), (3, 0.0), (2, 0.5)])
def test_a_convolution_counts_its_operations(bits: float, sparsity: float) -> None:
    torch.manual_seed(0)
    layer = BinaryConv2d(2, 5, 3, padding=1, bits=bits, sparsity=sparsity)
    x = (torch.rand(3, 2, 2, 8, 9) < 0.3).float()
    counts = pack(Network([layer], (2, 8, 9))).simulate(x).counts.layers[0]
    nonzero = (layer.codes().values != 0).float()
    assert counts.effective_synops == int(nn.functional.conv2d(x.flatten(0, 1), nonzero, padding=1).sum())
    everywhere = nn.functional.conv2d(torch.ones(6, 2, 8, 9), torch.ones_like(nonzero), padding=1)
    assert counts.dense_synops == int(everywhere.sum())
