"""The two passes of the DDT on the CPU: sums over a block, and a linear combination back out.

Data are viewed as (outer, n, inner); a block is a run along ``n``, from one edge to the next, at one outer and one
inner position. Sums run in float64 and in a fixed order, so that the number of threads never changes a bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from tbnn.ops.kernels import kernel

Array = npt.NDArray[Any]

LANES = 256  # inner positions handled together, so that rows are read whole where `n` is not the innermost axis
LONG_RUN = 1 << 14  # longer runs are summed in parts, so that one block keeps every core busy
MAX_FOLD = 16


@kernel
def _sum_runs(x, q, edges, out):  # pyright: ignore
    """Fill out (4, outer, runs, inner) with Σx, Σq, Σq², Σxq of each run of x, q (outer, n, inner)."""
    outer, _, inner = x.shape
    runs = edges.size - 1
    tiles = (inner + LANES - 1) // LANES
    for task in prange(outer * runs * tiles):
        o = task // (runs * tiles)
        run = task // tiles % runs
        lo = task % tiles * LANES
        hi = min(lo + LANES, inner)
        out[:, o, run, lo:hi] = 0.0
        for k in range(edges[run], edges[run + 1]):
            for i in range(lo, hi):
                xi, qi = np.float64(x[o, k, i]), np.float64(q[o, k, i])
                out[0, o, run, i] += xi
                out[1, o, run, i] += qi
                out[2, o, run, i] += qi * qi
                out[3, o, run, i] += xi * qi


@kernel
def _combine(a, b, c, factors, block, out):  # pyright: ignore
    """out = f0·a + f1·b + f2·c + f3 elementwise; arrays (outer, n, inner), factors (4, outer, runs, inner)."""
    outer, n, inner = a.shape
    runs = factors.shape[2]
    for task in prange(outer * runs):
        o = task // runs
        run = task % runs
        lo, hi = run * block, min((run + 1) * block, n)
        if inner == 1:
            fa, fb, fc, f1 = factors[0, o, run, 0], factors[1, o, run, 0], factors[2, o, run, 0], factors[3, o, run, 0]
            for k in range(lo, hi):
                out[o, k, 0] = fa * a[o, k, 0] + fb * b[o, k, 0] + fc * c[o, k, 0] + f1
        else:
            for k in range(lo, hi):
                for i in range(inner):
                    out[o, k, i] = (
                        factors[0, o, run, i] * a[o, k, i]
                        + factors[1, o, run, i] * b[o, k, i]
                        + factors[2, o, run, i] * c[o, k, i]
                        + factors[3, o, run, i]
                    )


def block_sums(x: Array, q: Array, block: int) -> Array:
    """Σx, Σq, Σq², Σxq of every block of x, q (outer, n, inner): float64 (4, outer, runs, inner)."""
    outer, n, inner = x.shape
    fold = 1
    while inner == 1 and fold < MAX_FOLD and n % (2 * fold) == 0 and block % (2 * fold) == 0:
        fold *= 2  # sum neighbours in separate lanes, which vectorises, and add the lanes up at the end
    part = min(block // fold, LONG_RUN)
    edges = [np.arange(lo, min(lo + block, n), part * fold) for lo in range(0, n, block)]
    first_part = np.cumsum([0, *(len(e) for e in edges[:-1])])
    bounds = np.append(np.concatenate(edges), n) // fold
    out = np.empty((4, outer, bounds.size - 1, inner * fold))
    folded = (outer, n // fold, inner * fold)
    _sum_runs(x.reshape(folded), q.reshape(folded), bounds, out, work=x.size)
    return np.add.reduceat(out, first_part, axis=2).reshape(4, outer, len(edges), inner, fold).sum(-1)


def combine(a: Array, b: Array, c: Array, factors: Array, block: int) -> Array:
    """f0·a + f1·b + f2·c + f3 with one factor a block: arrays (outer, n, inner), factors (4, outer, runs, inner)."""
    out = np.empty_like(a)
    _combine(a, b, c, factors, block, out, work=a.size)
    return out
