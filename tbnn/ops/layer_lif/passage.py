"""The neurons' way through a sequence, a chunk of steps at a time: from a checkpoint it can be gone again."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tbnn.bits import unpack_bits_numpy
from tbnn.ops.kernels import NUMPY_DTYPES, as_numpy
from tbnn.ops.layer_lif.counts import Counts, count_layout, counts_of, moments_of, room_for
from tbnn.ops.layer_lif.norm import Factors, Normed
from tbnn.ops.layer_lif.products import Products
from tbnn.ops.layer_lif.weighted import Norm, Weights
from tbnn.ops.lif import cpu, target
from tbnn.ops.lif.cell import Rule
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.packed_lif.cpu import Drive, drive_values

Array = np.ndarray[Any, Any]


class Settings(NamedTuple):
    """What decides about a layer's neurons besides their coefficients."""

    rule: Rule
    gradient: SpikeGradient
    lengths: Array  # (B,) int64
    learn: Array  # (10,) bool: the coefficients whose gradients the kernel adds up
    plain: bool  # v > θ tells the last step's spikes, and no gate holds one back
    joined: bool  # the processes of a distributed run add up their sums
    channels: int

    @property
    def by_step(self) -> bool:
        """Whether each step is a block of the ridge regression."""
        return self.gradient.stats == "step"

    @property
    def blocks(self) -> int:
        """Blocks of the ridge regression across the features."""
        return self.channels if self.gradient.per_channel and not self.by_step else 1

    @property
    def reads_current(self) -> bool:
        """Whether a coefficient's gradient needs the current."""
        return bool(self.learn[[cpu.FROM_CURRENT, cpu.CURRENT_GAIN]].any())


class Carried(NamedTuple):
    """The state between two steps, as the kernels take it: of what a neuron does not have, none."""

    real: Array  # (1 or 2, 1, B, F)
    trace: Array  # the same, or (1, 0, B, F)
    spikes: Array  # (1, 1, B, F) but for plain neurons, (1, 0, B, F)
    waiting: Array  # (1, 1, B, F), or (1, 0, B, F) without refractory steps

    def stacked(self) -> Array:
        """All of it in one, (numbers, B, F): a checkpoint."""
        return np.concatenate([part.reshape(-1, *part.shape[2:]) for part in self])

    @property
    def layout(self) -> "Layout":
        """The shapes of the parts."""
        return tuple(part.shape for part in self)


Layout = tuple[tuple[int, ...], ...]


def unstacked(stacked: Array, layout: Layout) -> Carried:
    """The inverse of :meth:`Carried.stacked`, copies of what a checkpoint holds."""
    parts, at = [], 0
    for shape in layout:
        count = shape[0] * shape[1]
        parts.append(stacked[at : at + count].reshape(shape).copy())
        at += count
    return Carried(*parts)


class Chunk(NamedTuple):
    """Some steps of a sequence, as the kernels see them."""

    lo: int
    hi: int
    layer: cpu.Layer
    real: cpu.Course
    traces: cpu.Course
    spikes: cpu.Course
    current: Array


