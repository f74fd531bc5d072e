# pyright: reportCallIssue=false
"""The gradient of a recurrent layer on the CPU: one walk backwards in time, the feedback's product within it.

The gradient of what leaves at step t is the output's own and, one delay later, the current's through the feedback. A step's
ridge statistics run over its batch and neurons, so samples meet once a step; else a task keeps its few samples to itself.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tbnn.ops.ddt import closed_form
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.lif.backward import clear_row, membrane_adjoint_row, membrane_share
from tbnn.ops.lif.cpu import BETA, GAIN, THRESHOLD, ZERO, Array, above_row
from tbnn.ops.lif.target import SURROGATE, TRACE, slope_row, x_rows
from tbnn.ops.recurrent_lif.product import ROWS, TILE, build_tables, look_up, multiply

LOOKUP, DENSE, PLAIN = 0, 1, 2
GROUPS = 8  # tables of a word of weight bits
SUMS = 6  # Σx, Σq, Σq², Σxq, ΣG, ΣGq

_denominator = device_function(closed_form.denominator_of)
_ridge = device_function(closed_form.ridge_of)
_slope_gradient = device_function(closed_form.slope_gradient_of)
_constants = device_function(closed_form.constants_of)


class Adjoint(NamedTuple):
    """The feedback's weights as the backward pass multiplies by them."""

    kind: int
    """LOOKUP: by ``bits``; DENSE: by ``weight`` in vectors of float32; PLAIN: by ``weight`` in loops."""
    bits: Array
    """(planes, tiles, words, TILE) uint32: bit i of word j is that of output 32·j + i."""
    factors: Array
    """(planes,): ``value = Σ_j factors_j·bit_j + constant``."""
    scale: Array
    """(N,)"""
    rest: Array
    """(N,): scale·constant + offset, the same for every input."""
    weight: Array
    """(N, whole tiles)"""


class Ridge(NamedTuple):
    """The estimator's numbers."""

    lam: float
    scale: float
    full: bool
    """Whether slope and means are differentiated."""


class Scratch(NamedTuple):
    """Memory of the walk, a task's or a sample's each."""

    scaled: Array
    """(tasks, ROWS, 32·words)"""
    tables: Array
    """(tasks, ROWS, 8·words, 16)"""
    grad: Array
    """(tasks, ROWS, whole tiles): the gradient of what left the neurons"""
    x: Array
    q: Array
    slope: Array
    """(B, N) each: the DDT's pair and dx/dlevel"""
    sums: Array
    """(B, SUMS)"""


