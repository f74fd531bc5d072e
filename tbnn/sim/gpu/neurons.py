"""Spiking neurons and readouts at work on a device."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from tbnn.bits import pack_bits, words_for
from tbnn.ops.binary_linear.gpu import count_rows_gpu
from tbnn.ops.lif import LifState, Second, SpikeGradient, lif
from tbnn.ops.lif.cpu import RESETS
from tbnn.ops.lif.gpu import integrate_gpu
from tbnn.sim.counts import LayerCounts
from tbnn.sim.gpu.base import GpuRun
from tbnn.sim.gpu.graph import GRAPH_STEPS, StepGraph
from tbnn.sim.gpu.launch import Neurons, fused_scan, fused_step, fuses, scan
from tbnn.sim.gpu.linear import WORD_BYTES, LinearRun, Pending, weights_run
from tbnn.sim.layers import PackedIntegrator, PackedLeaky
from tbnn.sim.run import NeuronState
from tbnn.sim.run.state import VALUE_BYTES, given_spikes, starting_membranes


class LeakyRun(GpuRun):
    """Spiking neurons at work, with their membranes and, where they have one, their feedback."""

    carried: ClassVar[tuple[str, ...]] = ("v", "last", "first_bias", "steps", "spikes", "cell")

    def __init__(self, layer: PackedLeaky, batch: int, state: NeuronState | None, device: torch.device) -> None:
        self.layer, self.device, spec = layer, device, layer.spec
        self.feedback = None if layer.feedback is None else weights_run(layer.feedback, device)  # pyright: ignore[reportArgumentType]
        beta, threshold = (t.expand(spec.features).contiguous().to(device) for t in (layer.beta, layer.threshold))
        self.neurons = Neurons(beta, threshold, RESETS[spec.reset])
        self.v = torch.from_numpy(starting_membranes(layer, batch, state)).to(device)
        self.last = torch.zeros((batch, words_for(spec.features)), dtype=torch.int32, device=device)
        # Before the first step nothing has left the neuron, not even the constant part of a denoised spike.
        self.first_bias = None if layer.rest_bias is None or state is not None else layer.rest_bias.to(device)
        if self.feedback is not None and state is not None:
            self.last = torch.from_numpy(given_spikes(layer, batch, state)).to(device)
        self.steps, self.spikes = 0, torch.zeros((), dtype=torch.int64, device=device)
        self.gated = bool(spec.second_size or spec.refractory or spec.winners)
        self.cell = _cell_of(layer, state, device) if self.gated else None
        self.second = None if layer.second is None else Second(*layer.second.to(device).unbind(0))
        self.graph: StepGraph | None = None

    def advance(self, x: Tensor | Pending) -> Tensor:
        """Currents (t, B, N), or packed spikes on their way through weights -> packed spikes (t, B, words)."""
        if isinstance(x, Pending):
            words = self._through(x.run, x.words)
        elif self.feedback is None:
            words = self._scan(x)
        else:
            words = self._recur(x, self.feedback)
        self.steps += words.shape[0]
        self.spikes = self.spikes + count_rows_gpu(words.flatten(0, 1))[0].sum(dtype=torch.int64)
        return words

    def _through(self, weights: LinearRun, words: Tensor) -> Tensor:
        """Packed spikes (t, B, words) through one block of weights and these plain neurons, no currents in memory."""
        words, (block,) = words.contiguous(), weights.blocks
        rows = words.flatten(0, 1)
        if fuses(words, block.weights):
            weights.count(rows, block)
            weights.took("fused")
            out, self.v = fused_scan(words, block.weights, weights.bias, self.neurons, self.v)
        else:
            product, ones = weights.product(rows, block)
            source = product.unflatten(0, words.shape[:2])
            out, self.v = scan(source, self.neurons, self.v, ones, block.weights, weights.bias)
        weights.rows += len(rows)
        return out

    def _scan(self, current: Tensor) -> Tensor:
        """Currents (t, B, N) -> packed spikes (t, B, words)."""
        if self.gated:
            return self._by_operator(current)
        words, self.v = scan(current, self.neurons, self.v)
        return words

    @torch.no_grad()
    def _by_operator(self, current: Tensor) -> Tensor:
        """Neurons with a second state or gates, by the very operator that trained them."""
        spec, neurons = self.layer.spec, self.neurons
        spread = None if self.second is None else Second(*(c.expand(spec.features) for c in self.second))
        out, self.cell, _ = lif(
            current, neurons.beta, neurons.threshold, self.cell, second=spread, reset=spec.reset,
            refractory=spec.refractory, winners=spec.winners or None, gradient=SpikeGradient(gradient="surrogate"),
        )  # fmt: skip
        return pack_bits(out.bool())

    def _recur(self, current: Tensor, feedback: LinearRun) -> Tensor:
        """Currents (t, B, N) and the spikes that return -> packed spikes (t, B, words)."""
        current = current.contiguous()
        words = torch.empty((*current.shape[:2], self.last.shape[1]), dtype=torch.int32, device=current.device)
        if len(feedback.blocks) == 1 and not self.gated:
            self._recur_fused(current, feedback, words)
            return words
        for t in range(len(current)):
            returned = feedback.current(self.last, self.first_bias)
            self.first_bias = None
            words[t] = self._scan((current[t] + returned)[None])[0]
            self.last = words[t]
        self.last = self.last.clone()  # not a view that keeps all of them
        return words

    def _recur_fused(self, current: Tensor, feedback: LinearRun, words: Tensor) -> None:
        """Plain neurons and a feedback of one block: a kernel a step, or a graph of many."""
        (block,), steps, v, last = feedback.blocks, len(current), self.v.clone(), self.last
        t = 0
        if self.first_bias is not None:
            fused_step(last, block.weights, self.first_bias, self.neurons, current[0], v, words[0])
            t = 1
        while steps - t >= GRAPH_STEPS and self.device.type == "cuda":
            before = last if t == 0 else words[t - 1]
            if self.graph is None:
                self.graph = StepGraph(self._step, v, before)
            self.graph.play(before, current[t : t + GRAPH_STEPS], v, words[t : t + GRAPH_STEPS])
            t += GRAPH_STEPS
        for i in range(t, steps):
            self._step(last if i == 0 else words[i - 1], current[i], v, words[i])
        feedback.count(torch.cat([last[None], words[:-1]]).flatten(0, 1), block)
        feedback.took("fused")
        feedback.rows += steps * last.shape[0]
        self.v, self.last, self.first_bias = v, words[-1].clone(), None

    def _step(self, last: Tensor, current: Tensor, v: Tensor, out: Tensor) -> None:
        if self.feedback is None:
            raise RuntimeError(f"{self.layer.spec.name}: a step needs a feedback")
        fused_step(last, self.feedback.blocks[0].weights, self.feedback.bias, self.neurons, current, v, out)

    def snapshot(self) -> dict[str, Any]:
        """As any, and the feedback's."""
        return super().snapshot() | {"feedback": None if self.feedback is None else self.feedback.snapshot()}

    def restore(self, kept: dict[str, Any]) -> None:
        """As any, and the feedback's."""
        super().restore({name: kept[name] for name in self.carried})
        if self.feedback is not None:
            self.feedback.restore(kept["feedback"])

    def state(self) -> NeuronState:
        """The state after the last step."""
        last = None if self.feedback is None else self.last.cpu()
        cell = None if self.cell is None else LifState._make(None if t is None else t.cpu() for t in self.cell)
        return NeuronState(self.v.cpu() if cell is None else cell.v, last, cell)

    def counts(self) -> list[LayerCounts]:
        """The neurons' row, and the feedback's before it."""
        spec, batch, spikes = self.layer.spec, self.v.shape[0], int(self.spikes)
        updates = self.steps * batch * spec.features
        row = LayerCounts(
            spec.name,
            spec.kind,
            spikes=spikes,
            neuron_updates=updates,
            bytes_moved=self.steps * batch * words_for(spec.features) * WORD_BYTES,
            firing_rate=spikes / max(updates, 1),
        )
        return [*([] if self.feedback is None else self.feedback.counts()), row]


