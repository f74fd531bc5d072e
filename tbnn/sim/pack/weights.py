"""Binary layers and pooling become packed ones."""

import math

import torch
from torch import Tensor

from tbnn.bits import WORD_BITS
from tbnn.nn import BinaryConv1d, BinaryConv2d, BinaryLinear, Delay, MaxPool2d
from tbnn.nn.weights import BinaryWeight
from tbnn.sim.layers import (
    ConvSpec,
    DelaySpec,
    LinearSpec,
    PackedConv,
    PackedDelay,
    PackedLinear,
    PackedPool,
    PoolSpec,
    planes_of,
)

Shape = tuple[int, ...]

Affine = tuple[float, float]
"""What leaves a neuron is a·bit + b."""

BITS: Affine = (1.0, 0.0)


def pack_linear(name: str, layer: BinaryLinear, emitted: Affine) -> PackedLinear:
    """A fully connected layer whose inputs are a·bit + b."""
    return _pack_rows(name, layer, layer.in_features, layer.out_features, emitted)


def pack_conv(name: str, layer: BinaryConv1d | BinaryConv2d, shape: Shape, emitted: Affine) -> PackedConv:
    """A convolution over frames of a shape (C, H, W) or (C, L); Conv1d is one of height 1."""
    flat = isinstance(layer, BinaryConv1d)
    wanted = 2 if flat else 3
    if len(shape) != wanted or shape[0] != layer.in_channels:
        axes = "L" if flat else "H, W"
        raise ValueError(
            f"{name}: expected frames ({layer.in_channels}, {axes}), got {shape}; give Network an input_shape"
        )
    if emitted[1] != 0:
        raise ValueError(
            f"{name}: a convolution after denoised values a*q + b with b = {emitted[1]:g}: padding would count b as 0; "
            "expected emit='bits'"
        )
    one = (1,) if flat else ()
    (top, bottom), (left, right) = ((0, 0), *layer.margins) if flat else layer.margins
    kernel_size: Shape = (*one, *layer.kernel_size)
    row = layer.in_channels // layer.groups * math.prod(kernel_size)
    kernel = _pack_rows(f"{name}.kernel", layer, row, layer.out_channels, emitted)
    height, width = (1, shape[1]) if flat else shape[1:]
    spec = ConvSpec(
        name, layer.in_channels, height, width, _pair(kernel_size), _pair((*one, *layer.stride)),
        _pair((*one, *layer.dilation)), (top, bottom, left, right), layer.groups, kernel.spec,
    )  # fmt: skip
    return PackedConv(spec, kernel)


def pack_pool(name: str, layer: MaxPool2d, shape: Shape) -> PackedPool:
    """OR over windows of frames (C, H, W)."""
    if len(shape) != 3:
        raise ValueError(f"{name}: expected frames (C, H, W), got {shape}; give Network an input_shape")
    sizes = (_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))
    return PackedPool(PoolSpec(name, shape[0], shape[1], shape[2], *sizes))


def pack_delay(name: str, layer: Delay, shape: Shape) -> PackedDelay:
    """Delays of bits, one for each of the first axis's features."""
    if shape[0] != layer.features:
        raise ValueError(f"{name}: expected {layer.features} features, got {shape}")
    spec = DelaySpec(name, layer.features, math.prod(shape[1:]), layer.max_delay)
    return PackedDelay(spec, layer.rounded().cpu().int())


def _pair(sizes: Shape) -> tuple[int, int]:
    return sizes[0], sizes[1]


def _pack_rows(name: str, layer: BinaryWeight, inputs: int, outputs: int, emitted: Affine) -> PackedLinear:
    """The weights of a layer, a row an output, for inputs a·bit + b: Ŵ(a·q + b) = (a·Ŵ)·q + b·Ŵ·1."""
    if layer.bits is None:
        raise ValueError(f"{name}: expected weights of 1 to 8 bits, got full precision (bits=None), which are no bits")
    block = inputs if layer.block is None else min(layer.block, inputs)
    if block != inputs and block % WORD_BITS:
        raise ValueError(f"{name}: block: a block that packs is a multiple of {WORD_BITS}, got {layer.block}")
    values, scale, offset = (t.cpu() for t in layer.codes())
    values = values.flatten(1)
    bias = None if layer.bias is None else layer.bias.detach().cpu().clone()
    a, b = emitted
    if b != 0:
        sums = torch.stack([part.double().sum(1) for part in values.split(block, 1)], 1)
        sizes = torch.tensor([part.shape[1] for part in values.split(block, 1)], dtype=torch.float64)
        constant = b * (sums * scale.double() + sizes * offset.double()).sum(1)
        bias = (constant if bias is None else constant + bias.double()).float()
    if a != 1:
        scale, offset = (a * scale.double()).float(), (a * offset.double()).float()
    ternary = layer.bits == 1.58
    bits, zeros = 1 if ternary else int(layer.bits), ternary or bool((values == 0).any())
    spec = LinearSpec(name, inputs, outputs, block, layer.form == "affine", bias is not None, bits, zeros)
    planes = planes_of(values, bits, zeros)
    return PackedLinear(spec, planes, scale.contiguous(), offset.contiguous() if spec.offset else None, bias)


def shared(name: str, what: str, value: Tensor, shape: Shape) -> Tensor:
    """A neuron's parameter as (1,), or flat, one value for each feature of ``shape``."""
    value = value.detach().cpu()
    if value.numel() == 1:
        return value.reshape(1).clone()
    try:
        return value.expand(shape).reshape(-1).clone()
    except RuntimeError:
        size = math.prod(shape)
        raise ValueError(f"{name}: {what}: expected one value or {size}, got shape {tuple(value.shape)}") from None
