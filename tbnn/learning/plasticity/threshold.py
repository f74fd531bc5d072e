"""Thresholds that follow their neuron's activity, so that every neuron gets its share of what there is to learn."""

import torch
from torch import Tensor

from tbnn.learning.plasticity.traces import check_finite, decay_of
from tbnn.nn import Neuron


class AdaptiveThreshold:
    """Thresholds, one a neuron, that each spike raises by θ+ and that decay back: ``θ ← θ0 + e^(−1/τ)·(θ − θ0) + θ+·mean_b q``.

    They are written to the neuron's own ``threshold``, which then is a vector of ``neurons`` values, and stay there. A
    neuron with a :class:`tbnn.nn.TargetRate` follows that too, once a sequence.

    Args:
        plus: θ+ >= 0; 0 leaves the thresholds alone.
        tau: in steps, > 0; None: they do not decay.

    Raises:
        ValueError: values outside these ranges; a learnt threshold.

    Source: Diehl & Cook, Frontiers in Computational Neuroscience 9 (2015).
    """

    def __init__(self, neuron: Neuron, neurons: int, plus: float, tau: float | None) -> None:
        check_finite(theta_plus=plus)
        if plus < 0:
            raise ValueError(f"theta_plus: expected a number >= 0, got {plus}")
        self.decay = 1.0 if tau is None else decay_of("theta_tau", tau)
        self.neuron, self.plus = neuron, plus
        self._spikes: Tensor | None = None
        self._count = 0
        if plus == 0:
            return
        if isinstance(neuron.threshold, torch.nn.Parameter):
            raise ValueError("layers.1: expected a threshold that is not learnt, to let it adapt, got learn_threshold")
        neuron.threshold = neuron.threshold.expand(neurons).clone()
        neuron.__dict__["made_with"]["threshold"] = neuron.threshold.clone()
        self.rest = neuron.threshold.clone()

    def follow(self, spikes: Tensor) -> None:
        """Take in a step's spikes (B, M)."""
        if self.neuron.homeostasis is not None:
            total = spikes.sum(0)
            self._spikes, self._count = (
                total if self._spikes is None else self._spikes + total,
                self._count + len(spikes),
            )
        if self.plus:
            theta = self.neuron.threshold
            theta.add_(self.plus * spikes.mean(0) - (1 - self.decay) * (theta - self.rest))

    def observe(self) -> None:
        """At a sequence's end: let a target rate follow what was seen since the last one."""
        if self.neuron.homeostasis is not None and self._spikes is not None:
            self.neuron.homeostasis.observe(self._spikes, self._count, self.neuron.threshold, self.neuron.joined)
        self._spikes, self._count = None, 0
