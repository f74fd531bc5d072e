"""Which values a sparsity keeps: a fraction of the smallest is pruned, or all but n of every m neighbours."""

import re
from typing import NamedTuple

SCOPES = ("block", "row", "tensor")
LARGEST_FRACTION = 0.999

SparsityLike = float | tuple[int, int] | str


class Sparsity(NamedTuple):
    """A checked sparsity: the fraction pruned over each scope, or ``keep`` of every ``group`` neighbours."""

    fraction: float
    keep: int
    """n of N:M; 0 where a fraction is pruned."""
    group: int
    """m of N:M; 0 where a fraction is pruned."""
    scope: str

    @property
    def prunes(self) -> bool:
        """Whether anything can be pruned at all: not for a fraction of 0, nor for n = m."""
        return self.fraction > 0 or self.keep < self.group


def sparsity_of(sparsity: SparsityLike, scope: str) -> Sparsity:
    """Check a sparsity: a fraction in [0, 0.999], a pair (n, m) or "n:m". Raises ``ValueError``."""
    if scope not in SCOPES:
        raise ValueError(f"scope: expected one of 'block', 'row', 'tensor', got {scope!r}")
    pair: object = sparsity
    if isinstance(sparsity, str):
        match = re.fullmatch(r"(\d+):(\d+)", sparsity)
        pair = (int(match[1]), int(match[2])) if match else None
    if isinstance(pair, tuple | list):
        if not (len(pair) == 2 and all(type(p) is int for p in pair) and 1 <= pair[0] <= pair[1]):
            raise ValueError(f"sparsity: expected (n, m) with integers 1 <= n <= m, got {sparsity!r}")
        return Sparsity(0.0, pair[0], pair[1], scope)
    if isinstance(pair, bool) or not isinstance(pair, int | float) or not 0 <= pair <= LARGEST_FRACTION:
        raise ValueError(f"sparsity: expected a fraction in [0, {LARGEST_FRACTION}], (n, m) or 'n:m', got {sparsity!r}")
    return Sparsity(float(pair), 0, 0, scope)


def kept_of(count: int, fraction: float) -> int:
    """How many of ``count`` values stay: count − round(fraction·count), and never fewer than one."""
    return max(1, count - round(fraction * count))
