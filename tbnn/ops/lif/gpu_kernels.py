"""Triton kernels of the spiking neuron: the scan through time, the sums of the DDT, the scan back.

A program holds a tile of samples × neurons, (BB, BF), and their states in registers; the loop over time is inside. What a
neuron lacks costs nothing: the arguments in capitals are known when a kernel is compiled. States are float32, whatever
the current. Courses are (1 or 2, T + 1, B, F), v and where there is one w, row 0 the start; parameters are (3 or 10, F).

Launch with ``enable_fp_fusion=False``: every product and sum is then rounded by itself, as torch rounds it, and spikes
of float32 currents equal the reference's whatever the numbers. Arc tangent is a polynomial, which the interpreter can run.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl

# Rows of the coefficients; those from RHO on are ``Second``'s, in its order. As in cpu.py; kernels take constexpr.
BETA, THRESHOLD, GAIN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
RHO, FROM_V, FROM_CURRENT, FROM_SPIKE = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
CURRENT_GAIN, TO_V, TO_THRESHOLD = tl.constexpr(7), tl.constexpr(8), tl.constexpr(9)
SUBTRACT, ZERO = tl.constexpr(0), tl.constexpr(1)
SURROGATE, SOFT, TRACE, INTEGRATE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def arctan(x):
    """Arc tangent in float32, to 2e-7 (Cephes, Moshier 1989): folded into |x| <= tan(π/8), then a polynomial."""
    a = tl.abs(x)
    far, middle = a > 2.414213562373095, a > 0.4142135623730950
    top = tl.where(far, -1.0, tl.where(middle, a - 1.0, a))
    z = top / tl.where(far, a, tl.where(middle, a + 1.0, 1.0))
    base = tl.where(far, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    s = z * z
    tail = (((8.05374449538e-2 * s - 1.38776856032e-1) * s + 1.99777106478e-1) * s - 3.33329491539e-1) * s * z
    angle = base + (tail + z)
    return tl.where(x < 0, -angle, angle)


@triton.jit
def soft_of(u, p, SHAPE: tl.constexpr):
    """The soft spike at distance u from the threshold; see tbnn/surrogate.py for the codes of the shapes that have one."""
    if SHAPE == 1:
        return arctan(1.5707963267948966 * p * u) * 0.3183098861837907 + 0.5
    elif SHAPE == 2:
        return 0.5 + 0.5 * (p * u) / (1.0 + tl.abs(p * u))
    elif SHAPE == 3:
        e = tl.exp(-p * tl.abs(u))
        return tl.where(u < 0, e, 1.0) / (1.0 + e)
    elif SHAPE == 4:
        z = tl.minimum(1.0, tl.maximum(-1.0, u / p))
        return 0.5 + z - 0.5 * z * tl.abs(z)
    else:
        return tl.minimum(1.0, tl.maximum(0.0, 0.5 + u / p))


@triton.jit
def slope_of(u, p, extra, SHAPE: tl.constexpr):
    """The surrogate's derivative at u."""
    if SHAPE == 1:
        c = 1.5707963267948966 * p * u
        return 0.5 * p / (1.0 + c * c)
    elif SHAPE == 2:
        d = 1.0 + p * tl.abs(u)
        return 1.0 / (d * d)
    elif SHAPE == 3:
        e = tl.exp(-p * tl.abs(u))
        return p * e / ((1.0 + e) * (1.0 + e))
    elif SHAPE == 4:
        return tl.maximum(0.0, 1.0 - tl.abs(u) / p)
    elif SHAPE == 5:
        return tl.where(tl.abs(u) <= 0.5 * p, 1.0 / p, 0.0)
    elif SHAPE == 6:
        return tl.where(u > 0, 1.0, p)
    elif SHAPE == 7:
        return tl.where(u >= 0, -p, p)
    elif SHAPE == 8:
        return extra * tl.exp(-p * tl.abs(u - 1.0))
    else:
        d = 1.0 + p * tl.abs(u)
        return tl.where(u > extra, 1.0 / (d * d), 0.0)


