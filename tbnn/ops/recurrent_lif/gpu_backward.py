"""The gradient of a recurrent layer in Triton: a walk backwards in time, the weights' transposed product within it.

The gradient of what leaves at step t is the output's own and, one delay later, the current's through Ŵ. Programs and
launches are those of :mod:`tbnn.ops.recurrent_lif.gpu_kernels`; the neuron's equations those of tbnn/ops/lif/backward.py.
With a bare surrogate one launch may go through all steps. The DDT's statistics run over a step's whole batch, so there a
step takes two launches: the gradient of what leaves and its sums, then the neurons with the factors that the sums make.

The product runs on tensor cores in two halves. Values are whole numbers of at most 8 bits, exact in TF32; the gradient's 24
bits are split into 11 and 11, so that every product is exact but for the last two bits, and sums are float32.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl

from tbnn.ops.lif.gpu_backward import ONE
from tbnn.ops.lif.gpu_kernels import (
    BETA,
    CURRENT_GAIN,
    FROM_CURRENT,
    FROM_SPIKE,
    FROM_V,
    GAIN,
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
)
from tbnn.ops.recurrent_lif.gpu_kernels import samples_of


@triton.jit
def in_tf32(x):
    """The part of float32 numbers that TF32 holds, 11 significant bits."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def leaving(
    dcurrent, values, scale, offset, grad, grad_t, grad_b, dafter, length, t, b, f, steps, batch, features, wide, delay,
    OFFSET: tl.constexpr, HAS_AFTER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradient (BM, BN) of what leaves the neurons f at step t: the output's, those of the spikes that are still on
    their way in the end (``dafter``, (delay, B, N)), and the current's of step t + delay times Ŵ."""
    layer = tl.cast(batch * features, tl.int64)
    inside = (b < batch) & (f < features)
    g = tl.load(grad + t * tl.cast(grad_t, tl.int64) + b * grad_b + f, mask=inside, other=0.0)
    if HAS_AFTER:
        late = t + delay - length
        waits = inside & (late >= 0) & (late < delay)
        g += tl.load(dafter + late * layer + b * features + f, mask=waits, other=0.0)
    total, same = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, 1), tl.float32)
    row = dcurrent + (t + delay) * layer + b * features
    for first in range(0, tl.where(t + delay < steps, wide, 0), BN):
        k = first + tl.arange(0, BN)[None, :]
        d = tl.load(row + k, mask=(b < batch) & (k < features), other=0.0)
        if OFFSET:
            same += tl.sum(d * parameter(offset, 0, k, features), 1, keep_dims=True)
        d = d * parameter(scale, 0, k, features)
        w = tl.load(values + tl.cast(tl.trans(k), tl.int64) * wide + f).to(tl.float32)
        high = in_tf32(d)
        total = tl.dot(in_tf32(d - high), w, total, input_precision="tf32")
        total = tl.dot(high, w, total, input_precision="tf32")
    return g + (total + same)


