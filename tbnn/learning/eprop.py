"""e-prop: an eligibility a synapse, filtered as the readout filters, and a learning signal a neuron."""

from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from tbnn.learning.feedback import Broadcast, hidden_shapes
from tbnn.learning.online import OnlineRule, StageState
from tbnn.learning.ridge import MOMENTUM
from tbnn.learning.stages import LINEAR
from tbnn.learning.stretch import STRETCH, Stretch
from tbnn.learning.traces import Filter, Response, filter_of, response
from tbnn.nn import Adaptive, LeakyIntegrator

CHUNK = 16  # steps whose eligibilities are folded into one product
FEEDBACKS = ("symmetric", "random", "adaptive")


class Eligibility(NamedTuple):
    """Of the synapses onto a layer: ē as of some steps ago, and the factors of the steps since.

    ē[t] = κ^p·``filtered`` + Σ_s κ^(p−1−s)·ψ_s·x̄_sᵀ over the p ``pending`` pairs (ψ, x̄): products of matrices, so that the
    large tensor is touched once in a while, not at every step.
    """

    filtered: Tensor | None
    """(B, neurons, inputs + returning + 1), the last that of the bias; None: 0."""
    pending: tuple[tuple[Tensor, Tensor], ...] = ()
    """ψ (B, neurons) and the presynaptic traces (B, inputs + returning + 1) of each step since."""
    now: Tensor | None = None
    """e of this step, and of the adaptation: of neurons with an adaptive threshold."""
    adaptation: Tensor | None = None
    spikes: Tensor | None = None
    """z̄ (B, neurons), what the readout has kept of the spikes: for adaptive feedback."""

    def value(self, kappa: float) -> Tensor:
        """ē now."""
        if not self.pending:
            return cast("Tensor", self.filtered)
        count = len(self.pending)
        slopes = torch.stack(
            [psi * kappa ** (count - 1 - s) for s, (psi, _) in enumerate(self.pending)], 2
        )  # (B, n, p)
        traces = torch.stack([trace for _, trace in self.pending], 1)  # (B, p, m)
        if self.filtered is None:
            return slopes @ traces
        return torch.baddbmm(self.filtered, slopes, traces, beta=kappa**count)


