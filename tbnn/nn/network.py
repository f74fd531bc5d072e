"""Layers in order, under one (x, state) -> (y, state) contract."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.bits import unpack_bits
from tbnn.nn.recorded import Recorded
from tbnn.nn.stateful import Stateful, guard, lengths_of

State = tuple[Any, ...]

FOLDED = (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d)
"""Layers of torch that know one batch axis: they see time and batch as one."""


class Network(Recorded, nn.Module):
    """A sequence of layers: ``network(x, state=None, mask=None) -> (y, state)``, time on axis 0.

    Layers that remember (:class:`tbnn.nn.stateful.Stateful`: neurons, readouts, recurrence, delays) pass their states; any
    other module is called as ``y = layer(x)`` on (T, B, features...), torch's convolutions, pools and batch norms with time
    and batch folded into one axis. The state is a tuple with one entry a layer, None for those without.

    Args:
        layers: modules, in order.
        input_shape: the features of one time step, (C, H, W) say; the input may then be flat or packed. Without it
            they are what is passed, and packed words need a first layer with ``in_features``.

    Raises:
        ValueError: no layers; an input of other features than ``input_shape``; packed words of another width; a state
            of another length; a mask of another shape, with gaps, or empty for a sequence.
        RuntimeError: in backward, for a state whose own graph is already used up; it names the state.

    >>> net = Network([BinaryLinear(8, 16), Leaky(0.9), BinaryLinear(16, 4), LeakyIntegrator(0.9)])
    >>> y, state = net(torch.ones(10, 3, 8))
    """

    def __init__(self, layers: Iterable[nn.Module], input_shape: Iterable[int] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not len(self.layers):
            raise ValueError("Network: expected at least one layer, got none")
        self.input_shape = None if input_shape is None else tuple(input_shape)
        if self.input_shape is not None and (not self.input_shape or min(self.input_shape) < 1):
            raise ValueError(f"input_shape: expected sizes >= 1, got {self.input_shape}")

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """x: float (T, B, features...) of 0/1, or packed int32 words (T, B, ceil(features/32)); mask: (T, B) or None."""
        if mask is not None:
            lengths_of(mask, *x.shape[:2], at_start=state is None)
        return self._run(self.unpacked(x), state, mask)

    def step(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """One step: x (B, features...) or packed words (B, ceil(features/32)), mask (B,) or None -> (y, state)."""
        mask = None if mask is None else mask.unsqueeze(0)
        y, state = self._run(self.unpacked(x.unsqueeze(0)), state, mask, one_step=True)
        return y.squeeze(0), state

    def _run(self, x: Tensor, state: State | None, mask: Tensor | None, one_step: bool = False) -> tuple[Tensor, State]:
        if state is not None and len(state) != len(self.layers):
            raise ValueError(f"state: expected one entry for each of {len(self.layers)} layers, got {len(state)}")
        before = state if state is not None else (None,) * len(self.layers)
        after = []
        for index, (layer, layer_state) in enumerate(zip(self.layers, before, strict=True)):
            if not isinstance(layer, Stateful):
                x = call_stateless(layer, x, mask)
            elif one_step:
                mask_t = None if mask is None else mask.squeeze(0)
                x, layer_state = layer.step(x.squeeze(0), guard(layer_state, f"layers.{index}"), mask_t)
                x = x.unsqueeze(0)
            else:
                x, layer_state = layer(x, guard(layer_state, f"layers.{index}"), mask)
            after.append(layer_state)
        return x, tuple(after)

    def unpacked(self, x: Tensor) -> Tensor:
        """The input as the first layer takes it: packed words as 0/1 values, flat features in ``input_shape``."""
        if x.dtype == torch.int32:
            features = math.prod(self.input_shape) if self.input_shape else getattr(self.layers[0], "in_features", None)
            if features is None:
                raise ValueError(
                    "Network: packed words need input_shape, or a first layer with in_features, "
                    "to know how many bits they hold"
                )
            x = unpack_bits(x, features, dtype=next(self.parameters()).dtype)
        if self.input_shape is None or x.shape[2:] == self.input_shape:
            return x
        if x.shape[2:] != (math.prod(self.input_shape),):
            raise ValueError(
                f"Network: expected (T, B, {', '.join(map(str, self.input_shape))}) or the same features flat, got {tuple(x.shape)}"
            )
        return x.reshape(*x.shape[:2], *self.input_shape)

    def extra_repr(self) -> str:
        return "" if self.input_shape is None else f"input_shape={self.input_shape}"


def call_stateless(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """A layer without state on x (T, B, features...); ``mask`` goes to the layers whose statistics need it."""
    if getattr(layer, "takes_mask", False):
        return layer(x, mask)
    if isinstance(layer, FOLDED):
        return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return layer(x)
