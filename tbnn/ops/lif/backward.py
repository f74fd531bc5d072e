"""The neuron's gradient on the CPU: one scan backwards in time.

Of every estimator the output's share is ``du = w·(k0 + kG·G + kx·x + kq·q)``, with x and q the pair that the DDT
reconciles, w = dx/dlevel, and four factors a block (``closed_form.RidgeGradient``); a bare surrogate is kG = 1. From there it goes through the adjoint of ``cell.advance``: through that of the real states, or of the traces with TRACE.
"""

from numba import prange

from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.lif.rows import (
    BETA,
    CURRENT_GAIN,
    FROM_CURRENT,
    FROM_SPIKE,
    FROM_V,
    GAIN,
    RHO,
    SUBTRACT,
    THRESHOLD,
    TILE,
    TO_THRESHOLD,
    TO_V,
    WITHOUT_SECOND,
    ZERO,
    above_row,
    level_row,
    scratch,
    state_row,
)
from tbnn.ops.lif.target import INTEGRATE, SURROGATE, fired_row, q_row, slope_row, x_rows


@device_function
def surrogate_row(estimator, level, threshold, grad, kg, w, du):  # pyright: ignore
    """du: the gradient that this step's output sends into the level, through a bare surrogate or, INTEGRATE, as it is."""
    if estimator.kind == INTEGRATE:
        for f in range(du.size):
            du[f] = grad[f]
    else:
        slope_row(level, threshold, estimator.shape, estimator.parameter, estimator.extra, w)
        for f in range(du.size):
            du[f] = kg[f] * grad[f] * w[f]


@device_function
def ridge_row(grad, factors, s, lo, x, q, w, du):  # pyright: ignore
    """The same through the DDT."""
    hi = lo + du.size
    k0, kg, kx, kq = factors[0, s, lo:hi], factors[1, s, lo:hi], factors[2, s, lo:hi], factors[3, s, lo:hi]
    for f in range(du.size):
        du[f] = w[f] * (k0[f] + kg[f] * grad[f] + kx[f] * x[f] + kq[f] * q[f])


@device_function
def membrane_adjoint_row(du, beta, carry, dv):  # pyright: ignore
    """dv = du + carry, this step's gradient of the membrane and of the current; carry goes on to the step before."""
    for f in range(du.size):
        dv[f] = du[f] + carry[f]
        carry[f] = beta[f] * dv[f]


@device_function
def adjoint_row(du, coefficients, lo, carry, w_carry, dv, dw, dcurrent):  # pyright: ignore
    """The same of both states: dv, dw and dcurrent of this step; the carries go on to the step before."""
    hi = lo + du.size
    beta, rho = coefficients[BETA, lo:hi], coefficients[RHO, lo:hi]
    from_v, from_current = coefficients[FROM_V, lo:hi], coefficients[FROM_CURRENT, lo:hi]
    gain, to_v, share = coefficients[CURRENT_GAIN, lo:hi], coefficients[TO_V, lo:hi], coefficients[TO_THRESHOLD, lo:hi]
    for f in range(du.size):
        dv[f] = du[f] + carry[f]
    for f in range(du.size):
        dw[f] = w_carry[f] - share[f] * du[f] + to_v[f] * dv[f]
    for f in range(du.size):
        dcurrent[f] = gain[f] * dv[f] + from_current[f] * dw[f]
    for f in range(du.size):
        carry[f] = beta[f] * dv[f] + from_v[f] * dw[f]
    for f in range(du.size):
        w_carry[f] = rho[f] * dw[f]


@device_function
def clear_row(fired, a):  # pyright: ignore
    """a = 0 where the neuron fired."""
    one = a.dtype.type(1)
    for f in range(a.size):
        a[f] *= one - fired[f]


@device_function
def add_product(a, b, total):  # pyright: ignore
    """total += a·b."""
    for f in range(total.size):
        total[f] += a[f] * b[f]


@device_function
def subtract_product(a, b, total):  # pyright: ignore
    """total −= a·b."""
    for f in range(total.size):
        total[f] -= a[f] * b[f]


@device_function
def membrane_share(learn, reset, level, kept, fired, du, dv, b, lo, totals):  # pyright: ignore
    """Add this step's share to the gradients of β, θ and, times it, of the trace's gain."""
    hi = lo + du.size
    if learn[BETA]:
        add_product(dv, kept, totals[BETA, b, lo:hi])
    if learn[THRESHOLD]:
        dthreshold = totals[THRESHOLD, b, lo:hi]
        for f in range(du.size):
            dthreshold[f] -= du[f]
        if reset == SUBTRACT:
            subtract_product(dv, fired, dthreshold)
    if learn[GAIN]:
        add_product(du, level, totals[GAIN, b, lo:hi])


