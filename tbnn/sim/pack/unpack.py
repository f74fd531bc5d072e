"""From packed bits back to a network of modules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.nn import (
    Adaptive,
    BinaryConv2d,
    BinaryLinear,
    Delay,
    DelayedLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Neuron,
    Recurrent,
    Residual,
    Synaptic,
    Voting,
    Winners,
)  # fmt: skip
from tbnn.nn.neuron import SpikeOptions
from tbnn.nn.weights import BinaryWeight
from tbnn.ops.lif import Second
from tbnn.ops.quantize import Codes
from tbnn.sim.layers import (
    PackedConv,
    PackedDelay,
    PackedDelayed,
    PackedEdge,
    PackedIntegrator,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
    PackedPool,
    PackedSparse,
    PackedVoting,
)
from tbnn.sim.network import PackedNetwork
from tbnn.sim.pack.signal import Shape
from tbnn.sim.pack.unpacked import RestingRecurrent, TwoStateNeuron

MOST_GAPS = 1000  # layers without a trace between two packed ones: dropout, identities


@dataclass
class Block:
    """A residual block: ``edge`` is its join."""

    edge: PackedEdge
    body: "list[Item]" = field(default_factory=list)
    shortcut: "list[Item] | None" = None


Item = PackedLayer | Block


@torch.no_grad()
def unpack(packed: PackedNetwork) -> Network:
    """The network of modules, in evaluation, that a packed network is: its spikes bit for bit, and its readout.

    Its weights are frozen at the packed codes (:meth:`tbnn.nn.weights.BinaryWeight.freeze`): biases, gradients of the
    input and everything else of a model are there, but the weights themselves no longer train. What was folded stays so:
    there is no batch norm, no average pooling and no denoised output, whose constants the scales, offsets and biases hold.
    Synaptic and adaptive neurons come back as such, others with a second state as neurons of just these coefficients;
    ``BinaryConv1d`` as ``BinaryConv2d`` of height 1. Layers keep the names they have in the packed network, so that
    ``pack(unpack(packed))`` is the packed network again; it takes frames as the first layer does, or flat ones.

    Raises:
        ValueError: layers, named, that no modules make, which :func:`pack` does not write: edges in another order than a
            residual block's, frames that appear from flat features.

    >>> network = unpack(pack(Network([BinaryLinear(8, 16), Leaky(0.9), BinaryLinear(16, 4), LeakyIntegrator(0.9)])))
    >>> [type(layer).__name__ for layer in network.layers]
    ['BinaryLinear', 'Leaky', 'BinaryLinear', 'LeakyIntegrator']
    """
    shape = _input_shape(packed)
    with torch.random.fork_rng(devices=[]):  # new layers draw weights, which the codes then replace
        layers, end = _build("layers", _tree(packed.layers), shape)
        if len(end) > 1:
            layers.append(Flatten())
        return Network(layers, shape).eval()


def _input_shape(packed: PackedNetwork) -> Shape:
    """What enters, as the first layer that minds takes it."""
    shape: Shape = (packed.in_features,)
    for layer in packed.layers:
        if isinstance(layer, PackedConv | PackedPool):
            return layer.spec.channels, layer.spec.height, layer.spec.width
        if isinstance(layer, PackedLinear | PackedSparse | PackedDelayed):
            break
        if isinstance(layer, PackedDelay) and layer.spec.size > 1:
            shape = (layer.spec.channels, layer.spec.size)
    return shape


def _tree(layers: Sequence[PackedLayer]) -> list[Item]:
    """Layers in order, those of a residual block inside it."""
    top: list[Item] = []
    here, open_blocks = top, []  # blocks with the list that they stand in
    for layer in layers:
        if not isinstance(layer, PackedEdge):
            here.append(layer)
        elif layer.spec.op == "fork":
            block = Block(layer)
            open_blocks.append((block, here))
            here = block.body
        elif layer.spec.op == "swap":
            block, _ = open_blocks[-1]
            if block.shortcut is None:
                here = block.shortcut = []
            elif here is block.shortcut:
                here = block.body  # closed: what follows must be the join
            else:
                raise ValueError(
                    f"unpack: {layer.spec.name}: expected two swaps in a residual block at most, got a third"
                )
        else:
            block, around = open_blocks.pop()
            if here is block.shortcut:
                raise ValueError(f"unpack: {layer.spec.name}: expected a second swap before the join, got none")
            block.edge = layer
            around.append(block)
            here = around
    return top


class _Places:
    """Modules at the places that their packed names tell, with identities where a layer left no trace."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.modules = f"{prefix}.", []

    def gap_before(self, name: str) -> int:
        """How many places are free before a layer's own."""
        place = name.removeprefix(self.prefix)
        own = name.startswith(self.prefix) and place.isdecimal() and len(place) < 10
        gap = int(place) - len(self.modules) if own else 0
        return gap if 0 < gap <= MOST_GAPS else 0

    def put(self, name: str, module: nn.Module, flatten: bool) -> None:
        """Place a module, if asked for after a flattening, which takes a free place or one more."""
        free: list[nn.Module] = [nn.Identity() for _ in range(self.gap_before(name))]
        if flatten:
            free[-1:] = [Flatten()]
        self.modules += [*free, module]


