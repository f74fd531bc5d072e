"""Spiking neurons on a GPU: Triton's kernels and the autograd function around them.

Nothing here waits for the device: the sums of the DDT, its closed form and the factors of the backward scan stay there.
Sums run in float32 over a few hundred rows and in float64 from there, always in the same order: no atomics, so two runs
give the same bits. Currents and results are float32, bfloat16 or float16, states and statistics float32 within a call.

Parity: the kernels round after every operation, as torch does, so spikes of float32 currents equal the reference's. In
bfloat16 and float16 the reference keeps its states in that dtype, this keeps float32 and rounds when a call ends: what
agrees bit for bit is the float32 run of the same numbers, where β, θ and the currents are exact in both.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import gpu as ddt_gpu
from tbnn.ops.ddt.gpu import launch
from tbnn.ops.kernels import unexpanded
from tbnn.ops.lif.cell import Cell, Rule, trace_gain
from tbnn.ops.lif.gpu_backward import scan_backward
from tbnn.ops.lif.gpu_kernels import scan, target_sums
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.reference import LifResult, Statistics, lif_reference
from tbnn.ops.lif.state import LifState

KINDS = {"surrogate": 0, "soft": 1, "trace": 2}
INTEGRATE = 3
RESETS = {"subtract": 0, "zero": 1, "none": 2}
# Rows of the coefficients; see gpu_kernels.py.
BETA, THRESHOLD, GAIN, FROM_SPIKE = 0, 1, 2, 6

LANES = 256  # neurons of a program, two a thread
FEW_LANES = 64  # of a layer so small that programs would be too few
FEW = 1 << 16  # neurons and samples
ROWS = 16  # turns of a program that sums


class _Settings(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    rule: Rule
    gradient: SpikeGradient
    statistics: Statistics
    affine: tuple[Tensor, Tensor] | None
    lengths: Tensor | None  # (B,) int32
    learn: int  # a bit for each coefficient whose gradient is wanted
    spikes: Tensor | None  # (B, F) before the first step, of gated neurons
    waiting: Tensor | None  # (B, F)
    saves: bool  # whether a backward pass may follow


class _Saved(NamedTuple):
    """What the backward pass reads; None where the neuron has no such thing."""

    coefficients: Tensor  # (3 or 10, F)
    states: Tensor  # (1 or 2, T + 1, B, F)
    traces: Tensor | None
    spikes: Tensor | None  # (T, B, F) of gated neurons: no level tells them
    current: Tensor | None  # where a gradient reads it


class Tile(NamedTuple):
    """How much a program holds."""

    samples: int
    neurons: int

    @property
    def warps(self) -> int:
        """Two values a thread."""
        return max(1, min(4, self.samples * self.neurons // 64))

    def programs(self, rows: int, features: int) -> int:
        """How many programs cover rows × features."""
        return -(-rows // self.samples) * -(-features // self.neurons)


def tile_for(rows: int, features: int) -> Tile:
    """Neurons side by side, so that memory is read in runs; samples where neurons are few."""
    lanes = FEW_LANES if rows * features < FEW else LANES
    neurons = min(triton.next_power_of_2(features), lanes)
    return Tile(min(triton.next_power_of_2(rows), lanes // neurons), neurons)


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
    if (rule.winners is not None and rule.winners < features) or samples * features >= 2**31:
        return lif_reference(current, cell, state, rule, gradient, statistics, affine)
    second, by_trace = cell.second is not None, gradient.uses_trace
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
    inputs = (current, coefficients, start) if trace_start is None else (current, coefficients, trace_start)
    saves = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    waiting = torch.zeros_like(state.v) if rule.gated and state.waiting is None else state.waiting
    settings = _Settings(
        rule, gradient, statistics, affine if gradient.emit == "denoised" else None, _lengths(statistics), learn,
        state.spikes, waiting, saves,
    )  # fmt: skip
    out, last, trace_last, spikes, waiting, moments = _Lif.apply(current, coefficients, start, trace_start, settings)
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


def _lengths(statistics: Statistics) -> Tensor | None:
    return None if statistics.alive is None else statistics.alive.gt(0).sum(0, dtype=torch.int32)


def _wide(t: Tensor) -> Tensor:
    """Float32, contiguous: what the kernels take."""
    return t.detach().float().contiguous()


class _Lif(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, coefficients: Tensor, start: Tensor, trace_start: Tensor | None, settings: _Settings
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        rule, gradient = settings.rule, settings.gradient
        steps, batch, features = current.shape
        dtype, current, constants = current.dtype, current.contiguous(), _wide(coefficients)
        spikes = torch.empty_like(current)
        # The block statistics of emit='denoised' read the states, whether or not a gradient will.
        keeps = settings.saves or (gradient.emit == "denoised" and settings.affine is None)
        course = (start.shape[0], steps + 1 if keeps else 0, batch, features)
        states = current.new_empty(course, dtype=torch.float32)
        traces = None if trace_start is None else torch.empty_like(states)
        last = torch.empty_like(start, dtype=torch.float32, memory_format=torch.contiguous_format)
        trace_last = None if trace_start is None else torch.empty_like(last)
        fired = (
            None if settings.spikes is None else settings.spikes.float().clone(memory_format=torch.contiguous_format)
        )
        waiting = (
            None if settings.waiting is None else settings.waiting.float().clone(memory_format=torch.contiguous_format)
        )
        tile = tile_for(batch, features)
        launch(
            scan, tile.programs(batch, features),
            current, constants, _wide(start), None if trace_start is None else _wide(trace_start), fired, waiting,
            settings.lengths, spikes, states, traces, last, trace_last, steps, batch, features, rule.refractory,
            RESET=RESETS[rule.reset], SECOND=len(start) > 1, WITH_TRACE=traces is not None, GATED=fired is not None,
            RAGGED=settings.lengths is not None, SAVES=keeps, SPIKES=True, BB=tile.samples, BF=tile.neurons,
            num_warps=tile.warps,
        )  # fmt: skip
        saved = _Saved(constants, states, traces, spikes if fired is not None else None, None)
        out, moments = spikes, None
        if gradient.emit == "denoised":
            out, moments = _emit_denoised(saved, spikes, settings)
        if settings.saves:
            reads_current = settings.learn & (1 << 5 | 1 << 7)  # from_current, current_gain
            ctx.save_for_backward(*saved._replace(current=current if reads_current else None))
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
        saved, settings = _Saved(*ctx.saved_tensors), ctx.settings
        by_trace, features = saved.traces is not None, saved.states.shape[-1]
        dout = saved.states.new_zeros((1, 1, features)) if grads[0] is None else unexpanded(grads[0])
        dlast = grads[2] if by_trace else grads[1]
        learn = settings.learn if ctx.needs_input_grad[1] else 0
        dcurrent, dstart, totals = _scan_back(
            saved, saved.states.shape[1] - 1, dout, dlast, _factors(saved, dout, settings), learn, settings,
            _kind(settings.gradient), ctx.dtype,
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
        current, start, tile = current.contiguous(), _wide(v0.unsqueeze(0)), tile_for(batch, features)
        v, last = torch.empty_like(current), torch.empty_like(start)
        states = start.new_empty((1, steps + 1 if saves else 0, batch, features))
        constants = _wide(beta).expand(3, features).contiguous()
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
        saved = _Saved(constants, states, None, None, None)
        settings = _Settings(Rule("none"), SpikeGradient("surrogate"), Statistics(1), None, None, 0, None, None, True)
        learn = 1 << BETA if ctx.needs_input_grad[1] else 0
        factors, dtype = constants.new_zeros((4, 1, states.shape[-1])), grads[0].dtype
        dcurrent, carry, totals = _scan_back(
            saved, ctx.steps, unexpanded(grads[0]), None, factors, learn, settings, INTEGRATE, dtype
        )
        return dcurrent, totals[BETA].to(dtype) if learn else None, carry[0].to(dtype), None


def _scan_back(
    saved: _Saved,
    steps: int,
    dout: Tensor,
    dlast: Tensor | None,
    factors: Tensor,
    learn: int,
    settings: _Settings,
    kind: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """dcurrent (T, B, F), dstart (1 or 2, B, F), dcoefficients (3 or 10, F), all but the first float32."""
    count, _, batch, features = saved.states.shape
    tile, rule, surrogate = tile_for(batch, features), settings.rule, settings.gradient.surrogate
    dcurrent = dout.new_empty((steps, batch, features), dtype=dtype)
    dstart = saved.states.new_empty((count, batch, features))
    tiles = -(-batch // tile.samples)
    totals = dstart.new_empty((len(saved.coefficients), tiles if learn else 0, features))
    launch(
        scan_backward, tile.programs(batch, features),
        saved.coefficients, saved.states, saved.traces, saved.spikes,
        None if settings.spikes is None else _wide(settings.spikes), saved.current, dout, *_strides(dout), factors,
        features if factors.shape[1] > 1 else 0, factors.shape[1] * features, settings.lengths,
        None if dlast is None else _wide(dlast), dstart, totals, dcurrent, steps, batch, features,
        surrogate.parameter, surrogate.area, settings.gradient.floor, _ceiling(rule),
        KIND=kind, SHAPE=surrogate.code, RESET=RESETS[rule.reset], SECOND=count > 1, GATED=saved.spikes is not None,
        RAGGED=settings.lengths is not None, LEARN=learn, HAS_LAST=dlast is not None,
        BB=tile.samples, BF=tile.neurons, num_warps=tile.warps,
    )  # fmt: skip
    return dcurrent, dstart, totals.sum(1)


def _kind(gradient: SpikeGradient) -> int:
    return KINDS[gradient.target if gradient.gradient == "ddt" else "surrogate"]


def _ceiling(rule: Rule) -> float:
    return 1 / (1 + rule.refractory)


def _strides(grad: Tensor) -> tuple[int, int]:
    """Of a gradient (1 or T, 1 or B, F), 0 where there is one for all."""
    steps, batch, features = grad.shape
    return batch * features if steps > 1 else 0, features if batch > 1 else 0


def _block_sums(saved: _Saved, dout: Tensor | None, settings: _Settings) -> Tensor:
    """n, Σx, Σq, Σq², Σxq and, given dout, ΣG, ΣGq of every block: float64 (5 or 7, 1 or T, blocks across features)."""
    gradient, statistics, surrogate = settings.gradient, settings.statistics, settings.gradient.surrogate
    count, rows, batch, features = saved.states.shape
    steps, by_step = rows - 1, gradient.stats == "step"
    groups, span = (steps, batch) if by_step else (1, steps * batch)
    tile = tile_for(span, features)
    chunk = tile.samples * ROWS
    chunks = -(-span // chunk)
    parts = saved.states.new_empty((4 if dout is None else 6, groups * chunks, features))
    launch(
        target_sums, groups * chunks * -(-features // tile.neurons),
        saved.coefficients, saved.states, saved.traces, saved.spikes, dout, *((0, 0) if dout is None else _strides(dout)),
        settings.lengths, parts, steps, batch, features, span, chunk, chunks,
        surrogate.parameter, surrogate.area, gradient.floor, _ceiling(settings.rule),
        KIND=_kind(gradient), SHAPE=surrogate.code, SECOND=count > 1, GATED=saved.spikes is not None,
        RAGGED=settings.lengths is not None, WITH_GRAD=dout is not None, BB=tile.samples, BF=tile.neurons,
        num_warps=tile.warps,
    )  # fmt: skip
    blocks = statistics.channels if gradient.per_channel and not by_step else 1
    sums = parts.reshape(len(parts), groups, chunks, blocks, -1).sum((2, 4), dtype=torch.float64)
    alive = sums.new_full((steps,), batch) if statistics.alive is None else statistics.alive.sum(1, dtype=torch.float64)
    n = (alive if by_step else alive.sum(0, keepdim=True)) * (features // blocks)
    sums = torch.cat([n[None, :, None].expand(1, groups, blocks), sums])
    if statistics.joined:
        distributed.all_reduce(sums)
    sums[0].clamp_(min=1)  # a block in which every sequence has ended
    return sums


def _spread(per_block: Tensor, features: int) -> Tensor:
    """(..., blocks across features) -> (..., F), float32."""
    wide = per_block.unsqueeze(-1).expand(*per_block.shape, features // per_block.shape[-1])
    return wide.reshape(*per_block.shape[:-1], features).float()


def _factors(saved: _Saved, dout: Tensor, settings: _Settings) -> Tensor:
    """k0, kG, kx, kq of every neuron (and step): (4, 1 or T, F). As ``closed_form.gradient``, on the device."""
    gradient, features = settings.gradient, saved.states.shape[-1]
    if gradient.gradient == "surrogate":
        return saved.states.new_full((4, 1, features), gradient.scale)  # of which kG alone is read
    if settings.affine is not None:
        slope = settings.affine[0].detach().reshape(1, 1, -1).double()
        return _spread(
            torch.cat([torch.zeros_like(slope), slope, torch.zeros_like(slope), torch.zeros_like(slope)]), features
        )
    *sums, g, gq = _block_sums(saved, dout, settings)
    s, r, x_const, q_const = ddt_gpu.gradient(sums, g, gq, gradient.lam, "affine", gradient.differentiate_stats)
    factors = torch.stack([x_const + q_const, s, r, r - 2 * s * r])
    return _spread(gradient.scale * factors, features)


def _emit_denoised(saved: _Saved, spikes: Tensor, settings: _Settings) -> tuple[Tensor, Tensor | None]:
    """a·q + b, and the block moments unless a and b were given."""
    moments, features = None, spikes.shape[-1]
    if settings.affine is not None:
        a, b = (_spread(t.detach().reshape(1, -1), features) for t in settings.affine)
    else:
        n, x, q, _, xq = sums = _block_sums(saved, None, settings)
        a, b = (_spread(part, features) for part in ddt_gpu.solve(sums, settings.gradient.lam, "affine"))
        moments = torch.stack([x / n, q / n, xq / n]).reshape(3, -1).to(spikes.dtype)
    out = a.unsqueeze(1) * spikes + b.unsqueeze(1)
    if settings.statistics.alive is not None:
        out = out * settings.statistics.alive.unsqueeze(2)
    return out.to(spikes.dtype), moments
