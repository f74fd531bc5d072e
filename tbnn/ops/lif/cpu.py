"""The leaky integrate-and-fire neuron on the CPU: one scan forward, one pass for block sums, one scan backward.

Arrays are (T, B, F), parameters (F,). Parallel over samples and tiles of neurons; a tile's membranes stay in L1.
The backward pass of every estimator is ``du = w·(k0 + kG·G + kx·x + kq·q)``, with x and q the pair that the DDT
reconciles, w = dx/du, and four factors a block (``closed_form.RidgeGradient``); a bare surrogate is kG = 1.
"""

import math

import numpy as np
from numba import prange

from tbnn.ops.kernels import device_function, kernel

TILE = 512
SUBTRACT, ZERO, NONE = 0, 1, 2
RESETS = {"subtract": SUBTRACT, "zero": ZERO, "none": NONE}
SURROGATE, SOFT, TRACE, INTEGRATE = 0, 1, 2, 3


@device_function
def membrane_row(before, current, beta, threshold, reset, v):  # pyright: ignore
    """One step of a row of membranes: ``v = β·before + current − θ·1[before > θ]``, or another reset."""
    zero = before.dtype.type(0)
    if reset == SUBTRACT:
        for f in range(v.size):
            drop = threshold[f] if before[f] > threshold[f] else zero
            v[f] = beta[f] * before[f] + current[f] - drop
    elif reset == ZERO:
        for f in range(v.size):
            kept = zero if before[f] > threshold[f] else before[f]
            v[f] = beta[f] * kept + current[f]
    else:
        for f in range(v.size):
            v[f] = beta[f] * before[f] + current[f]


@kernel
def scan(current, beta, threshold, v0, trace0, reset, v, trace, spikes):  # pyright: ignore
    """Fill v, spikes (T, B, F), and trace (T, B, F) unless it has no steps."""
    steps, batch, features = current.shape
    tiles = (features + TILE - 1) // TILE
    with_trace = trace.shape[0] > 0
    one, zero = current.dtype.type(1), current.dtype.type(0)
    for task in prange(batch * tiles):
        b = task // tiles
        lo = task % tiles * TILE
        hi = min(lo + TILE, features)
        for t in range(steps):
            before = v0[b, lo:hi] if t == 0 else v[t - 1, b, lo:hi]
            membrane_row(before, current[t, b, lo:hi], beta[lo:hi], threshold[lo:hi], reset, v[t, b, lo:hi])
            for f in range(lo, hi):
                spikes[t, b, f] = one if v[t, b, f] > threshold[f] else zero
            if with_trace:
                faded = trace0[b, lo:hi] if t == 0 else trace[t - 1, b, lo:hi]
                for f in range(lo, hi):
                    trace[t, b, f] = beta[f] * faded[f - lo] + current[t, b, f]


@device_function
def slope_row(v, threshold, shape, p, w):  # pyright: ignore
    """w = the surrogate's derivative at v − θ; ``shape`` is Surrogate.code, ``p`` its parameter."""
    one, half, zero = v.dtype.type(1), v.dtype.type(0.5), v.dtype.type(0)
    width = v.dtype.type(p)
    if shape == 1:
        c = v.dtype.type(math.pi / 2 * p)
        for f in range(w.size):
            cu = c * (v[f] - threshold[f])
            w[f] = half * width / (one + cu * cu)
    elif shape == 2:
        for f in range(w.size):
            d = one + width * abs(v[f] - threshold[f])
            w[f] = one / (d * d)
    elif shape == 3:
        for f in range(w.size):
            e = np.exp(-width * abs(v[f] - threshold[f]))
            w[f] = width * e / ((one + e) * (one + e))
    elif shape == 4:
        for f in range(w.size):
            w[f] = max(zero, one - abs(v[f] - threshold[f]) / width)
    else:
        for f in range(w.size):
            w[f] = one / width if abs(v[f] - threshold[f]) <= half * width else zero


