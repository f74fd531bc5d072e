"""e-prop: an eligibility a synapse, filtered as the readout filters, and a learning signal a neuron."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tbnn.learning.feedback import Broadcast, hidden_shapes
from tbnn.learning.online import OnlineRule, StageState
from tbnn.learning.ridge import MOMENTUM
from tbnn.learning.stages import LINEAR
from tbnn.learning.traces import filter_of
from tbnn.nn import Adaptive, LeakyIntegrator

FEEDBACKS = ("symmetric", "random", "adaptive")


class Eligibility(NamedTuple):
    """Of the synapses onto a layer, each (B, neurons, inputs + returning + 1), the last that of the bias."""

    filtered: Tensor
    """ē, the eligibility as the readout's filter leaves it."""
    now: Tensor | None = None
    """e of this step, and of the adaptation: of neurons with an adaptive threshold."""
    adaptation: Tensor | None = None
    spikes: Tensor | None = None
    """z̄ (B, neurons), what the readout has kept of the spikes: for adaptive feedback."""


class Eprop(OnlineRule):
    """e-prop: eligibility propagation for recurrent and feed-forward layers of LIF and adaptive neurons.

        ε_v[t] = β·ε_v[t−1] + x_i[t]                           (of a synapse, but one for all its neurons: presynaptic)
        e[t] = ψ_j[t]·(ε_v[t] − b·ε_a[t]),   ε_a[t] = ρ·ε_a[t−1] + e[t−1]        (b = 0 for LIF)
        ē[t] = κ·ē[t−1] + e[t],   ΔW_ji ∝ Σ_t L_j[t]·ē_ji[t],   L_j[t] = Σ_k B_jk·(π_k[t] − π*_k)

    κ is the readout's decay. For one hidden layer without recurrence, B the readout's own weights, this is the gradient of
    back-propagation through time under a loss of every step, for LIF neurons whose slopes are surrogates or ridges of each
    step; with recurrence it leaves out what reaches the loss by other neurons. In deeper networks "symmetric" goes down
    through the weights of the step, the others straight from the readout to every layer. The slope ψ of ridge estimators is
    s·dx/dv, s from running averages. Memory: one number a synapse and sample, whatever the number of steps.

    Args:
        network: linear layers, neurons of the library, maybe recurrent, pools and dropout between them, no batch norm.
        feedback: "symmetric", "random" (fixed) or "adaptive", see :class:`tbnn.learning.feedback.Broadcast`.
        adaptation: for :class:`tbnn.nn.Adaptive` neurons, carry credit through the threshold too (ε_a; back-propagation
            here holds it constant); only they may have a second state then.
        feedback_scale, seed: of random and adaptive feedback.
        momentum: of the running ridge.

    Raises:
        ValueError: other layers or neurons; an unknown feedback.

    Source: Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", 2020.
    """

    name = "eprop"
    weights = LINEAR

    def __init__(
        self, network: nn.Module, *, feedback: str = "symmetric", adaptation: bool = True, feedback_scale: float = 1.0,
        seed: int = 0, momentum: float = MOMENTUM,
    ) -> None:  # fmt: skip
        super().__init__(network, momentum=momentum)
        if feedback not in FEEDBACKS:
            raise ValueError(f"feedback: expected one of {', '.join(map(repr, FEEDBACKS))}, got {feedback!r}")
        for stage in self.stages:
            if stage.norm is not None:
                raise ValueError(
                    f"{self.name}: {stage.name}: expected no batch norm, got TemporalBatchNorm; ottt takes it"
                )
        self.feedback, self.adaptation = feedback, adaptation
        last = self.stages[-1].neuron
        self.kappa = filter_of(last, self.name).beta if isinstance(last, LeakyIntegrator) else 0.0
        self.broadcast = None
        if feedback != "symmetric":
            self.broadcast = Broadcast(*hidden_shapes(self), feedback_scale, seed, feedback == "adaptive")

    def _adapts(self, index: int) -> bool:
        return self.adaptation and type(self.stages[index].neuron) is Adaptive

    def remember(self, index: int, now: StageState, before: Eligibility | None) -> Any:
        if not self.stages[index].spikes:
            return None
        slope, presynaptic = self.psi(index, now), self.presynaptic(index, now)
        kept = None
        if self.feedback == "adaptive" and index < len(self.stages) - 1:
            kept = now.out.flatten(1)
            kept = kept if before is None else before.spikes.mul(self.kappa).add_(kept)  # pyright: ignore[reportOptionalMemberAccess]
        if not self._adapts(index):
            if before is None:
                return Eligibility(slope.unsqueeze(2) * presynaptic.unsqueeze(1), spikes=kept)
            filtered = torch.baddbmm(before.filtered, slope.unsqueeze(2), presynaptic.unsqueeze(1), beta=self.kappa)
            return Eligibility(filtered, spikes=kept)
        neuron: Any = self.stages[index].neuron
        rho, strength = float(neuron.rho), float(neuron.strength)
        adaptation = torch.zeros_like(slope.unsqueeze(2) * presynaptic.unsqueeze(1))
        if before is not None:
            adaptation = rho * before.adaptation + before.now  # pyright: ignore[reportOperatorIssue]
        own = slope.unsqueeze(2) * (presynaptic.unsqueeze(1) - strength * adaptation)
        return Eligibility(own if before is None else self.kappa * before.filtered + own, own, adaptation, kept)

    def psi(self, index: int, now: StageState) -> Tensor:
        """ψ (B, neurons): the slope of this step's spikes by their level."""
        seen, ridge = now.seen, self.ridges[index]
        if seen is None or seen.x is None:
            return seen.slope.flatten(1)  # pyright: ignore[reportOptionalMemberAccess]
        return (ridge.fitted(seen.x) * seen.slope).flatten(1)  # pyright: ignore[reportCallIssue]

    def presynaptic(self, index: int, now: StageState) -> Tensor:
        """The traces of inputs, returning spikes and the bias's 1, (B, inputs + returning + 1)."""
        filter_ = self.filters[index]
        parts = [filter_.level(now.inputs).flatten(1)]
        if now.returned is not None:
            parts.append(filter_.level(now.returned))
        one = filter_.level(now.ones).expand(parts[0].shape[0], 1)
        return torch.cat([*parts, one], 1)

    def assign(self, index: int, state: StageState, signal: Tensor) -> Tensor:
        if not self.stages[index].spikes:
            return super().assign(index, state, signal)
        signal = signal.reshape(state.out.shape).flatten(1)
        self.assign_changes(index, torch.einsum("bo,boi->oi", signal, state.extra.filtered))
        return signal * self.psi(index, state)

    def assign_changes(self, index: int, changes: Tensor) -> None:
        """Add changes (neurons, inputs + returning + 1) to what is gathered for a stage."""
        synapses, returning = self.forward_synapses[index], self.returning_synapses[index]
        inputs = synapses.weight.shape[1]
        synapses.dweight += changes[:, :inputs]
        for one in (synapses, returning):
            if one is not None and one.dbias is not None:
                one.dbias += changes[:, -1]
        if returning is not None:
            returning.dweight += changes[:, inputs:-1]

    def below(self, index: int, states: tuple[StageState, ...], delta: Tensor, error: Tensor) -> Tensor:
        if self.broadcast is None:
            return super().below(index, states, delta, error)
        if self.feedback == "adaptive":
            self.broadcast.adapt(index - 1, error, states[index - 1].extra.spikes)
        return self.broadcast.signal(index - 1, error)

    def parameters(self) -> list[nn.Parameter]:
        return [] if self.feedback != "adaptive" or self.broadcast is None else list(self.broadcast.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        own = {} if self.broadcast is None else self.broadcast.state_dict()
        return {**super().state_dict(), **{f"broadcast.{k}": v for k, v in own.items()}}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        super().load_state_dict(saved)
        if self.broadcast is not None:
            own = {k.removeprefix("broadcast."): v for k, v in saved.items() if k.startswith("broadcast.")}
            self.broadcast.load_state_dict(own)
