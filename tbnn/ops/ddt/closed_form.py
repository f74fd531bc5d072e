"""Forward and backward of the ridge regression as a few scalars per block, from the block's sums.

Both directions are linear in what they see: with the scalars below,

    x̂      = s·q + offset
    dL/dx  = x_const + r·q
    dL/dq  = q_const + s·G + r·x − 2·s·r·q

so that a kernel needs one pass for the sums and one for the result. Everything here is float64, whatever the data.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Scalars = npt.NDArray[np.float64]


class Sums(NamedTuple):
    """Sums over each block; every array has one entry a block."""

    n: Scalars
    x: Scalars
    q: Scalars
    qq: Scalars
    xq: Scalars


class Ridge(NamedTuple):
    """The solution of a block's ridge problem: x̂ = s·q + offset."""

    s: Scalars
    offset: Scalars


class RidgeGradient(NamedTuple):
    """The backward pass of a block: dL/dx = x_const + r·q, dL/dq = q_const + s·G + r·x − 2·s·r·q."""

    s: Scalars
    r: Scalars
    x_const: Scalars
    q_const: Scalars


def _denominator(sums: Sums, lam: float, form: str) -> Scalars:
    """N²·(Var(q) + λ) for the affine form, N·(mean(q²) + λ) for the linear one."""
    if form == "linear":
        denominator = sums.qq + lam * sums.n
    else:
        denominator = sums.n * sums.qq - sums.q * sums.q + lam * sums.n * sums.n
    no_slope = denominator <= 1e-12 * sums.n * sums.qq  # the sums of a constant q rarely cancel to exactly 0
    if lam == 0 and np.any(no_slope):
        what = "q is 0 everywhere in" if form == "linear" else "Var(q) is 0 in"
        raise ValueError(
            f"ddt: lam=0 divides by zero, {what} {int(np.sum(no_slope))} of {denominator.size} blocks; use lam > 0"
        )
    return denominator


def solve(sums: Sums, lam: float, form: str) -> Ridge:
    """Slope and offset of every block. Raises ``ValueError`` for λ=0 on a block that leaves the slope undefined."""
    denominator = _denominator(sums, lam, form)
    if form == "linear":
        return Ridge(sums.xq / denominator, np.zeros_like(denominator))
    s = (sums.n * sums.xq - sums.x * sums.q) / denominator
    return Ridge(s, (sums.x - s * sums.q) / sums.n)


def gradient(
    sums: Sums, g_sum: Scalars, gq_sum: Scalars, lam: float, form: str, differentiate_stats: bool = True
) -> RidgeGradient:
    """Backward scalars from ΣG and ΣG·q of every block.

    With ``differentiate_stats=False`` the slope and the means are constants, and only dL/dq = s·G is left.
    """
    s = solve(sums, lam, form).s
    zero = np.zeros_like(s)
    if not differentiate_stats:
        return RidgeGradient(s, zero, zero, zero)
    denominator = _denominator(sums, lam, form)
    if form == "linear":
        return RidgeGradient(s, gq_sum / denominator, zero, zero)
    r = (sums.n * gq_sum - sums.q * g_sum) / denominator  # A / D
    g_mean, q_mean, x_mean = g_sum / sums.n, sums.q / sums.n, sums.x / sums.n
    return RidgeGradient(s, r, g_mean - r * q_mean, 2 * s * r * q_mean - s * g_mean - r * x_mean)
