"""The gradients of a convolution of packed frames, each by what should take the least time: spikes, tables or torch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tbnn.bits import unpack_bits, wide_words
from tbnn.ops.kernels import as_numpy, fresh
from tbnn.ops.patches.reference import Windows
from tbnn.ops.spike_products import Planes, planes_of
from tbnn.ops.spike_products.conv_inputs import conv_inputs_cpu
from tbnn.ops.spike_products.conv_weights import Shape, conv_events_cpu
from tbnn.ops.spike_products.tables import LANES, ROWS, TOGETHER

# ns on one Zen 4 core at 3.7 GHz; only their ratios matter.
MAC = 0.018  # of torch's float32 convolution with 16 channels or more; with fewer it is slower
UNPACKED = 0.5  # a spike as float32
ADDED = 0.4  # 16 reals at a spike and a tap
TURNED = 0.6  # a real of dy
CALLED = 8.0  # a row of taps of a channel and a frame
LOOKED_UP = 0.027  # a table's 16 reals, for one of 16 frames

FRAMES = 64  # whose weights' gradients are added up before those sums are: at least
MOST_PARTIAL = 1 << 24  # reals of such sums
MOST_UNPACKED = 1 << 22  # inputs as float32 at a time

Words = npt.NDArray[np.int32]


class ConvGradients:
    """``dW`` and ``dx`` of ``y = conv(x, Ŵ)`` for packed 0/1 frames x, float32 on the CPU by kernels, else by torch.

    Both have errors like those of a float32 convolution, or smaller: sums are added up in two or more levels.

    Args:
        shape: of a frame, (C, H, W).
        windows: where the kernel goes.
        groups: of channels.
        values, scale, offset: of ``Ŵ = scale·values + offset``, (N, C/groups, kh, kw) and twice (N, 1), no offset: None.
            Values that are not whole numbers in [−15, 15] or have several blocks a row leave dx to torch.
    """

    def __init__(
        self, shape: Sequence[int], windows: Windows, groups: int, values: Tensor, scale: Tensor, offset: Tensor | None
    ) -> None:
        self.shape, self.windows, self.groups = tuple(shape), windows, groups
        self.values, self.scale, self.offset = values, scale, offset
        (kh, kw), (sh, sw), (dh, dw), (above, left), (oh, ow) = windows
        channels, height, width = self.shape
        self.kernel_shape = Shape(channels, height, width, groups, oh, ow, kh, kw, sh, sw, dh, dw, above, left)
        self.pixels, self.inputs = oh * ow, math.prod(self.shape)
        self.after = [e - b - s for e, b, s in zip(windows.extent, windows.before, self.shape[1:], strict=True)]
        rest = [b - a for a, b in zip(self.after, windows.before, strict=True)]
        self.even = all(0 <= more < step for more, step in zip(rest, windows.stride, strict=True))
        self._signs: tuple[Any, ...] | None = None

    def weight_gradient(self, dy: Tensor, words: Tensor) -> Tensor:
        """dy (M, N, OH, OW), words (M, ⌈C·H·W/32⌉) -> (N, C/groups, kh, kw)."""
        frames, outputs = dy.shape[:2]
        kernel = (outputs, self.shape[0] // self.groups, *self.windows.kernel)
        packed = wide_words(as_numpy(words))
        if dy.dtype == torch.float32 and dy.device.type == "cpu" and self._few(frames, outputs, packed):
            partial = math.prod(kernel)
            together = max(FRAMES, -(-frames * partial // MOST_PARTIAL))
            out = np.empty((-(-frames // together), outputs, partial // outputs), np.float32)
            flat = as_numpy(dy).reshape(frames, outputs, self.pixels)
            conv_events_cpu(flat, packed, self.kernel_shape, together, out, work=flat.size)
            return torch.from_numpy(out.sum(0)).view(kernel)
        total = dy.new_zeros(kernel)
        some = max(MOST_UNPACKED // self.inputs, 1)
        weight = dy.new_empty(kernel)
        for lo in range(0, frames, some):
            x = unpack_bits(words[lo : lo + some], self.inputs, dy.dtype).view(-1, *self.shape)
            total += self._torch(dy[lo : lo + some], self._padded(x), weight, (False, True))[1]
        return total

    def _few(self, frames: int, outputs: int, packed: npt.NDArray[np.uint64]) -> bool:
        """Whether adding spike by spike should be faster than a product of floats."""
        (kh, kw), channels = self.windows.kernel, self.shape[0] // self.groups
        strips = -(-outputs // self.groups // LANES)
        spikes = int(np.bitwise_count(packed).sum(dtype=np.int64))
        events = spikes * kh * kw * strips * ADDED
        events += frames * (outputs * self.pixels * TURNED + self.shape[0] * kh * strips * CALLED)
        macs = frames * outputs * self.pixels * channels * kh * kw
        return events < macs * MAC + frames * self.inputs * UNPACKED

    def input_gradient(self, dy: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """dy (M, N, OH, OW), Ŵ (N, C/groups, kh, kw) -> (M, C, H, W), filled into ``out`` if it is given."""
        frames, outputs = dy.shape[:2]
        if out is None:
            out = (
                fresh((frames, *self.shape), dy.dtype)
                if dy.device.type == "cpu"
                else dy.new_empty((frames, *self.shape))
            )
        signs = self._by_tables(dy, frames, outputs)
        if signs is not None:
            there = out if out.is_contiguous() else fresh((frames, *self.shape), dy.dtype)
            flat = as_numpy(dy).reshape(frames, outputs, self.pixels)
            conv_inputs_cpu(
                flat, *signs, self.kernel_shape, there.numpy().reshape(frames, self.shape[0], -1), work=flat.size
            )
            return out if there is out else out.copy_(there)
        sides = self._padded(dy.new_empty(()).expand(frames, *self.shape))
        dx = self._torch(dy, sides, weight, (True, False))[0]
        if not self.even:
            (above, left), (_, height, width) = self.windows.before, self.shape
            dx = dx[:, :, above : above + height, left : left + width]
        return out.copy_(dx)

    def _by_tables(self, dy: Tensor, frames: int, outputs: int) -> tuple[Any, ...] | None:
        """What the tables' kernel takes, if it can and should be faster than torch."""
        rows = outputs // self.groups
        if dy.dtype != torch.float32 or dy.device.type != "cpu" or self.scale.shape[1] > 1:
            return None
        if min(frames, self.pixels, self.shape[1] * self.shape[2]) < LANES:
            return None
        tables = sum(_height(rows - k) // TOGETHER + 2 for k in range(0, rows, ROWS))
        columns = math.prod(self.windows.kernel) * self.shape[0] // self.groups
        for planes in (1, None):  # what one plane would not save need not be split into planes
            if planes is None:
                self._signs = self._signs or self._signs_of()
                planes = len(self._signs[1])
            cost = columns * planes * tables * self.groups * LOOKED_UP + 2 * outputs * TURNED
            if planes == 0 or cost > columns * outputs * MAC:
                return None
        return self._signs

    def _signs_of(self) -> tuple[Any, ...]:
        """Columns, factors, scale and rest as the tables' kernel takes them; no factors for values of too many bits."""
        values = self.values.unflatten(0, (self.groups, -1)).permute(0, 3, 4, 2, 1)
        planes = planes_of(values.reshape(-1, values.shape[-1]))
        scale = as_numpy(self.scale[:, 0])
        none = np.empty(0, np.float32)
        if planes is None:
            return np.empty((0, 0, 0), np.uint64), none, scale, none
        halves, constant = _halves(planes)
        rest = self.scale[:, 0] * constant + (0 if self.offset is None else self.offset[:, 0])
        columns = np.stack([wide_words(plane).T for plane in planes.words])
        return (
            np.ascontiguousarray(columns),
            halves,
            scale,
            none if self.offset is None and constant == 0 else as_numpy(rest),
        )

    def _padded(self, frames: Tensor) -> Tensor:
        """Frames with the margins that torch's own padding cannot make."""
        if self.even:
            return frames
        above, left = self.windows.before
        below, right = (max(margin, 0) for margin in self.after)
        return F.pad(frames, (left, right, above, below))

    def _torch(self, dy: Tensor, frames: Tensor, weight: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
        windows, padding = self.windows, self.windows.before if self.even else (0, 0)
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dy, frames, weight, None, windows.stride, padding, windows.dilation, False, (0, 0), self.groups,
            [*needs, False],
        )  # fmt: skip
        return dx, dweight


def _height(rows: int) -> int:
    """Rows of dy that a look-up goes through for so many that are left."""
    return next((height for height in (16, 32) if rows <= height), ROWS)


def _halves(planes: Planes) -> tuple[npt.NDArray[np.float32], float]:
    """Σ_p factor_p·bit_p + constant = Σ_p halves_p·(±1)_p + rest: halves and rest."""
    halves = np.array(planes.factors, np.float32) / 2
    return halves.astype(np.float32), float(halves.sum()) + planes.constant
