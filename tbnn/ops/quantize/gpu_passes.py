"""The quantiser's kernels as they are launched: whole blocks in one, or the parts of long blocks pass by pass."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportUndefinedVariable=false
# ruff: noqa: F821
import triton
import triton.language as tl

from tbnn.ops.ddt.gpu import blocks_of
from tbnn.ops.quantize.gpu_kernels import (
    LAST,
    MAP,
    OFFSET,
    ORIGIN,
    RIDGE,
    SLOPE,
    SPREAD,
    STAY,
    TAU,
    S,
    about_range,
    fact,
    finish_range,
    measure_range,
    place_of,
    set_fact,
    solve_block,
    solve_gradient,
    sum_range,
)

MEASURE_PASS, DEVIATE_PASS, SUM_PASS, GRADIENT_PASS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def forward_blocks(
    x, facts, out, outer, n, inner, block, runs, parts, part_size, lam: "fp64",
    RULE: tl.constexpr, MEASURE: tl.constexpr, LEVELS: tl.constexpr, STEP: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, SPARSE: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr, LINEAR: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Whole blocks: fill their facts, of which τ and last are given, and out with x̂."""
    unit, line, start, size, _ = blocks_of(outer, n, inner, block, runs, parts, R, COLUMNS)
    exists = size > 0
    tau, last = fact(facts, unit, TAU, exists), fact(facts, unit, LAST, exists)
    count, total, low, high = measure_range(
        x, line, start, size, n, inner, tau, last, 0, block, MEASURE, SPARSE, KEEP, GROUP, R, N
    )  # fmt: skip
    about = 0.0 * count
    if MEASURE == SPREAD:
        about = about_range(x, line, start, size, inner, total / tl.maximum(count, 1.0), 0, block, R, N)
    origin, slope = place_of(count, total, low, high, about, RULE, MEASURE, LEVELS, STEP, LOW)
    set_fact(facts, unit, ORIGIN, origin, exists)
    set_fact(facts, unit, SLOPE, slope, exists)
    set_fact(facts, unit, STAY, count, exists)
    sum_x, sum_q, sum_qq, sum_xq = sum_range(
        x, x, line, start, size, n, inner, tau, last, origin, slope, 0, block, False,
        RULE, LOW, HIGH, SPARSE, KEEP, GROUP, R, N,
    )  # fmt: skip
    s, offset = solve_block(facts, unit, size.to(tl.float64), count, sum_x, sum_q, sum_qq, sum_xq, lam, exists, LINEAR)
    finish_range(
        x, x, out, line, start, size, n, inner, tau, last, origin, slope, s, s, s, offset, lam, lam, lam, 0, block,
        MAP, RULE, LOW, HIGH, SPARSE, KEEP, GROUP, N,
    )  # fmt: skip


