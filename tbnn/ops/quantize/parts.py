"""What happens to a part of a block on the CPU: a contiguous run of values that fits the cache. Called by cpu.py.

Loops are 0-based over contiguous slices, and sums are taken by quarters and then by halves of a stretch of values: so
LLVM turns them into vector instructions without being allowed to reorder anything; the order is the same everywhere.
"""

from typing import Any

import numpy as np

from tbnn.ops.ddt import closed_form
from tbnn.ops.kernels import device_function
from tbnn.ops.quantize.grid import MAGNITUDE, ODD, REAL, ROUND, SIGN, SPREAD

QUARTER = 256  # of a stretch that is summed at once
PART = 1 << 13  # values handled at a time: x, q and the mask stay in the cache

NO_FRACTION = 1.5 * 2.0**52  # added to |f| < 2^51 it leaves no room for a fraction: f rounds, halves to even

# What leaves a part; see finish_part.
MAP, SCALED, RECTIFIED, RIDGE, RIDGE_OF_KEPT, RIDGE_SLOPE = range(6)  # from RIDGE on the ridge's gradient
MODES = {"ddt": RIDGE_OF_KEPT, "ddt_ridge": RIDGE, "ddt_slope": RIDGE_SLOPE, "ewgs": SCALED, "reste": RECTIFIED}

# What is known of a block, the last axis of `facts`.
COUNT, SUM_X, SUM_Q, SUM_QQ, SUM_XQ, S, OFFSET, ORIGIN, SLOPE, STAY, TAU, LAST, FACTS = range(13)
# What is measured of a block, part by part: a count, a sum, the extremes, and a sum about the mean.
KEPT, TOTAL, LOWEST, HIGHEST, ABOUT, MEASURES = range(6)

# The ridge's four formulas, compiled.
ridge_of: Any = device_function(closed_form.ridge_of)
denominator_of: Any = device_function(closed_form.denominator_of)
slope_gradient_of: Any = device_function(closed_form.slope_gradient_of)
constants_of: Any = device_function(closed_form.constants_of)


@device_function
def mask_largest(x, first, tau, last, kept):  # pyright: ignore
    """1 where |x| > τ, or |x| = τ at an index (x starts at ``first``) of at most ``last``."""
    for i in range(x.size):
        size = np.abs(x[i])
        kept[i] = (size > tau) | ((size == tau) & (first + i <= last))


@device_function
def mask_groups(row, lo, hi, keep, group, kept):  # pyright: ignore
    """1 where a value is among the ``keep`` largest of its ``group`` neighbours; kept covers row[lo:hi]."""
    at = lo // group * group
    while at < hi:
        end = min(at + group, row.size)
        for i in range(max(at, lo), min(end, hi)):
            size, larger = np.abs(row[i]), 0
            for j in range(at, i):
                larger += np.abs(row[j]) >= size
            for j in range(i + 1, end):
                larger += np.abs(row[j]) > size
            kept[i - lo] = larger < keep
        at = end


