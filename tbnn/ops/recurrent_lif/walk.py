"""A recurrent layer's way through a sequence, a chunk of steps at a time: from a checkpoint it can be gone again."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import unpack_bits_numpy, words_for
from tbnn.ops.kernels import NUMPY_DTYPES, as_numpy
from tbnn.ops.layer_lif.passage import Array, Carried, Chunk, Settings
from tbnn.ops.lif import cpu, target
from tbnn.ops.packed_lif.recurrent import Feedback
from tbnn.ops.recurrent_lif.cpu import recurrent_scan


class Walk:
    """Neurons whose spikes return through weights of few bits.

    Args:
        feedback: those weights.
        bits: (delay + T, B, ceil(N/64)) uint64, the first ``delay`` the spikes on their way; filled by :meth:`advance`.
        coefficients: (3 or 10, N).
        settings: what else decides; its ``lengths`` are the sequences'.
        delay: steps a spike takes to return.
    """

    def __init__(self, feedback: Feedback, bits: Array, coefficients: Tensor, settings: Settings, delay: int) -> None:
        self.feedback, self.bits, self.settings, self.delay = feedback, bits, settings, delay
        self.batch, self.features = bits.shape[1], coefficients.shape[1]
        self.dtype: Any = NUMPY_DTYPES[coefficients.dtype]
        self.coefficients = as_numpy(coefficients)
        rule, gradient, surrogate = settings.rule, settings.gradient, settings.gradient.surrogate
        self.winners = rule.winners if rule.winners is not None and rule.winners < self.features else 0
        kind = target.SURROGATE
        if gradient.gradient == "ddt":
            kind = target.TRACE if gradient.uses_trace else target.SOFT
        numbers = surrogate.parameter, surrogate.extra, gradient.floor, 1 / (1 + rule.refractory)
        # floats all: an int among them would be a kernel of its own.
        self.estimator = target.Estimator(kind, surrogate.code, *(float(number) for number in numbers))
        self.none = np.empty((1, 0, self.batch, self.features), self.dtype)

    @property
    def by_trace(self) -> bool:
        """Whether the gradient runs through the traces."""
        return self.estimator.kind == target.TRACE

    @property
    def numbers(self) -> int:
        """Numbers of a neuron and step that backward reads: v, w and their traces, and the current where it is asked for."""
        second = len(self.coefficients) > cpu.WITHOUT_SECOND
        return (1 + second) * (1 + self.by_trace) + self.settings.reads_current

    def driven(self, chunk: Chunk) -> cpu.Course:
        """The course that the gradient runs through."""
        return chunk.traces if self.by_trace else chunk.real

    def spikes(self, lo: int, hi: int) -> Array:
        """The spikes that left at steps lo … hi, packed: (hi − lo, B, ceil(N/32)) int32."""
        return _narrow(self.bits[lo + self.delay : hi + self.delay], self.features)

    def returned(self, lo: int, hi: int) -> Array:
        """Likewise those that returned."""
        return _narrow(self.bits[lo:hi], self.features)

    def advance(
        self, before: Carried, span: tuple[int, int], current: Array, out: Array | None, states: Array
    ) -> tuple[Chunk, Carried]:
        """Go from step lo to hi with what arrives from outside, current (hi − lo, B, N): the chunk, and the state after it.

        Filled are states (numbers, hi − lo, B, N), the spikes that leave, and out (hi − lo, B, N) if it is given.
        """
        if out is None and not self.settings.plain:
            out = np.empty(current.shape, self.dtype)
        waiting = before.waiting.copy()
        chunk = self._chunk(before._replace(waiting=waiting), span, states, out)
        counter = waiting[0, 0] if waiting.size else np.empty((1, 1), self.dtype)
        recurrent_scan(
            current, chunk.layer, chunk.real, chunk.traces, chunk.spikes, counter, self.feedback, span[0], self.delay,
            -(-self.batch // torch.get_num_threads()), self.bits, chunk.current, work=current.size,
        )  # fmt: skip
        return chunk, self._after(chunk, before, waiting)

    def kept(self, before: Carried, span: tuple[int, int], states: Array) -> tuple[Chunk, Carried]:
        """The same from states that were kept."""
        out = None
        if not self.settings.plain:
            out = np.ascontiguousarray(unpack_bits_numpy(self.spikes(*span), self.features), self.dtype)
        chunk = self._chunk(before, span, states, out)
        # Refractory steps do not enter a gradient: what is left of them need not be known.
        return chunk, self._after(chunk, before, before.waiting)

    def _chunk(self, before: Carried, span: tuple[int, int], states: Array, out: Array | None) -> Chunk:
        (lo, hi), rule, count = span, self.settings.rule, before.real.shape[0]
        lengths = np.clip(self.settings.lengths - lo, 0, hi - lo)
        layer = cpu.Layer(self.coefficients, cpu.RESETS[rule.reset], rule.refractory, self.winners, lengths)
        return Chunk(
            lo, hi, layer,
            cpu.Course(before.real, states[:count]),
            cpu.Course(before.trace, states[count : 2 * count] if self.by_trace else self.none),
            cpu.Course(before.spikes, self.none if out is None else out[None]),
            states[-1] if self.settings.reads_current else self.none[0],
        )  # fmt: skip

    def _after(self, chunk: Chunk, before: Carried, waiting: Array) -> Carried:
        lengths = chunk.layer.lengths
        spikes = before.spikes if self.settings.plain else _last(chunk.spikes, lengths)
        return Carried(_last(chunk.real, lengths), _last(chunk.traces, lengths), spikes, waiting)


def _narrow(words: Array, features: int) -> Array:
    return np.ascontiguousarray(words.view(np.int32)[..., : words_for(features)])


def _last(course: cpu.Course, lengths: Array) -> Array:
    """The state after each sequence's last step of a chunk, as the start of the next, (1 or 2, 1, B, N)."""
    steps = course.steps.shape[1]
    if steps == 0:
        return course.start
    if (lengths == steps).all():
        return course.steps[:, -1:].copy()
    last = course.steps[:, np.maximum(lengths - 1, 0), np.arange(len(lengths))]
    return np.where((lengths > 0)[:, None], last, course.start[:, 0])[:, None]
