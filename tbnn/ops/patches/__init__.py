"""The patches that a convolution sees, cut out of packed frames."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import check_words, wide_words, words_for
from tbnn.ops.kernels import as_numpy, backend_for
from tbnn.ops.patches.cpu import arguments, bit_patches_cpu
from tbnn.ops.patches.reference import Margins, Sizes, bit_patches_reference, windows_over

__all__ = ["bit_patches", "bit_patches_reference"]


def bit_patches(
    words: Tensor,
    shape: Sequence[int],
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    padding: Margins = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """What each window of a convolution sees of packed frames: element (c, i, j) = frame[c, y·sh + i·dh, x·sw + j·dw].

    A patch's elements are in the order of ``weight[out].flatten()``, so that a convolution with ±1 weights is
    ``binary_linear(patches, pack_bits(weight.flatten(1) > 0), n)``, group by group. Outside of the frame lie zeros.
    Memory: the result, 4·M·OH·OW·groups·ceil(n/32) bytes, kh·kw/(sh·sw) times the frames where patches fill their
    words; for each thread 8·C·(H + margins) bytes more, as often as a row of the window has 32 columns.

    Args:
        words: int32 (..., ceil(C·H·W/32)); element c·H·W + y·W + x, padding bits 0.
        shape: (C, H, W); a sequence of length L is (C, 1, L).
        kernel_size, stride, dilation: an integer or one for each of two axes, as in ``torch.nn.Conv2d``.
        padding: likewise, or ((top, bottom), (left, right)), as :class:`tbnn.nn.BinaryConv2d` keeps in ``margins``.
        groups: the channels of a patch are C/groups that follow each other.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        int32 (..., OH, OW, groups, ceil(n/32)) with n = C/groups·kh·kw; each patch starts a new word.

    Raises:
        ValueError: words of another dtype or width, sizes out of range, groups that do not divide C, frames smaller
            than the window.

    >>> bit_patches(torch.tensor([0b100_010_001], dtype=torch.int32), (1, 3, 3), 2).flatten().tolist()
    [9, 4, 2, 9]
    """
    windows = windows_over("bit_patches", shape, kernel_size, stride, padding, dilation)
    check_groups("bit_patches", groups, shape[0])
    check_words(words, math.prod(shape), "bit_patches")
    frames = words.reshape(-1, words.shape[-1])
    path = backend_for(frames, backend, kernel_dtypes=(torch.int32,), gpu_dtypes=(torch.int32,))
    if path == "gpu":
        from tbnn.ops.patches.gpu import bit_patches_gpu

        patches = bit_patches_gpu(frames, shape, windows, groups)
    elif path == "cpu":
        bits = shape[0] // groups * math.prod(windows.kernel)
        patches = torch.from_numpy(np.empty((len(frames), *windows.counts, groups, words_for(bits)), np.int32))
        out = as_numpy(patches).view(np.uint32)
        bit_patches_cpu(wide_words(as_numpy(frames)), *arguments(shape, windows, groups), out, work=patches.numel() * 8)
    else:
        patches = bit_patches_reference(frames, shape, windows, groups)
    return patches.reshape(*words.shape[:-1], *patches.shape[1:])


def check_groups(caller: str, groups: int, channels: int) -> None:
    """Raise ``ValueError`` unless the groups divide the channels."""
    if groups < 1 or channels % groups:
        raise ValueError(f"{caller}: expected channels that {groups} groups divide, got {channels}")
