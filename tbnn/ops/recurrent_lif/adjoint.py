"""What the kernels of a recurrent layer are given: its weights as bits, forward and backward, and memory to work in."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import pack_bits, wide_words, words_for
from tbnn.ops.binary_linear.events import weight_columns
from tbnn.ops.kernels import NUMPY_DTYPES, as_numpy
from tbnn.ops.packed_lif.recurrent import Feedback as PackedFeedback
from tbnn.ops.packed_lif.recurrent import feedback_of
from tbnn.ops.recurrent_lif import backward
from tbnn.ops.recurrent_lif.product import LOOKUPS, ROWS, TILE, has_lookups
from tbnn.ops.recurrent_lif.reference import Feedback

MOST_PLANES = 3  # of weight bits: with more, multiplying is faster than looking sums up

Planes = tuple[list[Tensor], tuple[int, ...], int]
"""Bit planes (N, N) bool, factors and a constant: ``values = Σ_j factors_j·plane_j + constant``."""


def planes_of(values: Tensor) -> Planes:
    """The bit planes of whole numbers (N, N), as few as there can be."""
    constant = int(values.min())
    above = (values - constant).to(torch.int32)
    present = np.flatnonzero(np.bincount(as_numpy(above).ravel()))
    step = max(1, int(np.gcd.reduce(present)))
    count = max(1, (int(present[-1]) // step).bit_length())
    above = above // step if step > 1 else above
    return [above >> j & 1 != 0 for j in range(count)], tuple(step << j for j in range(count)), constant


def packed_feedback(feedback: Feedback, planes: Planes) -> PackedFeedback:
    """The weights for :func:`tbnn.ops.recurrent_lif.cpu.recurrent_scan`."""
    bits, factors, constant = planes
    nothing = feedback.scale.new_empty(0)
    scale, offset, bias = (as_numpy(nothing if c is None else c) for c in feedback[2:])
    columns = [weight_columns(wide_words(as_numpy(pack_bits(plane)))) for plane in bits]
    return feedback_of(columns, factors, constant, scale, offset, bias)


def adjoint_of(feedback: Feedback, weight: Tensor, planes: Planes) -> backward.Adjoint:
    """The weights as the backward pass of a dtype takes them."""
    bits, factors, constant = planes
    features, dtype = weight.shape[0], NUMPY_DTYPES[weight.dtype]
    wide = -(-features // TILE) * TILE
    words, ratios, rest = np.empty((0, 0, 0, TILE), np.uint32), np.empty(0, dtype), np.empty(0, dtype)
    padded = np.empty((0, wide), dtype)
    kind = backward.DENSE if weight.dtype == torch.float32 else backward.PLAIN
    if kind == backward.DENSE and has_lookups() and len(bits) <= MOST_PLANES:
        kind = backward.LOOKUP
        ratios = np.array([factors[0] / 2, *(b / a for a, b in pairwise(factors))], dtype)
        same = feedback.scale * (sum(factors) / 2 + constant) + (0 if feedback.offset is None else feedback.offset)
        rest = as_numpy(same) if bool(same.any()) else rest
        turned = np.zeros((len(bits), wide, words_for(features)), np.uint32)
        for j, plane in enumerate(bits):
            turned[j, :features] = as_numpy(pack_bits(plane.T.contiguous())).view(np.uint32)
        words = turned.reshape(len(bits), wide // TILE, TILE, -1).transpose(0, 1, 3, 2)
    if kind != backward.LOOKUP:
        padded = np.zeros((features, wide), dtype)
        padded[:, :features] = as_numpy(weight)
    return backward.Adjoint(kind, np.ascontiguousarray(words), ratios, as_numpy(feedback.scale), rest, padded)


def scratch_of(adjoint: backward.Adjoint, batch: int, features: int) -> backward.Scratch:
    """Memory for :func:`tbnn.ops.recurrent_lif.backward.recurrent_backward`."""
    tasks, words, dtype = -(-batch // ROWS), words_for(features), adjoint.scale.dtype
    wide = -(-features // TILE) * TILE
    tables = np.zeros((tasks, ROWS, backward.GROUPS * backward.WORDS, LOOKUPS), dtype)
    x, q, slope = (np.zeros((batch, features), dtype) for _ in range(3))
    scaled, grad = np.zeros((tasks, ROWS, 32 * words), dtype), np.zeros((tasks, ROWS, wide), dtype)
    buffers = np.zeros((tasks, backward.BUFFERS, features), dtype)
    return backward.Scratch(scaled, tables, grad, buffers, x, q, slope, np.zeros((batch, backward.SUMS)))
