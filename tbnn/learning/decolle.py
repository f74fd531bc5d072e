"""DECOLLE: every layer answers to a readout of its own."""

import torch
from torch import Tensor, nn

from tbnn.learning.feedback import Broadcast, hidden_shapes
from tbnn.learning.online import OnlineRule, StageState
from tbnn.learning.ridge import MOMENTUM
from tbnn.learning.rule import classification_error
from tbnn.learning.stretch import STRETCH


class Decolle(OnlineRule):
    """Local errors: fixed random readouts of each layer's spikes, and no error that crosses a layer.

        y_l[t] = G_l·q_l[t],   ΔW_l ∝ Σ_t (G_lᵀ ∂L(y_l[t])/∂y ∘ ψ(u_l[t]))·x̄_l[t]ᵀ

    The network's last stage learns from the readout's own error. Nothing is kept but a trace an input.

    Args:
        network, momentum: see :class:`tbnn.learning.online.OnlineRule`.
        readout_scale: deviation of the local readouts' weights, in units of 1/√neurons.
        learn_readouts: let the local readouts learn from their own errors.
        seed: of the local readouts.

    Source: Kaiser, Mostafa & Neftci, "Synaptic plasticity dynamics for deep continuous local learning (DECOLLE)", 2020.
    """

    name = "decolle"
    stretch = STRETCH

    def __init__(
        self, network: nn.Module, *, readout_scale: float = 4.0, learn_readouts: bool = False, seed: int = 0,
        momentum: float = MOMENTUM,
    ) -> None:  # fmt: skip
        super().__init__(network, momentum=momentum)
        self.readouts = Broadcast(*hidden_shapes(self), readout_scale, seed, learn_readouts)
        self.parts["readouts"] = self.readouts
        self.learn_readouts = learn_readouts
        self._target, self._weight = torch.zeros(0), 1.0

    def error(self, readout: Tensor, target: Tensor, weight: float) -> tuple[float, Tensor]:
        self._target, self._weight = target, weight
        return super().error(readout, target, weight)

    def below(self, index: int, states: tuple[StageState, ...], delta: Tensor, error: Tensor) -> Tensor:
        spikes = states[index - 1].out
        _, local = classification_error(self.readouts.answer(index - 1, spikes), self._target, self.label_smoothing)
        if self.learn_readouts:
            self.readouts.adapt(index - 1, local * self._weight, spikes)
        return self.readouts.signal(index - 1, local * self._weight)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.readouts.parameters()) if self.learn_readouts else []
