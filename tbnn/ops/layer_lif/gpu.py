"""A linear layer of weights and the neurons after it on a GPU, chunk by chunk of time: Triton's kernels, and matrix products.

As on the CPU (:mod:`tbnn.ops.layer_lif.function`), for backward stay the packed spikes that entered and left, checkpoints of
the state, the ridge's sums and the states of the share of steps that the memory mode says; a chunk whose states are kept
holds the one before its first step too. Currents are packed products, scaled in the order of the layer's own roundings:
spikes are those of the unfused layers, bit for bit. Gradients of weights and inputs are float32 matrix products of a chunk.

A call waits for the device once, for the largest of the weights' codes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.bits import words_for
from tbnn.ops.kernels import unexpanded, untraced
from tbnn.ops.layer_lif.gpu_products import Products, pack_rows_gpu, sums_with_words, unpacked
from tbnn.ops.layer_lif.plan import Plan, plan_of
from tbnn.ops.layer_lif.weighted import WeightedSpikes
from tbnn.ops.lif.cell import Cell, Rule
from tbnn.ops.lif.gpu import arguments, has_no_kernel, result_of
from tbnn.ops.lif.gpu_scan import (
    GAIN,
    Saved,
    Settings,
    Start,
    counted,
    part_sums,
    ridge_factors,
    scale_alone,
    scan_back,
    scan_forward,
    start_of,
    wide,
)
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.reference import LifResult, Statistics
from tbnn.ops.lif.state import LifState

CHUNK = 1 << 25  # currents worked out at a time, 128 MB: enough to fill a device, little beside what it holds


class _Chunk(NamedTuple):
    """Some steps of a sequence: what the scan back reads of them."""

    lo: int
    hi: int
    saved: Saved
    settings: Settings


class _Task(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    products: Products
    plan: Plan
    words: Tensor
    settings: Settings
    floats: bool  # whether spikes leave as floats, and not as words alone


@untraced
def layer_lif_gpu(
    weighted: WeightedSpikes,
    cell: Cell,
    state: LifState,
    rule: Rule,
    gradient: SpikeGradient,
    statistics: Statistics,
) -> LifResult:
    """:func:`tbnn.ops.layer_lif.function.layer_lif_fused` on a GPU; fills ``weighted.emitted``.

    Raises ``ValueError`` for what has no kernel: a convolution, a norm, weights that are not float32, neurons that compete,
    a step of 2³¹ values or more.
    """
    (steps, batch), weights = weighted.shape[:2], weighted.weights
    features = weighted.shape[2:].numel()
    if weights.convolution is not None or weighted.norm is not None or weighted.dtype != torch.float32:
        raise ValueError(
            "layer_lif: on a GPU expected a linear layer of float32 weights without a norm, got "
            f"{weighted.dtype} weights of shape {tuple(weights.weight.shape)}"
            f"{'' if weighted.norm is None else ' and a norm'}"
        )
    if has_no_kernel(rule, batch, features):
        raise ValueError(
            f"layer_lif: on a GPU expected no winners and fewer than 2³¹ values a step, got winners={rule.winners} and "
            f"{batch} x {features} values"
        )
    inputs = weighted.values, weights.weight, weights.bias
    coefficients, start, trace_start, settings = arguments(cell, state, rule, gradient, statistics, inputs)
    numbers = len(start) * (1 if trace_start is None else 2)
    # As many as the CPU's checkpoints hold, which keep the last spikes too: both have the same plan.
    numbers += (rule.gated or cell.second is not None) + (state.waiting is not None)
    plan = plan_of(weighted.memory, steps, batch, features, numbers)
    together = max(1, CHUNK // (batch * max(features, weighted.inputs)))
    plan = plan._replace(chunk=min(plan.every, together))
    task = _Task(Products(weights), plan, weighted.words, settings, weighted.floats)
    out, last, trace_last, spikes, waiting, weighted.emitted = _LayerLif.apply(
        *inputs, coefficients, start, trace_start, task
    )
    return result_of(out, last, trace_last, spikes, waiting, None, cell, rule)


class _Kept(NamedTuple):
    """What a call keeps for backward."""

    emitted: Tensor
    """The spikes that left, packed."""
    checkpoints: Tensor
    """(segments, numbers, B, F): states, traces and refractory steps left, of those that the neuron has."""
    states: dict[int, tuple[Tensor, Tensor | None]]
    """By first step, the courses of states and traces of each chunk of the segments that are kept."""


class _Passage:
    """A layer's way through a sequence of packed spikes (T, B, words)."""

    def __init__(self, task: _Task, coefficients: Tensor, counts: tuple[int, bool]) -> None:
        self.products, self.plan, self.words, self.settings, _ = task
        self.coefficients, self.batch, self.features = coefficients, task.words.shape[1], coefficients.shape[1]
        self.states, self.traced = counts  # how many, and whether traces go along

    def part(self, lo: int, hi: int, before: Tensor | None) -> Settings:
        """The settings of steps lo … hi: sequences end where they end there, and begin after the spikes (B, F)."""
        lengths = self.settings.lengths
        lengths = None if lengths is None else (lengths - lo).clamp(0, hi - lo)
        return self.settings._replace(lengths=lengths, spikes=before)

    def advance(self, before: Start, span: tuple[int, int], spikes: Tensor, keeps: bool) -> tuple[_Chunk, Start]:
        """Go from step lo to hi, filling spikes (hi − lo, B, F): the chunk, and the state after it."""
        settings, current = self.part(*span, before.spikes), self.products.current(self.words[slice(*span)])
        states, traces, after = scan_forward(
            current, self.coefficients, before, settings.rule, settings.lengths, spikes, keeps
        )
        fired = None if before.spikes is None else spikes
        saved = Saved(self.coefficients, states, traces, fired, current if settings.reads_current else None)
        return _Chunk(*span, saved, settings), after

    def chunks(self, kept: _Kept, index: int) -> list[_Chunk]:
        """A segment's chunks, in order."""
        segment = self.plan.segments[index]
        if self.plan.keeps(index):
            return [self._kept(kept, span) for span in self.plan.chunks(segment)]
        state, chunks = self._checkpoint(kept, index), []
        for lo, hi in self.plan.chunks(segment):
            spikes = torch.empty((hi - lo, self.batch, self.features), dtype=torch.int8, device=self.words.device)
            chunk, state = self.advance(state, (lo, hi), spikes, True)
            chunks.append(chunk)
        return chunks

    def _kept(self, kept: _Kept, span: tuple[int, int]) -> _Chunk:
        """A chunk from the states that were kept."""
        settings = self.part(*span, self._spikes_before(kept, span[0]))
        spikes = None if settings.spikes is None else unpacked(kept.emitted[slice(*span)], self.features, torch.int8)
        current = self.products.current(self.words[slice(*span)]) if settings.reads_current else None
        return _Chunk(*span, Saved(self.coefficients, *kept.states[span[0]], spikes, current), settings)

    def _checkpoint(self, kept: _Kept, index: int) -> Start:
        """The state before a segment."""
        real, *rest = kept.checkpoints[index].split(self.states)
        trace = rest.pop(0) if self.traced else None
        waiting = rest.pop(0)[0] if rest else None
        return Start(real, trace, self._spikes_before(kept, self.plan.segments[index][0]), waiting)

    def _spikes_before(self, kept: _Kept, lo: int) -> Tensor | None:
        """Gated neurons' spikes before step lo, (B, F); where a sequence has ended, no gradient reads them."""
        if self.settings.spikes is None:
            return None
        return wide(self.settings.spikes) if lo == 0 else unpacked(kept.emitted[lo - 1], self.features)


