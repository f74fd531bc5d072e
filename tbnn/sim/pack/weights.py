"""Binary layers become packed ones."""

import math

import torch
from torch import Tensor

from tbnn.bits import WORD_BITS, pack_bits
from tbnn.nn import BinaryConv1d, BinaryConv2d, BinaryLinear, DelayedLinear
from tbnn.nn.weights import BinaryWeight
from tbnn.sim.layers import (
    ConvSpec,
    DelayedSpec,
    LinearSpec,
    PackedConv,
    PackedDelayed,
    PackedLinear,
    PackedSparse,
    planes_of,
    thinned,
)
from tbnn.sim.pack.signal import Shape, Signal


def pack_linear(name: str, layer: BinaryLinear, signal: Signal) -> PackedLinear | PackedSparse:
    """A fully connected layer, of flat features: as lists of connections where few weights are not 0."""
    if signal.frames is None:
        return thinned(_pack_rows(name, layer, signal, (layer.in_features,)))
    (channels, *sizes), window = signal.frames, signal.window
    if any(size % step for size, step in zip(sizes, window, strict=True)):
        raise ValueError(f"{name}: after an AvgPool2d: expected frames that its windows {window} divide, got {sizes}")
    return thinned(_pack_rows(name, layer, signal, (channels, sizes[0] // window[0], sizes[1] // window[1])))


def pack_delayed(name: str, layer: DelayedLinear, signal: Signal) -> PackedDelayed:
    """A fully connected layer with a delay a synapse."""
    if signal.frames is not None or signal.b != 0:
        signal.expect_bits(name, "to delay")
    kernel = _pack_rows(f"{name}.kernel", layer, signal, (layer.in_features,))
    spec = DelayedSpec(name, layer.max_delay, kernel.spec)
    delay = layer.rounded().cpu()
    planes = torch.stack([pack_bits(delay >> bit & 1) for bit in range(spec.delay_bits)])
    return PackedDelayed(spec, kernel, planes)


def pack_conv(name: str, layer: BinaryConv1d | BinaryConv2d, signal: Signal) -> PackedConv:
    """A convolution over frames of a shape (C, H, W) or (C, L); Conv1d is one of height 1.

    After an average pooling over windows (p, p') of step (p, p') it is one over the frames before it, each weight standing
    p·p' times: windows, steps and margins grow by (p, p').
    """
    flat, shape = isinstance(layer, BinaryConv1d), signal.shape
    wanted = 2 if flat else 3
    if len(shape) != wanted or shape[0] != layer.in_channels:
        axes = "L" if flat else "H, W"
        raise ValueError(
            f"{name}: expected frames ({layer.in_channels}, {axes}), got {shape}; give Network an input_shape"
        )
    if signal.b != 0:
        raise ValueError(
            f"{name}: a convolution after denoised values a*q + b with b = {signal.b:g}: padding would count b as 0; "
            "expected emit='bits'"
        )
    one = (1,) if flat else ()
    margins = ((0, 0), *layer.margins) if flat else layer.margins
    frames = signal.frames or ((shape[0], 1, shape[1]) if flat else shape)
    kernel_size: Shape = (*one, *layer.kernel_size)
    if signal.frames is not None:
        _check_pooled(name, layer, signal.frames, signal.window)
    kernel = _pack_rows(f"{name}.kernel", layer, signal, (layer.in_channels // layer.groups, *kernel_size))
    (p, q), (top, bottom), (left, right) = signal.window, *margins
    stride, dilation = (*one, *layer.stride), (*one, *layer.dilation)
    steps = dilation[0] if p == 1 else 1, dilation[1] if q == 1 else 1  # within a window the bits lie side by side
    spec = ConvSpec(
        name, frames[0], frames[1], frames[2], (kernel_size[0] * p, kernel_size[1] * q), (stride[0] * p, stride[1] * q),
        steps, (top * p, bottom * p, left * q, right * q),
        layer.groups, kernel.spec,
    )  # fmt: skip
    return PackedConv(spec, kernel)


def _check_pooled(name: str, layer: BinaryConv1d | BinaryConv2d, frames: Shape, window: tuple[int, int]) -> None:
    """Raise ``ValueError`` where a convolution of means over windows is none of the bits under them."""
    for kernel, dilation, margin, size, step in zip(
        layer.kernel_size, layer.dilation, layer.margins, frames[1:], window, strict=True
    ):
        if kernel > 1 and dilation > 1 and step > 1:
            raise ValueError(f"{name}: after an AvgPool2d: expected a dilation of 1, got {layer.dilation}")
        if size % step and margin[1]:
            raise ValueError(
                f"{name}: after an AvgPool2d that leaves a rest of {size} in windows of {step}: expected no padding, got "
                f"{layer.padding}"
            )


def _pack_rows(name: str, layer: BinaryWeight, signal: Signal, grid: Shape) -> PackedLinear:
    """The weights of a layer, a row an output, for inputs a·x + b: Ŵ(a·x + b) = (a·Ŵ)·x + b·Ŵ·1.

    ``grid`` is the shape of a row; where x are means over windows of bits, each weight is shared by the bits of its window.
    """
    if layer.bits is None:
        raise ValueError(f"{name}: expected weights of 1 to 8 bits, got full precision (bits=None), which are no bits")
    inputs = math.prod(grid)
    block = inputs if layer.block is None else min(layer.block, inputs)
    if block != inputs and block % WORD_BITS:
        raise ValueError(f"{name}: block: a block that packs is a multiple of {WORD_BITS}, got {layer.block}")
    values, scale, offset = (t.cpu() for t in layer.codes())
    values = values.flatten(1)
    bias = None if layer.bias is None else layer.bias.detach().cpu().clone()
    a, b, area = signal.a, signal.b, math.prod(signal.window)
    if b != 0:
        sums = torch.stack([part.double().sum(1) for part in values.split(block, 1)], 1)
        sizes = torch.tensor([part.shape[1] for part in values.split(block, 1)], dtype=torch.float64)
        constant = b * (sums * scale.double() + sizes * offset.double()).sum(1)
        bias = (constant if bias is None else constant + bias.double()).float()
    if a != 1 or area != 1:
        scale, offset = (a * scale.double() / area).float(), (a * offset.double() / area).float()
    if area != 1:
        values, block, inputs = _shared_by_windows(name, values, block, grid, signal.window)
    ternary = layer.bits == 1.58
    bits, zeros = 1 if ternary else int(layer.bits), ternary or bool((values == 0).any())
    spec = LinearSpec(name, inputs, len(values), block, layer.form == "affine", bias is not None, bits, zeros)
    planes = planes_of(values, bits, zeros)
    return PackedLinear(spec, planes, scale.contiguous(), offset.contiguous() if spec.offset else None, bias)


def _shared_by_windows(
    name: str, values: Tensor, block: int, grid: Shape, window: tuple[int, int]
) -> tuple[Tensor, int, int]:
    """Values (outputs, row) of means over windows for the bits under them, and their block and row lengths."""
    if block != math.prod(grid) and block % grid[-1]:
        raise ValueError(
            f"{name}: block: after an AvgPool2d: expected a block of whole rows of {grid[-1]} weights, got {block}"
        )
    spread = values.unflatten(1, grid).repeat_interleave(window[0], 2).repeat_interleave(window[1], 3).flatten(1)
    return spread, block * math.prod(window), spread.shape[1]


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
