"""How far a rule's updates agree with back-propagation's gradient of the same loss."""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from tbnn.learning.bptt import Bptt
from tbnn.learning.online import OnlineRule
from tbnn.learning.rule import Rule

R = TypeVar("R", bound=Rule)

ALL = "all"  # the key of what holds for all parameters together


class Agreement(NamedTuple):
    """Of an update u with a gradient g."""

    cosine: float
    """``u·g / (|u|·|g|)``: 1 the same way, −1 the opposite; 0 where one of them is 0, NaN where both are."""
    ratio: float
    """``|u| / |g|``; ∞ where only the gradient is 0, NaN where both are."""


def alignment(rule: Rule, x: Tensor, target: Tensor, reference: Rule | None = None) -> dict[str, Agreement]:
    """Measure the update a rule proposes for a batch against a gradient of the same loss, and change nothing.

    Both see the whole batch from rest with the weights as they are, in evaluation mode: no dropout, norms at their running
    statistics. Parameters, their ``.grad``, running statistics (the rule's and the network's) and random numbers are
    as before afterwards. Take it between sequences.

    Args:
        rule: any whose network back-propagation takes.
        x, target: of a batch, as in :meth:`tbnn.learning.Rule.sequence`.
        reference: what gives the gradient, a rule over the same network; :class:`tbnn.learning.Bptt` of the cross-entropy of
            every step, with the rule's label smoothing, if not given.

    Returns:
        By parameter (those neither moves are left out), and under "all" of all parameters as one vector.

    Raises:
        ValueError: a reference over another network; parameters that take no gradient; as the rules do.

    >>> alignment(Eprop(network), x, labels)["all"].cosine
    0.93
    """
    network = rule.network
    if reference is None:
        reference = Bptt(network, loss=_every_step(rule.label_smoothing))
    elif reference.network is not network:
        raise ValueError("alignment: expected a reference over the rule's own network, got another network")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("alignment: expected a network with parameters that take a gradient, got none")
    proposed, exact = (_update(one, x, target) for one in (rule, reference))
    found: dict[str, Agreement] = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, parameter in network.named_parameters():
        if name not in proposed and name not in exact:
            continue
        zero = torch.zeros_like(parameter, dtype=torch.float64)
        pairs.append((proposed.get(name, zero).flatten(), exact.get(name, zero).flatten()))
        found[name] = agreement(*pairs[-1])
    update, gradient = (torch.cat(part) for part in zip(*pairs, strict=True))
    return {**found, ALL: agreement(update, gradient)}


def agreement(update: Tensor, gradient: Tensor) -> Agreement:
    """Cosine and ratio of norms of two tensors of one shape."""
    update, gradient = update.detach().double().flatten(), gradient.detach().double().flatten()
    sizes = update.norm().item(), gradient.norm().item()
    if not all(sizes):
        return Agreement(0.0 if any(sizes) else math.nan, math.inf if sizes[0] else math.nan if not sizes[1] else 0.0)
    cosine = (update / sizes[0]) @ (gradient / sizes[1])
    return Agreement(cosine.clamp(-1, 1).item(), sizes[0] / sizes[1])


class AlignmentLog:
    """Collects :func:`alignment` over training, on one batch, at given steps.

    Args:
        rule, x, target, reference: see :func:`alignment`.
        steps: at which :meth:`observe` measures; None: at every one.

    Attributes:
        steps: those measured so far.
        agreements: what was found at each.

    >>> log = AlignmentLog(rule, x, labels, range(0, 1000, 100))
    >>> for step, (words, labels) in enumerate(batches):
    ...     log.observe(step)
    ...     rule.sequence(words, labels, optimizer.step)
    """

    def __init__(
        self, rule: Rule, x: Tensor, target: Tensor, steps: Iterable[int] | None = None, reference: Rule | None = None
    ) -> None:
        self.rule, self.x, self.target, self.reference = rule, x, target, reference
        self._wanted = None if steps is None else frozenset(steps)
        self.steps: list[int] = []
        self.agreements: list[dict[str, Agreement]] = []

    def observe(self, step: int) -> dict[str, Agreement] | None:
        """Measure now if ``step`` is one of those asked for; else None. Raises ``ValueError`` for a step measured before."""
        if self._wanted is not None and step not in self._wanted:
            return None
        if self.steps and step <= self.steps[-1]:
            raise ValueError(f"AlignmentLog: expected a step after {self.steps[-1]}, got {step}")
        found = alignment(self.rule, self.x, self.target, self.reference)
        self.steps.append(step)
        self.agreements.append(found)
        return found

    def table(self) -> list[dict[str, Any]]:
        """A plain row for each step and parameter: step, parameter, cosine, ratio."""
        return [
            {"step": step, "parameter": name, **found._asdict()}
            for step, row in zip(self.steps, self.agreements, strict=True)
            for name, found in row.items()
        ]


@contextmanager
def borrowed(rule: R) -> Iterator[R]:
    """A twin of a rule, at rest, to try things with: what it does to rule and network is undone after the ``with`` block.

    It shares the network, in evaluation mode meanwhile, and what the rule knows; gradients start at None.
    """
    network = rule.network
    known = {name: value.clone() for name, value in rule.state_dict().items()}
    parameters = list({id(p): p for p in (*network.parameters(), *rule.parameters())}.values())
    gradients = [parameter.grad for parameter in parameters]
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    twin = copy.copy(rule)
    for name, value in vars(rule).items():
        if isinstance(value, list):
            setattr(twin, name, list(value))
    devices = sorted({p.get_device() for p in parameters if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            network.eval()
            for parameter in parameters:
                parameter.grad = None
            if isinstance(twin, OnlineRule):
                twin.forget()  # what the rule itself holds in the middle of a sequence stays with it
                twin.load_state_dict({name: value.clone() for name, value in known.items()})
            yield twin
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        rule.load_state_dict(known)


def _update(rule: Rule, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What a rule adds to the gradients for a batch, float64, by parameter."""
    with borrowed(rule) as twin:
        twin.sequence(x, target)
        named = rule.network.named_parameters()
        return {name: p.grad.detach().double() for name, p in named if p.grad is not None}


def _every_step(smoothing: float) -> Any:
    """:func:`tbnn.learning.bptt.every_step` with smoothed labels."""

    def loss(readout: Tensor, target: Tensor) -> Tensor:
        repeated = target.repeat(len(readout), *[1] * (target.ndim - 1))
        return functional.cross_entropy(readout.flatten(0, 1), repeated, label_smoothing=smoothing)

    return loss
