"""Which layers of weights a network runs as one with the neurons after them, and what it hands them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.neuron import Neuron
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.stateful import call_stateless
from tbnn.nn.wire import Wire
from tbnn.ops.kernels import has_triton
from tbnn.ops.layer_lif import Convolution, Memory, Norm, WeightedSpikes, Weights, packed_spikes
from tbnn.ops.patches.reference import windows_over

NORMS = (TemporalBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d)
EXACT = 1 << 24  # whole numbers up to here are exact in float32
WORD = 32


class Group(NamedTuple):
    """Layers that run as one function of packed bits."""

    weights: BinaryLinear | BinaryConv2d
    norm: nn.Module | None
    neuron: Neuron | Recurrent

    @property
    def size(self) -> int:
        """How many layers these are."""
        return 2 if self.norm is None else 3


def group_at(layers: Sequence[nn.Module], index: int) -> Group | None:
    """The layers from ``index`` on that run as one, if bits enter them; None: the layer runs alone.

    Weights are a :class:`BinaryLinear` or a :class:`BinaryConv2d` of few bits, whose blocks are rows or, of a linear
    layer, whole words; a batch norm may follow; then comes one of the library's neurons that emits bits, or, after linear
    weights without a norm, a :class:`Recurrent` layer of such. A hook on one of them wants to see what stands between
    them, which then is worked out, unless it is marked by :func:`sees_no_current`.
    """
    weights = layers[index]
    if not isinstance(weights, (BinaryLinear, BinaryConv2d)) or type(weights) not in (BinaryLinear, BinaryConv2d):
        return None  # a class made of one of them may do otherwise
    if not _knows_bits(weights):
        return None
    norm = layers[index + 1] if index + 1 < len(layers) and isinstance(layers[index + 1], NORMS) else None
    last = index + (1 if norm is None else 2)
    if last >= len(layers) or (norm is not None and not _fuses_norm(weights, norm)):
        return None
    neuron = layers[last]
    if isinstance(neuron, Recurrent):
        if norm is not None or not isinstance(weights, BinaryLinear) or not neuron.fusible or neuron.neuron.joined:
            return None
    elif not _runs_on_bits(neuron):
        return None
    if weights.weight.device.type != "cpu" and not _runs_on_gpu(weights, norm, neuron):
        return None
    own: Any = (weights, norm, neuron)
    return None if any(part is not None and _watched(part) for part in own) else Group(*own)


def _runs_on_gpu(weights: BinaryLinear | BinaryConv2d, norm: nn.Module | None, neuron: nn.Module) -> bool:
    """Whether a GPU has kernels of these layers as one: of linear weights and neurons that neither recur nor compete."""
    known = has_triton() and weights.weight.device.type == "cuda" and weights.weight.dtype == torch.float32
    if not known or norm is not None or not isinstance(weights, BinaryLinear) or not isinstance(neuron, Neuron):
        return False
    return neuron.winners is None or neuron.winners.of(weights.out_features) >= weights.out_features


def _runs_on_bits(neuron: nn.Module) -> bool:
    if not isinstance(neuron, Neuron) or neuron.spike_gradient.emit != "bits":
        return False
    return type(neuron)._lif is Neuron._lif and type(neuron).run is Neuron.run


def _knows_bits(layer: BinaryLinear | BinaryConv2d) -> bool:
    weight, bits, block = layer.weight, layer.bits, layer.block
    row = weight[0].numel()
    if bits is None or row * (2 ** max(int(bits), 1) - 1) >= EXACT or weight.device.type not in ("cpu", "cuda"):
        return False
    return block is None or block >= row or (isinstance(layer, BinaryLinear) and block % WORD == 0)


def _fuses_norm(weights: BinaryLinear | BinaryConv2d, norm: nn.Module) -> bool:
    """Whether a norm's statistics are those of this process and it has a place for them."""
    outputs = weights.weight.shape[0]
    if isinstance(norm, TemporalBatchNorm):
        return norm.features == outputs and not (norm.training and norm.shared)
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d):
        return False
    linear = isinstance(weights, BinaryLinear)
    known: Any = norm
    fits = known.num_features == outputs and linear == isinstance(norm, nn.BatchNorm1d)
    return fits and known.weight is not None and known.running_mean is not None


