"""Packed 0/1 spikes times packed ±1 weights."""

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import check_words, popcount, wide_words
from tbnn.ops.binary_linear.cpu import binary_linear_cpu
from tbnn.ops.binary_linear.reference import binary_linear_reference
from tbnn.ops.kernels import as_numpy, backend_for

__all__ = ["binary_linear", "binary_linear_reference"]


def binary_linear(spikes: Tensor, signs: Tensor, n: int, *, backend: str | None = None) -> Tensor:
    """``y = Σ_i s_i·w_i`` for spikes s ∈ {0,1} and weights w ∈ {−1,1}, both packed: 2·popcount(s ∧ w⁺) − popcount(s).

    Args:
        spikes: int32 words (..., ceil(n/32)), padding bits 0.
        signs: int32 words (N, ceil(n/32)); bit 1 is a weight of +1.
        n: how many inputs the words hold.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        int32 (..., N).

    Raises:
        ValueError: n < 1, words of another dtype or width, tensors on two devices.
    """
    if n < 1:
        raise ValueError(f"binary_linear: expected at least 1 input, got {n}")
    check_words(spikes, n, "binary_linear: spikes")
    check_words(signs, n, "binary_linear: signs")
    if signs.ndim != 2 or spikes.device != signs.device:
        raise ValueError(
            f"binary_linear: expected signs (N, words) on {spikes.device}, got {tuple(signs.shape)} on {signs.device}"
        )
    rows = spikes.reshape(-1, spikes.shape[-1])
    if backend_for(rows, backend, kernel_dtypes=(torch.int32,)) == "cpu":
        product = torch.empty((rows.shape[0], signs.shape[0]), dtype=torch.int32)
        ones = as_numpy(popcount(rows)).sum(-1, dtype=np.int32)
        words = wide_words(as_numpy(rows)), wide_words(as_numpy(signs))
        binary_linear_cpu(*words, ones, as_numpy(product), work=rows.numel() * signs.shape[0] // 16)
    else:
        product = binary_linear_reference(rows, signs, n)
    return product.reshape(*spikes.shape[:-1], signs.shape[0])