@device_function
def mask_fours(x, keep, kept):  # pyright: ignore
    """:func:`mask_groups` for groups of 4 that x starts and ends with: the common case, without branches."""
    for g in range(x.size // 4):
        a, b, c, d = np.abs(x[4 * g]), np.abs(x[4 * g + 1]), np.abs(x[4 * g + 2]), np.abs(x[4 * g + 3])
        ab, ac, ad = np.int32(a >= b), np.int32(a >= c), np.int32(a >= d)
        bc, bd, cd = np.int32(b >= c), np.int32(b >= d), np.int32(c >= d)
        kept[4 * g] = 3 - ab - ac - ad < keep
        kept[4 * g + 1] = ab + 2 - bc - bd < keep
        kept[4 * g + 2] = ac + bc + 1 - cd < keep
        kept[4 * g + 3] = ad + bd + cd < keep


@device_function
def mask_part(row, lo, hi, first, scheme, tau, last, kept):  # pyright: ignore
    """The mask of row[lo:hi], which starts at index ``first`` of its block."""
    if scheme.group == 0:
        mask_largest(row[lo:hi], first, tau, last, kept)
    elif scheme.group == 4 and lo % 4 == 0 and hi % 4 == 0:
        mask_fours(row[lo:hi], scheme.keep, kept)
    else:
        mask_groups(row, lo, hi, scheme.keep, scheme.group, kept)


@device_function
def start_measure(m):  # pyright: ignore
    """A measurement of nothing."""
    m[KEPT], m[TOTAL], m[LOWEST], m[HIGHEST], m[ABOUT] = 0.0, 0.0, np.inf, -np.inf, 0.0


@device_function
def join_measure(m, part):  # pyright: ignore
    """Add the measurement of a part to the block's."""
    m[KEPT] += part[KEPT]
    m[TOTAL] += part[TOTAL]
    m[LOWEST] = min(m[LOWEST], part[LOWEST])
    m[HIGHEST] = max(m[HIGHEST], part[HIGHEST])


@device_function
def masked(x, kept, out):  # pyright: ignore
    """x_S: x where it is kept, else 0; how many are kept."""
    count = 0
    for i in range(x.size):
        out[i] = x[i] if kept[i] else 0.0
        count += kept[i]
    return count


@device_function
def added_up(sums, size):  # pyright: ignore
    """The sum of the first ``size`` numbers, by halves; they are overwritten."""
    while size > 8:
        half = (size + 1) // 2
        low, high = sums[: size - half], sums[half:size]
        for i in range(low.size):
            low[i] += high[i]
        size = half
    total = 0.0
    for i in range(size):
        total += sums[i]
    return total


@device_function
def least_of(numbers, size):  # pyright: ignore
    """The least of the first ``size`` numbers, by halves; they are overwritten."""
    while size > 8:
        half = (size + 1) // 2
        low, high = numbers[: size - half], numbers[half:size]
        for i in range(low.size):
            low[i] = high[i] if high[i] < low[i] else low[i]
        size = half
    least = np.inf
    for i in range(size):
        least = min(least, numbers[i])
    return least


@device_function
def measure_part(x, scheme, buffer, m):  # pyright: ignore
    """Fill m with what the scheme measures: Σ|x|, Σx with the extremes, or Σx² with the highest |x|."""
    start_measure(m)
    s, least, most = buffer[:QUARTER], buffer[QUARTER : 2 * QUARTER], buffer[2 * QUARTER : 3 * QUARTER]
    for at in range(0, x.size, 4 * QUARTER):
        size = min(4 * QUARTER, x.size - at)
        n = size // 4
        x0, x1, x2, x3 = x[at : at + n], x[at + n :][:n], x[at + 2 * n :][:n], x[at + 3 * n :][:n]
        if scheme.measure == MAGNITUDE:
            for i in range(n):
                s[i] = (np.abs(np.float64(x0[i])) + np.abs(np.float64(x1[i]))) + (
                    np.abs(np.float64(x2[i])) + np.abs(np.float64(x3[i]))
                )
        elif scheme.measure == SPREAD:
            for i in range(n):
                s[i] = (np.float64(x0[i]) + np.float64(x1[i])) + (np.float64(x2[i]) + np.float64(x3[i]))
            for i in range(n):
                a, b = x0[i] if x0[i] < x1[i] else x1[i], x2[i] if x2[i] < x3[i] else x3[i]
                least[i] = a if a < b else b
                a, b = x0[i] if x0[i] > x1[i] else x1[i], x2[i] if x2[i] > x3[i] else x3[i]
                most[i] = -(a if a > b else b)
            m[LOWEST] = min(m[LOWEST], least_of(least, n))
            m[HIGHEST] = max(m[HIGHEST], -least_of(most, n))
        else:
            for i in range(n):
                a, b, c, d = np.float64(x0[i]), np.float64(x1[i]), np.float64(x2[i]), np.float64(x3[i])
                s[i] = (a * a + b * b) + (c * c + d * d)
                a, b, c, d = np.abs(a), np.abs(b), np.abs(c), np.abs(d)
                a, c = a if a > b else b, c if c > d else d
                most[i] = -(a if a > c else c)
            m[HIGHEST] = max(m[HIGHEST], -least_of(most, n))
        m[TOTAL] += added_up(s, n)
        for i in range(at + 4 * n, at + size):
            a = np.float64(x[i])
            if scheme.measure == MAGNITUDE:
                m[TOTAL] += np.abs(a)
            elif scheme.measure == SPREAD:
                m[TOTAL] += a
                m[LOWEST], m[HIGHEST] = min(m[LOWEST], a), max(m[HIGHEST], a)
            else:
                m[TOTAL] += a * a
                m[HIGHEST] = max(m[HIGHEST], np.abs(a))
    m[KEPT] = x.size


@device_function
def about_part(x, mean, buffer):  # pyright: ignore
    """Σ(x − mean)²."""
    total = 0.0
    for at in range(0, x.size, 4 * QUARTER):
        size = min(4 * QUARTER, x.size - at)
        n = size // 4
        x0, x1, x2, x3 = x[at : at + n], x[at + n :][:n], x[at + 2 * n :][:n], x[at + 3 * n :][:n]
        for i in range(n):
            a, b = np.float64(x0[i]) - mean, np.float64(x1[i]) - mean
            c, d = np.float64(x2[i]) - mean, np.float64(x3[i]) - mean
            buffer[i] = (a * a + b * b) + (c * c + d * d)
        total += added_up(buffer, n)
        for i in range(at + 4 * n, at + size):
            total += (np.float64(x[i]) - mean) ** 2
    return total


@device_function
def coarse(statistic):  # pyright: ignore
    """See :func:`tbnn.ops.quantize.reference.coarse`."""
    split = statistic * (2.0**29 + 1)
    return split - (split - statistic)


@device_function
def place(m, scheme, fact):  # pyright: ignore
    """Origin and slope of the block's grid from its measurement; see :func:`tbnn.ops.quantize.reference.place`."""
    fact[STAY] = m[KEPT]
    origin = 0.0
    if scheme.measure == MAGNITUDE:
        step = m[TOTAL] / m[KEPT]
        if scheme.low == 0:
            step = 2 * step
            origin = -step / 2
    elif scheme.measure == SPREAD:
        mean = m[TOTAL] / m[KEPT]
        deviation = coarse(np.sqrt(m[ABOUT] / m[KEPT]))
        if scheme.levels == 3:
            step, origin = min(scheme.step * deviation, (m[HIGHEST] - m[LOWEST]) / 2), mean
        else:
            reach = scheme.step * deviation * ((scheme.levels - 1) / 2)
            origin = max(m[LOWEST], mean - reach)
            step = (min(m[HIGHEST], mean + reach) - origin) / (scheme.levels - 1)
    else:
        rms = np.sqrt(m[TOTAL] / m[KEPT])
        if scheme.rule == ODD:
            step = min(scheme.step * coarse(rms) / 2, m[HIGHEST] / (scheme.levels - 1))
        elif scheme.rule == REAL:
            step = rms
        else:
            step = min(scheme.step * coarse(rms), m[HIGHEST])
    fact[ORIGIN] = origin
    fact[SLOPE] = 1 / step if step > 0 else 0.0


@device_function
def code_part(x, kept, scheme, origin, slope, q):  # pyright: ignore
    """q of x; see :class:`tbnn.ops.quantize.grid.Scheme`."""
    low, high = scheme.low, scheme.high
    if scheme.rule == SIGN:
        for i in range(x.size):
            q[i] = high if x[i] > 0 else low
    elif scheme.rule == ROUND:
        for i in range(x.size):
            f = (np.float64(x[i]) - origin) * slope
            f = low if f < low else (high if f > high else f)
            q[i] = (f + NO_FRACTION) - NO_FRACTION
    elif scheme.rule == ODD:
        for i in range(x.size):
            f = (np.float64(x[i]) - origin) * slope
            f = low if f < low else (high if f > high else f)
            f = f / 2
            near = (f + NO_FRACTION) - NO_FRACTION
            f = 2 * (near + 1.0 if near < f else near) - 1
            q[i] = low if f < low else f
    else:
        for i in range(x.size):
            q[i] = (np.float64(x[i]) - origin) * slope
    if scheme.sparse:
        for i in range(x.size):
            q[i] = q[i] if kept[i] else 0.0


@device_function
def sum_part(x, q, buffer, sums):  # pyright: ignore
    """Add Σx, Σq, Σq², Σxq of a part to ``sums``."""
    sx, sq = buffer[:QUARTER], buffer[QUARTER : 2 * QUARTER]
    sqq, sxq = buffer[2 * QUARTER : 3 * QUARTER], buffer[3 * QUARTER : 4 * QUARTER]
    for at in range(0, x.size, 4 * QUARTER):
        size = min(4 * QUARTER, x.size - at)
        n = size // 4
        x0, x1, x2, x3 = x[at : at + n], x[at + n :][:n], x[at + 2 * n :][:n], x[at + 3 * n :][:n]
        q0, q1, q2, q3 = q[at : at + n], q[at + n :][:n], q[at + 2 * n :][:n], q[at + 3 * n :][:n]
        for i in range(n):
            a, b, c, d = np.float64(x0[i]), np.float64(x1[i]), np.float64(x2[i]), np.float64(x3[i])
            e, f, g, h = np.float64(q0[i]), np.float64(q1[i]), np.float64(q2[i]), np.float64(q3[i])
            sx[i] = (a + b) + (c + d)
            sq[i] = (e + f) + (g + h)
            sqq[i] = (e * e + f * f) + (g * g + h * h)
            sxq[i] = (a * e + b * f) + (c * g + d * h)
        sums[0] += added_up(sx, n)
        sums[1] += added_up(sq, n)
        sums[2] += added_up(sqq, n)
        sums[3] += added_up(sxq, n)
        for i in range(at + 4 * n, at + size):
            a, e = np.float64(x[i]), np.float64(q[i])
            sums[0] += a
            sums[1] += e
            sums[2] += e * e
            sums[3] += a * e


@device_function
def gradient_sum_part(g, q, buffer, sums):  # pyright: ignore
    """Add ΣG, ΣG·q of a part to ``sums``."""
    sg, sgq = buffer[:QUARTER], buffer[QUARTER : 2 * QUARTER]
    for at in range(0, g.size, 4 * QUARTER):
        size = min(4 * QUARTER, g.size - at)
        n = size // 4
        g0, g1, g2, g3 = g[at : at + n], g[at + n :][:n], g[at + 2 * n :][:n], g[at + 3 * n :][:n]
        q0, q1, q2, q3 = q[at : at + n], q[at + n :][:n], q[at + 2 * n :][:n], q[at + 3 * n :][:n]
        for i in range(n):
            a, b, c, d = np.float64(g0[i]), np.float64(g1[i]), np.float64(g2[i]), np.float64(g3[i])
            sg[i] = (a + b) + (c + d)
            sgq[i] = (a * np.float64(q0[i]) + b * np.float64(q1[i])) + (c * np.float64(q2[i]) + d * np.float64(q3[i]))
        sums[0] += added_up(sg, n)
        sums[1] += added_up(sgq, n)
        for i in range(at + 4 * n, at + size):
            sums[0] += np.float64(g[i])
            sums[1] += np.float64(g[i]) * np.float64(q[i])


@device_function
def kept_denominator(fact, scheme):  # pyright: ignore
    """The ridge's denominator, λ counting what is kept; where that is nothing 1, and so s = r = 0."""
    n, kept = fact[COUNT], fact[STAY]
    return denominator_of(n, fact[SUM_Q], fact[SUM_QQ], scheme.lam * (kept / n), scheme.linear) + (kept == 0)


@device_function
def solve(fact, scheme):  # pyright: ignore
    """Slope and offset of the ridge from the block's sums."""
    denominator = kept_denominator(fact, scheme)
    fact[S], fact[OFFSET] = ridge_of(fact[COUNT], fact[SUM_X], fact[SUM_Q], fact[SUM_XQ], denominator, scheme.linear)


@device_function
def solve_gradient(mode, fact, g_sums, scheme, factors):  # pyright: ignore
    """dL/dx = f0·G + f1·x + f2·q + f3: dL/dx of the ridge plus f' times its dL/dq; see :func:`finish_part`."""
    n, x, q, s, slope = fact[COUNT], fact[SUM_X], fact[SUM_Q], fact[S], fact[SLOPE]
    r = slope_gradient_of(n, q, g_sums[0], g_sums[1], kept_denominator(fact, scheme), scheme.linear)
    x_const, q_const = constants_of(n, x, q, g_sums[0], s, r, scheme.linear)
    factors[0] = slope * s
    factors[1] = slope * r
    factors[2] = r * (1 - 2 * slope * s)
    factors[3] = x_const + slope * q_const
    if mode == RIDGE_SLOPE:
        factors[1:4] = 0.0
    if mode != RIDGE and fact[STAY] == 0:
        factors[0], factors[1:4] = 1.0, 0.0


@device_function
def finish_part(mode, settings, scheme, fact, factors, kept, g, x, q, out):  # pyright: ignore
    """What leaves, from q: an affine map of it (MAP), or dL/dx by one of the estimators.

    RIDGE: a ridge over all values; RIDGE_OF_KEPT: pruned ones get f0·G alone; RIDGE_SLOPE: all do, f1 = f2 = f3 = 0.
    """
    if mode == MAP:
        f2, f3 = factors[2], factors[3]
        for i in range(x.size):
            out[i] = f2 * q[i] + f3
    elif mode >= RIDGE:
        f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
        if mode == RIDGE_OF_KEPT and scheme.sparse:
            for i in range(x.size):
                out[i] = f0 * g[i] + f1 * x[i] + f2 * q[i] + f3 if kept[i] else f0 * g[i]
        else:
            for i in range(x.size):
                out[i] = f0 * g[i] + f1 * x[i] + f2 * q[i] + f3
    elif mode == SCALED:
        origin, slope = fact[ORIGIN], fact[SLOPE]
        low, high = scheme.low, scheme.high
        delta = settings[0] if scheme.rule == REAL else settings[0] / (high - low)
        for i in range(x.size):
            f = (np.float64(x[i]) - origin) * slope
            f = low if f < low else (high if f > high else f)
            out[i] = g[i] * (1 + delta * np.sign(g[i]) * (f - q[i]))
    else:
        power, bound, flat = settings
        exponent = (1 - power) / power
        chord = flat**exponent
        slope = fact[SLOPE] * (2 if scheme.low == 0 else 1)
        for i in range(x.size):
            size = np.abs(np.float64(x[i]) * slope)
            inner = chord if size <= flat else size**exponent / power
            out[i] = 0.0 if size > bound else g[i] * inner