class Passage:
    """A layer's way through a sequence of packed spikes (T, B, words)."""

    def __init__(
        self, weights: Weights, words: Tensor, coefficients: Tensor, shape: tuple[int, int], settings: Settings
    ) -> None:
        self.products, self.words, self.settings = Products(weights), as_numpy(words), settings
        self.count_layout = count_layout(weights) if self.products.counts else None
        self.normed: Normed | None = None
        self.held: Counts | None = None  # of all steps, while a pass reads them more than once
        self.batch, self.features = shape
        self.dtype: Any = NUMPY_DTYPES[coefficients.dtype]
        self.coefficients = as_numpy(coefficients)
        rule, gradient, surrogate = settings.rule, settings.gradient, settings.gradient.surrogate
        self.winners = rule.winners if rule.winners is not None and rule.winners < self.features else 0
        kind = target.SURROGATE
        if gradient.gradient == "ddt":
            kind = target.TRACE if gradient.uses_trace else target.SOFT
        highest = 1 / (1 + rule.refractory)
        self.estimator = target.Estimator(
            kind, surrogate.code, surrogate.parameter, surrogate.extra, gradient.floor, highest
        )
        self.none = np.empty((1, 0, *shape), self.dtype)
        self.forward_rows = cpu.rows_per_task(*shape, self.winners)
        self.backward_rows = cpu.rows_per_task(*shape)

    @property
    def by_trace(self) -> bool:
        """Whether the gradient runs through the traces."""
        return self.estimator.kind == target.TRACE

    def layer(self, lo: int, hi: int) -> cpu.Layer:
        """The layer, its sequences ending where they end in steps lo … hi."""
        lengths = np.clip(self.settings.lengths - lo, 0, hi - lo)
        rule = self.settings.rule
        return cpu.Layer(self.coefficients, cpu.RESETS[rule.reset], rule.refractory, self.winners, lengths)

    def current(self, lo: int, hi: int) -> Array:
        """The currents of steps lo … hi, normed where there is a norm."""
        if self.normed is not None:
            return self.scaled(lo, hi, self.normed.whole)
        out = np.empty((hi - lo, self.batch, self.features), self.dtype)
        self.products.current(self.words[lo:hi], out)
        return out

    def normalise(self, norm: Norm) -> None:
        """Take in a norm; in training that of the sequence's own statistics, whose whole numbers are held from here on."""
        moments = None
        if norm.mean is None:
            if self.count_layout is None:
                moments = moments_of(self.products, self.words, self.settings.lengths, self.features)
            else:
                self.held = self._room(0, len(self.words))
                moments = counts_of(self.products, self.words, self.settings.lengths, self.held, True)
        self.normed = Normed(norm, moments)

    def hold(self, last: Counts | None = None) -> Counts | None:
        """Hold the whole numbers of all steps, those of the ``last`` steps as given; None for rows of several blocks."""
        if self.held is None and self.count_layout is not None:
            steps, kept = len(self.words), 0 if last is None else len(last.product)
            if last is not None and kept == steps:
                self.held = last
            else:
                self.held = self._room(0, steps)
                first = steps - kept
                counts_of(self.products, self.words[:first], self.settings.lengths, self.held.part(0, first), False)
                for part, given in zip(self.held.part(first, steps), last or (), strict=False):
                    part.copy_(given)
        return self.held

    def _room(self, lo: int, hi: int) -> Counts:
        """Memory for the whole numbers of steps lo … hi."""
        if self.count_layout is None:
            raise ValueError("layer_lif: expected rows of one block")
        dtype, ones = self.count_layout
        return Counts(*(room_for((hi - lo, self.batch, n), dtype) for n in (self.features, ones)))

    def counts(self, lo: int, hi: int) -> Counts:
        """The whole numbers of steps lo … hi."""
        if self.held is not None:
            return self.held.part(lo, hi)
        room = self._room(lo, hi)
        counts_of(self.products, self.words[lo:hi], self.settings.lengths, room, False)
        return room

    def drive(self, counts: Counts, factors: Factors) -> Drive:
        """What makes ``factor·current + shift`` of whole numbers, the current as the weights alone make it."""
        return self.products.drive(counts.product.numpy(), counts.ones.numpy(), *factors)

    def scaled(self, lo: int, hi: int, factors: Factors) -> Array:
        """``factor·current + shift`` of steps lo … hi, (hi − lo, B, F)."""
        out = np.empty((hi - lo, self.batch, self.features), self.dtype)
        if self.count_layout is not None:
            drive_values(self.drive(self.counts(lo, hi), factors), out, work=out.size)
            return out
        self.products.current(self.words[lo:hi], out)
        channels = out.reshape(*out.shape[:2], self.products.outputs, -1)
        channels *= factors.factor.astype(self.dtype)[:, None]
        channels += factors.shift.astype(self.dtype)[:, None]
        return out

    def driven(self, chunk: Chunk) -> cpu.Course:
        """The course that the gradient runs through."""
        return chunk.traces if self.by_trace else chunk.real

    def advance(self, before: Carried, span: tuple[int, int], spikes: Array | None) -> tuple[Chunk, Carried]:
        """Go from step lo to hi: the chunk, and the state after it; spikes (hi − lo, B, F) is filled if it is given."""
        lo, hi = span
        shape = (before.real.shape[0], hi - lo, self.batch, self.features)
        current, layer = self.current(lo, hi), self.layer(lo, hi)
        real = cpu.Course(before.real, np.empty(shape, self.dtype))
        traced = cpu.Course(before.trace, np.empty(shape, self.dtype) if before.trace.shape[1] else self.none)
        if spikes is None and not self.settings.plain:
            spikes = np.empty(shape[1:], self.dtype)
        fired = cpu.Course(before.spikes, self.none if spikes is None else spikes[None])
        waiting = before.waiting.copy()
        counter = waiting[0, 0] if waiting.size else np.empty((1, 1), self.dtype)
        cpu.scan(current, layer, real, traced, fired, counter, self.forward_rows, work=current.size)
        after = Carried(
            _last(real, layer.lengths), _last(traced, layer.lengths),
            before.spikes if self.settings.plain else _last(fired, layer.lengths), waiting,
        )  # fmt: skip
        return Chunk(lo, hi, layer, real, traced, fired, current), after

    def kept(self, before: Carried, states: Array, span: tuple[int, int], emitted: Tensor) -> tuple[Chunk, Carried]:
        """The same from states that were kept, (1 or 2, or twice that with traces, hi − lo, B, F)."""
        lo, hi = span
        count = before.real.shape[0]
        layer = self.layer(lo, hi)
        real = cpu.Course(before.real, states[:count])
        traces = cpu.Course(before.trace, states[count:] if len(states) > count else self.none)
        steps = self.none
        if not self.settings.plain:
            bits = unpack_bits_numpy(as_numpy(emitted[lo:hi]), self.features)
            steps = np.ascontiguousarray(bits, self.dtype)[None]
        fired = cpu.Course(before.spikes, steps)
        current = (
            self.current(lo, hi) if self.settings.reads_current else np.empty((0, *self.none.shape[2:]), self.dtype)
        )
        spikes = before.spikes if self.settings.plain else _last(fired, layer.lengths)
        # Refractory steps do not enter a gradient: what is left of them need not be known.
        after = Carried(_last(real, layer.lengths), _last(traces, layer.lengths), spikes, before.waiting)
        return Chunk(lo, hi, layer, real, traces, fired, current), after

    def sums(self, chunk: Chunk, grad: Array | None, by_step: bool) -> Array:
        """Σx, Σq, Σq², Σxq, n and, given grad, ΣG, ΣGq of a chunk: (5 or 7, 1 or hi − lo, F)."""
        nothing = np.empty((0, 1, 1), self.dtype)
        out = np.empty((5 if grad is None else 7, chunk.hi - chunk.lo if by_step else 1, self.features))
        target.target_sums(
            self.estimator, chunk.layer, chunk.real, self.driven(chunk), chunk.spikes,
            nothing if grad is None else grad, by_step, out, work=chunk.real.steps.size,
        )  # fmt: skip
        return out


class Totals:
    """Sums over a sequence, added up chunk by chunk: (rows, 1 or T, blocks across the features), or F of them."""

    def __init__(self, rows: int, steps: int, settings: Settings) -> None:
        self.by_step, self.blocks = settings.by_step, settings.blocks
        self.sums = np.zeros((rows, steps if self.by_step else 1, self.blocks))

    def add(self, part: Array, lo: int, hi: int) -> None:
        """Add a chunk's sums (rows, 1 or hi − lo, F)."""
        blocks = part.reshape(*part.shape[:2], self.blocks, -1).sum(-1)
        if self.by_step:
            self.sums[:, lo:hi] += blocks
        else:
            self.sums += blocks


def _last(course: cpu.Course, lengths: Array) -> Array:
    """The state after each sequence's last step of a chunk, as the start of the next, (1 or 2, 1, B, F)."""
    if course.steps.shape[1] == 0:
        return course.start
    steps = course.steps.shape[1]
    if (lengths == steps).all():
        return course.steps[:, -1:].copy()
    last = course.steps[:, np.maximum(lengths - 1, 0), np.arange(len(lengths))]
    return np.where((lengths > 0)[:, None], last, course.start[:, 0])[:, None]
