"""The linear layer with binary weights."""

import torch
from torch import Tensor

from tbnn.bits import WORD_BITS
from tbnn.nn.weights import BinaryWeight, Parts, Prepared, Product, Spikes
from tbnn.nn.wiring import WiringLike
from tbnn.ops.kernels import NUMPY_DTYPES
from tbnn.ops.lif.memory import reused
from tbnn.ops.quantize import Codes
from tbnn.ops.quantize.estimators import Estimator
from tbnn.ops.quantize.sparsify import SparsityLike
from tbnn.ops.spike_products import (
    FEW,
    FEW_OUTPUTS,
    FROM_BITS,
    SHORT_BLOCK,
    Planes,
    input_gradient_of_blocks,
    planes_of,
    spike_linear,
    weight_gradient,
)

MOST_PLANES = 5  # of the weights, forward


class BinaryLinear(BinaryWeight):
    """``y = x·Ŵᵀ + bias`` with Ŵ one bit a weight: ``ŵ = scale·value + offset``, fitted by ridge regression.

    A drop-in for ``torch.nn.Linear`` on spikes: x (..., in_features) -> (..., out_features). The product is computed
    as ``scale·(x·valuesᵀ) + offset·Σx``, which for 0/1 inputs is exact before the scaling: a packed network gets the
    same bits from popcounts.

    Args:
        in_features, out_features, bias: as in ``torch.nn.Linear``; the bias is real-valued and starts at 0.
        bits: 1 (±1), 1.58 (ternary), 2 to 8, or None for full precision.
        sparsity: the share of weights that are 0, or (n, m): the n largest of every m neighbours stay.
        scope: over what a share is taken: each "block", each "row" (an output's weights) or the whole "tensor".
        estimator: "ddt" (gradient of the ridge reconstruction), "ste" (identity) or another of :func:`tbnn.quantize`.
        form: "affine" (scale and offset) or "linear" (scale only).
        lam: λ of the ridge regression, on the integer grid.
        block: None, one block a row, or the length of the runs of a row that are one block; longer is the row.
        wiring: None, or which synapses there are and the signs they keep: :class:`Dale`, :class:`Distance`,
            :class:`FixedWiring`, :class:`DeepR`, :class:`GivenWiring` or several, of the linear form.

    Raises:
        ValueError: sizes below 1, arguments that :func:`tbnn.quantize` refuses, an input of another width, a wiring with
            options that do not go with it.

    Source: arXiv 2409.09245.

    >>> BinaryLinear(700, 128, sparsity=0.9, bits=1.58, form="linear")(torch.ones(2, 700)).shape
    torch.Size([2, 128])
    >>> BinaryLinear(700, 128, form="linear", wiring=(Dale(0.2), FixedWiring(0.1))).density
    0.1
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: float | None = 1,
        sparsity: SparsityLike = 0.0,
        scope: str = "row",
        estimator: str | Estimator = "ddt",
        form: str = "affine",
        lam: float = 0.01,
        block: int | None = None,
        wiring: WiringLike | None = None,
    ) -> None:
        super().__init__(
            (out_features, in_features), bias,
            bits=bits, sparsity=sparsity, scope=scope, estimator=estimator, form=form, lam=lam, block=block,
            wiring=wiring,
        )  # fmt: skip
        self.in_features, self.out_features = in_features, out_features

    def prepare(self) -> Prepared:
        """The layer with its weights quantised once: a function of x, for many calls in one pass."""
        (weight, codes), bias, multiply = self.quantized(), self.bias, LinearProduct(self.block)

        def product(x: Tensor, words: Tensor | None = None) -> Tensor:
            if x.shape[-1] != self.in_features:
                raise ValueError(f"BinaryLinear: expected (..., {self.in_features}), got {tuple(x.shape)}")
            words = words if words is None else words.flatten(0, -2)
            y = multiply(x.reshape(-1, self.in_features), weight, codes, self.form, words)
            y = y.reshape(*x.shape[:-1], self.out_features)
            return y if bias is None else y + bias

        return product

    def forward(self, x: Tensor, words: Tensor | None = None) -> Tensor:
        return self.prepare()(x, words)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._options_repr()}"


class LinearProduct(Product):
    """x (M, in) times Wᵀ, W (out, in) in runs of ``block`` inputs: for one quantised weight, whose bits it keeps."""

    def __init__(self, block: int | None) -> None:
        self.block = block
        self._planes: list[Planes | None] | None = None

    def parts(self, x: Tensor, values: Tensor, sums: bool) -> Parts:
        block = self.block or x.shape[1]
        for lo in range(0, x.shape[1], block):
            part = x[:, lo : lo + block]
            yield part @ values[:, lo : lo + block].T, part.sum(1, keepdim=True) if sums else None

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        return dy @ weight if needs[0] else None, dy.T @ x if needs[1] else None

    def from_bits(self, x: Tensor, words: Tensor, codes: Codes, sums: bool) -> Tensor | None:
        (rows, inputs), outputs = x.shape, codes.values.shape[0]
        block = min(self.block or inputs, inputs)
        aligned = block == inputs or block % WORD_BITS == 0
        few = rows < FEW or outputs < FEW_OUTPUTS or rows * inputs * outputs < FROM_BITS
        if few or block < SHORT_BLOCK or not aligned:
            return None
        planes = self._planes_of(codes.values, block)
        known = [some for some in planes if some is not None and len(some.factors) <= MOST_PLANES]
        if len(known) < len(planes):
            return None
        return spike_linear(words, inputs, known, codes.scale, codes.offset if sums else None, block)

    def gradients_from_bits(
        self, dy: Tensor, spikes: Spikes, weight: Tensor, codes: Codes, sums: bool, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        (rows, outputs), inputs = dy.shape, weight.shape[1]
        large = min(rows, inputs) >= FEW and outputs >= FEW_OUTPUTS and rows * inputs * outputs >= FROM_BITS
        dx = dweight = None
        if needs[0]:
            planes = self._planes_of(codes.values, min(self.block or inputs, inputs)) if large else [None]
            dx = input_gradient_of_blocks(dy, planes, codes.scale, codes.offset if sums else None)
            dx = _matmul(dy, weight) if dx is None else dx
        if needs[1]:
            dweight = weight_gradient(dy, spikes.words, inputs) if large else dy.T @ spikes.unpacked()
        return dx, dweight

    def _planes_of(self, values: Tensor, block: int) -> list[Planes | None]:
        """The planes of each block of the values, made once."""
        if self._planes is None:
            self._planes = [planes_of(part) for part in values.split(block, 1)]
        return self._planes


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, into memory that an earlier call has touched where there is some: its first touch costs as much as the product."""
    if a.device.type != "cpu" or a.dtype not in NUMPY_DTYPES or a.dtype != b.dtype:
        return a @ b
    return torch.mm(a, b, out=reused((a.shape[0], b.shape[1]), a.dtype))
