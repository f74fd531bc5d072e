# pyright: reportCallIssue=false
"""The binary product on the CPU: 64-bit AND + popcount over tiles that stay in cache.

``Σ s·w = 2·popcount(s ∧ w⁺) − popcount(s)``. The inner loop runs over 64-bit words, which LLVM turns into 512-bit
``vpopcntq`` where the machine has it; the tile of 2×4 sums reuses each loaded vector.
"""

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import intrinsic

from tbnn.ops.kernels import device_function, kernel

ROWS, COLUMNS = 32, 256  # one task: this many spike rows against this many weight rows


@intrinsic
def popcount64(_context: Any, _word: Any) -> Any:
    """The number of set bits of a uint64, as LLVM's ctpop."""

    def codegen(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@device_function
def _tile_2x4(s, w, m, n, ones, out):  # pyright: ignore
    """out[m:m+2, n:n+4] from spike words s and sign words w."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.uint64(0)
    for k in range(s.shape[1]):
        s0, s1 = s[m, k], s[m + 1, k]
        w0, w1, w2, w3 = w[n, k], w[n + 1, k], w[n + 2, k], w[n + 3, k]
        a0 += popcount64(s0 & w0)
        a1 += popcount64(s0 & w1)
        a2 += popcount64(s0 & w2)
        a3 += popcount64(s0 & w3)
        b0 += popcount64(s1 & w0)
        b1 += popcount64(s1 & w1)
        b2 += popcount64(s1 & w2)
        b3 += popcount64(s1 & w3)
    out[m, n] = 2 * np.int32(a0) - ones[m]
    out[m, n + 1] = 2 * np.int32(a1) - ones[m]
    out[m, n + 2] = 2 * np.int32(a2) - ones[m]
    out[m, n + 3] = 2 * np.int32(a3) - ones[m]
    out[m + 1, n] = 2 * np.int32(b0) - ones[m + 1]
    out[m + 1, n + 1] = 2 * np.int32(b1) - ones[m + 1]
    out[m + 1, n + 2] = 2 * np.int32(b2) - ones[m + 1]
    out[m + 1, n + 3] = 2 * np.int32(b3) - ones[m + 1]


@device_function
def _single(s, w, m, n, ones, out):  # pyright: ignore
    """out[m, n], for what the tiles leave over."""
    a = np.uint64(0)
    for k in range(s.shape[1]):
        a += popcount64(s[m, k] & w[n, k])
    out[m, n] = 2 * np.int32(a) - ones[m]


@kernel
def binary_linear_cpu(s, w, ones, out):  # pyright: ignore
    """out (M, N) int32 from spike words s (M, K), sign words w (N, K), both uint64, and ones = popcount of s's rows."""
    rows, columns = s.shape[0], w.shape[0]
    row_tasks = (rows + ROWS - 1) // ROWS
    column_tasks = (columns + COLUMNS - 1) // COLUMNS
    for task in prange(row_tasks * column_tasks):
        m0, n0 = task // column_tasks * ROWS, task % column_tasks * COLUMNS
        m1, n1 = min(m0 + ROWS, rows), min(n0 + COLUMNS, columns)
        m_even, n_even = m1 - (m1 - m0) % 2, n1 - (n1 - n0) % 4
        for n in range(n0, n_even, 4):
            for m in range(m0, m_even, 2):
                _tile_2x4(s, w, m, n, ones, out)
            for m in range(m_even, m1):
                for j in range(4):
                    _single(s, w, m, n + j, ones, out)
        for n in range(n_even, n1):
            for m in range(m0, m1):
                _single(s, w, m, n, ones, out)
