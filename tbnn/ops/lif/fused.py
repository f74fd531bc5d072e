"""Spiking neurons by fused kernels: three passes over the sequence and the autograd function around them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.closed_form import Sums
from tbnn.ops.kernels import NUMPY_DTYPES, as_numpy, unexpanded
from tbnn.ops.lif import backward, cpu, target
from tbnn.ops.lif.cell import Cell, Rule, effective, spikes_of, trace_gain
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.memory import reused
from tbnn.ops.lif.reference import LifResult, Statistics
from tbnn.ops.lif.state import LifState


class Settings(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    rule: Rule
    gradient: SpikeGradient
    channels: int
    joined: bool
    learn: list[bool]  # (3 or 10,): the coefficients whose gradients the kernel adds up
    differentiates: bool  # whether a backward pass may follow
    lengths: Tensor | None  # (B,) int64
    spikes: Tensor | None  # (B, F) before the first step, but for plain neurons, whose v > θ tells them
    waiting: Tensor | None  # (B, F)
    affine: tuple[Tensor, Tensor] | None


class Saved(NamedTuple):
    """What the backward pass reads; None where the neuron has no such thing."""

    coefficients: Tensor  # (3 or 10, F)
    start: Tensor  # (1 or 2, 1, B, F): v, and w where there is one
    states: Tensor  # (1 or 2, T, B, F)
    trace_start: Tensor | None
    traces: Tensor | None
    spikes: Tensor | None  # (T, B, F) of gated neurons: no level tells them
    current: Tensor | None  # where a gradient reads it
    sums: Tensor | None  # (4, 1 or T, ...) of :func:`cpu.scan_sums`, where a ridge is solved


class Passed(NamedTuple):
    """What the forward pass gives; None where the neuron has no such thing."""

    out: Tensor  # (T, B, F)
    last: Tensor  # (1 or 2, B, F)
    trace_last: Tensor | None
    spikes: Tensor | None  # (B, F), of the last step
    waiting: Tensor | None  # (B, F)
    moments: Tensor | None  # (3, blocks)


class _Run(NamedTuple):
    """The same as the kernels see it."""

    layer: cpu.Layer
    real: cpu.Course
    traces: cpu.Course
    spikes: cpu.Course
    estimator: target.Estimator

    @property
    def driven(self) -> cpu.Course:
        """The course that the gradient runs through."""
        return self.traces if self.estimator.kind == target.TRACE else self.real


def lif_fused(
    current: Tensor,
    cell: Cell,
    state: LifState,
    rule: Rule,
    gradient: SpikeGradient,
    statistics: Statistics,
    affine: tuple[Tensor, Tensor] | None,
) -> LifResult:
    """:func:`lif_reference` by the fused kernels."""
    second = cell.second is not None
    # The trace's gain is a coefficient of its own: autograd leads its gradient on to those that it is made of.
    # Without a trace any numbers may stand in its place.
    gain = trace_gain(cell) if gradient.uses_trace else cell.threshold.detach()
    coefficients = cell.beta, cell.threshold, gain, *(cell.second or ())
    learn = [c.requires_grad for c in coefficients]
    if gradient.uses_trace:  # the trace knows spikes through its gain alone
        learn = [some and i not in (cpu.THRESHOLD, cpu.FROM_SPIKE) for i, some in enumerate(learn)]
    differentiates = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (current, *coefficients, *state)
    )
    alive = statistics.alive
    settings = Settings(
        rule, gradient, statistics.channels, statistics.joined, learn, differentiates,
        None if alive is None else alive.sum(0).to(torch.int64), spikes_before(state, cell), state.waiting, affine,
    )  # fmt: skip
    start = stacked(state.v, state.w)
    if gradient.uses_trace:
        start = start.detach()
    trace_start = None if state.trace is None else stacked(state.trace, state.w_trace)
    if torch.compiler.is_compiling():
        from tbnn.ops.lif.operator import lif_traced as run
    else:
        run = _Lif.apply
    out, last, trace_last, spikes, waiting, moments = run(
        current, torch.stack(coefficients), start, trace_start, settings
    )
    v, w = last.unbind(0) if second else (last.squeeze(0), None)
    trace = w_trace = None
    if trace_last is not None:
        trace, w_trace = trace_last.unbind(0) if second else (trace_last.squeeze(0), None)
    return LifResult(out, LifState(v, trace, w, w_trace, spikes, waiting), moments)


def spikes_before(state: LifState, cell: Cell) -> Tensor | None:
    """The spikes before the first step: those of the state, or those that its level tells; None for plain neurons."""
    if state.spikes is not None or cell.second is None:
        return state.spikes
    constants, (v, _, w, *_) = cell.detach(), state.detach()
    return spikes_of(effective(v, w, constants), constants.threshold, None, None)


def stacked(v: Tensor, w: Tensor | None) -> Tensor:
    """States (B, F) as the start of a course, (1 or 2, 1, B, F)."""
    return (v.unsqueeze(0) if w is None else torch.stack([v, w])).unsqueeze(1)


class _Lif(torch.autograd.Function):
    """Both passes as they are called outside of a compiler: a custom operator costs more a call."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, coefficients: Tensor, start: Tensor, trace_start: Tensor | None, settings: Settings
    ) -> Passed:
        passed, saved = forward(current, coefficients, start, trace_start, settings)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        constants = (passed.last if trace_start is not None else None, *passed[3:])
        ctx.mark_non_differentiable(*(t for t in constants if t is not None))
        return passed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved, settings = Saved(*ctx.saved_tensors), ctx.settings
        by_trace = saved.traces is not None
        learns = ctx.needs_input_grad[1] and any(settings.learn)
        dcurrent, dcoefficients, dstart = backward_pass(grads[0], grads[2 if by_trace else 1], saved, settings, learns)
        return dcurrent, dcoefficients, None if by_trace else dstart, dstart if by_trace else None, None


