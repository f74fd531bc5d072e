"""Spiking neurons and readouts at work."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tbnn.bits import pack_bits, words_for
from tbnn.ops.kernels import as_numpy
from tbnn.ops.lif import Second, SpikeGradient, lif
from tbnn.ops.lif.cpu import RESETS
from tbnn.ops.packed_lif.cpu import Drive, drive_of, neurons_of, packed_integrate, packed_scan
from tbnn.ops.packed_lif.recurrent import packed_recurrent
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedIntegrator, PackedLeaky
from tbnn.sim.run.currents import Currents, currents_of
from tbnn.sim.run.linear import LinearRun
from tbnn.sim.run.sparse import SparseRun, weights_run
from tbnn.sim.run.state import (
    VALUE_BYTES,
    WORD_BYTES,
    Floats,
    NeuronState,
    Words,
    count_spikes,
    given_spikes,
    starting_membranes,
)


class LeakyRun:
    """Spiking neurons at work, with their membranes and, where they have one, their feedback.

    ``watched``: neurons whose membranes are kept; those of the last ``advance`` are ``seen`` (t, B, len(watched)).
    """

    def __init__(self, layer: PackedLeaky, batch: int, state: NeuronState | None, watched: Sequence[int] = ()) -> None:
        self.layer, spec = layer, layer.spec
        self.feedback = None if layer.feedback is None else weights_run(layer.feedback)  # pyright: ignore[reportArgumentType]
        self.neurons = neurons_of(as_numpy(layer.beta), as_numpy(layer.threshold), RESETS[spec.reset], spec.features)
        self.v = starting_membranes(layer, batch, state)
        self.last = np.zeros((batch, words_for(spec.features)), np.int32)
        # Before the first step nothing has left the neuron, not even the constant part of a denoised spike.
        self.first_bias = None if layer.rest_bias is None or state is not None else as_numpy(layer.rest_bias)
        if self.feedback is not None and state is not None:
            self.last = given_spikes(layer, batch, state)
        self.steps = self.spikes = 0
        self.cell = _Cell(layer, state) if spec.second_size or spec.refractory or spec.winners else None
        self.loop = None if self.feedback is None or self.cell is not None else self.feedback.feedback()
        self.watched = np.array(watched, np.int64)
        self.seen = np.empty((0, batch, len(self.watched)), np.float32)

    def advance(self, currents: Currents) -> Words:
        """Currents (t, B, N) -> packed spikes (t, B, words)."""
        steps, batch, _ = currents.shape
        self.seen = np.empty((steps, batch, len(self.watched)), np.float32)
        if currents.scan is not None and self.cell is None and self.feedback is None and not len(self.watched):
            words = currents.scan(self.neurons, self.v)
        else:
            words = self._by_pieces(currents)
        self.first_bias = None
        self.steps += steps
        self.spikes += count_spikes(words)
        return words

    def _by_pieces(self, currents: Currents) -> Words:
        """Piece after piece of the currents."""
        steps, batch, features = currents.shape
        words = np.empty((steps, batch, words_for(features)), np.int32)
        for part, samples, drive in currents.pieces(split=self.cell is None):
            whole = samples == slice(0, batch)
            piece, seen = words[part, samples], self.seen[part, samples]
            if not whole:  # kernels want rows without gaps
                piece, seen = np.empty_like(piece), np.empty_like(seen)
            if self.feedback is None:
                self._scan(drive, samples, seen, piece)
            else:
                self._return(self.feedback, drive, samples, seen, piece)
            if not whole:
                words[part, samples], self.seen[part, samples] = piece, seen
        return words

    def _scan(self, drive: Drive, samples: slice, seen: Floats, words: Words) -> None:
        """Neurons without feedback through the steps of a drive: words (t, b, words) filled."""
        if self.cell is not None:
            self.cell.scan(currents_of(drive), self.watched, seen, words)
            return
        v, packed = self.v[samples], words.view(np.uint32)
        packed_scan(drive, self.neurons, v, self.watched, seen, packed, work=len(words) * v.size)

    def _return(
        self, feedback: LinearRun | SparseRun, drive: Drive, samples: slice, seen: Floats, words: Words
    ) -> None:
        """The same with feedback: all steps in one call, or one by one where the kernel does not know the layer."""
        last, current, first = self.last[samples], None, 0
        if self.loop is None or self.first_bias is not None:
            current, first = currents_of(drive), len(words) if self.loop is None else 1
            for t in range(first):
                returned = currents_of(feedback.drive(last[None], self.first_bias if t == 0 else None))
                np.add(current[t : t + 1], returned, out=returned)
                self._scan(drive_of(returned), samples, seen[t : t + 1], words[t : t + 1])
                last[:] = words[t]
        if first == len(words) or not isinstance(feedback, LinearRun):
            return
        rest = drive if current is None else drive_of(current[first:])
        feedback.returned(last[None])
        feedback_words, v = words[first:].view(np.uint32), self.v[samples]
        packed_recurrent(
            rest, self.neurons, self.loop, v, last, self.watched, seen[first:], feedback_words,
            work=len(feedback_words) * v.size,
        )  # fmt: skip
        feedback.returned(words[first:-1])

    def state(self) -> NeuronState:
        """The state after the last step."""
        last = None if self.feedback is None else torch.from_numpy(self.last.copy())
        cell = None if self.cell is None else self.cell.state
        return NeuronState(torch.from_numpy(self.v) if cell is None else cell.v, last, cell)

    def counts(self) -> list[LayerCounts]:
        """The neurons' row, and the feedback's before it."""
        spec, batch = self.layer.spec, self.v.shape[0]
        updates = self.steps * batch * spec.features
        row = LayerCounts(
            spec.name,
            spec.kind,
            spikes=self.spikes,
            neuron_updates=updates,
            bytes_moved=self.steps * batch * words_for(spec.features) * WORD_BYTES,
            firing_rate=self.spikes / max(updates, 1),
        )
        return [*([] if self.feedback is None else self.feedback.counts()), row]


class _Cell:
    """Neurons with a second state or gates, by the very operator that trained them."""

    def __init__(self, layer: PackedLeaky, state: NeuronState | None) -> None:
        self.layer, self.state = layer, None
        if state is not None:
            if state.cell is None:
                raise ValueError(f"state of {layer.spec.name}: expected the cell's state, got none")
            self.state = state.cell
        self.second = None if layer.second is None else Second(*layer.second.unbind(0))

    def scan(self, current: Floats, watched: npt.NDArray[np.int64], seen: Floats, words: Words) -> None:
        """Currents (t, B, N): words (t, B, words) and the watched membranes filled."""
        together = 1 if watched.size else len(current)  # the operator gives the last step's membranes
        for t in range(0, len(current), together):
            words[t : t + together] = self._spikes(current[t : t + together])
            if self.state is not None and watched.size:
                seen[t] = self.state.v.numpy()[:, watched]

    @torch.no_grad()
    def _spikes(self, current: Floats) -> Words:
        """Currents (t, B, N) -> packed spikes (t, B, words)."""
        layer, spec = self.layer, self.layer.spec
        out, self.state, _ = lif(
            torch.from_numpy(current),
            layer.beta.expand(spec.features),
            layer.threshold.expand(spec.features),
            self.state,
            second=None if self.second is None else Second(*(c.expand(spec.features) for c in self.second)),
            reset=spec.reset,
            refractory=spec.refractory,
            winners=spec.winners or None,
            gradient=SpikeGradient(gradient="surrogate"),
        )
        return pack_bits(out).numpy()


class IntegratorRun:
    """A readout at work; ``watched`` and ``seen`` as in :class:`LeakyRun`."""

    def __init__(
        self, layer: PackedIntegrator, batch: int, state: NeuronState | None, watched: Sequence[int] = ()
    ) -> None:
        self.layer, beta = layer, as_numpy(layer.beta)
        self.neurons = neurons_of(beta, beta, RESETS["none"], layer.spec.features)
        self.v = starting_membranes(layer, batch, state)
        self.watched = np.array(watched, np.int64)
        self.seen = np.empty((0, batch, len(self.watched)), np.float32)
        self.steps = 0

    def advance(self, currents: Currents) -> Floats:
        """Currents (t, B, N) -> membranes (t, B, N)."""
        out = np.empty(currents.shape, np.float32)
        for part, samples, drive in currents.pieces():
            piece = out[part, samples] if samples == slice(0, len(self.v)) else np.empty_like(out[part, samples])
            packed_integrate(drive, self.neurons, self.v[samples], piece, work=piece.size)
            out[part, samples] = piece
        self.seen = out[..., self.watched]
        self.steps += len(out)
        return out

    def state(self) -> NeuronState:
        """The state after the last step."""
        return NeuronState(torch.from_numpy(self.v))

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec, updates = self.layer.spec, self.steps * self.v.size
        return [LayerCounts(spec.name, spec.kind, neuron_updates=updates, bytes_moved=updates * VALUE_BYTES)]
