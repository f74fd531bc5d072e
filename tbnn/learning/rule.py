"""The protocol of every learning rule: it watches a network step by step, and turns targets into changes of weights."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class RuleState(NamedTuple):
    """What a rule carries from step to step: a value, as every state here is."""

    network: Any
    """The network's own state."""
    traces: Any
    """What the rule remembers of the past."""
    readout: Tensor
    """What the network said at this step, (B, C)."""


class Outcome(NamedTuple):
    """What a rule saw of a batch of sequences."""

    loss: float
    """Mean over steps and samples."""
    readout: Tensor
    """(T, B, C), detached."""


class Rule(abc.ABC):
    """How a network's weights learn from what runs through it.

    ``rule.step(x_t, state) -> state`` shows the rule one step, ``rule.update(target)`` tells it what the network should have
    said at the last one: the rule then adds to the ``.grad`` of the network's parameters, in the sense of a gradient (an
    optimizer steps against it), whether or not it is one. ``rule.sequence(x, target)`` does both for a whole batch, with an
    update wherever the rule takes one; that is what training calls.

    Args:
        network: what learns. Rules that are not derived for one of its layers refuse it and say which they know.

    Attributes:
        every: steps between the updates of a sequence; None: one at its end.
        online: whether what is kept does not grow with the number of steps.
        label_smoothing: of the cross-entropy of online rules, the share of a class that all classes have.
    """

    name: ClassVar[str]
    online: ClassVar[bool] = True
    every: int | None = 1
    label_smoothing: float = 0.0

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @abc.abstractmethod
    def step(self, x: Tensor, state: RuleState | None = None) -> RuleState:
        """One step: x (B, features...) of 0/1, or packed words (B, ceil(features/32)); ``state`` None is rest."""

    def update(self, target: Tensor, weight: float = 1.0) -> float:
        """Learn from the last step's error; returns its loss, a mean over the batch, times ``weight``.

        Args:
            target: classes (B,) int64, or what the readout should have been: shares of classes (B, C).
            weight: multiplies loss and gradient; 1/T makes a sequence's updates its mean.

        Raises:
            ValueError: a target that fits neither; no step before.
        """
        loss = self.credit(target, weight)
        self.finish()
        return loss

    @abc.abstractmethod
    def credit(self, target: Tensor, weight: float) -> float:
        """:meth:`update` while the weights stand still: what it finds may be gathered until :meth:`finish`."""

    def finish(self) -> None:  # noqa: B027
        """Hand on what was gathered; the weights may change after it. A rule that gathers nothing has nothing to do."""

    def sequence(
        self, x: Tensor, target: Tensor, change: Callable[[], Any] | None = None, *, steps: int | None = None
    ) -> Outcome:
        """All steps of a batch of sequences, from rest, with an update wherever the rule takes one.

        Args:
            x: (T, B, features...) or words (T, B, words).
            target: as in :meth:`update`.
            change: called where gradients stand, an optimizer's step say: at the end and, given ``steps``, after every
                so many steps too, so that the weights change within a sequence. It zeroes the gradients itself.
        """
        total, every = len(x), self.every or len(x)
        state, loss, readouts = None, 0.0, []
        for t, x_t in enumerate(x.unbind(0), 1):
            state = self.step(x_t, state)
            readouts.append(state.readout.detach())
            if t % every == 0 or t == total:
                loss += self.credit(target, ((t - 1) % every + 1) / total)
            if t == total or (steps is not None and t % steps == 0):
                self.finish()
                if change is not None:
                    change()
        return Outcome(loss, torch.stack(readouts))

    def parameters(self) -> list[nn.Parameter]:
        """What the rule itself learns beside the network's parameters, for the same optimizer."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """What the rule has come to know beside the network's parameters."""
        return {}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`; ``ValueError`` for another rule's."""
        if saved:
            raise ValueError(f"{self.name}: expected no saved state, got {sorted(saved)[0]}")


def classification_error(readout: Tensor, target: Tensor, smoothing: float = 0.0) -> tuple[float, Tensor]:
    """The cross-entropy of one step's scores (B, C), and its gradient by them, both of the mean over the batch.

    ``smoothing`` gives every class that share of one, the true classes less.

    Raises ``ValueError`` for a target that is neither classes (B,) nor shares (B, C).
    """
    batch, classes = readout.shape
    if target.ndim == 1 and target.shape[0] == batch and not target.is_floating_point():
        shares = functional.one_hot(target, classes).to(readout.dtype)
    elif target.shape == readout.shape:
        shares = target.to(readout.dtype)
    else:
        raise ValueError(
            f"target: expected classes ({batch},) or shares ({batch}, {classes}), got {target.dtype} {tuple(target.shape)}"
        )
    shares = shares * (1 - smoothing) + smoothing / classes
    logs = readout.log_softmax(1)
    loss = -(shares * logs).sum(1).mean().item()
    return loss, (logs.exp() * shares.sum(1, keepdim=True) - shares) / batch
