"""The neuron's gradient in Triton: one scan backwards in time; see backward.py for the equations.

Courses are read a row ahead: what a step calls "before" is the next turn's "now", so each state is loaded once.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl

from tbnn.ops.lif.gpu_kernels import (
    BETA,
    CURRENT_GAIN,
    FROM_CURRENT,
    FROM_SPIKE,
    FROM_V,
    GAIN,
    INTEGRATE,
    RHO,
    SUBTRACT,
    SURROGATE,
    THRESHOLD,
    TO_THRESHOLD,
    TO_V,
    TRACE,
    ZERO,
    level_of,
    load_states,
    parameter,
    second_of,
    slope_of,
    store_states,
    target_of,
    tile_of,
)

ONE = tl.constexpr(1)  # to the left of an operator, a constexpr works in the interpreter too


@triton.jit
def store_total(total, totals, row: tl.constexpr, neuron, features, tile, tiles):
    """Add a tile's share of a coefficient's gradient up over its samples, and lay it into totals (3 or 10, tiles, F)."""
    place = (row * tiles + tile) * tl.cast(features, tl.int64) + neuron
    tl.store(totals + place, tl.sum(total, 0), mask=neuron < features)


@triton.jit
def scan_backward(
    coefficients, states, traces, spikes, spikes_start, current, grad, grad_t, grad_b, factors, factors_t, factor, lengths,
    dlast, dstart, totals, dcurrent, steps, batch, features, p, extra, floor, ceiling,
    KIND: tl.constexpr, SHAPE: tl.constexpr, RESET: tl.constexpr, SECOND: tl.constexpr, GATED: tl.constexpr,
    RAGGED: tl.constexpr, LEARN: tl.constexpr, HAS_LAST: tl.constexpr, BB: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Fill dcurrent (T, B, F), dstart (1 or 2, B, F) and, of what LEARN says, totals (3 or 10, tiles, F), GAIN's times it.

    The output's share of a step is ``du = w·(k0 + kG·G + kx·x + kq·q)`` with factors (4, 1 or T, F); grad is read with
    strides ``grad_t`` and ``grad_b``, factors with ``factors_t``, each 0 where there is one for all, and ``factor``.
    """
    b, f, lane, inside, tile = tile_of(batch, features, BB, BF)
    layer = tl.cast(batch * features, tl.int64)
    course = (steps + 1) * layer
    beta, threshold = parameter(coefficients, BETA, f, features), parameter(coefficients, THRESHOLD, f, features)
    trace_gain = parameter(coefficients, GAIN, f, features)
    rho, from_v, from_current, from_spike, gain, to_v, share = second_of(coefficients, f, features, SECOND)
    silent = tl.full((BB, BF), 0.0, tl.float32)
    carry, w_carry, live = silent, silent, inside
    length = tl.full((BB, 1), 0, tl.int32) + steps  # a block: the interpreter cannot join a scalar to a mask
    if HAS_LAST:
        carry, w_carry = load_states(dlast, 0, lane, layer, layer, inside, SECOND)
    if RAGGED:
        length = tl.load(lengths + b, mask=b < batch, other=0)
    d_beta, d_threshold, d_gain, d_rho, d_from_v = silent, silent, silent, silent, silent
    d_from_current, d_from_spike, d_current_gain, d_to_v, d_share = silent, silent, silent, silent, silent
    v, w = silent, silent
    if KIND != INTEGRATE or LEARN > 0:
        v, w = load_states(states, steps, lane, layer, course, inside, SECOND)
    trace, w_trace = v, w
    if KIND == TRACE:
        trace, w_trace = load_states(traces, steps, lane, layer, course, inside, SECOND)
    fired = silent
    if GATED:
        fired = tl.load(spikes + (steps - 1) * layer + lane, mask=inside, other=0.0).to(tl.float32)
    elif KIND != INTEGRATE:
        fired = tl.where(level_of(v, w, share, SECOND) > threshold, 1.0, silent)
    k = factors + f
    for back in range(steps):
        t = steps - 1 - back
        g = tl.load(grad + t * tl.cast(grad_t, tl.int64) + b * grad_b + f, mask=inside, other=0.0).to(tl.float32)
        v_before, w_before = silent, silent
        if KIND != INTEGRATE or LEARN > 0:
            v_before, w_before = load_states(states, t, lane, layer, course, inside, SECOND)
        trace_before, w_trace_before = v_before, w_before
        if KIND == TRACE:
            trace_before, w_trace_before = load_states(traces, t, lane, layer, course, inside, SECOND)
        fired_before = silent
        if GATED:
            now = tl.full((BB, 1), 0, tl.int32) + t
            fired_before = tl.load(spikes + (t - 1) * layer + lane, mask=inside & (now > 0), other=0.0).to(tl.float32)
            fired_before += tl.load(spikes_start + lane, mask=inside & (now == 0), other=0.0)
        elif KIND != INTEGRATE:
            fired_before = tl.where(level_of(v_before, w_before, share, SECOND) > threshold, 1.0, silent)
        at = k + t * tl.cast(factors_t, tl.int64)
        if KIND == INTEGRATE:
            du = g
        elif KIND == SURROGATE:
            kg = tl.load(at + factor, mask=f < features, other=0.0)
            du = kg * g * slope_of(level_of(v, w, share, SECOND) - threshold, p, extra, SHAPE)
        else:
            x, q, slope = target_of(
                v, w, trace, w_trace, fired, beta, threshold, trace_gain, rho, from_v, from_spike, to_v, share,
                p, extra, floor, ceiling, KIND, SHAPE, SECOND,
            )  # fmt: skip
            k0, kg = tl.load(at, mask=f < features, other=0.0), tl.load(at + factor, mask=f < features, other=0.0)
            kx = tl.load(at + 2 * factor, mask=f < features, other=0.0)
            kq = tl.load(at + 3 * factor, mask=f < features, other=0.0)
            du = slope * (k0 + kg * g + kx * x + kq * q)
        if RAGGED:
            live = inside & (length > t)
        du = tl.where(live, du, 0.0)  # beyond the tile's edge the factors are not 0
        dv, dw = du + carry, silent
        dinput, carry_new = dv, beta * dv
        if SECOND:
            dw = w_carry - share * du + to_v * dv
            dinput, carry_new = gain * dv + from_current * dw, beta * dv + from_v * dw
        if RESET == ZERO:
            carry_new = carry_new - fired_before * carry_new
        if RAGGED:
            dv, dw, dinput = tl.where(live, dv, 0.0), tl.where(live, dw, 0.0), tl.where(live, dinput, 0.0)
            carry_new = tl.where(live, carry_new, carry)
        tl.store(dcurrent + t * layer + lane, dinput.to(dcurrent.dtype.element_ty), mask=inside)
        kept, w_kept, w_now = v_before, w_before, w
        if KIND == TRACE:
            kept, w_kept, w_now = trace_before, w_trace_before, w_trace
        if RESET == ZERO:
            kept = kept - fired_before * kept
        if (ONE << BETA) & LEARN:
            d_beta += dv * kept
        if (ONE << THRESHOLD) & LEARN:
            d_threshold -= du
            if RESET == SUBTRACT:
                d_threshold -= dv * fired_before
        if (ONE << GAIN) & LEARN:
            d_gain += du * level_of(trace, w_trace, share, SECOND)
        if SECOND:
            w_carry = tl.where(live, rho * dw, w_carry) if RAGGED else rho * dw
            if ((ONE << FROM_CURRENT) | (ONE << CURRENT_GAIN)) & LEARN:
                driving = tl.load(current + t * layer + lane, mask=live, other=0.0).to(tl.float32)
                d_from_current += dw * driving
                d_current_gain += dv * driving
            if (ONE << RHO) & LEARN:
                d_rho += dw * w_kept
            if (ONE << FROM_V) & LEARN:
                d_from_v += dw * kept
            if (ONE << FROM_SPIKE) & LEARN:
                d_from_spike += dw * fired_before
            if (ONE << TO_V) & LEARN:
                d_to_v += dv * w_now
            if (ONE << TO_THRESHOLD) & LEARN:
                d_share -= du * w_now
        v, w, trace, w_trace, fired, carry = v_before, w_before, trace_before, w_trace_before, fired_before, carry_new
    store_states(dstart, 0, lane, layer, layer, inside, carry, w_carry, SECOND)
    if LEARN > 0:
        neuron = tl.program_id(0) % ((features + BF - 1) // BF) * BF + tl.arange(0, BF)
        tiles = (batch + BB - 1) // BB
        store_total(d_beta, totals, BETA, neuron, features, tile, tiles)
        store_total(d_threshold, totals, THRESHOLD, neuron, features, tile, tiles)
        store_total(d_gain, totals, GAIN, neuron, features, tile, tiles)
        if SECOND:
            store_total(d_rho, totals, RHO, neuron, features, tile, tiles)
            store_total(d_from_v, totals, FROM_V, neuron, features, tile, tiles)
            store_total(d_from_current, totals, FROM_CURRENT, neuron, features, tile, tiles)
            store_total(d_from_spike, totals, FROM_SPIKE, neuron, features, tile, tiles)
            store_total(d_current_gain, totals, CURRENT_GAIN, neuron, features, tile, tiles)
            store_total(d_to_v, totals, TO_V, neuron, features, tile, tiles)
            store_total(d_share, totals, TO_THRESHOLD, neuron, features, tile, tiles)
