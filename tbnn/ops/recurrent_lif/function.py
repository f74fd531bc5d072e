"""A recurrent layer by fused kernels: the autograd function around them.

Kept for the backward pass: one bit a spike, checkpoints of the state, and of as many steps as is asked for the states
themselves; what else backward needs is worked out again, segment by segment. A current is kept only where that takes it.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.bits import pack_bits, unpack_bits, wide_words
from tbnn.ops.kernels import as_numpy, unexpanded, untraced
from tbnn.ops.layer_lif.passage import Array, Carried, Settings
from tbnn.ops.layer_lif.plan import Memory, Plan, plan_of
from tbnn.ops.layer_lif.tiled import no_floats
from tbnn.ops.layer_lif.weighted import WeightedSpikes
from tbnn.ops.lif import cpu as neurons
from tbnn.ops.lif.cell import Cell, Rule, trace_gain
from tbnn.ops.lif.fused import spikes_before, stacked
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.memory import reused
from tbnn.ops.lif.state import LifState
from tbnn.ops.recurrent_lif.adjoint import Planes, adjoint_of, packed_feedback, planes_of
from tbnn.ops.recurrent_lif.arriving import Arriving
from tbnn.ops.recurrent_lif.back import Kept, Needs, WayBack, states_of
from tbnn.ops.recurrent_lif.cpu import WORD
from tbnn.ops.recurrent_lif.reference import Feedback, RecurrentResult
from tbnn.ops.recurrent_lif.walk import Walk


class _Task(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    walk: Walk
    plan: Plan
    feedback: Feedback
    planes: Planes
    arriving: Arriving | None  # None: the current that the function is given
    spikes: Tensor | None  # (B, N) before the first step, but for plain neurons, whose v > θ tells them
    waiting: Tensor | None
    recorded: bool  # whether a gradient will be asked for
    floats: bool  # whether spikes leave as floats, and not as words alone


@untraced
def recurrent_lif_fused(
    given: Tensor | WeightedSpikes, feedback: Feedback, cell: Cell, state: LifState, past: Tensor, rule: Rule,
    gradient: SpikeGradient, lengths: Tensor | None, memory: Memory,
) -> RecurrentResult:  # fmt: skip
    """:func:`tbnn.ops.recurrent_lif.reference.recurrent_lif_reference` by the fused kernels."""
    steps, batch, features = given.shape
    gain = trace_gain(cell) if gradient.uses_trace else cell.threshold.detach()
    coefficients = cell.beta, cell.threshold, gain, *(cell.second or ())
    learn = np.zeros(neurons.COEFFICIENTS, bool)
    learn[: len(coefficients)] = [c.requires_grad for c in coefficients]
    if gradient.uses_trace:  # the trace knows spikes through its gain alone
        learn[[neurons.THRESHOLD, neurons.FROM_SPIKE]] = False
    spikes, second = spikes_before(state, cell), cell.second is not None
    ends = np.full(batch, steps) if lengths is None else as_numpy(lengths)
    settings = Settings(rule, gradient, ends, learn, spikes is None, False, 1)
    bits = np.empty((len(past) + steps, batch, -(-features // WORD)), np.uint64)
    bits[: len(past)] = wide_words(as_numpy(pack_bits(past)))
    frozen, planes = feedback.detach(), planes_of(feedback.values)
    walk = Walk(packed_feedback(frozen, planes), bits, torch.stack(coefficients).detach(), settings, len(past))
    start = stacked(state.v, state.w)
    trace_start = None if state.trace is None else stacked(state.trace, state.w_trace)
    if trace_start is not None:
        start = start.detach()
    arriving = Arriving(given) if isinstance(given, WeightedSpikes) else None
    sources = (
        (given.values, given.weights.weight, given.weights.bias) if isinstance(given, WeightedSpikes) else (None,) * 3
    )
    differentiable = (
        None if arriving else given, *sources, torch.stack(coefficients), start, trace_start, feedback.weight,
        feedback.bias, past,
    )  # fmt: skip
    recorded = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in differentiable)
    numbers = start.shape[0] * (1 if trace_start is None else 2) + (spikes is not None) + (state.waiting is not None)
    # In place of the states of plain neurons the current would have to be kept.
    plan = plan_of(memory if arriving or walk.numbers > 1 else "speed", steps, batch, features, numbers)
    floats = not isinstance(given, WeightedSpikes) or given.floats
    task = _Task(walk, plan, frozen, planes, arriving, spikes, state.waiting, recorded, floats)
    out, after, last, trace_last, last_spikes, waiting = _Recurrent.apply(*differentiable, task)
    if isinstance(given, WeightedSpikes):
        given.emitted = torch.from_numpy(walk.spikes(0, steps))
    v, w = last.unbind(0) if second else (last.squeeze(0), None)
    trace = w_trace = None
    if trace_last is not None:
        trace, w_trace = trace_last.unbind(0) if second else (trace_last.squeeze(0), None)
    return RecurrentResult(
        out, LifState(v, trace, w, w_trace, last_spikes if rule.gated else None, waiting), after
    )  # fmt: skip


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor | None, values: Tensor | None, inputs: Tensor | None, inputs_bias: Tensor | None,
        coefficients: Tensor, start: Tensor, trace_start: Tensor | None, weight: Tensor, bias: Tensor | None,
        past: Tensor, task: _Task,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        walk, plan, settings = task.walk, task.plan, task.walk.settings
        arriving = Arriving(current) if task.arriving is None and current is not None else task.arriving
        shape, dtype = (walk.batch, walk.features), coefficients.dtype
        out = reused((plan.steps, *shape), dtype) if task.floats else None
        state = _start(task, start, trace_start)
        segments = plan.segments
        checkpoints = torch.empty((len(segments) if task.recorded else 0, *state.stacked().shape), dtype=dtype)
        first = segments[-plan.kept][0] if plan.kept and task.recorded else plan.steps
        each = walk.numbers * walk.batch * walk.features
        states = reused(((plan.steps - first) * each,), dtype)
        for index, segment in enumerate(segments):
            if task.recorded:
                as_numpy(checkpoints)[index] = state.stacked()
            for lo, hi in plan.chunks(segment):
                if lo >= first:
                    room = states_of(walk, states, lo - first, hi - first)
                else:
                    room = as_numpy(reused((walk.numbers, hi - lo, *shape), dtype))
                current_part = arriving.steps(lo, hi) if arriving is not None else walk.none[0]
                floats = None if out is None else as_numpy(out[lo:hi])
                state = walk.advance(state, (lo, hi), current_part, floats, room)[1]
        ctx.task, ctx.layout = task, state.layout
        ctx.set_materialize_grads(False)
        if task.recorded:
            again = current if plan.kept < len(segments) else None
            bits = torch.from_numpy(walk.bits.view(np.int64))
            ctx.save_for_backward(weight, coefficients, bits, checkpoints, states, again)
        last = torch.from_numpy(state.real[:, 0].copy())
        trace_last = None if trace_start is None else torch.from_numpy(state.trace[:, 0].copy())
        last_spikes = None if settings.plain else torch.from_numpy(state.spikes[0, 0].copy())
        waiting = None if task.waiting is None else torch.from_numpy(state.waiting[0, 0].copy())
        constants = (None if trace_last is None else last, last_spikes, waiting)
        ctx.mark_non_differentiable(*(t for t in constants if t is not None))
        out = no_floats((plan.steps, *shape), dtype) if out is None else out
        return out, _on_their_way(walk, dtype), last, trace_last, last_spikes, waiting

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, coefficients, _, checkpoints, states, again = ctx.saved_tensors
        task, walk, needed = ctx.task, ctx.task.walk, ctx.needs_input_grad
        arriving = task.arriving or Arriving(weight if again is None else again)
        needs = Needs(needed[0], needed[1], needed[2], needed[4], needed[7])
        way = WayBack(
            walk, task.plan, arriving, Kept(checkpoints, states, ctx.layout),
            adjoint_of(task.feedback, weight, task.planes), weight, needs, None if task.floats else grads[0],
        )  # fmt: skip
        shape = (walk.batch, walk.features)
        dout = weight.new_zeros((1, 1, walk.features)) if grads[0] is None else unexpanded(grads[0])
        dafter = weight.new_zeros((walk.delay, *shape)) if grads[1] is None else grads[1].contiguous()
        carry = way.run(dout, dafter, grads[3] if walk.by_trace else grads[2])
        dcoefficients = None
        if len(way.totals):
            dcoefficients = torch.from_numpy(way.totals).sum(1)
            dcoefficients[neurons.GAIN] /= coefficients[neurons.GAIN]
        dbias, dstart = way.dbias.sum(0), torch.from_numpy(carry).unsqueeze(1)
        starts = (None, dstart) if walk.by_trace else (dstart, None)
        return (
            way.dcurrent, way.dvalues, way.dinputs, dbias if needed[3] else None, dcoefficients, *starts, way.dweight,
            dbias if needed[8] else None, way.dpast, None,
        )  # fmt: skip


def _start(task: _Task, start: Tensor, trace_start: Tensor | None) -> Carried:
    others = (None if t is None else t[None, None] for t in (task.spikes, task.waiting))
    return Carried(*(task.walk.none if t is None else as_numpy(t) for t in (start, trace_start, *others)))


def _on_their_way(walk: Walk, dtype: torch.dtype) -> Tensor:
    """The spikes that left at the last ``delay`` steps of each sequence, (delay, B, N)."""
    place: Array = walk.settings.lengths + np.arange(walk.delay)[:, None]
    words = walk.bits[place, np.arange(walk.batch)].view(np.int32)
    return unpack_bits(torch.from_numpy(words), walk.bits.shape[2] * WORD, dtype)[..., : walk.features].contiguous()
