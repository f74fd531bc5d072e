# pyright: reportCallIssue=false
"""The dense binary product on the CPU: 64-bit AND + popcount, ``Σ s·w = 2·popcount(s ∧ w⁺) − popcount(s)``."""

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.tile import STRIP, strip_popcounts
from tbnn.ops.kernels import device_function, kernel

ROWS = 256  # spike rows of a task
TILE = 4  # spike rows held in registers together
FEW_ROWS = 16  # below this, laying a strip of weights out anew costs more than it saves

four_rows = strip_popcounts(TILE)
one_row = strip_popcounts(1)


@intrinsic
def popcount64(_context: Any, _word: Any) -> Any:
    """The number of set bits of a uint64, as LLVM's ctpop."""

    def codegen(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@device_function
def _row_by_row(s, w, m0, m1, n0, n1, factor, shift, add, out):  # pyright: ignore
    """out[m0:m1, n0:n1], one sum at a time over the weights as they lie."""
    for m in range(m0, m1):
        for n in range(n0, n1):
            count = np.uint64(0)
            for k in range(s.shape[1]):
                count += popcount64(s[m, k] & w[n, k])
            before = out[m, n] if add else np.int32(0)
            out[m, n] = before + factor * np.int32(count) + shift[m]


@device_function
def _strip(s, w, m0, m1, n0, n1, factor, shift, add, out):  # pyright: ignore
    """out[m0:m1, n0:n1], at most STRIP columns, from a copy of their weights in which outputs lie side by side."""
    words = s.shape[1]
    weights = np.zeros((words, STRIP), np.uint64)
    for n in range(n0, n1):
        for k in range(words):
            weights[k, n - n0] = w[n, k]
    counts = np.empty((TILE, STRIP), np.int32)
    stride, step = words * 8, STRIP * 4
    m = m0
    while m < m1:
        height = TILE if m + TILE <= m1 else 1
        spikes = s.ctypes.data + m * stride
        if height == TILE:
            four_rows(spikes, stride, weights.ctypes.data, words, counts.ctypes.data, step)
        else:
            one_row(spikes, stride, weights.ctypes.data, words, counts.ctypes.data, step)
        for i in range(height):
            row, here = out[m + i, n0:n1], counts[i]
            if add:
                for j in range(n1 - n0):
                    row[j] += factor * here[j] + shift[m + i]
            else:
                for j in range(n1 - n0):
                    row[j] = factor * here[j] + shift[m + i]
        m += height


@kernel
def binary_counts_cpu(s, w, factor, shift, add, out):  # pyright: ignore
    """out (M, N) int32 = factor·popcount(s_m ∧ w_n) + shift_m, plus what was there if ``add``.

    Spike words s (M, K) and weight words w (N, K) uint64; factor int32, shift (M,) int32.
    """
    rows, columns = s.shape[0], w.shape[0]
    row_tasks = (rows + ROWS - 1) // ROWS
    strips = (columns + STRIP - 1) // STRIP
    for task in prange(row_tasks * strips):
        m0, n0 = task // strips * ROWS, task % strips * STRIP
        m1, n1 = min(m0 + ROWS, rows), min(n0 + STRIP, columns)
        if m1 - m0 < FEW_ROWS:
            _row_by_row(s, w, m0, m1, n0, n1, factor, shift, add, out)
        else:
            _strip(s, w, m0, m1, n0, n1, factor, shift, add, out)


def binary_linear_cpu(s: Any, w: Any, ones: Any, out: Any, *, work: int) -> None:
    """out (M, N) int32 from spike words s (M, K), sign words w (N, K), both uint64, and ones = popcount of s's rows."""
    binary_counts_cpu(s, w, np.int32(2), -ones, False, out, work=work)
