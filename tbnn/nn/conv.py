"""Convolutions with binary weights."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tbnn.nn.weights import BinaryWeight, Parts, Prepared, Product, Spikes
from tbnn.nn.wiring import WiringLike
from tbnn.ops.patches.reference import Pair, windows_over
from tbnn.ops.quantize import Codes
from tbnn.ops.quantize.estimators import Estimator
from tbnn.ops.quantize.sparsify import SparsityLike
from tbnn.ops.spike_products import planes_of
from tbnn.ops.spike_products.conv import SpikeConv
from tbnn.ops.spike_products.conv_gradients import ConvGradients

Sizes = int | Sequence[int]
Margins = Sequence[Sequence[int]]
Sizes3 = tuple[int, int, int]

FROM_BITS = 1 << 20  # weights times pixels: below, a float convolution is as fast


class _BinaryConv(BinaryWeight, abstract=True):
    """A convolution over the last ``spatial`` axes; see :class:`BinaryConv2d`."""

    spatial: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: str | Sizes | Margins = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        bits: float | None = 1,
        sparsity: SparsityLike = 0.0,
        scope: str = "row",
        estimator: str | Estimator = "ddt",
        form: str = "affine",
        lam: float = 0.01,
        block: int | None = None,
        wiring: WiringLike | None = None,
    ) -> None:
        name = type(self).__name__
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: expected channels that {groups} groups divide, got {in_channels} -> {out_channels}"
            )
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros', got {padding_mode!r}")
        kernel = sizes_of("kernel_size", kernel_size, self.spatial)
        super().__init__(
            (out_channels, in_channels // groups, *kernel), bias,
            bits=bits, sparsity=sparsity, scope=scope, estimator=estimator, form=form, lam=lam, block=block,
            wiring=wiring, groups=groups,
        )  # fmt: skip
        self.in_channels, self.out_channels, self.kernel_size, self.groups = in_channels, out_channels, kernel, groups
        self.stride = sizes_of("stride", stride, self.spatial)
        self.dilation = sizes_of("dilation", dilation, self.spatial)
        self.margins = _margins(padding, kernel, self.stride, self.dilation)
        even = all(lo == hi for lo, hi in self.margins)
        self.padding = (
            padding if isinstance(padding, str) else tuple(lo for lo, _ in self.margins) if even else self.margins
        )

    @property
    def takes_words(self) -> bool:
        return super().takes_words and all(lo == hi for lo, hi in self.margins)

    def prepare(self) -> Prepared:
        """The layer with its weights quantised once: a function of x, for many calls in one pass."""
        (weight, codes), bias = self.quantized(), self.bias
        even = all(lo == hi for lo, hi in self.margins)
        inside = tuple(lo for lo, _ in self.margins) if even else (0,) * self.spatial
        convolve = ConvProduct(self.stride, inside, self.dilation, self.groups, self.block)

        def product(x: Tensor, words: Tensor | None = None) -> Tensor:
            features = x.shape[-self.spatial - 1 :]
            if x.ndim < self.spatial + 2 or features[0] != self.in_channels:
                axes = "H, W" if self.spatial == 2 else "L"
                raise ValueError(
                    f"{type(self).__name__}: expected (..., {self.in_channels}, {axes}), got {tuple(x.shape)}"
                )
            frames = x.reshape(-1, *features)
            if not even:
                frames = F.pad(frames, [side for margin in reversed(self.margins) for side in margin])
            words = words if words is None else words.flatten(0, -2)
            y = convolve(frames, weight, codes, self.form, words)
            if bias is not None:
                y = y + bias.reshape(-1, *[1] * self.spatial)
            return y.reshape(*x.shape[: -self.spatial - 1], *y.shape[1:])

        return product

    def forward(self, x: Tensor, words: Tensor | None = None) -> Tensor:
        return self.prepare()(x, words)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, {self._options_repr()}"
        )


class BinaryConv2d(_BinaryConv):
    """``y[o] = bias[o] + Σ ŵ[o]·x`` over windows: ``torch.nn.Conv2d`` with one bit a weight, ``ŵ = scale·value + offset``.

    x (T, B, C, H, W) or (B, C, H, W), any leading axes -> the same with the output's channels, height and width. The
    weights of one output channel, in_channels/groups·kh·kw in memory order, are a row. Computed as
    ``scale·conv(x, values) + offset·(sum of x over the window)``: on 0/1 inputs both are whole numbers, exact before
    the scaling. Padding is 0: it adds to neither.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``torch.nn.Conv2d``;
            padding also "same" or "valid", or for each axis how many zeros stand before and after it.
        padding_mode: "zeros", the only one that leaves bits bits and counts exact.
        bits, sparsity, scope, estimator, form, lam, block, wiring: as in :class:`BinaryLinear`; of wirings not
            :class:`Distance`, since a kernel is local as it is.

    Raises:
        ValueError: sizes out of range, groups that do not divide the channels, padding "same" with a stride,
            arguments that :func:`tbnn.quantize` refuses, an input with other channels.

    Source: arXiv 2409.09245.

    >>> BinaryConv2d(2, 16, 5, padding="same")(torch.ones(10, 4, 2, 34, 34)).shape
    torch.Size([10, 4, 16, 34, 34])
    """

    spatial = 2


class BinaryConv1d(_BinaryConv):
    """:class:`BinaryConv2d` over one axis: x (T, B, C, L), or any leading axes -> (T, B, out_channels, L').

    >>> BinaryConv1d(2, 8, 3, stride=2)(torch.ones(10, 4, 2, 21)).shape
    torch.Size([10, 4, 8, 10])
    """

    spatial = 1


class ConvProduct(Product):
    """x (M, C, ...) convolved with (outputs, C/groups, ...), whose rows are in runs of ``block`` weights."""

    def __init__(
        self,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
        block: int | None,
    ) -> None:
        self.stride, self.padding, self.dilation, self.groups, self.block = stride, padding, dilation, groups, block
        self._on_bits: dict[torch.Size, SpikeConv | None] = {}
        self._gradients: dict[torch.Size, ConvGradients] = {}

    def parts(self, x: Tensor, values: Tensor, sums: bool) -> Parts:
        per_group = values.shape[1]
        for channels, inside in code_runs(values, self.block):
            part = x
            if channels != slice(0, per_group):
                part = x.unflatten(1, (self.groups, per_group))[:, :, channels].flatten(1, 2)
            total = None
            if sums:
                window = inside.expand(self.groups, *inside.shape[1:])
                total = self._convolve(part, window)
                if self.groups > 1:
                    total = total.repeat_interleave(values.shape[0] // self.groups, dim=1)
            yield self._convolve(part, values[:, channels] * inside), total

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        zeros = [0] * len(self.stride)
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dy, x, weight, None, self.stride, self.padding, self.dilation, False, zeros, self.groups, [*needs, False]
        )
        return dx, dweight

    def from_bits(self, x: Tensor, words: Tensor, codes: Codes, sums: bool) -> Tensor | None:
        row = codes.values[0].numel()
        if (self.block or row) < row or x[:, 0].numel() * codes.values.numel() < FROM_BITS:
            return None
        features = x.shape[1:]
        if features not in self._on_bits:
            self._on_bits[features] = self._for_bits(features, codes.values)
        convolve = self._on_bits[features]
        if convolve is None:
            return None
        y = convolve(words, codes.scale[:, 0], codes.offset[:, 0] if sums else None)
        return y if len(features) == 3 else y.squeeze(2)

    def _for_bits(self, features: torch.Size, values: Tensor) -> SpikeConv | None:
        """The convolution of packed frames; None for values of too many bits."""
        planes = planes_of(values.flatten(1))
        if planes is None:
            return None
        shape, kernel, (stride, padding, dilation) = self._in_two_axes(features, values)
        return SpikeConv(shape, planes, kernel, stride=stride, padding=padding, dilation=dilation, groups=self.groups)

    def _in_two_axes(self, features: torch.Size, values: Tensor) -> tuple[Sizes3, Pair, tuple[Pair, Pair, Pair]]:
        """The shape of a frame, the kernel's, and stride, padding and dilation: a sequence (C, L) is a frame (C, 1, L)."""
        first = [1] * (3 - len(features))
        wide: Any = [
            (*first, *values.shape[2:]),
            (*first, *self.stride),
            (*[0 for _ in first], *self.padding),
            (*first, *self.dilation),
        ]
        return (features[0], *first, *features[1:]), wide[0], (wide[1], wide[2], wide[3])  # pyright: ignore[reportReturnType]

    def gradients_from_bits(
        self, dy: Tensor, spikes: Spikes, weight: Tensor, codes: Codes, sums: bool, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        features = spikes.features
        if features not in self._gradients:
            self._gradients[features] = self._gradients_for(features, codes, sums)
        gradients = self._gradients[features]
        wide, outputs = weight.reshape(*weight.shape[:2], *gradients.windows.kernel), len(weight)
        dy = dy.reshape(len(dy), outputs, *gradients.windows.counts)
        dx = gradients.input_gradient(dy, wide).view(-1, *features) if needs[0] else None
        dweight = gradients.weight_gradient(dy, spikes.words).view_as(weight) if needs[1] else None
        return dx, dweight

    def _gradients_for(self, features: torch.Size, codes: Codes, sums: bool) -> ConvGradients:
        """The gradients of the convolution of packed frames."""
        shape, kernel, sizes = self._in_two_axes(features, codes.values)
        windows = windows_over("ConvProduct", shape, kernel, *sizes)
        values = codes.values.reshape(*codes.values.shape[:2], *kernel)
        return ConvGradients(shape, windows, self.groups, values, codes.scale, codes.offset if sums else None)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        zeros = [0] * len(self.stride)
        return torch.convolution(x, weight, None, self.stride, self.padding, self.dilation, False, zeros, self.groups)


def code_runs(values: Tensor, block: int | None) -> Iterator[tuple[slice, Tensor]]:
    """For each run of a row: the input channels it touches, and 1 at its places in them, (1, channels, kernel...)."""
    taps = math.prod(values.shape[2:])
    row = values.shape[1] * taps
    block = min(block or row, row)
    for lo in range(0, row, block):
        hi = min(lo + block, row)
        channels = slice(lo // taps, -(-hi // taps))
        inside = values.new_zeros(channels.stop * taps)
        inside[lo:hi] = 1
        yield channels, inside[channels.start * taps :].reshape(1, -1, *values.shape[2:])


def sizes_of(name: str, value: Sizes, count: int, least: int = 1) -> tuple[int, ...]:
    """One integer, or one for each of ``count`` axes, as a tuple; ``ValueError`` for others or below ``least``."""
    sizes = (value,) * count if isinstance(value, int) else tuple(value)
    if len(sizes) != count or any(not isinstance(size, int) or size < least for size in sizes):
        raise ValueError(f"{name}: expected an integer >= {least} or {count} of them, got {value}")
    return sizes


def _margins(
    padding: str | Sizes | Margins, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """How many zeros stand before and after each axis."""
    if padding == "same":
        if any(step != 1 for step in stride):
            raise ValueError(f"padding: 'same' needs a stride of 1, got {stride}")
        extra = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in extra)
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding: expected 'same', 'valid' or sizes, got {padding!r}")
    if not isinstance(padding, str | int) and any(not isinstance(size, int) for size in padding):
        if len(padding) != len(kernel) or any(isinstance(pair, int) for pair in padding):
            raise ValueError(f"padding: expected (before, after) for each of {len(kernel)} axes, got {padding}")
        pairs = [sizes_of("padding", pair, 2, least=0) for pair in padding]
        return tuple((before, after) for before, after in pairs)
    sizes = (0,) * len(kernel) if isinstance(padding, str) else sizes_of("padding", padding, len(kernel), least=0)  # pyright: ignore[reportArgumentType]
    return tuple((size, size) for size in sizes)