def forward(
    current: Tensor, coefficients: Tensor, start: Tensor, trace_start: Tensor | None, settings: Settings
) -> tuple[Passed, Saved]:
    """The scan forwards in time, and what :func:`backward_pass` needs of it."""
    rule, by_trace = settings.rule, trace_start is not None
    current, start = current.contiguous(), start.contiguous()
    _, batch, features = current.shape
    shape = (start.shape[0], *current.shape)
    states, spikes = reused(shape, current.dtype), reused(current.shape, current.dtype)
    traces = reused(shape, current.dtype) if by_trace else None
    trace_start = None if trace_start is None else trace_start.contiguous()
    saved = Saved(coefficients, start, states, trace_start, traces, spikes, current, None)
    run = _run(saved, settings)
    waiting = None if settings.waiting is None else settings.waiting.clone(memory_format=torch.contiguous_format)
    counter = np.empty((1, 1), run.real.start.dtype) if waiting is None else as_numpy(waiting)
    arguments = as_numpy(current), run.layer, run.real, run.traces, run.spikes, counter
    sums = None
    if needs_sums(settings):
        sums = cpu.scan_sums(*arguments, run.estimator, settings.gradient.stats == "step")
    else:
        cpu.scan(*arguments, cpu.rows_per_task(batch, features, run.layer.winners), work=current.numel())
    out, moments = spikes, None
    if settings.gradient.emit == "denoised":
        out = reused(current.shape, current.dtype) if rule.gated else out
        moments = _emit_denoised(run, out, sums, settings)
    last_spikes = None
    if rule.gated and settings.spikes is not None:
        last_spikes = _last(spikes[None], settings.spikes[None, None], settings).squeeze(0)
    trace_last = _last(traces, trace_start, settings) if traces is not None and trace_start is not None else None
    saved = saved._replace(
        spikes=spikes if rule.gated else None,
        current=current if reads_current(settings) else None,
        sums=None if sums is None else torch.from_numpy(sums),
    )
    return Passed(out, _last(states, start, settings), trace_last, last_spikes, waiting, moments), saved


