"""Packed 0/1 frames convolved with packed ±1 weights."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import check_words, wide_words
from tbnn.ops.binary_conv.cpu import ConvKernel, binary_conv2d_cpu
from tbnn.ops.binary_conv.reference import binary_conv2d_reference
from tbnn.ops.kernels import as_numpy, backend_for
from tbnn.ops.patches import check_groups
from tbnn.ops.patches.cpu import arguments
from tbnn.ops.patches.reference import Margins, Sizes, Windows, windows_over

__all__ = ["ConvProducts", "binary_conv2d", "binary_conv2d_reference"]

Words = npt.NDArray[np.int32]

TASKS = 8  # at least, for as many threads; a band of rows loads the rows above and below it once more


class ConvProducts:
    """A convolution of packed frames with weights of several bit planes on the CPU, set up once.

    Args:
        shape: of a frame, (C, H, W).
        windows: where the kernel goes.
        groups: of channels.
        planes: int32 words (P, N, ceil(n/32)), n = C/groups·kh·kw.
        factors, constant: of each plane, and of the window itself: ``Σ_j factor_j·plane_j + constant``.
    """

    def __init__(
        self, shape: Sequence[int], windows: Windows, groups: int, planes: Words, factors: Sequence[int], constant: int
    ) -> None:
        self.planes, self.factors, self.constant = wide_words(planes), np.array(factors, np.int32), np.int32(constant)
        self.shape, self.windows, self.groups = shape, windows, groups
        self.pixels = math.prod(windows.counts)
        self._kernels: dict[int, ConvKernel] = {}

    def kernel(self, band: int) -> ConvKernel:
        """What the kernels take, for tasks of ``band`` rows of windows."""
        if band not in self._kernels:
            part = self.windows._replace(counts=(band, self.windows.counts[1]))
            size, window, stride, dilation, before, extent, lanes, *tables = arguments(self.shape, part, self.groups)
            sizes = (
                *self.windows.counts,
                self.groups,
                *size,
                window[0],
                *stride,
                dilation[0],
                *before,
                band,
                extent,
                lanes,
            )
            self._kernels[band] = ConvKernel._make([self.planes, self.factors, self.constant, *sizes, *tables])
        return self._kernels[band]

    def fill(self, frames: Words, out: Words, totals: Words | None = None) -> int:
        """Packed frames (M, words) -> out (M, N, OH·OW), filled; totals (M, groups, OH·OW): the spikes under each window.

        Returns how often a spike met a weight bit of the last plane, or of any where there are two.
        """
        count, rows = len(frames), self.windows.counts[0]
        totals = np.empty((count, self.groups, self.pixels), np.int32) if totals is None else totals
        band = max(1, -(-rows // -(-TASKS // max(count, 1))))
        met = np.empty((count, -(-rows // band)), np.int64)
        binary_conv2d_cpu(wide_words(frames), self.kernel(band), out, totals, met, work=self.work(out.size))
        return int(met.sum())

    def work(self, values: int) -> int:
        """Word operations behind so many output values."""
        return values * self.planes.shape[0] * self.planes.shape[2]


def binary_conv2d(
    words: Tensor,
    signs: Tensor,
    shape: Sequence[int],
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    padding: Margins = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """``y = Σ s·w`` over windows for spikes s ∈ {0,1} and weights w ∈ {−1,1}, both packed: ``torch.nn.functional.conv2d``.

    The product of :func:`tbnn.ops.patches.bit_patches` and the signs, without the patches of more than a strip of
    windows in memory. Outside of the frame lie zeros.

    Args:
        words: int32 (..., ceil(C·H·W/32)); element c·H·W + y·W + x, padding bits 0.
        signs: int32 (N, ceil(n/32)), n = C/groups·kh·kw: ``pack_bits(weight.flatten(1) > 0)``, padding bits 0.
        shape, kernel_size, stride, padding, dilation, groups, backend: as in :func:`tbnn.ops.patches.bit_patches`.

    Returns:
        int32 (..., N, OH, OW).

    Raises:
        ValueError: as ``bit_patches``; signs of another dtype, width or device, groups that do not divide N.

    >>> diagonal = torch.tensor([0b100_010_001], dtype=torch.int32)
    >>> signs = torch.tensor([[0b1001]], dtype=torch.int32)
    >>> binary_conv2d(diagonal, signs, (1, 3, 3), 2).tolist()
    [[[2, -1], [-1, 2]]]
    """
    windows = windows_over("binary_conv2d", shape, kernel_size, stride, padding, dilation)
    check_groups("binary_conv2d", groups, shape[0])
    check_words(words, math.prod(shape), "binary_conv2d: words")
    check_words(signs, shape[0] // groups * math.prod(windows.kernel), "binary_conv2d: signs")
    if signs.ndim != 2 or words.device != signs.device or signs.shape[0] % groups:
        raise ValueError(
            f"binary_conv2d: expected signs (N, words) on {words.device}, N a multiple of {groups}, "
            f"got {tuple(signs.shape)} on {signs.device}"
        )
    frames = words.reshape(-1, words.shape[-1])
    if backend_for(frames, backend, kernel_dtypes=(torch.int32,)) == "cpu":
        y = torch.from_numpy(np.empty((len(frames), signs.shape[0], *windows.counts), np.int32))
        ConvProducts(shape, windows, groups, as_numpy(signs)[None], (2,), -1).fill(
            as_numpy(frames), as_numpy(y.flatten(2))
        )
    else:
        y = binary_conv2d_reference(frames, signs, shape, windows, groups)
    return y.reshape(*words.shape[:-1], *y.shape[1:])
