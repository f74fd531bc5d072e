"""What the optimizers of binary weights share: they flip signs and leave sizes alone."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

State = dict[str, Any]
Group = dict[str, Any]
Weights = Iterable[Tensor] | Iterable[Group]


class SignOptimizer(Optimizer):
    """Base of optimizers over weights of ±c: a step may turn w into −w, and nothing else. Biases are for another one.

    A schedule moves ``lr``, as for every optimizer. Only its ratio to ``lr_unit``, what it was when the optimizer was
    made, counts: the *strength*, 1 at first, by which each class says what it multiplies. So one schedule serves these
    weights and the real parameters, whatever its highest rate; at strength 0 nothing flips.

    Args:
        weights: parameters, or groups of them, without zeros: see :func:`tbnn.learning.binary.binarize_`.
        lr: the rate that means strength 1.
        options: the class's own, one set a group.

    Raises:
        ValueError: weights that are not real numbers, or hold zeros; options out of range.
    """

    kind: ClassVar[str]

    def __init__(self, weights: Weights, lr: float, options: Group) -> None:
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"{type(self).__name__}: expected a finite lr > 0, got {lr}")
        super().__init__(weights, {"lr": lr, "lr_unit": lr, "steps": 0, **options})

    @torch.no_grad()
    def add_param_group(self, param_group: Group) -> None:
        """Add weights, with what this class keeps of them at the start."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self.check(group)
        for weight in group["params"]:
            if not weight.is_floating_point() or bool((weight == 0).any()):
                raise ValueError(
                    f"{type(self).__name__}: expected real weights of ±c, got {weight.dtype} {tuple(weight.shape)}"
                    + (" with zeros" if weight.is_floating_point() else "")
                )
            self.state[weight] = self.start(weight, group)

    @abstractmethod
    def check(self, group: Group) -> None:
        """Raise ``ValueError`` for options that make no sense."""

    @abstractmethod
    def start(self, weight: Tensor, group: Group) -> State:
        """What is kept of a weight before the first step."""

    @abstractmethod
    def move(self, weight: Tensor, grad: Tensor, state: State, group: Group, strength: float) -> None:
        """One step of one parameter, in place."""

    @property
    @abstractmethod
    def bits(self) -> float:
        """What learning keeps of a weight from step to step, the weight's own bit included."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["steps"] += 1
            for weight in group["params"]:
                if weight.grad is not None:
                    self.move(weight, weight.grad, self.state[weight], group, group["lr"] / group["lr_unit"])
        return loss


def check_share(owner: object, name: str, value: float) -> None:
    """Raise ``ValueError`` unless a rate is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{type(owner).__name__}: expected {name} in [0, 1], got {value}")


def check_positive(owner: object, name: str, value: float) -> None:
    """Raise ``ValueError`` unless a number is finite and not below 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{type(owner).__name__}: expected a finite {name} >= 0, got {value}")


def float_bits(weight: Tensor) -> int:
    """Bits of a number kept as this weight is."""
    return 8 * weight.element_size()
