"""How a call goes through time: chunks, checkpoints between them, and how many states it keeps for backward."""

import math
from typing import NamedTuple

from tbnn.bits import words_for

CHUNK = (
    1 << 20
)  # currents worked out at a time: 4 MB of float32, which the caches hold until the neurons have read them
SPACING = 72  # steps between checkpoints for each number of a neuron's state: 0.44 bit a neuron and step
LONGEST = (
    512  # steps: up to here a normed layer of plain neurons keeps whole numbers, and its tiles their states in caches
)
SEGMENTS = 8  # at least, where a share of them is kept
SHARES = {"speed": 1.0, "balanced": 0.25, "minimal": 0.0}

Memory = str | float
"""A mode of :data:`SHARES`, or the share itself: of the sequence's states, how many at most are kept, not recomputed."""


class Plan(NamedTuple):
    """The way through a sequence."""

    steps: int
    chunk: int
    """Steps of a kernel's call."""
    every: int
    """Steps from checkpoint to checkpoint: whole chunks."""
    kept: int
    """Of so many of the last segments the states are kept."""

    @property
    def segments(self) -> list[tuple[int, int]]:
        """First step and end of what lies between two checkpoints."""
        return [(lo, min(lo + self.every, self.steps)) for lo in range(0, self.steps, self.every)]

    def chunks(self, segment: tuple[int, int]) -> list[tuple[int, int]]:
        """First step and end of each chunk of a segment."""
        lo, hi = segment
        return [(t, min(t + self.chunk, hi)) for t in range(lo, hi, self.chunk)]

    def keeps(self, index: int) -> bool:
        """Whether the states of a segment are kept."""
        return index >= len(self.segments) - self.kept


def share_of(memory: Memory) -> float:
    """The share of states that a mode keeps; ``ValueError`` for another mode, or a share outside [0, 1]."""
    if isinstance(memory, str):
        if memory not in SHARES:
            raise ValueError(f"memory: expected {', '.join(map(repr, SHARES))} or a share in [0, 1], got {memory!r}")
        return SHARES[memory]
    if not 0 <= memory <= 1:
        raise ValueError(f"memory: expected {', '.join(map(repr, SHARES))} or a share in [0, 1], got {memory}")
    return float(memory)


def plan_of(memory: Memory, steps: int, batch: int, features: int, numbers: int) -> Plan:
    """The plan for T, B, F and ``numbers`` of state that a neuron carries from step to step."""
    share = share_of(memory)
    every = min(steps, max(math.isqrt(steps - 1) + 1, SPACING * numbers))
    if 0 < share < 1:  # a share of few segments would come to nothing
        every = min(every, -(-steps // SEGMENTS))
    chunk = min(every, steps_together(batch, features))
    every = min(steps, -(-every // chunk) * chunk)
    segments = -(-steps // every)
    return Plan(steps, chunk, every, math.floor(share * segments))


def steps_together(batch: int, features: int) -> int:
    """Steps whose currents are worked on together."""
    return max(1, CHUNK // (batch * features))


def kept_counts(memory: Memory, steps: int) -> int:
    """Of how many of the last steps whole numbers are kept, where they are kept in place of states."""
    return math.floor(share_of(memory) * steps)


def kept_bytes(
    memory: Memory,
    steps: int,
    batch: int,
    inputs: int,
    features: int,
    numbers: int,
    states: int,
    size: int,
    products: int | None = None,
) -> dict[str, int]:
    """Bytes kept for backward, by what they hold: "inputs" and "outputs" packed, "checkpoints", "states", "products".

    ``numbers`` are those of a checkpoint and ``states`` those of every step that is kept, ``size`` bytes each. ``products``:
    where whole numbers are kept in place of states, bytes of a step's of one sample (``WeightedSpikes.products``).
    """
    words = {
        "inputs": 4 * steps * batch * words_for(inputs),
        "outputs": 4 * steps * batch * words_for(features),
    }
    if products is not None and steps <= LONGEST:
        held = products * kept_counts(memory, steps) * batch
        return {**words, "checkpoints": size * numbers * batch * features, "states": 0, "products": held}
    plan = plan_of(memory, steps, batch, features, numbers)
    segments = plan.segments
    recorded = sum(hi - lo for i, (lo, hi) in enumerate(segments) if plan.keeps(i))
    return {
        **words,
        "checkpoints": size * numbers * len(segments) * batch * features,
        "states": size * states * recorded * batch * features,
        "products": 0,
    }
