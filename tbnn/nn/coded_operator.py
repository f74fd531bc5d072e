"""The product of a layer with coded weights as a torch operator: in a compiled graph too it goes by bits where that pays."""

from typing import Any

import torch
from torch import Tensor

from tbnn.nn import linear
from tbnn.nn.conv import FROM_BITS, ConvProduct
from tbnn.nn.linear import LinearProduct
from tbnn.nn.weights import Product, Spikes, coded_product, packed
from tbnn.ops.quantize import Codes

_PRODUCT = (
    "Tensor values, Tensor scale, Tensor offset, bool sums, "
    "int[] stride, int[] padding, int[] dilation, int groups, int? block"
)

_library = torch.library.Library("tbnn", "FRAGMENT")
_library.define(f"coded_product(Tensor x, Tensor weight, {_PRODUCT}) -> Tensor")
_library.define(
    f"coded_product_backward(Tensor dy, Tensor x, Tensor weight, bool for_x, bool for_weight, {_PRODUCT})"
    " -> (Tensor, Tensor)"
)


def coded_traced(product: Product, x: Tensor, weight: Tensor, codes: Codes, sums: bool) -> Tensor | None:
    """The product as one operator; None for a kind it does not know, and where the compiler's own float products are as fast."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    values, scale, offset = codes
    if type(product) is LinearProduct:
        if len(x) * values.numel() < linear.FROM_BITS:
            return None
        geometry: tuple[Any, ...] = ([], [], [], 1)
    elif type(product) is ConvProduct:
        if x[:, 0].numel() * values.numel() < FROM_BITS:
            return None
        geometry = (list(product.stride), list(product.padding), list(product.dilation), product.groups)
    else:
        return None
    y: Tensor = torch.ops.tbnn.coded_product(x, weight, values, scale, offset, sums, *geometry, product.block)
    return y


def _made(
    stride: list[int], padding: list[int], dilation: list[int], groups: int, block: int | None
) -> LinearProduct | ConvProduct:
    """The product that an operator's arguments tell: one without a stride is a linear layer's."""
    if not stride:
        return LinearProduct(block)
    return ConvProduct(tuple(stride), tuple(padding), tuple(dilation), groups, block)


def _forward(
    x: Tensor, _weight: Tensor, values: Tensor, scale: Tensor, offset: Tensor, sums: bool, *geometry: Any
) -> Tensor:
    return coded_product(_made(*geometry), x, packed(x), Codes(values, scale, offset), sums)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool,
    values: Tensor, scale: Tensor, offset: Tensor, sums: bool, *geometry: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    product, words, needs = _made(*geometry), packed(x), (for_x, for_weight)
    if words is None:
        dx, dweight = product.gradients(dy, x, weight, needs)
    else:
        spikes, codes = Spikes(words, x.shape[1:]), Codes(values, scale, offset)
        dx, dweight = product.gradients_from_bits(dy.contiguous(), spikes, weight, codes, sums, needs)
    return tuple(x.new_empty(0) if d is None else d.contiguous() for d in (dx, dweight))  # pyright: ignore[reportReturnType]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, *codes = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    dx, dweight = torch.ops.tbnn.coded_product_backward(dy, x, weight, *needs, *codes, *ctx.rest)
    return dx if needs[0] else None, dweight if needs[1] else None, *(None,) * (3 + len(ctx.rest))


_library.impl("coded_product", _forward, "CPU")
_library.impl("coded_product_backward", _backward, "CPU")
torch.library.register_autograd("tbnn::coded_product", _gradient, setup_context=_keep, lib=_library)


@torch.library.register_fake("tbnn::coded_product", lib=_library)
def _(
    x: Tensor, _weight: Tensor, values: Tensor, _scale: Tensor, _offset: Tensor, _sums: bool,
    stride: list[int], padding: list[int], dilation: list[int], _groups: int, _block: int | None,
) -> Tensor:  # fmt: skip
    axes = zip(x.shape[2:], values.shape[2:], stride, padding, dilation, strict=True) if stride else ()
    sizes = [(size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, gap in axes]
    return x.new_empty((x.shape[0], values.shape[0], *sizes))


@torch.library.register_fake("tbnn::coded_product_backward", lib=_library)
def _(_dy: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool, *_rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if for_x else (0,)), x.new_empty(weight.shape if for_weight else (0,))
