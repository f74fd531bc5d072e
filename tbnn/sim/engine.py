"""Where a stream's layers run: on the CPU, or on a GPU."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedLayer
from tbnn.sim.run import FeedbackRun, IntegratorRun, LeakyRun, State, run_chunk, start

Watched = Mapping[str, tuple[int, ...]]
"""Neurons whose membranes are kept, by the name of their layer."""


class CpuEngine:
    """Layers on the CPU."""

    device = torch.device("cpu")

    def __init__(self, layers: tuple[PackedLayer, ...], batch: int, state: State, watched: Watched) -> None:
        # Kernels take neurons in ascending order; places: where those asked for lie in it.
        self.runs = start(layers, batch, state, {name: tuple(sorted(neurons)) for name, neurons in watched.items()})
        self.places = {name: [sorted(neurons).index(i) for i in neurons] for name, neurons in watched.items()}

    def chunk(self, words: Tensor) -> dict[str, Tensor]:
        """Advance by packed words (t, B, words): the spikes of every spiking layer and the output, by layer."""
        return {name: torch.from_numpy(x) for name, x in run_chunk(self.runs, words.numpy()).items()}

    def membranes(self) -> dict[str, Tensor]:
        """The watched membranes of the last chunk, float32 (t, B, neurons) each."""
        runs = {
            run.layer.spec.name: run for run in self.runs if isinstance(run, LeakyRun | FeedbackRun | IntegratorRun)
        }
        return {name: torch.from_numpy(runs[name].seen[..., places]) for name, places in self.places.items()}

    def snapshot(self) -> None:
        """Nothing: what can go wrong here goes wrong before anything has moved."""
        return

    def restore(self, before: Any) -> None:
        """Nothing to put back."""
        return

    def state(self) -> State:
        """One entry a layer."""
        return tuple(run.state() for run in self.runs)

    def counts(self) -> tuple[LayerCounts, ...]:
        """The work so far."""
        return tuple(row for run in self.runs for row in run.counts())


class GpuEngine:
    """Layers on a GPU. Raises as :func:`tbnn.sim.gpu.start_gpu`."""

    def __init__(self, layers: tuple[PackedLayer, ...], batch: int, state: State, device: torch.device) -> None:
        from tbnn.sim.gpu import start_gpu

        self.device = device
        self.runs = start_gpu(layers, batch, state, device)

    def chunk(self, words: Tensor) -> dict[str, Tensor]:
        """As :meth:`CpuEngine.chunk`; tensors on the device."""
        from tbnn.sim.gpu import run_chunk_gpu

        return run_chunk_gpu(self.runs, words)

    def membranes(self) -> dict[str, Tensor]:
        """None are kept here."""
        return {}

    def snapshot(self) -> Any:
        """All that a chunk changes."""
        from tbnn.sim.gpu import snapshot

        return snapshot(self.runs)

    def restore(self, before: Any) -> None:
        """Put everything back to a snapshot."""
        from tbnn.sim.gpu import restore

        restore(self.runs, before)

    def state(self) -> State:
        """One entry a layer, on the CPU."""
        return tuple(run.state() for run in self.runs)

    def counts(self) -> tuple[LayerCounts, ...]:
        """The work so far."""
        return tuple(row for run in self.runs for row in run.counts())
