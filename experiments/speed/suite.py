"""What the parts of the packed simulator's benchmark share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from timing import alternate

BETA = 0.95


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: of torch and numba.
        rounds: of every shape; None: each shape's own.
        tiny: sizes and repetitions that only show that everything runs.
    """

    threads: int
    rounds: int | None = None
    tiny: bool = False

    @property
    def label(self) -> str:
        """The threads as the shapes' names tell them."""
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"

    def times(self, sides: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
        """The sides timed in turn, as :func:`timing.alternate`."""
        return alternate(sides, self.rounds or (1 if self.tiny else rounds), 1 if self.tiny else repeats)


@dataclass
class Part:
    """What one part of the suite found: ``rows`` of ratios, ``facts`` that are none, by name, and ``points`` of the roofline."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    points: list["Point"] = field(default_factory=list)


class Point(NamedTuple):
    """A product on the roofline."""

    name: str
    kind: str
    intensity: float
    """Bit-MACs for each bit that has to be read or written."""
    bit_macs_per_s: float


def point(name: str, kind: str, size: tuple[int, int, int], seconds: float, out_bits: int = 32) -> Point:
    """The product (M, K)·(K, N) of bits that took ``seconds`` and wrote ``out_bits`` an output.

    Every weight counts as one bit-MAC whether it met a spike or not: an event-driven product can pass the ceiling.
    """
    m, k, n = size
    macs = m * k * n
    return Point(name, kind, macs / (m * k + k * n + out_bits * m * n), macs / seconds)
