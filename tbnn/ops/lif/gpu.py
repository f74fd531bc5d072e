"""Spiking neurons on a GPU: Triton's kernels and the autograd function around them.

Nothing here waits for the device: the sums of the DDT, its closed form and the factors of the backward scan stay there.
Sums run in float32 over a few hundred rows and in float64 from there, always in the same order: no atomics, so two runs
give the same bits. Currents and results are float32, bfloat16 or float16, states and statistics float32 within a call.

Parity: the kernels round after every operation, as torch does, so spikes of float32 currents equal the reference's. In
bfloat16 and float16 the reference keeps its states in that dtype, this keeps float32 and rounds when a call ends: what
agrees bit for bit is the float32 run of the same numbers, where β, θ and the currents are exact in both.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import gpu as ddt_gpu
from tbnn.ops.ddt.gpu import launch
from tbnn.ops.kernels import unexpanded
from tbnn.ops.lif.cell import Cell, Rule, trace_gain
from tbnn.ops.lif.gpu_kernels import scan
from tbnn.ops.lif.gpu_scan import (
    BETA,
    FROM_SPIKE,
    GAIN,
    INTEGRATE,
    RESETS,
    THRESHOLD,
    Saved,
    Settings,
    counted,
    part_sums,
    ridge_factors,
    scale_alone,
    scan_back,
    scan_forward,
    spread,
    start_of,
    tile_for,
    wide,
)
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.reference import LifResult, Statistics, lif_reference
from tbnn.ops.lif.state import LifState


def lif_gpu(
    current: Tensor,
    cell: Cell,
    state: LifState,
    rule: Rule,
    gradient: SpikeGradient,
    statistics: Statistics,
    affine: tuple[Tensor, Tensor] | None,
) -> LifResult:
    """:func:`lif_reference` by Triton's kernels.

    With ``winners`` neurons of a sample compete in every step, which no tile of neurons can decide alone: it runs the
    reference. So does a step of 2³¹ values or more.
    """
    samples, features = current.shape[1:]
    if has_no_kernel(rule, samples, features):
        return lif_reference(current, cell, state, rule, gradient, statistics, affine)
    affine = affine if gradient.emit == "denoised" else None
    *tensors, settings = arguments(cell, state, rule, gradient, statistics, (current,))
    out, last, trace_last, spikes, waiting, moments = _Lif.apply(current, *tensors, settings._replace(affine=affine))
    return result_of(out, last, trace_last, spikes, waiting, moments, cell, rule)


def has_no_kernel(rule: Rule, samples: int, features: int) -> bool:
    """Whether neurons compete, or a step has 2³¹ values or more."""
    return (rule.winners is not None and rule.winners < features) or samples * features >= 2**31


def arguments(
    cell: Cell,
    state: LifState,
    rule: Rule,
    gradient: SpikeGradient,
    statistics: Statistics,
    inputs: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor, Tensor | None, Settings]:
    """Coefficients (3 or 10, F), start and start of the trace (1 or 2, B, F), and the rest, of neurons behind ``inputs``."""
    by_trace = gradient.uses_trace
    gain = trace_gain(cell) if by_trace else torch.ones_like(cell.beta)
    parts = cell.beta, cell.threshold, gain, *(cell.second or ())
    learn = sum(1 << i for i, c in enumerate(parts) if c.requires_grad)
    if by_trace:  # the trace knows spikes through its gain alone
        learn &= ~(1 << THRESHOLD | 1 << FROM_SPIKE)
    start = _stacked(state.v, state.w)
    if by_trace:
        start = start.detach()
    trace_start = _stacked(state.trace, state.w_trace) if state.trace is not None else None
    coefficients = torch.stack(parts)
    differentiable = (*inputs, coefficients, start if trace_start is None else trace_start)
    saves = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)
    waiting = torch.zeros_like(state.v) if rule.gated and state.waiting is None else state.waiting
    lengths = None if statistics.alive is None else statistics.alive.gt(0).sum(0, dtype=torch.int32)
    settings = Settings(rule, gradient, statistics, None, lengths, learn, state.spikes, waiting, saves)
    return coefficients, start, trace_start, settings


def result_of(
    out: Tensor,
    last: Tensor,
    trace_last: Tensor | None,
    spikes: Tensor | None,
    waiting: Tensor | None,
    moments: Tensor | None,
    cell: Cell,
    rule: Rule,
) -> LifResult:
    """What leaves, the last states (1 or 2, B, F) taken apart."""
    second = cell.second is not None
    v, w = last.unbind(0) if second else (last.squeeze(0), None)
    trace = w_trace = None
    if trace_last is not None:
        trace, w_trace = trace_last.unbind(0) if second else (trace_last.squeeze(0), None)
    return LifResult(out, LifState(v, trace, w, w_trace, spikes, waiting if rule.refractory > 0 else None), moments)


def integrate_gpu(current: Tensor, beta: Tensor, v0: Tensor) -> Tensor:
    """``v[t] = β·v[t−1] + I[t]``: current (T, B, F), beta (F,), v0 (B, F) -> v (T, B, F)."""
    saves = torch.is_grad_enabled() and beta.requires_grad
    v: Tensor = _Integrate.apply(current, beta, v0, saves)
    return v


def _stacked(v: Tensor, w: Tensor | None) -> Tensor:
    """States (B, F) as the start of a course, (1 or 2, B, F)."""
    return v.unsqueeze(0) if w is None else torch.stack([v, w])


class _Lif(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, coefficients: Tensor, start: Tensor, trace_start: Tensor | None, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        gradient, dtype, current, constants = settings.gradient, current.dtype, current.contiguous(), wide(coefficients)
        spikes = torch.empty_like(current)
        # The block statistics of emit='denoised' read the states, whether or not a gradient will.
        keeps = settings.saves or (gradient.emit == "denoised" and settings.affine is None)
        before = start_of(start, trace_start, settings)
        states, traces, (last, trace_last, fired, waiting) = scan_forward(
            current, constants, before, settings.rule, settings.lengths, spikes, keeps
        )
        saved = Saved(constants, states, traces, spikes if fired is not None else None, None)
        out, moments = spikes, None
        if gradient.emit == "denoised":
            out, moments = _emit_denoised(saved, spikes, settings)
        if settings.saves:
            ctx.save_for_backward(*saved._replace(current=current if settings.reads_current else None))
        ctx.settings, ctx.dtype = settings, dtype
        ctx.set_materialize_grads(False)
        last = last.to(dtype)
        trace_last, fired, waiting = (None if t is None else t.to(dtype) for t in (trace_last, fired, waiting))
        rest = (last if traces is not None else None, fired, waiting, moments)
        ctx.mark_non_differentiable(*(t for t in rest if t is not None))
        return out, last, trace_last, fired, waiting, moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved, settings = Saved(*ctx.saved_tensors), ctx.settings
        by_trace, features = saved.traces is not None, saved.states.shape[-1]
        dout = saved.states.new_zeros((1, 1, features)) if grads[0] is None else unexpanded(grads[0])
        dlast = grads[2] if by_trace else grads[1]
        learn = settings.learn if ctx.needs_input_grad[1] else 0
        dcurrent, dstart, totals = scan_back(
            saved, saved.states.shape[1] - 1, dout, dlast, _factors(saved, dout, settings), learn, settings,
            settings.kind, ctx.dtype,
        )  # fmt: skip
        dcoefficients = None
        if learn:
            totals[GAIN] /= saved.coefficients[GAIN]
            dcoefficients = totals.to(ctx.dtype)
        dstart = dstart.to(ctx.dtype)
        return dcurrent, dcoefficients, None if by_trace else dstart, dstart if by_trace else None, None


class _Integrate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, beta: Tensor, v0: Tensor, saves: bool) -> Tensor:
        steps, batch, features = current.shape
        current, start, tile = current.contiguous(), wide(v0.unsqueeze(0)), tile_for(batch, features)
        v, last = torch.empty_like(current), torch.empty_like(start)
        states = start.new_empty((1, steps + 1 if saves else 0, batch, features))
        constants = wide(beta).expand(3, features).contiguous()
        launch(
            scan, tile.programs(batch, features),
            current, constants, start, None, None, None, None, v, states, None, last, None, steps, batch, features, 0,
            RESET=RESETS["none"], SECOND=False, WITH_TRACE=False, GATED=False, RAGGED=False, SAVES=saves, SPIKES=False,
            BB=tile.samples, BF=tile.neurons, num_warps=tile.warps,
        )  # fmt: skip
        ctx.save_for_backward(constants, states)
        ctx.steps = steps
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        constants, states = ctx.saved_tensors
        saved = Saved(constants, states, None, None, None)
        settings = Settings(Rule("none"), SpikeGradient("surrogate"), Statistics(1), None, None, 0, None, None, True)
        learn = 1 << BETA if ctx.needs_input_grad[1] else 0
        factors, dtype = constants.new_zeros((4, 1, states.shape[-1])), grads[0].dtype
        dcurrent, carry, totals = scan_back(
            saved, ctx.steps, unexpanded(grads[0]), None, factors, learn, settings, INTEGRATE, dtype
        )
        return dcurrent, totals[BETA].to(dtype) if learn else None, carry[0].to(dtype), None


def _block_sums(saved: Saved, dout: Tensor | None, settings: Settings) -> Tensor:
    """n, Σx, Σq, Σq², Σxq and, given dout, ΣG, ΣGq of every block: float64 (5 or 7, 1 or T, blocks across features)."""
    _, rows, batch, features = saved.states.shape
    return counted(part_sums(saved, dout, settings), settings, (rows - 1, batch, features))


def _factors(saved: Saved, dout: Tensor, settings: Settings) -> Tensor:
    """k0, kG, kx, kq of every neuron (and step): (4, 1 or T, F). As ``closed_form.gradient``, on the device."""
    gradient, features = settings.gradient, saved.states.shape[-1]
    if gradient.gradient == "surrogate":
        return scale_alone(saved.coefficients, gradient)
    if settings.affine is not None:
        slope = settings.affine[0].detach().reshape(1, 1, -1).double()
        return spread(
            torch.cat([torch.zeros_like(slope), slope, torch.zeros_like(slope), torch.zeros_like(slope)]), features
        )
    return ridge_factors(_block_sums(saved, dout, settings), gradient, features)


def _emit_denoised(saved: Saved, spikes: Tensor, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """a·q + b, and the block moments unless a and b were given."""
    moments, features = None, spikes.shape[-1]
    if settings.affine is not None:
        a, b = (spread(t.detach().reshape(1, -1), features) for t in settings.affine)
    else:
        n, x, q, _, xq = sums = _block_sums(saved, None, settings)
        a, b = (spread(part, features) for part in ddt_gpu.solve(sums, settings.gradient.lam, "affine"))
        moments = torch.stack([x / n, q / n, xq / n]).reshape(3, -1).to(spikes.dtype)
    out = a.unsqueeze(1) * spikes + b.unsqueeze(1)
    if settings.statistics.alive is not None:
        out = out * settings.statistics.alive.unsqueeze(2)
    return out.to(spikes.dtype), moments
