"""The patches of packed frames, and the OR under windows, on a GPU by Triton: a lane for each bit of a word that is filled."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tbnn.bits import words_for
from tbnn.ops.ddt.gpu import launch
from tbnn.ops.patches.reference import Windows

ROWS = 64  # words that a program fills


@triton.jit
def bits_at(frames, m, frame_words, c, y, x, height, width, wanted):
    """0 or 1: bit (c, y, x) of frame m, 0 outside and where it is not wanted."""
    inside = wanted & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    place = tl.where(inside, (c * height + y) * width + x, 0)
    word = tl.load(frames + m * frame_words + place // 32, mask=inside, other=0)
    return (word >> (place % 32)) & 1


@triton.jit
def gather_patches(
    frames, out, patches, frame_words, channels, height, width, row_count, column_count, groups, kh, kw, sh, sw, dh, dw,
    top, left, bits, words, ROWS: tl.constexpr,
):  # fmt: skip
    """Fill out (M·OH·OW·groups, words): word k of a patch from elements 32·k to 32·k + 31 of (c, i, j), ``bits`` in all."""
    p, lane = tl.program_id(0) // words * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, 32)[None, :]
    k = tl.program_id(0) % words
    place, e = p // groups, k * 32 + lane
    x, y, m = (
        place % column_count,
        place // column_count % row_count,
        tl.cast(place // column_count // row_count, tl.int64),
    )
    c, i, j = p % groups * channels + e // kw // kh, e // kw % kh, e % kw
    wanted = (p < patches) & (e < bits)
    bit = bits_at(frames, m, frame_words, c, y * sh + i * dh - top, x * sw + j * dw - left, height, width, wanted)
    tl.store(out + tl.cast(p, tl.int64) * words + k, tl.sum(bit << lane, 1, keep_dims=True), mask=p < patches)


@triton.jit
def pool_windows(
    frames, out, total, frame_words, height, width, row_count, column_count, kh, kw, sh, sw, dh, dw, top, left, bits, words,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Fill out (M, words): bit (c, y, x) of a frame's ``bits`` is set where any under its window is; M·words = ``total``."""
    r, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, 32)[None, :]
    m, e = tl.cast(r // words, tl.int64), r % words * 32 + lane
    x, y, c = e % column_count, e // column_count % row_count, e // column_count // row_count
    wanted = (r < total) & (e < bits)
    found = tl.zeros((ROWS, 32), tl.int32)
    for i in range(kh):
        for j in range(kw):
            found |= bits_at(
                frames, m, frame_words, c, y * sh + i * dh - top, x * sw + j * dw - left, height, width, wanted
            )
    tl.store(out + r, tl.sum(found << lane, 1, keep_dims=True), mask=r < total)


def bit_patches_gpu(words: Tensor, shape: Sequence[int], windows: Windows, groups: int) -> Tensor:
    """:func:`tbnn.ops.patches.reference.bit_patches_reference` by Triton; less than 2³¹ patches at a time."""
    channels, height, width = shape
    rows, columns = windows.counts
    bits = channels // groups * windows.kernel[0] * windows.kernel[1]
    out = torch.empty((len(words), rows, columns, groups, words_for(bits)), dtype=torch.int32, device=words.device)
    patches = len(words) * rows * columns * groups
    launch(
        gather_patches, triton.cdiv(patches, ROWS) * words_for(bits),
        words.contiguous(), out, patches, words.shape[1], channels // groups, height, width, rows, columns, groups,
        *windows.kernel, *windows.stride, *windows.dilation, *windows.before, bits, words_for(bits),
        ROWS=ROWS,
    )  # fmt: skip
    return out


def or_pool2d_gpu(words: Tensor, shape: Sequence[int], windows: Windows) -> Tensor:
    """:func:`tbnn.ops.or_pool.reference.or_pool2d_reference` by Triton; less than 2³¹ words at a time."""
    channels, height, width = shape
    bits = channels * windows.counts[0] * windows.counts[1]
    out = torch.empty((len(words), words_for(bits)), dtype=torch.int32, device=words.device)
    launch(
        pool_windows, triton.cdiv(out.numel(), ROWS),
        words.contiguous(), out, out.numel(), words.shape[1], height, width, *windows.counts,
        *windows.kernel, *windows.stride, *windows.dilation, *windows.before, bits, out.shape[1],
        ROWS=ROWS,
    )  # fmt: skip
    return out
