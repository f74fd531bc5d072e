"""Back-propagation through time, whole or truncated, as rules of the same protocol."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tbnn.learning.rule import Outcome, Rule, RuleState
from tbnn.nn import detach

Loss = Callable[[Tensor, Tensor], Tensor]
"""A readout (T, B, C) and its target to a number."""


def every_step(readout: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each step's scores, a mean over steps: the loss that the online rules descend."""
    steps, _, classes = readout.shape
    repeated = target.repeat(steps, *[1] * (target.ndim - 1))
    return functional.cross_entropy(readout.reshape(-1, classes), repeated)


class Bptt(Rule):
    """Back-propagation through time: the network's own estimators, its graph kept until the update.

    Args:
        network: any module with ``network(x, state) -> (readout, state)`` and ``network.step``.
        loss: of the readouts since the last update, (T, B, C), and the target.
        truncate: steps between updates, past which no gradient goes (the states do); None: the whole sequence.
        backward: what starts the backward pass of a loss.

    Raises:
        ValueError: truncate below 1.

    Source: Werbos 1990; truncated: Williams & Peng 1990.
    """

    name = "bptt"
    online = False

    def __init__(
        self, network: nn.Module, *, loss: Loss = every_step, truncate: int | None = None,
        backward: Callable[[Tensor], Any] = Tensor.backward,
    ) -> None:  # fmt: skip
        super().__init__(network)
        if truncate is not None and truncate < 1:
            raise ValueError(f"truncate: expected a number of steps >= 1, got {truncate}")
        self.every, self.loss, self.backward = truncate, loss, backward
        self._readouts: list[Tensor] = []
        self._cut = False

    def step(self, x: Tensor, state: RuleState | None = None) -> RuleState:
        before = None if state is None else detach(state.network) if self._cut else state.network
        self._cut = False
        readout, after = self.network.step(x, before)  # pyright: ignore[reportCallIssue]
        self._readouts.append(readout)
        return RuleState(after, (), readout)

    def credit(self, target: Tensor, weight: float) -> float:
        if not self._readouts:
            raise ValueError(f"{self.name}: update: expected a step before, got none")
        loss = weight * self.loss(torch.stack(self._readouts), target)
        self.backward(loss)
        self._readouts, self._cut = [], True
        return loss.item()

    def sequence(
        self, x: Tensor, target: Tensor, change: Callable[[], Any] | None = None, *, steps: int | None = None
    ) -> Outcome:
        """As the base's, in whole pieces through the fused kernels; ``change`` comes after the last."""
        total, readouts, state = 0.0, [], None
        for piece in x.split(self.every or len(x)):
            loss, readout, state = self.piece(piece, target, detach(state))
            loss = loss * (len(piece) / len(x))
            self.backward(loss)
            total += loss.item()
            readouts.append(readout.detach())
        if change is not None:
            change()
        return Outcome(total, torch.cat(readouts))

    def piece(self, x: Tensor, target: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """The loss of steps that go on from a state, their readouts, and the state after them."""
        readout, state = self.network(x) if state is None else self.network(x, state)
        return self.loss(readout, target), readout, state
