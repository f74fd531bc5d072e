"""Convolutions of packed frames with weights of few bits, scaled: from whole numbers to float32 in pieces that stay in cache."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tbnn.ops.binary_conv import ConvProducts
from tbnn.ops.kernels import as_numpy, fresh
from tbnn.ops.patches.reference import Sizes, windows_over
from tbnn.ops.spike_products import COUNTED, Planes
from tbnn.ops.spike_products.cpu import scale_frames_cpu

FRAMES = 16  # together at least, for all threads


class SpikeConv:
    """``y = scale·conv(x, values) + offset·(sum of x over the window)`` for packed x of one shape, set up once.

    Args:
        shape: of a frame, (C, H, W).
        planes: of the values (N, C/groups·kh·kw).
        kernel_size, stride, padding, dilation, groups: as in :func:`tbnn.ops.binary_conv.binary_conv2d`.

    Raises:
        ValueError: frames smaller than the window.
    """

    def __init__(
        self,
        shape: Sequence[int],
        planes: Planes,
        kernel_size: Sizes,
        *,
        stride: Sizes,
        padding: Sizes,
        dilation: Sizes,
        groups: int,
    ) -> None:
        self.windows = windows_over("SpikeConv", shape, kernel_size, stride, padding, dilation)
        self.groups = groups
        self.products = ConvProducts(shape, self.windows, groups, planes.words, planes.factors, planes.constant)

    def __call__(self, words: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        """Words (M, ⌈C·H·W/32⌉), scale and offset float32 (N,) -> float32 (M, N, OH, OW), one rounding an operation."""
        frames, outputs, pixels = len(words), len(scale), self.products.pixels
        y = fresh((frames, outputs, *self.windows.counts), torch.float32)
        packed, out = as_numpy(words), as_numpy(y).reshape(frames, outputs, pixels)
        together = max(COUNTED // (outputs * pixels), FRAMES)
        counts = np.empty((min(together, frames), outputs, pixels), np.int32)
        totals = np.empty((len(counts), self.groups, pixels), np.int32)
        scales = as_numpy(scale)
        offsets = np.empty(0, np.float32) if offset is None else as_numpy(offset)
        for lo in range(0, frames, together):
            part = slice(lo, min(lo + together, frames))
            some, sums = counts[: part.stop - lo], totals[: part.stop - lo]
            self.products.fill(packed[part], some, sums)
            scale_frames_cpu(some, sums, scales, offsets, out[part], work=some.size)
        return y
