"""The way back through a layer of weights and its neurons, segment by segment from their checkpoints."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.closed_form import Sums
from tbnn.ops.kernels import as_numpy, fresh
from tbnn.ops.layer_lif.cpu import gradient_sums
from tbnn.ops.layer_lif.passage import Array, Chunk, Layout, Passage, Totals, unstacked
from tbnn.ops.layer_lif.plan import Plan, steps_together
from tbnn.ops.layer_lif.tiles import norm_back
from tbnn.ops.lif import backward
from tbnn.ops.lif.cpu import TILE
from tbnn.ops.lif.memory import reused


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


class ThroughWeights:
    """What a current's gradient makes of the weights' side: ``dx``, ``dweight``, ``dbias`` and those of a norm.

    Args:
        passage, weight: of the call, and Ŵ.
        words: the spikes that entered, packed.
        needs: whether x, Ŵ and the bias take a gradient.
        room: a gradient whose memory dx may take, see :func:`end_of`.
    """

    def __init__(
        self, passage: Passage, words: Tensor, weight: Tensor, needs: tuple[bool, ...], room: Tensor | None
    ) -> None:
        self.passage, self.words, self.weight = passage, words, weight
        self.dx = end_of(room, (len(words), passage.batch, *passage.products.shape), weight.dtype) if needs[0] else None
        self._dweight = passage.products.weight_gradient(weight) if needs[1] else None
        self.dbias = weight.new_zeros(weight.shape[0]) if needs[2] else None
        self.dnorm: tuple[Tensor, Tensor] | tuple[None, None] = None, None

    def add(self, dcurrent: Tensor, lo: int, hi: int) -> None:
        """Add the share of steps lo … hi, dcurrent (hi − lo, B, F)."""
        rows = dcurrent.view(-1, self.passage.features)
        if self.dx is not None:
            self.passage.products.input_gradient(rows, self.weight, self.dx[lo:hi].flatten(0, 1))
        if self._dweight is not None:
            self._dweight.add(rows, self.words[lo:hi].reshape(len(rows), -1))
        if self.dbias is not None and self.passage.normed is None:
            self.dbias += rows.view(len(rows), len(self.dbias), -1).sum((0, 2))

    @property
    def dweight(self) -> Tensor | None:
        """The gradient of Ŵ."""
        return None if self._dweight is None else self._dweight.total()

    def norm(self, dnormed: Tensor, sums: Array) -> None:
        """Go through the norm, and add all shares: dnormed (T, B, F), which is overwritten; Σdnormed and Σdnormed·ĉ, (2, C)."""
        passage, normed, dtype = self.passage, self.passage.normed, self.weight.dtype
        if normed is None:
            return
        factors, steps = normed.back(sums), len(self.words)
        gain = np.repeat(normed.gain, passage.features // len(normed.gain)).astype(passage.dtype)
        chunk = steps_together(passage.batch, passage.features)
        drive = None if passage.held is None else passage.drive(passage.held, factors)
        for lo in range(0, steps if self.dx is not None or self._dweight is not None else 0, chunk):
            hi = min(lo + chunk, steps)
            some, alive = as_numpy(dnormed[lo:hi]), np.clip(passage.settings.lengths - lo, 0, hi - lo)
            if drive is not None:
                part = drive._replace(product=drive.product[lo:hi], ones=drive.ones[lo:hi])
                norm_back(part, gain, alive, TILE, some, work=some.size)
            else:
                counted = np.arange(hi - lo)[:, None, None] < alive[:, None]
                some *= gain
                some += counted * passage.scaled(lo, hi, factors)
            self.add(dnormed[lo:hi], lo, hi)
        dbeta, dgamma = (torch.from_numpy(row).to(dtype) for row in sums)
        self.dnorm = dgamma, dbeta
        if self.dbias is not None and not normed.training:  # in training the mean takes a bias out again
            self.dbias += torch.from_numpy(normed.gain * sums[0]).to(dtype)


def end_of(gradient: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory (T, B, inputs...) at the end of a gradient's own (T, B, F), which is gone through from its last step.

    What is written of a step then lies behind all that is still to be read. Other memory where there is not enough of it.
    """
    size = math.prod(shape)
    if gradient is None or gradient.numel() < size or gradient.dtype != dtype or not gradient.is_contiguous():
        return reused(shape, dtype)
    return gradient.view(-1)[gradient.numel() - size :].view(shape)


