"""Triton kernel of a recurrent layer, forward: the spikes' way back through the weights and the neurons in one loop over time.

A step needs the spikes of all neurons of a sample, so one program keeps 16 samples, the least that tensor cores multiply,
for all steps, and goes through their neurons tile by tile; a barrier parts the steps. Where neurons are so many that one
program would be slow, programs share them, and a launch ends where spikes of other programs are needed: after ``delay`` steps.

Spikes travel as words of bits. They are unpacked into int8 in front of the weights' values, and the product is exact; what
follows rounds as the reference does, in its order, so that spikes of float32 are equal bit for bit. Launch with
``enable_fp_fusion=False``, as :mod:`tbnn.ops.lif.gpu_kernels` says, whose states, courses and coefficients these are.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl

from tbnn.ops.binary_linear.gpu_kernels import popcount, unpacked
from tbnn.ops.lif.gpu_kernels import (
    BETA,
    THRESHOLD,
    advance,
    level_of,
    load_states,
    parameter,
    second_of,
    store_states,
)


@triton.jit
def samples_of(wide, span, BM: tl.constexpr):
    """A program's samples (BM, 1) and the first and last of its neurons, of which there are ``span`` or fewer."""
    groups = (wide + span - 1) // span
    lo = tl.program_id(0) % groups * span
    return tl.program_id(0) // groups * BM + tl.arange(0, BM)[:, None], lo, tl.minimum(lo + span, wide)


@triton.jit
def packed(fired, BM: tl.constexpr, BN: tl.constexpr):
    """0/1 (BM, BN) as words (BM, BN/32), lowest bit first."""
    bits = tl.reshape(fired.to(tl.int32), (BM, BN // 32, 32))
    return tl.sum(bits << tl.arange(0, 32)[None, None, :], 2)


@triton.jit
def returned(words, values, b, f, batch, wide, OFFSET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """``spikes·valuesᵀ`` (BM, BN) and, with OFFSET, the spikes of each sample (BM, 1), int32.

    words (B, wide/32) of all neurons; values int8 (wide, wide), a row an output, of which f (1, BN) are wanted.
    """
    across = wide // 32
    product, ones = tl.zeros((BM, BN), tl.int32), tl.zeros((BM, 1), tl.int32)
    outputs = values + tl.cast(tl.trans(f), tl.int64) * wide
    for first in range(0, wide, BN):
        word = first // 32 + tl.arange(0, BN // 32)[None, :]
        s = tl.load(words + b * across + word, mask=b < batch, other=0)
        w = tl.load(outputs + first + tl.arange(0, BN)[None, :])
        product = tl.dot(unpacked(s, BM, BN // 32), tl.trans(w), product, out_dtype=tl.int32)
        if OFFSET:
            ones += tl.sum(popcount(s), 1, keep_dims=True)
    return product, ones


@triton.jit(do_not_specialize=["first", "count"])
def recurrent_scan(
    current, coefficients, values, scale, offset, bias, states, traces, spikes_before, waiting, lengths, words, out, total,
    first, count, steps, batch, features, wide, span, delay, refractory,
    RESET: tl.constexpr, SECOND: tl.constexpr, WITH_TRACE: tl.constexpr, GATED: tl.constexpr, RAGGED: tl.constexpr,
    OFFSET: tl.constexpr, BIAS: tl.constexpr, SAVES: tl.constexpr, TOTAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Run ``count`` steps of currents (T, B, N) from step ``first``, whose ``delay`` steps before are in words.

    Fills out (T, B, N) with spikes, words (delay + T, B, wide/32) from row delay, the courses: (1 or 2, T + 1, B, N) with
    SAVES, else (1 or 2, 1, B, N), one state that is overwritten; and with TOTAL total (T, B, N), all current that arrives.
    Row 0 of a course is the start. With GATED spikes_before and waiting (B, N) enter as before and leave as after.
    """
    b, lo, hi = samples_of(wide, span, BM)
    layer, plane = tl.cast(batch * features, tl.int64), tl.cast(batch, tl.int64) * (wide // 32)
    course = (steps + 1) * layer if SAVES else layer
    length = tl.full((BM, 1), 0, tl.int32) + steps  # a block: the interpreter cannot join a scalar to a mask
    if RAGGED:
        length = tl.load(lengths + b, mask=b < batch, other=0)
    for t in range(first, first + count):
        for at in range(lo, hi, BN):
            f = at + tl.arange(0, BN)[None, :]
            lane, inside = b * features + f, (b < batch) & (f < features)
            live = inside & (length > t)
            product, ones = returned(words + t * plane, values, b, f, batch, wide, OFFSET, BM, BN)
            y = product.to(tl.float32) * parameter(scale, 0, f, features)
            if OFFSET:
                y = y + ones.to(tl.float32) * parameter(offset, 0, f, features)
            if BIAS:
                y = y + parameter(bias, 0, f, features)
            driving = tl.load(current + t * layer + lane, mask=live, other=0.0) + y
            if TOTAL:
                tl.store(total + t * layer + lane, driving, mask=inside)
            beta, threshold = (
                parameter(coefficients, BETA, f, features),
                parameter(coefficients, THRESHOLD, f, features),
            )
            rho, from_v, from_current, from_spike, gain, to_v, share = second_of(coefficients, f, features, SECOND)
            before, after = 0, 0
            if SAVES:
                before, after = t, t + 1
            v, w = load_states(states, before, lane, layer, course, inside, SECOND)
            if GATED:
                fired = tl.load(spikes_before + lane, mask=inside, other=0.0)
            else:
                fired = tl.where(level_of(v, w, share, SECOND) > threshold, 1.0, tl.zeros((BM, BN), tl.float32))
            v_new, w_new = advance(
                v, w, fired, driving, beta, threshold, rho, from_v, from_current, from_spike, gain, to_v, RESET, SECOND
            )  # fmt: skip
            above = live & (level_of(v_new, w_new, share, SECOND) > threshold)
            if GATED:
                wait = tl.load(waiting + lane, mask=inside, other=0.0)
                above = above & (wait == 0)
                wait_new = tl.where(above, tl.cast(refractory, tl.float32), tl.maximum(wait - 1.0, 0.0))
                tl.store(waiting + lane, wait_new, mask=live)
                tl.store(spikes_before + lane, tl.where(above, 1.0, 0.0), mask=live)
            if RAGGED:
                v_new, w_new = tl.where(live, v_new, v), tl.where(live, w_new, w)
            store_states(states, after, lane, layer, course, inside, v_new, w_new, SECOND)
            if WITH_TRACE:
                trace, w_trace = load_states(traces, before, lane, layer, course, inside, SECOND)
                silent = tl.zeros((BM, BN), tl.float32)
                trace_new, w_trace_new = advance(
                    trace, w_trace, silent, driving, beta, threshold, rho, from_v, from_current, from_spike, gain, to_v,
                    2, SECOND,
                )  # fmt: skip
                if RAGGED:
                    trace_new, w_trace_new = (
                        tl.where(live, trace_new, trace),
                        tl.where(live, w_trace_new, w_trace),
                    )
                store_states(traces, after, lane, layer, course, inside, trace_new, w_trace_new, SECOND)
            tl.store(out + t * layer + lane, tl.where(above, 1.0, 0.0), mask=inside)
            word = at // 32 + tl.arange(0, BN // 32)[None, :]
            place = words + (t + delay) * plane + b * (wide // 32) + word
            tl.store(place, packed(above, BM, BN), mask=b < batch)
        tl.debug_barrier()  # the next step reads what every warp of this one wrote
