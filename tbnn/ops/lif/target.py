"""What the DDT reconciles, a row at a time: the pair (x, q) of a spike, its slope, and the sums over a block."""

import math
from typing import NamedTuple

import numpy as np
from numba import prange

from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.lif.rows import (
    BETA,
    FROM_SPIKE,
    FROM_V,
    GAIN,
    RHO,
    THRESHOLD,
    TILE,
    TO_THRESHOLD,
    TO_V,
    WITHOUT_SECOND,
    Array,
    Course,
    Layer,
    above_row,
    level_row,
    state_row,
)
from tbnn.ops.lif.smooth import arctan_single, exp_single

SURROGATE, SOFT, TRACE, INTEGRATE = 0, 1, 2, 3
DOUBLE = 8  # bytes


class Estimator(NamedTuple):
    """What a kernel knows of a ``SpikeGradient``."""

    kind: int
    """SURROGATE, SOFT, TRACE, or INTEGRATE: the gradient of v itself."""
    shape: int = 0
    """``Surrogate.code``, and its parameter and ``extra``."""
    parameter: float = 1.0
    extra: float = 1.0
    floor: float = 0.0
    """Clip of the trace target, with ``ceiling``."""
    ceiling: float = 1.0


@device_function
def slope_row(level, threshold, shape, p, extra, w):  # pyright: ignore
    """w = the surrogate's derivative at level − θ."""
    one, half, zero = level.dtype.type(1), level.dtype.type(0.5), level.dtype.type(0)
    width, more = level.dtype.type(p), level.dtype.type(extra)
    if shape == 1:
        c = level.dtype.type(math.pi / 2 * p)
        for f in range(w.size):
            cu = c * (level[f] - threshold[f])
            w[f] = half * width / (one + cu * cu)
    elif shape == 2:
        for f in range(w.size):
            d = one + width * abs(level[f] - threshold[f])
            w[f] = one / (d * d)
    elif shape == 3 and w.itemsize == DOUBLE:
        for f in range(w.size):
            e = np.exp(-width * abs(level[f] - threshold[f]))
            w[f] = width * e / ((one + e) * (one + e))
    elif shape == 3:
        for f in range(w.size):
            e = exp_single(np.float32(-width * abs(level[f] - threshold[f])))
            w[f] = width * e / ((one + e) * (one + e))
    elif shape == 4:
        for f in range(w.size):
            w[f] = max(zero, one - abs(level[f] - threshold[f]) / width)
    elif shape == 5:
        for f in range(w.size):
            w[f] = one / width if abs(level[f] - threshold[f]) <= half * width else zero
    elif shape == 6:
        for f in range(w.size):
            w[f] = one if level[f] > threshold[f] else width
    elif shape == 7:
        for f in range(w.size):
            w[f] = -width if level[f] >= threshold[f] else width
    elif shape == 8 and w.itemsize == DOUBLE:
        for f in range(w.size):
            w[f] = more * np.exp(-width * abs(level[f] - threshold[f] - one))
    elif shape == 8:
        for f in range(w.size):
            w[f] = more * exp_single(np.float32(-width * abs(level[f] - threshold[f] - one)))
    else:
        for f in range(w.size):
            u = level[f] - threshold[f]
            d = one + width * abs(u)
            w[f] = one / (d * d) if u > more else zero


@device_function
def soft_row(level, threshold, shape, p, x):  # pyright: ignore
    """x = the soft spike at level − θ, of the shapes that have one."""
    one, half, zero = level.dtype.type(1), level.dtype.type(0.5), level.dtype.type(0)
    width, inverse_pi = level.dtype.type(p), level.dtype.type(1 / math.pi)
    c = level.dtype.type(math.pi / 2 * p)
    if shape == 1 and x.itemsize == DOUBLE:
        for f in range(x.size):
            x[f] = half + inverse_pi * np.arctan(c * (level[f] - threshold[f]))
    elif shape == 1:
        for f in range(x.size):
            x[f] = half + inverse_pi * arctan_single(np.float32(c * (level[f] - threshold[f])))
    elif shape == 2:
        for f in range(x.size):
            ku = width * (level[f] - threshold[f])
            x[f] = half + half * ku / (one + abs(ku))
    elif shape == 3 and x.itemsize == DOUBLE:
        for f in range(x.size):
            x[f] = one / (one + np.exp(-width * (level[f] - threshold[f])))
    elif shape == 3:
        for f in range(x.size):
            u = level[f] - threshold[f]
            e = exp_single(np.float32(-width * abs(u)))
            x[f] = (one if u > zero else e) / (one + e)
    elif shape == 4:
        for f in range(x.size):
            z = min(one, max(-one, (level[f] - threshold[f]) / width))
            x[f] = half + z - half * z * abs(z)
    else:
        for f in range(x.size):
            x[f] = min(one, max(zero, half + (level[f] - threshold[f]) / width))


