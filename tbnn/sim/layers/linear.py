"""Binary linear layers: weights as bit planes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tbnn.bits import WORD_BITS, has_stray_bits, pack_bits, unpack_bits, words_for
from tbnn.sim.layers.checks import Shapes, check_sizes, check_tensors, present


@dataclass(frozen=True)
class LinearSpec:
    """A binary linear layer's name, sizes and grid.

    A weight's value is an integer of few bits, kept as bit planes P_j: ``value = Σ_j c_j·P_j + c``::

        bits  zeros  values                     planes                       c_j              c
        1     no     ±1                         value > 0                    2                −1
        1     yes    −1, 0, 1                   value > 0, value < 0         1, −1            0
        b     no     odd, ±1 … ±(2^b − 1)       the b bits of u, lowest      2, 4, …, 2^b     1 − 2^b
        b     yes    the same, and 0            first; value ≠ 0             2, …, 2^b, 1 − 2^b    0

    with u = (value + 2^b − 1)/2, taken as 0 where the value is 0.

    Attributes:
        block: how many inputs share a scale: ``in_features``, or a multiple of the word size.
        offset, bias: whether there are any; the linear form of a weight has no offset.
        bits: 1 to 8.
        zeros: whether values may be 0: ternary and sparse weights.

    Raises ``ValueError`` for sizes below 1, other bits and any other block.
    """

    kind: ClassVar[str] = "linear"
    name: str
    in_features: int
    out_features: int
    block: int
    offset: bool
    bias: bool
    bits: int = 1
    zeros: bool = False

    def __post_init__(self) -> None:
        check_sizes(self.name, in_features=self.in_features, out_features=self.out_features, block=self.block)
        if self.block != self.in_features and (self.block > self.in_features or self.block % WORD_BITS):
            raise ValueError(
                f"{self.name}: a packed block is a multiple of {WORD_BITS} inputs below in_features, or all "
                f"{self.in_features} inputs, got {self.block}"
            )
        check_sizes(self.name, words=-(-self.in_features // WORD_BITS) * self.out_features)
        if not 1 <= self.bits <= 8:
            raise ValueError(f"{self.name}: bits: expected 1 to 8, got {self.bits}")

    @property
    def planes(self) -> int:
        """How many bit planes there are."""
        return self.bits + self.zeros

    @property
    def coefficients(self) -> tuple[tuple[int, ...], int]:
        """c_j of each plane, and c."""
        if self.bits == 1:
            return ((1, -1), 0) if self.zeros else ((2,), -1)
        powers, top = tuple(2 ** (j + 1) for j in range(self.bits)), 2**self.bits - 1
        return ((*powers, -top), 0) if self.zeros else (powers, -top)

    @property
    def starts(self) -> range:
        """The first input of each block."""
        return range(0, self.in_features, self.block)

    def shapes(self) -> Shapes:
        """Every tensor of the layer."""
        blocks = (torch.float32, (self.out_features, len(self.starts)))
        shapes: Shapes = {
            "planes": (torch.int32, (self.planes, self.out_features, words_for(self.in_features))),
            "scale": blocks,
        }
        if self.offset:
            shapes["offset"] = blocks
        if self.bias:
            shapes["bias"] = (torch.float32, (self.out_features,))
        return shapes


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """``y = Σ_k (scale_k·p_k + offset_k·n_k) + bias``: p_k the popcount product of block k, n_k its number of spikes.

    Attributes:
        planes: int32 words (planes, out_features, ceil(in_features/32)), as :class:`LinearSpec` tells.
        scale: float32 (out_features, blocks).
        offset: float32 (out_features, blocks), or None for 0.
        bias: float32 (out_features,), or None for 0.

    Raises ``ValueError`` where a tensor disagrees with the spec, holds a stray padding bit or is not finite.
    """

    spec: LinearSpec
    planes: Tensor
    scale: Tensor
    offset: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensors(self.spec.name, self.tensors(), self.spec.shapes())
        if has_stray_bits(self.planes, self.spec.in_features):
            raise ValueError(
                f"{self.spec.name}.planes: a padding bit past the {self.spec.in_features} inputs is set, expected 0"
            )
        if self.spec.zeros and self._contradicts():
            raise ValueError(
                f"{self.spec.name}.planes: expected 0 in every plane where the value is 0, got other planes"
            )

    def _contradicts(self) -> bool:
        """Whether a weight is positive and negative, or has bits where it is 0."""
        *planes, last = self.planes.unbind(0)
        wrong = [plane & last if self.spec.bits == 1 else plane & ~last for plane in planes]
        return any(bool(words.any()) for words in wrong)

    def values(self) -> Tensor:
        """The weights' values, int32 (out_features, in_features)."""
        factors, constant = self.spec.coefficients
        planes = unpack_bits(self.planes, self.spec.in_features, torch.int32)
        return (planes * torch.tensor(factors, dtype=torch.int32)[:, None, None]).sum(0, dtype=torch.int32) + constant

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return present(planes=self.planes, scale=self.scale, offset=self.offset, bias=self.bias)


def planes_of(values: Tensor, bits: int, zeros: bool) -> Tensor:
    """The bit planes of integer values (out_features, in_features): int32 (planes, out_features, words)."""
    if bits == 1:
        return pack_bits(torch.stack([values > 0, values < 0] if zeros else [values > 0]))
    kept = values != 0
    u = torch.where(kept, (values.long() + 2**bits - 1) // 2, 0)
    planes = [(u >> j & 1).bool() for j in range(bits)]
    return pack_bits(torch.stack([*planes, kept] if zeros else planes))
