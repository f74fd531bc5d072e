"""Leaky neurons: the spiking one and the integrating readout."""

from typing import Unpack

import torch
from torch import Tensor

from tbnn.nn.neuron import Coefficients, Neuron, SpikeOptions, add_parameter, brief, checked_decay
from tbnn.nn.recorded import Recorded
from tbnn.nn.stateful import Stateful, guard, lengths_of
from tbnn.ops.lif import LifState, check_current, check_state, full_precision
from tbnn.ops.lif.integrate import leaky_integrate


class Leaky(Neuron):
    """Leaky integrate-and-fire neurons; snntorch's ``Leaky``, spike for spike.

    ``v[t] = β·v[t−1] + I[t] − θ·q[t−1]``, ``q[t] = 1[v[t] > θ]``, the reset detached. β = 1 makes perfect integrators
    (integrate-and-fire); a tensor makes a heterogeneous layer.

    Args:
        beta: the membrane's decay per step, 0 <= β <= 1: a float, or a tensor that broadcasts to the features.
        threshold: θ, likewise; finite.
        learn_beta: train β, clamped to [0, 1], with target="trace" to [0, 0.9999].
        options: see :class:`tbnn.nn.neuron.Neuron`.

    Raises:
        ValueError: as :class:`tbnn.nn.neuron.Neuron`; β outside [0, 1]; target="trace" with another reset than "subtract",
            β = 1 or θ <= 0.

    Source: snntorch (Eshraghian et al. 2023); arXiv 2409.09245.

    >>> spikes, state = Leaky(0.9)(torch.ones(10, 2, 3))
    """

    beta: Tensor

    def __init__(
        self,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        *,
        learn_beta: bool = False,
        **options: Unpack[SpikeOptions],
    ) -> None:
        super().__init__(threshold, **options)
        add_parameter(self, "beta", checked_decay("beta", beta), learn_beta)
        self.check()

    def coefficients(self) -> Coefficients:
        return Coefficients(self._decay(self.beta))


class LeakyIntegrator(Recorded, Stateful):
    """A readout that integrates and never spikes: ``v[t] = β·v[t−1] + I[t]``, out = v.

    ``readout(current, state=None, mask=None) -> (v, state)`` with (T, B, features...); the state is v after the last step.

    Raises:
        ValueError: β outside [0, 1]; a state of another shape, dtype or device; a mask as in
            :class:`tbnn.nn.stateful.Stateful`.
    """

    beta: Tensor

    def __init__(self, beta: float | Tensor, *, learn_beta: bool = False) -> None:
        super().__init__()
        add_parameter(self, "beta", checked_decay("beta", beta), learn_beta)

    def forward(self, x: Tensor, state: LifState | None = None, mask: Tensor | None = None) -> tuple[Tensor, LifState]:
        lengths = None if mask is None else lengths_of(mask, *x.shape[:2], at_start=state is None)
        return self._integrate(x, guard(state, "LeakyIntegrator"), lengths)

    def step(self, x: Tensor, state: LifState | None = None, mask: Tensor | None = None) -> tuple[Tensor, LifState]:
        """One step: current (B, features...) -> (v, state)."""
        lengths = None if mask is None else mask.long()
        v, state = self._integrate(x.unsqueeze(0), guard(state, "LeakyIntegrator"), lengths)
        return v.squeeze(0), state

    def _integrate(self, current: Tensor, state: LifState | None, lengths: Tensor | None) -> tuple[Tensor, LifState]:
        check_current(current)
        current = full_precision(current)
        v0 = check_state(state, current).v
        features = current.shape[2:]
        beta = self.beta.clamp(0, 1).to(current.dtype).expand(features).reshape(-1)
        v = leaky_integrate(current.flatten(2), beta, v0.flatten(1)).reshape(current.shape)
        if lengths is None:
            return v, LifState(v[-1])
        every = torch.cat([v0.unsqueeze(0), v])
        last = every[lengths, torch.arange(v.shape[1], device=v.device)]
        alive = torch.arange(v.shape[0], device=v.device).unsqueeze(1) < lengths
        return torch.where(alive.reshape(*alive.shape, *[1] * len(features)), v, 0.0), LifState(last)

    def extra_repr(self) -> str:
        return f"beta={brief(self.beta)}"
