"""Layers in order, under one (x, state) -> (y, state) contract."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from tbnn.bits import has_stray_bits, unpack_bits, words_for
from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.devices import check_devices
from tbnn.nn.fused import Group, group_at, weighted_spikes
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.pool import Flatten, MaxPool2d
from tbnn.nn.recorded import Recorded
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.stateful import Stateful, call_stateless, guard, lengths_of
from tbnn.nn.wire import Wire
from tbnn.ops.kernels import untraced
from tbnn.ops.layer_lif import SHARES, share_of

State = tuple[Any, ...]


class Network(Recorded, nn.Module):
    """A sequence of layers: ``network(x, state=None, mask=None) -> (y, state)``, time on axis 0.

    Layers that remember (:class:`tbnn.nn.stateful.Stateful`: neurons, readouts, recurrence, delays) pass their states; any
    other module is called as ``y = layer(x)`` on (T, B, features...), torch's convolutions, pools and batch norms with time
    and batch folded into one axis. The state is a tuple with one entry a layer, None for those without.

    On the CPU, each binary linear layer or convolution, a batch norm that may follow it, and the neurons run as one function
    of packed bits wherever bits enter it (:func:`tbnn.nn.fused.group_at`), without the current of the whole sequence, and
    hand packed bits on, through pools, to the next: the same numbers, but for the rounding of a batch norm. On a GPU linear
    layers of float32 do so whose neurons neither compete nor follow a norm; all else runs one layer after the other.
    ``memory`` says what these keep for backward:

    ==========  =======================================================================================
    "speed"     every membrane
    "balanced"  those of a quarter of the steps
    "minimal"   bits and checkpoints only: in long sequences about 1.5 bit a neuron and step; the rest is computed anew
    a number    as many membranes as a batch may keep in so many bytes, all layers together
    ==========  =======================================================================================

    Args:
        layers: modules, in order.
        input_shape: the features of one time step, (C, H, W) say; the input may then be flat or packed. Without it
            they are what is passed, and packed words need a first layer with ``in_features``.
        memory: see above; it can be set later, and reaches the networks inside of this one unless it is "speed".

    Raises:
        ValueError: no layers; tensors on several devices; another ``memory``, or one that a batch does not fit into (it says which would do); an input of other features than ``input_shape``; packed words of another width; a state
            of another length; a mask of another shape, with gaps, or empty for a sequence.
        RuntimeError: in backward, for a state whose own graph is already used up; it names the state.

    >>> net = Network([BinaryLinear(8, 16), Leaky(0.9), BinaryLinear(16, 4), LeakyIntegrator(0.9)])
    >>> y, state = net(torch.ones(10, 3, 8))
    """

    def __init__(
        self, layers: Iterable[nn.Module], input_shape: Iterable[int] | None = None, memory: str | int = "speed"
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not len(self.layers):
            raise ValueError("Network: expected at least one layer, got none")
        self.input_shape = None if input_shape is None else tuple(input_shape)
        if self.input_shape is not None and (not self.input_shape or min(self.input_shape) < 1):
            raise ValueError(f"input_shape: expected sizes >= 1, got {self.input_shape}")
        self._memory: str | int = "speed"
        self._share = 1.0
        self._inner = False  # whether a network around this one shares out the bytes
        self._predicted: dict[Any, Any] = {}
        if memory != "speed":
            self.memory = memory

    @property
    def memory(self) -> str | int:
        """What is kept for backward: "speed", "balanced", "minimal" or bytes."""
        return self._memory

    @memory.setter
    def memory(self, memory: str | int) -> None:
        if isinstance(memory, bool) or (memory < 1 if isinstance(memory, int) else memory not in SHARES):
            raise ValueError(f"memory: expected {', '.join(map(repr, SHARES))} or bytes >= 1, got {memory!r}")
        for network in self.modules():
            if isinstance(network, Network):
                network._memory, network._inner, network._predicted = memory, network is not self, {}
                if "memory" in network.__dict__.get("made_with", ()):
                    network.__dict__["made_with"]["memory"] = memory
        self._set_share(share_of(memory) if isinstance(memory, str) else 0.0)

    def _set_share(self, share: float) -> None:
        """How many of their states the layers keep for backward."""
        for layer in self.modules():
            if isinstance(layer, Network):
                layer._share = share
            elif isinstance(layer, Recurrent):
                layer.memory = share

    @untraced
    def _fit(self, x: Tensor) -> None:
        """With bytes for memory: find the share of membranes that x (T, B, ...) may keep."""
        from tbnn.nn.memory import Predicted

        key = (x.shape[1:], x.dtype, self.training)
        if key not in self._predicted:
            self._predicted[key] = Predicted(self, x)
        self._set_share(self._predicted[key].share_within(cast("int", self._memory), x.shape[0]))

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """x: float (T, B, features...) of 0/1, or packed int32 words (T, B, ceil(features/32)); mask: (T, B) or None."""
        check_devices(self, x, state, mask)
        if mask is not None:
            lengths_of(mask, *x.shape[:2], at_start=state is None)
        if isinstance(self._memory, int) and not self._inner and torch.is_grad_enabled():
            self._fit(x)
        return self._run(x, state, mask)

    def step(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """One step: x (B, features...) or packed words (B, ceil(features/32)), mask (B,) or None -> (y, state)."""
        check_devices(self, x, state, mask)
        mask = None if mask is None else mask.unsqueeze(0)
        y, state = self._run(x.unsqueeze(0), state, mask, one_step=True)
        return y.squeeze(0), state

    def _run(self, x: Tensor, state: State | None, mask: Tensor | None, one_step: bool = False) -> tuple[Tensor, State]:
        if state is not None and len(state) != len(self.layers):
            raise ValueError(f"state: expected one entry for each of {len(self.layers)} layers, got {len(state)}")
        before = state if state is not None else (None,) * len(self.layers)
        layers, after = list(self.layers), []
        groups = [None if one_step else group_at(layers, index) for index in range(len(layers))]
        wire: Tensor | Wire = self._entering(x, groups[0])
        while (index := len(after)) < len(layers):
            group, layer = groups[index], layers[index]
            weighted = None
            if group is not None:
                floats = index + group.size == len(layers)
                weighted = weighted_spikes(group, wire, self._share, floats=floats, masked=mask is not None)
            if group is not None and weighted is not None:
                last = index + group.size - 1
                out, own = group.neuron(weighted, guard(before[last], f"layers.{last}"), mask)
                after += [*before[index:last], own]
                wire = out if weighted.emitted is None else Wire(weighted.emitted, out, weighted.floats)
            else:
                guarded = guard(before[index], f"layers.{index}") if isinstance(layer, Stateful) else before[index]
                wire, own = _alone(layer, wire, guarded, mask, one_step)
                after.append(own)
        return wire.values() if isinstance(wire, Wire) else wire, tuple(after)

    def _entering(self, x: Tensor, group: Group | None) -> Tensor | Wire:
        """The input: packed words stay as they are where the first layers take them, else numbers of ``input_shape``."""
        first: int | None = getattr(self.layers[0], "in_features", None)
        shape = self.input_shape or (() if first is None else (first,))
        fits = x.dtype == torch.int32 and x.ndim == 3 and shape and x.shape[2] == words_for(math.prod(shape))
        if group is None or not fits or has_stray_bits(x, math.prod(shape)):
            return self.unpacked(x)
        return Wire.of_words(x, shape, group.weights.weight.dtype)

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
        own = [] if self.input_shape is None else [f"input_shape={self.input_shape}"]
        return ", ".join(own if self._memory == "speed" else [*own, f"memory={self._memory!r}"])


def _alone(
    layer: nn.Module, wire: Tensor | Wire, state: Any, mask: Tensor | None, one_step: bool
) -> tuple[Tensor | Wire, Any]:
    """One layer and its state after it; pools and flattening leave spikes packed."""
    if isinstance(wire, Wire) and not layer._forward_hooks and not layer._forward_pre_hooks:
        if type(layer) is Flatten:
            return wire.flat(), state
        if type(layer) is MaxPool2d and len(wire.features) == 3:
            return wire.pooled(layer.kernel_size, layer.stride, layer.padding), state
        known = wire.thread.dtype == torch.float32 and wire.words.device.type == "cpu"
        if type(layer) in (BinaryLinear, BinaryConv2d) and layer.takes_words and known:
            return layer(wire.thread, wire.words), state
    x = wire.values() if isinstance(wire, Wire) else wire
    if not isinstance(layer, Stateful):
        return call_stateless(layer, x, mask), state
    if not one_step:
        return layer(x, state, mask)
    y, state = layer.step(x.squeeze(0), state, None if mask is None else mask.squeeze(0))
    return y.unsqueeze(0), state
