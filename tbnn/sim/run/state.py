"""What is carried from step to step, and its checks."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import words_for
from tbnn.ops.kernels import as_numpy
from tbnn.ops.lif import LifState
from tbnn.sim.layers import PackedIntegrator, PackedLeaky

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
    cell: LifState | None = None
    """Neurons with a second state, refractory steps or winners: all that :func:`tbnn.ops.lif.lif` carries, (B, N) each."""


def spikes_in(words: Words) -> npt.NDArray[np.int32]:
    """The number of spikes in each row of words: (..., W) -> (...)."""
    return np.bitwise_count(np.ascontiguousarray(words).view(np.uint32)).sum(-1, dtype=np.int32)


def count_spikes(words: Words) -> int:
    """The number of spikes in all words."""
    return int(np.bitwise_count(words.view(np.uint32)).sum(dtype=np.int64))


def starting_membranes(layer: PackedLeaky | PackedIntegrator, batch: int, state: NeuronState | None) -> Floats:
    """Membranes (B, N) of this simulation's own: zeros, or a copy of the given state's after a check."""
    shape = (batch, layer.spec.features)
    if state is None:
        return np.zeros(shape, np.float32)
    _check_state(layer.spec.name, "v", state.v, shape, torch.float32)
    return as_numpy(state.v).copy()


def given_spikes(layer: PackedLeaky, batch: int, state: NeuronState) -> Words:
    """The last step's packed spikes of a state that has to have them."""
    _check_state(layer.spec.name, "spikes", state.spikes, (batch, words_for(layer.spec.features)), torch.int32)
    return as_numpy(state.spikes).copy()  # pyright: ignore[reportOptionalMemberAccess]


def _check_state(name: str, what: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"state of {name}: {what}: expected {dtype} {shape}, got {got}")
