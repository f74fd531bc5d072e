"""Recurrence: a neuron whose spikes return through a layer one step or more later."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tbnn.nn.neuron import Neuron
from tbnn.nn.recorded import Recorded
from tbnn.nn.stateful import Stateful, guard, lengths_of


class RecurrentState(NamedTuple):
    """What a recurrent layer carries from step to step."""

    neuron: Any
    """The neuron's own state."""
    out: Tensor
    """What left the neuron at the last step, (B, features...); with a longer delay at the last steps, (delay, B,
    features...), oldest first."""


class Recurrent(Recorded, Stateful):
    """``out[t] = neuron(x[t] + layer(out[t−delay]))``: any neuron, any layer that keeps the features' shape.

    ``recurrent(x, state=None, mask=None) -> (out, state)`` with x (T, B, features...); ``recurrent.step(x_t, state)`` with
    (B, features...). The layer's weights are quantised once a sequence. The neuron advances one step at a time, so the
    statistics of its gradient run over one step's batch and features, whatever its ``stats``.

    Args:
        neuron: a spiking neuron.
        recurrent_layer: from the neuron's features to the same.
        delay: steps a spike takes to return, at least 1.

    Raises:
        ValueError: a delay below 1; a state of another shape; a layer that does not keep the features' shape.
    """

    def __init__(self, neuron: Neuron, recurrent_layer: nn.Module, delay: int = 1) -> None:
        super().__init__()
        for kind in ("features", "channels"):
            sizes = [getattr(recurrent_layer, f"{way}_{kind}", None) for way in ("in", "out")]
            if sizes[0] != sizes[1]:
                raise ValueError(f"Recurrent: expected a layer from N to N {kind}, got {sizes[0]} -> {sizes[1]}")
        if delay < 1:
            raise ValueError(f"delay: expected a number of steps >= 1, got {delay}")
        self.neuron = neuron
        self.recurrent_layer = recurrent_layer
        self.delay = delay

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        if x.ndim < 3 or x.numel() == 0:
            raise ValueError(f"Recurrent: expected (T, B, features...), no axis empty, got {tuple(x.shape)}")
        lengths = None if mask is None else lengths_of(mask, *x.shape[:2], at_start=state is None)
        out, state = self._run(x, guard(state, "Recurrent"), mask)
        self.neuron.observe(out, lengths)
        return out, state

    def step(
        self, x: Tensor, state: RecurrentState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """One step: x (B, features...) -> (out (B, features...), state)."""
        out, state = self._run(x.unsqueeze(0), guard(state, "Recurrent"), None if mask is None else mask.unsqueeze(0))
        return out.squeeze(0), state

    def _run(self, x: Tensor, state: RecurrentState | None, mask: Tensor | None) -> tuple[Tensor, RecurrentState]:
        n = getattr(self.recurrent_layer, "in_features", None)
        if n is not None and x.shape[2:] != (n,):
            raise ValueError(f"Recurrent: expected (T, B, {n}), got {tuple(x.shape)}")
        layer = prepared(self.recurrent_layer)
        past = self._past(x, state)
        neuron = None if state is None else state.neuron
        out = []
        for t, x_t in enumerate(x.unbind(0)):
            feedback = layer(past[0])
            if feedback.shape != x_t.shape:
                raise ValueError(
                    f"Recurrent: expected a layer that keeps the shape {tuple(x_t.shape)}, got {tuple(feedback.shape)}"
                )
            lengths = None if mask is None else mask[t].long()
            out_t, neuron = self.neuron.run((x_t + feedback).unsqueeze(0), neuron, lengths, self.neuron.step_gradient)
            out.append(out_t.squeeze(0))
            left = out[-1]
            if mask is not None:  # past its end a sequence's history stands still
                runs = mask[t].reshape(-1, *[1] * (x_t.ndim - 1))
                past = [torch.where(runs, b, a) for a, b in zip(past, [*past[1:], left], strict=True)]
            else:
                past = [*past[1:], left]
        return torch.stack(out), RecurrentState(neuron, past[0] if self.delay == 1 else torch.stack(past))

    def _past(self, x: Tensor, state: RecurrentState | None) -> list[Tensor]:
        """What left the neuron in the last steps, oldest first."""
        if state is None:
            return [torch.zeros_like(x[0])] * self.delay
        shape = x.shape[1:] if self.delay == 1 else (self.delay, *x.shape[1:])
        if state.out.shape != shape:
            raise ValueError(f"state.out: expected {tuple(shape)}, got {tuple(state.out.shape)}")
        return [state.out] if self.delay == 1 else list(state.out.unbind(0))

    def extra_repr(self) -> str:
        return "" if self.delay == 1 else f"delay={self.delay}"


def prepared(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer as a function whose weights are quantised once."""
    prepare = getattr(layer, "prepare", None)
    return layer if prepare is None else prepare()
