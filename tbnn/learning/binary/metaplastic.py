"""Metaplastic binary weights: the deeper a hidden weight, the less it moves back."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tbnn.learning.binary.signs import (
    Group,
    SignOptimizer,
    State,
    Weights,
    check_positive,
    float_bits,
)

UPDATES = ("adam", "sgd")


class Metaplastic(SignOptimizer):
    """A hidden weight h whose sign is the weight's; its update is damped where it points towards 0.

        h ← h − strength·rate·u·f,   f = 1 − tanh²(m·h) where sign(u) = sign(h), else 1

    u is Adam's direction (its means corrected, without weight decay) or SGD's. With m = 0 nothing is damped: h is then
    the latent weight of straight-through training, its size without part in the forward pass. The gradient is that of the
    binary weight. A schedule's strength (see :class:`SignOptimizer`) multiplies the rate.

    Args:
        weights: parameters of ±c, or groups of them.
        rate: the step of h.
        meta: m >= 0, how fast a hidden weight stiffens; the authors take 1.35 for permuted MNIST.
        update: "adam" or "sgd".
        betas, eps: Adam's.
        momentum: SGD's, in [0, 1).
        start: mean |h| at the start.
        latent: by parameter, real weights in units of c: the |h| at the start are ``start`` times theirs. Without,
            all are ``start``.
        lr: the rate of a schedule that means strength 1.

    Raises:
        ValueError: as :class:`SignOptimizer`; another update; a rate, m or ε below 0, a start not above; betas or a momentum
            outside [0, 1).

    Source: Laborieux, Ernoult, Hirtzlin & Querlioz, "Synaptic metaplasticity in binarized neural networks", Nature
    Communications 12:2549 (2021), algorithm 1.
    """

    kind = "metaplastic"

    def __init__(
        self,
        weights: Weights,
        *,
        rate: float = 3e-3,
        meta: float = 1.35,
        update: str = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.0,
        start: float = 0.1,
        latent: Mapping[Tensor, Tensor] | None = None,
        lr: float = 1.0,
    ) -> None:
        self._latent: dict[Tensor, Tensor] = dict(latent or {})
        options = {
            "rate": rate, "meta": meta, "update": update, "betas": betas, "eps": eps, "momentum": momentum, "start": start,
        }  # fmt: skip
        super().__init__(weights, lr, options)
        self._latent = {}  # not kept: it is as large as the weights

    def check(self, group: Group) -> None:
        """Raise ``ValueError`` for options that make no sense."""
        for name in ("rate", "meta", "eps", "start"):
            check_positive(self, name, group[name])
        if group["start"] == 0:
            raise ValueError(f"{type(self).__name__}: expected start > 0, got 0")
        if group["update"] not in UPDATES:
            raise ValueError(f"{type(self).__name__}: expected update 'adam' or 'sgd', got {group['update']!r}")
        for name, value in (
            ("betas", group["betas"][0]),
            ("betas", group["betas"][1]),
            ("momentum", group["momentum"]),
        ):
            if not 0 <= value < 1:
                raise ValueError(f"{type(self).__name__}: expected {name} in [0, 1), got {value}")

    def start(self, weight: Tensor, group: Group) -> State:
        """h of the weight's sign, and the update's own means at 0."""
        known = self._latent.get(weight)
        size = group["start"] * (torch.ones_like(weight) if known is None else known.abs())
        state = {"hidden": torch.copysign(size, weight)}
        if group["update"] == "adam" or group["momentum"]:
            state["first"] = torch.zeros_like(weight)
        if group["update"] == "adam":
            state["second"] = torch.zeros_like(weight)
        return state

    def move(self, weight: Tensor, grad: Tensor, state: State, group: Group, strength: float) -> None:
        """Move h; the weight takes its sign."""
        hidden, u = state["hidden"], _direction(grad, state, group)
        damped = u * (1 - torch.tanh(group["meta"] * hidden) ** 2)
        hidden.sub_(torch.where(u * weight > 0, damped, u), alpha=strength * group["rate"])
        weight.copy_(torch.copysign(weight, hidden))

    @property
    def bits(self) -> float:
        """The hidden weight, whose sign is the weight, and the update's means."""
        group = self.param_groups[0]
        means = 2 if group["update"] == "adam" else int(group["momentum"] > 0)
        return (1 + means) * float_bits(group["params"][0])


def _direction(grad: Tensor, state: State, group: Group) -> Tensor:
    """Where Adam or SGD would go, for a rate of 1."""
    if group["update"] == "sgd":
        return state["first"].mul_(group["momentum"]).add_(grad) if group["momentum"] else grad
    (beta1, beta2), steps = group["betas"], group["steps"]
    first = state["first"].lerp_(grad, 1 - beta1)
    second = state["second"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    return (first / (1 - beta1**steps)) / (second.sqrt() / math.sqrt(1 - beta2**steps) + group["eps"])
