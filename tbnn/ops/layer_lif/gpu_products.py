"""Packed spikes on a GPU: packing, the currents that they make with a linear layer's weights, and the gradients of both."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from tbnn.bits import words_for
from tbnn.ops.binary_linear.gpu import binary_product_gpu, count_rows_gpu
from tbnn.ops.ddt.gpu import launch
from tbnn.ops.layer_lif.gpu_kernels import gradient_sums, pack_rows, scaled, unpack_rows
from tbnn.ops.layer_lif.weighted import Weights
from tbnn.ops.lif.gpu_scan import Rows, Settings, strides_of, wide

ROWS = 64  # words of a program
TILE = 1024  # currents of a program
LANES = 128


def pack_rows_gpu(values: Tensor, words: Tensor, plane: int = 0, *, check: bool = False) -> bool:
    """Fill words (..., W) from bit ``plane`` of values (..., n), both contiguous; with ``check``, whether any is not 0 or 1.

    The check waits for the device.
    """
    total, n = words.numel(), values.shape[-1]
    programs = triton.cdiv(total, ROWS)
    strange = torch.empty(programs, dtype=torch.int32, device=words.device) if check else None
    launch(pack_rows, programs, values, words, strange, total, n, words.shape[-1], plane, CHECK=check, ROWS=ROWS)
    return strange is not None and bool(strange.any())


def packed_spikes_gpu(values: Tensor) -> Tensor | None:
    """:func:`tbnn.ops.layer_lif.packed_spikes` on a GPU, which waits for the device."""
    flat = values.detach().flatten(2).contiguous()
    words = torch.empty((*flat.shape[:2], words_for(flat.shape[2])), dtype=torch.int32, device=flat.device)
    return None if pack_rows_gpu(flat, words, check=True) else words


def unpacked(words: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Words (..., W), contiguous, as 0/1 values (..., n)."""
    values = torch.empty((*words.shape[:-1], n), dtype=dtype, device=words.device)
    total = words.numel()
    launch(unpack_rows, triton.cdiv(total, ROWS), words, values, total, n, words.shape[-1], ROWS=ROWS)
    return values


def sums_with_words(words: Tensor, dout: Tensor, settings: Settings, features: int) -> Tensor:
    """ΣG and ΣG·q of every block, float64 (2, 1 or T, blocks), q the spikes that left, packed (T, B, W)."""
    steps, batch, row_words = words.shape
    how = Rows.of(steps, batch, features, settings.by_step)
    parts = torch.empty((2, how.groups * how.chunks, features), device=words.device)
    launch(
        gradient_sums, how.programs(features),
        words, dout, *strides_of(dout), settings.lengths, parts, batch, features, row_words, how.span, how.chunk, how.chunks,
        RAGGED=settings.lengths is not None, BB=how.tile.samples, BF=how.tile.neurons, num_warps=how.tile.warps,
    )  # fmt: skip
    return how.added(parts, settings.blocks)


class _Block(NamedTuple):
    """Inputs that share a scale: ``value = Σ_j factors_j·bit_j + constant``."""

    part: slice
    planes: Tensor  # (P, N, words)
    factors: Tensor  # (P,) int32
    constant: int
    scale: Tensor  # (N,)
    offset: Tensor | None  # (N,)


class Products:
    """A linear layer's weights as bit planes, packed once a call; that waits for the device, to know how many there are."""

    def __init__(self, weights: Weights) -> None:
        self.outputs, self.inputs = weights.values.shape
        self.bias = None if weights.bias is None else wide(weights.bias)
        block = weights.block or self.inputs
        starts = range(0, self.inputs, block)
        parts = [weights.values[:, lo : lo + block] for lo in starts]
        self.blocks: list[_Block] = []
        for k, (lo, values, (highest, every)) in enumerate(zip(starts, parts, _grids(parts), strict=True)):
            hi = min(lo + block, self.inputs)
            codes = ((values.to(torch.int16) + highest) // every).contiguous()
            count = max(1, (2 * highest // every).bit_length())
            planes = torch.empty((count, self.outputs, words_for(hi - lo)), dtype=torch.int32, device=values.device)
            for j in range(count):
                pack_rows_gpu(codes, planes[j], j)
            factors = torch.tensor([every << j for j in range(count)], dtype=torch.int32, device=values.device)
            offset = None if weights.offset is None else wide(weights.offset[:, k])
            part = slice(words_for(lo), words_for(hi))
            self.blocks.append(_Block(part, planes, factors, -highest, wide(weights.scale[:, k]), offset))

    def current(self, words: Tensor) -> Tensor:
        """The currents of packed spikes (t, B, words), as the layer of weights computes them, float32 (t, B, N)."""
        rows = words.flatten(0, 1)
        y = torch.empty((len(rows), self.outputs), device=words.device)
        across = min(triton.next_power_of_2(self.outputs), LANES)
        down = min(triton.next_power_of_2(len(rows)), TILE // across)
        programs = triton.cdiv(len(rows), down) * triton.cdiv(self.outputs, across)
        for k, block in enumerate(self.blocks):
            some = rows[:, block.part]
            ones, _ = count_rows_gpu(some)
            product, _ = binary_product_gpu(some, block.planes, block.factors, block.constant * ones)
            bias = self.bias if k == len(self.blocks) - 1 else None
            launch(
                scaled, programs, product, ones, block.scale, block.offset, bias, y, len(rows), self.outputs,
                OFFSET=block.offset is not None, BIAS=bias is not None, ADD=k > 0, BM=down, BN=across,
            )  # fmt: skip
        return y.view(*words.shape[:2], self.outputs)


def _grids(parts: list[Tensor]) -> list[tuple[int, int]]:
    """Of each block of whole numbers, the largest magnitude and how far apart they lie at least, 2 where all are odd."""
    facts = torch.stack([torch.stack([p.abs().max(), (p.to(torch.int16) & 1).min().to(p.dtype)]) for p in parts])
    return [(int(highest), 2 if odd else 1) for highest, odd in facts.tolist()]
