"""From a trained network to packed bits. The only part of the simulator that knows :mod:`tbnn.nn`."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tbnn._version import __version__
from tbnn.nn import (
    Adaptive,
    AdLIF,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Delay,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
    Residual,
    Synaptic,
)  # fmt: skip
from tbnn.nn.dropout import SpikeDropout
from tbnn.nn.fold import NORMS, fold_batch_norms
from tbnn.nn.pool import Flatten, Voting
from tbnn.sim.layers import EdgeSpec, PackedEdge, PackedLayer, PackedVoting, VotingSpec
from tbnn.sim.network import PackedNetwork
from tbnn.sim.pack.neurons import emitted_by, pack_integrator, pack_neuron, pack_recurrent
from tbnn.sim.pack.weights import BITS, Affine, Shape, pack_conv, pack_delay, pack_linear, pack_pool

__all__ = ["pack"]

NEURONS = (Leaky, Synaptic, Adaptive, AdLIF)
PACKABLE = (
    "BinaryLinear, BinaryConv1d, BinaryConv2d of 1 to 8 bits, batch norm right after one of them, MaxPool2d of bits, Leaky, "
    "Synaptic, Adaptive, AdLIF, LeakyIntegrator, Recurrent(neuron, BinaryLinear) of delay 1, Delay, Residual, Voting at the end, dropout, Identity, "
    "Flatten"
)


@torch.no_grad()
def pack(model: Network, *, provenance: dict[str, Any] | None = None) -> PackedNetwork:
    """Pack a network as it is in evaluation: weights as bit planes, a float32 scale and offset a block.

    Layers are weights, neuron, weights, neuron, … with pooling of bits in between; a :class:`LeakyIntegrator` comes last.
    Dropout vanishes, a batch norm folds into the scales, offsets and bias of the weights before it. The constants of a
    neuron that emits denoised values, a·q + b, fold into the next layer's scale, offset and bias.

    Args:
        model: float32, on any device; a float64 model would have to be rounded, which is for the caller to do
            (``model.float()``). Convolutions and pooling need its ``input_shape``.
        provenance: what to remember about where the network comes from; the version of tbnn is added.

    Raises:
        ValueError: a layer that does not pack, named; a block that is no multiple of the word size; denoised values
            with constants per channel; another dtype than float32; non-finite weights; layers out of order.

    >>> packed = pack(Network([BinaryLinear(8, 16), Leaky(0.9), BinaryLinear(16, 4), LeakyIntegrator(0.9)]))
    """
    if not isinstance(model, Network):
        raise ValueError(f"pack: expected a tbnn.nn.Network, got {type(model).__name__}")
    if any(isinstance(module, NORMS) for module in model.modules()):
        model = fold_batch_norms(model)
    layers, _, _ = _pack_layers("layers", model.layers, _start(model), BITS)
    if not layers:
        raise ValueError(f"pack: expected a layer that packs ({PACKABLE}), got none")
    return PackedNetwork(tuple(layers), math.prod(_start(model)), {"tbnn": __version__, **(provenance or {})})


def _pack_layers(
    prefix: str, modules: Iterable[nn.Module], shape: Shape, emitted: Affine
) -> tuple[list[PackedLayer], Shape, Affine]:
    """Layers in order, the shape of what leaves the last one, and what its bits stand for."""
    layers: list[PackedLayer] = []
    for index, layer in enumerate(modules):
        name = f"{prefix}.{index}"
        if isinstance(layer, Flatten) or (
            isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (2, -1)
        ):
            shape = (math.prod(shape),)
        elif type(layer) is Residual:
            block, shape = _pack_residual(name, layer, shape, emitted)
            layers, emitted = [*layers, *block], BITS
        elif not isinstance(layer, nn.Dropout | nn.Identity | SpikeDropout):
            _check_dtype(name, layer)
            first = prefix == "layers" and not layers
            packed, shape, emitted = _pack_layer(name, layer, shape, emitted, first=first)
            layers.append(packed)
    return layers, shape, emitted


def _pack_residual(name: str, layer: Residual, shape: Shape, emitted: Affine) -> tuple[list[PackedLayer], Shape]:
    """Fork, body, join; with layers in the shortcut: fork, body, swap, shortcut, swap, join."""
    if emitted != BITS and layer.join != "current":
        raise ValueError(f"{name}: expected bits before a block that joins bits, got denoised values (emit='denoised')")
    body, end, given = _pack_layers(f"{name}.body.layers", layer.body.layers, shape, emitted)
    if given != BITS:
        raise ValueError(f"{name}: expected a body that ends in bits, got denoised values (emit='denoised')")
    around: list[PackedLayer] = []
    if layer.shortcut is not None:
        shortcut, _, given = _pack_layers(f"{name}.shortcut.layers", layer.shortcut.layers, shape, emitted)
        if given != BITS:
            raise ValueError(f"{name}: expected a shortcut that ends in bits, got denoised values (emit='denoised')")
        around = [_edge(f"{name}.swap", "swap"), *shortcut, _edge(f"{name}.back", "swap")]
    return [_edge(f"{name}.fork", "fork"), *body, *around, _edge(name, layer.join)], end


def _edge(name: str, op: str) -> PackedEdge:
    return PackedEdge(EdgeSpec(name, op))


def _start(model: Network) -> Shape:
    """The features that enter: the network's ``input_shape``, or what the first layer of weights takes."""
    if model.input_shape is not None:
        return model.input_shape
    sizes = (getattr(layer, "in_features", None) for layer in model.layers)
    return (next((size for size in sizes if size is not None), 0),)


