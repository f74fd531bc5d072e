"""The way back through a recurrent layer, segment by segment from its checkpoints."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tbnn.ops.kernels import as_numpy
from tbnn.ops.layer_lif.back import end_of
from tbnn.ops.layer_lif.passage import Array, Chunk, Layout, unstacked
from tbnn.ops.layer_lif.plan import Plan
from tbnn.ops.layer_lif.products import WeightGradient
from tbnn.ops.lif.memory import reused
from tbnn.ops.recurrent_lif import backward
from tbnn.ops.recurrent_lif.adjoint import scratch_of
from tbnn.ops.recurrent_lif.arriving import Arriving
from tbnn.ops.recurrent_lif.walk import Walk


class Kept(NamedTuple):
    """What a call keeps for backward, besides the spikes' bits, which the walk has."""

    checkpoints: Tensor
    """(segments, numbers, B, N)"""
    states: Tensor
    """Of the chunks of the segments that are kept, one after the other: each (numbers, steps, B, N), flat."""
    layout: Layout
    """Of what a checkpoint is made."""


class Needs(NamedTuple):
    """What takes a gradient."""

    current: bool
    values: bool
    inputs: bool
    """The weights in front of the neurons."""
    coefficients: bool
    weight: bool


class WayBack:
    """The gradients of one call.

    Args:
        walk, plan, arriving: the way there.
        kept: what it left.
        adjoint, weight: the feedback's weights, for the kernel and Ŵ.
        needs: which gradients to work out.
        room: the output's gradient if dvalues may take its memory, see :func:`tbnn.ops.layer_lif.back.end_of`.

    Attributes:
        dcurrent: (T, B, N), of a current; or dvalues, of the spikes in front of the neurons.
        dbias: (B, N), of a bias a sample.
        totals: (0, 3 or 10, B, N), of the coefficients.
        dpast: (delay, B, N), of the spikes that were on their way.
    """

    def __init__(
        self, walk: Walk, plan: Plan, arriving: Arriving, kept: Kept, adjoint: backward.Adjoint, weight: Tensor,
        needs: Needs, room: Tensor | None,
    ) -> None:  # fmt: skip
        self.walk, self.plan, self.arriving, self.kept = walk, plan, arriving, kept
        self.adjoint, self.weight = adjoint, weight
        settings, shape = walk.settings, (walk.batch, walk.features)
        learns = needs.coefficients and bool(settings.learn.any())
        self.learn = settings.learn if learns else np.zeros_like(settings.learn)
        self.totals = np.zeros((len(walk.coefficients) if learns else 0, *shape), walk.dtype)
        # The gradients of the current: of the whole sequence where it is asked for, else of a chunk.
        steps = plan.steps if needs.current else min(plan.chunk, plan.steps)
        self.whole = needs.current
        self.window = reused((steps + walk.delay, *shape), weight.dtype)
        self.window[-walk.delay :] = 0
        self.dcurrent = self.window[:steps] if needs.current else None
        incoming = plan.steps, walk.batch, arriving.inputs
        self.dvalues = end_of(room, incoming, weight.dtype) if needs.values else None
        front = arriving.weight if needs.inputs else None
        self._dinputs = None if front is None else WeightGradient(None, front)
        self._dweight = WeightGradient(None, weight) if needs.weight else None
        self.dbias = torch.zeros(shape, dtype=weight.dtype)
        self.dpast = weight.new_zeros(walk.delay, *shape)
        self._scratch = scratch_of(adjoint, *shape)

    def run(self, dout: Tensor, dafter: Tensor, dlast: Tensor | None) -> Array:
        """Fill the gradients from those of the output (1 or T, 1 or B, N), of the spikes on their way, of the last state.

        Returns the gradient of the first state, (1 or 2, B, N).
        """
        shape = self.kept.layout[0][0], self.walk.batch, self.walk.features
        carry = np.zeros(shape, self.walk.dtype) if dlast is None else as_numpy(dlast).copy()
        for index in reversed(range(len(self.plan.segments))):
            chunks = self._chunks(index)
            while chunks:
                self._step_back(chunks.pop(), as_numpy(dout), as_numpy(dafter), carry)
        delay, lengths = self.walk.delay, self.walk.settings.lengths
        torch.matmul(self.window[:delay] if self.whole else self._ahead, self.weight, out=self.dpast)
        for b in np.flatnonzero(lengths < delay):  # spikes that were still on their way in the end
            self.dpast[lengths[b] :, b] += dafter[: delay - lengths[b], b]
        return carry

    def _chunks(self, index: int) -> list[Chunk]:
        """A segment's chunks, in order."""
        walk, plan, chunks = self.walk, self.plan, []
        state = unstacked(as_numpy(self.kept.checkpoints[index]), self.kept.layout)
        first = plan.segments[-plan.kept][0] if plan.kept else plan.steps
        for lo, hi in plan.chunks(plan.segments[index]):
            if plan.keeps(index):
                chunk, state = walk.kept(state, (lo, hi), states_of(walk, self.kept.states, lo - first, hi - first))
            else:
                room = as_numpy(reused((walk.numbers, hi - lo, walk.batch, walk.features), self.weight.dtype))
                chunk, state = walk.advance(state, (lo, hi), self.arriving.steps(lo, hi), None, room)
            chunks.append(chunk)
        return chunks

    def _step_back(self, chunk: Chunk, dout: Array, dafter: Array, carry: Array) -> None:
        """Add a chunk's share to the gradients; ``carry`` goes on to the step before."""
        walk, lo, hi, gradient = self.walk, chunk.lo, chunk.hi, self.walk.settings.gradient
        window = self._window(lo, hi)
        backward.recurrent_backward(
            walk.estimator, backward.Ridge(float(gradient.lam), float(gradient.scale), gradient.differentiate_stats),
            chunk.layer, chunk.real, walk.driven(chunk), chunk.spikes, chunk.current, self.adjoint,
            dout[lo:hi] if len(dout) > 1 else dout, dafter, walk.settings.lengths - lo, self.learn, self._scratch,
            carry, self.totals, as_numpy(self.dbias), as_numpy(window), work=chunk.real.steps[0].size,
        )  # fmt: skip
        if not self.whole:
            self._ahead = window[: walk.delay].clone()
        rows = window[: hi - lo].view(-1, walk.features)
        if self._dweight is not None:
            self._dweight.add(rows, torch.from_numpy(walk.returned(lo, hi)).reshape(len(rows), -1))
        if self.dvalues is not None:
            self.arriving.input_gradient(rows, self.dvalues[lo:hi].flatten(0, 1))
        if self._dinputs is not None:
            self._dinputs.add(rows, self.arriving.words[lo:hi].reshape(len(rows), -1))

    @property
    def dinputs(self) -> Tensor | None:
        """The gradient of the weights in front of the neurons."""
        return None if self._dinputs is None else self._dinputs.total()

    @property
    def dweight(self) -> Tensor | None:
        """The gradient of the weights that spikes return through."""
        return None if self._dweight is None else self._dweight.total()

    def _window(self, lo: int, hi: int) -> Tensor:
        """Where the gradients of steps lo … hi go, and, filled, those of the ``delay`` steps after."""
        if self.whole:
            return self.window[lo : hi + self.walk.delay]
        window = self.window[: hi - lo + self.walk.delay]
        if hi < self.plan.steps:
            window[hi - lo :] = self._ahead
        else:
            window[hi - lo :] = 0
        return window


def states_of(walk: Walk, states: Tensor, lo: int, hi: int) -> Array:
    """A chunk's place (numbers, hi − lo, B, N) among the states that are kept, whose first step is 0."""
    each = walk.numbers * walk.batch * walk.features
    return as_numpy(states)[lo * each : hi * each].reshape(walk.numbers, hi - lo, walk.batch, walk.features)
