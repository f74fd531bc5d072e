"""Recurrence: a neuron whose spikes return through a layer one step or more later."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tbnn.nn.linear import BinaryLinear
from tbnn.nn.neuron import Neuron
from tbnn.nn.recorded import Recorded
from tbnn.nn.stateful import Stateful, guard, lengths_of
from tbnn.ops.kernels import backend_for
from tbnn.ops.layer_lif import Memory, WeightedSpikes
from tbnn.ops.recurrent_lif import Feedback, recurrent_lif


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

    On the CPU, and on CUDA in float32, a sequence through neurons of the library that emit bits and a :class:`BinaryLinear`
    of few bits, one block a row, is one fused call, forward and backward (:func:`tbnn.ops.recurrent_lif.recurrent_lif`);
    all else is a loop over time. So are statistics joined over processes.

    Args:
        neuron: a spiking neuron.
        recurrent_layer: from the neuron's features to the same.
        delay: steps a spike takes to return, at least 1.

    Attributes:
        memory: the share of steps whose states a fused call keeps for backward, see :data:`tbnn.ops.layer_lif.Memory`.

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
        self.memory: Memory = "speed"

    def forward(
        self, x: Tensor | WeightedSpikes, state: RecurrentState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        if x.ndim < 3 or 0 in x.shape:
            raise ValueError(f"Recurrent: expected (T, B, features...), no axis empty, got {tuple(x.shape)}")
        lengths = None if mask is None else lengths_of(mask, *x.shape[:2], at_start=state is None)
        state = guard(state, "Recurrent")
        fused = self._fused(x, state, lengths) if self.fuses(x) else None
        out, state = self._run(_current(x), state, mask) if fused is None else fused
        self.neuron.observe(out, lengths)
        return out, state

    def step(
        self, x: Tensor, state: RecurrentState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """One step: x (B, features...) -> (out (B, features...), state)."""
        out, state = self._run(x.unsqueeze(0), guard(state, "Recurrent"), None if mask is None else mask.unsqueeze(0))
        return out.squeeze(0), state

    @property
    def fusible(self) -> bool:
        """Whether the fused kernels know these neurons and this layer; if so :meth:`forward` also takes spikes and weights."""
        neuron, layer = self.neuron, self.recurrent_layer
        if (
            type(layer) is not BinaryLinear or type(self)._run is not Recurrent._run
        ):  # a class made of it may do otherwise
            return False
        known = type(neuron)._lif is Neuron._lif and type(neuron).run is Neuron.run
        coded = layer.bits is not None and (layer.block is None or layer.block >= layer.in_features)
        return known and coded and neuron.spike_gradient.emit == "bits"

    def fuses(self, x: Tensor | WeightedSpikes) -> bool:
        """Whether a fused call takes an input like x."""
        if not self.fusible or self.neuron.joined or torch.compiler.is_compiling():
            return False
        layer = cast("BinaryLinear", self.recurrent_layer)
        known = x.shape[2:] == (layer.in_features,) and x.dtype == layer.weight.dtype
        return known and (isinstance(x, WeightedSpikes) or backend_for(x, gpu_dtypes=(torch.float32,)) != "reference")

    def _fused(
        self, x: Tensor | WeightedSpikes, state: RecurrentState | None, lengths: Tensor | None
    ) -> tuple[Tensor, RecurrentState] | None:
        """What :meth:`forward` returns, but for a state that no spikes left."""
        neuron, layer = self.neuron, cast("BinaryLinear", self.recurrent_layer)
        past = torch.stack(self._past(x, state, layer.weight))
        if not bool(((past == 0) | (past == 1)).all()):
            return None
        weight, (values, scale, offset) = layer.quantized()
        feedback = Feedback(
            weight, values, scale.squeeze(1), None if layer.form == "linear" else offset.squeeze(1), layer.bias
        )
        beta, second = neuron.coefficients()
        out, after, past = recurrent_lif(
            x,
            feedback,
            beta,
            neuron.effective_threshold(x.shape[2:]),
            None if state is None else state.neuron,
            past,
            delay=self.delay,
            second=second,
            reset=neuron.reset_mechanism,
            refractory=neuron.refractory,
            winners=None if neuron.winners is None else neuron.winners.of(layer.in_features),
            gradient=neuron.step_gradient,
            lengths=lengths,
            memory=x.memory if isinstance(x, WeightedSpikes) else self.memory,
        )
        return out, RecurrentState(after, past[0] if self.delay == 1 else past)

    def _run(self, x: Tensor, state: RecurrentState | None, mask: Tensor | None) -> tuple[Tensor, RecurrentState]:
        n = getattr(self.recurrent_layer, "in_features", None)
        if n is not None and x.shape[2:] != (n,):
            raise ValueError(f"Recurrent: expected (T, B, {n}), got {tuple(x.shape)}")
        layer = prepared(self.recurrent_layer)
        past = self._past(x, state, x)
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

    def _past(self, x: Tensor | WeightedSpikes, state: RecurrentState | None, like: Tensor) -> list[Tensor]:
        """What left the neuron in the last steps, oldest first; at rest zeros, made ``like`` a tensor."""
        if state is None:
            return [like.new_zeros(x.shape[1:])] * self.delay
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


def _current(x: Tensor | WeightedSpikes) -> Tensor:
    return x.compose() if isinstance(x, WeightedSpikes) else x
