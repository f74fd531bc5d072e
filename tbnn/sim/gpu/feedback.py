"""Neurons whose spikes return through a convolution, or after more than one step, on a device."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tbnn.bits import words_for
from tbnn.sim.counts import LayerCounts
from tbnn.sim.gpu.base import GpuRun
from tbnn.sim.gpu.conv import ConvRun
from tbnn.sim.gpu.linear import weights_run
from tbnn.sim.gpu.neurons import LeakyRun
from tbnn.sim.layers import PackedConv, PackedLeaky
from tbnn.sim.run import NeuronState


class FeedbackRun(GpuRun):
    """Neurons, as many steps at a time as spikes take to return, and the layer through which they do."""

    carried: ClassVar[tuple[str, ...]] = ("past",)

    def __init__(self, layer: PackedLeaky, batch: int, state: NeuronState | None, device: torch.device) -> None:
        self.layer, spec, inner = layer, layer.spec, layer.feedback
        if inner is None:
            raise ValueError(f"{spec.name}: expected a feedback, got none")
        shape = (spec.delay, batch, words_for(spec.features))
        given = torch.zeros(shape, dtype=torch.int32) if state is None else state.spikes
        wanted = shape if state is None or spec.delay > 1 else shape[1:]
        if not isinstance(given, Tensor) or given.shape != wanted or given.dtype != torch.int32:
            got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
            raise ValueError(f"state of {spec.name}: spikes: expected torch.int32 {wanted}, got {got}")
        self.past = given.reshape(shape).to(device)  # oldest first
        self.feedback = ConvRun(inner, device) if isinstance(inner, PackedConv) else weights_run(inner, device)
        alone = replace(layer, spec=replace(spec, feedback=None, delay=1), feedback=None)
        self.neuron = LeakyRun(alone, batch, None if state is None else state._replace(spikes=None), device)

    def advance(self, current: Tensor) -> Tensor:
        """Currents (t, B, N) -> packed spikes (t, B, words)."""
        delay, steps = self.layer.spec.delay, len(current)
        past = torch.cat([self.past, self.past.new_empty((steps, *self.past.shape[1:]))])
        for t in range(0, steps, delay):
            part = slice(t, min(t + delay, steps))
            heard = past[part]
            returned = self.feedback.current(heard.flatten(0, 1)).unflatten(0, heard.shape[:2])
            past[part.start + delay : part.stop + delay] = self.neuron.advance(current[part] + returned)
        self.past = past[steps:].clone()
        return past[delay:]

    def snapshot(self) -> dict[str, Any]:
        """As any, and those of its parts."""
        return super().snapshot() | {"parts": (self.feedback.snapshot(), self.neuron.snapshot())}

    def restore(self, kept: dict[str, Any]) -> None:
        """As any, and those of its parts."""
        super().restore({"past": kept["past"]})
        for run, own in zip((self.feedback, self.neuron), kept["parts"], strict=True):
            run.restore(own)

    def state(self) -> NeuronState:
        """The state after the last step; spikes (B, words), or those of the last steps, (delay, B, words), oldest first."""
        past = self.past[0] if self.layer.spec.delay == 1 else self.past
        return self.neuron.state()._replace(spikes=past.cpu())

    def counts(self) -> list[LayerCounts]:
        """The neurons' row, and the feedback's before it."""
        return [*self.feedback.counts(), *self.neuron.counts()]
