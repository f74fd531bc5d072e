"""Layers without state as operators of ONNX: weights, pools, norms, shapes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tbnn.nn.conv import BinaryConv1d, BinaryConv2d, code_runs
from tbnn.nn.fold import NORMS, norm_affine
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.onnx_graph import Graph, Shape, per_channel
from tbnn.nn.pool import AvgPool2d, Flatten, MaxPool2d, Voting
from tbnn.nn.snntorch_export import OneToOne
from tbnn.nn.weights import BinaryWeight

DENSE = (nn.Linear, BinaryLinear)
CONVOLUTIONS = {nn.Conv1d: 1, BinaryConv1d: 1, nn.Conv2d: 2, BinaryConv2d: 2}
POOLS = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, MaxPool2d: 2, nn.AvgPool1d: 1, nn.AvgPool2d: 2, AvgPool2d: 2}
WEIGHTS = (*DENSE, *CONVOLUTIONS, OneToOne)

Part = tuple[str, str | None]
"""The product of inputs with a block of values, and the sum of its inputs where an offset asks for it."""


def add_stateless(graph: Graph, layer: Any, x: str, shape: Shape, after: Shape) -> str:
    """A layer without state on features ``shape`` -> ``after``; ``ValueError`` for kinds that are not known."""
    kind = type(layer)
    if kind in WEIGHTS:
        return add_weights(graph, layer, x, shape)
    if kind in POOLS:
        return _pool(graph, layer, x, shape)
    if kind in NORMS:  # as evaluation computes it: folded into weights, currents would be rounded otherwise
        scale, shift = (graph.constant(per_channel(value, len(shape))) for value in norm_affine(layer))
        return graph.op("Add", graph.op("Mul", scale, x), shift)
    if kind is Voting:
        voters = graph.op("Reshape", x, graph.indices(0, *after, layer.voters))
        return graph.op("ReduceMean", voters, axes=[-1], keepdims=0)
    if kind in (Flatten, nn.Flatten):
        if kind is nn.Flatten and (layer.start_dim % (len(shape) + 2)) < 2:
            raise ValueError(f"start_dim: expected an axis after time and batch, got {layer.start_dim}")
        return graph.op("Reshape", x, graph.indices(0, *after))
    raise ValueError("to_onnx knows no operators for it")


def add_weights(graph: Graph, layer: Any, x: str, shape: Shape) -> str:
    """A layer whose output is linear in its input."""
    kind = type(layer)
    if kind is OneToOne:
        return graph.op("Mul", graph.constant(layer.weight), x)
    if kind in CONVOLUTIONS:
        return _convolution(graph, layer, x, shape, CONVOLUTIONS[kind])
    if isinstance(layer, BinaryWeight):
        return coded(graph, layer, dense_parts(graph, layer, x), 1)
    y = graph.op("MatMul", x, graph.packed(layer.weight.T))
    return y if layer.bias is None else graph.op("Add", y, graph.constant(layer.bias))


def coded(graph: Graph, layer: BinaryWeight, parts: Iterable[Part], axes: int) -> str:
    """``Σ_k scale_k·p_k + offset_k·c_k + bias`` on outputs of ``axes`` axes, rounded in the order in which tbnn does."""
    _, scale, offset = layer.codes()
    y = None
    for k, (part, total) in enumerate(parts):
        # The scale stands first: a second operand ONNX Runtime would take into the weights, and round otherwise.
        part = graph.op("Mul", graph.constant(per_channel(scale[:, k], axes)), part)
        if total is not None:
            share = graph.op("Mul", total, graph.constant(per_channel(offset[:, k], axes)))
            part = graph.op("Add", part, share)
        y = part if y is None else graph.op("Add", y, part)
    if y is None:
        raise ValueError("expected at least one block of weights, got none")
    return y if layer.bias is None else graph.op("Add", y, graph.constant(per_channel(layer.bias, axes)))


def blocks_of(layer: BinaryWeight) -> list[tuple[int, int]]:
    """Where the runs of inputs begin and end that are one block of a dense layer."""
    inputs = layer.weight.shape[1]
    size = layer.block or inputs
    return [(lo, min(lo + size, inputs)) for lo in range(0, inputs, size)]


def needs_sums(layer: BinaryWeight) -> bool:
    """Whether any block has an offset; those of pruned weights have none."""
    return layer.form != "linear" and bool(layer.codes().offset.any())


def dense_parts(graph: Graph, layer: BinaryWeight, x: str) -> Iterable[Part]:
    """x (B, ..., in) times each block of the values."""
    values, sums, blocks = layer.codes().values, needs_sums(layer), blocks_of(layer)
    for lo, hi in blocks:
        part = x
        if len(blocks) > 1:
            part = graph.op("Slice", x, graph.indices(lo), graph.indices(hi), graph.indices(-1))
        total = graph.op("ReduceSum", part, graph.indices(-1), keepdims=1) if sums else None
        yield graph.op("MatMul", part, graph.packed(values[:, lo:hi].T)), total


def _convolution(graph: Graph, layer: Any, x: str, shape: Shape, spatial: int) -> str:
    if len(shape) != spatial + 1:
        raise ValueError(f"expected features of {spatial + 1} axes, channels first, got {shape}")
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"padding_mode: expected 'zeros', got {layer.padding_mode!r}")
    sizes = {"strides": list(layer.stride), "dilations": list(layer.dilation), "group": layer.groups}
    sizes["pads"] = _pads(layer)
    if isinstance(layer, BinaryWeight):
        return coded(graph, layer, _convolved_parts(graph, layer, x, sizes), spatial + 1)
    bias = [] if layer.bias is None else [graph.packed(layer.bias)]
    return graph.op("Conv", x, graph.packed(layer.weight), *bias, **sizes)


def _convolved_parts(graph: Graph, layer: Any, x: str, sizes: dict[str, Any]) -> Iterable[Part]:
    """x convolved with each block of the values."""
    values, sums = layer.codes().values, needs_sums(layer)
    outputs, per_group = values.shape[:2]
    groups = torch.arange(layer.groups)
    for channels, inside in code_runs(values, layer.block):
        part = x
        if channels != slice(0, per_group):
            chosen = groups[:, None] * per_group + torch.arange(channels.start, channels.stop)
            part = graph.op("Gather", x, graph.indices(*chosen.flatten().tolist()), axis=1)
        total = None
        if sums:
            window = inside.expand(layer.groups, *inside.shape[1:])
            total = graph.op("Conv", part, graph.packed(window), **sizes)
            if layer.groups > 1:
                group = groups.repeat_interleave(outputs // layer.groups)
                total = graph.op("Gather", total, graph.indices(*group.tolist()), axis=1)
        yield graph.op("Conv", part, graph.packed(values[:, channels] * inside), **sizes), total


def _pads(layer: Any) -> list[int]:
    """Zeros before each axis, then after each."""
    if type(layer) in (BinaryConv1d, BinaryConv2d):
        margins = layer.margins
    elif layer.padding == "same":
        extra = [step * (size - 1) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        margins = [(total // 2, total - total // 2) for total in extra]
    else:
        margins = [(0, 0)] * len(layer.kernel_size) if layer.padding == "valid" else [(p, p) for p in layer.padding]
    return [lo for lo, _ in margins] + [hi for _, hi in margins]


def _pool(graph: Graph, layer: Any, x: str, shape: Shape) -> str:
    spatial = POOLS[type(layer)]
    if len(shape) != spatial + 1:
        raise ValueError(f"expected features of {spatial + 1} axes, channels first, got {shape}")
    for option, wanted in (("ceil_mode", False), ("return_indices", False), ("divisor_override", None)):
        if getattr(layer, option, wanted) != wanted:
            raise ValueError(f"{option}: expected {wanted}, got {getattr(layer, option)}")
    kernel, strides, padding = (
        [size] * spatial if isinstance(size, int) else list(size)
        for size in (layer.kernel_size, layer.stride, layer.padding)
    )
    sizes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": padding * 2}
    if isinstance(layer, (nn.AvgPool1d, nn.AvgPool2d, AvgPool2d)):
        return graph.op("AveragePool", x, count_include_pad=int(getattr(layer, "count_include_pad", True)), **sizes)
    dilation = getattr(layer, "dilation", 1)
    return graph.op(
        "MaxPool", x, dilations=[dilation] * spatial if isinstance(dilation, int) else list(dilation), **sizes
    )
