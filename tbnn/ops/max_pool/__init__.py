"""Maxima over windows; of spikes, their OR. The gradient is shared among equal maxima."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.kernels import as_numpy, backend_for, fresh, untraced
from tbnn.ops.max_pool import cpu
from tbnn.ops.max_pool.reference import max_pool_reference

Pair = tuple[int, int]


def max_pool(x: Tensor, kernel: Pair, stride: Pair, padding: Pair = (0, 0), backend: str | None = None) -> Tensor:
    """Maxima over windows that move over the last two axes: (..., H, W) -> (..., H', W'), H' = ⌊(H + 2p − k)/s⌋ + 1.

    Padding never wins: p is at most half of the window. Among equal maxima the gradient is shared, the least of the
    maximum's subgradients.

    >>> max_pool(torch.eye(4), (2, 2), (2, 2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    planes = x.reshape(-1, *x.shape[-2:])
    if backend_for(x, backend) == "cpu":
        y = _fused(planes, (*kernel, *stride, *padding))
    else:
        y = max_pool_reference(planes, kernel, stride, padding)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


@untraced
def _fused(planes: Tensor, window: tuple[int, ...]) -> Tensor:
    y: Tensor = _MaxPool.apply(planes, window)
    return y


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, ...]) -> Tensor:
        x = x.contiguous()
        size_h, size_w, step_h, step_w, pad_h, pad_w = window
        height, width = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[1:], (pad_h, pad_w), (size_h, size_w), (step_h, step_w), strict=True))  # fmt: skip
        y = fresh((x.shape[0], height, width), x.dtype)
        cpu.forward(as_numpy(x), *window, as_numpy(y), work=x.numel())
        ctx.save_for_backward(x, y)
        ctx.window = window
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y = ctx.saved_tensors
        dx = fresh(tuple(x.shape), x.dtype)
        cpu.backward(as_numpy(x), as_numpy(y), as_numpy(grads[0]), *ctx.window, as_numpy(dx), work=x.numel())
        return dx, None
