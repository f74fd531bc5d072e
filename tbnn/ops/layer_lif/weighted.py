"""Spikes in front of a layer of weights: a current that is not worked out yet."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import words_for
from tbnn.ops.kernels import NUMPY_DTYPES, as_numpy
from tbnn.ops.layer_lif.cpu import pack_rows
from tbnn.ops.layer_lif.plan import Memory
from tbnn.ops.patches.reference import Windows


class Convolution(NamedTuple):
    """What makes a convolution of weights (N, C/groups, kh, kw)."""

    shape: tuple[int, int, int]
    """Of a frame, (C, H, W)."""
    windows: Windows
    groups: int
    margins: tuple[tuple[int, int], ...]
    """Zeros before and after, along H and along W."""


class Weights(NamedTuple):
    """A layer's weights: ``ŵ = scale·value + offset``, constant over the blocks of a row (one output's weights)."""

    weight: Tensor
    """Ŵ, (N, inputs) or (N, C/groups, kh, kw): what takes the gradient."""
    values: Tensor
    """Whole numbers of Ŵ's shape, in [−255, 255]."""
    scale: Tensor
    """(N, blocks)"""
    offset: Tensor | None
    """(N, blocks); None: 0."""
    bias: Tensor | None
    """(N,)"""
    block: int | None = None
    """Inputs of a block, a multiple of 32 unless it is the row."""
    convolution: Convolution | None = None
    """None: a linear layer."""


class Norm(NamedTuple):
    """A batch norm between weights and neurons, ``γ·(c − mean)/√(var + ε) + β``: over time, batch and space, per channel.

    A channel is an output of the weights. Statistics are those of one process, over the steps within ``lengths``.
    """

    weight: Tensor
    """γ, (C,); takes a gradient."""
    bias: Tensor
    """β, (C,); takes a gradient."""
    eps: float
    mean: Tensor | None = None
    """(C,), in evaluation; None: the batch's."""
    var: Tensor | None = None
    observe: Callable[[Tensor, Tensor, int], None] | None = None
    """Called in forward with the batch's mean and biased variance, (C,), and how many values of a channel there are."""


class WeightedSpikes:
    """What :func:`tbnn.ops.layer_lif.layer_lif` takes in place of a current.

    Args:
        words: the spikes that enter, packed, int32 (T, B, ceil(inputs/32)).
        values: the same spikes as floats (T, B, inputs...), for their gradient alone: their numbers are not read; None if no
            gradient is asked for.
        weights: the layer's.
        compose: the current itself (T, B, features...), normed, of ``values``, worked out by the layers: for tests and for
            what has no kernel.
        memory: see :data:`tbnn.ops.layer_lif.plan.Memory`.
        norm: what the current passes on its way to the neurons.
        floats: whether spikes leave as floats too; else ``out`` is one zero, expanded, that carries their gradient back.

    Attributes:
        shape, dtype, device: of the current.
        emitted: after the call, the spikes that left, packed; None before.
        products: after the call, where whole numbers are kept in place of states: the bytes of a step's of one sample, as
            :func:`tbnn.ops.layer_lif.kept_bytes` takes them; else None.
    """

    def __init__(
        self,
        words: Tensor,
        values: Tensor | None,
        weights: Weights,
        compose: Callable[[], Tensor],
        memory: Memory = "speed",
        norm: Norm | None = None,
        floats: bool = True,
    ) -> None:
        self.words, self.values, self.weights, self.compose, self.memory = words, values, weights, compose, memory
        self.norm, self.floats = norm, floats
        conv, outputs = weights.convolution, weights.weight.shape[0]
        self.inputs = weights.weight.shape[1] if conv is None else int(np.prod(conv.shape))
        if words.ndim != 3 or words.dtype != torch.int32 or words.shape[2] != words_for(self.inputs):
            raise ValueError(
                f"layer_lif: expected int32 words (T, B, {words_for(self.inputs)}), got {words.dtype} {tuple(words.shape)}"
            )
        features = (outputs,) if conv is None else (outputs, *conv.windows.counts)
        self.shape = torch.Size((*words.shape[:2], *features))
        self.dtype, self.device = weights.weight.dtype, weights.weight.device
        self.emitted: Tensor | None = None
        self.products: int | None = None
        if norm is not None and (norm.weight.shape != (outputs,) or norm.bias.shape != (outputs,)):
            raise ValueError(
                f"layer_lif: norm: expected a weight and a bias ({outputs},), got {tuple(norm.weight.shape)} and "
                f"{tuple(norm.bias.shape)}"
            )
        if norm is not None and (norm.mean is None) != (norm.var is None):
            raise ValueError("layer_lif: norm: expected a mean and a variance or neither, got one of them")

    @property
    def ndim(self) -> int:
        """Axes of the current."""
        return len(self.shape)


def packed_spikes(values: Tensor) -> Tensor | None:
    """Spikes (T, B, features...) as words (T, B, ceil(N/32)), or None where they hold anything but 0 and 1.

    On a GPU this waits for the device. Raises ``ValueError`` unless they are float32 or float64 on the CPU or a CUDA device.
    """
    if values.dtype in NUMPY_DTYPES and values.device.type == "cuda":
        from tbnn.ops.layer_lif.gpu_products import packed_spikes_gpu

        return packed_spikes_gpu(values)
    if values.dtype not in NUMPY_DTYPES or values.device.type != "cpu":
        raise ValueError(
            "packed_spikes: expected float32 or float64 on the CPU or a CUDA device, got "
            f"{values.dtype} on {values.device}"
        )
    rows = as_numpy(values).reshape(values.shape[0] * values.shape[1], -1)
    words = np.empty((len(rows), words_for(rows.shape[1])), np.uint32)
    if pack_rows(rows, words, work=rows.size):
        return None
    return torch.from_numpy(words.view(np.int32)).reshape(*values.shape[:2], -1)