@device_function
def soft_row(v, threshold, shape, p, x):  # pyright: ignore
    """x = the soft spike at v − θ."""
    one, half = v.dtype.type(1), v.dtype.type(0.5)
    width, inverse_pi = v.dtype.type(p), v.dtype.type(1 / math.pi)
    if shape == 1:
        c = v.dtype.type(math.pi / 2 * p)
        for f in range(x.size):
            x[f] = half + inverse_pi * np.arctan(c * (v[f] - threshold[f]))
    elif shape == 2:
        for f in range(x.size):
            ku = width * (v[f] - threshold[f])
            x[f] = half + half * ku / (one + abs(ku))
    elif shape == 3:
        for f in range(x.size):
            x[f] = one / (one + np.exp(-width * (v[f] - threshold[f])))
    elif shape == 4:
        for f in range(x.size):
            z = min(one, max(-one, (v[f] - threshold[f]) / width))
            x[f] = half + z - half * z * abs(z)
    else:
        for f in range(x.size):
            x[f] = min(one, max(v.dtype.type(0), half + (v[f] - threshold[f]) / width))


@device_function
def target_rows(kind, v, trace, beta, threshold, shape, p, area, floor, x, q, w):  # pyright: ignore
    """Fill the pair (x, q) that the DDT reconciles and w = dx/du (SOFT) or dx/dL (TRACE) for one row."""
    one, zero = v.dtype.type(1), v.dtype.type(0)
    if kind == SOFT:
        soft_row(v, threshold, shape, p, x)
        slope_row(v, threshold, shape, p, w)
        normal = v.dtype.type(1 / area)
        for f in range(x.size):
            q[f] = one if v[f] > threshold[f] else zero
            w[f] = w[f] * normal
    else:
        lowest = v.dtype.type(floor)
        for f in range(x.size):
            gain = (one - beta[f]) / threshold[f]
            raw = gain * trace[f]
            fired = one if v[f] > threshold[f] else zero
            x[f] = min(one, max(lowest, raw))
            q[f] = gain * beta[f] * (trace[f] - v[f]) + (one - beta[f]) * fired
            w[f] = gain if lowest <= raw <= one else zero


@kernel
def target_sums(kind, v, trace, grad, beta, threshold, shape, p, area, floor, by_step, out):  # pyright: ignore
    """Fill out (5 or 7, 1 or T, F) with Σx, Σq, Σq², Σxq, n and, where grad has steps, ΣG, ΣGq, over batch (and time).

    One entry a neuron and, with by_step, a step; the caller adds neurons up where a block holds several.
    """
    steps, batch, features = v.shape
    tiles = (features + TILE - 1) // TILE
    groups = steps if by_step else 1
    with_grad = grad.shape[0] > 0
    for task in prange(groups * tiles):
        group = task // tiles
        lo = task % tiles * TILE
        hi = min(lo + TILE, features)
        x, q, w = np.empty(hi - lo, v.dtype), np.empty(hi - lo, v.dtype), np.empty(hi - lo, v.dtype)
        out[:, group, lo:hi] = 0.0
        first, last = (group, group + 1) if by_step else (0, steps)
        for t in range(first, last):
            for b in range(batch):
                level = trace[t, b, lo:hi] if kind == TRACE else v[t, b, lo:hi]
                target_rows(kind, v[t, b, lo:hi], level, beta[lo:hi], threshold[lo:hi], shape, p, area, floor, x, q, w)
                for f in range(hi - lo):
                    xf, qf = np.float64(x[f]), np.float64(q[f])
                    out[0, group, lo + f] += xf
                    out[1, group, lo + f] += qf
                    out[2, group, lo + f] += qf * qf
                    out[3, group, lo + f] += xf * qf
                if with_grad:
                    for f in range(hi - lo):
                        g = np.float64(grad[t, b, lo + f])
                        out[5, group, lo + f] += g
                        out[6, group, lo + f] += g * np.float64(q[f])
        out[4, group, lo:hi] = float(batch * (last - first))