def ridge_factors(passage: Passage, sums: Totals | None, gradient_sums: Array | None) -> Array:
    """k0, kG, kx, kq of every neuron (and step), (4, 1 or T, F), from forward's sums and ΣG and ΣGq of every block."""
    gradient = passage.settings.gradient
    if sums is None or gradient_sums is None:
        factors = np.zeros((4, 1, 1))
        factors[1] = gradient.scale
    else:
        whole = np.concatenate([sums.sums, gradient_sums])
        if passage.settings.joined:
            distributed.all_reduce(torch.from_numpy(whole))
        x, q, qq, xq, n, g, gq = whole
        n = np.maximum(n, 1)  # a block in which every sequence has ended
        back = closed_form.gradient(Sums(n, x, q, qq, xq), g, gq, gradient.lam, "affine", gradient.differentiate_stats)
        factors = np.stack([back.x_const + back.q_const, back.s, back.r, back.r - 2 * back.s * back.r])
        factors *= gradient.scale
    return np.ascontiguousarray(np.repeat(factors, passage.features // factors.shape[-1], axis=-1), passage.dtype)


def sums_with_words(passage: Passage, dout: Array, emitted: Tensor) -> Array:
    """ΣG and ΣGq of every block, (2, 1 or T, blocks), where q are the spikes that left, packed."""
    settings, steps = passage.settings, len(emitted)
    totals = Totals(2, steps, settings)
    out = np.empty((2, totals.sums.shape[1], passage.features))
    words = as_numpy(emitted).view(np.uint32)
    gradient_sums(dout, words, settings.lengths, totals.by_step, out, work=steps * passage.batch * passage.features)
    totals.add(out, 0, steps)
    return totals.sums


class WayBack:
    """The gradients of one call: ``through`` the weights and, a neuron and sample, ``totals`` of coefficients.

    Args:
        passage, plan, layout: the way there, and of what a checkpoint is made.
        kept: what it left.
        weight: Ŵ.
        needs: whether x, Ŵ, bias, the norm's γ and β and the coefficients take a gradient.
        room: as :class:`ThroughWeights`.
    """

    def __init__(
        self, passage: Passage, plan: Plan, layout: Layout, kept: Kept, weight: Tensor, needs: tuple[bool, ...],
        room: Tensor | None,
    ) -> None:  # fmt: skip
        self.passage, self.plan, self.layout, self.kept = passage, plan, layout, kept
        self.through = ThroughWeights(passage, kept.words, weight, needs, room)
        self.normed = passage.normed
        if self.normed is not None:
            passage.hold()
            self.dnormed = reused((plan.steps, passage.batch, passage.features), weight.dtype)
            self.norm_sums = np.zeros((2, passage.products.outputs))
        spans = [span for i, segment in enumerate(plan.segments) if plan.keeps(i) for span in plan.chunks(segment)]
        self.states = {lo: as_numpy(states) for (lo, _), states in zip(spans, kept.states, strict=True)}
        self.learns = needs[5] and bool(passage.settings.learn.any())
        self.learn = passage.settings.learn if self.learns else np.zeros_like(passage.settings.learn)
        count = len(passage.coefficients) if self.learns else 0
        self.totals = np.zeros((count, passage.batch, passage.features), passage.dtype)

    def run(self, dout: Array, dlast: Tensor | None, sums: Totals | None) -> Array:
        """Fill the gradients from the output's (1 or T, 1 or B, F) and the last state's; returns the first state's."""
        shape = self.layout[0][0], self.passage.batch, self.passage.features
        carry = np.zeros(shape, self.passage.dtype) if dlast is None else as_numpy(dlast).copy()
        factors = ridge_factors(self.passage, sums, None if sums is None else self._gradient_sums(dout))
        for index in reversed(range(len(self.plan.segments))):
            chunks = self._chunks(index)
            while chunks:
                self._step_back(chunks.pop(), dout, factors, carry)
        if self.normed is not None:
            self.through.norm(self.dnormed, self.norm_sums)
        return carry

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
        normed, shape = self.normed, (hi - lo, passage.batch, passage.features)
        dcurrent = fresh(shape, self.through.weight.dtype) if normed is None else self.dnormed[lo:hi]
        backward.scan_backward(
            passage.estimator, chunk.layer, chunk.real, passage.driven(chunk), chunk.spikes, chunk.current,
            dout[lo:hi] if len(dout) > 1 else dout,
            np.ascontiguousarray(factors[:, lo:hi]) if factors.shape[1] > 1 else factors,
            self.learn, passage.backward_rows, carry, self.totals, as_numpy(dcurrent), work=dcurrent.numel(),
        )  # fmt: skip
        if normed is None:
            self.through.add(dcurrent, lo, hi)
            return
        normal = torch.from_numpy(passage.scaled(lo, hi, normed.normal))
        for row, part in zip(self.norm_sums, (dcurrent, dcurrent * normal), strict=True):
            channels = part.double().reshape(-1, len(row), passage.features // len(row))
            row += as_numpy(channels.sum((0, 2)))

    def _gradient_sums(self, dout: Array) -> Array:
        """ΣG and ΣGq of every block: (2, 1 or T, blocks)."""
        passage = self.passage
        if not passage.by_trace:
            return sums_with_words(passage, dout, self.kept.emitted)
        totals = Totals(2, self.plan.steps, passage.settings)
        for index in range(len(self.plan.segments)):  # q is the spikes' trace, which the states alone tell
            for chunk in self._chunks(index):
                part = dout[chunk.lo : chunk.hi] if len(dout) > 1 else dout
                totals.add(passage.sums(chunk, part, totals.by_step)[5:], chunk.lo, chunk.hi)
        return totals.sums
