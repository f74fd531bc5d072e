"""Delays and the edges of residual blocks at work."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import pack_bits, unpack_bits, words_for
from tbnn.ops.kernels import as_numpy
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedDelay, PackedEdge, PackedVoting
from tbnn.sim.run.currents import Currents, ready
from tbnn.sim.run.state import WORD_BYTES, Floats, Words


class DelayState(NamedTuple):
    """What a delay carries from step to step."""

    past: Tensor
    """The packed bits of the last ``max_delay`` steps, int32 (max_delay, B, words), oldest first."""


def given_past(name: str, shape: tuple[int, int, int], state: DelayState | None) -> Words:
    """The last steps' bits, (max_delay, B, words), of this simulation's own: zeros, or a copy of the state's after a check."""
    if state is None:
        return np.zeros(shape, np.int32)
    past = getattr(state, "past", None)
    if not isinstance(past, Tensor) or past.shape != shape or past.dtype != torch.int32:
        got = f"{past.dtype} {tuple(past.shape)}" if isinstance(past, Tensor) else repr(type(state).__name__)
        raise ValueError(f"state of {name}: past: expected torch.int32 {shape}, got {got}")
    return as_numpy(past).copy()


class EdgeRun:
    """One turn of a residual block's wires."""

    def __init__(self, layer: PackedEdge) -> None:
        self.layer = layer

    def turn(self, x: Words | Currents, pile: list[Words | Currents]) -> Words | Currents:
        """What is here afterwards, (t, B, ...); the pile keeps the rest."""
        op = self.layer.spec.op
        if op == "fork":
            x = ready(x.values()) if isinstance(x, Currents) else x  # worked out once for both ways
            pile.append(x)
            return x
        kept = pile.pop()
        if op == "swap":
            pile.append(x)
            return kept
        if isinstance(x, Currents) or isinstance(kept, Currents):
            return ready(x.values() + kept.values())  # pyright: ignore[reportAttributeAccessIssue]
        if op == "or":
            return x | kept
        return x & kept if op == "and" else ~x & kept

    def state(self) -> None:
        """Wires carry nothing."""
        return

    def counts(self) -> list[LayerCounts]:
        """None: what they move stands in the rows of the layers."""
        return []


class VotingRun:
    """The mean over voters, of bits or of values."""

    def __init__(self, layer: PackedVoting) -> None:
        self.layer = layer

    def advance(self, x: Words | Floats | Currents) -> Floats:
        """Packed bits (t, B, words) or values (t, B, features) -> (t, B, classes)."""
        x = x.values() if isinstance(x, Currents) else x
        spec, values = self.layer.spec, torch.from_numpy(np.ascontiguousarray(x))
        if values.dtype == torch.int32:
            values = unpack_bits(values, spec.in_features)
        return values.unflatten(-1, (-1, spec.voters)).mean(-1).numpy()

    def state(self) -> None:
        """It carries nothing."""
        return

    def counts(self) -> list[LayerCounts]:
        """None worth a row."""
        return []


class DelayRun:
    """Delays at work: the last steps' bits, and for each length of delay the channels that have it."""

    def __init__(self, layer: PackedDelay, batch: int, state: DelayState | None) -> None:
        self.layer, spec = layer, layer.spec
        self.past = given_past(spec.name, (spec.max_delay, batch, words_for(spec.features)), state)
        each = layer.delay.repeat_interleave(spec.size)
        self.masks = {int(d): pack_bits((each == d)[None])[0].numpy() for d in layer.delay.unique()}
        self.steps = 0

    def advance(self, words: Words) -> Words:
        """Packed bits (t, B, words) -> the same, later."""
        longest, steps = self.layer.spec.max_delay, len(words)
        extended = np.concatenate([self.past, words])
        out = np.zeros_like(words)
        for delay, mask in self.masks.items():
            start = longest - delay
            out |= extended[start : start + steps] & mask
        self.past = extended[steps:].copy()
        self.steps += steps
        return out

    def state(self) -> DelayState:
        """The last steps' bits."""
        return DelayState(torch.from_numpy(self.past))

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        moved = 2 * self.steps * self.past.shape[1] * words_for(spec.features) * WORD_BYTES
        return [LayerCounts(spec.name, spec.kind, bytes_moved=moved)]
