"""Delays, the edges of residual blocks and voters at work on a device."""

from typing import ClassVar

import torch
from torch import Tensor

from tbnn.bits import pack_bits, unpack_bits, words_for
from tbnn.sim.counts import LayerCounts
from tbnn.sim.gpu.base import GpuRun
from tbnn.sim.gpu.linear import WORD_BYTES
from tbnn.sim.layers import PackedDelay, PackedEdge, PackedVoting
from tbnn.sim.run import DelayState
from tbnn.sim.run.wires import given_past


class EdgeRun(GpuRun):
    """One turn of a residual block's wires."""

    def __init__(self, layer: PackedEdge) -> None:
        self.layer = layer

    def turn(self, x: Tensor, pile: list[Tensor]) -> Tensor:
        """What is here afterwards, (t, B, ...); the pile keeps the rest."""
        op = self.layer.spec.op
        if op == "fork":
            pile.append(x)
            return x
        kept = pile.pop()
        if op == "swap":
            pile.append(x)
            return kept
        if op == "current":
            return x + kept
        if op == "or":
            return x | kept
        return x & kept if op == "and" else ~x & kept


class VotingRun(GpuRun):
    """The mean over voters, of bits or of values."""

    def __init__(self, layer: PackedVoting) -> None:
        self.layer = layer

    def advance(self, x: Tensor) -> Tensor:
        """Packed bits (t, B, words) or values (t, B, features) -> (t, B, classes)."""
        spec = self.layer.spec
        # Few values, and the network's last: on the CPU, since a device adds and divides in another order.
        values = unpack_bits(x.cpu(), spec.in_features) if x.dtype == torch.int32 else x.cpu()
        return values.unflatten(-1, (-1, spec.voters)).mean(-1).to(x.device)


class DelayRun(GpuRun):
    """Delays at work: the last steps' bits, and for each length of delay the channels that have it."""

    carried: ClassVar[tuple[str, ...]] = ("past", "steps")

    def __init__(self, layer: PackedDelay, batch: int, state: DelayState | None, device: torch.device) -> None:
        self.layer, self.steps, spec = layer, 0, layer.spec
        past = given_past(spec.name, (spec.max_delay, batch, words_for(spec.features)), state)
        self.past = torch.from_numpy(past).to(device)
        each = layer.delay.repeat_interleave(spec.size)
        self.masks = {int(d): pack_bits((each == d)[None])[0].to(device) for d in layer.delay.unique()}

    def advance(self, words: Tensor) -> Tensor:
        """Packed bits (t, B, words) -> the same, later."""
        longest, steps = self.layer.spec.max_delay, len(words)
        extended = torch.cat([self.past, words])
        out = torch.zeros_like(words)
        for delay, mask in self.masks.items():
            start = longest - delay
            out |= extended[start : start + steps] & mask
        self.past = extended[steps:].clone()
        self.steps += steps
        return out

    def state(self) -> DelayState:
        """The last steps' bits."""
        return DelayState(self.past.cpu())

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        moved = 2 * self.steps * self.past.shape[1] * words_for(spec.features) * WORD_BYTES
        return [LayerCounts(spec.name, spec.kind, bytes_moved=moved)]
