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


# The four formulas below are plain arithmetic: NumPy runs them over arrays, the fused kernels on one block's numbers.


def denominator_of(n, q, qq, lam, linear):  # pyright: ignore
    """N²·(Var(q) + λ) for the affine form, N·(mean(q²) + λ) for the linear one."""
    if linear:
        return qq + lam * n
    return n * qq - q * q + lam * n * n


def ridge_of(n, x, q, xq, denominator, linear):  # pyright: ignore
    """(s, offset) of x̂ = s·q + offset."""
    if linear:
        return xq / denominator, 0.0 * n
    s = (n * xq - x * q) / denominator
    return s, (x - s * q) / n


def slope_gradient_of(n, q, g, gq, denominator, linear):  # pyright: ignore
    """r = A/D, the gradient that reaches the slope."""
    if linear:
        return gq / denominator
    return (n * gq - q * g) / denominator


def constants_of(n, x, q, g, s, r, linear):  # pyright: ignore
    """(x_const, q_const) of the backward pass."""
    if linear:
        return 0.0 * n, 0.0 * n
    return (g - r * q) / n, (2 * s * r * q - s * g - r * x) / n


def check_slopes(sums: Sums, form: str, kept: Scalars | None = None) -> None:
    """Raise ``ValueError`` where λ = 0 leaves a block's slope undefined; a block that keeps nothing has slope 0."""
    denominator = denominator_of(sums.n, sums.q, sums.qq, 0.0, form == "linear")
    no_slope = denominator <= 1e-12 * sums.n * sums.qq  # the sums of a constant q rarely cancel to exactly 0
    if kept is not None:
        no_slope &= kept > 0
    if np.any(no_slope):
        what = "q is 0 everywhere in" if form == "linear" else "Var(q) is 0 in"
        raise ValueError(
            f"ddt: lam=0 divides by zero, {what} {int(np.sum(no_slope))} of {denominator.size} blocks; use lam > 0"
        )


def solve(sums: Sums, lam: float, form: str, kept: Scalars | None = None) -> Ridge:
    """Slope and offset of every block. Raises ``ValueError`` for λ=0 on a block that leaves the slope undefined.

    Where values are pruned λ counts the ``kept`` ones of each block, λ·kept/n for λ; with none the slope is 0.
    """
    if lam == 0:
        check_slopes(sums, form, kept)
    linear = form == "linear"
    if kept is None:
        denominator = denominator_of(sums.n, sums.q, sums.qq, lam, linear)
    else:
        denominator = denominator_of(sums.n, sums.q, sums.qq, lam * (kept / sums.n), linear) + (kept == 0)
    return Ridge(*ridge_of(sums.n, sums.x, sums.q, sums.xq, denominator, linear))


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
    linear = form == "linear"
    r = slope_gradient_of(sums.n, sums.q, g_sum, gq_sum, denominator_of(sums.n, sums.q, sums.qq, lam, linear), linear)
    return RidgeGradient(s, r, *constants_of(sums.n, sums.x, sums.q, g_sum, s, r, linear))
