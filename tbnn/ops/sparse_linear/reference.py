"""The product with sparse weights by definition."""

import torch
from torch import Tensor

from tbnn.bits import unpack_bits


def dense_values(starts: Tensor, outputs: Tensor, out_features: int, magnitudes: Tensor | None = None) -> Tensor:
    """The weights' values, int32 (out_features, inputs), 0 where there is no connection; see :class:`SparseColumns`."""
    lists = torch.repeat_interleave(starts.diff().long())  # of each connection: 2·input, + 1 where it is negative
    values = torch.zeros(out_features, len(starts) // 2, dtype=torch.int32, device=starts.device)
    sign = (1 - 2 * (lists % 2)).int()
    values[outputs.long(), lists // 2] = sign if magnitudes is None else sign * magnitudes.int()
    return values


def sparse_linear_reference(spikes: Tensor, values: Tensor) -> Tensor:
    """Σ_i s_i·w_i with s ∈ {0,1}: words (M, W) and values (N, n) -> int32 (M, N)."""
    return (unpack_bits(spikes, values.shape[1], torch.float64) @ values.double().T).to(torch.int32)
