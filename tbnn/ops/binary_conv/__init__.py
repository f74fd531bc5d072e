"""Packed 0/1 frames convolved with packed ±1 weights."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import check_words, unpack_bits_numpy, wide_words
from tbnn.ops.binary_conv.cpu import ConvKernel, binary_conv2d_cpu
from tbnn.ops.binary_conv.events import LANES, EventKernel, conv2d_events_cpu
from tbnn.ops.binary_conv.reference import binary_conv2d_reference
from tbnn.ops.binary_linear.tile import STRIP
from tbnn.ops.kernels import as_numpy, backend_for
from tbnn.ops.patches import check_groups
from tbnn.ops.patches.cpu import arguments
from tbnn.ops.patches.reference import Margins, Sizes, Windows, windows_over

__all__ = ["ConvProducts", "binary_conv2d", "binary_conv2d_reference"]

Words = npt.NDArray[np.int32]
Counts = npt.NDArray[Any]  # int32 or int16

# ns on one Zen 4 core at 3.7 GHz; only their ratios matter.
COUNTED, COUNTED_WORD = 1.2, 0.13  # a lane of a strip of popcounts, and each word of it
ADDED = 0.54  # 16 outputs at a spike and a tap
WRITTEN = 0.38  # an output from a tile of sums, and a sum of the tile

TOGETHER = 16  # frames of a task of events, at most
MOST_SUM = 32767  # of a tile
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
        self._events: EventKernel | None = None

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

    def fill(self, frames: Words, out: Counts, totals: Counts | None = None) -> int:
        """Packed frames (M, words) -> out (M, N, OH·OW), filled; totals (M, groups, OH·OW): the spikes under each window.

        Both int32, or int16 where the sums fit. By popcounts, or spike by spike where that should take less time: the same
        numbers. Returns how often a spike met a weight bit of the last plane, or of any where there are two.
        """
        count, rows, packed = len(frames), self.windows.counts[0], wide_words(frames)
        totals = np.empty((count, self.groups, self.pixels), out.dtype) if totals is None else totals
        if self._few(packed, out.shape[1]):
            events = self.events()
            met = np.empty(count, np.int64)
            together = min(TOGETHER, -(-count // torch.get_num_threads()))
            conv2d_events_cpu(packed, events, together, out, totals, met, work=out.size)
            return int(met.sum())
        band = max(1, -(-rows // -(-TASKS // max(count, 1))))
        met = np.empty((count, -(-rows // band)), np.int64)
        binary_conv2d_cpu(packed, self.kernel(band), out, totals, met, work=self.work(out.size))
        return int(met.sum())

    def _few(self, packed: npt.NDArray[np.uint64], outputs: int) -> bool:
        """Whether adding spike by spike should be faster than popcounts."""
        (oh, ow), taps, frames = self.windows.counts, math.prod(self.windows.kernel), len(packed)
        highest = max(abs(self.constant), abs(int(self.factors.sum()) + self.constant)) * self.shape[0] // self.groups
        if highest * taps > MOST_SUM or frames < torch.get_num_threads():
            return False
        strips = -(-oh // (STRIP // ow)) if ow <= STRIP else oh * -(-ow // STRIP)
        counted = strips * STRIP * outputs * (COUNTED + self.work(1) * COUNTED_WORD)
        span = [(k - 1) * d for k, d in zip(self.windows.kernel, self.windows.dilation, strict=True)]
        places = math.prod(size + more for size, more in zip(self.shape[1:], span, strict=True))
        lanes = -(-outputs // self.groups // LANES)
        room = frames * (counted - WRITTEN * (outputs * self.pixels + self.groups * lanes * LANES * places))
        return room > 0 and int(np.bitwise_count(packed).sum(dtype=np.int64)) * taps * lanes * ADDED < room

    def events(self) -> EventKernel:
        """What the kernel that adds spike by spike takes."""
        if self._events is None:
            windows, channels = self.windows, self.shape[0] // self.groups
            bits = unpack_bits_numpy(self.planes.view(np.int32), channels * math.prod(windows.kernel)).astype(np.int16)
            values = np.tensordot(self.factors.astype(np.int16), bits, 1) + np.int16(self.constant)
            shaped = values.reshape(self.groups, -1, channels, *windows.kernel).transpose(0, 2, 3, 4, 1)[:, :, :, ::-1]
            weights = np.zeros((*shaped.shape[:4], -(-shaped.shape[4] // LANES) * LANES), np.int16)
            weights[..., : shaped.shape[4]] = shaped
            met = (bits[-1] if len(bits) != 2 else bits.sum(0)).reshape(self.groups, -1, channels, *windows.kernel)
            geometry = *windows.counts, *windows.stride, *windows.dilation, *windows.before
            self._events = EventKernel._make([weights, self._met(met.sum(1)), *self.shape[1:], *geometry])
        return self._events

    def _met(self, bits: npt.NDArray[Any]) -> Words:
        """How many weight bits a spike at each place of a frame meets, (C·H·W,), of those of each tap (groups, C/groups, kh, kw)."""
        (kh, kw), (sh, sw), (dh, dw), before, (oh, ow) = self.windows
        ends = [max(b + size, e) for b, size, e in zip(before, self.shape[1:], self.windows.extent, strict=True)]
        found = np.zeros((self.shape[0], *ends), np.int32)
        for i in range(kh):
            for j in range(kw):
                part = found[:, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
                part += bits[..., i, j].reshape(-1, 1, 1)
        top, left = before
        return found[:, top : top + self.shape[1], left : left + self.shape[2]].ravel()

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
