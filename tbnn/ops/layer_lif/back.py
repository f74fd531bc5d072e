"""The way back through a layer of weights and its neurons, segment by segment from their checkpoints."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.closed_form import Sums
from tbnn.ops.kernels import as_numpy, fresh
from tbnn.ops.layer_lif.cpu import gradient_sums
from tbnn.ops.layer_lif.passage import Array, Chunk, Layout, Passage, Totals, unstacked
from tbnn.ops.layer_lif.plan import Plan
from tbnn.ops.layer_lif.weighted import Convolution
from tbnn.ops.lif import backward


class Kept(NamedTuple):
    """What a call keeps for backward."""

    words: Tensor
    """The spikes that entered, packed."""
    emitted: Tensor
    """The spikes that left, packed."""
    checkpoints: Tensor
    """(segments, numbers, B, F)"""
    states: list[Tensor]
    """Of each chunk of the segments that are kept: (1, 2 or 4, steps, B, F)."""


class WayBack:
    """The gradients of one call: ``dx``, ``dweight``, ``dbias`` and, a neuron and sample, ``totals`` of coefficients.

    Args:
        passage, plan, layout: the way there, and of what a checkpoint is made.
        kept: what it left.
        weight: Ŵ.
        convolution, inputs: what x is of: frames, or so many inputs.
        needs: whether x, Ŵ, bias and coefficients take a gradient.
    """

    def __init__(
        self, passage: Passage, plan: Plan, layout: Layout, kept: Kept, weight: Tensor,
        convolution: Convolution | None, inputs: int, needs: tuple[bool, ...],
    ) -> None:  # fmt: skip
        self.passage, self.plan, self.layout, self.kept, self.weight = passage, plan, layout, kept, weight
        spans = [span for i, segment in enumerate(plan.segments) if plan.keeps(i) for span in plan.chunks(segment)]
        self.states = {lo: as_numpy(states) for (lo, _), states in zip(spans, kept.states, strict=True)}
        self.learns = needs[3] and bool(passage.settings.learn.any())
        self.learn = passage.settings.learn if self.learns else np.zeros_like(passage.settings.learn)
        count = len(passage.coefficients) if self.learns else 0
        self.totals = np.zeros((count, passage.batch, passage.features), passage.dtype)
        shape = (inputs,) if convolution is None else convolution.shape
        self.dx = fresh((plan.steps, passage.batch, *shape), weight.dtype) if needs[0] else None
        self._dweight = passage.products.weight_gradient(weight) if needs[1] else None
        self.dbias = weight.new_zeros(weight.shape[0]) if needs[2] else None

    def run(self, dout: Array, dlast: Tensor | None, sums: Totals | None) -> Array:
        """Fill the gradients from the output's (1 or T, 1 or B, F) and the last state's; returns the first state's."""
        shape = self.layout[0][0], self.passage.batch, self.passage.features
        carry = np.zeros(shape, self.passage.dtype) if dlast is None else as_numpy(dlast).copy()
        factors = self._factors(dout, sums)
        for index in reversed(range(len(self.plan.segments))):
            chunks = self._chunks(index)
            while chunks:
                self._step_back(chunks.pop(), dout, factors, carry)
        return carry

    @property
    def dweight(self) -> Tensor | None:
        """The gradient of Ŵ."""
        return None if self._dweight is None else self._dweight.total()

    def _chunks(self, index: int) -> list[Chunk]:
        """A segment's chunks, in order."""
        state, chunks = unstacked(as_numpy(self.kept.checkpoints[index]), self.layout), []
        for lo, hi in self.plan.chunks(self.plan.segments[index]):
            if lo in self.states:
                chunk, state = self.passage.kept(state, self.states[lo], (lo, hi), self.kept.emitted)
            else:
                chunk, state = self.passage.advance(state, (lo, hi), None)
            chunks.append(chunk)
        return chunks

    def _step_back(self, chunk: Chunk, dout: Array, factors: Array, carry: Array) -> None:
        """Add a chunk's share to the gradients; ``carry`` goes on to the step before."""
        passage, lo, hi = self.passage, chunk.lo, chunk.hi
        dcurrent = fresh((hi - lo, passage.batch, passage.features), self.weight.dtype)
        backward.scan_backward(
            passage.estimator, chunk.layer, chunk.real, passage.driven(chunk), chunk.spikes, chunk.current,
            dout[lo:hi] if len(dout) > 1 else dout,
            np.ascontiguousarray(factors[:, lo:hi]) if factors.shape[1] > 1 else factors,
            self.learn, passage.backward_rows, carry, self.totals, as_numpy(dcurrent), work=dcurrent.numel(),
        )  # fmt: skip
        rows = dcurrent.view(-1, passage.features)
        if self.dx is not None:
            passage.products.input_gradient(rows, self.weight, self.dx[lo:hi].flatten(0, 1))
        if self._dweight is not None:
            words = self.kept.words[lo:hi].reshape(len(rows), -1)
            self._dweight.add(rows, words)
        if self.dbias is not None:
            self.dbias += rows.view(len(rows), len(self.dbias), -1).sum((0, 2))

    def _factors(self, dout: Array, sums: Totals | None) -> Array:
        """k0, kG, kx, kq of every neuron (and step): (4, 1 or T, F)."""
        passage, gradient = self.passage, self.passage.settings.gradient
        if sums is None:
            factors = np.zeros((4, 1, 1))
            factors[1] = gradient.scale
        else:
            whole = np.concatenate([sums.sums, self._gradient_sums(dout)])
            if passage.settings.joined:
                distributed.all_reduce(torch.from_numpy(whole))
            x, q, qq, xq, n, g, gq = whole
            n = np.maximum(n, 1)  # a block in which every sequence has ended
            back = closed_form.gradient(
                Sums(n, x, q, qq, xq), g, gq, gradient.lam, "affine", gradient.differentiate_stats
            )
            factors = np.stack([back.x_const + back.q_const, back.s, back.r, back.r - 2 * back.s * back.r])
            factors *= gradient.scale
        return np.ascontiguousarray(np.repeat(factors, passage.features // factors.shape[-1], axis=-1), passage.dtype)

    def _gradient_sums(self, dout: Array) -> Array:
        """ΣG and ΣGq of every block: (2, 1 or T, blocks)."""
        passage, settings = self.passage, self.passage.settings
        totals = Totals(2, self.plan.steps, settings)
        if not passage.by_trace:
            out = np.empty((2, totals.sums.shape[1], passage.features))
            words = as_numpy(self.kept.emitted).view(np.uint32)
            work = self.plan.steps * passage.batch * passage.features
            gradient_sums(dout, words, settings.lengths, totals.by_step, out, work=work)
            totals.add(out, 0, self.plan.steps)
            return totals.sums
        for index in range(len(self.plan.segments)):  # q is the spikes' trace, which the states alone tell
            for chunk in self._chunks(index):
                part = dout[chunk.lo : chunk.hi] if len(dout) > 1 else dout
                totals.add(passage.sums(chunk, part, totals.by_step)[5:], chunk.lo, chunk.hi)
        return totals.sums
