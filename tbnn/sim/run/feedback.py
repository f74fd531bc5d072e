"""Neurons whose spikes return through a convolution, or after more than one step."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import words_for
from tbnn.ops.kernels import as_numpy
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedConv, PackedLeaky
from tbnn.sim.run.conv import ConvRun
from tbnn.sim.run.currents import Currents, ready
from tbnn.sim.run.neurons import LeakyRun
from tbnn.sim.run.sparse import weights_run
from tbnn.sim.run.state import NeuronState, Words


class FeedbackRun:
    """Neurons, step by step, and the layer through which the spikes of ``delay`` steps ago return."""

    def __init__(self, layer: PackedLeaky, batch: int, state: NeuronState | None, watched: Sequence[int] = ()) -> None:
        self.layer, spec, inner = layer, layer.spec, layer.feedback
        if inner is None:
            raise ValueError(f"{spec.name}: expected a feedback, got none")
        self.feedback = ConvRun(inner) if isinstance(inner, PackedConv) else weights_run(inner)
        alone = replace(layer, spec=replace(spec, feedback=None, delay=1), feedback=None)
        self.neuron = LeakyRun(alone, batch, None if state is None else state._replace(spikes=None), watched)
        self.seen = self.neuron.seen
        self.past = np.zeros((spec.delay, batch, words_for(spec.features)), np.int32)  # oldest first
        if state is not None:
            shape = self.past.shape[1:] if spec.delay == 1 else self.past.shape
            given = state.spikes
            if not isinstance(given, Tensor) or given.shape != shape or given.dtype != torch.int32:
                got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
                raise ValueError(f"state of {spec.name}: spikes: expected torch.int32 {shape}, got {got}")
            self.past = as_numpy(given).reshape(self.past.shape).copy()

    def advance(self, currents: Currents) -> Words:
        """Currents (t, B, N) -> packed spikes (t, B, words)."""
        delay, current = self.layer.spec.delay, currents.values()
        past = np.concatenate([self.past, np.empty((len(current), *self.past.shape[1:]), np.int32)])
        self.seen = np.empty((len(current), *self.neuron.seen.shape[1:]), np.float32)
        for t in range(len(current)):
            returned = self.feedback.advance(past[t : t + 1]).values()
            past[t + delay] = self.neuron.advance(ready(current[t : t + 1] + returned))[0]
            self.seen[t] = self.neuron.seen[0]
        self.past = past[len(current) :].copy()
        return past[delay:]

    def state(self) -> NeuronState:
        """The state after the last step; spikes (B, words), or those of the last steps, (delay, B, words), oldest first."""
        past = self.past[0] if self.layer.spec.delay == 1 else self.past
        return self.neuron.state()._replace(spikes=torch.from_numpy(past.copy()))

    def counts(self) -> list[LayerCounts]:
        """The neurons' row, and the feedback's before it."""
        return [*self.feedback.counts(), *self.neuron.counts()]