class IntegratorRun(GpuRun):
    """A readout at work."""

    carried: ClassVar[tuple[str, ...]] = ("v", "steps")

    def __init__(self, layer: PackedIntegrator, batch: int, state: NeuronState | None, device: torch.device) -> None:
        self.layer, self.steps = layer, 0
        self.beta = layer.beta.expand(layer.spec.features).contiguous().to(device)
        self.v = torch.from_numpy(starting_membranes(layer, batch, state)).to(device)

    @torch.no_grad()
    def advance(self, current: Tensor) -> Tensor:
        """Currents (t, B, N) -> membranes (t, B, N)."""
        out = integrate_gpu(current, self.beta, self.v)
        self.v = out[-1].clone()
        self.steps += current.shape[0]
        return out

    def state(self) -> NeuronState:
        """The state after the last step."""
        return NeuronState(self.v.cpu())

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec, updates = self.layer.spec, self.steps * self.v.numel()
        return [LayerCounts(spec.name, spec.kind, neuron_updates=updates, bytes_moved=updates * VALUE_BYTES)]


def _cell_of(layer: PackedLeaky, state: NeuronState | None, device: torch.device) -> LifState | None:
    """The given state of neurons with a second state or gates, on the device; None for rest."""
    if state is None:
        return None
    if state.cell is None:
        raise ValueError(f"state of {layer.spec.name}: expected the cell's state, got none")
    return LifState._make(None if t is None else t.to(device) for t in state.cell)