@device_function
def sum_product(a, b):  # pyright: ignore
    """Σa·b in float64, in eight lanes."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = a.size // 8 * 8
    for f in range(0, whole, 8):
        s0 += np.float64(a[f]) * np.float64(b[f])
        s1 += np.float64(a[f + 1]) * np.float64(b[f + 1])
        s2 += np.float64(a[f + 2]) * np.float64(b[f + 2])
        s3 += np.float64(a[f + 3]) * np.float64(b[f + 3])
        s4 += np.float64(a[f + 4]) * np.float64(b[f + 4])
        s5 += np.float64(a[f + 5]) * np.float64(b[f + 5])
        s6 += np.float64(a[f + 6]) * np.float64(b[f + 6])
        s7 += np.float64(a[f + 7]) * np.float64(b[f + 7])
    for f in range(whole, a.size):
        s0 += np.float64(a[f]) * np.float64(b[f])
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@device_function
def through_feedback(dcurrent, first, adjoint, scaled, tables, out):  # pyright: ignore
    """out (ROWS, whole tiles): samples first … of dcurrent (B, N) times Ŵ; rows past the batch are of no meaning."""
    batch, features = dcurrent.shape
    rows = min(ROWS, batch - first)
    for s in range(rows):
        out[s] = sum_product(dcurrent[first + s], adjoint.rest) if adjoint.kind == LOOKUP else 0.0
    if adjoint.kind == PLAIN:
        for s in range(rows):
            d, total = dcurrent[first + s], out[s]
            for n in range(features):
                dn, w = d[n], adjoint.weight[n]
                for k in range(total.size):
                    total[k] += dn * w[k]
        return
    for s in range(rows):
        d, a = dcurrent[first + s], scaled[s]
        if adjoint.kind == LOOKUP:
            for n in range(features):
                a[n] = d[n] * adjoint.scale[n]
        else:
            a[:features] = d
    place, stride = out.ctypes.data, out.strides[0]
    tiles = out.shape[1] // TILE
    if adjoint.kind == DENSE:
        for tile in range(tiles):
            multiply(
                scaled.ctypes.data, scaled.strides[0], adjoint.weight[0, tile * TILE :].ctypes.data,
                adjoint.weight.strides[0], features, place + 4 * TILE * tile, stride,
            )  # fmt: skip
        return
    words = adjoint.bits.shape[2]
    for plane in range(adjoint.factors.size):
        ratio = adjoint.factors[plane] / (adjoint.factors[plane - 1] if plane > 0 else adjoint.factors.dtype.type(1))
        for s in range(rows):
            a = scaled[s]
            for n in range(features):
                a[n] *= ratio
            build_tables(a.ctypes.data, GROUPS * words, tables[s].ctypes.data)
        for tile in range(tiles):
            look_up(
                tables.ctypes.data, tables.strides[0], adjoint.bits[plane, tile].ctypes.data, words,
                place + 4 * TILE * tile, stride,
            )  # fmt: skip


@device_function
def pair_rows(estimator, coefficients, v, level, grad, x, q, slope, sums):  # pyright: ignore
    """x, q, dx/dlevel and the block's sums of one sample; of a bare surrogate its derivative alone."""
    beta, threshold, gain = coefficients[BETA], coefficients[THRESHOLD], coefficients[GAIN]
    if estimator.kind == SURROGATE:
        slope_row(level, threshold, estimator.shape, estimator.parameter, slope)
        return
    above_row(v, threshold, q)
    if estimator.kind == TRACE:
        for f in range(q.size):
            q[f] = gain[f] * (beta[f] * (level[f] - v[f]) + threshold[f] * q[f])
    x_rows(estimator, level, threshold, gain, x, slope)
    one = np.ones(1, x.dtype)
    ones = np.broadcast_to(one, x.shape)
    sums[0], sums[1], sums[2] = sum_product(x, ones), sum_product(q, ones), sum_product(q, q)
    sums[3], sums[4], sums[5] = sum_product(x, q), sum_product(grad, ones), sum_product(grad, q)


@device_function
def factors_of(kind, sums, count, ridge):  # pyright: ignore
    """k0, kG, kx, kq of a step, from its samples' sums (B, SUMS), ``count`` values in all."""
    if kind == SURROGATE:
        return 0.0, ridge.scale, 0.0, 0.0
    x = q = qq = xq = g = gq = 0.0
    for b in range(sums.shape[0]):
        x, q, qq = x + sums[b, 0], q + sums[b, 1], qq + sums[b, 2]
        xq, g, gq = xq + sums[b, 3], g + sums[b, 4], gq + sums[b, 5]
    denominator = _denominator(count, q, qq, ridge.lam, False)
    s = _ridge(count, x, q, xq, denominator, False)[0]
    if not ridge.full:
        return 0.0, ridge.scale * s, 0.0, 0.0
    r = _slope_gradient(count, q, g, gq, denominator, False)
    x_const, q_const = _constants(count, x, q, g, s, r, False)
    return ridge.scale * (x_const + q_const), ridge.scale * s, ridge.scale * r, ridge.scale * (r - 2 * s * r)