@device_function
def fired_row(spikes, real, coefficients, t, b, lo, hi, buffer, q):  # pyright: ignore
    """q = the spikes of step t (−1: before the first): as stored, or, of neurons without gates, from their level."""
    if spikes.steps.shape[1] > 0:
        stored = state_row(spikes, 0, t, b, lo, hi)
        for f in range(q.size):
            q[f] = stored[f]
    else:
        above_row(level_row(real, coefficients, t, b, lo, hi, buffer), coefficients[THRESHOLD, lo:hi], q)


@device_function
def held_row(real, driven, coefficients, t, b, lo, hi, spare, q):  # pyright: ignore
    """Turn the spikes q of step t into the spike trace: how far they and all earlier ones hold the level down."""
    beta, threshold, rho = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi], coefficients[RHO, lo:hi]
    from_v, from_spike = coefficients[FROM_V, lo:hi], coefficients[FROM_SPIKE, lo:hi]
    to_v, share = coefficients[TO_V, lo:hi], coefficients[TO_THRESHOLD, lo:hi]
    v, trace = real.steps[0, t, b, lo:hi], driven.steps[0, t, b, lo:hi]
    w, w_trace = real.steps[1, t, b, lo:hi], driven.steps[1, t, b, lo:hi]
    for f in range(q.size):
        spare[f] = rho[f] * (w_trace[f] - w[f]) + from_v[f] * (trace[f] - v[f]) - from_spike[f] * q[f]
    for f in range(q.size):
        q[f] = beta[f] * (trace[f] - v[f]) + threshold[f] * q[f] + (to_v[f] - share[f]) * spare[f]


@device_function
def q_row(kind, v, level, beta, threshold, gain, real, driven, spikes, coefficients, t, b, lo, spare, q):  # pyright: ignore
    """q: the spikes of step t, or with TRACE their trace as a rate. Plain neurons need no more than the rows v and level."""
    hi = lo + q.size
    second = coefficients.shape[0] > WITHOUT_SECOND
    if second or spikes.steps.shape[1] > 0:
        fired_row(spikes, real, coefficients, t, b, lo, hi, spare, q)
    else:
        above_row(v, threshold, q)
    if kind == TRACE:
        if second:
            held_row(real, driven, coefficients, t, b, lo, hi, spare, q)
            for f in range(q.size):
                q[f] *= gain[f]
        else:
            for f in range(q.size):
                q[f] = gain[f] * (beta[f] * (level[f] - v[f]) + threshold[f] * q[f])


@device_function
def x_row(estimator, level, threshold, gain, x):  # pyright: ignore
    """x from the driven level."""
    if estimator.kind == SOFT:
        soft_row(level, threshold, estimator.shape, estimator.parameter, x)
    else:
        lowest, highest = level.dtype.type(estimator.floor), level.dtype.type(estimator.ceiling)
        for f in range(x.size):
            x[f] = min(highest, max(lowest, gain[f] * level[f]))


@device_function
def x_rows(estimator, level, threshold, gain, x, w):  # pyright: ignore
    """x, and w = dx/dlevel, from the driven level."""
    x_row(estimator, level, threshold, gain, x)
    if estimator.kind == SOFT:
        slope_row(level, threshold, estimator.shape, estimator.parameter, estimator.extra, w)
        normal = level.dtype.type(1 / estimator.extra)
        for f in range(w.size):
            w[f] *= normal
    else:
        zero = level.dtype.type(0)
        lowest, highest = level.dtype.type(estimator.floor), level.dtype.type(estimator.ceiling)
        for f in range(w.size):
            raw = gain[f] * level[f]
            w[f] = gain[f] if lowest <= raw <= highest else zero


@device_function
def add_sums(x, q, bits, sum_x, sum_q, sum_qq, sum_xq):  # pyright: ignore
    """Add a row to the sums, a loop each, which the compiler makes vectors of; of ``bits`` Σq² is Σq."""
    for f in range(x.size):
        sum_x[f] += np.float64(x[f])
    for f in range(x.size):
        sum_q[f] += np.float64(q[f])
    if bits:
        for f in range(x.size):
            sum_qq[f] = sum_q[f]
    else:
        for f in range(x.size):
            sum_qq[f] += np.float64(q[f]) * np.float64(q[f])
    for f in range(x.size):
        sum_xq[f] += np.float64(x[f]) * np.float64(q[f])


@device_function
def add_gradient_sums(g, q, sum_g, sum_gq):  # pyright: ignore
    """The same for the output's gradient."""
    for f in range(q.size):
        sum_g[f] += np.float64(g[f])
    for f in range(q.size):
        sum_gq[f] += np.float64(g[f]) * np.float64(q[f])


