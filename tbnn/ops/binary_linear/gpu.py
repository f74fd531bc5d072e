"""Packed products on a GPU, by Triton: popcounts where rows are few, tensor cores where they are many, as it turns out.

On a device each size is timed once, over tiles and both ways, and the fastest stays (``triton.autotune``). The interpreter
runs one tiny tile. Every way gives the same bits.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from tbnn.bits import WORD_BITS
from tbnn.ops.binary_linear.gpu_kernels import binary_product, count_rows
from tbnn.ops.ddt.gpu import launch

COMPILED = isinstance(binary_product, JITFunction)
"""Whether kernels are compiled for a device; if not, Triton's interpreter runs them on CPU tensors."""

INTERPRETED_TILE: dict[str, Any] = {"DOT": True, "BM": 64, "BN": 64, "BW": 4}
SMALLEST = 16  # rows and columns of a tile that tensor cores take

POPCOUNT_TILES = ((16, 32, 2), (16, 128, 4), (64, 64, 4), (128, 64, 8), (128, 128, 8))  # rows, columns, warps
DOT_TILES = (  # rows, columns, words, warps, stages
    (16, 32, 4, 2, 3), (16, 128, 4, 4, 3), (64, 128, 4, 4, 3), (128, 128, 2, 8, 3), (128, 128, 4, 8, 3), (128, 256, 2, 8, 3),
)  # fmt: skip

COUNTED_WORDS = 32  # of a tile that counts spikes
COUNTED_VALUES = 4096  # of such a tile, in bits


def _configurations() -> list[triton.Config]:
    popcounts = [
        triton.Config({"DOT": False, "BM": m, "BN": n, "BW": 1}, num_warps=warps) for m, n, warps in POPCOUNT_TILES
    ]
    return popcounts + [
        triton.Config({"DOT": True, "BM": m, "BN": n, "BW": w}, num_warps=warps, num_stages=stages)
        for m, n, w, warps, stages in DOT_TILES
    ]


def _fitting(configurations: list[triton.Config], arguments: dict[str, Any], **_options: Any) -> list[triton.Config]:
    """Those whose tiles are no larger than the product."""
    rows, columns = (max(SMALLEST, triton.next_power_of_2(arguments[side])) for side in ("rows_like", "columns"))
    smallest = min(c.kwargs["BN"] for c in configurations)
    return [c for c in configurations if c.kwargs["BM"] <= rows and c.kwargs["BN"] <= max(columns, smallest)]


_product: Any = (
    triton.autotune(
        _configurations(),
        key=["rows_like", "columns", "words", "plane_count"],
        prune_configs_by={"early_config_prune": _fitting},
    )(binary_product)
    if COMPILED
    else binary_product
)


def binary_product_gpu(spikes: Tensor, planes: Tensor, factors: Tensor, shift: Tensor | None) -> tuple[Tensor, str]:
    """``Σ_j factors[j]·popcount(s ∧ P_j) + shift`` and the way it took, "popcount" or "int8".

    Args:
        spikes: int32 words (M, W).
        planes: int32 words (P, N, W).
        factors: int32 (P,).
        shift: int32 (M,), or None for 0.

    Returns:
        int32 (M, N); sums beyond 32 bits wrap around, as on the CPU.
    """
    spikes, planes = _in_rows(spikes), _in_rows(planes)
    (rows, words), columns = spikes.shape, planes.shape[1]
    out = torch.empty((rows, columns), dtype=torch.int32, device=spikes.device)
    if out.numel() == 0:
        return out, ""
    _product[lambda chosen: (triton.cdiv(rows, chosen["BM"]) * triton.cdiv(columns, chosen["BN"]),)](
        spikes, planes, factors, shift, out, rows, columns, words, planes.shape[0],
        spikes.stride(0), planes.stride(0), planes.stride(1), triton.next_power_of_2(rows),
        SHIFT=shift is not None, enable_fp_fusion=False, **({} if COMPILED else INTERPRETED_TILE),
    )  # fmt: skip
    chosen = _product.best_config.kwargs if COMPILED else INTERPRETED_TILE
    return out, "int8" if chosen["DOT"] else "popcount"


def count_rows_gpu(spikes: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The spikes of each row of words (M, W), int32 (M,); with ``kept`` int32 (32·W,) also Σ_i s_i·kept_i, int64 (M,)."""
    spikes = _in_rows(spikes)
    rows, words = spikes.shape
    ones = torch.empty(rows, dtype=torch.int32, device=spikes.device)
    weighted = None if kept is None else torch.empty(rows, dtype=torch.int64, device=spikes.device)
    if rows == 0:
        return ones, weighted
    across = min(triton.next_power_of_2(words), COUNTED_WORDS)
    together = COUNTED_VALUES // (across * (1 if kept is None else WORD_BITS))
    tile = {"BM": min(triton.next_power_of_2(rows), together), "BW": across}
    programs = triton.cdiv(rows, tile["BM"])
    launch(
        count_rows, programs, spikes, kept, ones, weighted, rows, words, spikes.stride(0), WEIGHTED=kept is not None, **tile
    )  # fmt: skip
    return ones, weighted


def binary_linear_gpu(spikes: Tensor, signs: Tensor) -> Tensor:
    """:func:`tbnn.ops.binary_linear.binary_linear` by Triton: words (M, W) and (N, W) -> int32 (M, N)."""
    ones, _ = count_rows_gpu(spikes)
    return binary_product_gpu(spikes, signs[None], spikes.new_full((1,), 2), -ones)[0]


def binary_counts_gpu(spikes: Tensor, plane: Tensor) -> Tensor:
    """:func:`tbnn.ops.binary_linear.binary_counts` by Triton: words (M, W) and (N, W) -> int32 (M, N)."""
    return binary_product_gpu(spikes, plane[None], spikes.new_ones(1), None)[0]


def _in_rows(words: Tensor) -> Tensor:
    """The same words, each row's next to each other."""
    return words if words.stride(-1) == 1 or words.shape[-1] == 1 else words.contiguous()
