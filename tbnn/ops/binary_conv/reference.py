"""The binary convolution by definition."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tbnn.bits import unpack_bits
from tbnn.ops.patches.reference import Windows, taps_of


def binary_conv2d_reference(
    words: Tensor, signs: Tensor, shape: Sequence[int], windows: Windows, groups: int
) -> Tensor:
    """Σ s·w over windows, s ∈ {0,1}, w ∈ {−1,1}: words (M, W), signs (N, K) -> int32 (M, N, OH, OW)."""
    frames = unpack_bits(words, math.prod(shape), torch.bool).reshape(-1, *shape)
    taps = taps_of(frames, windows).double().unflatten(1, (groups, -1))  # (M, groups, C/groups, OH, OW, kh, kw)
    per_group = shape[0] // groups
    w = 2 * unpack_bits(signs, per_group * math.prod(windows.kernel), torch.float64) - 1
    w = w.reshape(groups, -1, per_group, *windows.kernel)
    return torch.einsum("mgcyxij,gncij->mgnyx", taps, w).flatten(1, 2).to(torch.int32)
