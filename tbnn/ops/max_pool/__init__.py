"""Maxima over windows; of spikes, their OR. The gradient is shared among equal maxima."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.kernels import as_numpy, backend_for, fresh
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
        y: Tensor = _MaxPool.apply(planes, (*kernel, *stride, *padding))
    else:
        y = max_pool_reference(planes, kernel, stride, padding)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


_library = torch.library.Library("tbnn", "FRAGMENT")
_library.define("max_pool(Tensor x, int[] window) -> Tensor")
_library.define("max_pool_backward(Tensor x, Tensor y, Tensor dy, int[] window) -> Tensor")


def _forward(x: Tensor, window: Sequence[int]) -> Tensor:
    y = fresh(_shape(x, window), x.dtype)
    cpu.forward(as_numpy(x), *window, as_numpy(y), work=x.numel())
    return y


def _backward(x: Tensor, y: Tensor, dy: Tensor, window: Sequence[int]) -> Tensor:
    dx = fresh(tuple(x.shape), x.dtype)
    cpu.backward(as_numpy(x), as_numpy(y), as_numpy(dy), *window, as_numpy(dx), work=x.numel())
    return dx


def _shape(x: Tensor, window: Sequence[int]) -> tuple[int, int, int]:
    size_h, size_w, step_h, step_w, pad_h, pad_w = window
    planes, height, width = x.shape
    return planes, (height + 2 * pad_h - size_h) // step_h + 1, (width + 2 * pad_w - size_w) // step_w + 1


_library.impl("max_pool", _forward, "CPU")
_library.impl("max_pool_backward", _backward, "CPU")


@torch.library.register_fake("tbnn::max_pool", lib=_library)
def _(x: Tensor, window: Sequence[int]) -> Tensor:
    return x.new_empty(_shape(x, window))


@torch.library.register_fake("tbnn::max_pool_backward", lib=_library)
def _(x: Tensor, _y: Tensor, _dy: Tensor, _window: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape)


class _MaxPool(torch.autograd.Function):
    """The operators with their gradient; only a compiler needs them as such, and they cost a little a call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, ...]) -> Tensor:
        x = x.contiguous()
        run = torch.ops.tbnn.max_pool if torch.compiler.is_compiling() else _forward
        y = run(x, window)
        ctx.save_for_backward(x, y)
        ctx.window = window
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        run = torch.ops.tbnn.max_pool_backward if torch.compiler.is_compiling() else _backward
        x, y = ctx.saved_tensors
        return run(x, y, grads[0], ctx.window), None
