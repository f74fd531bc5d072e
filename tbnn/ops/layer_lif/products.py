"""Products of packed spikes with weights, and the gradients of both."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import wide_words, words_for
from tbnn.ops import spike_products
from tbnn.ops.binary_conv import ConvProducts
from tbnn.ops.binary_linear import WeightColumns, weight_columns
from tbnn.ops.binary_linear.choice import binary_product_cpu
from tbnn.ops.kernels import NUMPY_DTYPES, as_numpy
from tbnn.ops.layer_lif.weighted import Weights
from tbnn.ops.packed_lif.cpu import Drive, drive_values
from tbnn.ops.spike_products import bit_planes
from tbnn.ops.spike_products.conv_gradients import ConvGradients

Words = npt.NDArray[np.int32]
Reals = npt.NDArray[Any]


class _Block(NamedTuple):
    """Inputs that share a scale: where their words lie, their planes and what makes a current of the sums."""

    part: slice
    planes: list[tuple[npt.NDArray[np.uint64], WeightColumns, int]]
    constant: int
    scale: Reals
    offset: Reals


class Products:
    """A layer's weights, packed once a call, and the currents that packed spikes make with them."""

    def __init__(self, weights: Weights) -> None:
        self.dtype: Any = NUMPY_DTYPES[weights.weight.dtype]
        self.nothing: Any = np.empty(0, self.dtype)
        self.no_values: Any = np.empty((0, 0, 0), self.dtype)
        self.bias: Any = self.nothing if weights.bias is None else as_numpy(weights.bias)
        values, scale, offset = weights.values.flatten(1), as_numpy(weights.scale), as_numpy(weights.offset)
        row, self.outputs = values.shape[1], values.shape[0]
        self.conv, self.gradients, self.blocks, self.inputs = None, None, [], row
        self.groups, self.ones = 1, 1  # of channels; numbers of spikes a step
        self.planes: list[spike_products.Planes] = []
        self.scales = weights.scale.detach()
        self.offsets = None if weights.offset is None else weights.offset.detach()
        if weights.convolution is not None:
            shape, windows, groups, _ = weights.convolution
            self.inputs, self.groups = math.prod(shape), groups
            self.ones = groups * math.prod(windows.counts)
            self.conv = ConvProducts(shape, windows, groups, *bit_planes(values)[:3])
            self.gradients = ConvGradients(shape, windows, groups, weights.values.detach(), self.scales, self.offsets)
            self.scale: Any = scale[:, 0].copy()
            self.offset: Any = self.nothing if offset is None else offset[:, 0].copy()
            return
        block = weights.block or row
        for k, lo in enumerate(range(0, row, block)):
            hi = min(lo + block, row)
            self.planes.append(bit_planes(values[:, lo:hi]))
            planes, factors, constant, _ = self.planes[-1]
            wide = [wide_words(plane) for plane in planes]
            own = scale[:, k].copy(), self.nothing if offset is None else offset[:, k].copy()
            each = [(w, weight_columns(w), factor) for w, factor in zip(wide, factors, strict=True)]
            self.blocks.append(_Block(slice(words_for(lo), words_for(hi)), each, constant, *own))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the inputs of a step."""
        return (self.inputs,) if self.gradients is None else self.gradients.shape

    def current(self, words: Words, out: Reals) -> None:
        """Fill out (t, B, F) with the currents of packed spikes (t, B, words), as the layer of weights computes them."""
        if self.conv is not None:
            self._slide(words, out)
            return
        flat, added = words.reshape(-1, words.shape[-1]), self.no_values
        for k, block in enumerate(self.blocks):
            product, ones = np.empty((len(flat), self.outputs), np.int32), np.empty((len(flat), 1), np.int32)
            _multiply(np.ascontiguousarray(flat[:, block.part]), block, product, ones)
            alone = len(self.blocks) == 1
            drive = Drive(
                product.reshape(out.shape), ones.reshape(*out.shape[:2], 1), block.scale, block.offset,
                self.bias if alone else self.nothing, added,
            )  # fmt: skip
            drive_values(drive, out, work=out.size)
            if k + 1 < len(self.blocks):
                added = out.copy()
        if len(self.blocks) > 1 and self.bias.size:
            out += self.bias

    def _slide(self, words: Words, out: Reals) -> None:
        """The same of a convolution."""
        steps = out.shape[:2]
        product, ones = np.empty(out.shape, np.int32), np.empty((*steps, self.ones), np.int32)
        frames = words.reshape(-1, words.shape[-1])
        self.count(frames, product.reshape(len(frames), -1), ones.reshape(len(frames), -1))
        drive = Drive(product, ones, self.scale, self.offset, self.bias, self.no_values)
        drive_values(drive, out, work=out.size)

    @property
    def counts(self) -> bool:
        """Whether a current is one whole number, scaled: a row is one block."""
        return self.conv is not None or len(self.blocks) == 1

    def count(self, words: Words, product: Words, ones: Words) -> None:
        """Fill the whole numbers of packed spikes (M, words), int32, of rows of one block.

        product (M, F) and ones (M, groups·pixels), the spikes under each window, are C-contiguous.
        """
        if self.conv is None:
            _multiply(words, self.blocks[0], product, ones)
        else:
            frames, pixels = len(words), self.conv.pixels
            self.conv.fill(words, product.reshape(frames, -1, pixels), ones.reshape(frames, -1, pixels))

    def constants(self) -> tuple[Reals, Reals, Reals]:
        """Scale, offset and bias of rows of one block, (N,) float64; 0 where there is none."""
        scale, offset = (self.scale, self.offset) if self.conv is not None else self.blocks[0][3:]
        parts = (part if part.size else np.zeros(self.outputs) for part in (scale, offset, self.bias))
        scale, offset, bias = (part.astype(np.float64) for part in parts)
        return scale, offset, bias

    def drive(self, product: Reals, ones: Reals, factor: Reals, shift: Reals) -> Drive:
        """What makes ``factor·current + shift``, both (N,), of whole numbers (T, B, F) and (T, B, groups·pixels or 0)."""
        scale, offset, bias = self.constants()
        has_offset = (self.offset if self.conv is not None else self.blocks[0].offset).size > 0
        return Drive(
            product, ones, (factor * scale).astype(self.dtype),
            (factor * offset).astype(self.dtype) if has_offset else self.nothing,
            (factor * bias + shift).astype(self.dtype), self.no_values,
        )  # fmt: skip

    def input_gradient(self, dcurrent: Tensor, weight: Tensor, out: Tensor) -> None:
        """Fill out (M, inputs...) with the gradient of M steps' spikes: dcurrent (M, F) through Ŵ."""
        if self.gradients is not None:
            dy = dcurrent.view(len(dcurrent), -1, *self.gradients.windows.counts)
            self.gradients.input_gradient(dy, weight, out.view(len(out), *self.gradients.shape))
            return
        flat = out.view(len(out), -1)
        if spike_products.input_gradient_of_blocks(dcurrent, self.planes, self.scales, self.offsets, flat) is None:
            torch.matmul(dcurrent, weight, out=flat)

    def weight_gradient(self, weight: Tensor) -> "WeightGradient":
        """What adds up the gradient of Ŵ, chunk by chunk."""
        return WeightGradient(self.gradients, weight)