def _pack_layer(
    name: str, layer: nn.Module, shape: Shape, emitted: Affine, first: bool
) -> tuple[PackedLayer, Shape, Affine]:
    """A packed layer, the shape of what leaves it, and what its bits stand for."""
    if first and isinstance(layer, (*NEURONS, LeakyIntegrator, Recurrent)):
        raise ValueError(f"{name}: expected a BinaryLinear first, to take the input's bits, got {_describe(layer)}")
    if type(layer) is BinaryLinear:
        return pack_linear(name, layer, emitted), (layer.out_features,), BITS
    if type(layer) in (BinaryConv1d, BinaryConv2d):
        packed = pack_conv(name, layer, shape, emitted)  # pyright: ignore[reportArgumentType]
        channels, rows, columns = packed.spec.out_shape
        return packed, (channels, columns) if isinstance(layer, BinaryConv1d) else (channels, rows, columns), BITS
    if type(layer) is MaxPool2d:
        if emitted != BITS:
            raise ValueError(f"{name}: expected bits to pool, got denoised values (emit='denoised' before it)")
        pool = pack_pool(name, layer, shape)
        return pool, pool.spec.out_shape, BITS
    if type(layer) is Delay:
        if emitted != BITS:
            raise ValueError(f"{name}: expected bits to delay, got denoised values (emit='denoised' before it)")
        return pack_delay(name, layer, shape), shape, BITS
    if type(layer) in NEURONS:
        return pack_neuron(name, layer, shape), shape, emitted_by(name, layer)  # pyright: ignore[reportArgumentType]
    if type(layer) is Recurrent and type(layer.neuron) in NEURONS:
        return pack_recurrent(name, layer, shape), shape, emitted_by(name, layer.neuron)
    if type(layer) is Voting:
        if emitted != BITS:
            raise ValueError(f"{name}: expected bits or a readout before it, got denoised values (emit='denoised')")
        voting = PackedVoting(VotingSpec(name, math.prod(shape), layer.voters))
        return voting, (voting.spec.out_features,), BITS
    if type(layer) is LeakyIntegrator:
        return pack_integrator(name, layer, shape), shape, BITS
    raise ValueError(f"{name}: {_describe(layer)} does not pack; what packs: {PACKABLE}")


def _describe(layer: nn.Module) -> str:
    return repr(layer).splitlines()[0].rstrip("(") + (" (float weights)" if isinstance(layer, nn.Linear) else "")


def _check_dtype(name: str, layer: nn.Module) -> None:
    for key, value in (*layer.named_parameters(), *layer.named_buffers()):
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(f"{name}.{key}: expected torch.float32 (model.float() rounds to it), got {value.dtype}")
