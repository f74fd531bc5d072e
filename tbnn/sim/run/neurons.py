"""Spiking neurons and readouts at work."""

import numpy as np
import torch

from tbnn.bits import pack_bits, words_for
from tbnn.ops.kernels import as_numpy
from tbnn.ops.lif import Second, SpikeGradient, lif
from tbnn.ops.lif.cpu import RESETS
from tbnn.sim import cpu
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedIntegrator, PackedLeaky
from tbnn.sim.run.linear import LinearRun
from tbnn.sim.run.state import (
    VALUE_BYTES,
    WORD_BYTES,
    Floats,
    NeuronState,
    Words,
    given_spikes,
    spikes_in,
    spread,
    starting_membranes,
)


class LeakyRun:
    """Spiking neurons at work, with their membranes and, where they have one, their feedback."""

    def __init__(self, layer: PackedLeaky, batch: int, state: NeuronState | None) -> None:
        self.layer, features = layer, layer.spec.features
        self.feedback = None if layer.feedback is None else LinearRun(layer.feedback)
        self.beta, self.threshold = spread(layer.beta, features), spread(layer.threshold, features)
        self.reset = RESETS[layer.spec.reset]
        self.v = starting_membranes(layer, batch, state)
        self.last = np.zeros((batch, words_for(features)), np.int32)
        # Before the first step nothing has left the neuron, not even the constant part of a denoised spike.
        self.first_bias = None if layer.rest_bias is None or state is not None else as_numpy(layer.rest_bias)
        if self.feedback is not None and state is not None:
            self.last = given_spikes(layer, batch, state)
        self.steps = self.spikes = 0
        spec = layer.spec
        self.cell = _Cell(layer, state) if spec.second_size or spec.refractory or spec.winners else None

    def advance(self, current: Floats) -> Words:
        """Currents (t, B, N) -> packed spikes (t, B, words)."""
        words = np.empty((*current.shape[:2], words_for(self.layer.spec.features)), np.int32)
        if self.feedback is None:
            self._scan(current, words)
        else:
            for t in range(current.shape[0]):
                returned = self.feedback.current(self.last, self.first_bias)
                self.first_bias = None
                np.add(current[t], returned, out=returned)
                self._scan(returned[None], words[t : t + 1])
                self.last = words[t]
        self.steps += current.shape[0]
        self.spikes += int(spikes_in(words).sum(dtype=np.int64))
        return words

    def _scan(self, current: Floats, words: Words) -> None:
        if self.cell is not None:
            words[:] = self.cell.spikes(current)
            return
        packed = words.view(np.uint32)
        cpu.packed_lif(current, self.beta, self.threshold, self.reset, self.v, packed, work=current.size)

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
            firing_rate=self.spikes / updates,
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

    @torch.no_grad()
    def spikes(self, current: Floats) -> Words:
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
    """A readout at work."""

    def __init__(self, layer: PackedIntegrator, batch: int, state: NeuronState | None) -> None:
        self.layer = layer
        self.beta = spread(layer.beta, layer.spec.features)
        self.v = starting_membranes(layer, batch, state)
        self.steps = 0

    def advance(self, current: Floats) -> Floats:
        """Currents (t, B, N) -> membranes (t, B, N)."""
        out = np.empty_like(current)
        cpu.integrate(current, self.beta, self.v, out, work=current.size)
        self.steps += current.shape[0]
        return out

    def state(self) -> NeuronState:
        """The state after the last step."""
        return NeuronState(torch.from_numpy(self.v))

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec, updates = self.layer.spec, self.steps * self.v.size
        return [LayerCounts(spec.name, spec.kind, neuron_updates=updates, bytes_moved=updates * VALUE_BYTES)]
