"""A normed layer of weights and plain neurons as one autograd function: all steps of a tile of neurons at once.

Between forward and backward stay whole numbers, two bytes a neuron and step, in place of membranes: these are advanced
again, in the caches, on the way back.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.bits import words_for
from tbnn.ops.kernels import as_numpy, unexpanded
from tbnn.ops.layer_lif.back import ThroughWeights, ridge_factors
from tbnn.ops.layer_lif.counts import Counts
from tbnn.ops.layer_lif.norm import Normed
from tbnn.ops.layer_lif.passage import Array, Passage, Totals
from tbnn.ops.layer_lif.plan import LONGEST, Memory, kept_counts, steps_together
from tbnn.ops.layer_lif.tiles import SAMPLES, tiled_backward, tiled_gradient_sums, tiled_scan
from tbnn.ops.lif import cpu
from tbnn.ops.lif.memory import reused

TILE, SMALL_TILE = 1024, 256  # neurons: whole words
SHORT = 64  # steps of which a tile's states fit into L2


class TiledTask(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    passage: Passage
    words: Tensor
    memory: Memory
    recorded: bool  # whether a gradient will be asked for
    floats: bool  # whether spikes leave as floats, and not as words alone

    @property
    def tile(self) -> int:
        """Neurons of a task."""
        return TILE if len(self.words) <= SHORT else SMALL_TILE


def goes_tiled(passage: Passage, steps: int) -> bool:
    """Whether a normed layer goes this way: plain neurons, rows of one block, few steps, no sums at each of them."""
    settings = passage.settings
    by_step = settings.gradient.gradient == "ddt" and settings.by_step
    return settings.plain and passage.count_layout is not None and steps <= LONGEST and not by_step


def no_floats(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """One zero in the place of spikes that are packed elsewhere: what gradients come back through."""
    return torch.zeros((), dtype=dtype).expand(shape)


def coefficient_gradients(totals: Array, coefficients: Tensor) -> Tensor:
    """The coefficients' gradient, (3 or 10, F), from that of each neuron and sample."""
    gradient = torch.from_numpy(totals).sum(1)
    gradient[cpu.GAIN] /= coefficients[cpu.GAIN]
    return gradient