def backward_pass(
    dout: Tensor | None, dlast: Tensor | None, saved: Saved, settings: Settings, learns: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The scan backwards: the gradients of the current, of the coefficients if it ``learns`` some, and of the start.

    dout (T, B, F) and dlast (1 or 2, B, F) are those of what left and of the last states; with a trace, of its.
    """
    run = _run(saved, settings)
    _, steps, batch, features = saved.states.shape
    dout = saved.states.new_zeros((1, 1, features)) if dout is None else unexpanded(dout)
    carry = torch.zeros_like(saved.start[:, 0]) if dlast is None else dlast.clone(memory_format=torch.contiguous_format)
    learn = np.zeros(cpu.COEFFICIENTS, bool)
    if learns:
        learn[: len(settings.learn)] = settings.learn
    totals = np.zeros((len(saved.coefficients) if learns else 0, batch, features), run.real.start.dtype)
    current = np.empty((0, batch, features), totals.dtype) if saved.current is None else as_numpy(saved.current)
    dcurrent = reused((steps, batch, features), carry.dtype)
    backward.scan_backward(
        run.estimator, run.layer, run.real, run.driven, run.spikes, current, as_numpy(dout),
        _factors(dout, as_numpy(saved.sums), run, settings), learn,
        cpu.rows_per_task(batch, features), as_numpy(carry), totals, as_numpy(dcurrent), work=dcurrent.numel(),
    )  # fmt: skip
    dcoefficients = None
    if learns:
        dcoefficients = torch.from_numpy(totals).sum(1)
        dcoefficients[cpu.GAIN] /= saved.coefficients[cpu.GAIN]
    return dcurrent, dcoefficients, carry.unsqueeze(1)


def _run(saved: Saved, settings: Settings) -> _Run:
    rule, gradient = settings.rule, settings.gradient
    _, steps, batch, features = saved.states.shape
    lengths = np.full(batch, steps) if settings.lengths is None else as_numpy(settings.lengths)
    winners = rule.winners if rule.winners is not None and rule.winners < features else 0
    coefficients, surrogate = as_numpy(saved.coefficients), gradient.surrogate
    kind = target.SURROGATE
    if gradient.gradient == "ddt":
        kind = target.TRACE if gradient.uses_trace else target.SOFT
    nothing = np.empty((1, 0, *saved.start.shape[2:]), NUMPY_DTYPES[saved.start.dtype])
    empty = cpu.Course(nothing, nothing)
    traces = fired = empty
    if saved.trace_start is not None and saved.traces is not None:
        traces = cpu.Course(as_numpy(saved.trace_start), as_numpy(saved.traces))
    if settings.spikes is not None or saved.spikes is not None:
        before = nothing if settings.spikes is None else as_numpy(settings.spikes[None, None])
        fired = cpu.Course(before, nothing if saved.spikes is None else as_numpy(saved.spikes[None]))
    return _Run(
        cpu.Layer(coefficients, cpu.RESETS[rule.reset], rule.refractory, winners, lengths),
        cpu.Course(as_numpy(saved.start), as_numpy(saved.states)),
        traces,
        fired,
        target.Estimator(
            kind, surrogate.code, surrogate.parameter, surrogate.extra, gradient.floor, 1 / (1 + rule.refractory)
        ),
    )


def _last(steps: Tensor, start: Tensor, settings: Settings) -> Tensor:
    """The state after each sequence's last step, (1 or 2, B, F)."""
    lengths = settings.lengths
    if lengths is None:
        return steps.select(1, -1).clone(memory_format=torch.contiguous_format)
    last = steps[:, (lengths - 1).clamp(min=0), torch.arange(len(lengths))]
    return torch.where(lengths.unsqueeze(1) > 0, last, start[:, 0])


def reads_current(settings: Settings) -> bool:
    """Whether a gradient is a product with the current."""
    return any(settings.learn[i] for i in (cpu.FROM_CURRENT, cpu.CURRENT_GAIN) if i < len(settings.learn))


def needs_sums(settings: Settings) -> bool:
    """Whether a ridge is to be solved: for what leaves, or for the gradient."""
    gradient = settings.gradient
    if gradient.gradient == "surrogate" or settings.affine is not None:
        return False
    return gradient.emit == "denoised" or settings.differentiates


def _block_sums(dout: Tensor | None, pair: cpu.Array, run: _Run, settings: Settings) -> cpu.Array:
    """Σx, Σq, Σq², Σxq, n and, given dout, ΣG, ΣGq of every block: (5 or 7, 1 or T, blocks across features).

    ``pair`` holds the first four as :func:`cpu.scan_sums` gives them.
    """
    gradient = settings.gradient
    steps, _, features = run.real.steps[0].shape
    by_step = gradient.stats == "step"
    blocks = settings.channels if gradient.per_channel and not by_step else 1
    alive = np.minimum(run.layer.lengths, steps)
    count = np.count_nonzero(np.arange(steps)[:, None] < alive, axis=1)[:, None] if by_step else alive.sum()
    parts = [pair] if dout is None else [pair, target.output_sums(
        as_numpy(dout), run.estimator, run.layer, run.real, run.driven, run.spikes, by_step,
        cpu.rows_for_sums(run.real.steps.shape[2], features),
    )]  # fmt: skip
    sums = [part.reshape(*part.shape[:2], blocks, -1).sum(-1) for part in parts]
    n = np.broadcast_to(np.asarray(count * (features / blocks)), sums[0].shape[1:])[None]
    together = np.concatenate([sums[0], n, *sums[1:]])
    if settings.joined:
        distributed.all_reduce(torch.from_numpy(together))
    together[4] = np.maximum(together[4], 1)  # a block in which every sequence has ended
    return together


def _spread(per_block: cpu.Array, run: _Run) -> cpu.Array:
    """(..., blocks across features) -> (..., F), in the dtype of the states."""
    steps = run.real.steps
    return np.ascontiguousarray(np.repeat(per_block, steps.shape[-1] // per_block.shape[-1], axis=-1), steps.dtype)


def _factors(dout: Tensor, pair: cpu.Array | None, run: _Run, settings: Settings) -> cpu.Array:
    """k0, kG, kx, kq of every neuron (and step): (4, 1 or T, F)."""
    gradient = settings.gradient
    if settings.affine is not None:
        slope = as_numpy(settings.affine[0]).reshape(1, -1)
        factors = np.zeros((4, *slope.shape))
        factors[1] = slope
        return _spread(factors, run)
    if pair is None:  # a bare surrogate
        steps = run.real.steps
        factors = np.zeros((4, 1, steps.shape[-1]), steps.dtype)
        factors[1] = gradient.scale
        return factors
    x, q, qq, xq, n, g, gq = _block_sums(dout, pair, run, settings)
    back = closed_form.gradient(Sums(n, x, q, qq, xq), g, gq, gradient.lam, "affine", gradient.differentiate_stats)
    factors = np.stack([back.x_const + back.q_const, back.s, back.r, back.r - 2 * back.s * back.r])
    return _spread(gradient.scale * factors, run)


def _emit_denoised(run: _Run, out: Tensor, pair: cpu.Array | None, settings: Settings) -> Tensor | None:
    """Fill out with a·q + b, which may lie in the place of the spikes; the block moments, unless a and b were given."""
    moments = None
    if pair is None:
        constants = settings.affine if settings.affine is not None else ()
        a, b = (as_numpy(t).reshape(1, -1) for t in constants)
    else:
        x, q, qq, xq, n = _block_sums(None, pair, run, settings)
        ridge = closed_form.solve(Sums(n, x, q, qq, xq), settings.gradient.lam, "affine")
        a, b = ridge.s, ridge.offset
        moments = torch.from_numpy(np.stack([x / n, q / n, xq / n]).reshape(3, -1)).to(out.dtype)
    spikes = run.spikes.steps[0]
    target.emit_affine(spikes, _spread(a, run), _spread(b, run), run.layer.lengths, as_numpy(out), work=spikes.size)
    return moments
