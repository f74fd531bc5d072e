"""Triton kernels of the quantiser: what is measured of a block, its codes, its ridge, and what leaves.

A tile is R blocks × N values; see tbnn/ops/ddt/gpu.py for how blocks are laid out. Short blocks go through one kernel a
direction, which walks a block three or four times and finds it in the cache; the parts of a long one are shared among
programs, a kernel a pass. All numbers of a block are float64 and stand in ``facts``, as on the CPU (parts.py).

Launch with ``enable_fp_fusion=False``: :func:`coarse` is exact only if products are rounded before they are used.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
from types import FunctionType

import triton
import triton.language as tl

from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.gpu import narrow, wide
from tbnn.ops.quantize import grid, parts

SIGN, ROUND, ODD, REAL = (tl.constexpr(rule) for rule in (grid.SIGN, grid.ROUND, grid.ODD, grid.REAL))
MAGNITUDE, SPREAD = tl.constexpr(grid.MAGNITUDE), tl.constexpr(grid.SPREAD)
MAP, SCALED, RIDGE = (tl.constexpr(mode) for mode in (parts.MAP, parts.SCALED, parts.RIDGE))
RIDGE_OF_KEPT, RIDGE_SLOPE = tl.constexpr(parts.RIDGE_OF_KEPT), tl.constexpr(parts.RIDGE_SLOPE)
COUNT, SUM_X, SUM_Q, SUM_QQ = (tl.constexpr(i) for i in (parts.COUNT, parts.SUM_X, parts.SUM_Q, parts.SUM_QQ))
SUM_XQ, S, OFFSET, ORIGIN = (tl.constexpr(i) for i in (parts.SUM_XQ, parts.S, parts.OFFSET, parts.ORIGIN))
SLOPE, STAY, TAU, LAST = (tl.constexpr(i) for i in (parts.SLOPE, parts.STAY, parts.TAU, parts.LAST))
FACTS = tl.constexpr(parts.FACTS)

# The formulas of closed_form.py, compiled once more; the interpreter wants to see `tl` beside every function.
denominator_of, ridge_of, slope_gradient_of, constants_of = (
    triton.jit(FunctionType(f.__code__, {**f.__globals__, "tl": tl}, f.__name__))
    for f in (
        closed_form.denominator_of,
        closed_form.ridge_of,
        closed_form.slope_gradient_of,
        closed_form.constants_of,
    )
)


@triton.jit
def load_block(
    x, line, start, k, size, n, inner, tau, last, SPARSE: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr
):
    """(values k of the blocks in float64, which of them exist, which of those are kept)."""
    inside = k < size
    at = start + k
    xs = wide(tl.load(x + line + tl.cast(at, tl.int64) * inner, mask=inside, other=0.0))
    kept = inside
    if SPARSE:
        magnitude = tl.abs(xs)
        if GROUP == 0:
            kept = inside & ((magnitude > tau) | ((magnitude == tau) & (k.to(tl.float64) <= last)))
        else:
            larger = 0 * at
            first = at - at % GROUP
            for j in range(GROUP):
                other = first + j
                there = inside & (other < n)
                place = line + tl.cast(other, tl.int64) * inner
                theirs = tl.abs(wide(tl.load(x + place, mask=there, other=0.0)))
                ahead = there & ((theirs > magnitude) | ((theirs == magnitude) & (other < at)))
                larger += ahead.to(tl.int32)
            kept = inside & (larger < KEEP)
    return xs, inside, kept


@triton.jit
def measure_range(
    x, line, start, size, n, inner, tau, last, lo, length,
    MEASURE: tl.constexpr, SPARSE: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """(how many are kept, Σ|x|, Σx or Σx² of them, the lowest, the highest) of lo … lo + length."""
    zero = tl.full((R, N), 0.0, tl.float64)
    count, total, low, high = zero, zero, zero + float("inf"), zero - float("inf")
    for first in range(lo, lo + length, N):
        k = first + tl.arange(0, N)[None, :]
        xs, inside, kept = load_block(x, line, start, k, size, n, inner, tau, last, SPARSE, KEEP, GROUP)
        count += tl.where(kept, 1.0, zero)
        if MEASURE == MAGNITUDE:
            total += tl.where(kept, tl.abs(xs), 0.0)
        elif MEASURE == SPREAD:
            total += xs
            low = tl.minimum(low, tl.where(inside, xs, float("inf")))
            high = tl.maximum(high, tl.where(inside, xs, -float("inf")))
        else:
            total += tl.where(kept, xs * xs, 0.0)
            high = tl.maximum(high, tl.where(kept, tl.abs(xs), 0.0))
    return (
        tl.sum(count, 1, keep_dims=True), tl.sum(total, 1, keep_dims=True),
        tl.min(low, 1, keep_dims=True), tl.max(high, 1, keep_dims=True),
    )  # fmt: skip


@triton.jit
def about_range(x, line, start, size, inner, mean, lo, length, R: tl.constexpr, N: tl.constexpr):
    """Σ(x − mean)²."""
    total = tl.full((R, N), 0.0, tl.float64)
    for first in range(lo, lo + length, N):
        k = first + tl.arange(0, N)[None, :]
        xs = wide(tl.load(x + line + tl.cast(start + k, tl.int64) * inner, mask=k < size, other=0.0))
        away = tl.where(k < size, xs - mean, 0.0)
        total += away * away
    return tl.sum(total, 1, keep_dims=True)


@triton.jit
def coarse(statistic):
    """See :func:`tbnn.ops.quantize.reference.coarse`."""
    split = statistic * 536870913.0
    return split - (split - statistic)


@triton.jit
def place_of(
    count, total, low, high, about,
    RULE: tl.constexpr, MEASURE: tl.constexpr, LEVELS: tl.constexpr, STEP: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Origin and slope of a block's grid; see :func:`tbnn.ops.quantize.reference.place`."""
    there = count > 0  # not so beyond the tile's edge
    low, high, count = tl.where(there, low, 0.0), tl.where(there, high, 0.0), tl.maximum(count, 1.0)
    origin = 0.0 * count
    if MEASURE == MAGNITUDE:
        step = total / count
        if LOW == 0:
            step = 2 * step
            origin = -step / 2
    elif MEASURE == SPREAD:
        mean = total / count
        deviation = coarse(tl.sqrt(about / count))
        if LEVELS == 3:
            step, origin = tl.minimum(STEP * deviation, (high - low) / 2), mean
        else:
            reach = STEP * deviation * ((LEVELS - 1) / 2)
            origin = tl.maximum(low, mean - reach)
            step = (tl.minimum(high, mean + reach) - origin) / (LEVELS - 1)
    else:
        rms = tl.sqrt(total / count)
        if RULE == ODD:
            step = tl.minimum(STEP * coarse(rms) / 2, high / (LEVELS - 1))
        elif RULE == REAL:
            step = rms
        else:
            step = tl.minimum(STEP * coarse(rms), high)
    rises = step > 0
    return origin, tl.where(rises, 1.0 / tl.where(rises, step, 1.0), 0.0)


