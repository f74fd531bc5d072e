"""The linear layer with binary weights."""

from torch import Tensor

from tbnn.nn.weights import BinaryWeight, Parts, Prepared, Product
from tbnn.ops.quantize.estimators import Estimator
from tbnn.ops.quantize.sparsify import SparsityLike


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

    Raises:
        ValueError: sizes below 1, arguments that :func:`tbnn.quantize` refuses, an input of another width.

    Source: arXiv 2409.09245.

    >>> BinaryLinear(700, 128, sparsity=0.9, bits=1.58, form="linear")(torch.ones(2, 700)).shape
    torch.Size([2, 128])
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
    ) -> None:
        super().__init__(
            (out_features, in_features), bias,
            bits=bits, sparsity=sparsity, scope=scope, estimator=estimator, form=form, lam=lam, block=block,
        )  # fmt: skip
        self.in_features, self.out_features = in_features, out_features

    def prepare(self) -> Prepared:
        """The layer with its weights quantised once: a function of x, for many calls in one pass."""
        (weight, codes), bias, multiply = self.quantized(), self.bias, LinearProduct(self.block)

        def product(x: Tensor) -> Tensor:
            if x.shape[-1] != self.in_features:
                raise ValueError(f"BinaryLinear: expected (..., {self.in_features}), got {tuple(x.shape)}")
            y = multiply(x.reshape(-1, self.in_features), weight, codes, self.form)
            y = y.reshape(*x.shape[:-1], self.out_features)
            return y if bias is None else y + bias

        return product

    def forward(self, x: Tensor) -> Tensor:
        return self.prepare()(x)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._options_repr()}"


class LinearProduct(Product):
    """x (M, in) times Wᵀ, W (out, in) in runs of ``block`` inputs."""

    def __init__(self, block: int | None) -> None:
        self.block = block

    def parts(self, x: Tensor, values: Tensor, sums: bool) -> Parts:
        block = self.block or x.shape[1]
        for lo in range(0, x.shape[1], block):
            part = x[:, lo : lo + block]
            yield part @ values[:, lo : lo + block].T, part.sum(1, keepdim=True) if sums else None

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        return dy @ weight if needs[0] else None, dy.T @ x if needs[1] else None