def _build(prefix: str, items: list[Item], shape: Shape) -> tuple[list[nn.Module], Shape]:
    """The modules of items that features of a shape enter, and the shape of what leaves them."""
    places = _Places(prefix)
    for index, item in enumerate(items):
        name = item.edge.spec.name if isinstance(item, Block) else item.spec.name
        # A flattening left no trace but its place, which may be before the neurons whose spikes it flattens.
        flatten = len(shape) > 1 and _wants_flat(items[index:])
        must = isinstance(item, PackedLinear | PackedSparse | PackedDelayed) or _returns_flat(item)
        flatten = flatten and (must or places.gap_before(name) > 0)
        shape = (math.prod(shape),) if flatten else shape
        module, shape = _residual(item, shape) if isinstance(item, Block) else _module(item, shape)
        places.put(name, module, flatten)
    return places.modules, shape


def _returns_flat(item: Item) -> bool:
    return isinstance(item, PackedLeaky) and isinstance(item.feedback, PackedLinear | PackedSparse)


def _wants_flat(items: list[Item]) -> bool:
    """Whether the first layer that minds takes flat features."""
    for item in items:
        if isinstance(item, PackedLinear | PackedSparse | PackedDelayed | PackedVoting) or _returns_flat(item):
            return True
        if isinstance(item, Block):
            return _wants_flat(item.body)
        if not isinstance(item, PackedIntegrator | PackedLeaky) or (isinstance(item, PackedLeaky) and item.feedback):
            return False
    return False


def _residual(block: Block, shape: Shape) -> tuple[Residual, Shape]:
    name = block.edge.spec.name
    body, end = _build(f"{name}.body.layers", block.body, shape)
    shortcut = None
    if block.shortcut is not None:
        shortcut, _ = _build(f"{name}.shortcut.layers", block.shortcut, shape)
    return Residual(body, shortcut, block.edge.spec.op), end


