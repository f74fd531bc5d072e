"""Packed 0/1 spikes times packed weights, ±1 or one bit plane."""

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import check_words, popcount, wide_words
from tbnn.ops.binary_linear.choice import binary_product_cpu
from tbnn.ops.binary_linear.events import WeightColumns, weight_columns
from tbnn.ops.binary_linear.reference import binary_counts_reference, binary_linear_reference
from tbnn.ops.kernels import as_numpy, backend_for

__all__ = [
    "WeightColumns",
    "binary_counts",
    "binary_counts_reference",
    "binary_linear",
    "binary_linear_reference",
    "weight_columns",
]


def binary_linear(
    spikes: Tensor, signs: Tensor, n: int, *, columns: WeightColumns | None = None, backend: str | None = None
) -> Tensor:
    """``y = Σ_i s_i·w_i`` for spikes s ∈ {0,1} and weights w ∈ {−1,1}, both packed: 2·popcount(s ∧ w⁺) − popcount(s).

    On the CPU few or many spikes a row take the event-driven product, others the dense one; on a GPU popcounts or tensor
    cores, whichever is faster at that size. The results are equal.

    Args:
        spikes: int32 words (..., ceil(n/32)), padding bits 0.
        signs: int32 words (N, ceil(n/32)); bit 1 is a weight of +1.
        n: how many inputs the words hold.
        columns: ``weight_columns(wide_words(signs))``, to be made once for weights that stay.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        int32 (..., N).

    Raises:
        ValueError: n < 1, words of another dtype or width, tensors on two devices, columns of other sizes.
    """
    rows = _check("binary_linear", spikes, signs, "signs", n, columns)
    path = backend_for(rows, backend, kernel_dtypes=(torch.int32,), gpu_dtypes=(torch.int32,))
    if path == "cpu":
        product = _product(rows, signs, columns, signs=True)
    elif path == "gpu":
        from tbnn.ops.binary_linear.gpu import binary_linear_gpu

        product = binary_linear_gpu(rows, signs)
    else:
        product = binary_linear_reference(rows, signs, n)
    return product.reshape(*spikes.shape[:-1], signs.shape[0])


def binary_counts(
    spikes: Tensor, plane: Tensor, n: int, *, columns: WeightColumns | None = None, backend: str | None = None
) -> Tensor:
    """``y = popcount(s ∧ b) = Σ_i s_i·b_i`` for spikes s and a plane of weight bits b, both ∈ {0,1} and packed.

    Arguments, result and errors are :func:`binary_linear`'s, with ``plane`` for ``signs``.
    """
    rows = _check("binary_counts", spikes, plane, "plane", n, columns)
    path = backend_for(rows, backend, kernel_dtypes=(torch.int32,), gpu_dtypes=(torch.int32,))
    if path == "cpu":
        product = _product(rows, plane, columns, signs=False)
    elif path == "gpu":
        from tbnn.ops.binary_linear.gpu import binary_counts_gpu

        product = binary_counts_gpu(rows, plane)
    else:
        product = binary_counts_reference(rows, plane, n)
    return product.reshape(*spikes.shape[:-1], plane.shape[0])


def _check(caller: str, spikes: Tensor, weights: Tensor, name: str, n: int, columns: WeightColumns | None) -> Tensor:
    """The spikes as rows (M, words), once all is as it should be."""
    if n < 1:
        raise ValueError(f"{caller}: expected at least 1 input, got {n}")
    check_words(spikes, n, f"{caller}: spikes")
    check_words(weights, n, f"{caller}: {name}")
    if weights.ndim != 2 or spikes.device != weights.device:
        raise ValueError(
            f"{caller}: expected {name} (N, words) on {spikes.device}, got {tuple(weights.shape)} on {weights.device}"
        )
    if columns is not None:
        bits, inputs = columns.words.shape[1] - 1, -(-n // 64) * 64
        if bits != inputs or columns.totals.shape != weights.shape[:1]:
            raise ValueError(
                f"{caller}: columns: expected {inputs} inputs and {weights.shape[0]} outputs, "
                f"got {bits} and {columns.totals.shape[0]}"
            )
    return spikes.reshape(-1, spikes.shape[-1])


def _product(rows: Tensor, weights: Tensor, columns: WeightColumns | None, *, signs: bool) -> Tensor:
    """The kernels' result, int32 (M, N)."""
    product = torch.empty((rows.shape[0], weights.shape[0]), dtype=torch.int32)
    ones = as_numpy(popcount(rows)).sum(-1, dtype=np.int32)
    factor, shift = (2, -ones) if signs else (1, np.zeros_like(ones))
    words = wide_words(as_numpy(rows)), wide_words(as_numpy(weights))
    binary_product_cpu(*words, columns, ones, factor, shift, False, as_numpy(product))
    return product
