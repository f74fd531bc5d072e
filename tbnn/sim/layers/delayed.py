"""Weights whose every synapse has a delay of its own."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tbnn.bits import has_stray_bits, unpack_bits, words_for
from tbnn.sim.layers.checks import Shapes, check_delay, check_tensors
from tbnn.sim.layers.linear import LinearSpec, PackedLinear


@dataclass(frozen=True)
class DelayedSpec:
    """A layer of weights, ``kernel``, whose synapses pass bits on after 0 … ``max_delay`` steps.

    Raises ``ValueError`` for a delay below 0 or beyond reason.
    """

    kind: ClassVar[str] = "delayed"
    name: str
    max_delay: int
    kernel: LinearSpec

    def __post_init__(self) -> None:
        check_delay(self.name, max_delay=self.max_delay)

    @property
    def in_features(self) -> int:
        """Bits in."""
        return self.kernel.in_features

    @property
    def out_features(self) -> int:
        """Values out."""
        return self.kernel.out_features

    @property
    def delay_bits(self) -> int:
        """How many bits a delay takes."""
        return max(1, self.max_delay.bit_length())

    def shapes(self) -> Shapes:
        """The delays; the kernel has its own."""
        words = words_for(self.in_features)
        return {"delay": (torch.int32, (self.delay_bits, self.out_features, words))}


@dataclass(frozen=True, eq=False)
class PackedDelayed:
    """``y[t, o] = Σ_i ŵ[o, i]·x[t − d[o, i], i] + bias[o]``, zeros before the first step.

    Attributes:
        kernel: the weights.
        delay: the bits of the delays, lowest first: int32 words (delay_bits, out_features, ceil(in_features/32)).

    Raises ``ValueError`` for another kernel than the spec's, stray padding bits, delays beyond max_delay.
    """

    spec: DelayedSpec
    kernel: PackedLinear
    delay: Tensor

    def __post_init__(self) -> None:
        name = self.spec.name
        check_tensors(name, self.tensors(), self.spec.shapes())
        if self.kernel.spec != self.spec.kernel:
            raise ValueError(f"{name}: expected the kernel {self.spec.kernel}, got {self.kernel.spec}")
        if has_stray_bits(self.delay, self.spec.in_features):
            raise ValueError(f"{name}.delay: a padding bit past the {self.spec.in_features} inputs is set, expected 0")
        longest = int(self.delays().max())
        if longest > self.spec.max_delay:
            raise ValueError(f"{name}.delay: expected 0..{self.spec.max_delay}, got up to {longest}")

    def delays(self) -> Tensor:
        """The delay of each synapse, int32 (out_features, in_features)."""
        bits = unpack_bits(self.delay, self.spec.in_features, torch.int32)
        places = 1 << torch.arange(self.spec.delay_bits, dtype=torch.int32)
        return (bits * places[:, None, None]).sum(0, dtype=torch.int32)

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, the kernel's apart."""
        return {"delay": self.delay}