@triton.jit
def tile_of(batch, features, BB: tl.constexpr, BF: tl.constexpr):
    """(sample (BB, 1), neuron (1, BF), their place in a step, whether they exist, which tile of samples it is)."""
    tiles = (features + BF - 1) // BF
    row = tl.program_id(0) // tiles
    b = row * BB + tl.arange(0, BB)[:, None]
    f = tl.program_id(0) % tiles * BF + tl.arange(0, BF)[None, :]
    return b, f, b * features + f, (b < batch) & (f < features), row


@triton.jit
def parameter(coefficients, row: tl.constexpr, f, features):
    """A coefficient of the tile's neurons, (1, BF)."""
    return tl.load(coefficients + row * features + f, mask=f < features, other=0.0)


@triton.jit
def second_of(coefficients, f, features, SECOND: tl.constexpr):
    """``Second``, in its order; zeros, never read, where there is no second state."""
    if SECOND:
        rho = parameter(coefficients, RHO, f, features)
        from_v = parameter(coefficients, FROM_V, f, features)
        from_current = parameter(coefficients, FROM_CURRENT, f, features)
        from_spike = parameter(coefficients, FROM_SPIKE, f, features)
        gain = parameter(coefficients, CURRENT_GAIN, f, features)
        to_v = parameter(coefficients, TO_V, f, features)
        share = parameter(coefficients, TO_THRESHOLD, f, features)
        return rho, from_v, from_current, from_spike, gain, to_v, share
    else:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0


@triton.jit
def load_states(course, row, lane, layer, length, inside, SECOND: tl.constexpr):
    """(v, w) of a row of a course; w is v where there is no second state."""
    v = tl.load(course + row * layer + lane, mask=inside, other=0.0)
    if SECOND:
        return v, tl.load(course + length + row * layer + lane, mask=inside, other=0.0)
    else:
        return v, v


@triton.jit
def store_states(course, row, lane, layer, length, inside, v, w, SECOND: tl.constexpr):
    """The inverse of :func:`load_states`."""
    tl.store(course + row * layer + lane, v, mask=inside)
    if SECOND:
        tl.store(course + length + row * layer + lane, w, mask=inside)


@triton.jit
def level_of(v, w, share, SECOND: tl.constexpr):
    """What is compared with θ: ``cell.effective``."""
    if SECOND:
        return v - share * w
    else:
        return v


