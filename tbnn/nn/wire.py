"""Spikes between the layers of a network: one bit each, and a thread that takes their gradient back."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.bits import unpack_bits
from tbnn.ops.or_pool import or_pool2d, or_pool2d_backward
from tbnn.ops.patches.reference import Sizes, Windows, windows_over


class Wire:
    """Spikes (T, B, features...) as packed words; a layer that wants numbers asks for :meth:`values`.

    Args:
        words: int32 (T, B, ceil(features/32)).
        thread: of the spikes' shape and dtype: through it the gradient goes back. Its numbers count only if it is ``real``.
        real: whether ``thread`` holds the spikes themselves.
    """

    def __init__(self, words: Tensor, thread: Tensor, real: bool = False) -> None:
        self.words, self.thread, self.real = words, thread, real

    @classmethod
    def of_words(cls, words: Tensor, features: tuple[int, ...], dtype: torch.dtype) -> "Wire":
        """Packed words of a data set: no gradient goes back."""
        return cls(words, torch.zeros((), dtype=dtype, device=words.device).expand(*words.shape[:2], *features))

    @property
    def features(self) -> torch.Size:
        """Of a step."""
        return self.thread.shape[2:]

    def values(self) -> Tensor:
        """The spikes as 0/1 numbers (T, B, features...), differentiable."""
        if self.real:
            return self.thread
        values: Tensor = _Values.apply(self.thread, self.words)
        return values

    def flat(self) -> "Wire":
        """(T, B, features)."""
        return Wire(self.words, self.thread.flatten(2), self.real)

    def pooled(self, kernel: Sizes, stride: Sizes, padding: Sizes) -> "Wire":
        """The maximum over windows of (T, B, C, H, W)."""
        windows = windows_over("MaxPool2d", self.features, kernel, stride, padding, 1)
        return Wire(*_Pooled.apply(self.thread, self.words, windows, padding))


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, thread: Tensor, words: Tensor) -> Tensor:
        return unpack_bits(words, math.prod(thread.shape[2:]), thread.dtype).view(thread.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grads[0]  # the layer before may write into it, and the other terms of a sum share it
        return grad.clone() if grad.is_contiguous() else grad, None


class _Pooled(torch.autograd.Function):
    """(words, thread) of the maxima; the gradient is shared among a window's spikes, or among all of a silent one."""

    @staticmethod
    def forward(ctx: Any, thread: Tensor, words: Tensor, windows: Windows, padding: Sizes) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(words)
        ctx.windows, ctx.shape = windows, thread.shape
        shape = thread.shape[2:]
        pooled = or_pool2d(words, shape, windows.kernel, stride=windows.stride, padding=padding)
        ctx.mark_non_differentiable(pooled)
        return pooled, thread.new_zeros(()).expand(*thread.shape[:2], shape[0], *windows.counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (words,) = ctx.saved_tensors
        dy = grads[1].flatten(0, 1)
        dx = or_pool2d_backward(words.flatten(0, 1), ctx.shape[2:], ctx.windows, dy)
        return dx.view(ctx.shape), None, None, None
