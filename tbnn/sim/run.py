"""Run packed layers over chunks of time on the CPU, from packed bits only; state is carried from chunk to chunk."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import WORD_BITS, wide_words, words_for
from tbnn.ops.binary_linear.cpu import binary_linear_cpu
from tbnn.ops.kernels import as_numpy
from tbnn.ops.lif.cpu import RESETS
from tbnn.sim import cpu
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedIntegrator, PackedLayer, PackedLeaky, PackedLinear

Words = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

NOTHING = np.empty(0, np.float32)  # an offset or a bias that is not there
WORD_BYTES, VALUE_BYTES = np.dtype(np.int32).itemsize, np.dtype(np.float32).itemsize


class NeuronState(NamedTuple):
    """What a neuron or a readout carries from step to step."""

    v: Tensor
    """Membranes (B, N), float32."""
    spikes: Tensor | None = None
    """With feedback: the packed spikes of the last step, int32 (B, words)."""


class LinearRun:
    """A binary linear layer at work: its sign words block by block, and what it has done."""

    def __init__(self, layer: PackedLinear) -> None:
        self.layer, spec = layer, layer.spec
        self.rows = 0
        self.spikes_in = 0
        signs = as_numpy(layer.signs)
        self.blocks: list[tuple[slice, npt.NDArray[np.uint64], Floats, Floats]] = []
        for k, lo in enumerate(spec.starts):
            part = slice(words_for(lo), words_for(min(lo + spec.block, spec.in_features)))
            scale, offset = as_numpy(layer.scale[:, k]), None if layer.offset is None else as_numpy(layer.offset[:, k])
            self.blocks.append((part, wide_words(signs[:, part]), scale, NOTHING if offset is None else offset))
        self.bias = NOTHING if layer.bias is None else as_numpy(layer.bias)

    def current(self, words: Words, bias: Floats | None = None) -> Floats:
        """Packed spikes (M, words) -> currents (M, out_features); ``bias`` takes the place of the layer's own."""
        rows, columns = words.shape[0], self.layer.spec.out_features
        product, y = np.empty((rows, columns), np.int32), np.empty((rows, columns), np.float32)
        bias = self.bias if bias is None else bias
        for k, (part, signs, scale, offset) in enumerate(self.blocks):
            spikes = words[:, part]
            ones = spikes_in(spikes)
            # A word of popcounts costs far less than one element of other kernels.
            work = spikes.size * columns // WORD_BITS
            binary_linear_cpu(wide_words(spikes), signs, ones, product, work=work)
            last = k == len(self.blocks) - 1
            cpu.scale_block(product, ones, scale, offset, k == 0, bias if last else NOTHING, y, work=y.size)
            self.spikes_in += int(ones.sum(dtype=np.int64))
        self.rows += rows
        return y

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        stored = sum(tensor.nbytes for tensor in self.layer.tensors().values())
        row = LayerCounts(
            spec.name,
            spec.kind,
            dense_synops=self.rows * spec.in_features * spec.out_features,
            effective_synops=self.spikes_in * spec.out_features,
            bytes_moved=self.rows * words_for(spec.in_features) * WORD_BYTES + stored,
        )
        return [row]


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
            self.last = _given_spikes(layer, batch, state)
        self.steps = self.spikes = 0

    def spiking(self, current: Floats) -> Words:
        """Currents (t, B, N) -> packed spikes (t, B, words)."""
        words = np.empty((*current.shape[:2], words_for(self.layer.spec.features)), np.int32)
        if self.feedback is None:
            self._advance(current, words)
        else:
            for t in range(current.shape[0]):
                returned = self.feedback.current(self.last, self.first_bias)
                self.first_bias = None
                np.add(current[t], returned, out=returned)
                self._advance(returned[None], words[t : t + 1])
                self.last = words[t]
        self.steps += current.shape[0]
        self.spikes += int(spikes_in(words).sum(dtype=np.int64))
        return words

    def _advance(self, current: Floats, words: Words) -> None:
        packed = words.view(np.uint32)
        cpu.packed_lif(current, self.beta, self.threshold, self.reset, self.v, packed, work=current.size)

    def state(self) -> NeuronState:
        """The state after the last step."""
        last = None if self.feedback is None else torch.from_numpy(self.last.copy())
        return NeuronState(torch.from_numpy(self.v), last)

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


class IntegratorRun:
    """A readout at work."""

    def __init__(self, layer: PackedIntegrator, batch: int, state: NeuronState | None) -> None:
        self.layer = layer
        self.beta = spread(layer.beta, layer.spec.features)
        self.v = starting_membranes(layer, batch, state)
        self.steps = 0

    def integrate(self, current: Floats) -> Floats:
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


Run = LinearRun | LeakyRun | IntegratorRun


def start(layers: tuple[PackedLayer, ...], batch: int, state: tuple[NeuronState | None, ...]) -> list[Run]:
    """The layers ready to run from ``state``, one entry a layer, None for rest."""
    runs: list[Run] = []
    for layer, layer_state in zip(layers, state, strict=True):
        if isinstance(layer, PackedLinear):
            runs.append(LinearRun(layer))
        elif isinstance(layer, PackedLeaky):
            runs.append(LeakyRun(layer, batch, layer_state))
        else:
            runs.append(IntegratorRun(layer, batch, layer_state))
    return runs


def run_chunk(runs: list[Run], words: Words) -> dict[str, Words | Floats]:
    """Advance every layer by the packed input (t, B, words): each spiking layer's spikes, and the last one's output."""
    steps, batch = words.shape[:2]
    out: dict[str, Words | Floats] = {}
    values: Floats | None = None
    for run in runs:
        if isinstance(run, LinearRun):
            values = run.current(words.reshape(steps * batch, -1)).reshape(steps, batch, -1)
        elif values is None:
            raise ValueError(f"{run.layer.spec.name}: expected currents from a layer before it, got none")
        elif isinstance(run, LeakyRun):
            words, values = run.spiking(values), None
            out[run.layer.spec.name] = words
        else:
            values = run.integrate(values)
    if values is not None:
        out[runs[-1].layer.spec.name] = values
    return out


def spikes_in(words: Words) -> npt.NDArray[np.int32]:
    """The number of spikes in each row of words: (..., W) -> (...)."""
    return np.bitwise_count(np.ascontiguousarray(words).view(np.uint32)).sum(-1, dtype=np.int32)


def spread(values: Tensor, features: int) -> Floats:
    """(1,) or (features,) -> (features,)."""
    return as_numpy(values.expand(features))


def starting_membranes(layer: PackedLeaky | PackedIntegrator, batch: int, state: NeuronState | None) -> Floats:
    """Membranes (B, N) of this simulation's own: zeros, or a copy of the given state's after a check."""
    shape = (batch, layer.spec.features)
    if state is None:
        return np.zeros(shape, np.float32)
    _check_state(layer.spec.name, "v", state.v, shape, torch.float32)
    return as_numpy(state.v).copy()


def _given_spikes(layer: PackedLeaky, batch: int, state: NeuronState) -> Words:
    """The last step's packed spikes of a state that has to have them."""
    _check_state(layer.spec.name, "spikes", state.spikes, (batch, words_for(layer.spec.features)), torch.int32)
    return as_numpy(state.spikes).copy()  # pyright: ignore[reportOptionalMemberAccess]


def _check_state(name: str, what: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"state of {name}: {what}: expected {dtype} {shape}, got {got}")
