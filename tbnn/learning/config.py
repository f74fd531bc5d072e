"""Which rule a network learns by, as a configuration says it."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from torch import nn

from tbnn.learning.decolle import Decolle
from tbnn.learning.eprop import Eprop
from tbnn.learning.equilibrium import EquilibriumPropagation
from tbnn.learning.feedback import DirectFeedbackAlignment, FeedbackAlignment
from tbnn.learning.ostl import Ostl
from tbnn.learning.ottt import Ottt
from tbnn.learning.plasticity import Stdp
from tbnn.learning.reward import RewardEprop
from tbnn.learning.rtrl import Rtrl
from tbnn.learning.rule import Rule


@dataclass(frozen=True)
class LearningConfig:
    """The learning rule: back-propagation through time, or one that needs no unrolled time.

    Online rules learn from the cross-entropy of every step as it comes: the mean over time that ``optim.loss`` and
    ``optim.readout`` speak of is not known before its end. The readout's scores still tell the answer.

    Attributes:
        rule: "bptt" (``optim.truncate`` cuts it), "ottt", "eprop", "ostl", "rtrl" (exact, for small networks), "decolle",
            "fa" and "dfa" (feedback alignment, direct), "reward" (e-prop that hears but whether it was right), "equilibrium"
            (of ``model.network: equilibrium``), "stdp" (one hidden layer without targets, a readout by the delta rule).
        update_every: of online rules, steps between changes of the weights; one at the end of a sequence if not given.
        feedback: of "eprop", "reward": "symmetric", "random" or "adaptive"; of "dfa" "random" or "adaptive".
        feedback_scale: of random feedback, and of "decolle"'s readouts.
        learn_readouts: of "decolle": let its local readouts learn.
        through_reset: of "ostl": carry credit through the reset.
        adaptation: of "eprop", "reward" with adaptive neurons: carry credit through their thresholds.
        discount: of "reward": what is left of an eligibility after a step.
        nudge, nudging: of "equilibrium": β, and "symmetric", "one_sided" (for binary units) or "random_sign".
        options: of "stdp", by name: those of :class:`tbnn.learning.plasticity.Stdp`.
        momentum: of the running averages behind ridge-denoised slopes, a step's share.
        alignment: log after each epoch how far the rule's updates agree with back-propagation's gradient (``tbnn plot alignment``).
    """

    rule: Literal["bptt", "ottt", "eprop", "ostl", "rtrl", "decolle", "fa", "dfa", "reward", "equilibrium", "stdp"] = (
        "bptt"
    )
    update_every: int | None = None
    feedback: Literal["symmetric", "random", "adaptive"] | None = None
    feedback_scale: float | None = None
    learn_readouts: bool = False
    through_reset: bool = False
    adaptation: bool = True
    discount: float = 1.0
    nudge: float = 0.5
    nudging: Literal["symmetric", "one_sided", "random_sign"] = "symmetric"
    options: dict[str, int | float | str] = field(default_factory=dict)
    momentum: float = 0.005
    alignment: bool = False

    def __post_init__(self) -> None:
        if self.update_every is not None and self.update_every < 1:
            raise ValueError(f"learning.update_every: expected a number of steps >= 1, got {self.update_every}")
        if self.rule == "bptt" and self.update_every is not None:
            raise ValueError("learning.update_every: back-propagation takes optim.truncate instead")
        if self.rule == "dfa" and self.feedback == "symmetric":
            raise ValueError("learning.feedback: expected 'random' or 'adaptive' for 'dfa', got 'symmetric'")
        taken = {"rule", "update_every", *USES[self.rule]}
        for option in fields(self):
            default = {} if option.default is MISSING else option.default
            if option.name not in taken and getattr(self, option.name) != default:
                users = ", ".join(sorted(rule for rule, names in USES.items() if option.name in names))
                raise ValueError(
                    f"learning.{option.name}: belongs to {users}; expected {default!r} for {self.rule!r}, "
                    f"got {getattr(self, option.name)!r}"
                )


USES: dict[str, tuple[str, ...]] = {
    "bptt": (),
    "ottt": ("alignment", "momentum"),
    "eprop": ("alignment", "feedback", "feedback_scale", "adaptation", "momentum"),
    "ostl": ("alignment", "through_reset", "momentum"),
    "rtrl": ("alignment",),
    "decolle": ("alignment", "feedback_scale", "learn_readouts", "momentum"),
    "fa": ("alignment", "feedback_scale", "momentum"),
    "dfa": ("alignment", "feedback", "feedback_scale", "momentum"),
    "equilibrium": ("nudge", "nudging"),
    "stdp": ("options",),
    "reward": ("alignment", "feedback", "feedback_scale", "adaptation", "discount", "momentum"),
}
"""The options of each rule."""


def rule_of(network: nn.Module, learning: LearningConfig, seed: int = 0) -> Rule:
    """The online rule that a configuration names, for a network; ``seed`` draws its random feedback.

    Raises ``ValueError`` for a network that the rule is not derived for, and for "bptt", which needs a loss:
    :class:`tbnn.learning.Bptt`.
    """
    scale: dict[str, Any] = {} if learning.feedback_scale is None else {"feedback_scale": learning.feedback_scale}
    broadcast: dict[str, Any] = {**scale, "seed": seed, "adaptation": learning.adaptation}
    if learning.feedback is not None:
        broadcast["feedback"] = learning.feedback
    averages: dict[str, Any] = {"momentum": learning.momentum}
    make: dict[str, Callable[[], Rule]] = {
        "ottt": lambda: Ottt(network, **averages),
        "eprop": lambda: Eprop(network, **broadcast, **averages),
        "ostl": lambda: Ostl(network, through_reset=learning.through_reset, **averages),
        "rtrl": lambda: Rtrl(network),
        "decolle": lambda: Decolle(
            network, learn_readouts=learning.learn_readouts, seed=seed, **averages,
            **({} if learning.feedback_scale is None else {"readout_scale": learning.feedback_scale}),
        ),
        "fa": lambda: FeedbackAlignment(network, seed=seed, **scale, **averages),
        "dfa": lambda: DirectFeedbackAlignment(
            network, adaptive=learning.feedback == "adaptive", seed=seed, **scale, **averages
        ),
        "equilibrium": lambda: EquilibriumPropagation(
            network, beta=learning.nudge, nudging=learning.nudging, loss="cross_entropy"
        ),
        "stdp": lambda: Stdp(network, **_known(learning.options), seed=seed),
        "reward": lambda: RewardEprop(network, discount=learning.discount, **broadcast, **averages),
    }  # fmt: skip
    if learning.rule not in make:
        raise ValueError(f"rule_of: expected an online rule, {', '.join(make)}, got {learning.rule!r}")
    return make[learning.rule]()


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """The same options; ``ValueError`` for one that STDP does not have."""
    known = set(inspect.signature(Stdp).parameters) - {"network", "seed"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"learning.options: expected {', '.join(sorted(known))}, got {unknown[0]}")
    return options