@triton.jit
def backward_blocks(
    g, x, facts, out, outer, n, inner, block, runs, parts, part_size, lam: "fp64", s0: "fp64", s1: "fp64", s2: "fp64",
    MODE: tl.constexpr, RULE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, SPARSE: tl.constexpr,
    KEEP: tl.constexpr, GROUP: tl.constexpr, LINEAR: tl.constexpr, R: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Whole blocks again: fill out with dL/dx, or with s0·q + s1 (MAP). Only the ridge needs whole blocks."""
    unit, line, start, size, part = blocks_of(outer, n, inner, block, runs, parts, R, COLUMNS)
    exists = size > 0
    tau, last = fact(facts, unit, TAU, exists), fact(facts, unit, LAST, exists)
    origin, slope = fact(facts, unit, ORIGIN, exists), fact(facts, unit, SLOPE, exists)
    zero = 0.0 * origin
    f0, f1, f2, f3 = zero, zero, zero + s0, zero + s1
    if MODE >= RIDGE:
        sum_g, _q, _qq, sum_gq = sum_range(
            g, x, line, start, size, n, inner, tau, last, origin, slope, 0, block, True,
            RULE, LOW, HIGH, SPARSE, KEEP, GROUP, R, N,
        )  # fmt: skip
        f0, f1, f2, f3 = solve_gradient(facts, unit, sum_g, sum_gq, slope, lam, exists, LINEAR, MODE)
    finish_range(
        g, x, out, line, start, size, n, inner, tau, last, origin, slope, f0, f1, f2, f3, s0, s1, s2,
        part * part_size, part_size, MODE, RULE, LOW, HIGH, SPARSE, KEEP, GROUP, N,
    )  # fmt: skip


@triton.jit
def pass_parts(
    g, x, facts, measured, out, outer, n, inner, block, runs, parts, part_size,
    PASS: tl.constexpr, RULE: tl.constexpr, MEASURE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    SPARSE: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr, R: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One pass over the parts of long blocks: fill out (4, blocks, parts) with what it measures or adds up."""
    unit, line, start, size, part = blocks_of(outer, n, inner, block, runs, parts, R, COLUMNS)
    exists = size > 0
    tau, last, lo = fact(facts, unit, TAU, exists), fact(facts, unit, LAST, exists), part * part_size
    blocks = outer * runs * inner
    if PASS == MEASURE_PASS:
        a, b, c, d = measure_range(
            x, line, start, size, n, inner, tau, last, lo, part_size, MEASURE, SPARSE, KEEP, GROUP, R, N
        )  # fmt: skip
    elif PASS == DEVIATE_PASS:
        count = tl.load(measured + unit, mask=exists, other=1.0)
        mean = tl.load(measured + blocks + unit, mask=exists, other=0.0) / count
        a = about_range(x, line, start, size, inner, mean, lo, part_size, R, N)
        b, c, d = a, a, a
    else:
        a, b, c, d = sum_range(
            g, x, line, start, size, n, inner, tau, last, fact(facts, unit, ORIGIN, exists),
            fact(facts, unit, SLOPE, exists), lo, part_size, PASS == GRADIENT_PASS,
            RULE, LOW, HIGH, SPARSE, KEEP, GROUP, R, N,
        )  # fmt: skip
    into, across = out + tl.cast(unit, tl.int64) * parts + part, tl.cast(blocks, tl.int64) * parts
    tl.store(into, a, mask=exists)
    tl.store(into + across, b, mask=exists)
    tl.store(into + 2 * across, c, mask=exists)
    tl.store(into + 3 * across, d, mask=exists)


@triton.jit
def join_place(
    measured, about, facts, blocks,
    RULE: tl.constexpr, MEASURE: tl.constexpr, LEVELS: tl.constexpr, STEP: tl.constexpr, LOW: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Origin and slope of long blocks from what was measured, (4, blocks)."""
    unit = tl.program_id(0) * R + tl.arange(0, R)
    exists = unit < blocks
    count, total = (
        tl.load(measured + unit, mask=exists, other=1.0),
        tl.load(measured + blocks + unit, mask=exists, other=0.0),
    )
    low = tl.load(measured + 2 * blocks + unit, mask=exists, other=0.0)
    high = tl.load(measured + 3 * blocks + unit, mask=exists, other=0.0)
    away = tl.load(about + unit, mask=exists, other=0.0)
    origin, slope = place_of(count, total, low, high, away, RULE, MEASURE, LEVELS, STEP, LOW)
    set_fact(facts, unit, ORIGIN, origin, exists)
    set_fact(facts, unit, SLOPE, slope, exists)
    set_fact(facts, unit, STAY, count, exists)


@triton.jit
def join_sums(sums, counts, facts, blocks, lam: "fp64", LINEAR: tl.constexpr, R: tl.constexpr):
    """The ridge of long blocks from Σx, Σq, Σq², Σxq, (4, blocks)."""
    unit = tl.program_id(0) * R + tl.arange(0, R)
    exists = unit < blocks
    count, x = tl.load(counts + unit, mask=exists, other=1.0), tl.load(sums + unit, mask=exists, other=0.0)
    q = tl.load(sums + blocks + unit, mask=exists, other=0.0)
    qq = tl.load(sums + 2 * blocks + unit, mask=exists, other=0.0)
    xq = tl.load(sums + 3 * blocks + unit, mask=exists, other=0.0)
    solve_block(facts, unit, count, fact(facts, unit, STAY, exists), x, q, qq, xq, lam, exists, LINEAR)


@triton.jit
def finish_parts(
    g, x, facts, sums, out, outer, n, inner, block, runs, parts, part_size, lam: "fp64",
    MODE: tl.constexpr, RULE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, SPARSE: tl.constexpr,
    KEEP: tl.constexpr, GROUP: tl.constexpr, LINEAR: tl.constexpr, R: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The last pass over long blocks: x̂ (MAP), or with ``sums`` of G (4, blocks) dL/dx of the ridge."""
    unit, line, start, size, part = blocks_of(outer, n, inner, block, runs, parts, R, COLUMNS)
    exists = size > 0
    tau, last = fact(facts, unit, TAU, exists), fact(facts, unit, LAST, exists)
    origin, slope = fact(facts, unit, ORIGIN, exists), fact(facts, unit, SLOPE, exists)
    s, offset = fact(facts, unit, S, exists), fact(facts, unit, OFFSET, exists)
    f0, f1, f2, f3 = s, s, s, offset
    if MODE >= RIDGE:
        sum_g = tl.load(sums + unit, mask=exists, other=0.0)
        sum_gq = tl.load(sums + 3 * outer * runs * inner + unit, mask=exists, other=0.0)
        f0, f1, f2, f3 = solve_gradient(facts, unit, sum_g, sum_gq, slope, lam, exists, LINEAR, MODE)
    finish_range(
        g, x, out, line, start, size, n, inner, tau, last, origin, slope, f0, f1, f2, f3, lam, lam, lam,
        part * part_size, part_size, MODE, RULE, LOW, HIGH, SPARSE, KEEP, GROUP, N,
    )  # fmt: skip
