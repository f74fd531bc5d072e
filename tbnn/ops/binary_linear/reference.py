"""The binary product by definition."""

import torch
from torch import Tensor

from tbnn.bits import unpack_bits


def binary_linear_reference(spikes: Tensor, signs: Tensor, n: int) -> Tensor:
    """Σ_i s_i·w_i with s ∈ {0,1}, w ∈ {−1,1}: words (M, W) and (N, W) of n bits -> int32 (M, N)."""
    s = unpack_bits(spikes, n, torch.float64)
    w = 2 * unpack_bits(signs, n, torch.float64) - 1
    return (s @ w.T).to(torch.int32)


def binary_counts_reference(spikes: Tensor, plane: Tensor, n: int) -> Tensor:
    """Σ_i s_i·b_i with s, b ∈ {0,1}: words (M, W) and (N, W) of n bits -> int32 (M, N)."""
    s, b = unpack_bits(spikes, n, torch.float64), unpack_bits(plane, n, torch.float64)
    return (s @ b.T).to(torch.int32)
