"""Neurons that adapt: a threshold that rises with every spike, or a current that follows the membrane."""

from typing import Unpack

import torch
from torch import Tensor

from tbnn.nn.neuron import Coefficients, Neuron, SpikeOptions, add_parameter, checked_decay, checked_finite
from tbnn.ops.lif import Second


class Adaptive(Neuron):
    """Leaky neurons with an adaptive threshold (ALIF).

    ``a[t] = ρ·a[t−1] + q[t−1]``, ``v[t] = β·v[t−1] + I[t] − θ·q[t−1]``, ``q[t] = 1[v[t] > θ + b·a[t]]``, the reset detached.
    The state's ``w`` is a. The trace target holds, with the adaptation in it: v − b·a is the current's trace less that of
    the spikes, which one spike a step brings to θ/(1−β) + b/(1−ρ).

    Args:
        beta: the membrane's decay per step, 0 <= β <= 1: a float, or a tensor that broadcasts to the features.
        rho: the adaptation's decay ρ, likewise.
        strength: b, by how much a spike raises the threshold, likewise; finite.
        threshold: θ, likewise; finite.
        learn_beta, learn_rho, learn_strength: train them; decays are clamped to [0, 1].
        options: see :class:`tbnn.nn.neuron.Neuron`.

    Raises:
        ValueError: as :class:`tbnn.nn.neuron.Neuron`; β or ρ outside [0, 1], with target="trace" equal to 1.

    Source: Bellec et al. 2020 (e-prop), LSNN.

    >>> spikes, state = Adaptive(0.9, rho=0.98, strength=0.1)(torch.ones(10, 2, 3))
    """

    beta: Tensor
    rho: Tensor
    strength: Tensor

    def __init__(
        self,
        beta: float | Tensor,
        rho: float | Tensor = 0.98,
        strength: float | Tensor = 0.1,
        threshold: float | Tensor = 1.0,
        *,
        learn_beta: bool = False,
        learn_rho: bool = False,
        learn_strength: bool = False,
        **options: Unpack[SpikeOptions],
    ) -> None:
        super().__init__(threshold, **options)
        add_parameter(self, "beta", checked_decay("beta", beta), learn_beta)
        add_parameter(self, "rho", checked_decay("rho", rho), learn_rho)
        add_parameter(self, "strength", checked_finite("strength", strength), learn_strength)
        self.check()

    def coefficients(self) -> Coefficients:
        zero, one = torch.zeros_like(self.threshold), torch.ones_like(self.threshold)
        return Coefficients(
            self._decay(self.beta),
            Second(
                rho=self._decay(self.rho),
                from_v=zero,
                from_current=zero,
                from_spike=one,
                current_gain=one,
                to_v=zero,
                to_threshold=self.strength,
            ),
        )


class AdLIF(Neuron):
    """Leaky neurons with subthreshold and spike-triggered adaptation (adLIF), which may resonate.

    ``w[t] = ρ·w[t−1] + (1−ρ)·(a·v[t−1] + b·q[t−1])``, ``v[t] = β·v[t−1] + (1−β)·(I[t] − w[t]) − θ·q[t−1]``,
    ``q[t] = 1[v[t] > θ]``, the reset detached. This is the symplectic Euler step of Baronig et al., with w counted at the
    start of a step; with reset_mechanism="zero" v[t−1] is 0 where q[t−1] = 1, as there. Bittar & Garner write a and b for
    our (1−ρ)·a and (1−ρ)·b. The trace target holds while the linear states decay and spikes inhibit in the long run.

    Args:
        beta: the membrane's decay per step, 0 <= β <= 1: a float, or a tensor that broadcasts to the features.
        rho: the adaptation's decay ρ, likewise.
        a: how strongly the membrane drives the adaptation, likewise; finite.
        b: how strongly a spike does, likewise; finite.
        threshold: θ, likewise; finite.
        learn_beta, learn_rho, learn_a, learn_b: train them; decays are clamped to [0, 1].
        options: see :class:`tbnn.nn.neuron.Neuron`.

    Raises:
        ValueError: as :class:`tbnn.nn.neuron.Neuron`; β or ρ outside [0, 1]; with target="trace" states that do not decay.

    Source: Bittar & Garner 2022; Baronig et al. 2025 (arXiv 2408.07517), eq. 6.

    >>> spikes, state = AdLIF(0.9, rho=0.98, a=10.0, b=10.0)(torch.ones(10, 2, 3))
    """

    beta: Tensor
    rho: Tensor
    a: Tensor
    b: Tensor

    def __init__(
        self,
        beta: float | Tensor,
        rho: float | Tensor = 0.98,
        a: float | Tensor = 10.0,
        b: float | Tensor = 10.0,
        threshold: float | Tensor = 1.0,
        *,
        learn_beta: bool = False,
        learn_rho: bool = False,
        learn_a: bool = False,
        learn_b: bool = False,
        **options: Unpack[SpikeOptions],
    ) -> None:
        super().__init__(threshold, **options)
        add_parameter(self, "beta", checked_decay("beta", beta), learn_beta)
        add_parameter(self, "rho", checked_decay("rho", rho), learn_rho)
        add_parameter(self, "a", checked_finite("a", a), learn_a)
        add_parameter(self, "b", checked_finite("b", b), learn_b)
        self.check()

    def coefficients(self) -> Coefficients:
        beta, rho = self._decay(self.beta), self._decay(self.rho)
        zero = torch.zeros_like(self.threshold)
        return Coefficients(
            beta,
            Second(
                rho=rho,
                from_v=(1 - rho) * self.a,
                from_current=zero,
                from_spike=(1 - rho) * self.b,
                current_gain=1 - beta,
                to_v=beta - 1,
                to_threshold=zero,
            ),
        )
