"""Neurons with a synaptic current: two time constants."""

from typing import Unpack

import torch
from torch import Tensor

from tbnn.nn.neuron import Coefficients, Neuron, SpikeOptions, add_parameter, checked_decay
from tbnn.ops.lif import Second


class Synaptic(Neuron):
    """Leaky neurons whose input first passes a leaky synapse; snntorch's ``Synaptic``, spike for spike.

    ``i[t] = α·i[t−1] + I[t]``, ``v[t] = β·v[t−1] + i[t] − θ·q[t−1]``, ``q[t] = 1[v[t] > θ]``, the reset detached. The state's
    ``w`` is i. The trace target holds: spikes act on v alone, so v = L − θ·Q with L the current seen through both filters.

    Args:
        alpha: the synapse's decay per step, 0 <= α <= 1: a float, or a tensor that broadcasts to the features.
        beta: the membrane's decay, likewise.
        threshold: θ, likewise; finite.
        learn_alpha, learn_beta: train them, clamped to [0, 1].
        options: see :class:`tbnn.nn.neuron.Neuron`. Reset "zero" sets v to 0 before the step after a spike, as in
            :class:`Leaky`; snntorch's ``Synaptic`` also drops that step's current.

    Raises:
        ValueError: as :class:`tbnn.nn.neuron.Neuron`; α or β outside [0, 1], with target="trace" equal to 1.

    Source: snntorch (Eshraghian et al. 2023).

    >>> spikes, state = Synaptic(0.8, 0.9)(torch.ones(10, 2, 3))
    """

    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        *,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        **options: Unpack[SpikeOptions],
    ) -> None:
        super().__init__(threshold, **options)
        add_parameter(self, "alpha", checked_decay("alpha", alpha), learn_alpha)
        add_parameter(self, "beta", checked_decay("beta", beta), learn_beta)
        self.check()

    def coefficients(self) -> Coefficients:
        zero, one = torch.zeros_like(self.threshold), torch.ones_like(self.threshold)
        return Coefficients(
            self._decay(self.beta),
            Second(
                rho=self._decay(self.alpha),
                from_v=zero,
                from_current=one,
                from_spike=zero,
                current_gain=zero,
                to_v=one,
                to_threshold=zero,
            ),
        )