@device_function
def level_adjoint(kind, factors, grad, x, q, slope, du):  # pyright: ignore
    """du, the gradient that a step's output sends into the level."""
    k0, kg, kx, kq = (
        du.dtype.type(factors[0]), du.dtype.type(factors[1]), du.dtype.type(factors[2]), du.dtype.type(factors[3])
    )  # fmt: skip
    if kind == SURROGATE:
        for f in range(du.size):
            du[f] = kg * grad[f] * slope[f]
    else:
        for f in range(du.size):
            du[f] = slope[f] * (k0 + kg * grad[f] + kx * x[f] + kq * q[f])


@device_function
def neuron_adjoint(coefficients, reset, learn, before, level, kept, du, fired, carry, b, totals, d):  # pyright: ignore
    """d, the gradient of a step's current; carry goes on to the step before. ``before`` is v then, ``kept`` the driven state."""
    membrane_adjoint_row(du, coefficients[BETA], carry, d)
    if reset == ZERO or learn[THRESHOLD]:
        above_row(before, coefficients[THRESHOLD], fired)
    if reset == ZERO:
        clear_row(fired, carry)
    if learn.any():
        if reset == ZERO:
            kept = kept.copy()
            clear_row(fired, kept)
        membrane_share(learn, reset, level, kept, fired, du, d, b, 0, totals)


@kernel
def recurrent_backward(
    estimator, ridge, coefficients, reset, adjoint, start, v, driven_start, driven, grad, dlast, learn, scratch,
    carry, totals, dpast, dbias, dcurrent,
):  # pyright: ignore  # fmt: skip
    """Walk time backwards: dcurrent (T, B, N), dpast (delay, B, N), the gradient of the spikes that were on their way.

    grad (1 or T, 1 or B, N) is the output's gradient, dlast (delay, B, N) that of the spikes left on their way. driven
    (T, B, N) are the traces with TRACE, else v. carry (B, N) enters as the final state's gradient, leaves as the first's.
    Added up: totals (0 or 3, B, N), the coefficients' gradients, and dbias (B, N).
    """
    steps, batch, features = v.shape
    delay, count = dpast.shape[0], float(batch * features)
    factors = (0.0, 0.0, 0.0, 0.0)
    for place in range(steps + delay - 1, -1, -1):  # of a spike among those on their way and the sequence's
        t, later = place - delay, place + 1 - delay
        for task in prange((batch + ROWS - 1) // ROWS):
            first, g = task * ROWS, scratch.grad[task]
            if 0 <= later < steps:  # the step after is finished, now that its statistics are known
                du, fired = np.empty(features, v.dtype), np.empty(features, v.dtype)
                for b in range(first, min(first + ROWS, batch)):
                    out, d, total = g[b - first, :features], dcurrent[later, b], dbias[b]
                    level_adjoint(estimator.kind, factors, out, scratch.x[b], scratch.q[b], scratch.slope[b], du)
                    before = start[b] if later == 0 else v[later - 1, b]
                    kept = driven_start[b] if later == 0 else driven[later - 1, b]
                    neuron_adjoint(
                        coefficients, reset, learn, before, driven[later, b], kept, du, fired, carry[b], b, totals, d
                    )
                    for f in range(features):
                        total[f] += d[f]
            if place < steps:
                through_feedback(dcurrent[place], first, adjoint, scratch.scaled[task], scratch.tables[task], g)
            else:
                g[:] = 0
            for b in range(first, min(first + ROWS, batch)):
                out = g[b - first, :features]
                if place >= steps:
                    end = dlast[place - steps, b]
                    for f in range(features):
                        out[f] += end[f]
                if t < 0:
                    dpast[place, b] = out
                    continue
                own = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0]
                for f in range(features):
                    out[f] += own[f]
                pair_rows(
                    estimator, coefficients, v[t, b], driven[t, b], out, scratch.x[b], scratch.q[b], scratch.slope[b],
                    scratch.sums[b],
                )  # fmt: skip
        factors = factors_of(estimator.kind, scratch.sums, count, ridge)
