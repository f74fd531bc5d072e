"""The parts of :class:`Qgait` and :class:`Pege` that are no kernels: plain torch, on every device."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.quantize.estimators import Pege, Qgait
from tbnn.ops.quantize.grid import ODD, REAL, SIGN, Scheme


def soft_slope(f: Tensor, scheme: Scheme, estimator: Qgait) -> Tensor:
    """φ' of :class:`Qgait` where values lie at ``f`` on the grid of ``scheme``, of f's shape."""
    k = estimator.sharpness_now
    if scheme.rule == REAL or k == 0:
        return torch.ones_like(f)
    apart = scheme.high - scheme.low if scheme.rule == SIGN else 2.0 if scheme.rule == ODD else 1.0
    place = (f - scheme.low) / apart  # 0 at the lowest code, 1 at the next
    between = place - place.floor() - 0.5
    slope = k / 2 / math.tanh(k / 2) * (1 - (k * between).tanh().square())
    return torch.where((f >= scheme.low) & (f <= scheme.high), slope, k / math.sinh(k))


def sloped(x: Tensor, x_hat: Tensor, slope: Tensor) -> Tensor:
    """x̂, with the gradient ``G·slope`` in x; all of one shape."""
    return _Sloped.apply(x, x_hat.detach(), slope.detach())


def mixed(x: Tensor, x_hat: Tensor, estimator: Pege) -> Tensor:
    """x̃ of :class:`Pege` from x and x̂, of one shape, with its gradient in x; it has x̂'s dtype."""
    share = estimator.share
    replaced = None
    if 0 < share < 1:
        replaced = torch.rand(x.shape, device=x.device) < share
    elif share == 0:
        return x.to(x_hat.dtype, copy=True)
    return _Mixed.apply(x, x_hat.detach(), replaced, float(estimator.weight))


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, x_hat: Tensor, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(slope.to(x.dtype))
        return x_hat.view_as(x_hat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, x_hat: Tensor, replaced: Tensor | None, weight: float
    ) -> Tensor:
        wide = x.to(x_hat.dtype)
        out = x_hat.clone() if replaced is None else torch.where(replaced, x_hat, wide)
        ctx.weight = weight
        ctx.save_for_backward(*(((wide - out).to(x.dtype),) if weight else ()))  # x − x̃ is 0 where x stays
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dx = grads[0]
        if ctx.weight:
            (error,) = ctx.saved_tensors
            dx = dx + ctx.weight * error
        return dx, None, None, None
