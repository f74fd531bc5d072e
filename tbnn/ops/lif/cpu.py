"""The leaky integrate-and-fire neuron on the CPU: one scan forward, one pass for block sums, one scan backward.

Arrays are (T, B, F), parameters (F,). Parallel over samples and tiles of neurons; a task's membranes stay in L2.
The backward pass of every estimator is ``du = w·(k0 + kG·G + kx·x + kq·q)``, with x and q the pair that the DDT
reconciles, w = dx/du, and four factors a block (``closed_form.RidgeGradient``); a bare surrogate is kG = 1.
"""

import math

import numpy as np
import torch
from numba import prange

from tbnn.ops.kernels import device_function, kernel

TILE = 1024  # neurons of a row worked on at once
LANES = 1 << 15  # membranes of a task
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
def scan(current, beta, threshold, v0, trace0, reset, rows, v, trace, spikes):  # pyright: ignore
    """Fill v, and trace and spikes unless they have no steps, all (T, B, F); a task takes ``rows`` samples."""
    steps, batch, features = current.shape
    tiles = (features + TILE - 1) // TILE
    with_trace, with_spikes = trace.shape[0] > 0, spikes.shape[0] > 0
    one, zero = current.dtype.type(1), current.dtype.type(0)
    for task in prange((batch + rows - 1) // rows * tiles):
        first = task // tiles * rows
        lo = task % tiles * TILE
        hi = min(lo + TILE, features)
        beta_n, threshold_n = beta[lo:hi], threshold[lo:hi]
        for t in range(steps):
            for b in range(first, min(first + rows, batch)):
                before = v0[b, lo:hi] if t == 0 else v[t - 1, b, lo:hi]
                current_t, v_t = current[t, b, lo:hi], v[t, b, lo:hi]
                membrane_row(before, current_t, beta_n, threshold_n, reset, v_t)
                if with_spikes:
                    spikes_t = spikes[t, b, lo:hi]
                    for f in range(hi - lo):
                        spikes_t[f] = one if v_t[f] > threshold_n[f] else zero
                if with_trace:
                    faded, trace_t = trace0[b, lo:hi] if t == 0 else trace[t - 1, b, lo:hi], trace[t, b, lo:hi]
                    for f in range(hi - lo):
                        trace_t[f] = beta_n[f] * faded[f] + current_t[f]


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
                        g = np.float64(grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0, lo + f])
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


@device_function
def drive_row(kind, grad, v, level, beta, threshold, shape, p, area, floor, k0, kg, kx, kq, x, q, w, du):  # pyright: ignore
    """du: the gradient that this step's output sends into the state (v, or the trace ``level`` with TRACE)."""
    if kind == SURROGATE:
        slope_row(v, threshold, shape, p, w)
        for f in range(du.size):
            du[f] = kg[f] * grad[f] * w[f]
    elif kind == INTEGRATE:
        for f in range(du.size):
            du[f] = grad[f]
    else:
        target_rows(kind, v, level, beta, threshold, shape, p, area, floor, x, q, w)
        for f in range(du.size):
            du[f] = w[f] * (k0[f] + kg[f] * grad[f] + kx[f] * x[f] + kq[f] * q[f])


@device_function
def carry_row(before, du, beta, threshold, reset, carry, d):  # pyright: ignore
    """d = du + carry, this step's gradient of the state and of the current; carry goes on to the step before."""
    one, zero = du.dtype.type(1), du.dtype.type(0)
    if reset == ZERO:
        for f in range(du.size):
            d[f] = du[f] + carry[f]
            carry[f] = beta[f] * d[f] * (zero if before[f] > threshold[f] else one)
    else:
        for f in range(du.size):
            d[f] = du[f] + carry[f]
            carry[f] = beta[f] * d[f]


@device_function
def parameter_row(kind, reset, before, faded, level, du, d, beta, threshold, dbeta, dthreshold):  # pyright: ignore
    """Add this step's share to the gradients of β and θ; ``faded`` is the trace one step before, with TRACE."""
    one, zero = du.dtype.type(1), du.dtype.type(0)
    for f in range(du.size):
        fired = one if before[f] > threshold[f] else zero
        if kind == TRACE:
            dbeta[f] += d[f] * faded[f] - du[f] * level[f] / (one - beta[f])
            dthreshold[f] -= du[f] * level[f] / threshold[f]
        elif reset == ZERO:
            dbeta[f] += d[f] * before[f] * (one - fired)
            dthreshold[f] -= du[f]
        else:
            dbeta[f] += d[f] * before[f]
            dthreshold[f] -= du[f] + (d[f] * fired if reset == SUBTRACT else zero)


@kernel
def scan_backward(
    kind, grad, v, trace, v0, trace0, beta, threshold, reset, shape, p, area, floor, factors, learn, rows, carry, dbeta, dthreshold, dcurrent
):  # pyright: ignore  # fmt: skip
    """Walk time backwards: dcurrent (T, B, F); carry (B, F) enters as the final state's gradient, leaves as the first's.

    grad is (1 or T, 1 or B, F); factors (4, 1 or T, F) are k0, kG, kx, kq of the module's docstring; the state is v, or
    with TRACE the trace. INTEGRATE takes grad as the gradient of v itself. With ``learn`` dbeta and dthreshold (B, F)
    are filled as well. A task takes ``rows`` samples.
    """
    steps, batch, features = v.shape
    tiles = (features + TILE - 1) // TILE
    for task in prange((batch + rows - 1) // rows * tiles):
        first = task // tiles * rows
        lo = task % tiles * TILE
        hi = min(lo + TILE, features)
        n = hi - lo
        x, q, w, du = np.empty(n, v.dtype), np.empty(n, v.dtype), np.empty(n, v.dtype), np.empty(n, v.dtype)
        beta_n, theta_n = beta[lo:hi], threshold[lo:hi]
        for t in range(steps - 1, -1, -1):
            s = t if factors.shape[1] > 1 else 0
            k0, kg, kx, kq = factors[0, s, lo:hi], factors[1, s, lo:hi], factors[2, s, lo:hi], factors[3, s, lo:hi]
            for b in range(first, min(first + rows, batch)):
                g = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0, lo:hi]
                before = v0[b, lo:hi] if t == 0 else v[t - 1, b, lo:hi]
                level = trace[t, b, lo:hi] if kind == TRACE else v[t, b, lo:hi]
                d = dcurrent[t, b, lo:hi]
                drive_row(
                    kind, g, v[t, b, lo:hi], level, beta_n, theta_n, shape, p, area, floor, k0, kg, kx, kq, x, q, w, du
                )
                carry_row(before, du, beta_n, theta_n, reset, carry[b, lo:hi], d)
                if learn:
                    faded = before
                    if kind == TRACE:
                        faded = trace0[b, lo:hi] if t == 0 else trace[t - 1, b, lo:hi]
                    parameter_row(
                        kind, reset, before, faded, level, du, d, beta_n, theta_n, dbeta[b, lo:hi], dthreshold[b, lo:hi]
                    )


def rows_per_task(batch: int, features: int) -> int:
    """How many samples one task takes: all cores busy, the membranes of a step in L2, memory read in long runs."""
    tiles = -(-features // TILE)
    fair = -(-batch * tiles // torch.get_num_threads()) // tiles
    return max(1, min(batch, fair, LANES // min(features, TILE)))
