"""Synapses of a few hidden states, moved by chance: nothing real is kept of a weight."""

import math

import numpy as np
import torch
from torch import Tensor

from tbnn.learning.binary.signs import Group, SignOptimizer, State, Weights, check_share

RULES = ("walk", "cascade")
MOST_DEPTH = 62  # a step beyond its last state still fits int8


class DiscreteStates(SignOptimizer):
    """A hidden state of 2·depth + 2 values, whose sign is the weight's, moved one step by chance: log2(2·depth + 2) bits.

    The states are the odd numbers ±1, ±3, … ±(2·depth + 1); so none has no sign, and depth 0 is one bit alone. All
    start at ±1. A step is an *event* for a synapse with probability

        p = min(1, strength·rate·|g| / ⟨|g|⟩),    ⟨|g|⟩ the mean of the parameter, or 1 if not ``relative``

    "walk": at an event the state moves by one, against the gradient, and stops at the ends. A synapse i steps from the
    border flips after i of them: Baldassi et al.'s hidden variables, their rule here driven by the gradient.

    "cascade": at an event against its sign a synapse in state i = 1 … n (n = depth + 1) flips to ∓1 with probability
    x^(i−1) (the last state x^(i−1)/(1 − x); 1 if there is only one); at one of its sign it goes one deeper with
    probability x^i/(1 − x). If both kinds come equally often, all states are equally full (Fusi, Drew & Abbott).

    A schedule's strength (see :class:`SignOptimizer`) multiplies the probability of events. Chance is a function of seed,
    step and the parameter's place: a resumed run goes on as it would have; on another device it is another one.

    Args:
        weights: parameters of ±c, or groups of them.
        depth: states beyond the border on either side, 0 … 62.
        rate: in [0, 1], the mean probability of an event, clipping aside, if ``relative``.
        relative: whether |g| is taken relative to its mean over the parameter.
        rule: "walk" or "cascade".
        x: of the cascade, in (0, ½].
        seed: of the chance.
        lr: the rate of a schedule that means strength 1.

    Raises:
        ValueError: as :class:`SignOptimizer`; options out of range.

    Source: Baldassi, Braunstein, Brunel & Zecchina, "Efficient supervised learning in networks with binary synapses",
    PNAS 104 (2007); Fusi, Drew & Abbott, "Cascade models of synaptically stored memories", Neuron 45 (2005).
    """

    kind = "states"

    def __init__(
        self,
        weights: Weights,
        *,
        depth: int = 7,
        rate: float = 0.003,
        relative: bool = True,
        rule: str = "walk",
        x: float = 0.5,
        seed: int = 0,
        lr: float = 1.0,
    ) -> None:
        options = {"depth": depth, "rate": rate, "relative": relative, "rule": rule, "x": x, "seed": seed}
        super().__init__(weights, lr, options)

    def check(self, group: Group) -> None:
        """Raise ``ValueError`` for options that make no sense."""
        name, depth = type(self).__name__, group["depth"]
        if not (isinstance(depth, int) and 0 <= depth <= MOST_DEPTH):
            raise ValueError(f"{name}: expected a whole depth in [0, {MOST_DEPTH}], got {depth}")
        check_share(self, "rate", group["rate"])
        if group["rule"] not in RULES:
            raise ValueError(f"{name}: expected rule 'walk' or 'cascade', got {group['rule']!r}")
        if not 0 < group["x"] <= 0.5:
            raise ValueError(f"{name}: expected x in (0, 0.5], got {group['x']}")
        if not (isinstance(group["seed"], int) and group["seed"] >= 0):
            raise ValueError(f"{name}: expected a whole seed >= 0, got {group['seed']}")

    def start(self, weight: Tensor, group: Group) -> State:
        """At the border, on the weight's side."""
        return {"hidden": weight.sign().to(torch.int8), "place": len(self.state)}

    def move(self, weight: Tensor, grad: Tensor, state: State, group: Group, strength: float) -> None:
        """Draw who moves."""
        chance, moved = chances(state["hidden"], grad, group, strength)
        words = np.random.SeedSequence([group["seed"], group["steps"], state["place"]]).generate_state(1, np.uint64)
        generator = torch.Generator(weight.device).manual_seed(int(words[0] >> np.uint64(1)))
        draw = torch.rand(weight.shape, generator=generator, device=weight.device)
        state["hidden"].copy_(torch.where(draw < chance, moved, state["hidden"]))
        weight.copy_(torch.copysign(weight, state["hidden"].to(weight.dtype)))

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """As every optimizer's; torch makes everything of a state as real as its parameter, which states are not."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["hidden"] = state["hidden"].to(torch.int8)

    @property
    def bits(self) -> float:
        """Of the state, whose sign is the weight."""
        return math.log2(2 * self.param_groups[0]["depth"] + 2)


def chances(hidden: Tensor, grad: Tensor, options: Group, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """The probability that each synapse moves in a step, and the state it would move to.

    Args:
        hidden: int8, odd states.
        grad: of the same shape.
        options: ``depth, rate, relative, rule, x`` of :class:`DiscreteStates`.
        strength: multiplies the rate.
    """
    size = grad.abs()
    unit = size.mean().clamp_min(torch.finfo(grad.dtype).tiny) if options["relative"] else 1.0
    event = (strength * options["rate"] * size / unit).clamp_max(1)
    last = 2 * options["depth"] + 1
    if options["rule"] == "walk":
        moved = (hidden - 2 * grad.sign().to(hidden.dtype)).clamp(-last, last)
        return torch.where(moved == hidden, 0.0, event), moved
    sign, x, n = hidden.sign(), options["x"], options["depth"] + 1
    level = (hidden.abs().to(grad.dtype) + 1) / 2  # i
    flips = torch.where(level == n, min(1.0, x ** (n - 1) / (1 - x)), x ** (level - 1))
    deepens = torch.where(level == n, 0.0, x**level / (1 - x))
    against = grad.sign() == sign
    return event * torch.where(against, flips, deepens), torch.where(against, -sign, hidden + 2 * sign * (level < n))
