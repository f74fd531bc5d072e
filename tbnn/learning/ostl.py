"""OSTL: exact credit through time within each layer, and the step's own error through space."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tbnn.learning.online import OnlineRule, StageState
from tbnn.learning.ridge import MOMENTUM
from tbnn.learning.stages import LINEAR, Synapses
from tbnn.nn import Leaky, Neuron


class Influence(NamedTuple):
    """How a layer's membranes hang on its synapses."""

    membrane: Tensor
    """∂v/∂W: (B, neurons, inputs + returning + 1), of a recurrent layer (B, neurons, neurons, the same)."""
    spike: Tensor
    """∂q/∂W, of the same shape."""


class Ostl(OnlineRule):
    """Online spatio-temporal learning: temporal gradients are separated from spatial ones.

    Each layer carries ∂v/∂W forward in time, its recurrent weights included,

        ∂v[t] = β·∂v[t−1] + Ŵ_rec·∂q[t−1] + x[t] (− θ·∂q[t−1] with ``through_reset``),   ∂q[t] = ψ[t]·∂v[t]

    and the error of the step reaches it through the layers above at that step. One layer, recurrent or not, under a loss of
    its spikes gets the gradient of back-propagation through time exactly; of deeper networks the terms that cross
    layers and time at once are left out, a leaky readout's memory among them. Memory a sample: neurons × synapses for
    a recurrent layer, synapses for another.

    Args:
        network: linear layers and :class:`tbnn.nn.Leaky` neurons, maybe recurrent; no batch norm.
        through_reset: carry credit through the reset too, as the source does; back-propagation here does not.
        momentum: of the running ridge, whose slope alone is used.

    Raises:
        ValueError: other layers or neurons; the trace target, whose gradient does not run through the membrane.

    Source: Bohnstingl et al., "Online spatio-temporal learning in deep neural networks", IEEE TNNLS 2022.
    """

    name = "ostl"
    weights = LINEAR

    def __init__(self, network: nn.Module, *, through_reset: bool = False, momentum: float = MOMENTUM) -> None:
        super().__init__(network, momentum=momentum)
        for stage in self.stages:
            if stage.norm is not None:
                raise ValueError(
                    f"{self.name}: {stage.name}: expected no batch norm, got TemporalBatchNorm; ottt takes it"
                )
            if stage.spikes and type(stage.neuron) is not Leaky:
                raise ValueError(
                    f"{self.name}: {stage.name}: expected Leaky neurons, got {type(stage.neuron).__name__}; "
                    "ottt and eprop take them"
                )
            if isinstance(stage.neuron, Neuron) and stage.neuron.spike_gradient.uses_trace:
                raise ValueError(
                    f"{self.name}: {stage.name}: expected a surrogate or target='soft', got target='trace'"
                )
            if through_reset and isinstance(stage.neuron, Neuron) and stage.neuron.reset_mechanism != "subtract":
                raise ValueError(
                    f"{self.name}: {stage.name}: through_reset expected reset_mechanism='subtract', "
                    f"got {stage.neuron.reset_mechanism!r}"
                )
        self.through_reset = through_reset

    def remember(self, index: int, now: StageState, before: Influence | None) -> Any:
        stage, seen = self.stages[index], now.seen
        if seen is None or not isinstance(stage.neuron, Neuron):
            return None
        returning = self.returning_synapses[index]
        batch = now.out.shape[0]
        parts = [now.passage.left.detach().flatten(1)]
        if now.last is not None:
            parts.append(now.last)
        x = torch.cat([*parts, now.out.new_ones(batch, 1)], 1)
        slope = seen.slope if seen.x is None else self.ridges[index].fitted(seen.x) * seen.slope  # pyright: ignore[reportCallIssue]
        neurons = now.out.shape[1]
        if returning is None:
            arrives = x.unsqueeze(1).expand(batch, neurons, -1)
            slopes = slope.unsqueeze(2)
        else:
            arrives = torch.diag_embed(x.new_ones(batch, neurons)).unsqueeze(3) * x[:, None, None, :]
            slopes = slope[:, :, None, None]
        membrane = arrives if before is None else self._carried(index, before, returning) + arrives
        return Influence(membrane, slopes * membrane)

    def _carried(self, index: int, before: Influence, returning: Synapses | None) -> Tensor:
        neuron: Any = self.stages[index].neuron
        carried = self.filters[index].beta * before.membrane
        if self.through_reset:
            carried = carried - float(neuron.threshold) * before.spike
        if returning is not None:
            carried = carried + torch.einsum("kl,blji->bkji", returning.weight.detach(), before.spike)
        return carried

    def assign(self, index: int, state: StageState, signal: Tensor) -> Tensor:
        if not self.stages[index].spikes:
            return super().assign(index, state, signal)
        signal = signal.reshape(state.out.shape)
        how = "bk,bkji->ji" if state.last is not None else "bj,bji->ji"
        self.gather_changes(index, torch.einsum(how, signal, state.extra.spike))
        return self.slope(index, state, signal)