@triton.jit
def advance(
    v, w, fired, current, beta, threshold, rho, from_v, from_current, from_spike, gain, to_v,
    RESET: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """``cell.advance``: one step of the states."""
    if RESET == ZERO:
        v = (1.0 - fired) * v
    if SECOND:
        w = rho * w + from_v * v + from_current * current + from_spike * fired
        v = beta * v + to_v * w + gain * current
    else:
        v = beta * v + current
    if RESET == SUBTRACT:
        v = v - threshold * fired
    if SECOND:
        return v, w
    else:
        return v, v


@triton.jit
def target_of(
    v, w, trace, w_trace, fired, beta, threshold, trace_gain, rho, from_v, from_spike, to_v, share, p, extra, floor, ceiling,
    KIND: tl.constexpr, SHAPE: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """The pair (x, q) that the DDT reconciles and w = dx/dlevel, from the states after a step and its spikes."""
    if KIND == SOFT:
        u = level_of(v, w, share, SECOND) - threshold
        return soft_of(u, p, SHAPE), fired, slope_of(u, p, extra, SHAPE) / extra
    else:
        held = beta * (trace - v) + threshold * fired
        if SECOND:
            down = rho * (w_trace - w) + from_v * (trace - v) - from_spike * fired
            held = beta * (trace - v) + to_v * down + threshold * fired - share * down
        raw = trace_gain * level_of(trace, w_trace, share, SECOND)
        slope = tl.where((raw >= floor) & (raw <= ceiling), trace_gain, 0.0)
        return tl.minimum(tl.maximum(raw, floor), ceiling), trace_gain * held, slope


@triton.jit
def scan(
    current, coefficients, start, trace_start, spikes_start, waiting, lengths, out, states, traces, last, trace_last,
    steps, batch, features, refractory,
    RESET: tl.constexpr, SECOND: tl.constexpr, WITH_TRACE: tl.constexpr, GATED: tl.constexpr, RAGGED: tl.constexpr,
    SAVES: tl.constexpr, SPIKES: tl.constexpr, BB: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Run currents (T, B, F) from ``start`` (1 or 2, B, F): fill ``out`` with spikes, or with v where not SPIKES.

    ``last`` (1 or 2, B, F) becomes the final state, and with WITH_TRACE ``trace_last`` likewise. With SAVES the courses
    are filled. With GATED, waiting (B, F) enters as the state before and leaves as the state after, and spikes_start
    (B, F) leaves as the last step's. With RAGGED ``lengths`` (B,) int32 says when each sample stops.
    """
    b, f, lane, inside, _ = tile_of(batch, features, BB, BF)
    layer = tl.cast(batch * features, tl.int64)
    course = (steps + 1) * layer
    beta, threshold = parameter(coefficients, BETA, f, features), parameter(coefficients, THRESHOLD, f, features)
    rho, from_v, from_current, from_spike, gain, to_v, share = second_of(coefficients, f, features, SECOND)
    v, w = load_states(start, 0, lane, layer, layer, inside, SECOND)
    trace, w_trace = v, w
    if WITH_TRACE:
        trace, w_trace = load_states(trace_start, 0, lane, layer, layer, inside, SECOND)
    if SAVES:
        store_states(states, 0, lane, layer, course, inside, v, w, SECOND)
        if WITH_TRACE:
            store_states(traces, 0, lane, layer, course, inside, trace, w_trace, SECOND)
    one = tl.full((BB, BF), 1.0, tl.float32)
    silent = one - one
    fired = tl.where(level_of(v, w, share, SECOND) > threshold, one, silent) if SPIKES else silent
    wait, live = silent, inside
    length = tl.full((BB, 1), 0, tl.int32) + steps  # a block: the interpreter cannot join a scalar to a mask
    if GATED:
        fired = tl.load(spikes_start + lane, mask=inside, other=0.0)
        wait = tl.load(waiting + lane, mask=inside, other=0.0)
    if RAGGED:
        length = tl.load(lengths + b, mask=b < batch, other=0)
    upcoming = tl.load(current + lane, mask=inside & (length > 0), other=0.0)
    for t in range(steps):
        driving = upcoming.to(tl.float32)  # the next step's is on its way while this one is worked on
        ahead = t + 1
        upcoming = tl.load(current + ahead * layer + lane, mask=inside & (length > ahead), other=0.0)
        v_new, w_new = advance(
            v, w, fired, driving, beta, threshold, rho, from_v, from_current, from_spike, gain, to_v, RESET, SECOND
        )  # fmt: skip
        fired_new = silent
        if SPIKES:
            above = level_of(v_new, w_new, share, SECOND) > threshold
            fired_new = tl.where(above & (wait == 0), one, silent) if GATED else tl.where(above, one, silent)
        if GATED:
            wait_new = tl.where(fired_new > 0, refractory + silent, tl.maximum(wait - 1.0, 0.0))
        if WITH_TRACE:
            trace_new, w_trace_new = advance(
                trace, w_trace, silent, driving, beta, threshold, rho, from_v, from_current, from_spike, gain, to_v,
                2, SECOND,
            )  # fmt: skip
        if RAGGED:
            live = inside & (length > t)
            v_new, fired_new = tl.where(live, v_new, v), tl.where(live, fired_new, fired)
            if SECOND:
                w_new = tl.where(live, w_new, w)
            if GATED:
                wait_new = tl.where(live, wait_new, wait)
            if WITH_TRACE:
                trace_new, w_trace_new = tl.where(live, trace_new, trace), tl.where(live, w_trace_new, w_trace)
        v, w, fired = v_new, w_new, fired_new
        if GATED:
            wait = wait_new
        if WITH_TRACE:
            trace, w_trace = trace_new, w_trace_new
        leaves = tl.where(live, fired, 0.0) if SPIKES else v
        tl.store(out + t * layer + lane, leaves.to(out.dtype.element_ty), mask=inside)
        if SAVES:
            store_states(states, t + 1, lane, layer, course, inside, v, w, SECOND)
            if WITH_TRACE:
                store_states(traces, t + 1, lane, layer, course, inside, trace, w_trace, SECOND)
    store_states(last, 0, lane, layer, layer, inside, v, w, SECOND)
    if WITH_TRACE:
        store_states(trace_last, 0, lane, layer, layer, inside, trace, w_trace, SECOND)
    if GATED:
        tl.store(spikes_start + lane, fired, mask=inside)
        tl.store(waiting + lane, wait, mask=inside)


@triton.jit
def target_sums(
    coefficients, states, traces, spikes, grad, grad_t, grad_b, lengths, out, steps, batch, features, span, chunk, chunks,
    p, extra, floor, ceiling,
    KIND: tl.constexpr, SHAPE: tl.constexpr, SECOND: tl.constexpr, GATED: tl.constexpr, RAGGED: tl.constexpr,
    WITH_GRAD: tl.constexpr, BB: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Fill out (4 or 6, groups·chunks, F) with Σx, Σq, Σq², Σxq and, WITH_GRAD, ΣG, ΣGq of what is alive.

    A row is a sample at a step; a group is ``span`` rows, summed in ``chunks`` parts of ``chunk`` rows.
    """
    tiles = (features + BF - 1) // BF
    part = tl.program_id(0) // tiles
    f = tl.program_id(0) % tiles * BF + tl.arange(0, BF)[None, :]
    layer = tl.cast(batch * features, tl.int64)
    course = (steps + 1) * layer
    beta, threshold = parameter(coefficients, BETA, f, features), parameter(coefficients, THRESHOLD, f, features)
    trace_gain = parameter(coefficients, GAIN, f, features)
    rho, from_v, _current, from_spike, _gain, to_v, share = second_of(coefficients, f, features, SECOND)
    sum_x = tl.full((BB, BF), 0.0, tl.float32)
    sum_q, sum_qq, sum_xq, sum_g, sum_gq = sum_x, sum_x, sum_x, sum_x, sum_x
    first = part // chunks * span + part % chunks * chunk
    end = tl.minimum(first + chunk, part // chunks * span + span)
    for at in range(first, end, BB):
        row = at + tl.arange(0, BB)[:, None]
        t, b = row // batch, row % batch
        alive = (row < end) & (f < features)
        if RAGGED:
            alive = alive & (t < tl.load(lengths + b, mask=row < end, other=0))
        lane = tl.cast(row, tl.int64) * features + f
        v, w = load_states(states, 1, lane, layer, course, alive, SECOND)
        trace, w_trace = v, w
        if KIND == TRACE:
            trace, w_trace = load_states(traces, 1, lane, layer, course, alive, SECOND)
        if GATED:
            fired = tl.load(spikes + lane, mask=alive, other=0.0).to(tl.float32)
        else:
            fired = tl.where(level_of(v, w, share, SECOND) > threshold, 1.0, 0.0)
        x, q, _slope = target_of(
            v, w, trace, w_trace, fired, beta, threshold, trace_gain, rho, from_v, from_spike, to_v, share,
            p, extra, floor, ceiling, KIND, SHAPE, SECOND,
        )  # fmt: skip
        x, q = tl.where(alive, x, 0.0), tl.where(alive, q, 0.0)
        sum_x, sum_q, sum_qq, sum_xq = sum_x + x, sum_q + q, sum_qq + q * q, sum_xq + x * q
        if WITH_GRAD:
            place = tl.cast(t, tl.int64) * grad_t + b * grad_b + f
            g = tl.load(grad + place, mask=alive, other=0.0).to(tl.float32)
            sum_g, sum_gq = sum_g + g, sum_gq + g * q
    neuron = tl.program_id(0) % tiles * BF + tl.arange(0, BF)
    into = out + tl.cast(part, tl.int64) * features + neuron
    size = tl.cast(tl.num_programs(0) // tiles, tl.int64) * features
    exists = neuron < features
    tl.store(into, tl.sum(sum_x, 0), mask=exists)
    tl.store(into + size, tl.sum(sum_q, 0), mask=exists)
    tl.store(into + 2 * size, tl.sum(sum_qq, 0), mask=exists)
    tl.store(into + 3 * size, tl.sum(sum_xq, 0), mask=exists)
    if WITH_GRAD:
        tl.store(into + 4 * size, tl.sum(sum_g, 0), mask=exists)
        tl.store(into + 5 * size, tl.sum(sum_gq, 0), mask=exists)
