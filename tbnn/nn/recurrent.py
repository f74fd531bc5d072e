"""Recurrence: a neuron whose spikes return through a layer one step later."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tbnn.nn.leaky import Leaky
from tbnn.nn.linear import BinaryLinear
from tbnn.ops.lif import LifState


class RecurrentState(NamedTuple):
    """What a recurrent layer carries from step to step."""

    neuron: LifState | None
    """The neuron's own state."""
    out: Tensor
    """What left the neuron at the last step, (B, N)."""


class Recurrent(nn.Module):
    """``out[t] = neuron(x[t] + layer(out[t−1]))``: any neuron, any layer from N to N features.

    ``recurrent(x, state=None) -> (out, state)`` with x (T, B, N); ``recurrent.step(x_t, state)`` with (B, N). The layer's
    weights are quantised once a sequence. The neuron advances one step at a time, so the statistics of its gradient
    run over one step's batch and features, whatever its ``stats``.

    Raises:
        ValueError: a state of another shape, or a layer that does not map N features to N.
    """

    def __init__(self, neuron: Leaky, recurrent_layer: nn.Module) -> None:
        super().__init__()
        sizes = getattr(recurrent_layer, "in_features", None), getattr(recurrent_layer, "out_features", None)
        if sizes[0] != sizes[1]:
            raise ValueError(f"Recurrent: expected a layer from N to N features, got {sizes[0]} -> {sizes[1]}")
        self.neuron = neuron
        self.recurrent_layer = recurrent_layer

    def _rest(self, x: Tensor) -> RecurrentState:
        return RecurrentState(None, torch.zeros_like(x))

    def _advance(
        self, x: Tensor, state: RecurrentState, layer: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, RecurrentState]:
        if state.out.shape != x.shape:
            raise ValueError(f"state.out: expected {tuple(x.shape)}, got {tuple(state.out.shape)}")
        out, neuron = self.neuron.step(x + layer(state.out), state.neuron)
        return out, RecurrentState(neuron, out)

    def forward(self, x: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        if x.ndim != 3 or x.shape[0] == 0:
            raise ValueError(f"Recurrent: expected (T, B, N) with T >= 1, got {tuple(x.shape)}")
        layer = prepared(self.recurrent_layer)
        state = self._rest(x[0]) if state is None else state
        out = []
        for x_t in x.unbind(0):
            out_t, state = self._advance(x_t, state, layer)
            out.append(out_t)
        return torch.stack(out), state

    def step(self, x: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        """One step: x (B, N) -> (out (B, N), state)."""
        return self._advance(x, self._rest(x) if state is None else state, prepared(self.recurrent_layer))


def prepared(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer as a function whose weights are quantised once."""
    return layer.prepare() if isinstance(layer, BinaryLinear) else layer