@device_function
def second_share(learn, kept, w_before, w, fired, current, du, dv, dw, b, lo, totals):  # pyright: ignore
    """Add this step's share to the gradients of the second state's coefficients."""
    hi = lo + du.size
    if learn[RHO]:
        add_product(dw, w_before, totals[RHO, b, lo:hi])
    if learn[FROM_V]:
        add_product(dw, kept, totals[FROM_V, b, lo:hi])
    if learn[FROM_CURRENT]:
        add_product(dw, current, totals[FROM_CURRENT, b, lo:hi])
    if learn[FROM_SPIKE]:
        add_product(dw, fired, totals[FROM_SPIKE, b, lo:hi])
    if learn[CURRENT_GAIN]:
        add_product(dv, current, totals[CURRENT_GAIN, b, lo:hi])
    if learn[TO_V]:
        add_product(dv, w, totals[TO_V, b, lo:hi])
    if learn[TO_THRESHOLD]:
        subtract_product(du, w, totals[TO_THRESHOLD, b, lo:hi])


@kernel
def scan_backward(
    estimator, layer, real, driven, spikes, current, grad, factors, learn, rows, carry, totals, dcurrent
):  # pyright: ignore  # fmt: skip
    """Walk time backwards: dcurrent (T, B, F); carry (1 or 2, B, F) enters as the final states' gradient, leaves as the first's.

    grad is (1 or T, 1 or B, F); factors (4, 1 or T, F) are k0, kG, kx, kq of the module's docstring. Spikes have steps
    where levels do not tell them; current (T, B, F) has steps where a gradient needs it. ``learn`` (10,) says which
    coefficients' gradients to add to totals (3 or 10, B, F), GAIN's times the gain. A task takes ``rows`` samples.
    """
    v, v_start, plain, coefficients = real.steps[0], real.start[0, 0], driven.steps[0], layer.coefficients
    steps, batch, features = v.shape
    second = coefficients.shape[0] > WITHOUT_SECOND
    tiles = (features + TILE - 1) // TILE
    learns = learn.any()
    with_fired = layer.reset == ZERO or learn[THRESHOLD] or learn[FROM_SPIKE]
    for task in prange((batch + rows - 1) // rows * tiles):
        first = task // tiles * rows
        lo = task % tiles * TILE
        hi = min(lo + TILE, features)
        n = hi - lo
        room = scratch(8, n, v)
        x, q, w, du = room[0, :n], room[1, :n], room[2, :n], room[3, :n]
        dv, dw, buffer, spare = room[4, :n], room[5, :n], room[6, :n], room[7, :n]
        beta, threshold, gain = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi], coefficients[GAIN, lo:hi]
        for t in range(steps - 1, -1, -1):
            s = t if factors.shape[1] > 1 else 0
            for b in range(first, min(first + rows, batch)):
                if t >= layer.lengths[b]:
                    dcurrent[t, b, lo:hi] = 0
                    continue
                level = level_row(driven, coefficients, t, b, lo, hi, buffer) if second else plain[t, b, lo:hi]
                g = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0, lo:hi]
                if estimator.kind == SURROGATE or estimator.kind == INTEGRATE:
                    surrogate_row(estimator, level, threshold, g, factors[1, s, lo:hi], w, du)
                else:
                    q_row(
                        estimator.kind, v[t, b, lo:hi], level, beta, threshold, gain,
                        real, driven, spikes, coefficients, t, b, lo, spare, q,
                    )  # fmt: skip
                    x_rows(estimator, level, threshold, gain, x, w)
                    ridge_row(g, factors, s, lo, x, q, w, du)
                if with_fired:
                    if second or spikes.steps.shape[1] > 0:
                        fired_row(spikes, real, coefficients, t - 1, b, lo, hi, spare, q)
                    else:
                        above_row(v_start[b, lo:hi] if t == 0 else v[t - 1, b, lo:hi], threshold, q)
                d = dcurrent[t, b, lo:hi]
                carry_b = carry[0, b, lo:hi]
                if second:
                    adjoint_row(du, coefficients, lo, carry_b, carry[1, b, lo:hi], dv, dw, d)
                else:
                    membrane_adjoint_row(du, beta, carry_b, d)
                if layer.reset == ZERO:
                    clear_row(q, carry_b)
                if learns:
                    kept = state_row(driven, 0, t - 1, b, lo, hi)
                    if layer.reset == ZERO:
                        x[:] = kept
                        clear_row(q, x)
                        kept = x
                    membrane_share(learn, layer.reset, level, kept, q, du, dv if second else d, b, lo, totals)
                    if second:
                        current_t = current[t, b, lo:hi] if current.shape[0] > 0 else x
                        w_before, w_t = state_row(driven, 1, t - 1, b, lo, hi), driven.steps[1, t, b, lo:hi]
                        second_share(learn, kept, w_before, w_t, q, current_t, du, dv, dw, b, lo, totals)
