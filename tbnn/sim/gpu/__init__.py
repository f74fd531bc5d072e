"""Run packed layers over chunks of time on a GPU: the meaning of :mod:`tbnn.sim.run`, bit for bit.

Importing this needs no Triton; starting a run does. Under Triton's interpreter the runs take CPU tensors, for tests.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tbnn.sim.gpu.base import GpuRun
from tbnn.sim.gpu.device import DeviceMemoryError, check_device
from tbnn.sim.layers import (
    PackedConv,
    PackedDelay,
    PackedDelayed,
    PackedEdge,
    PackedIntegrator,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
    PackedPool,
    PackedSparse,
    PackedVoting,
)

if TYPE_CHECKING:
    from tbnn.sim.run import State

__all__ = ["DeviceMemoryError", "GpuRun", "check_device", "restore", "run_chunk_gpu", "snapshot", "start_gpu"]


def start_gpu(layers: tuple[PackedLayer, ...], batch: int, state: "State", device: torch.device) -> list[GpuRun]:
    """The layers ready to run on ``device`` from ``state``, one entry a layer (CPU tensors), None for rest.

    Raises ``ValueError`` for a state that does not fit, ``DeviceMemoryError`` where there is no room, and ``ValueError`` for
    a device other than CUDA where kernels are compiled.
    """
    from tbnn.ops.binary_linear.gpu import COMPILED

    if device.type != ("cuda" if COMPILED else "cpu"):
        raise ValueError(f"device: expected {'a CUDA device' if COMPILED else 'cpu (interpreted)'}, got {device}")
    runs: list[GpuRun] = []
    with _on(device):
        for i, (layer, layer_state) in enumerate(zip(layers, state, strict=True)):
            try:
                runs.append(_run_of(layer, batch, layer_state, device, layers[i + 1 : i + 2]))
            except torch.OutOfMemoryError as error:
                raise DeviceMemoryError(layer.spec.name, error) from error
    return runs


def _run_of(layer: Any, batch: int, state: Any, device: torch.device, follows: tuple[PackedLayer, ...]) -> GpuRun:
    from tbnn.sim.gpu.conv import ConvRun, PoolRun
    from tbnn.sim.gpu.delayed import DelayedRun
    from tbnn.sim.gpu.feedback import FeedbackRun
    from tbnn.sim.gpu.linear import weights_run
    from tbnn.sim.gpu.neurons import IntegratorRun, LeakyRun
    from tbnn.sim.gpu.wires import DelayRun, EdgeRun, VotingRun

    if isinstance(layer, PackedLinear | PackedSparse):
        one_block = isinstance(layer, PackedSparse) or len(layer.spec.starts) == 1
        return weights_run(layer, device, pends=one_block and any(map(_is_plain, follows)))
    if isinstance(layer, PackedConv):
        return ConvRun(layer, device)
    if isinstance(layer, PackedPool):
        return PoolRun(layer)
    if isinstance(layer, PackedVoting):
        return VotingRun(layer)
    if isinstance(layer, PackedEdge):
        return EdgeRun(layer)
    if isinstance(layer, PackedDelay):
        return DelayRun(layer, batch, state, device)
    if isinstance(layer, PackedDelayed):
        return DelayedRun(layer, batch, state, device)
    if isinstance(layer, PackedLeaky) and (layer.spec.delay > 1 or isinstance(layer.feedback, PackedConv)):
        return FeedbackRun(layer, batch, state, device)
    if isinstance(layer, PackedLeaky):
        return LeakyRun(layer, batch, state, device)
    if isinstance(layer, PackedIntegrator):
        return IntegratorRun(layer, batch, state, device)
    raise ValueError(f"{layer.spec.name}: expected a layer that runs on a GPU, got {layer.spec.kind}")


def _is_plain(layer: PackedLayer) -> bool:
    """Whether these are neurons of one state, without gates or feedback."""
    if not isinstance(layer, PackedLeaky):
        return False
    spec = layer.spec
    return layer.feedback is None and not (spec.second_size or spec.refractory or spec.winners)


def run_chunk_gpu(runs: list[GpuRun], words: Tensor) -> dict[str, Tensor]:
    """Advance every layer by the packed input, int32 (t, B, words) on the device: spikes of each spiking layer, and the output.

    Everything returned stays on the device. Where a layer fails, all layers are as before the chunk.

    Raises:
        DeviceMemoryError: a layer found no room.
    """
    from tbnn.sim.gpu.feedback import FeedbackRun
    from tbnn.sim.gpu.neurons import LeakyRun
    from tbnn.sim.gpu.wires import EdgeRun

    before, out = snapshot(runs), {}
    x: Any = words.contiguous()
    pile: list[Tensor] = []  # what residual blocks keep
    name = ""
    try:
        with _on(words.device):
            for run in runs:
                name = run.layer.spec.name
                x = run.turn(x, pile) if isinstance(run, EdgeRun) else run.advance(x)
                if isinstance(run, LeakyRun | FeedbackRun) or run is runs[-1]:
                    out[name] = x
    except torch.OutOfMemoryError as error:
        restore(runs, before)
        raise DeviceMemoryError(name, error) from error
    except BaseException:
        restore(runs, before)
        raise
    return out


def snapshot(runs: list[GpuRun]) -> list[dict[str, Any]]:
    """All that advancing changes, for :func:`restore`: references, no copies."""
    return [run.snapshot() for run in runs]


def restore(runs: list[GpuRun], before: list[dict[str, Any]]) -> None:
    """Put every run back to a snapshot."""
    for run, kept in zip(runs, before, strict=True):
        run.restore(kept)


def _on(device: torch.device) -> Any:
    """Make a CUDA device the current one: kernels run there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
