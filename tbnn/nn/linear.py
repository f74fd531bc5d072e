"""Layers with binary weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tbnn.ops.quantize import Codes, check_quantize, quantize_with_codes

START_GAIN = 2.0  # mean |w|·√fan_in at the start: a tenth of the inputs active then drives a neuron near its threshold


class BinaryLinear(nn.Module):
    """``y = x·Ŵᵀ + bias`` with Ŵ one bit a weight: ``ŵ = scale·sign(w) + offset``, fitted by ridge regression.

    A drop-in for ``torch.nn.Linear`` on spikes: x (..., in_features) -> (..., out_features). The product is computed
    as ``scale·(x·signᵀ) + offset·Σx``, which for 0/1 inputs is exact before the scaling: a packed network gets the
    same bits from popcounts.

    Args:
        in_features, out_features, bias: as in ``torch.nn.Linear``; the bias is real-valued and starts at 0.
        bits: 1.
        sparsity: 0.0.
        estimator: "ddt" (gradient of the ridge reconstruction) or "ste" (identity); the forward pass is the same.
        form: "affine" (scale and offset) or "linear" (scale only).
        lam: λ of the ridge regression, on the integer grid.
        block: None, one block a row (an output's weights), or the length of the runs of a row that are one block.

    Raises:
        ValueError: sizes below 1, arguments that :func:`tbnn.quantize` refuses, an input of another width.

    Source: arXiv 2409.09245.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: float = 1,
        sparsity: float = 0.0,
        estimator: str = "ddt",
        form: str = "affine",
        lam: float = 0.01,
        block: int | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"BinaryLinear: expected sizes >= 1, got {in_features} -> {out_features}")
        if block is not None and block < 1:
            raise ValueError(f"block: expected None or a length >= 1, got {block}")
        check_quantize(bits, sparsity, form, lam, estimator)
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.estimator, self.form, self.lam, self.block = bits, estimator, form, lam, block
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw latent weights uniformly, mean |w| = 2/√in_features, which starts layers alive; bias 0."""
        bound = 2 * START_GAIN / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _quantized(self) -> tuple[Tensor, Codes]:
        """Ŵ (out_features, in_features), differentiable in the latent weights, and its parts."""
        weight, codes = quantize_with_codes(
            self.weight, bits=self.bits, form=self.form, lam=self.lam, dim=1, block=self.block, estimator=self.estimator
        )
        return weight, Codes(codes.sign, codes.scale.squeeze(-1), codes.offset.squeeze(-1))

    def quantized_weight(self) -> Tensor:
        """Ŵ (out_features, in_features), differentiable in the latent weights."""
        return self._quantized()[0]

    def codes(self) -> Codes:
        """Ŵ in parts: sign (out, in), scale and offset (out, blocks), without gradient."""
        return self._quantized()[1]

    def prepare(self) -> Callable[[Tensor], Tensor]:
        """The layer with its weights quantised once: a function of x, for many calls in one pass."""
        (weight, (sign, scale, offset)), bias = self._quantized(), self.bias
        some_offset = offset if self.form == "affine" else None

        def product(x: Tensor) -> Tensor:
            if x.shape[-1] != self.in_features:
                raise ValueError(f"BinaryLinear: expected (..., {self.in_features}), got {tuple(x.shape)}")
            y: Tensor = _CodedLinear.apply(
                x.reshape(-1, self.in_features), weight, sign, scale, some_offset, self.block
            )
            y = y.reshape(*x.shape[:-1], self.out_features)
            return y if bias is None else y + bias

        return product

    def forward(self, x: Tensor) -> Tensor:
        return self.prepare()(x)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, bits={self.bits}, "
            f"estimator={self.estimator}, form={self.form}, block={self.block}"
        )


class _CodedLinear(torch.autograd.Function):
    """x (M, in) times Ŵᵀ, forward from sign, scale and offset, backward through Ŵ."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, sign: Tensor, scale: Tensor, offset: Tensor | None, block: int | None
    ) -> Tensor | None:
        ctx.save_for_backward(x, weight)
        block = block or x.shape[1]
        y = None
        for k, lo in enumerate(range(0, x.shape[1], block)):
            part = x[:, lo : lo + block]
            # In this order, each operation rounded by itself: the packed simulation repeats it bit for bit.
            product = (part @ sign[:, lo : lo + block].T).mul_(scale[:, k])
            if offset is not None:
                product.add_(part.sum(1, keepdim=True) * offset[:, k])
            y = product if y is None else y.add_(product)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        dx = grads[0] @ weight if ctx.needs_input_grad[0] else None
        dweight = grads[0].T @ x if ctx.needs_input_grad[1] else None
        return dx, dweight, None, None, None, None