@triton.jit
def fired_at(words, row, b, f, batch, wide, inside):
    """Spikes 0/1 of a row of words (rows, B, wide/32)."""
    across = wide // 32
    word = tl.load(words + row * (tl.cast(batch, tl.int64) * across) + b * across + f // 32, mask=inside, other=0)
    return ((word >> (f % 32)) & 1).to(tl.float32)


@triton.jit
def spikes_at(
    words, spikes_start, t, v, w, v_before, w_before, threshold, share, b, f, batch, features, wide, delay, inside,
    GATED: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Spikes of step t and of the step before: levels tell them, but for GATED neurons."""
    if GATED:
        first = tl.full(inside.shape, 0, tl.int32) + t == 0
        start = tl.load(spikes_start + b * features + f, mask=inside & first, other=0.0)
        before = fired_at(words, tl.maximum(t + delay - 1, 0), b, f, batch, wide, inside)
        return fired_at(words, t + delay, b, f, batch, wide, inside), tl.where(first, start, before)
    else:
        silent = tl.full(inside.shape, 0.0, tl.float32)
        now = tl.where(level_of(v, w, share, SECOND) > threshold, 1.0, silent)
        return now, tl.where(level_of(v_before, w_before, share, SECOND) > threshold, 1.0, silent)


@triton.jit
def add_total(totals, row: tl.constexpr, lane, layer, inside, value):
    """Add to a coefficient's gradient in totals (3 or 10, B, N)."""
    place = totals + row * layer + lane
    tl.store(place, tl.load(place, mask=inside, other=0.0) + value, mask=inside)


@triton.jit
def adjoint(
    coefficients, states, traces, words, spikes_start, current, carry, totals, dcurrent, g, k0, kg, kx, kq,
    length, t, b, f, steps, batch, features, wide, delay, p, extra, floor, ceiling,
    KIND: tl.constexpr, SHAPE: tl.constexpr, RESET: tl.constexpr, SECOND: tl.constexpr, GATED: tl.constexpr,
    RAGGED: tl.constexpr, LEARN: tl.constexpr,
):  # fmt: skip
    """Step t of a tile of neurons: fill dcurrent (T, B, N), take carry (1 or 2, B, N) a step back, add to totals.

    The gradient g of what leaves becomes ``du = slope·(k0 + kg·g + kx·x + kq·q)`` of the level.
    """
    lane, inside = b * features + f, (b < batch) & (f < features)
    layer = tl.cast(batch * features, tl.int64)
    course = (steps + 1) * layer
    beta, threshold = parameter(coefficients, BETA, f, features), parameter(coefficients, THRESHOLD, f, features)
    trace_gain = parameter(coefficients, GAIN, f, features)
    rho, from_v, from_current, from_spike, gain, to_v, share = second_of(coefficients, f, features, SECOND)
    v, w = load_states(states, t + 1, lane, layer, course, inside, SECOND)
    v_before, w_before = load_states(states, t, lane, layer, course, inside, SECOND)
    fired, fired_before = spikes_at(
        words, spikes_start, t, v, w, v_before, w_before, threshold, share, b, f, batch, features, wide, delay, inside,
        GATED, SECOND,
    )  # fmt: skip
    kept, w_kept, w_now, level = v_before, w_before, w, level_of(v, w, share, SECOND)
    if KIND == SURROGATE:
        du = kg * g * slope_of(level - threshold, p, extra, SHAPE)
    else:
        trace, w_trace = v, w
        if KIND == TRACE:
            trace, w_trace = load_states(traces, t + 1, lane, layer, course, inside, SECOND)
            kept, w_kept = load_states(traces, t, lane, layer, course, inside, SECOND)
            w_now, level = w_trace, level_of(trace, w_trace, share, SECOND)
        x, q, slope = target_of(
            v, w, trace, w_trace, fired, beta, threshold, trace_gain, rho, from_v, from_spike, to_v, share,
            p, extra, floor, ceiling, KIND, SHAPE, SECOND,
        )  # fmt: skip
        du = slope * (k0 + kg * g + kx * x + kq * q)
    live = inside
    if RAGGED:
        live = inside & (length > t)
    du = tl.where(live, du, 0.0)
    dv_last, dw_last = load_states(carry, 0, lane, layer, layer, inside, SECOND)
    dv, dw = du + dv_last, du
    dinput, dv_first, dw_first = dv, beta * dv, du
    if SECOND:
        dw = dw_last - share * du + to_v * dv
        dinput, dv_first, dw_first = gain * dv + from_current * dw, beta * dv + from_v * dw, rho * dw
    if RESET == ZERO:
        dv_first = dv_first - fired_before * dv_first
        kept = kept - fired_before * kept
    if RAGGED:
        dv, dw, dinput = tl.where(live, dv, 0.0), tl.where(live, dw, 0.0), tl.where(live, dinput, 0.0)
        dv_first, dw_first = tl.where(live, dv_first, dv_last), tl.where(live, dw_first, dw_last)
    tl.store(dcurrent + t * layer + lane, dinput, mask=inside)
    store_states(carry, 0, lane, layer, layer, inside, dv_first, dw_first, SECOND)
    if (ONE << BETA) & LEARN:
        add_total(totals, BETA, lane, layer, inside, dv * kept)
    if (ONE << THRESHOLD) & LEARN:
        d_threshold = -du
        if RESET == SUBTRACT:
            d_threshold = d_threshold - dv * fired_before
        add_total(totals, THRESHOLD, lane, layer, inside, d_threshold)
    if (ONE << GAIN) & LEARN:
        add_total(totals, GAIN, lane, layer, inside, du * level)
    if SECOND:
        if ((ONE << FROM_CURRENT) | (ONE << CURRENT_GAIN)) & LEARN:
            driving = tl.load(current + t * layer + lane, mask=live, other=0.0)
            add_total(totals, FROM_CURRENT, lane, layer, inside, dw * driving)
            add_total(totals, CURRENT_GAIN, lane, layer, inside, dv * driving)
        if (ONE << RHO) & LEARN:
            add_total(totals, RHO, lane, layer, inside, dw * w_kept)
        if (ONE << FROM_V) & LEARN:
            add_total(totals, FROM_V, lane, layer, inside, dw * kept)
        if (ONE << FROM_SPIKE) & LEARN:
            add_total(totals, FROM_SPIKE, lane, layer, inside, dw * fired_before)
        if (ONE << TO_V) & LEARN:
            add_total(totals, TO_V, lane, layer, inside, dv * w_now)
        if (ONE << TO_THRESHOLD) & LEARN:
            add_total(totals, TO_THRESHOLD, lane, layer, inside, -du * w_now)


@triton.jit
def length_of(lengths, b, steps, batch, RAGGED: tl.constexpr, BM: tl.constexpr):
    """How many steps of each sample there are, (BM, 1)."""
    if RAGGED:
        return tl.load(lengths + b, mask=b < batch, other=0)
    else:
        return tl.full((BM, 1), 0, tl.int32) + steps


@triton.jit(do_not_specialize=["last", "count"])
def surrogate_back(
    coefficients, states, words, spikes_start, current, carry, totals, dcurrent, values, scale, offset,
    grad, grad_t, grad_b, dafter, lengths, last, count, steps, batch, features, wide, span, delay, kg, p, extra,
    SHAPE: tl.constexpr, RESET: tl.constexpr, SECOND: tl.constexpr, GATED: tl.constexpr, RAGGED: tl.constexpr,
    LEARN: tl.constexpr, OFFSET: tl.constexpr, HAS_AFTER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``count`` steps back from step ``last``, with a bare surrogate times kg."""
    b, lo, hi = samples_of(wide, span, BM)
    length = length_of(lengths, b, steps, batch, RAGGED, BM)
    for back in range(count):
        t = last - back
        for at in range(lo, hi, BN):
            f = at + tl.arange(0, BN)[None, :]
            g = leaving(
                dcurrent, values, scale, offset, grad, grad_t, grad_b, dafter, length, t, b, f, steps, batch, features,
                wide, delay, OFFSET, HAS_AFTER, BM, BN,
            )  # fmt: skip
            adjoint(
                coefficients, states, states, words, spikes_start, current, carry, totals, dcurrent, g, 0.0, kg, 0.0, 0.0,
                length, t, b, f, steps, batch, features, wide, delay, p, extra, 0.0, 0.0,
                SURROGATE, SHAPE, RESET, SECOND, GATED, RAGGED, LEARN,
            )  # fmt: skip
        tl.debug_barrier()  # the step before reads what every warp of this one wrote


@triton.jit(do_not_specialize=["t"])
def gradient_sums(
    coefficients, states, traces, words, dcurrent, values, scale, offset, grad, grad_t, grad_b, dafter, lengths, left, sums,
    t, steps, batch, features, wide, span, delay, p, extra, floor, ceiling,
    KIND: tl.constexpr, SHAPE: tl.constexpr, SECOND: tl.constexpr, GATED: tl.constexpr, RAGGED: tl.constexpr,
    OFFSET: tl.constexpr, HAS_AFTER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Fill left (B, N) with the gradient of what leaves at step t, sums (2, programs) with ΣG and ΣGq; ``span`` is BN."""
    b, at, _ = samples_of(wide, span, BM)
    f = at + tl.arange(0, BN)[None, :]
    lane, inside = b * features + f, (b < batch) & (f < features)
    layer = tl.cast(batch * features, tl.int64)
    course = (steps + 1) * layer
    length = length_of(lengths, b, steps, batch, RAGGED, BM)
    g = leaving(
        dcurrent, values, scale, offset, grad, grad_t, grad_b, dafter, length, t, b, f, steps, batch, features,
        wide, delay, OFFSET, HAS_AFTER, BM, BN,
    )  # fmt: skip
    tl.store(left + lane, g, mask=inside)
    beta, threshold = parameter(coefficients, BETA, f, features), parameter(coefficients, THRESHOLD, f, features)
    trace_gain = parameter(coefficients, GAIN, f, features)
    rho, from_v, _current, from_spike, _gain, to_v, share = second_of(coefficients, f, features, SECOND)
    v, w = load_states(states, t + 1, lane, layer, course, inside, SECOND)
    trace, w_trace = v, w
    if KIND == TRACE:
        trace, w_trace = load_states(traces, t + 1, lane, layer, course, inside, SECOND)
    if GATED:
        fired = fired_at(words, t + delay, b, f, batch, wide, inside)
    else:
        fired = tl.where(level_of(v, w, share, SECOND) > threshold, 1.0, tl.zeros((BM, BN), tl.float32))
    _x, q, _slope = target_of(
        v, w, trace, w_trace, fired, beta, threshold, trace_gain, rho, from_v, from_spike, to_v, share,
        p, extra, floor, ceiling, KIND, SHAPE, SECOND,
    )  # fmt: skip
    live = inside & (length > t)
    g, gq = tl.where(live, g, 0.0), tl.where(live, g * q, 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(tl.sum(g, 1), 0))
    tl.store(sums + tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(gq, 1), 0))


@triton.jit
def sum_of(parts, count, PARTS: tl.constexpr):
    """The sum of float32 numbers, in float64."""
    lane = tl.arange(0, PARTS)
    return tl.sum(tl.load(parts + lane, mask=lane < count, other=0.0).to(tl.float64), 0)


@triton.jit(do_not_specialize=["t"])
def ridge_back(
    coefficients, states, traces, words, spikes_start, current, carry, totals, dcurrent, left, sums, ridges, lengths,
    t, steps, batch, features, wide, span, delay, p, extra, floor, ceiling,
    KIND: tl.constexpr, SHAPE: tl.constexpr, RESET: tl.constexpr, SECOND: tl.constexpr, GATED: tl.constexpr,
    RAGGED: tl.constexpr, LEARN: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Step t of the neurons with the DDT: ``left`` and ``sums`` from :func:`gradient_sums`, of as many programs.

    ridges (7, T) float64: kg, and k0, kx and kq for ΣG = 1, then for ΣGq = 1; all but kg are linear in these sums.
    """
    b, at, _ = samples_of(wide, span, BM)
    f = at + tl.arange(0, BN)[None, :]
    g_sum, gq_sum = (
        sum_of(sums, tl.num_programs(0), PARTS),
        sum_of(sums + tl.num_programs(0), tl.num_programs(0), PARTS),
    )
    kg = tl.load(ridges + t)
    k0 = tl.load(ridges + steps + t) * g_sum + tl.load(ridges + 4 * steps + t) * gq_sum
    kx = tl.load(ridges + 2 * steps + t) * g_sum + tl.load(ridges + 5 * steps + t) * gq_sum
    kq = tl.load(ridges + 3 * steps + t) * g_sum + tl.load(ridges + 6 * steps + t) * gq_sum
    g = tl.load(left + b * features + f, mask=(b < batch) & (f < features), other=0.0)
    adjoint(
        coefficients, states, traces, words, spikes_start, current, carry, totals, dcurrent, g,
        k0.to(tl.float32), kg.to(tl.float32), kx.to(tl.float32), kq.to(tl.float32),
        length_of(lengths, b, steps, batch, RAGGED, BM), t, b, f, steps, batch, features, wide, delay,
        p, extra, floor, ceiling, KIND, SHAPE, RESET, SECOND, GATED, RAGGED, LEARN,
    )  # fmt: skip
