"""Pair STDP applied to a weight in place, a step or a sequence at a time."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import check_words, has_stray_bits, pack_bits, unpack_bits
from tbnn.learning.plasticity.cpu import learn_pairs_cpu
from tbnn.learning.plasticity.traces import Traces, check_finite, check_traces
from tbnn.learning.plasticity.windows import Pairs, pair_seen
from tbnn.ops.kernels import backend_for, untraced


class Updates(NamedTuple):
    """How many synapses learning wrote to: what it costs where a write costs energy."""

    potentiations: int
    depressions: int

    def __add__(self, other: object) -> "Updates":
        if not isinstance(other, Updates):
            return NotImplemented
        return Updates(self.potentiations + other.potentiations, self.depressions + other.depressions)


@torch.no_grad()
@untraced
def learn_pairs_(
    weight: Tensor,
    pre: Tensor,
    post: Tensor,
    traces: Traces | None,
    window: Pairs,
    *,
    rate: float = 1.0,
    low: float = -math.inf,
    high: float = math.inf,
    backend: str | None = None,
) -> tuple[Traces, Updates]:
    """Change ``weight`` in place by pair STDP over a sequence: ``W ← clip(W + rate·Σ_t dW_t, low, high)``.

    dW_t is that of :func:`pair_step`; the bounds apply once, at the end. On the CPU it runs event by event, in the weight's
    dtype, and touches only the rows and columns that spikes reach; the sums are then of another order than the reference's,
    and entries that no spike reached are not clipped: they have to be within the bounds.

    Args:
        weight: float (M, N), contiguous; its memory changes.
        pre: (T, B, N) of 0/1, or packed words int32 (T, B, ⌈N/32⌉).
        post: (T, B, M) of 0/1, of the weight's dtype.
        traces: those an earlier call returned; None: no spikes so far.
        window, rate: see :class:`Pairs`; ``rate`` multiplies both amplitudes, 1/B makes them a mean.
        low, high: bounds of a weight, low <= high.
        backend: for tests; the weight's device decides otherwise.

    Returns:
        The traces after the sequence, and how many synapses were written to: for each post spike its inputs with a trace,
        for each pre spike its outputs with one.

    Raises:
        ValueError: other shapes or dtypes; bounds in the wrong order; a rate or traces that are not finite.
    """
    steps, batch = _checked(weight, pre, post)
    check_finite(rate=rate)
    if not low <= high:
        raise ValueError(f"low, high: expected low <= high, got {low} and {high}")
    outputs, inputs = weight.shape
    if traces is None:
        traces = Traces(weight.new_zeros(batch, inputs), weight.new_zeros(batch, outputs))
    check_traces(traces, (torch.Size((batch, inputs)), torch.Size((batch, outputs))), weight)
    if backend_for(weight, backend) == "reference":
        return _reference(weight, pre, post, traces, window, rate, (low, high), steps)
    words = pre if pre.dtype == torch.int32 else pack_bits(pre)
    after = Traces(traces.pre.clone().contiguous(), traces.post.clone().contiguous())
    made = learn_pairs_cpu(
        weight.numpy(), words.contiguous().numpy().view(np.uint32), post.contiguous().numpy(), after.pre.numpy(),
        after.post.numpy(), rate * window.a_plus, rate * window.a_minus, window.decays,
        window.interaction == "nearest", window.coincidence, (low, high),
    )  # fmt: skip
    return after, Updates(*made)


def _reference(
    weight: Tensor, pre: Tensor, post: Tensor, traces: Traces, window: Pairs, rate: float,
    bounds: tuple[float, float], steps: int,
) -> tuple[Traces, Updates]:  # fmt: skip
    pre = unpack_bits(pre, weight.shape[1], weight.dtype) if pre.dtype == torch.int32 else pre.to(weight.dtype)
    change, up, down = torch.zeros_like(weight), 0, 0
    for t in range(steps):
        traces, seen = pair_seen(pre[t], post[t], traces, window)
        change += window.a_plus * (post[t].T @ seen.pre) - window.a_minus * (seen.post.T @ pre[t])
        up += int((post[t].sum(1) * (seen.pre > 0).sum(1)).sum())
        down += int((pre[t].sum(1) * (seen.post > 0).sum(1)).sum())
    weight.add_(change, alpha=rate).clamp_(*bounds)
    return traces, Updates(up, down)


def _checked(weight: Tensor, pre: Tensor, post: Tensor) -> tuple[int, int]:
    """Steps and batch; ``ValueError`` where shapes or dtypes do not fit."""
    if weight.ndim != 2 or not weight.is_floating_point() or not weight.is_contiguous():
        raise ValueError(f"weight: expected contiguous floats (M, N), got {weight.dtype} {tuple(weight.shape)}")
    outputs, inputs = weight.shape
    if post.ndim != 3 or post.shape[2] != outputs or post.dtype != weight.dtype or post.device != weight.device:
        raise ValueError(
            f"post: expected {weight.dtype} (T, B, {outputs}) on {weight.device}, got {post.dtype} {tuple(post.shape)} on "
            f"{post.device}"
        )
    if pre.ndim != 3 or pre.shape[:2] != post.shape[:2]:
        raise ValueError(f"pre: expected ({post.shape[0]}, {post.shape[1]}, ...), got {tuple(pre.shape)}")
    if pre.dtype == torch.int32:
        check_words(pre, inputs, "pre")
        if has_stray_bits(pre, inputs):
            raise ValueError(f"pre: expected zeros in the padding beyond {inputs} bits, got ones")
    elif pre.shape[2] != inputs or not pre.is_floating_point():
        raise ValueError(
            f"pre: expected 0/1 floats (..., {inputs}) or packed words, got {pre.dtype} {tuple(pre.shape)}"
        )
    return post.shape[0], post.shape[1]
