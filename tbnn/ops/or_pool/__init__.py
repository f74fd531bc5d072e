"""Max-pooling of packed 0/1 frames: the OR over windows, and its gradient."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import check_words, wide_words, words_for
from tbnn.ops.kernels import as_numpy, backend_for
from tbnn.ops.lif.memory import reused
from tbnn.ops.or_pool.cpu import MOST, or_pool2d_cpu
from tbnn.ops.or_pool.gradient import or_pool2d_backward_cpu
from tbnn.ops.or_pool.reference import or_pool2d_reference
from tbnn.ops.patches.cpu import runs_of
from tbnn.ops.patches.reference import Sizes, Windows, pair_of, windows_over

__all__ = ["or_pool2d", "or_pool2d_backward", "or_pool2d_reference"]


def or_pool2d(
    words: Tensor,
    shape: Sequence[int],
    kernel_size: Sizes,
    *,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Whether any bit under a window is set: ``torch.nn.functional.max_pool2d`` of packed 0/1 frames.

    A window without an element of the frame gives 0. Cost for a frame: C·OH·ceil(OW/n) steps, n <= 32 windows each, of
    kh row pieces and log2(kw) shifts; the bits are then picked at once where the stride is a power of two, else one by
    one. Memory: the result.

    Args:
        words: int32 (..., ceil(C·H·W/32)); element c·H·W + y·W + x, padding bits 0.
        shape: (C, H, W).
        kernel_size, stride, padding, dilation: an integer or one for each of two axes; stride None is the kernel's
            size.
        ceil_mode: round the output's size up; a window that would start after the frame is dropped.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        int32 (..., ceil(C·OH·OW/32)), in the same order.

    Raises:
        ValueError: words of another dtype or width, sizes out of range, padding beyond half of the window, frames
            smaller than the window.

    >>> or_pool2d(torch.tensor([0b1000_0000_0100_0000], dtype=torch.int32), (1, 4, 4), 2).tolist()
    [10]
    """
    stride = kernel_size if stride is None else stride
    kernel, margins = pair_of("or_pool2d", "kernel_size", kernel_size), pair_of("or_pool2d", "padding", padding, 0)
    if any(2 * margin > size for margin, size in zip(margins, kernel, strict=True)):
        raise ValueError(f"or_pool2d: padding: expected at most half of the window {kernel}, got {padding}")
    windows = windows_over("or_pool2d", shape, kernel, stride, margins, dilation, ceil_mode)
    check_words(words, math.prod(shape), "or_pool2d")
    frames = words.reshape(-1, words.shape[-1])
    path = backend_for(frames, backend, kernel_dtypes=(torch.int32,), gpu_dtypes=(torch.int32,))
    if path == "gpu":
        from tbnn.ops.patches.gpu import or_pool2d_gpu

        pooled = or_pool2d_gpu(frames, shape, windows)
    elif path == "cpu":
        pooled = torch.from_numpy(np.empty((len(frames), words_for(shape[0] * math.prod(windows.counts))), np.int32))
        runs, lanes = runs_of(windows)
        geometry = tuple(shape), *windows, min(lanes, MOST), np.array(runs)
        out = as_numpy(pooled).view(np.uint32)
        or_pool2d_cpu(wide_words(as_numpy(frames)), *geometry, out, work=frames.numel() * 8)
    else:
        pooled = or_pool2d_reference(frames, shape, windows)
    return pooled.reshape(*words.shape[:-1], pooled.shape[-1])


def or_pool2d_backward(words: Tensor, shape: Sequence[int], windows: Windows, dy: Tensor) -> Tensor:
    """The gradient of :func:`or_pool2d`'s input: each window's goes in equal shares to its spikes, or to all of a silent one.

    That is :func:`tbnn.ops.max_pool.max_pool`'s, the least of the maximum's subgradients, from one bit an input.

    Args:
        words: int32 (M, ceil(C·H·W/32)), on the CPU.
        shape: (C, H, W).
        windows: as forward saw them.
        dy: float32 or float64 (M, C, OH, OW).

    Returns:
        (M, C, H, W), of dy's dtype.
    """
    dx = reused((len(words), *shape), dy.dtype)
    geometry = tuple(shape), windows.kernel, windows.stride, windows.dilation, windows.before
    or_pool2d_backward_cpu(wide_words(as_numpy(words)), *geometry, as_numpy(dy), as_numpy(dx), work=dx.numel())
    return dx