class WeightGradient:
    """The gradient of Ŵ as a sum over chunks of steps."""

    def __init__(self, convolution: ConvGradients | None, weight: Tensor) -> None:
        self.convolution, self.weight = convolution, weight
        kernels = convolution is None and weight.dtype == torch.float32
        self._sums = spike_products.WeightGradient(*weight.shape) if kernels else None
        self._total = weight.new_empty(0) if kernels else torch.zeros_like(weight)

    def add(self, dcurrent: Tensor, words: Tensor) -> None:
        """Add the share of dcurrent (M, F) and the packed spikes (M, words)."""
        if self._sums is not None:
            self._sums.add(dcurrent, words)
        elif self.convolution is None:
            self._total += spike_products.weight_gradient(dcurrent, words, self.weight.shape[1])
        else:
            dy = dcurrent.view(len(dcurrent), -1, *self.convolution.windows.counts)
            self._total += self.convolution.weight_gradient(dy, words)

    def total(self) -> Tensor:
        """The sum, of Ŵ's shape."""
        return self._total if self._sums is None else self._sums.total()


def _multiply(spikes: Words, block: _Block, product: Words, ones: Words) -> None:
    """Fill spikes (M, words) times the values of a block, (M, N), and the number of spikes of each row, (M, 1)."""
    wide = wide_words(spikes)
    np.bitwise_count(wide).sum(-1, dtype=np.int32, out=ones[:, 0])
    count = np.ascontiguousarray(ones[:, 0])
    shift, nothing = np.int32(block.constant) * count, np.zeros_like(count)
    for j, (rows, columns, factor) in enumerate(block.planes):
        binary_product_cpu(wide, rows, columns, count, factor, nothing if j else shift, j > 0, product)