class Heard:
    """Learning signals that wait for the eligibilities they multiply: of one layer, since its last fold."""

    def __init__(self) -> None:
        self.eligibility: Eligibility | None = None
        self.signals: dict[int, Tensor] = {}

    def fits(self, eligibility: Eligibility) -> bool:
        """Whether a step's eligibility goes on from what waits."""
        mine = self.eligibility
        if mine is None:
            return True
        known = len(mine.pending)
        same = mine.filtered is eligibility.filtered and known <= len(eligibility.pending)
        return same and all(a[0] is b[0] for a, b in zip(mine.pending, eligibility.pending[:known], strict=True))

    def add(self, eligibility: Eligibility, signal: Tensor) -> None:
        """The signal L (B, neurons) of the last pending step; several of one step add up."""
        self.eligibility, place = eligibility, len(eligibility.pending) - 1
        self.signals[place] = signal + self.signals[place] if place in self.signals else signal

    def settle(self, kappa: float) -> Tensor | None:
        """Σ_t L[t]·ē[t], (neurons, inputs + returning + 1), and nothing waits any more; None if nothing did."""
        if self.eligibility is None:
            return None
        filtered, pending = self.eligibility.filtered, self.eligibility.pending
        later, products = torch.zeros(()), []  # Σ_{t >= s} κ^(t−s)·L[t]
        for place in reversed(range(max(self.signals) + 1)):
            later = kappa * later + self.signals.get(place, 0.0)
            products.append((pending[place][0] * later, pending[place][1]))
        left, right = (torch.cat(parts) for parts in zip(*products, strict=True))
        changes = left.T @ right
        if filtered is not None:
            changes += torch.einsum("bo,boi->oi", kappa * later, filtered)
        self.eligibility, self.signals = None, {}
        return changes


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
    chunk: ClassVar[int] = CHUNK
    stretch = STRETCH

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
        self._heard = [Heard() for _ in self.stages]
        self.broadcast = None
        if feedback != "symmetric":
            self.broadcast = Broadcast(*hidden_shapes(self), feedback_scale, seed, feedback == "adaptive")
            self.parts["broadcast"] = self.broadcast

    @property
    def stretches(self) -> bool:
        """Not with ε_a, which is one a synapse and follows step by step."""
        return super().stretches and not any(self._adapts(index) for index in range(len(self.stages)))

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
            pair = (slope, presynaptic)
            if before is None:
                return Eligibility(None, (pair,), spikes=kept)
            if len(before.pending) < self.chunk:
                return Eligibility(before.filtered, (*before.pending, pair), spikes=kept)
            self._settle(index)
            return Eligibility(before.value(self.kappa), (pair,), spikes=kept)
        neuron: Any = self.stages[index].neuron
        rho, strength = float(neuron.rho), float(neuron.strength)
        adaptation = torch.zeros_like(slope.unsqueeze(2) * presynaptic.unsqueeze(1))
        if before is not None:
            adaptation = rho * before.adaptation + before.now  # pyright: ignore[reportOperatorIssue]
        own = slope.unsqueeze(2) * (presynaptic.unsqueeze(1) - strength * adaptation)
        filtered = own if before is None else own.add(before.filtered, alpha=self.kappa)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return Eligibility(filtered, (), own, adaptation, kept)

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
        eligibility: Eligibility = state.extra
        if not eligibility.pending:
            self.gather_changes(index, torch.einsum("bo,boi->oi", signal, eligibility.value(self.kappa)))
            return signal * self.psi(index, state)
        if not self._heard[index].fits(eligibility):
            self._settle(index)
        self._heard[index].add(eligibility, signal)
        return signal * eligibility.pending[-1][0]

    def assign_steps(self, stage: Stretch, signal: Tensor) -> Tensor:
        """Σ_t L[t]·ē[t] = Σ_s (Σ_{t≥s} κ^(t−s)·L[t])·e[s]: signals are filtered backwards in place of eligibilities forwards."""
        if not stage.stage.spikes:
            return super().assign_steps(stage, signal)
        readout, slopes = self._readout(stage, signal), stage.slopes()
        stage.gather(slopes * readout.later(signal), self._norms[stage.index])
        if stage.before is not None:
            (early,) = readout.earlier(signal)
            self.gather_changes(stage.index, torch.einsum("bo,boi->oi", early, stage.before.extra.filtered))
        return signal * slopes

    def _readout(self, stage: Stretch, like: Tensor) -> Response:
        return response(Filter(self.kappa), stage.steps, like)

    def remember_steps(self, stage: Stretch) -> Eligibility | None:
        if self.feedback != "adaptive" or stage.index == len(self.stages) - 1:
            return None
        before = None if stage.before is None else (stage.before.extra.spikes,)
        return Eligibility(None, spikes=self._readout(stage, stage.out).levels(stage.out, before).flatten(0, 1))

    def carry_steps(self, stage: Stretch) -> Eligibility | None:
        """ē after the last step, by one product: Σ_s κ^(T−1−s)·ψ[s]·x̄[s]ᵀ and what is left of it from before."""
        if not stage.stage.spikes:
            return None
        own, spikes = self._readout(stage, stage.out), None
        share = own.inputs[0].reshape(-1, *[1] * (stage.out.ndim - 1))
        filtered = stage.outer(stage.slopes() * share)
        if stage.before is not None:
            filtered += own.states[0, 0] * stage.before.extra.filtered
        if stage.extra is not None:
            spikes = stage.timed(stage.extra.spikes)[-1]
        return Eligibility(filtered, spikes=spikes)

    def _settle(self, index: int) -> None:
        changes = self._heard[index].settle(self.kappa)
        if changes is not None:
            self.gather_changes(index, changes)

    def finish(self) -> None:
        with torch.no_grad():
            for index in range(len(self.stages)):
                self._settle(index)
        super().finish()

    def forget(self) -> None:
        self._heard = [Heard() for _ in self.stages]
        super().forget()

    def below(self, index: int, states: tuple[StageState, ...], delta: Tensor, error: Tensor) -> Tensor:
        if self.broadcast is None:
            return super().below(index, states, delta, error)
        if self.feedback == "adaptive":
            self.broadcast.adapt(index - 1, error, states[index - 1].extra.spikes)
        return self.broadcast.signal(index - 1, error)

    def parameters(self) -> list[nn.Parameter]:
        return [] if self.feedback != "adaptive" or self.broadcast is None else list(self.broadcast.parameters())
