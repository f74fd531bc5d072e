"""A layer of weights and the neurons after it as one autograd function over time."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.bits import words_for
from tbnn.ops.kernels import as_numpy, fresh, unexpanded, untraced
from tbnn.ops.layer_lif.back import Kept, WayBack
from tbnn.ops.layer_lif.counts import count_bytes
from tbnn.ops.layer_lif.cpu import pack_rows
from tbnn.ops.layer_lif.passage import Carried, Passage, Settings, Totals
from tbnn.ops.layer_lif.plan import Plan, plan_of
from tbnn.ops.layer_lif.tiled import Tiled, TiledTask, coefficient_gradients, goes_tiled, no_floats
from tbnn.ops.layer_lif.weighted import WeightedSpikes
from tbnn.ops.lif import cpu
from tbnn.ops.lif.cell import Cell, Rule, trace_gain
from tbnn.ops.lif.fused import spikes_before, stacked
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.reference import LifResult, Statistics
from tbnn.ops.lif.state import LifState

SUMS = 5  # Σx, Σq, Σq², Σxq, n


class _Task(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    passage: Passage
    plan: Plan
    words: Tensor
    spikes: Tensor | None  # (B, F) before the first step, but for plain neurons, whose v > θ tells them
    waiting: Tensor | None
    recorded: bool  # whether a gradient will be asked for
    floats: bool  # whether spikes leave as floats, and not as words alone


@untraced
def layer_lif_fused(
    weighted: WeightedSpikes,
    cell: Cell,
    state: LifState,
    rule: Rule,
    gradient: SpikeGradient,
    statistics: Statistics,
) -> LifResult:
    """Weights and neurons, chunk by chunk; fills ``weighted.emitted``."""
    steps, batch = weighted.shape[:2]
    gain = trace_gain(cell) if gradient.uses_trace else cell.threshold.detach()
    coefficients = cell.beta, cell.threshold, gain, *(cell.second or ())
    learn = np.zeros(cpu.COEFFICIENTS, bool)
    learn[: len(coefficients)] = [c.requires_grad for c in coefficients]
    if gradient.uses_trace:  # the trace knows spikes through its gain alone
        learn[[cpu.THRESHOLD, cpu.FROM_SPIKE]] = False
    spikes, second = spikes_before(state, cell), cell.second is not None
    lengths = np.full(batch, steps) if statistics.alive is None else as_numpy(statistics.alive.sum(0).to(torch.int64))
    settings = Settings(
        rule, gradient, lengths, learn, spikes is None, statistics.joined, statistics.channels
    )  # fmt: skip
    rows, weights = torch.stack(coefficients), weighted.weights
    features = rows.shape[1]
    passage = Passage(weights, weighted.words, rows, (batch, features), settings)
    start = stacked(state.v, state.w)
    trace_start = None if state.trace is None else stacked(state.trace, state.w_trace)
    if trace_start is not None:
        start = start.detach()
    norm = weighted.norm
    scaling = (None, None) if norm is None else (norm.weight, norm.bias)
    differentiable = [weighted.values, weights.weight, weights.bias, *scaling, rows, start, trace_start]
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)
    last_spikes = waiting = None
    if norm is not None:
        passage.normalise(norm)
    if norm is not None and goes_tiled(passage, steps):
        weighted.products = count_bytes(weights, features)
        tiled = TiledTask(passage, weighted.words, weighted.memory, recorded, weighted.floats)
        out, last, trace_last, weighted.emitted = Tiled.apply(*differentiable, tiled)
    else:
        numbers = start.shape[0] * (1 if trace_start is None else 2)
        numbers += (spikes is not None) + (state.waiting is not None)
        plan = plan_of(weighted.memory, steps, batch, features, numbers)
        task = _Task(passage, plan, weighted.words, spikes, state.waiting, recorded, weighted.floats)
        out, last, trace_last, last_spikes, waiting, weighted.emitted = _LayerLif.apply(*differentiable, task)
    passage.held = None  # where they are kept, they are autograd's
    v, w = last.unbind(0) if second else (last.squeeze(0), None)
    trace = w_trace = None
    if trace_last is not None:
        trace, w_trace = trace_last.unbind(0) if second else (trace_last.squeeze(0), None)
    return LifResult(out, LifState(v, trace, w, w_trace, last_spikes if rule.gated else None, waiting), None)


def _start(task: _Task, start: Tensor, trace_start: Tensor | None) -> Carried:
    nothing = task.passage.none
    others = (None if t is None else t[None, None] for t in (task.spikes, task.waiting))
    return Carried(*(nothing if t is None else as_numpy(t) for t in (start, trace_start, *others)))


class _LayerLif(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor | None, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
        coefficients: Tensor, start: Tensor, trace_start: Tensor | None, task: _Task,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        passage, plan, settings = task.passage, task.plan, task.passage.settings
        shape = (passage.batch, passage.features)
        out = fresh((plan.steps if task.floats else plan.chunk, *shape), coefficients.dtype)
        emitted = torch.from_numpy(np.empty((plan.steps, shape[0], words_for(shape[1])), np.int32))
        state = _start(task, start, trace_start)
        segments = plan.segments if task.recorded else []
        checkpoints = fresh((len(segments), *state.stacked().shape), coefficients.dtype)
        sums = Totals(SUMS, plan.steps, settings) if task.recorded and settings.gradient.gradient == "ddt" else None
        states: list[Tensor] = []
        for index, segment in enumerate(plan.segments):
            if task.recorded:
                as_numpy(checkpoints)[index] = state.stacked()
            for lo, hi in plan.chunks(segment):
                spikes = as_numpy(out[lo:hi] if task.floats else out[: hi - lo])
                chunk, state = passage.advance(state, (lo, hi), spikes)
                rows = (hi - lo) * shape[0]
                pack_rows(
                    spikes.reshape(rows, -1), as_numpy(emitted[lo:hi]).reshape(rows, -1).view(np.uint32),
                    work=spikes.size,
                )  # fmt: skip
                if sums is not None:
                    sums.add(passage.sums(chunk, None, settings.by_step), lo, hi)
                if task.recorded and plan.keeps(index):
                    parts = chunk.real.steps, *([chunk.traces.steps] if trace_start is not None else [])
                    states.append(torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts)))
        ctx.task, ctx.sums, ctx.layout = task, sums, state.layout
        ctx.set_materialize_grads(False)
        if task.recorded:  # what is not a leaf's own is all in here: words, checkpoints, states
            ctx.save_for_backward(weight, coefficients, task.words, emitted, checkpoints, *states)
        last = torch.from_numpy(state.real[:, 0].copy())
        trace_last = None if trace_start is None else torch.from_numpy(state.trace[:, 0].copy())
        last_spikes = None if settings.plain else torch.from_numpy(state.spikes[0, 0].copy())
        waiting = None if task.waiting is None else torch.from_numpy(state.waiting[0, 0].copy())
        constants = (None if trace_last is None else last, last_spikes, waiting, emitted)
        ctx.mark_non_differentiable(*(t for t in constants if t is not None))
        out = out if task.floats else no_floats((plan.steps, *shape), out.dtype)
        return out, last, trace_last, last_spikes, waiting, emitted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, coefficients, words, emitted, checkpoints, *states = ctx.saved_tensors
        task, by_trace = ctx.task, ctx.task.passage.by_trace
        kept = Kept(words, emitted, checkpoints, states)
        own = None if task.floats else grads[0]  # of a carrier, no one else has the gradient
        way = WayBack(task.passage, task.plan, ctx.layout, kept, weight, ctx.needs_input_grad, own)
        dout = weight.new_zeros((1, 1, task.passage.features)) if grads[0] is None else unexpanded(grads[0])
        carry = way.run(as_numpy(dout), grads[2] if by_trace else grads[1], ctx.sums)
        task.passage.held = None
        dstart, through = torch.from_numpy(carry).unsqueeze(1), way.through
        starts = (None, dstart) if by_trace else (dstart, None)
        dcoefficients = coefficient_gradients(way.totals, coefficients) if way.learns else None
        return through.dx, through.dweight, through.dbias, *through.dnorm, dcoefficients, *starts, None