@triton.jit
def nearest(f):
    """Round, halves to even: what is added to |f| < 2⁵¹ leaves no room for a fraction."""
    return (f + 6755399441055744.0) - 6755399441055744.0


@triton.jit
def code_of(xs, kept, origin, slope, RULE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, SPARSE: tl.constexpr):
    """(f, q) of values; see :class:`tbnn.ops.quantize.grid.Scheme`."""
    f = (xs - origin) * slope
    if RULE == SIGN:
        q = tl.where(xs > 0, HIGH + 0.0 * f, LOW)
    elif RULE == ROUND:
        q = nearest(tl.minimum(tl.maximum(f, LOW), HIGH))
    elif RULE == ODD:
        half = tl.minimum(tl.maximum(f, LOW), HIGH) / 2
        near = nearest(half)
        q = tl.maximum(2 * tl.where(near < half, near + 1.0, near) - 1, LOW)
    else:
        q = f
    if SPARSE:
        q = tl.where(kept, q, 0.0)
    return f, q


@triton.jit
def sum_range(
    g, x, line, start, size, n, inner, tau, last, origin, slope, lo, length, GRADIENT: tl.constexpr,
    RULE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, SPARSE: tl.constexpr, KEEP: tl.constexpr,
    GROUP: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Σx, Σq, Σq², Σxq; with GRADIENT ΣG, Σq, Σq², ΣG·q."""
    sum_a = tl.full((R, N), 0.0, tl.float64)
    sum_q, sum_qq, sum_aq = sum_a, sum_a, sum_a
    for first in range(lo, lo + length, N):
        k = first + tl.arange(0, N)[None, :]
        xs, inside, kept = load_block(x, line, start, k, size, n, inner, tau, last, SPARSE, KEEP, GROUP)
        _f, q = code_of(xs, kept, origin, slope, RULE, LOW, HIGH, SPARSE)
        q = tl.where(inside, q, 0.0)
        a = xs
        if GRADIENT:
            a = wide(tl.load(g + line + tl.cast(start + k, tl.int64) * inner, mask=inside, other=0.0))
        sum_a, sum_q, sum_qq, sum_aq = sum_a + a, sum_q + q, sum_qq + q * q, sum_aq + a * q
    return (
        tl.sum(sum_a, 1, keep_dims=True), tl.sum(sum_q, 1, keep_dims=True),
        tl.sum(sum_qq, 1, keep_dims=True), tl.sum(sum_aq, 1, keep_dims=True),
    )  # fmt: skip


@triton.jit
def finish_range(
    g, x, out, line, start, size, n, inner, tau, last, origin, slope, f0, f1, f2, f3, s0, s1, s2, lo, length,
    MODE: tl.constexpr, RULE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, SPARSE: tl.constexpr,
    KEEP: tl.constexpr, GROUP: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """What leaves: f2·q + f3 (MAP), or dL/dx by one of the estimators, whose settings are s0, s1, s2."""
    for first in range(lo, lo + length, N):
        k = first + tl.arange(0, N)[None, :]
        xs, inside, kept = load_block(x, line, start, k, size, n, inner, tau, last, SPARSE, KEEP, GROUP)
        f, q = code_of(xs, kept, origin, slope, RULE, LOW, HIGH, SPARSE)
        place = line + tl.cast(start + k, tl.int64) * inner
        y = f2 * q + f3
        if MODE != MAP:
            gs = wide(tl.load(g + place, mask=inside, other=0.0))
            if MODE >= RIDGE:
                y = f0 * gs + f1 * xs + y
                if SPARSE and MODE == RIDGE_OF_KEPT:
                    y = tl.where(kept, y, f0 * gs)
            elif MODE == SCALED:
                error = f - q
                if RULE != REAL:
                    error = (tl.minimum(tl.maximum(f, LOW), HIGH) - q) / (HIGH - LOW)
                y = gs * (1 + s0 * tl.where(gs > 0, error, tl.where(gs < 0, -error, 0.0)))
            else:  # |x|^((1 − power)/power) by its logarithm; s0, s1, s2 are power, bound and flat
                size_x = tl.abs(xs * slope)
                if LOW == 0:
                    size_x = 2 * size_x
                exponent = (1 - s0) / s0
                rising = tl.exp(exponent * tl.log(tl.maximum(size_x, s2)))
                inner_slope = tl.where(size_x <= s2, rising, rising / s0)
                y = tl.where(size_x > s1, 0.0, gs * inner_slope)
        tl.store(out + place, narrow(y, out.dtype.element_ty), mask=inside)


@triton.jit
def fact(facts, unit, which: tl.constexpr, exists):
    """A number of each block, (R, 1)."""
    return tl.load(facts + tl.cast(unit, tl.int64) * FACTS + which, mask=exists, other=0.0)


@triton.jit
def set_fact(facts, unit, which: tl.constexpr, value, exists):
    """Write it."""
    tl.store(facts + tl.cast(unit, tl.int64) * FACTS + which, value, mask=exists)


@triton.jit
def kept_denominator(n, kept, q, qq, lam, LINEAR: tl.constexpr):
    """The ridge's denominator, λ counting what is kept; where that is nothing at least 1, and so s = r = 0."""
    return denominator_of(n, q, qq, lam * (kept / n), LINEAR) + tl.where(kept > 0, 0.0, 1.0)


@triton.jit
def solve_block(facts, unit, count, kept, sum_x, sum_q, sum_qq, sum_xq, lam, exists, LINEAR: tl.constexpr):
    """Slope and offset of the ridge, written with the sums that they are made of."""
    n = tl.maximum(count, 1.0)
    s, offset = ridge_of(n, sum_x, sum_q, sum_xq, kept_denominator(n, kept, sum_q, sum_qq, lam, LINEAR), LINEAR)
    set_fact(facts, unit, COUNT, count, exists)
    set_fact(facts, unit, SUM_X, sum_x, exists)
    set_fact(facts, unit, SUM_Q, sum_q, exists)
    set_fact(facts, unit, SUM_QQ, sum_qq, exists)
    set_fact(facts, unit, SUM_XQ, sum_xq, exists)
    set_fact(facts, unit, S, s, exists)
    set_fact(facts, unit, OFFSET, offset, exists)
    return s, offset


@triton.jit
def solve_gradient(facts, unit, g, gq, slope, lam, exists, LINEAR: tl.constexpr, MODE: tl.constexpr):
    """dL/dx = f0·G + f1·x + f2·q + f3: dL/dx of the ridge plus f' times its dL/dq; see parts.py's finish_part."""
    n, x = tl.maximum(fact(facts, unit, COUNT, exists), 1.0), fact(facts, unit, SUM_X, exists)
    q, qq, s = fact(facts, unit, SUM_Q, exists), fact(facts, unit, SUM_QQ, exists), fact(facts, unit, S, exists)
    kept = fact(facts, unit, STAY, exists)
    r = slope_gradient_of(n, q, g, gq, kept_denominator(n, kept, q, qq, lam, LINEAR), LINEAR)
    x_const, q_const = constants_of(n, x, q, g, s, r, LINEAR)
    f0, f1, f2, f3 = slope * s, slope * r, r * (1 - 2 * slope * s), x_const + slope * q_const
    if MODE == RIDGE_SLOPE:
        f1, f2, f3 = 0.0 * f0, 0.0 * f0, 0.0 * f0
    if MODE != RIDGE:
        some = kept > 0
        f0, f1 = tl.where(some, f0, 1.0), tl.where(some, f1, 0.0)
        f2, f3 = tl.where(some, f2, 0.0), tl.where(some, f3, 0.0)
    return f0, f1, f2, f3
