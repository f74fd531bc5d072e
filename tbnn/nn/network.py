"""Layers in order, under one (x, state) -> (y, state) contract."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.bits import unpack_bits
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.recurrent import Recurrent

STATEFUL = (Leaky, LeakyIntegrator, Recurrent)

State = tuple[Any, ...]


class Network(nn.Module):
    """A sequence of layers: ``network(x, state=None) -> (y, state)``, time on axis 0.

    Stateful layers (neurons, readouts, recurrence) pass their states; any other module is called as ``y = layer(x)``
    on (T, B, features...). The state is a tuple with one entry a layer, None for those without.

    Args:
        layers: modules, in order.

    Raises:
        ValueError: no layers; packed words of another width than the first layer's input; a state of another length.

    >>> net = Network([BinaryLinear(8, 16), Leaky(0.9), BinaryLinear(16, 4), LeakyIntegrator(0.9)])
    >>> y, state = net(torch.ones(10, 3, 8))
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not len(self.layers):
            raise ValueError("Network: expected at least one layer, got none")

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x: float (T, B, features...) of 0/1, or packed int32 words (T, B, ceil(features/32))."""
        return self._run(self.unpacked(x), state, "__call__")

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step: x (B, features...) or packed words (B, ceil(features/32)) -> (y, state)."""
        return self._run(self.unpacked(x), state, "step")

    def _run(self, x: Tensor, state: State | None, method: str) -> tuple[Tensor, State]:
        if state is not None and len(state) != len(self.layers):
            raise ValueError(f"state: expected one entry for each of {len(self.layers)} layers, got {len(state)}")
        before = state if state is not None else (None,) * len(self.layers)
        after = []
        for layer, layer_state in zip(self.layers, before, strict=True):
            if isinstance(layer, STATEFUL):
                x, layer_state = getattr(layer, method)(x, layer_state)
            else:
                x = layer(x)
            after.append(layer_state)
        return x, tuple(after)

    def unpacked(self, x: Tensor) -> Tensor:
        """Packed words as 0/1 values; anything else as it is."""
        if x.dtype != torch.int32:
            return x
        features = getattr(self.layers[0], "in_features", None)
        if features is None:
            raise ValueError(
                "Network: packed words need a first layer with in_features, to know how many bits they hold"
            )
        return unpack_bits(x, features, dtype=next(self.parameters()).dtype)


def detach(state: Any) -> Any:
    """The same state cut from the graph that made it, for truncated back-propagation: tuples and tensors, nested."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple):
        parts = [detach(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