def sees_no_current(hook: Callable[..., Any], *, nor_spikes: bool = False) -> Callable[..., Any]:
    """Mark a forward hook that does not look at the current which enters a neuron: it leaves layers fused.

    ``nor_spikes``: nor does it look at what leaves, which then may stay packed.
    """
    hook.sees_no_current, hook.sees_no_spikes = True, nor_spikes  # pyright: ignore[reportFunctionMemberAccess]
    return hook


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _watched(module: nn.Module) -> bool:
    """Whether a hook asks for more than a fused layer has."""
    if module._backward_hooks or module._backward_pre_hooks:
        return True
    return not all(getattr(hook, "sees_no_current", False) for hook in _hooks(module))


def emits_numbers(layer: Neuron | Recurrent) -> bool:
    """Whether someone looks at the spikes that leave a neuron before the next layer does."""
    neuron = layer.neuron if isinstance(layer, Recurrent) else layer
    return neuron.homeostasis is not None or not all(getattr(hook, "sees_no_spikes", False) for hook in _hooks(layer))


def weighted_spikes(
    group: Group, x: Tensor | Wire, memory: Memory, *, floats: bool = True, masked: bool = False
) -> WeightedSpikes | None:
    """What a group's neuron takes in place of the current; None where the layers run one after the other.

    x is (T, B, inputs...) of 0/1, or their wire. ``floats``: whether spikes are to leave as numbers too; ``masked``:
    whether a mask comes with them.
    """
    layer, norm, neuron = group
    weight = layer.weight
    tracing = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    wire = x if isinstance(x, Wire) else None
    values = x.thread if isinstance(x, Wire) else x
    if tracing or values.device != weight.device or values.dtype != weight.dtype or values.numel() == 0:
        return None
    if weight.dtype not in (torch.float32, torch.float64):
        return None
    if masked and norm is not None and norm.training and not isinstance(norm, TemporalBatchNorm):
        return None  # torch's norms know no mask
    shape, linear = tuple(values.shape[2:]), isinstance(layer, BinaryLinear)
    if shape != (layer.in_features,) if linear else len(shape) != 3 or shape[0] != layer.in_channels:
        return None
    if wire is None:
        words = packed_spikes(values)
        if words is None:
            return None
        wire = Wire(words, values, real=True)

    def compose() -> Tensor:
        y = layer(wire.values())
        return y if norm is None else call_stateless(norm, y, None)

    given = None if norm is None else norm_of(norm)
    keep = floats or emits_numbers(neuron)
    return WeightedSpikes(wire.words, wire.thread, _weights(layer, shape), compose, memory, given, keep)


def norm_of(norm: nn.Module) -> Norm:
    """A batch norm's numbers, of TemporalBatchNorm or torch's."""
    own: Any = norm
    mean, var = (None, None) if norm.training else (own.running_mean, own.running_var)
    if isinstance(norm, TemporalBatchNorm):
        return Norm(norm.weight, norm.bias, norm.eps, mean, var, norm.observe)

    @torch.no_grad()
    def observe(batch_mean: Tensor, batch_var: Tensor, count: int) -> None:
        own.num_batches_tracked += 1
        share = 1 / float(own.num_batches_tracked) if own.momentum is None else own.momentum
        own.running_mean.lerp_(batch_mean.to(own.running_mean), share)
        own.running_var.lerp_((batch_var * count / (count - 1)).to(own.running_var), share)

    return Norm(own.weight, own.bias, own.eps, mean, var, observe)


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