@kernel
def emit_affine(spikes, a, b):  # pyright: ignore
    """spikes = a·spikes + b in place; spikes (T, B, F), a and b (1 or T, F)."""
    steps, batch, features = spikes.shape
    for row in prange(steps * batch):
        t = row // batch
        k = t if a.shape[0] > 1 else 0
        for f in range(features):
            spikes[t, row % batch, f] = a[k, f] * spikes[t, row % batch, f] + b[k, f]


@kernel
def scan_backward(
    kind,
    grad,
    v,
    trace,
    v0,
    trace0,
    beta,
    threshold,
    reset,
    shape,
    p,
    area,
    floor,
    factors,
    learn,
    carry,
    dbeta,
    dthreshold,
    dcurrent,
):  # pyright: ignore
    """Walk time backwards: dcurrent (T, B, F); carry (B, F) enters as the final state's gradient, leaves as the first's.

    factors (4, 1 or T, F) are k0, kG, kx, kq of the module's docstring; the state is v, or with TRACE the trace.
    INTEGRATE takes grad as the gradient of v itself.
    With ``learn`` dbeta and dthreshold (B, F) are filled as well.
    """
    steps, batch, features = v.shape
    tiles = (features + TILE - 1) // TILE
    one, zero = v.dtype.type(1), v.dtype.type(0)
    for task in prange(batch * tiles):
        b = task // tiles
        lo = task % tiles * TILE
        n = min(lo + TILE, features) - lo
        x, q, w, du = np.empty(n, v.dtype), np.empty(n, v.dtype), np.empty(n, v.dtype), np.empty(n, v.dtype)
        beta_n, theta_n, carry_n = beta[lo : lo + n], threshold[lo : lo + n], carry[b, lo : lo + n]
        for t in range(steps - 1, -1, -1):
            v_t, g_t = v[t, b, lo : lo + n], grad[t, b, lo : lo + n]
            before = v0[b, lo : lo + n] if t == 0 else v[t - 1, b, lo : lo + n]
            level = v_t
            if kind == TRACE:
                level = trace[t, b, lo : lo + n]
            k = factors[:, t if factors.shape[1] > 1 else 0, lo : lo + n]
            if kind == SURROGATE:
                slope_row(v_t, theta_n, shape, p, w)
                for f in range(n):
                    du[f] = k[1, f] * g_t[f] * w[f]
            elif kind == INTEGRATE:
                du[:] = g_t
            else:
                target_rows(kind, v_t, level, beta_n, theta_n, shape, p, area, floor, x, q, w)
                for f in range(n):
                    du[f] = w[f] * (k[0, f] + k[1, f] * g_t[f] + k[2, f] * x[f] + k[3, f] * q[f])
            d_t = dcurrent[t, b, lo : lo + n]
            if reset == ZERO:
                for f in range(n):
                    d_t[f] = du[f] + carry_n[f]
                    carry_n[f] = beta_n[f] * d_t[f] * (zero if before[f] > theta_n[f] else one)
            else:
                for f in range(n):
                    d_t[f] = du[f] + carry_n[f]
                    carry_n[f] = beta_n[f] * d_t[f]
            if learn:
                faded = before
                if kind == TRACE:
                    faded = trace0[b, lo : lo + n] if t == 0 else trace[t - 1, b, lo : lo + n]
                for f in range(n):
                    fired = one if before[f] > theta_n[f] else zero
                    if kind == TRACE:
                        dbeta[b, lo + f] += d_t[f] * faded[f] - du[f] * level[f] / (one - beta_n[f])
                        dthreshold[b, lo + f] -= du[f] * level[f] / theta_n[f]
                    elif reset == ZERO:
                        dbeta[b, lo + f] += d_t[f] * before[f] * (one - fired)
                        dthreshold[b, lo + f] -= du[f]
                    else:
                        dbeta[b, lo + f] += d_t[f] * before[f]
                        dthreshold[b, lo + f] -= du[f] + (d_t[f] * fired if reset == SUBTRACT else zero)
