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
from tbnn.ops.lif.backward import adjoint_row, clear_row, membrane_adjoint_row, membrane_share, second_share
from tbnn.ops.lif.rows import (
    BETA,
    FROM_SPIKE,
    GAIN,
    THRESHOLD,
    WITHOUT_SECOND,
    ZERO,
    Array,
    above_row,
    level_row,
    state_row,
)
from tbnn.ops.lif.target import SURROGATE, fired_row, q_row, slope_row, x_rows
from tbnn.ops.recurrent_lif.product import ROWS, TILE, build_tables, look_up, multiply

LOOKUP, DENSE, PLAIN = 0, 1, 2
GROUPS = 8  # tables of a word of weight bits
WORDS = 4  # of weight bits whose tables are made at once: those of ROWS rows stay in the nearest cache
SUMS = 6  # Σx, Σq, Σq², Σxq, ΣG, ΣGq
BUFFERS = 6  # rows of a task's own

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
    ratios: Array
    """(planes,): half of a plane's factor, as a multiple of the plane's before: ``value = Σ_j ±half_j + constant``."""
    scale: Array
    """(N,)"""
    rest: Array
    """(N,): scale·constant + offset, the same for every input; (0,) where that is 0."""
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
    """(tasks, ROWS, 8·WORDS, 16)"""
    grad: Array
    """(tasks, ROWS, whole tiles): the gradient of what left the neurons"""
    buffers: Array
    """(tasks, BUFFERS, N)"""
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
def through_tables(adjoint, rows, scaled, tables, place, stride):  # pyright: ignore
    """Add rows of ``scaled`` times the weights' bits to the rows at the address ``place``."""
    tiles, words, features = adjoint.bits.shape[1], adjoint.bits.shape[2], adjoint.scale.size
    for plane in range(adjoint.ratios.size):
        ratio = adjoint.ratios[plane]
        for s in range(rows):
            a = scaled[s, :features]
            for n in range(features):
                a[n] *= ratio
        for word in range(0, words, WORDS):
            some = min(WORDS, words - word)
            for s in range(rows):
                build_tables(scaled[s, 32 * word :].ctypes.data, GROUPS * some, tables[s].ctypes.data)
            for tile in range(tiles):
                look_up(
                    tables.ctypes.data, tables.strides[0], adjoint.bits[plane, tile, word].ctypes.data, some,
                    place + 4 * TILE * tile, stride,
                )  # fmt: skip


@device_function
def through_feedback(dcurrent, first, adjoint, scaled, tables, out):  # pyright: ignore
    """out (ROWS, whole tiles): samples first … of dcurrent (B, N) times Ŵ; rows past the batch are of no meaning."""
    batch, features = dcurrent.shape
    rows = min(ROWS, batch - first)
    for s in range(rows):
        out[s] = sum_product(dcurrent[first + s], adjoint.rest) if adjoint.rest.size > 0 else 0.0
    if adjoint.kind == PLAIN:
        for s in range(rows):
            d, total = dcurrent[first + s], out[s]
            for n in range(features):
                dn, w = d[n], adjoint.weight[n]
                for k in range(total.size):
                    total[k] += dn * w[k]
        return
    for s in range(rows):
        d, a = dcurrent[first + s], scaled[s, :features]
        if adjoint.kind == LOOKUP:
            for n in range(features):
                a[n] = d[n] * adjoint.scale[n]
        else:
            a[:] = d
    place, stride = out.ctypes.data, out.strides[0]
    if adjoint.kind == LOOKUP:
        through_tables(adjoint, rows, scaled, tables, place, stride)
        return
    for tile in range(out.shape[1] // TILE):
        multiply(
            scaled.ctypes.data, scaled.strides[0], adjoint.weight[0, tile * TILE :].ctypes.data,
            adjoint.weight.strides[0], features, place + 4 * TILE * tile, stride,
        )  # fmt: skip


@device_function
def prepare_row(estimator, layer, real, driven, spikes, grad, t, b, buffer, x, q, slope, sums):  # pyright: ignore
    """x, q, dx/dlevel and the block's sums of one sample; of a bare surrogate its derivative alone."""
    coefficients, n = layer.coefficients, grad.size
    beta, threshold, gain = coefficients[BETA], coefficients[THRESHOLD], coefficients[GAIN]
    level = driven.steps[0, t, b]
    if coefficients.shape[0] > WITHOUT_SECOND:
        level = level_row(driven, coefficients, t, b, 0, n, buffer)
    if estimator.kind == SURROGATE:
        slope_row(level, threshold, estimator.shape, estimator.parameter, estimator.extra, slope)
        return
    # The derivative's row is free until x_rows fills it.
    q_row(
        estimator.kind, real.steps[0, t, b], level, beta, threshold, gain, real, driven, spikes, coefficients, t, b, 0,
        slope, q,
    )  # fmt: skip
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
def finish_row(layer, real, driven, spikes, current, learn, du, t, b, buffers, carry, totals, d):  # pyright: ignore
    """d, the gradient of a step's current, from du, the level's; carry goes on to the step before."""
    coefficients, n = layer.coefficients, du.size
    second, reset = coefficients.shape[0] > WITHOUT_SECOND, layer.reset
    dv, dw, fired, spare, cleared = buffers[1], buffers[2], buffers[3], buffers[4], buffers[5]
    if reset == ZERO or learn[THRESHOLD] or learn[FROM_SPIKE]:
        if second or spikes.steps.shape[1] > 0:
            fired_row(spikes, real, coefficients, t - 1, b, 0, n, spare, fired)
        else:
            above_row(state_row(real, 0, t - 1, b, 0, n), coefficients[THRESHOLD], fired)
    if second:
        adjoint_row(du, coefficients, 0, carry[0, b], carry[1, b], dv, dw, d)
    else:
        membrane_adjoint_row(du, coefficients[BETA], carry[0, b], d)
    if reset == ZERO:
        clear_row(fired, carry[0, b])
    if not learn.any():
        return
    kept, level = state_row(driven, 0, t - 1, b, 0, n), driven.steps[0, t, b]
    if reset == ZERO:
        cleared[:] = kept
        clear_row(fired, cleared)
        kept = cleared
    if not second:
        membrane_share(learn, reset, level, kept, fired, du, d, b, 0, totals)
        return
    level = level_row(driven, coefficients, t, b, 0, n, spare)
    membrane_share(learn, reset, level, kept, fired, du, dv, b, 0, totals)
    current_t = current[t, b] if current.shape[0] > 0 else spare
    w_before, w = state_row(driven, 1, t - 1, b, 0, n), driven.steps[1, t, b]
    second_share(learn, kept, w_before, w, fired, current_t, du, dv, dw, b, 0, totals)


@device_function
def output_gradient(grad, dafter, left, t, b, out):  # pyright: ignore
    """Add the gradients of the output at step t and, ``left`` steps before the end's delay, of the spikes on their way."""
    own = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0]
    for f in range(out.size):
        out[f] += own[f]
    if left >= 0:
        end = dafter[left, b]
        for f in range(out.size):
            out[f] += end[f]


