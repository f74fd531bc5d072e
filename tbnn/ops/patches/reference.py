"""Where windows lie on a frame, and the patches under them, by definition."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tbnn.bits import pack_bits, unpack_bits

Pair = tuple[int, int]
Sizes = int | Sequence[int]
Margins = Sizes | Sequence[Pair]


class Windows(NamedTuple):
    """Windows that move over the rows and columns of a frame, each field (along H, along W)."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    """How many zeros stand above and left of the frame."""
    counts: Pair
    """How many windows there are: OH, OW."""

    @property
    def span(self) -> Pair:
        """The rows and columns from a window's first element to its last."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    @property
    def extent(self) -> Pair:
        """The rows and columns from the first window's first element to the last one's last."""
        (sh, sw), (oh, ow), (h, w) = self.stride, self.counts, self.span
        return (oh - 1) * sh + h, (ow - 1) * sw + w


def windows_over(
    caller: str,
    shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Margins,
    dilation: Sizes,
    ceil_mode: bool = False,
) -> Windows:
    """The windows over frames (C, H, W): ⌊(H + before + after − span)/stride⌋ + 1 along an axis, as in torch.

    ``ceil_mode`` rounds up, but drops a last window that would start after the frame. Raises ``ValueError``, which
    names ``caller``, for a shape that is not three sizes, for other arguments out of range, and where no window fits.
    """
    if len(shape) != 3 or any(size < 1 for size in shape):
        raise ValueError(f"{caller}: expected a shape (C, H, W) of sizes >= 1, got {tuple(shape)}")
    kernel, step = pair_of(caller, "kernel_size", kernel_size), pair_of(caller, "stride", stride)
    spread, margins = pair_of(caller, "dilation", dilation), _margins_of(caller, padding)
    counts = []
    for size, taps, s, d, (before, after) in zip(shape[1:], kernel, step, spread, margins, strict=True):
        room = size + before + after - (taps - 1) * d - 1
        count = room // s + 1
        if ceil_mode and room % s and count * s < size + before:
            count += 1
        counts.append(count if room >= 0 or ceil_mode else 0)
    if min(counts) < 1:
        raise ValueError(
            f"{caller}: expected frames of at least the window {kernel} (dilation {spread}), "
            f"got {tuple(shape)} with margins {margins}"
        )
    (top, _), (left, _) = margins
    return Windows(kernel, step, spread, (top, left), (counts[0], counts[1]))


def pair_of(caller: str, name: str, value: Sizes, least: int = 1) -> Pair:
    """One integer, or one for each of two axes, as a pair; ``ValueError`` for others or below ``least``."""
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    if len(sizes) != 2 or any(not isinstance(size, int) or size < least for size in sizes):
        raise ValueError(f"{caller}: {name}: expected an integer >= {least} or two of them, got {value}")
    return sizes


def _margins_of(caller: str, padding: Margins) -> tuple[Pair, Pair]:
    """How many zeros stand (before, after) the rows and the columns."""
    if not isinstance(padding, int | str) and all(isinstance(side, tuple) for side in padding) and len(padding) == 2:
        rows, columns = (pair_of(caller, "padding", side, least=0) for side in padding)  # pyright: ignore[reportArgumentType]
        return rows, columns
    top, left = pair_of(caller, "padding", padding, least=0)  # pyright: ignore[reportArgumentType]
    return (top, top), (left, left)


def taps_of(frames: Tensor, windows: Windows) -> Tensor:
    """Frames (M, C, H, W) of bool -> what lies under each window, zeros outside: (M, C, OH, OW, kh, kw)."""
    (sh, sw), (dh, dw), (oh, ow) = windows.stride, windows.dilation, windows.counts
    sides = zip(windows.before, windows.extent, frames.shape[-2:], strict=True)
    (top, bottom), (left, right) = ((before, extent - before - size) for before, extent, size in sides)
    padded = F.pad(frames, (left, right, top, bottom))
    taps = frames.new_zeros((*frames.shape[:2], *windows.counts, *windows.kernel))
    for i in range(windows.kernel[0]):
        for j in range(windows.kernel[1]):
            y, x = i * dh, j * dw
            taps[..., i, j] = padded[..., y : y + (oh - 1) * sh + 1 : sh, x : x + (ow - 1) * sw + 1 : sw]
    return taps


def bit_patches_reference(words: Tensor, shape: Sequence[int], windows: Windows, groups: int) -> Tensor:
    """Words (M, W) of frames ``shape`` -> words (M, OH, OW, groups, ...): element (c, i, j) in the order of a weight."""
    frames = unpack_bits(words, math.prod(shape), torch.bool).reshape(-1, *shape)
    taps = taps_of(frames, windows).permute(0, 2, 3, 1, 4, 5)
    return pack_bits(taps.reshape(len(frames), *windows.counts, groups, -1))
