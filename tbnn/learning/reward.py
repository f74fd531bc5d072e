"""Three-factor learning: eligibilities that wait for a reward."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tbnn.learning.eprop import Eligibility, Eprop
from tbnn.learning.online import StageState
from tbnn.learning.ridge import MOMENTUM
from tbnn.learning.rule import RuleState

BASELINE = 0.05  # of a sequence in the running mean of rewards


class RewardEprop(Eprop):
    """Reward-based e-prop: the network guesses, hears how often it was right, and never what would have been.

    At every step an action a ~ softmax(y[t]) is drawn for each sample. Each synapse keeps, of each sample,

        F[t] = γ·F[t−1] + Σ_k B_jk·(π_k[t] − 1[a = k])·ē_ji[t]

    with e-prop's filtered eligibility ē, and at an update the reward R, the share of the steps since the last that were right,
    makes ΔW ∝ mean over samples of (R − R̄)·F, R̄ its running mean: REINFORCE with a baseline. The target is asked for nothing
    but the reward.

    Args:
        network, feedback, adaptation, feedback_scale, momentum: as in :class:`tbnn.learning.eprop.Eprop`.
        seed: of the feedback and the actions.
        discount: γ in [0, 1].

    Raises:
        ValueError: as Eprop; γ outside [0, 1]; targets that are not classes.

    Source: Bellec et al. 2020 (reward-based e-prop); Williams 1992 (REINFORCE); Frémaux & Gerstner 2016 (three factors).
    """

    name = "reward"
    every = None
    chunk = 1
    stretch = None

    def __init__(
        self, network: nn.Module, *, feedback: str = "symmetric", adaptation: bool = True, feedback_scale: float = 1.0,
        discount: float = 1.0, seed: int = 0, momentum: float = MOMENTUM,
    ) -> None:  # fmt: skip
        if not 0 <= discount <= 1:
            raise ValueError(f"discount: expected a number in [0, 1], got {discount}")
        if feedback == "adaptive":
            raise ValueError("feedback: expected 'symmetric' or 'random' for rewards, got 'adaptive'")
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting: list[Tensor | None] = []
        self._actions: list[Tensor] = []
        super().__init__(
            network,
            feedback=feedback,
            adaptation=adaptation,
            feedback_scale=feedback_scale,
            seed=seed,
            momentum=momentum,
        )
        self.discount = discount
        self.baseline = torch.zeros(())
        self._generator.manual_seed(seed)  # a step has been taken on the way, to see the neurons' shapes

    def forget(self) -> None:
        self._waiting, self._actions = [], []
        super().forget()

    @torch.no_grad()
    def step(self, x: Tensor, state: RuleState | None = None) -> RuleState:
        """As e-prop's; then an action is drawn and every synapse's eligibility joins what waits for the reward."""
        now = super().step(x, state)
        chances = now.readout.softmax(1)
        action = torch.multinomial(chances.cpu(), 1, generator=self._generator).squeeze(1).to(chances.device)
        self._actions.append(action)
        error = chances - functional.one_hot(action, chances.shape[1])
        states: tuple[StageState, ...] = now.traces[0]
        if state is None or not self._waiting:
            self._waiting = [None] * len(self.stages)
        signal = self._end.back(error)  # pyright: ignore[reportOptionalMemberAccess]
        for index in reversed(range(len(self.stages))):
            delta, own = self._own(index, states[index], signal)
            waiting = self._waiting[index]
            self._waiting[index] = own if waiting is None else waiting * self.discount + own
            if index:
                signal = self.below(index, states, delta, error)
        return now

    def _own(self, index: int, state: StageState, signal: Tensor) -> tuple[Tensor, Tensor]:
        """A stage's δ, and what this step adds to F (B, neurons, inputs + returning + 1)."""
        signal = signal.reshape(state.out.shape).flatten(1)
        if isinstance(state.extra, Eligibility):
            return signal * self.psi(index, state), signal.unsqueeze(2) * state.extra.value(self.kappa)
        return signal, signal.unsqueeze(2) * self.presynaptic(index, state).unsqueeze(1)

    @torch.no_grad()
    def credit(self, target: Tensor, weight: float) -> float:
        if not self._actions:
            raise ValueError(f"{self.name}: update: expected a step before, got none")
        if target.ndim != 1 or target.is_floating_point() or target.shape != self._actions[0].shape:
            raise ValueError(
                f"target: expected classes ({len(self._actions[0])},) to reward, got {target.dtype} {tuple(target.shape)}"
            )
        reward = (torch.stack(self._actions) == target).double().mean(0)  # (B,)
        advantage = (reward - self.baseline.to(reward)) * (weight / len(reward))
        self.baseline = self.baseline.lerp(reward.mean().to(self.baseline), BASELINE)
        steps = len(self._actions)
        for index, waiting in enumerate(self._waiting):
            if waiting is not None:
                self.gather_changes(index, torch.einsum("b,bji->ji", advantage.to(waiting) / steps, waiting))
        self._actions = []
        return weight * (1 - reward.mean().item())

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "baseline": self.baseline, "actions": self._generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.baseline = saved["baseline"]
        self._generator.set_state(saved["actions"])
