"""What every layer with quantised weights shares: the latent weights, their codes, and the product they define."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tbnn.nn.recorded import Recorded
from tbnn.ops.quantize import Codes, check_quantize, quantize_with_codes
from tbnn.ops.quantize.estimators import Estimator
from tbnn.ops.quantize.sparsify import SparsityLike

START_GAIN = 2.0  # mean |w|·√fan_in at the start: a tenth of the inputs active then drives a neuron near its threshold


class BinaryWeight(Recorded, nn.Module, abstract=True):
    """Base of layers whose weights are few bits: ``ŵ = scale·value + offset`` over blocks of an output's weights.

    ``weight`` (outputs, ...) holds the latent, real weights. The weights of one output are a *row*; a block is a row, or
    a run of ``block`` weights of it. A layer's output is ``Σ_k scale_k·(x·values_k) + offset_k·Σx_k``, k the blocks:
    on 0/1 inputs the products and the sums are whole numbers, exact before the scaling, and popcounts give the same.

    Args:
        shape: of the weight, outputs first.
        bias: real-valued, one an output; starts at 0.
        bits, sparsity, form, lam, estimator: as in :func:`tbnn.quantize`.
        scope: over what a sparse share is taken: each "block", each "row" or the whole "tensor".
        block: None, one block a row, or the length of the runs; longer than a row, it is the row.

    Attributes:
        gain: None, or (outputs,), a factor on each output's scales, offsets and Ŵ: what :func:`fold_batch_norms` leaves.

    Raises:
        ValueError: sizes below 1, arguments that :func:`tbnn.quantize` refuses; λ = 0 where training may make Var(q) 0.

    Source: arXiv 2409.09245.
    """

    gain: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        *,
        bits: float | None,
        sparsity: SparsityLike,
        scope: str,
        estimator: str | Estimator,
        form: str,
        lam: float,
        block: int | None,
    ) -> None:
        super().__init__()
        if min(shape) < 1:
            raise ValueError(f"{type(self).__name__}: expected sizes >= 1, got {shape[1]} -> {shape[0]}")
        if block is not None and block < 1:
            raise ValueError(f"block: expected None or a length >= 1, got {block}")
        check_quantize(bits, sparsity, form, lam, estimator, scope)
        if lam == 0 and not (form == "linear" and bits is not None and sparsity == 0 and bits != 1.58):
            raise ValueError("lam: expected a number > 0 (a block's codes may come to be all alike, or all 0), got 0")
        self.bits, self.sparsity, self.scope = bits, sparsity, scope
        self.estimator, self.form, self.lam, self.block = estimator, form, lam, block
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0])) if bias else None
        self.register_buffer("gain", None)
        self.register_load_state_dict_pre_hook(_expect_gain)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw latent weights uniformly, mean |w| = 2/√fan_in, which starts layers alive; bias 0."""
        bound = 2 * START_GAIN / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def quantized(self) -> tuple[Tensor, Codes]:
        """Ŵ of the weight's shape, differentiable in the latent weights, and its :meth:`codes`."""
        weight, (values, scale, offset) = quantize_with_codes(
            self.weight.flatten(1),
            bits=self.bits,
            sparsity=self.sparsity,
            scope=self.scope,
            form=self.form,
            lam=self.lam,
            dim=1,
            block=self.block,
            estimator=self.estimator,
        )
        scale, offset = scale.squeeze(-1), offset.squeeze(-1)
        if self.gain is not None:
            gain = self.gain[:, None]
            weight, scale, offset = weight * gain, scale * gain, offset * gain
        return weight.view_as(self.weight), Codes(values.view_as(self.weight), scale, offset)

    def quantized_weight(self) -> Tensor:
        """Ŵ, of the weight's shape, differentiable in the latent weights."""
        return self.quantized()[0]

    def codes(self) -> Codes:
        """Ŵ in parts, without gradient: values of the weight's shape, scale and offset (outputs, blocks)."""
        return self.quantized()[1]

    @torch.no_grad()
    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """Take a factor and a term an output in: ``y ← scale·y + shift``, both (outputs,)."""
        bias = shift if self.bias is None else shift + scale * self.bias
        self.bias = nn.Parameter(bias.clone())
        self.gain = scale.clone() if self.gain is None else self.gain * scale
        self.__dict__["made_with"] = {**self.__dict__["made_with"], "bias": True}

    def _options_repr(self) -> str:
        shown = {"bits": self.bits, "sparsity": self.sparsity, "estimator": self.estimator, "form": self.form}
        return (
            f"bias={self.bias is not None}, "
            + ", ".join(f"{k}={v}" for k, v in shown.items())
            + (f", block={self.block}")
        )


def _expect_gain(module: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make room for the gain of a folded layer, or drop one's own, before a state dict is loaded."""
    saved = state_dict.get(prefix + "gain")
    module.gain = None if saved is None else module.weight.new_ones(saved.shape)


Parts = Iterator[tuple[Tensor, Tensor | None]]
"""Block by block: the product with the values (M, outputs, ...) and the sum of the inputs, broadcastable to it."""


class Product:
    """A product linear in the weight, as forward sees it, in blocks of values, and as backward sees it."""

    def parts(self, x: Tensor, values: Tensor, sums: bool) -> Parts:
        """x times each block of the values, and the block's sum of x if ``sums``."""
        raise NotImplementedError

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """(dx, dweight) of x times the whole weight."""
        raise NotImplementedError

    def __call__(self, x: Tensor, weight: Tensor, codes: Codes, form: str) -> Tensor:
        """x (M, inputs...) -> (M, outputs, ...), forward from the codes, backward through Ŵ = ``weight``."""
        values, scale, offset = codes
        y: Tensor = _Coded.apply(x, weight, values, scale, None if form == "linear" else offset, self)
        return y


class _Coded(torch.autograd.Function):
    """``Σ_k scale_k·p_k + offset_k·c_k`` forward; backward as if the product were with Ŵ."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, values: Tensor, scale: Tensor, offset: Tensor | None, product: Product
    ) -> Tensor | None:
        ctx.save_for_backward(x, weight)
        ctx.product = product
        y = None
        for k, (part, total) in enumerate(product.parts(x, values, offset is not None)):
            per_output = (-1, *[1] * (part.ndim - 2))
            # In this order, each operation rounded by itself: the packed simulation repeats it bit for bit.
            part = part.mul_(scale[:, k].reshape(per_output))
            if offset is not None and total is not None:
                part.add_(total * offset[:, k].reshape(per_output))
            y = part if y is None else y.add_(part)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        dx, dweight = ctx.product.gradients(grads[0], x, weight, ctx.needs_input_grad[:2])
        return dx, dweight, None, None, None, None


Prepared = Callable[[Tensor], Tensor]
"""A layer as a function of its input, its weights quantised once."""
