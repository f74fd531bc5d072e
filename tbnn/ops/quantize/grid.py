"""The grids: which integers a value may become, and what is measured of a block to lay the grid over it."""

import math
from typing import NamedTuple

TERNARY = 1.58

# The step of the uniform quantiser with N levels that loses least of a standard Gaussian (Max 1960, table II).
OPTIMAL_STEP = {
    2: 1.596,
    3: 1.224,
    4: 0.9957,
    8: 0.5860,
    16: 0.3352,
    32: 0.1881,
    64: 0.1041,
    128: 0.0569,
    256: 0.0308,
}

# How f becomes q.
SIGN, ROUND, ODD, REAL = range(4)
# What is measured of a block.
MAGNITUDE, SPREAD, ENERGY = range(3)


class Scheme(NamedTuple):
    """Everything about a quantiser but the data; it travels into the kernels as it is.

    ``f = (x − origin)·slope``, origin and slope from the block; then q is, by ``rule``:
    SIGN ``high if x > 0 else low``; ROUND ``round(clip(f, low, high))``, halves to even;
    ODD the odd integer nearest to f, the lower of two, clipped to low…high; REAL f itself. Pruned: 0.
    """

    rule: int
    measure: int
    levels: int
    """N; 0 for REAL."""
    step: float
    """c_N."""
    low: float
    high: float
    sparse: bool
    keep: int
    """n of N:M; 0 otherwise."""
    group: int
    """m of N:M; 0 otherwise."""
    linear: bool
    """The ridge's form."""
    lam: float

    @property
    def value_factor(self) -> float:
        """A symmetric grid's value is value_factor·q + value_shift: 2q − (N − 1) where q counts from 0."""
        return 2.0 if self.low == 0 and self.rule != REAL else 1.0

    @property
    def value_shift(self) -> float:
        """See :attr:`value_factor`."""
        return -self.high if self.value_factor == 2 else 0.0


def check_bits(bits: float | None) -> None:
    """Raise ``ValueError`` unless ``bits`` is 1, 1.58, 2 … 8 or None."""
    if bits is None or bits == TERNARY:
        return
    if isinstance(bits, bool) or not isinstance(bits, int | float) or bits not in range(1, 9):
        raise ValueError(f"bits: expected 1, 1.58 (ternary), 2 … 8 or None (sparsity alone), got {bits!r}")


def scheme_of(bits: float | None, form: str, lam: float, keep: int = 0, group: int = 0, sparse: bool = False) -> Scheme:
    """The scheme of checked arguments. Where values are pruned the grid is symmetric about 0 in both forms."""
    affine = form == "affine" and not sparse
    if bits is None:
        parts = (REAL, ENERGY, 0, 0.0, -math.inf, math.inf)
    elif bits == TERNARY:
        parts = (ROUND, SPREAD if affine else ENERGY, 3, OPTIMAL_STEP[3], -1.0, 1.0)
    elif bits == 1:
        parts = (SIGN, MAGNITUDE, 2, OPTIMAL_STEP[2], 0.0 if affine else -1.0, 1.0)
    else:
        n = 2 ** int(bits)
        if affine:
            parts = (ROUND, SPREAD, n, OPTIMAL_STEP[n], 0.0, n - 1.0)
        else:
            parts = (ODD, ENERGY, n, OPTIMAL_STEP[n], 1.0 - n, n - 1.0)
    return Scheme(*parts, sparse, keep, group, form == "linear", float(lam))
