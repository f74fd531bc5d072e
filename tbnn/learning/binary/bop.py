"""Bop: a weight flips when the running mean of its gradient says so clearly. No latent weights."""

import torch
from torch import Tensor

from tbnn.learning.binary.signs import (
    Group,
    SignOptimizer,
    State,
    Weights,
    check_positive,
    check_share,
    float_bits,
)


class Bop(SignOptimizer):
    """``m ← (1 − γ)·m + γ·g``; w flips where ``strength·|m| > τ`` and ``sign(m) = sign(w)``.

    m starts at 0 and goes on over a flip. A schedule's strength (see :class:`SignOptimizer`) multiplies m, that is, it
    divides the threshold. The gradient's size counts: τ belongs to a loss and its scale. The defaults suit a small network's
    mean cross-entropy; the authors trained ImageNet with γ = 1e-4 falling to 1e-6 and τ = 1e-8.

    Args:
        weights: parameters of ±c, or groups of them.
        gamma: γ, the share of m that a step renews, in [0, 1].
        threshold: τ >= 0.
        lr: the rate that means strength 1.

    Raises:
        ValueError: as :class:`SignOptimizer`; γ outside [0, 1], τ below 0.

    Source: Helwegen et al., "Latent Weights Do Not Exist: Rethinking Binarized Neural Network Optimization", NeurIPS
    2019 (arXiv 1906.02107), algorithm 1.

    >>> w = torch.nn.Parameter(torch.tensor([0.5, 0.5]))
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> Bop([w], gamma=0.1, threshold=0.05).step()
    >>> w.data
    tensor([-0.5000,  0.5000])
    """

    kind = "bop"

    def __init__(self, weights: Weights, *, gamma: float = 1e-3, threshold: float = 3e-4, lr: float = 1.0) -> None:
        super().__init__(weights, lr, {"gamma": gamma, "threshold": threshold})

    def check(self, group: Group) -> None:
        """Raise ``ValueError`` for options that make no sense."""
        check_share(self, "gamma", group["gamma"])
        check_positive(self, "threshold", group["threshold"])

    def start(self, weight: Tensor, group: Group) -> State:
        """m = 0."""
        return {"m": torch.zeros_like(weight)}

    def signal(self, grad: Tensor, state: State, group: Group) -> Tensor:
        """What is held against the threshold, after this step's gradient."""
        return state["m"].lerp_(grad, group["gamma"])

    def move(self, weight: Tensor, grad: Tensor, state: State, group: Group, strength: float) -> None:
        """Flip what the signal says."""
        flip = self.signal(grad, state, group) * weight.sign() * strength > group["threshold"]
        weight.copy_(torch.where(flip, -weight, weight))

    @property
    def bits(self) -> float:
        """The weight's bit and m."""
        return 1 + float_bits(self.param_groups[0]["params"][0])


class Bop2ndOrder(Bop):
    """:class:`Bop` with ``m/(√v + ε)`` in place of m, ``v ← (1 − σ)·v + σ·g²``: the gradient's size no longer counts.

    Args:
        weights, gamma, threshold, lr: as of :class:`Bop`.
        sigma: σ, the share of v that a step renews, in [0, 1].
        eps: ε >= 0.
        corrected: whether m and v are divided by ``1 − (1 − γ)^t`` and ``1 − (1 − σ)^t``, as means of t steps.

    Raises:
        ValueError: as :class:`Bop`; σ outside [0, 1], ε below 0.

    Source: Suarez-Ramirez, Gonzalez-Mendoza, Chang, Ochoa-Ruiz & Duran-Vega, "A Bop and Beyond: A Second Order Optimizer
    for Binarized Neural Networks", CVPR Workshops 2021 (arXiv 2104.05124): its biased and unbiased variants.
    """

    kind = "bop2"

    def __init__(
        self,
        weights: Weights,
        *,
        gamma: float = 1e-3,
        sigma: float = 1e-2,
        threshold: float = 3e-2,
        eps: float = 1e-10,
        corrected: bool = False,
        lr: float = 1.0,
    ) -> None:
        options = {"gamma": gamma, "threshold": threshold, "sigma": sigma, "eps": eps, "corrected": corrected}
        SignOptimizer.__init__(self, weights, lr, options)

    def check(self, group: Group) -> None:
        """Raise ``ValueError`` for options that make no sense."""
        super().check(group)
        check_share(self, "sigma", group["sigma"])
        check_positive(self, "eps", group["eps"])

    def start(self, weight: Tensor, group: Group) -> State:
        """m = v = 0."""
        return super().start(weight, group) | {"v": torch.zeros_like(weight)}

    def signal(self, grad: Tensor, state: State, group: Group) -> Tensor:
        """The mean over the root of the mean square; 0 where there never was a gradient."""
        m = super().signal(grad, state, group)
        v = state["v"].lerp_(grad * grad, group["sigma"])
        if group["corrected"]:
            m, v = (part / _weight_of(group[rate], group["steps"]) for part, rate in ((m, "gamma"), (v, "sigma")))
        return torch.where(m == 0, 0.0, m / (v.sqrt() + group["eps"]))

    @property
    def bits(self) -> float:
        """The weight's bit, m and v."""
        return super().bits + float_bits(self.param_groups[0]["params"][0])


def _weight_of(rate: float, steps: int) -> float:
    """Of all gradients so far in a running mean that started at 0; 1 where it holds nothing."""
    return 1 - (1 - rate) ** steps or 1.0
