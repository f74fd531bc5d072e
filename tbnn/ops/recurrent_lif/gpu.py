"""A recurrent layer on a GPU: Triton's kernels and the autograd function around them.

Kept for the backward pass: one bit a spike, and the states of every step, float32. A bare surrogate goes back in the same
launches as forward; the DDT, whose statistics run over a step's whole batch and neurons, takes two launches a step.
Everything is summed in a fixed order and without atomics, so two runs give the same bits.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.bits import WORD_BITS, pack_bits, unpack_bits, words_for
from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.gpu import launch
from tbnn.ops.kernels import unexpanded, untraced
from tbnn.ops.lif.cell import Cell, Rule, trace_gain
from tbnn.ops.lif.gpu_kernels import target_sums
from tbnn.ops.lif.gpu_scan import FROM_SPIKE, GAIN, KINDS, RESETS, ROWS, THRESHOLD, tile_for
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.state import LifState
from tbnn.ops.recurrent_lif.gpu_backward import gradient_sums, ridge_back, surrogate_back
from tbnn.ops.recurrent_lif.gpu_kernels import recurrent_scan
from tbnn.ops.recurrent_lif.reference import Feedback, RecurrentResult, recurrent_lif_reference

SAMPLES = 16  # of a program: the least that tensor cores take
NEURONS = 128  # of a tile
FEW_NEURONS = 64  # of a tile, where programs share a sample's neurons
ALONE = 1024  # neurons up to which a program keeps its samples for all steps; an estimate, not measured
LARGEST = 127  # of the weights' values: int8, either sign
UNPACKED = 1 << 24  # spikes at once, for the weights' gradient
CURRENT_BITS = 1 << 5 | 1 << 7  # coefficients whose gradient reads the current: from_current and current_gain


class Tiling(NamedTuple):
    """How samples and neurons are shared among programs, and steps among launches."""

    neurons: int
    """Of a tile."""
    wide: int
    """Neurons in whole tiles."""
    span: int
    """Neurons of a program."""
    steps: int
    """Of a launch."""
    batch: int

    @property
    def programs(self) -> int:
        """How many there are."""
        return -(-self.batch // SAMPLES) * -(-self.wide // self.span)

    @property
    def options(self) -> dict[str, int]:
        """What a kernel is compiled with."""
        return {"BM": SAMPLES, "BN": self.neurons, "num_warps": max(1, self.neurons // 16)}

    def shared(self) -> "Tiling":
        """A program a tile."""
        return self._replace(span=self.neurons)


def tiling_for(steps: int, batch: int, features: int, delay: int) -> Tiling:
    """All steps in one launch where neurons are few, else ``delay`` steps, which need no spikes of one another."""
    alone = features <= ALONE
    neurons = max(WORD_BITS, min(NEURONS if alone else FEW_NEURONS, triton.next_power_of_2(features)))
    wide = -(-features // neurons) * neurons
    return Tiling(neurons, wide, wide if alone else neurons, steps if alone else min(delay, steps), batch)


class _Settings(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    feedback: Feedback
    rule: Rule
    gradient: SpikeGradient
    lengths: Tensor | None  # (B,) int32
    learn: int  # a bit for each coefficient whose gradient is wanted
    spikes: Tensor | None  # (B, N) before the first step, of gated neurons
    waiting: Tensor | None
    saves: bool  # whether a backward pass may follow


class _Saved(NamedTuple):
    """What the backward pass reads; None where there is no such thing."""

    coefficients: Tensor  # (3 or 10, N)
    states: Tensor  # (1 or 2, T + 1, B, N)
    traces: Tensor | None
    words: Tensor  # (delay + T, B, wide/32)
    current: Tensor | None  # all that arrived, where a gradient reads it
    values: Tensor  # int8 (wide, wide)
    weight: Tensor


@untraced
def recurrent_lif_gpu(
    current: Tensor, feedback: Feedback, cell: Cell, state: LifState, past: Tensor, rule: Rule, gradient: SpikeGradient,
    lengths: Tensor | None = None,
) -> RecurrentResult:  # fmt: skip
    """:func:`tbnn.ops.recurrent_lif.reference.recurrent_lif_reference` by Triton's kernels, in float32.

    It runs the reference with ``winners``, where neurons of a sample compete; with values beyond ±127, which int8 does not
    hold; and with steps of 2³¹ values or more.
    """
    batch, features = current.shape[1:]
    competes = rule.winners is not None and rule.winners < features
    if competes or batch * features >= 2**31 or bool((feedback.values.abs() > LARGEST).any()):
        return recurrent_lif_reference(current, feedback, cell, state, past, rule, gradient, lengths)
    by_trace, second = gradient.uses_trace, cell.second is not None
    gain = trace_gain(cell) if by_trace else torch.ones_like(cell.beta)
    parts = cell.beta, cell.threshold, gain, *(cell.second or ())
    learn = sum(1 << i for i, c in enumerate(parts) if c.requires_grad)
    if by_trace:  # the trace knows spikes through its gain alone
        learn &= ~(1 << THRESHOLD | 1 << FROM_SPIKE)
    start = _stacked(state.v, state.w)
    trace_start = None if state.trace is None else _stacked(state.trace, state.w_trace)
    sources = (
        current, torch.stack(parts), start.detach() if by_trace else start, trace_start, feedback.weight, feedback.bias, past
    )  # fmt: skip
    saves = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in sources)
    waiting = torch.zeros_like(state.v) if rule.gated and state.waiting is None else state.waiting
    ends = None if lengths is None else lengths.to(torch.int32)
    settings = _Settings(feedback.detach(), rule, gradient, ends, learn, state.spikes, waiting, saves)
    out, after, last, trace_last, spikes, waiting = _Recurrent.apply(*sources, settings)
    v, w = last.unbind(0) if second else (last.squeeze(0), None)
    trace = w_trace = None
    if trace_last is not None:
        trace, w_trace = trace_last.unbind(0) if second else (trace_last.squeeze(0), None)
    return RecurrentResult(
        out, LifState(v, trace, w, w_trace, spikes, waiting if rule.refractory > 0 else None), after
    )  # fmt: skip


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, coefficients: Tensor, start: Tensor, trace_start: Tensor | None, weight: Tensor,
        bias: Tensor | None, past: Tensor, settings: _Settings,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        steps, batch, features = current.shape
        delay, saves, feedback, rule = len(past), settings.saves, settings.feedback, settings.rule
        tiling = tiling_for(steps, batch, features, delay)
        values = torch.zeros((tiling.wide, tiling.wide), dtype=torch.int8, device=current.device)
        values[:features, :features] = feedback.values
        words = past.new_zeros((delay + steps, batch, words_for(tiling.wide)), dtype=torch.int32)
        words[:delay, :, : words_for(features)] = pack_bits(past.detach() != 0)
        states = _course(start, steps if saves else 0)
        traces = None if trace_start is None else _course(trace_start, steps if saves else 0)
        fired, waiting = (None if t is None else t.detach().clone().contiguous() for t in settings[-3:-1])
        out, current = torch.empty_like(current, memory_format=torch.contiguous_format), current.contiguous()
        total = torch.empty_like(current) if saves and settings.learn & CURRENT_BITS else None
        constants = coefficients.detach().contiguous()
        for first in range(0, steps, tiling.steps):
            launch(
                recurrent_scan, tiling.programs,
                current, constants, values, *(_flat(c) for c in feedback[2:]), states, traces, fired, waiting,
                settings.lengths, words, out, total, first, min(tiling.steps, steps - first), steps, batch, features,
                tiling.wide, tiling.span, delay, rule.refractory,
                RESET=RESETS[rule.reset], SECOND=len(start) > 1, WITH_TRACE=traces is not None, GATED=fired is not None,
                RAGGED=settings.lengths is not None, OFFSET=feedback.offset is not None, BIAS=feedback.bias is not None,
                SAVES=saves, TOTAL=total is not None, **tiling.options,
            )  # fmt: skip
        ctx.settings, ctx.tiling, ctx.delay = settings, tiling, delay
        ctx.set_materialize_grads(False)
        if saves:
            ctx.save_for_backward(constants, states, traces, words, total, values, weight.detach())
        last, trace_last = states[:, -1].clone(), None if traces is None else traces[:, -1].clone()
        after = unpack_bits(_on_their_way(words, settings.lengths, delay), tiling.wide)[..., :features].contiguous()
        constant = (last if traces is not None else None, fired, waiting)
        ctx.mark_non_differentiable(*(t for t in constant if t is not None))
        return out, after, last, trace_last, fired, waiting

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved, settings, needed = _Saved(*ctx.saved_tensors), ctx.settings, ctx.needs_input_grad
        way = _WayBack(saved, settings if needed[1] else settings._replace(learn=0), ctx.tiling, ctx.delay)
        by_trace = saved.traces is not None
        dout = saved.states.new_zeros((1, 1, saved.states.shape[-1])) if grads[0] is None else unexpanded(grads[0])
        dafter = None if grads[1] is None else grads[1].contiguous()
        way.run(dout, dafter, grads[3] if by_trace else grads[2])
        dcoefficients = None
        if way.learn:
            dcoefficients = way.totals.sum(1)
            dcoefficients[GAIN] /= saved.coefficients[GAIN]
        starts = (None, way.carry) if by_trace else (way.carry, None)
        return (
            way.dcurrent, dcoefficients, *starts, way.weight_gradient() if needed[4] else None,
            way.dcurrent.sum((0, 1)) if needed[5] else None, way.past_gradient(dafter) if needed[6] else None, None,
        )  # fmt: skip


class _WayBack:
    """The gradients of one call: dcurrent (T, B, N), carry (1 or 2, B, N) of the start, totals (3 or 10, B, N)."""

    def __init__(self, saved: _Saved, settings: _Settings, tiling: Tiling, delay: int) -> None:
        self.saved, self.settings, self.tiling, self.delay = saved, settings, tiling, delay
        self.learn, states = settings.learn, saved.states
        count, rows, self.batch, self.features = states.shape
        self.steps = rows - 1
        self.dcurrent = states.new_empty((self.steps, self.batch, self.features))
        rows = len(saved.coefficients) if self.learn else 0
        self.totals = states.new_zeros((rows, self.batch, self.features))
        self.carry = states.new_zeros((count, self.batch, self.features))
        gradient = settings.gradient
        self.shape = (
            gradient.surrogate.parameter,
            gradient.surrogate.extra,
            gradient.floor,
            1 / (1 + settings.rule.refractory),
        )
        self.options = {
            "SHAPE": gradient.surrogate.code, "SECOND": count > 1, "GATED": settings.spikes is not None,
            "RAGGED": settings.lengths is not None,
        }  # fmt: skip
        self.neuron = {"RESET": RESETS[settings.rule.reset], "LEARN": self.learn}

    def run(self, dout: Tensor, dafter: Tensor | None, dlast: Tensor | None) -> None:
        """Fill the gradients from those of the output (1 or T, 1 or B, N), of the spikes on their way, of the last state."""
        if dlast is not None:
            self.carry.copy_(dlast)
        saved, feedback, (steps, batch, features) = self.saved, self.settings.feedback, self.dcurrent.shape
        weights = saved.values, _flat(feedback.scale), _flat(feedback.offset)
        strides = batch * features if len(dout) > 1 else 0, features if dout.shape[1] > 1 else 0
        given = (*weights, dout, *strides, dafter, self.settings.lengths)
        flags = {"OFFSET": feedback.offset is not None, "HAS_AFTER": dafter is not None}
        if self.settings.gradient.gradient == "ddt":
            self._by_ridge(given, flags)
            return
        tiling, gradient = self.tiling, self.settings.gradient
        for last in range(steps - 1, -1, -tiling.steps):
            launch(
                surrogate_back, tiling.programs,
                saved.coefficients, saved.states, saved.words, _flat(self.settings.spikes), saved.current, self.carry,
                self.totals, self.dcurrent, *given, last, min(tiling.steps, last + 1), *self._sizes(tiling),
                gradient.scale, *self.shape[:2], **self.options, **self.neuron, **flags, **tiling.options,
            )  # fmt: skip

    def _by_ridge(self, given: tuple[Any, ...], flags: dict[str, bool]) -> None:
        """Two launches a step: its sums, then its neurons."""
        saved, gradient, tiling = self.saved, self.settings.gradient, self.tiling.shared()
        left, sums = torch.empty_like(self.carry[0]), self.carry.new_empty((2, tiling.programs))
        ridges, common = self._ridges(), self._sizes(tiling)
        kind = KINDS[gradient.target]
        courses = saved.coefficients, saved.states, saved.traces, saved.words
        for t in range(self.steps - 1, -1, -1):
            launch(
                gradient_sums, tiling.programs, *courses, self.dcurrent, *given, left, sums, t, *common, *self.shape,
                KIND=kind, **self.options, **flags, **tiling.options,
            )  # fmt: skip
            launch(
                ridge_back, tiling.programs, *courses, _flat(self.settings.spikes), saved.current, self.carry, self.totals,
                self.dcurrent, left, sums, ridges, self.settings.lengths, t, *common, *self.shape,
                KIND=kind, PARTS=triton.next_power_of_2(tiling.programs),
                **self.options, **self.neuron, **tiling.options,
            )  # fmt: skip

    def _sizes(self, tiling: Tiling) -> tuple[int, ...]:
        return self.steps, self.batch, self.features, tiling.wide, tiling.span, self.delay

    def _ridges(self) -> Tensor:
        """What a step's factors are made of: float64 (7, T), as :func:`ridge_back` takes them."""
        saved, settings, (steps, batch, features) = self.saved, self.settings, self.dcurrent.shape
        tile = tile_for(batch, features)
        chunk = tile.samples * ROWS
        chunks = -(-batch // chunk)
        parts = saved.states.new_empty((4, steps * chunks, features))
        spikes = None
        if settings.spikes is not None:
            spikes = unpack_bits(saved.words[self.delay :], self.tiling.wide)[..., :features].contiguous()
        launch(
            target_sums, steps * chunks * -(-features // tile.neurons),
            saved.coefficients, saved.states, saved.traces, spikes, None, 0, 0, settings.lengths, parts, steps, batch,
            features, batch, chunk, chunks, *self.shape, KIND=KINDS[settings.gradient.target], WITH_GRAD=False,
            BB=tile.samples, BF=tile.neurons, num_warps=tile.warps, **self.options,
        )  # fmt: skip
        x, q, qq, xq = parts.view(4, steps, -1).sum(2, dtype=torch.float64)
        n = torch.full_like(x, batch * features)
        if settings.lengths is not None:
            alive = torch.arange(steps, device=x.device)[:, None] < settings.lengths
            n = (alive.sum(1) * features).clamp(min=1).to(x.dtype)
        denominator = closed_form.denominator_of(n, q, qq, settings.gradient.lam, False)
        slope = closed_form.ridge_of(n, x, q, xq, denominator, False)[0]
        rows = [slope]
        for g, gq in ((1.0, 0.0), (0.0, 1.0)):
            r = closed_form.slope_gradient_of(n, q, g, gq, denominator, False)
            x_const, q_const = closed_form.constants_of(n, x, q, g, slope, r, False)
            rows += [x_const + q_const, r, r - 2 * slope * r]
        if not settings.gradient.differentiate_stats:
            rows[1:] = [torch.zeros_like(slope)] * 6
        return settings.gradient.scale * torch.stack(rows)

    def weight_gradient(self) -> Tensor:
        """That of Ŵ, (N, N): the current's times the spikes that arrived, unpacked some steps at a time."""
        total, words = self.saved.weight.new_zeros(self.features, self.features), self.saved.words
        together = max(1, UNPACKED // (self.batch * self.features))
        for lo in range(0, self.steps, together):
            hi = min(lo + together, self.steps)
            spikes = unpack_bits(words[lo:hi], self.tiling.wide)[..., : self.features]
            total.addmm_(self.dcurrent[lo:hi].flatten(0, 1).T, spikes.flatten(0, 1))
        return total

    def past_gradient(self, dafter: Tensor | None) -> Tensor:
        """That of the spikes on their way at the start, (delay, B, N)."""
        dpast = self.carry.new_zeros((self.delay, self.batch, self.features))
        arrived = self.dcurrent[: self.delay]
        torch.matmul(arrived, self.saved.weight, out=dpast[: len(arrived)])
        if dafter is not None:  # those that are still on their way in the end
            lengths = self.settings.lengths
            ends = dafter.new_full((self.batch,), self.steps, dtype=torch.int64) if lengths is None else lengths.long()
            place = (torch.arange(self.delay, device=ends.device)[:, None] - ends)[:, :, None]
            still = dafter.gather(0, place.clamp(min=0).expand_as(dafter))
            dpast += torch.where(place >= 0, still, 0.0)
        return dpast


def _stacked(v: Tensor, w: Tensor | None) -> Tensor:
    """States (B, N) as the start of a course, (1 or 2, B, N)."""
    return v.unsqueeze(0) if w is None else torch.stack([v, w])


def _course(start: Tensor, steps: int) -> Tensor:
    """Room for the states of so many steps behind a start, (1 or 2, steps + 1, B, N)."""
    course = start.new_empty((len(start), steps + 1, *start.shape[1:]))
    course[:, 0] = start.detach()
    return course


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().contiguous()


def _on_their_way(words: Tensor, lengths: Tensor | None, delay: int) -> Tensor:
    """The spikes that left at the last ``delay`` steps of each sequence, packed, (delay, B, W)."""
    if lengths is None:
        return words[-delay:]
    place = lengths + torch.arange(delay, device=words.device)[:, None]
    return words[place.long(), torch.arange(words.shape[1], device=words.device)]
