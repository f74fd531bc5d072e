"""From a trained network to packed bits, and back. The only part of the simulator that knows :mod:`tbnn.nn`."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tbnn._version import __version__
from tbnn.nn import (
    AvgPool2d,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Delay,
    DelayedLinear,
    Flatten,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Neuron,
    Recurrent,
    Residual,
    SpikeDropout,
    Voting,
)  # fmt: skip
from tbnn.nn.fold import NORMS, fold_batch_norms
from tbnn.sim.layers import EdgeSpec, PackedEdge, PackedLayer, PackedVoting, VotingSpec
from tbnn.sim.network import PackedNetwork
from tbnn.sim.pack.neurons import (
    emitted_by,
    is_packable,
    pack_integrator,
    pack_neuron,
    pack_recurrent,
    refuse_custom,
)
from tbnn.sim.pack.signal import Shape, Signal
from tbnn.sim.pack.unpack import unpack
from tbnn.sim.pack.unpacked import RestingRecurrent
from tbnn.sim.pack.weights import pack_conv, pack_delayed, pack_linear
from tbnn.sim.pack.wires import averaged, pack_delay, pack_pool

__all__ = ["pack", "unpack"]

RECURRENT = (Recurrent, RestingRecurrent)
PACKABLE = (
    "BinaryLinear, BinaryConv1d, BinaryConv2d, DelayedLinear of 1 to 8 bits, batch norm right after one of them, MaxPool2d of "
    "bits, AvgPool2d right before weights, Leaky, Synaptic, Adaptive, AdLIF, LeakyIntegrator, Recurrent(neuron, BinaryLinear "
    "or BinaryConv2d), Delay, Residual, Voting at the end, dropout, Identity, Flatten"
)


@torch.no_grad()
def pack(model: Network, *, provenance: dict[str, Any] | None = None) -> PackedNetwork:
    """Pack a network as it is in evaluation: weights as bit planes, a float32 scale and offset a block.

    Layers are weights, neuron, weights, neuron, … with pooling of bits in between; a :class:`LeakyIntegrator` comes last.
    Dropout vanishes, a batch norm folds into the scales, offsets and bias of the weights before it. The constants of a
    neuron that emits denoised values, a·q + b, fold into the next layer's scale, offset and bias; an average pooling of
    windows side by side into the next layer's weights, which then stand once for each bit of a window.

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
    layers, end = _pack_layers("layers", model.layers, Signal(_start(model)))
    if not layers:
        raise ValueError(f"pack: expected a layer that packs ({PACKABLE}), got none")
    if end.frames is not None:
        raise ValueError("pack: expected weights after an AvgPool2d, which take it in, got the end of the network")
    return PackedNetwork(tuple(layers), math.prod(_start(model)), {"tbnn": __version__, **(provenance or {})})


def _pack_layers(prefix: str, modules: Iterable[nn.Module], signal: Signal) -> tuple[list[PackedLayer], Signal]:
    """Layers in order, and what leaves the last one."""
    layers: list[PackedLayer] = []
    for index, layer in enumerate(modules):
        name = f"{prefix}.{index}"
        if isinstance(layer, Flatten) or (
            isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (2, -1)
        ):
            signal = signal.reshaped((signal.size,))
        elif type(layer) is AvgPool2d:
            signal = averaged(name, layer, signal)
        elif type(layer) is Residual:
            block, signal = _pack_residual(name, layer, signal)
            layers += block
        elif not isinstance(layer, nn.Dropout | nn.Identity | SpikeDropout):
            _check_dtype(name, layer)
            first = prefix == "layers" and not layers
            packed, signal = _pack_layer(name, layer, signal, first=first)
            layers.append(packed)
    return layers, signal


def _pack_residual(name: str, layer: Residual, signal: Signal) -> tuple[list[PackedLayer], Signal]:
    """Fork, body, join; with layers in the shortcut: fork, body, swap, shortcut, swap, join."""
    if layer.join != "current":
        signal.expect_bits(name, "before a block that joins bits")
    body, end = _pack_layers(f"{name}.body.layers", layer.body.layers, signal)
    end.expect_bits(name, "at the end of the body")
    around: list[PackedLayer] = []
    if layer.shortcut is not None:
        shortcut, given = _pack_layers(f"{name}.shortcut.layers", layer.shortcut.layers, signal)
        given.expect_bits(name, "at the end of the shortcut")
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


def _pack_layer(name: str, layer: nn.Module, signal: Signal, first: bool) -> tuple[PackedLayer, Signal]:
    """A packed layer, and what leaves it."""
    refuse_custom(name, layer)
    takes_current = isinstance(layer, Neuron | LeakyIntegrator | Recurrent)
    if first and takes_current:
        raise ValueError(f"{name}: expected a BinaryLinear first, to take the input's bits, got {_describe(layer)}")
    if takes_current:
        signal.expect_bits(name, "or currents before it")
    shape = signal.shape
    if type(layer) is BinaryLinear:
        return pack_linear(name, layer, signal), Signal((layer.out_features,))
    if type(layer) is DelayedLinear:
        return pack_delayed(name, layer, signal), Signal((layer.out_features,))
    if type(layer) in (BinaryConv1d, BinaryConv2d):
        packed = pack_conv(name, layer, signal)  # pyright: ignore[reportArgumentType]
        channels, rows, columns = packed.spec.out_shape
        return packed, Signal((channels, columns) if isinstance(layer, BinaryConv1d) else (channels, rows, columns))
    if type(layer) is MaxPool2d:
        pool = pack_pool(name, layer, signal)
        return pool, Signal(pool.spec.out_shape)
    if type(layer) is Delay:
        return pack_delay(name, layer, signal), signal
    if isinstance(layer, Neuron) and is_packable(layer):
        return pack_neuron(name, layer, shape), emitted_by(name, layer, shape)
    if type(layer) in RECURRENT:
        return pack_recurrent(name, layer, shape), emitted_by(name, layer.neuron, shape)  # pyright: ignore[reportArgumentType]
    if type(layer) is Voting:
        signal.expect_bits(name, "or a readout before it")
        voting = PackedVoting(VotingSpec(name, signal.size, layer.voters))
        return voting, Signal((voting.spec.out_features,))
    if type(layer) is LeakyIntegrator:
        return pack_integrator(name, layer, shape), signal
    raise ValueError(f"{name}: {_describe(layer)} does not pack; what packs: {PACKABLE}")


def _describe(layer: nn.Module) -> str:
    return repr(layer).splitlines()[0].rstrip("(") + (" (float weights)" if isinstance(layer, nn.Linear) else "")


def _check_dtype(name: str, layer: nn.Module) -> None:
    for key, value in (*layer.named_parameters(), *layer.named_buffers()):
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(f"{name}.{key}: expected torch.float32 (model.float() rounds to it), got {value.dtype}")