def _module(layer: PackedLayer, shape: Shape) -> tuple[nn.Module, Shape]:
    """A layer's module for features of a shape, and the shape of what leaves it."""
    spec = layer.spec
    if isinstance(layer, PackedLinear | PackedSparse):
        return _linear(layer), (layer.spec.out_features,)
    if isinstance(layer, PackedDelayed):
        return _delayed(layer), (layer.spec.out_features,)
    if isinstance(layer, PackedConv):
        _expect(layer, (layer.spec.channels, layer.spec.height, layer.spec.width), shape)
        return _conv(layer), layer.spec.out_shape
    if isinstance(layer, PackedPool):
        _expect(layer, (layer.spec.channels, layer.spec.height, layer.spec.width), shape)
        return MaxPool2d(layer.spec.window, layer.spec.stride, layer.spec.padding), layer.spec.out_shape
    if isinstance(layer, PackedDelay):
        _expect(layer, (layer.spec.channels, *shape[1:]), shape)
        return Delay(layer.spec.channels, layer.spec.max_delay, delay=layer.delay, learn=False), shape
    if isinstance(layer, PackedVoting):
        return Voting(layer.spec.voters), (*shape[:-1], shape[-1] // layer.spec.voters)
    if isinstance(layer, PackedIntegrator):
        return LeakyIntegrator(_spread(layer.beta, shape)), shape
    if isinstance(layer, PackedLeaky):
        return _spiking(layer, shape), shape
    raise ValueError(f"unpack: {spec.name}: expected a layer that modules make, got {spec.kind}")


def _expect(layer: PackedLayer, wanted: Shape, shape: Shape) -> None:
    if wanted != shape:
        raise ValueError(f"unpack: {layer.spec.name}: expected frames {wanted} before it, got features {shape}")


def _options(packed: PackedLinear) -> dict[str, Any]:
    spec = packed.spec
    return {
        "bias": spec.bias,
        "bits": 1.58 if spec.bits == 1 and spec.zeros else spec.bits,
        "form": "affine" if spec.offset else "linear",
        "block": None if spec.block == spec.in_features else spec.block,
    }


def _settled(layer: BinaryWeight, packed: PackedLinear) -> None:
    """Give a layer the packed codes and bias."""
    offset = torch.zeros_like(packed.scale) if packed.offset is None else packed.offset
    layer.freeze(Codes(packed.values().reshape(layer.weight.shape), packed.scale, offset))
    if layer.bias is not None and packed.bias is not None:
        layer.bias.copy_(packed.bias)


def _linear(packed: PackedLinear | PackedSparse) -> BinaryLinear:
    packed = packed.to_linear() if isinstance(packed, PackedSparse) else packed
    layer = BinaryLinear(packed.spec.in_features, packed.spec.out_features, **_options(packed))
    _settled(layer, packed)
    return layer


def _delayed(packed: PackedDelayed) -> DelayedLinear:
    spec, delay = packed.spec, packed.delays()
    layer = DelayedLinear(
        spec.in_features, spec.out_features, spec.max_delay, delay=delay, learn=False, **_options(packed.kernel)
    )
    _settled(layer, packed.kernel)
    return layer


def _conv(packed: PackedConv) -> BinaryConv2d:
    spec, (top, bottom, left, right) = packed.spec, packed.spec.margins
    layer = BinaryConv2d(
        spec.channels, spec.kernel.out_features, spec.window, spec.stride, ((top, bottom), (left, right)), spec.dilation,
        spec.groups, **_options(packed.kernel),
    )  # fmt: skip
    _settled(layer, packed.kernel)
    return layer


def _spread(values: Tensor, shape: Shape) -> Tensor:
    """A parameter of one value, or one for each feature of a shape."""
    return values.reshape(() if values.numel() == 1 else shape)


def _spiking(packed: PackedLeaky, shape: Shape) -> nn.Module:
    neuron, feedback, spec = _neuron(packed, shape), packed.feedback, packed.spec
    if feedback is None:
        return neuron
    if isinstance(feedback, PackedConv):
        _expect(packed, (feedback.spec.channels, feedback.spec.height, feedback.spec.width), shape)
        return Recurrent(neuron, _conv(feedback), spec.delay)
    if packed.rest_bias is None:
        return Recurrent(neuron, _linear(feedback), spec.delay)
    return RestingRecurrent(neuron, _linear(feedback), packed.rest_bias)


def _neuron(packed: PackedLeaky, shape: Shape) -> Neuron:
    spec, beta, threshold = packed.spec, _spread(packed.beta, shape), _spread(packed.threshold, shape)
    options: SpikeOptions = {"reset_mechanism": spec.reset, "refractory": spec.refractory}
    if spec.winners:
        options["activity"] = Winners(spec.winners)
    if packed.second is None:
        return Leaky(beta, threshold, **options)
    rows = Second(*(_spread(row, shape) for row in packed.second))
    found: list[Neuron] = [Synaptic(rows.rho, beta, threshold, **options)]
    found.append(Adaptive(beta, rows.rho, rows.to_threshold, threshold, **options))
    for neuron in found:
        second = neuron.coefficients().second
        if second is not None and all(torch.equal(a.expand(b.shape), b) for a, b in zip(second, rows, strict=True)):
            return neuron
    return TwoStateNeuron(beta, torch.stack(list(rows)), threshold, **options)