def _stacked(state: Start) -> Tensor:
    """A checkpoint, (numbers, B, F)."""
    waiting = None if state.waiting is None else state.waiting[None]
    return torch.cat([part for part in (state.real, state.trace, waiting) if part is not None])


def _add(sums: Tensor | None, part: Tensor, steps: int, lo: int, by_step: bool) -> Tensor:
    """Add the sums (n, 1 or hi − lo, blocks) of a chunk from step lo to those of all ``steps``."""
    if sums is None:
        sums = part.new_zeros((len(part), steps if by_step else 1, part.shape[2]))
    at = lo if by_step else 0
    sums[:, at : at + part.shape[1]] += part
    return sums


class _LayerLif(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor | None, weight: Tensor, bias: Tensor | None, coefficients: Tensor, start: Tensor,
        trace_start: Tensor | None, task: _Task,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        plan, settings, recorded = task.plan, task.settings, task.settings.saves
        passage = _Passage(task, wide(coefficients), (len(start), trace_start is not None))
        shape, device = (passage.batch, passage.features), weight.device
        size, dtype = (plan.steps, torch.float32) if task.floats else (plan.chunk, torch.int8)
        out = torch.empty((size, *shape), dtype=dtype, device=device)
        emitted = torch.empty((plan.steps, shape[0], words_for(shape[1])), dtype=torch.int32, device=device)
        state = start_of(start, trace_start, settings)
        soft = recorded and settings.gradient.gradient == "ddt" and trace_start is None
        checkpoints, states, sums = [], [], None
        for index, segment in enumerate(plan.segments):
            if recorded:
                checkpoints.append(_stacked(state))
            for lo, hi in plan.chunks(segment):
                spikes, keeps = out[lo:hi] if task.floats else out[: hi - lo], recorded and plan.keeps(index)
                chunk, state = passage.advance(state, (lo, hi), spikes, keeps or soft)
                pack_rows_gpu(spikes, emitted[lo:hi])
                if soft:
                    part = part_sums(chunk.saved, None, chunk.settings)
                    sums = _add(sums, part, plan.steps, lo, settings.by_step)
                if keeps:
                    states += [t for t in (chunk.saved.states, chunk.saved.traces) if t is not None]
        ctx.task, ctx.sums, ctx.counts = task, sums, (passage.states, passage.traced)
        ctx.set_materialize_grads(False)
        if recorded:
            ctx.save_for_backward(weight, passage.coefficients, emitted, torch.stack(checkpoints), *states)
        last, trace_last, last_spikes, waiting = state
        constants = (None if trace_last is None else last, last_spikes, waiting, emitted)
        ctx.mark_non_differentiable(*(t for t in constants if t is not None))
        out = out if task.floats else torch.zeros((), device=device).expand(plan.steps, *shape)
        return out, last, trace_last, last_spikes, waiting, emitted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, coefficients, emitted, checkpoints, *states = ctx.saved_tensors
        passage = _Passage(ctx.task, coefficients, ctx.counts)
        plan, by_trace = passage.plan, passage.traced
        spans = [span for i, segment in enumerate(plan.segments) if plan.keeps(i) for span in plan.chunks(segment)]
        courses = zip(states[::2], states[1::2], strict=True) if by_trace else ((one, None) for one in states)
        kept = _Kept(emitted, checkpoints, {lo: pair for (lo, _), pair in zip(spans, courses, strict=True)})
        dout = weight.new_zeros((1, 1, passage.features)) if grads[0] is None else unexpanded(grads[0])
        way = _WayBack(passage, kept, weight, ctx.needs_input_grad)
        dstart = way.run(dout, grads[2] if by_trace else grads[1], ctx.sums)
        starts = (None, dstart) if by_trace else (dstart, None)
        return way.dx, way.dweight, way.dbias, way.dcoefficients, *starts, None


class _WayBack:
    """The gradients of one call: of x, Ŵ, the bias and the coefficients, where ``needs`` says so."""

    def __init__(self, passage: _Passage, kept: _Kept, weight: Tensor, needs: tuple[bool, ...]) -> None:
        self.passage, self.kept, self.weight = passage, kept, weight
        shape = *passage.words.shape[:2], weight.shape[1]
        self.dx = weight.new_empty(shape) if needs[0] else None
        self.dweight = torch.zeros_like(weight) if needs[1] else None
        self.dbias = weight.new_zeros(weight.shape[0]) if needs[2] else None
        self.learn = passage.settings.learn if needs[3] else 0
        self.dcoefficients = torch.zeros_like(passage.coefficients) if self.learn else None

    def run(self, dout: Tensor, dlast: Tensor | None, sums: Tensor | None) -> Tensor | None:
        """Fill the gradients from the output's (1 or T, 1 or B, F) and the last state's; returns the first state's."""
        passage, carry = self.passage, dlast
        factors = self._factors(dout, sums)
        for index in reversed(range(len(passage.plan.segments))):
            chunks = passage.chunks(self.kept, index)
            while chunks:
                carry = self._step_back(chunks.pop(), dout, factors, carry)
        if self.dcoefficients is not None:
            self.dcoefficients[GAIN] /= passage.coefficients[GAIN]
        return carry

    def _factors(self, dout: Tensor, sums: Tensor | None) -> Tensor:
        """k0, kG, kx, kq of every neuron (and step): (4, 1 or T, F)."""
        passage, settings = self.passage, self.passage.settings
        steps = passage.plan.steps
        if settings.gradient.gradient == "surrogate":
            return scale_alone(passage.coefficients, settings.gradient)
        if sums is None:  # q is the spikes' trace, which the states alone tell
            for index in range(len(passage.plan.segments)):
                for chunk in passage.chunks(self.kept, index):
                    part = part_sums(chunk.saved, _of(dout, chunk), chunk.settings)
                    sums = _add(sums, part, steps, chunk.lo, settings.by_step)
        else:
            sums = torch.cat([sums, sums_with_words(self.kept.emitted, dout, settings, passage.features)])
        if sums is None:
            raise RuntimeError("layer_lif: a sequence has at least one step")
        sums = counted(sums, settings, (steps, passage.batch, passage.features))
        return ridge_factors(sums, settings.gradient, passage.features)

    def _step_back(self, chunk: _Chunk, dout: Tensor, factors: Tensor, carry: Tensor | None) -> Tensor:
        """Add a chunk's share to the gradients; the state's goes on to the step before."""
        passage, steps = self.passage, chunk.hi - chunk.lo
        some = factors[:, chunk.lo : chunk.hi].contiguous() if factors.shape[1] > 1 else factors
        dcurrent, carry, totals = scan_back(
            chunk.saved, steps, _of(dout, chunk), carry, some, self.learn, chunk.settings, chunk.settings.kind, torch.float32
        )  # fmt: skip
        rows = dcurrent.flatten(0, 1)
        if self.dx is not None:
            torch.mm(rows, self.weight, out=self.dx[chunk.lo : chunk.hi].flatten(0, 1))
        if self.dweight is not None:
            spikes = unpacked(passage.words[chunk.lo : chunk.hi].flatten(0, 1), self.weight.shape[1])
            self.dweight.addmm_(rows.T, spikes)
        if self.dbias is not None:
            self.dbias += rows.sum(0)
        if self.dcoefficients is not None:
            self.dcoefficients += totals
        return carry


def _of(dout: Tensor, chunk: _Chunk) -> Tensor:
    """A chunk's share of a gradient (1 or T, 1 or B, F)."""
    return dout[chunk.lo : chunk.hi] if len(dout) > 1 else dout