@kernel
def recurrent_backward(
    estimator, ridge, layer, real, driven, spikes, current, adjoint, grad, dafter, ends, learn, scratch, carry, totals,
    dbias, window,
):  # pyright: ignore  # fmt: skip
    """Walk some steps backwards: window (t + delay, B, N), the gradient of the current at them and, given, at those after.

    grad (1 or t, 1 or B, N) is the output's gradient, dafter (delay, B, N) that of the spikes on their way after ``ends``
    (B,), the number of steps from the first one to a sequence's end. carry (1 or 2, B, N) enters as the later states'
    gradient, leaves as the earlier's. Added up: totals (0, 3 or 10, B, N), the coefficients' gradients, and dbias (B, N).
    Other arguments as :func:`tbnn.ops.lif.backward.scan_backward`'s.
    """
    steps, batch, features = real.steps.shape[1:]
    delay = window.shape[0] - steps
    factors = (0.0, 0.0, 0.0, 0.0)
    for t in range(steps - 1, -2, -1):
        for task in prange((batch + ROWS - 1) // ROWS):
            first, last = task * ROWS, min(task * ROWS + ROWS, batch)
            g, buffers = scratch.grad[task], scratch.buffers[task]
            if t + 1 < steps:  # the step after is finished, now that its statistics are known
                for b in range(first, last):
                    d = window[t + 1, b]
                    if t + 1 >= layer.lengths[b]:
                        for f in range(features):
                            d[f] = 0
                        continue
                    out, du = g[b - first, :features], buffers[0]
                    level_adjoint(estimator.kind, factors, out, scratch.x[b], scratch.q[b], scratch.slope[b], du)
                    finish_row(
                        layer, real, driven, spikes, current, learn, du, t + 1, b, buffers, carry, totals, d
                    )  # fmt: skip
                    total = dbias[b]
                    for f in range(features):
                        total[f] += d[f]
            if t < 0:
                continue
            through_feedback(window[t + delay], first, adjoint, scratch.scaled[task], scratch.tables[task], g)
            for b in range(first, last):
                for k in range(SUMS):
                    scratch.sums[b, k] = 0
                if t >= layer.lengths[b]:
                    continue
                out, left = g[b - first, :features], t + delay - ends[b]
                output_gradient(grad, dafter, left, t, b, out)
                prepare_row(
                    estimator, layer, real, driven, spikes, out, t, b, buffers[0], scratch.x[b], scratch.q[b],
                    scratch.slope[b], scratch.sums[b],
                )  # fmt: skip
        alive = 0
        for b in range(batch):
            alive += 1 if t < layer.lengths[b] else 0
        factors = factors_of(estimator.kind, scratch.sums, float(max(alive, 1) * features), ridge)