@kernel
def target_sums(estimator, layer, real, driven, spikes, grad, by_step, out):  # pyright: ignore
    """Fill out (5 or 7, 1 or T, F) with Σx, Σq, Σq², Σxq, n and, where grad has steps, ΣG, ΣGq, over batch (and time).

    One entry a neuron and, with by_step, a step; the caller adds neurons up where a block holds several. The driven
    course is the one that the gradient runs through: the traces with TRACE, else the real states.
    """
    v, plain, coefficients = real.steps[0], driven.steps[0], layer.coefficients
    steps, batch, features = v.shape
    second = coefficients.shape[0] > WITHOUT_SECOND
    tiles = (features + TILE - 1) // TILE
    groups = steps if by_step else 1
    for task in prange(groups * tiles):
        group = task // tiles
        lo = task % tiles * TILE
        hi = min(lo + TILE, features)
        x, q, w = np.empty(hi - lo, v.dtype), np.empty(hi - lo, v.dtype), np.empty(hi - lo, v.dtype)
        buffer, spare = np.empty(hi - lo, v.dtype), np.empty(hi - lo, v.dtype)
        beta, threshold, gain = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi], coefficients[GAIN, lo:hi]
        out[:, group, lo:hi] = 0.0
        count = 0
        for t in range(group if by_step else 0, group + 1 if by_step else steps):
            for b in range(batch):
                if t >= layer.lengths[b]:
                    continue
                count += 1
                v_t, level = v[t, b, lo:hi], plain[t, b, lo:hi]
                if second:
                    level = level_row(driven, coefficients, t, b, lo, hi, buffer)
                q_row(
                    estimator.kind, v_t, level, beta, threshold, gain, real, driven, spikes, coefficients, t, b, lo, spare, q
                )  # fmt: skip
                x_rows(estimator, level, threshold, gain, x, w)
                add_sums(
                    x, q, False, out[0, group, lo:hi], out[1, group, lo:hi], out[2, group, lo:hi], out[3, group, lo:hi]
                )
                if grad.shape[0] > 0:
                    g = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0, lo:hi]
                    add_gradient_sums(g, q, out[5, group, lo:hi], out[6, group, lo:hi])
        out[4, group, lo:hi] = float(count)


@kernel
def gradient_sums(estimator, layer, real, driven, spikes, grad, by_step, rows, out):  # pyright: ignore
    """Fill out (groups, 2, 1 or T, F or, by step, tiles of neurons) with ΣG and ΣGq over groups of ``rows`` samples."""
    v, plain, coefficients = real.steps[0], driven.steps[0], layer.coefficients
    steps, batch, features = v.shape
    second = coefficients.shape[0] > WITHOUT_SECOND
    tiles = (features + TILE - 1) // TILE
    for task in prange(out.shape[0] * tiles):
        group, part = task // tiles, task % tiles
        first, lo = group * rows, part * TILE
        hi = min(lo + TILE, features)
        q, buffer, spare = np.empty(hi - lo, v.dtype), np.empty(hi - lo, v.dtype), np.empty(hi - lo, v.dtype)
        beta, threshold, gain = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi], coefficients[GAIN, lo:hi]
        total = np.zeros((2, hi - lo), np.float64)
        for t in range(steps):
            for b in range(first, min(first + rows, batch)):
                if t >= layer.lengths[b]:
                    continue
                level = plain[t, b, lo:hi]
                if second:
                    level = level_row(driven, coefficients, t, b, lo, hi, buffer)
                q_row(
                    estimator.kind, v[t, b, lo:hi], level, beta, threshold, gain,
                    real, driven, spikes, coefficients, t, b, lo, spare, q,
                )  # fmt: skip
                g = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0, lo:hi]
                add_gradient_sums(g, q, total[0], total[1])
            if by_step:
                out[group, 0, t, part], out[group, 1, t, part] = total[0].sum(), total[1].sum()
                total[:] = 0
        if not by_step:
            out[group, :, 0, lo:hi] = total


def output_sums(
    grad: Array,
    estimator: Estimator,
    layer: Layer,
    real: Course,
    driven: Course,
    spikes: Course,
    by_step: bool,
    rows: int,
) -> Array:
    """ΣG and ΣGq over the batch (and time): (2, 1, F), or with ``by_step`` (2, T, tiles of neurons).

    Tasks take ``rows`` samples; their number must not depend on that of threads, or rounding does.
    """
    steps, batch, features = real.steps.shape[1:]
    out = np.empty((-(-batch // rows), 2, steps if by_step else 1, -(-features // TILE) if by_step else features))
    gradient_sums(
        estimator, layer, real, driven, spikes, grad, by_step, rows, out, work=real.steps[0].size
    )  # fmt: skip
    return out.sum(0)


@kernel
def emit_affine(spikes, a, b, lengths, out):  # pyright: ignore
    """out = a·spikes + b within each sequence, 0 beyond; spikes and out (T, B, F), a and b (1 or T, F)."""
    steps, batch, features = spikes.shape
    for row in prange(steps * batch):
        t, sample = row // batch, row % batch
        k = t if a.shape[0] > 1 else 0
        if t < lengths[sample]:
            for f in range(features):
                out[t, sample, f] = a[k, f] * spikes[t, sample, f] + b[k, f]
        else:
            out[t, sample] = 0
