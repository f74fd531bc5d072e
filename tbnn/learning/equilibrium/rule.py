"""Equilibrium propagation: weights learn from the difference between two states of rest."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tbnn.learning.equilibrium.cost import COSTS, Cost
from tbnn.learning.equilibrium.dynamics import Dynamics, Units
from tbnn.learning.equilibrium.network import EquilibriumNetwork, EquilibriumState, check_dt, check_steps
from tbnn.learning.rule import Outcome, Rule, RuleState

NUDGINGS = ("symmetric", "one_sided", "random_sign")

Gradients = list[tuple[Tensor, Tensor]]
"""By the weights and the biases of each layer."""


class EquilibriumPropagation(Rule):
    """The gradient of a cost at a state of rest, from how a nudge towards lower cost moves that state.

    Nudged, the units descend ``E + β·C`` from the free state of rest, C the cost of their readout. With s_β where they come to,

    ============== ==================================================  =================
    ``nudging``    what is added to ``.grad``, the mean over the batch  bias
    ============== ==================================================  =================
    "symmetric"    ``(∂E/∂θ(s_β) − ∂E/∂θ(s_−β)) / 2β``                  O(β²)
    "one_sided"    ``(∂E/∂θ(s_β) − ∂E/∂θ(s_0)) / β``                    O(β)
    "random_sign"  the same, with β or −β at random, a draw an update   O(β²) on average
    ============== ==================================================  =================

    ∂E/∂Ŵ is −ρ(u_l)·ρ(u_{l−1})ᵀ: a Hebbian product of the two neurons that a weight joins; the layer's own estimator takes
    it on to the latent weight. A linear readout, outside the energy, learns by the gradient of the cost at the free state,
    the delta rule, which has no bias. The orders of the bias hold at states of rest of real units. Bits have no smooth state
    to nudge: of them the estimate is a heuristic, β must be large enough to turn some, and with so large a β "one_sided"
    spares them the phase that pushes away from the target. Nothing is kept of the way to rest: memory does not grow with
    any number of steps.

    Args:
        network: an :class:`EquilibriumNetwork`; no other is derived here.
        beta: β > 0, of the cost of each sample.
        nudging: see above.
        loss: "mse", ``½·Σ_c (y_c − p_c)²``, or "cross_entropy" of the readout as scores; of each sample.
        free_steps: of relaxation after the last step of input, before the nudge.
        nudged_steps: of relaxation in each nudged phase.
        dt: the step of these phases; None: the network's.

    Raises:
        ValueError: another network; values outside these ranges.

    Source: Scellier & Bengio 2017; Laborieux et al. 2021 (symmetric nudging, the softmax outside of the energy);
    Laydevant et al. 2021 (bits, random sign).
    """

    name: ClassVar[str] = "equilibrium"
    every = None

    def __init__(
        self,
        network: nn.Module,
        *,
        beta: float = 0.5,
        nudging: str = "symmetric",
        loss: str = "mse",
        free_steps: int = 20,
        nudged_steps: int = 20,
        dt: float | None = None,
    ) -> None:
        if not isinstance(network, EquilibriumNetwork):
            raise ValueError(
                "EquilibriumPropagation: expected an EquilibriumNetwork, whose symmetric weights have an energy, "
                f"got {type(network).__name__}"
            )
        super().__init__(network)
        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(f"beta: expected a finite number > 0, got {beta}")
        for option, value, known in (("nudging", nudging, NUDGINGS), ("loss", loss, COSTS)):
            if value not in known:
                raise ValueError(f"{option}: expected one of {', '.join(map(repr, known))}, got {value!r}")
        self.beta, self.nudging, self.loss = float(beta), nudging, loss
        self.free_steps = check_steps("free_steps", free_steps, 0)
        self.nudged_steps = check_steps("nudged_steps", nudged_steps, 1)
        self.dt = network.dt if dt is None else check_dt(dt)
        self._relaxing = network
        self._last: EquilibriumState | None = None

    @torch.no_grad()
    def step(self, x: Tensor, state: RuleState | None = None) -> RuleState:
        """One step of input, the units relaxing freely; see :meth:`EquilibriumNetwork.step`."""
        readout, after = self._relaxing.step(x, None if state is None else state.network)
        self._last = after
        return RuleState(after, None, readout)

    @torch.no_grad()
    def credit(self, target: Tensor, weight: float) -> float:
        """Relax to rest, nudge, add the gradient's estimate to ``.grad``; returns the cost at rest, mean of the batch."""
        if self._last is None:
            raise ValueError("EquilibriumPropagation: expected a step before an update, got none")
        with torch.enable_grad():
            latent = self._relaxing.prepare()
        dynamics, x = latent.detached(), self._last.clamped * self._relaxing.input_scale
        drive = dynamics.drive(x)
        free = dynamics.relax(self._last.units, drive, self.free_steps, self.dt)
        readout = dynamics.readout(free)
        cost = Cost(self.loss, target, readout)
        gradients = self._contrast(dynamics, free, x, drive, cost)
        if dynamics.linear:
            gradients.append(dynamics.readout_gradients(free, cost.gradient(readout)))
        _accumulate(latent, gradients, weight / len(readout))
        return weight * cost.value(readout).mean().item()

    def sequence(
        self, x: Tensor, target: Tensor, change: Callable[[], Any] | None = None, *, steps: int | None = None
    ) -> Outcome:
        """All steps of a batch, the weights quantised once, then one update; see :meth:`Rule.sequence`."""
        if self.every is not None or steps is not None:
            return super().sequence(x, target, change, steps=steps)
        with torch.no_grad():
            readout, self._last = self._relaxing(x)
        loss = self.update(target)
        if change is not None:
            change()
        return Outcome(loss, readout)

    def _contrast(self, dynamics: Dynamics, free: Units, x: Tensor, drive: Tensor, cost: Cost) -> Gradients:
        """The difference of ∂E/∂θ between two nudges, over the difference of the nudges; summed over the batch."""
        flip = self.nudging == "random_sign" and bool(torch.rand(()) < 0.5)
        high = -self.beta if flip else self.beta
        low = -high if self.nudging == "symmetric" else 0.0
        states = []
        for beta in (high, low):
            push = partial(_push, cost, beta)
            states.append(dynamics.relax(free, drive, self.nudged_steps, self.dt, push) if beta else free)
        pairs = zip(*(dynamics.energy_gradients(units, x) for units in states), strict=True)
        return [((dw - dw0) / (high - low), (db - db0) / (high - low)) for (dw, db), (dw0, db0) in pairs]


def _push(cost: Cost, beta: float, readout: Tensor) -> Tensor:
    """What a nudge adds to the readout's field, −β·∂C/∂y."""
    return -beta * cost.gradient(readout)


def _accumulate(latent: Dynamics, gradients: Gradients, factor: float) -> None:
    """Add gradients by Ŵ and b to the ``.grad`` of the latent weights and biases."""
    pairs = [
        (parameter, gradient * factor)
        for weight, bias, (dw, db) in zip(latent.weights, latent.biases, gradients, strict=True)
        for parameter, gradient in ((weight, dw), (bias, db))
        if parameter is not None and parameter.requires_grad
    ]
    if pairs:
        torch.autograd.backward([parameter for parameter, _ in pairs], [gradient for _, gradient in pairs])
