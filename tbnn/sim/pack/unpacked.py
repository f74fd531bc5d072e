"""Modules that packed networks need and trained ones do not have."""

from typing import Any, Unpack

import torch
from torch import Tensor

from tbnn.nn import BinaryLinear, Neuron, Recurrent, RecurrentState
from tbnn.nn.neuron import Coefficients, SpikeOptions, add_parameter, checked_decay, checked_finite
from tbnn.ops.lif import Second


class TwoStateNeuron(Neuron):
    """Neurons of two states by the coefficients of :class:`tbnn.ops.lif.Second`: what a packed neuron is, as it is stored.

    Args:
        beta: the membrane's decay, 0 <= β <= 1: a float, or a tensor that broadcasts to the features.
        second: the coefficients in the order of their names, (7,) or (7, features...).
        threshold: θ, likewise; finite.
        options: see :class:`tbnn.nn.Neuron`.

    Raises:
        ValueError: as :class:`tbnn.nn.Neuron`; a decay outside [0, 1]; coefficients that are not finite or not seven.

    >>> spikes, state = TwoStateNeuron(0.5, torch.tensor([0.5, 0, 0, 1, 1, 0, 0.25]))(torch.ones(10, 2, 3))
    """

    beta: Tensor
    second: Tensor

    def __init__(
        self,
        beta: float | Tensor,
        second: Tensor,
        threshold: float | Tensor = 1.0,
        **options: Unpack[SpikeOptions],
    ) -> None:
        super().__init__(threshold, **options)
        names = Second._fields
        if len(second) != len(names):
            raise ValueError(f"second: expected {len(names)} rows ({', '.join(names)}), got {tuple(second.shape)}")
        add_parameter(self, "beta", checked_decay("beta", beta), learn=False)
        add_parameter(self, "second", checked_finite("second", second), learn=False)
        self.check()

    def coefficients(self) -> Coefficients:
        return Coefficients(self.beta, Second(*self.second.unbind(0)))


class RestingRecurrent(Recurrent):
    """:class:`tbnn.nn.Recurrent` whose feedback has another bias at the first step from rest.

    A neuron that emits a·q + b, packed, emits bits q, and its feedback's bias holds what b gives. Before the first step
    nothing has left the neuron, not even b: the feedback is then ``rest_bias``.

    Args:
        neuron, recurrent_layer: as in :class:`tbnn.nn.Recurrent`; delay 1; a layer with a bias.
        rest_bias: (features,).

    Raises:
        ValueError: a layer without a bias, a bias of another shape.
    """

    rest_bias: Tensor

    def __init__(self, neuron: Neuron, recurrent_layer: BinaryLinear, rest_bias: Tensor) -> None:
        super().__init__(neuron, recurrent_layer)
        bias = recurrent_layer.bias
        if bias is None or bias.shape != rest_bias.shape:
            got = None if bias is None else tuple(bias.shape)
            raise ValueError(f"rest_bias: expected a layer with a bias {tuple(rest_bias.shape)}, got {got}")
        self.register_buffer("rest_bias", rest_bias.clone())

    def _run(self, x: Tensor, state: RecurrentState | None, mask: Tensor | None) -> tuple[Tensor, Any]:
        if state is not None:
            return super()._run(x, state, mask)
        # With no spikes to return the feedback is its bias alone, so that a neuron without feedback takes the step.
        current = (x[0] + self.rest_bias).unsqueeze(0)
        lengths = None if mask is None else mask[0].long()
        out, neuron = self.neuron.run(current, None, lengths, self.neuron.step_gradient)
        state = RecurrentState(neuron, out[0])
        if len(x) == 1:
            return out, state
        rest, state = super()._run(x[1:], state, None if mask is None else mask[1:])
        return torch.cat([out, rest]), state
