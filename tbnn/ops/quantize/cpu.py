"""Quantisation on the CPU: numba kernels over whole blocks, and over the parts of a long one.

Data are (outer, n, inner). Where inner is 1 a block is contiguous; elsewhere a tile of neighbouring columns are gathered
into rows first. Of a block only a few numbers are kept, ``facts`` (outer, runs, inner, FACTS): q is computed again.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.quantize.grid import SPREAD, Scheme
from tbnn.ops.quantize.parts import (
    ABOUT,
    COUNT,
    FACTS,
    KEPT,
    LAST,
    MAP,
    MEASURES,
    MODES,
    OFFSET,
    ORIGIN,
    PART,
    QUARTER,
    RIDGE,
    SLOPE,
    SUM_X,
    TAU,
    TOTAL,
    S,
    about_part,
    code_part,
    finish_part,
    gradient_sum_part,
    join_measure,
    mask_part,
    masked,
    measure_part,
    place,
    solve,
    solve_gradient,
    start_measure,
    sum_part,
)
from tbnn.ops.quantize.select import LONG, gather, scatter, thresholds, tile_of
from tbnn.ops.quantize.sparsify import Sparsity, kept_of

Array = npt.NDArray[Any]

CHUNK = 1 << 12  # values that one task takes at least, so that its scratch memory costs little

MEASURE, DEVIATE, SUM, GRADIENT = range(4)  # passes over the parts of long blocks


@device_function
def measure_kept(row, lo, at, end, scheme, fact, kept, spare, buffer, m):  # pyright: ignore
    """Mask and measurement of row[at:end], a part of the block that starts at ``lo``."""
    if scheme.sparse:
        mask_part(row, at, end, at - lo, scheme, fact[TAU], fact[LAST], kept)
        count = masked(row[at:end], kept, spare)
        measure_part(spare[: end - at], scheme, buffer, m)
        m[KEPT] = count
    else:
        measure_part(row[at:end], scheme, buffer, m)


@device_function
def code_again(row, lo, at, end, scheme, fact, kept, q):  # pyright: ignore
    """Mask and codes of row[at:end], a part of the block that starts at ``lo``."""
    if scheme.sparse:
        mask_part(row, at, end, at - lo, scheme, fact[TAU], fact[LAST], kept)
    code_part(row[at:end], kept, scheme, fact[ORIGIN], fact[SLOPE], q)


@device_function
def forward_block(row, out, lo, hi, scheme, fact, kept, q, buffer, numbers):  # pyright: ignore
    """The block row[lo:hi]: fill its facts and out[lo:hi] with x̂."""
    m, part, factors = numbers[:MEASURES], numbers[MEASURES : 2 * MEASURES], numbers[2 * MEASURES :]
    start_measure(m)
    for at in range(lo, hi, PART):
        end = min(at + PART, hi)
        measure_kept(row, lo, at, end, scheme, fact, kept, q, buffer, part)
        join_measure(m, part)
    if scheme.measure == SPREAD:
        for at in range(lo, hi, PART):
            m[ABOUT] += about_part(row[at : min(at + PART, hi)], m[TOTAL] / m[KEPT], buffer)
    place(m, scheme, fact)
    fact[COUNT] = hi - lo
    fact[SUM_X : SUM_X + 4] = 0.0
    for at in range(lo, hi, PART):
        end = min(at + PART, hi)
        if hi - lo > PART:
            code_again(row, lo, at, end, scheme, fact, kept, q)
        else:
            code_part(row[at:end], kept, scheme, fact[ORIGIN], fact[SLOPE], q)
        sum_part(row[at:end], q, buffer, fact[SUM_X : SUM_X + 4])
    solve(fact, scheme)
    factors[2], factors[3] = fact[S], fact[OFFSET]
    for at in range(lo, hi, PART):
        end = min(at + PART, hi)
        if hi - lo > PART:
            code_again(row, lo, at, end, scheme, fact, kept, q)
        finish_part(MAP, (0.0, 0.0, 0.0), scheme, fact, factors, kept, q, row[at:end], q, out[at:end])


@device_function
def backward_block(g, row, out, lo, hi, scheme, fact, mode, settings, kept, q, buffer, numbers):  # pyright: ignore
    """The block row[lo:hi] again: fill out[lo:hi] with what ``mode`` says, dL/dx from G for one. out may be g."""
    sums, factors = numbers[:2], numbers[2 * MEASURES :]
    sums[:] = 0.0
    factors[2], factors[3] = settings[0], settings[1]
    for at in range(lo, hi, PART):
        end = min(at + PART, hi)
        if mode >= RIDGE or hi - lo <= PART:
            code_again(row, lo, at, end, scheme, fact, kept, q)
        if mode >= RIDGE:
            gradient_sum_part(g[at:end], q, buffer, sums)
    if mode >= RIDGE:
        solve_gradient(mode, fact, sums, scheme, factors)
    for at in range(lo, hi, PART):
        end = min(at + PART, hi)
        if hi - lo > PART:
            code_again(row, lo, at, end, scheme, fact, kept, q)
        finish_part(mode, settings, scheme, fact, factors, kept, g[at:end], row[at:end], q, out[at:end])


@kernel
def _forward_rows(x, n, block, chunk, scheme, facts, out):  # pyright: ignore
    """Every block of x, out (outer·n,); facts (outer, runs, 1, FACTS)."""
    runs = facts.shape[1]
    blocks = facts.shape[0] * runs
    for task in prange((blocks + chunk - 1) // chunk):
        size = min(block, PART)
        q, kept = np.empty(size, x.dtype), np.empty(size, np.uint8)
        buffer, numbers = np.empty(4 * QUARTER), np.empty(2 * MEASURES + 4)
        for b in range(task * chunk, min((task + 1) * chunk, blocks)):
            o, r = b // runs, b % runs
            row, target = x[o * n : (o + 1) * n], out[o * n : (o + 1) * n]
            lo, hi = r * block, min((r + 1) * block, n)
            forward_block(row, target, lo, hi, scheme, facts[o, r, 0], kept, q, buffer, numbers)


@kernel
def _forward_columns(x, block, tile, scheme, facts, out):  # pyright: ignore
    """Every block of x, out (outer, n, inner), ``tile`` columns at a time."""
    outer, n, inner = x.shape
    tiles = (inner + tile - 1) // tile
    for task in prange(outer * tiles):
        o, first = task // tiles, task % tiles * tile
        width, size = min(tile, inner - first), min(block, PART)
        q, kept = np.empty(size, x.dtype), np.empty(size, np.uint8)
        buffer, numbers = np.empty(4 * QUARTER), np.empty(2 * MEASURES + 4)
        rows = np.empty((width, n + 16), x.dtype)  # rows of a power of two would share lines of the cache
        target = rows if scheme.group == 0 else np.empty((width, n + 16), x.dtype)  # N:M looks across parts
        gather(x[o], first, rows)
        for i in range(width):
            for r in range(facts.shape[1]):
                lo, hi = r * block, min((r + 1) * block, n)
                fact = facts[o, r, first + i]
                forward_block(rows[i, :n], target[i, :n], lo, hi, scheme, fact, kept, q, buffer, numbers)
        scatter(target, out[o], first)


@kernel
def _backward_rows(g, x, n, block, chunk, scheme, facts, mode, settings, out):  # pyright: ignore
    """:func:`backward_block` on every block of g, x, out (outer·n,)."""
    runs = facts.shape[1]
    blocks = facts.shape[0] * runs
    for task in prange((blocks + chunk - 1) // chunk):
        size = min(block, PART)
        q, kept = np.empty(size, x.dtype), np.empty(size, np.uint8)
        buffer, numbers = np.empty(4 * QUARTER), np.empty(2 * MEASURES + 4)
        for b in range(task * chunk, min((task + 1) * chunk, blocks)):
            o, r = b // runs, b % runs
            at, to = o * n, (o + 1) * n
            lo, hi = r * block, min((r + 1) * block, n)
            backward_block(
                g[at:to], x[at:to], out[at:to], lo, hi, scheme, facts[o, r, 0], mode, settings, kept, q, buffer, numbers
            )


@kernel
def _backward_columns(g, x, block, tile, scheme, facts, mode, settings, out):  # pyright: ignore
    """:func:`backward_block` on every block of g, x, out (outer, n, inner), ``tile`` columns at a time."""
    outer, n, inner = x.shape
    tiles = (inner + tile - 1) // tile
    for task in prange(outer * tiles):
        o, first = task // tiles, task % tiles * tile
        width, size = min(tile, inner - first), min(block, PART)
        q, kept = np.empty(size, x.dtype), np.empty(size, np.uint8)
        buffer, numbers = np.empty(4 * QUARTER), np.empty(2 * MEASURES + 4)
        rows, grads = np.empty((width, n + 16), x.dtype), np.empty((width, n + 16), x.dtype)
        gather(x[o], first, rows)
        gather(g[o], first, grads)
        for i in range(width):
            for r in range(facts.shape[1]):
                lo, hi, fact = r * block, min((r + 1) * block, n), facts[o, r, first + i]
                backward_block(
                    grads[i, :n],
                    rows[i, :n],
                    grads[i, :n],
                    lo,
                    hi,
                    scheme,
                    fact,
                    mode,
                    settings,
                    kept,
                    q,
                    buffer,
                    numbers,
                )
        scatter(grads, out[o], first)


@kernel
def _pass_long(g, x, n, block, scheme, facts, measured, what, parts):  # pyright: ignore
    """One pass over the parts of long blocks of x (outer·n,): fill ``parts`` (outer, runs, parts, MEASURES)."""
    outer, runs, pieces = parts.shape[:3]
    for task in prange(outer * runs * pieces):
        o, r, p = task // (runs * pieces), task // pieces % runs, task % pieces
        lo, hi = r * block, min((r + 1) * block, n)
        at, end = lo + p * PART, min(lo + (p + 1) * PART, hi)
        into, fact = parts[o, r, p], facts[o, r, 0]
        into[:] = 0.0
        if at < end:
            q, kept, buffer = np.empty(PART, x.dtype), np.empty(PART, np.uint8), np.empty(4 * QUARTER)
            row = x[o * n : (o + 1) * n]
            if what == MEASURE:
                measure_kept(row, lo, at, end, scheme, fact, kept, q, buffer, into)
            elif what == DEVIATE:
                into[ABOUT] = about_part(row[at:end], measured[o, r, TOTAL] / measured[o, r, KEPT], buffer)
            else:
                code_again(row, lo, at, end, scheme, fact, kept, q)
                if what == SUM:
                    sum_part(row[at:end], q, buffer, into[:4])
                else:
                    gradient_sum_part(g[o * n + at : o * n + end], q, buffer, into[:2])
        else:
            start_measure(into)


@kernel
def _join_long(parts, n, block, scheme, facts, measured, what, mode, factors):  # pyright: ignore
    """Add up the parts of each long block, in order, and solve what the pass was for."""
    outer, runs, pieces = parts.shape[:3]
    for task in prange(outer * runs):
        o, r = task // runs, task % runs
        fact, m, sums = facts[o, r, 0], measured[o, r], np.zeros(MEASURES)
        if what == MEASURE:
            start_measure(m)
            for p in range(pieces):
                join_measure(m, parts[o, r, p])
        else:
            for p in range(pieces):
                sums += parts[o, r, p]
        if what == DEVIATE:
            m[ABOUT] = sums[ABOUT]
        elif what == SUM:
            fact[COUNT] = min((r + 1) * block, n) - r * block
            fact[SUM_X : SUM_X + 4] = sums[:4]
            solve(fact, scheme)
            factors[o, r, 2], factors[o, r, 3] = fact[S], fact[OFFSET]
        elif what == GRADIENT:
            solve_gradient(mode, fact, sums[:2], scheme, factors[o, r])
        if what == DEVIATE or (what == MEASURE and scheme.measure != SPREAD):
            place(m, scheme, fact)


@kernel
def _finish_long(g, x, n, block, pieces, scheme, facts, factors, mode, settings, out):  # pyright: ignore
    """What leaves the parts of long blocks of x, out (outer·n,)."""
    outer, runs = facts.shape[:2]
    for task in prange(outer * runs * pieces):
        o, r, p = task // (runs * pieces), task // pieces % runs, task % pieces
        lo, hi = r * block, min((r + 1) * block, n)
        at, end = lo + p * PART, min(lo + (p + 1) * PART, hi)
        if at < end:
            q, kept = np.empty(PART, x.dtype), np.empty(PART, np.uint8)
            fact = facts[o, r, 0]
            code_again(x[o * n : (o + 1) * n], lo, at, end, scheme, fact, kept, q)
            a, b = o * n + at, o * n + end
            finish_part(mode, settings, scheme, fact, factors[o, r], kept, g[a:b], x[a:b], q, out[a:b])


class _Long:
    """The passes over blocks so long that their parts are shared among the threads."""

    def __init__(self, g: Array, x: Array, block: int, scheme: Scheme, facts: Array) -> None:
        self.g, self.x, self.n, self.block, self.scheme, self.facts = g, x, x.shape[1], block, scheme, facts
        outer, runs, pieces = facts.shape[0], facts.shape[1], -(-block // PART)
        self.parts: Array = np.empty((outer, runs, pieces, MEASURES))
        self.measured, self.factors = np.empty((outer, runs, MEASURES)), np.zeros((outer, runs, 4))

    def add_up(self, what: int, mode: int = MAP) -> None:
        """One pass over the data, and what it is for; ``mode`` as in :meth:`finish`."""
        g, x, n, block, scheme = self.g.reshape(-1), self.x.reshape(-1), self.n, self.block, self.scheme
        _pass_long(g, x, n, block, scheme, self.facts, self.measured, what, self.parts, work=x.size)
        _join_long(self.parts, n, block, scheme, self.facts, self.measured, what, mode, self.factors, work=0)

    def finish(self, mode: int, settings: tuple[float, ...], out: Array) -> None:
        """The last pass, which writes ``out``."""
        g, x, pieces = self.g.reshape(-1), self.x.reshape(-1), self.parts.shape[2]
        last = (self.n, self.block, pieces, self.scheme, self.facts, self.factors, mode, settings, out.reshape(-1))
        _finish_long(g, x, *last, work=x.size)


def forward(x: Array, scheme: Scheme, sparsity: Sparsity, block: int) -> tuple[Array, Array]:
    """x̂ and the facts of every block of x (outer, n, inner), contiguous."""
    outer, n, inner = x.shape
    runs = -(-n // block)
    out, facts = np.empty_like(x), np.empty((outer, runs, inner, FACTS))
    if scheme.sparse and not scheme.group:
        facts[..., TAU], facts[..., LAST] = _cut(x, sparsity, block)
    if inner > 1:
        _forward_columns(x, block, tile_of(n), scheme, facts, out, work=x.size)
    elif block > LONG:
        long = _Long(x, x, block, scheme, facts)
        for what in (MEASURE, DEVIATE, SUM) if scheme.measure == SPREAD else (MEASURE, SUM):
            long.add_up(what)
        long.finish(MAP, (0.0, 0.0, 0.0), out)
    else:
        chunk = max(1, CHUNK // block)
        _forward_rows(x.reshape(-1), n, block, chunk, scheme, facts, out.reshape(-1), work=x.size)
    return out, facts


def _cut(x: Array, sparsity: Sparsity, block: int) -> tuple[Array, Array]:
    """(τ, last) of every block for a fraction of each ``scope``; ``last`` counts from the block's start."""
    outer, n, inner = x.shape
    runs = -(-n // block)
    sizes = [min(block, n - lo) for lo in range(0, n, block)]
    if sparsity.scope == "block":
        return thresholds(x, block, np.array([kept_of(size, sparsity.fraction) for size in sizes]))
    starts = (np.arange(runs) * block)[None, :, None]
    if sparsity.scope == "row":
        tau, last = thresholds(x, n, np.array([kept_of(n, sparsity.fraction)]))
        return tau, last - starts
    tau, last = thresholds(x.reshape(1, -1, 1), x.size, np.array([kept_of(x.size, sparsity.fraction)]))
    firsts = (np.arange(outer) * n * inner)[:, None, None] + np.arange(inner)[None, None, :]
    return tau, (last - firsts) // inner - starts


def backward(
    g: Array, x: Array, facts: Array, scheme: Scheme, estimator: str, settings: list[float], block: int
) -> Array:
    """dL/dx of contiguous x from G = dL/dx̂, each (outer, n, inner)."""
    return _again(g, x, facts, scheme, MODES[estimator], (*settings, 0.0, 0.0, 0.0)[:3], block)


def values(x: Array, facts: Array, scheme: Scheme, block: int) -> Array:
    """The codes of contiguous x (outer, n, inner) on their symmetric grid."""
    return _again(x, x, facts, scheme, MAP, (scheme.value_factor, scheme.value_shift, 0.0), block)


def _again(
    g: Array, x: Array, facts: Array, scheme: Scheme, mode: int, settings: tuple[float, ...], block: int
) -> Array:
    """Codes once more, and what ``mode`` makes of them."""
    n, inner = x.shape[1:]
    out = np.empty_like(x)
    if inner > 1:
        _backward_columns(g, x, block, tile_of(n), scheme, facts, mode, settings, out, work=x.size)
    elif block > LONG:
        long = _Long(g, x, block, scheme, facts)
        long.factors[..., 2:] = settings[:2]
        if mode >= RIDGE:
            long.add_up(GRADIENT, mode)
        long.finish(mode, settings, out)
    else:
        chunk, flat = max(1, CHUNK // block), out.reshape(-1)
        _backward_rows(g.reshape(-1), x.reshape(-1), n, block, chunk, scheme, facts, mode, settings, flat, work=x.size)
    return out
