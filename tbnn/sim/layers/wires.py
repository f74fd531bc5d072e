"""What carries bits from layer to layer besides the order of layers: delays, and the edges of residual blocks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tbnn.sim.layers.checks import Shapes, check_delay, check_sizes, check_tensors

JOINS = ("or", "and", "iand", "current")
EDGES = ("fork", "swap", *JOINS)


@dataclass(frozen=True)
class EdgeSpec:
    """One turn of a residual block's wires, which keep what is not at work on a pile.

    A block is fork, body, join; with a shortcut of its own fork, body, swap, shortcut, swap, join.

    Attributes:
        op: "fork" keeps a copy of what is here; "swap" exchanges it with what was kept last; a join takes what was kept
            last, s, and what is here, a: "or" a ∨ s, "and" a ∧ s, "iand" ¬a ∧ s, of bits; "current" a + s, of currents.

    Raises ``ValueError`` for another op.
    """

    kind: ClassVar[str] = "edge"
    name: str
    op: str

    def __post_init__(self) -> None:
        if self.op not in EDGES:
            raise ValueError(f"{self.name}: op: expected one of {', '.join(EDGES)}, got {self.op!r}")

    def shapes(self) -> Shapes:
        """It stores nothing."""
        return {}


@dataclass(frozen=True)
class DelaySpec:
    """Delays of bits: each of ``channels`` runs of ``size`` bits by its own number of steps, ``max_delay`` at most.

    Raises ``ValueError`` for sizes below 1, a negative delay and one beyond reason.
    """

    kind: ClassVar[str] = "delay"
    name: str
    channels: int
    size: int
    max_delay: int

    def __post_init__(self) -> None:
        check_sizes(self.name, channels=self.channels, size=self.size)
        check_sizes(self.name, features=self.features)
        check_delay(self.name, max_delay=self.max_delay)

    @property
    def features(self) -> int:
        """Bits in and out."""
        return self.channels * self.size

    def shapes(self) -> Shapes:
        """The delay of each channel."""
        return {"delay": (torch.int32, (self.channels,))}


@dataclass(frozen=True)
class VotingSpec:
    """The mean over each class's ``voters`` neurons, of bits or of values. Raises ``ValueError`` unless they divide."""

    kind: ClassVar[str] = "voting"
    name: str
    in_features: int
    voters: int

    def __post_init__(self) -> None:
        check_sizes(self.name, in_features=self.in_features, voters=self.voters)
        if self.in_features % self.voters:
            raise ValueError(f"{self.name}: expected features that {self.voters} voters divide, got {self.in_features}")

    @property
    def out_features(self) -> int:
        """The classes."""
        return self.in_features // self.voters

    def shapes(self) -> Shapes:
        """It stores nothing."""
        return {}


@dataclass(frozen=True, eq=False)
class PackedVoting:
    """The mean over voters."""

    spec: VotingSpec

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True, eq=False)
class PackedEdge:
    """One turn of a residual block's wires."""

    spec: EdgeSpec

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True, eq=False)
class PackedDelay:
    """``y[t] = x[t − delay]``; delay int32 (channels,). Raises ``ValueError`` for delays outside 0 … max_delay."""

    spec: DelaySpec
    delay: Tensor

    def __post_init__(self) -> None:
        check_tensors(self.spec.name, self.tensors(), self.spec.shapes())
        low, high = int(self.delay.min()), int(self.delay.max())
        if low < 0 or high > self.spec.max_delay:
            raise ValueError(f"{self.spec.name}.delay: expected 0..{self.spec.max_delay}, got {low} to {high}")

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return {"delay": self.delay}
