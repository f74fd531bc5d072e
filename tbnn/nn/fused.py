"""Which layers of weights a network runs as one with the neurons after them, and what it hands them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.bits import unpack_bits
from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.neuron import Neuron
from tbnn.ops.layer_lif import Convolution, Memory, WeightedSpikes, Weights, packed_spikes
from tbnn.ops.patches.reference import windows_over

EXACT = 1 << 24  # whole numbers up to here are exact in float32
WORD = 32


def fuses(layer: nn.Module, neuron: nn.Module) -> bool:
    """Whether a layer of weights runs as one with the neurons after it, if its input is bits on the CPU.

    The layer is a :class:`BinaryLinear` or a :class:`BinaryConv2d` of few bits, whose blocks are rows or, of a linear
    layer, whole words; the neuron one of the library's that emits bits. A hook on either wants to see the current between
    them, which then is worked out, unless it is marked by :func:`sees_no_current`.
    """
    if type(layer) not in (BinaryLinear, BinaryConv2d) or not isinstance(neuron, Neuron):
        return False
    if type(neuron)._lif is not Neuron._lif or type(neuron).run is not Neuron.run:
        return False
    if neuron.spike_gradient.emit != "bits" or _watched(layer) or _watched(neuron):
        return False
    weight: Any = layer.weight
    bits: float | None = layer.bits  # pyright: ignore[reportAssignmentType]
    row = weight[0].numel()
    if bits is None or row * (2 ** max(int(bits), 1) - 1) >= EXACT or weight.device.type != "cpu":
        return False
    block: int | None = layer.block  # pyright: ignore[reportAssignmentType]
    return block is None or block >= row or (isinstance(layer, BinaryLinear) and block % WORD == 0)


def sees_no_current(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a forward hook that does not look at the current which enters a neuron: it leaves layers fused."""
    hook.sees_no_current = True  # pyright: ignore[reportFunctionMemberAccess]
    return hook


def _watched(module: nn.Module) -> bool:
    """Whether a hook asks for more than a fused layer has."""
    if module._backward_hooks or module._backward_pre_hooks:
        return True
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return not all(getattr(hook, "sees_no_current", False) for hook in hooks)


class Known:
    """The packed words of a tensor of spikes, as long as nothing but views are made of it."""

    def __init__(self, spikes: Tensor, words: Tensor) -> None:
        self.spikes, self.words, self.version = spikes, words, spikes._version

    def of(self, x: Tensor) -> Tensor | None:
        """The words of x, if it holds the same spikes in the same order."""
        same = (
            x.data_ptr() == self.spikes.data_ptr()
            and x.shape[:2] == self.spikes.shape[:2]
            and x.numel() == self.spikes.numel()
            and x.is_contiguous()
            and x._version == self.version
        )
        return self.words if same else None


def weighted_spikes(
    layer: nn.Module, x: Tensor, known: Known | None, memory: Memory, packed_shape: tuple[int, ...] | None = None
) -> WeightedSpikes | None:
    """What a fused neuron takes in place of ``layer(x)``; None where the layers run one after the other.

    x is (T, B, inputs...) of 0/1, or packed words that hold ``packed_shape`` a step; ``known`` the words of what a fused
    layer before emitted.
    """
    if not isinstance(layer, (BinaryLinear, BinaryConv2d)):
        return None
    weight = layer.weight
    packed = packed_shape is not None
    shape = tuple(x.shape[2:]) if packed_shape is None else packed_shape
    tracing = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    autocast = torch.is_autocast_enabled("cpu")
    if tracing or autocast or x.device != weight.device or not (packed or x.dtype == weight.dtype):
        return None
    if weight.dtype not in (torch.float32, torch.float64) or x.numel() == 0:
        return None
    linear = isinstance(layer, BinaryLinear)
    if shape != (layer.in_features,) if linear else len(shape) != 3 or shape[0] != layer.in_channels:
        return None
    words = x if packed else known.of(x) if known is not None else None
    words = packed_spikes(x) if words is None else words
    if words is None:
        return None

    def compose() -> Tensor:
        return layer(unpack_bits(words, math.prod(shape), weight.dtype).unflatten(2, shape) if packed else x)

    return WeightedSpikes(words, None if packed else x, _weights(layer, shape), compose, memory)


def _weights(layer: BinaryLinear | BinaryConv2d, shape: tuple[int, ...]) -> Weights:
    weight, (values, scale, offset) = layer.quantized()
    row = layer.weight[0].numel()
    block = None if layer.block is None or layer.block >= row else layer.block
    convolution = None
    if isinstance(layer, BinaryConv2d):
        channels, height, width = shape
        windows = windows_over(
            "BinaryConv2d", shape, layer.kernel_size, layer.stride, layer.margins, layer.dilation  # pyright: ignore
        )  # fmt: skip
        convolution = Convolution((channels, height, width), windows, layer.groups, layer.margins)
    given = None if layer.form == "linear" else offset.detach()
    return Weights(weight, values.detach(), scale.detach(), given, layer.bias, block, convolution)