class Tiled(torch.autograd.Function):
    """(spikes, last states, last traces, packed spikes) of a layer whose passage has a norm."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor | None, weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor,
        coefficients: Tensor, start: Tensor, trace_start: Tensor | None, task: TiledTask,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        passage, steps = task.passage, len(task.words)
        shape, dtype = (steps, passage.batch, passage.features), coefficients.dtype
        if task.recorded:
            passage.hold()
        v = as_numpy(start[0, 0]).copy()
        traces = np.empty((0, shape[2]), passage.dtype) if trace_start is None else as_numpy(trace_start[0, 0]).copy()
        out = reused(shape, dtype) if task.floats else None
        emitted = torch.from_numpy(np.empty((steps, passage.batch, words_for(shape[2])), np.int32))
        ctx.sums = None
        if task.recorded and passage.settings.gradient.gradient == "ddt":
            ctx.sums = Totals(5, steps, passage.settings)
        chunk = steps if passage.held is not None else steps_together(*shape[1:])
        for lo in range(0, steps, chunk):
            _advance(task, lo, min(lo + chunk, steps), (v, traces), out, emitted, ctx.sums)
        ctx.task = task
        ctx.set_materialize_grads(False)
        if task.recorded and passage.held is not None:
            kept = kept_counts(task.memory, steps)
            last = passage.held.part(steps - kept, steps)
            last = last if kept == steps else Counts(*(part.clone() for part in last))
            ctx.save_for_backward(weight, coefficients, task.words, emitted, start, trace_start, *last)
        last_v = torch.from_numpy(v)[None]
        last_trace = None if trace_start is None else torch.from_numpy(traces)[None]
        ctx.mark_non_differentiable(*(t for t in (None if last_trace is None else last_v, emitted) if t is not None))
        return no_floats(shape, dtype) if out is None else out, last_v, last_trace, emitted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, coefficients, words, emitted, start, trace_start, *last = ctx.saved_tensors
        passage, needs = ctx.task.passage, ctx.needs_input_grad
        passage.hold(Counts(*last))
        own = None if ctx.task.floats else grads[0]
        through = ThroughWeights(passage, words, weight, needs, own)
        states = as_numpy(start[0, 0]), _none_or(trace_start, passage)
        dout = weight.new_zeros((1, 1, passage.features)) if grads[0] is None else unexpanded(grads[0])
        dlast = grads[1] if trace_start is None else grads[2]
        carry = np.zeros_like(states[0]) if dlast is None else as_numpy(dlast[0]).copy()
        learns = needs[5] and bool(passage.settings.learn.any())
        totals = np.zeros((len(coefficients) if learns else 0, *carry.shape), carry.dtype)
        dnormed = reused((len(words), *carry.shape), weight.dtype)
        sums = _step_back(ctx.task, as_numpy(dout), emitted, ctx.sums, states, carry, totals, as_numpy(dnormed))
        through.norm(dnormed, sums)
        passage.held = None
        dstart = torch.from_numpy(carry)[None, None]
        starts = (dstart, None) if trace_start is None else (None, dstart)
        dcoefficients = coefficient_gradients(totals, coefficients) if learns else None
        return through.dx, through.dweight, through.dbias, *through.dnorm, dcoefficients, *starts, None


def _none_or(trace_start: Tensor | None, passage: Passage) -> Array:
    return np.empty((0, passage.features), passage.dtype) if trace_start is None else as_numpy(trace_start[0, 0])


def _spread(passage: Passage, normed: Normed) -> tuple[Array, Array]:
    """γ and β of every neuron, (F,)."""
    gamma, beta = (np.repeat(c, passage.features // len(c)).astype(passage.dtype) for c in (normed.gamma, normed.beta))
    return gamma, beta


def _advance(
    task: TiledTask, lo: int, hi: int, states: tuple[Array, Array], out: Tensor | None, emitted: Tensor, sums: Totals | None
) -> None:  # fmt: skip
    """Advance the states (v, traces) from step lo to hi; fill the spikes, and add to the sums."""
    passage, normed = task.passage, task.passage.normed
    if normed is None:
        return
    layer, groups = passage.layer(lo, hi), -(-passage.batch // SAMPLES)
    part = np.empty((groups if sums is not None else 0, 4, passage.features))
    floats = np.empty((0, *states[0].shape), passage.dtype) if out is None else as_numpy(out[lo:hi])
    words = as_numpy(emitted[lo:hi]).view(np.uint32)
    tiled_scan(
        passage.drive(passage.counts(lo, hi), normed.normal), *_spread(passage, normed), passage.coefficients, layer.reset, layer.lengths,
        passage.estimator, task.tile, *states, floats, words, part, work=(hi - lo) * states[0].size,
    )  # fmt: skip
    if sums is not None:
        count = np.full((1, passage.features), float(layer.lengths.sum()))
        sums.add(np.concatenate([part.sum(0), count])[:, None], lo, hi)


def _step_back(
    task: TiledTask, dout: Array, emitted: Tensor, sums: Totals | None, states: tuple[Array, Array], carry: Array,
    totals: Array, dnormed: Array,
) -> Array:  # fmt: skip
    """Fill dnormed, carry and totals; Σdnormed and Σdnormed·ĉ of each channel, (2, C)."""
    passage, normed, steps = task.passage, task.passage.normed, len(dnormed)
    out = np.empty((-(-passage.batch // SAMPLES), 2, passage.features))
    if normed is None:
        return out
    layer, counts, learn = passage.layer(0, steps), passage.counts(0, steps), passage.settings.learn
    drive = passage.drive(counts, normed.normal), *_spread(passage, normed), passage.coefficients
    gradient = None
    if sums is not None:
        tiled_gradient_sums(
            *drive, layer.lengths, passage.by_trace, task.tile, *states, as_numpy(emitted).view(np.uint32), dout, out,
            work=dnormed.size,
        )  # fmt: skip
        gradient = Totals(2, steps, passage.settings)
        gradient.add(out.sum(0)[:, None], 0, steps)
        gradient = gradient.sums
    tiled_backward(
        *drive, layer.reset, layer.lengths, passage.estimator, task.tile, *states, dout,
        ridge_factors(passage, sums, gradient), learn if len(totals) else np.zeros_like(learn),
        carry, totals, dnormed, out, work=dnormed.size,
    )  # fmt: skip
    return out.sum(0).reshape(2, passage.products.outputs, -1).sum(-1)
