# pyright: reportCallIssue=false
"""Kernels of a layer whose currents are kept as whole numbers: a tile of neurons goes through all steps of a sample at once.

Currents, membranes and traces of a tile live in rows that stay in the caches; what main memory sees are whole numbers,
packed spikes and, backward, the output's gradient and the current's.
"""

import numpy as np
from numba import prange

from tbnn.bits import WORD_BITS
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.lif.backward import clear_row, membrane_adjoint_row, membrane_share, ridge_row, surrogate_row
from tbnn.ops.lif.rows import BETA, GAIN, NONE, SUBTRACT, THRESHOLD, ZERO, above_row, membrane_row, scratch
from tbnn.ops.lif.target import SURROGATE, TRACE, x_row, x_rows
from tbnn.ops.packed_lif.compare import greater64

GROUP = 64  # neurons compared at once
SINGLE = 4  # bytes
FEW = 32  # steps whose sums are taken in the precision of what is added up
SAMPLES = 8  # of a task: a constant, as the order of sums depends on it


@device_function
def pack_fired(v, threshold, fired, count, words):  # pyright: ignore
    """Bits v > θ of ``count`` neurons to words; v and θ reach to whole groups, ``fired`` (count,) is the same as floats."""
    if v.itemsize == SINGLE:
        for group in range((count + GROUP - 1) // GROUP):
            at = SINGLE * GROUP * group
            bits = greater64(v.ctypes.data + at, threshold.ctypes.data + at)
            left = count - GROUP * group
            if left < GROUP:
                bits &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
            words[2 * group] = np.uint32(bits)
            if left > WORD_BITS:
                words[2 * group + 1] = np.uint32(bits >> np.uint64(WORD_BITS))
    else:
        for j in range((count + WORD_BITS - 1) // WORD_BITS):
            row, word = fired[WORD_BITS * j : min(WORD_BITS * (j + 1), count)], np.uint32(0)
            for i in range(row.size):
                word |= np.uint32(row[i] > 0) << np.uint32(i)
            words[j] = word


@device_function
def counted_row(drive, t, b, lo, out):  # pyright: ignore
    """``scale·product + offset·ones + bias`` of neurons lo … lo + out.size at step t of sample b, in one loop a channel."""
    product, ones, has_offset = drive.product[t, b], drive.ones[t, b], drive.offset.size > 0
    pixels = product.size // drive.scale.size
    if pixels == 1 and ones.size <= 1:
        hi = lo + out.size
        p, s, c = product[lo:hi], drive.scale[lo:hi], drive.bias[lo:hi]
        if has_offset:
            o, n = drive.offset[lo:hi], np.float32(ones[0])
            for i in range(out.size):
                out[i] = np.float32(p[i]) * s[i] + n * o[i] + c[i]
        else:
            for i in range(out.size):
                out[i] = np.float32(p[i]) * s[i] + c[i]
        return
    groups, i = ones.size // pixels, 0
    while i < out.size:
        channel, pixel = (lo + i) // pixels, (lo + i) % pixels
        count = min(pixels - pixel, out.size - i)
        p, y, s, c = product[lo + i : lo + i + count], out[i : i + count], drive.scale[channel], drive.bias[channel]
        if has_offset:
            first, o = channel * groups // drive.scale.size * pixels + pixel, drive.offset[channel]
            n = ones[first : first + count]
            for j in range(count):
                y[j] = np.float32(p[j]) * s + np.float32(n[j]) * o + c
        else:
            for j in range(count):
                y[j] = np.float32(p[j]) * s + c
        i += count


@device_function
def scaled_row(normal, gamma, beta, lo, current):  # pyright: ignore
    """current = γ·ĉ + β."""
    factor, shift = gamma[lo : lo + current.size], beta[lo : lo + current.size]
    for f in range(current.size):
        current[f] = factor[f] * normal[f] + shift[f]


@device_function
def add_pair(x, q, bits, x_sum, q_sum, qq_sum, xq_sum):  # pyright: ignore
    """Add a row to sums of a few steps, in its own precision; of ``bits`` Σq² is Σq and stays as it is."""
    for f in range(x.size):
        x_sum[f] += x[f]
    for f in range(x.size):
        q_sum[f] += q[f]
    for f in range(x.size):
        xq_sum[f] += x[f] * q[f]
    if not bits:
        for f in range(x.size):
            qq_sum[f] += q[f] * q[f]


@device_function
def flush(part, total):  # pyright: ignore
    """Move sums (K, n) of a few steps to those of all, float64, and begin again."""
    for k in range(total.shape[0]):
        row, whole = part[k, : total.shape[1]], total[k]
        for f in range(whole.size):
            whole[f] += np.float64(row[f])
        row[:] = 0


@device_function
def held_rate_row(v, trace, beta, gain, threshold, q):  # pyright: ignore
    """q, spikes, becomes their trace as a rate: how far they and all earlier ones hold the level down."""
    for f in range(q.size):
        q[f] = gain[f] * (beta[f] * (trace[f] - v[f]) + threshold[f] * q[f])


@kernel
def tiled_scan(
    drive, gamma, shift, coefficients, reset, lengths, estimator, tile, v, traces, out, words, sums
):  # pyright: ignore  # fmt: skip
    """Advance plain neurons: v (B, F), traces (B, F) or (0, F) in place; words (T, B, ⌈F/32⌉) uint32 filled, padding bits 0.

    ``drive`` makes the normed current ĉ, ``gamma`` and ``shift`` (F,) that of the neurons, γ·ĉ + β.
    out (T, B, F) or (0, B, F): the spikes as floats. sums (groups of SAMPLES, 4, F) or (0, 4, F): Σx, Σq, Σq², Σx·q filled.
    """
    steps, batch, _ = words.shape
    features = v.shape[1]
    tiles = (features + tile - 1) // tile
    with_sums, by_trace = sums.shape[0] > 0, traces.shape[0] > 0
    for task in prange((batch + SAMPLES - 1) // SAMPLES * tiles):
        group, lo = task // tiles, task % tiles * tile
        hi = min(lo + tile, features)
        n = hi - lo
        room = scratch(8, tile + GROUP, v)
        room[:] = 0  # rows are compared up to whole groups
        beta, gain, current, theta = coefficients[BETA, lo:hi], coefficients[GAIN, lo:hi], room[0, :n], room[7]
        theta[:n] = coefficients[THRESHOLD, lo:hi]
        threshold = theta[:n]
        before, after, fired, x, faded, trace = room[1], room[2], room[3, :n], room[4, :n], room[5, :n], room[6, :n]
        part = scratch(4, n, v)
        part[:] = 0
        total = np.zeros((4, n if with_sums else 0), np.float64)
        for b in range(group * SAMPLES, min((group + 1) * SAMPLES, batch)):
            before[:n] = v[b, lo:hi]
            if by_trace:
                faded[:] = traces[b, lo:hi]
            for t in range(lengths[b]):
                counted_row(drive, t, b, lo, x)
                scaled_row(x, gamma, shift, lo, current)
                membrane_row(before[:n], current, beta, threshold, reset, after[:n])
                above_row(after[:n], threshold, fired)
                pack_fired(after, theta, fired, n, words[t, b, lo // WORD_BITS :])
                if out.shape[0] > 0:
                    out[t, b, lo:hi] = fired
                if by_trace:
                    membrane_row(faded, current, beta, threshold, NONE, trace)
                if with_sums:
                    x_row(estimator, trace if by_trace else after[:n], threshold, gain, x)
                    if by_trace:
                        held_rate_row(after[:n], trace, beta, gain, threshold, fired)
                    add_pair(x, fired, not by_trace, part[0, :n], part[1, :n], part[2, :n], part[3, :n])
                    if t % FEW == FEW - 1 or t == lengths[b] - 1:
                        flush(part, total)
                before, after = after, before
                faded, trace = trace, faded
            for t in range(lengths[b], steps):
                words[t, b, lo // WORD_BITS : (hi + WORD_BITS - 1) // WORD_BITS] = 0
                if out.shape[0] > 0:
                    out[t, b, lo:hi] = 0
            v[b, lo:hi] = before[:n]
            if by_trace:
                traces[b, lo:hi] = faded
        if with_sums:
            if not by_trace:
                total[2] = total[1]
            sums[group, :, lo:hi] = total


@device_function
def _again(drive, gamma, shift, coefficients, reset, steps, b, lo, normal, v, traces, current):  # pyright: ignore
    """The normed currents (T, >= n) and the states of a tile of sample b: v (T + 1, >= n) and traces, or (0, ...) for none; their first rows are the start."""
    n = current.size
    beta, threshold = coefficients[BETA, lo : lo + n], coefficients[THRESHOLD, lo : lo + n]
    for t in range(steps):
        counted_row(drive, t, b, lo, normal[t, :n])
        scaled_row(normal[t, :n], gamma, shift, lo, current)
        membrane_row(v[t, :n], current, beta, threshold, reset, v[t + 1, :n])
        if traces.shape[0] > 0:
            membrane_row(traces[t, :n], current, beta, threshold, NONE, traces[t + 1, :n])


@device_function
def _states(v_start, trace_start, steps, b, lo, hi):  # pyright: ignore
    """Rows for :func:`_again`."""
    n = hi - lo
    normal = scratch(steps, n, v_start)
    v = scratch(steps + 1, n, v_start)
    v[0, :n] = v_start[b, lo:hi]
    traces = scratch(steps + 1 if trace_start.shape[0] > 0 else 0, n, v_start)
    if trace_start.shape[0] > 0:
        traces[0, :n] = trace_start[b, lo:hi]
    return normal, v, traces


@device_function
def add_row_sums(d, normal, all_of, with_normal):  # pyright: ignore
    """Add a row d, and d·ĉ."""
    for f in range(d.size):
        all_of[f] += d[f]
    for f in range(d.size):
        with_normal[f] += d[f] * normal[f]


@device_function
def add_fired(g, words, total):  # pyright: ignore
    """total += g where a bit of words is set."""
    zero, whole = g.dtype.type(0), g.size // WORD_BITS
    for j in range(whole):
        word = words[j]
        for i in range(WORD_BITS):
            total[WORD_BITS * j + i] += g[WORD_BITS * j + i] if word >> np.uint32(i) & np.uint32(1) else zero
    for i in range(g.size - WORD_BITS * whole):
        total[WORD_BITS * whole + i] += (
            g[WORD_BITS * whole + i] if words[whole] >> np.uint32(i) & np.uint32(1) else zero
        )


@kernel
def tiled_gradient_sums(
    drive, gamma, shift, coefficients, lengths, by_trace, tile, v, traces, words, grad, sums
):  # pyright: ignore  # fmt: skip
    """Fill sums (groups of SAMPLES, 2, F) with ΣG and ΣG·q; q are the spikes, words (T, B, W) uint32, or their trace as a rate.

    grad is (1 or T, 1 or B, F).
    """
    batch, features = v.shape
    tiles = (features + tile - 1) // tile
    for task in prange(sums.shape[0] * tiles):
        group, lo = task // tiles, task % tiles * tile
        hi = min(lo + tile, features)
        n = hi - lo
        room = scratch(4, n, v)
        current, q, part = room[0, :n], room[1, :n], room[2:]
        beta, gain, threshold = coefficients[BETA, lo:hi], coefficients[GAIN, lo:hi], coefficients[THRESHOLD, lo:hi]
        total = np.zeros((2, n), np.float64)
        part[:] = 0
        all_of, kept = part[0, :n], part[1, :n]
        for b in range(group * SAMPLES, min((group + 1) * SAMPLES, batch)):
            normal, real, driven = _states(v, traces, lengths[b] if by_trace else 0, b, lo, hi)
            if by_trace:
                _again(
                    drive, gamma, shift, coefficients, SUBTRACT, lengths[b], b, lo, normal, real, driven, current
                )  # fmt: skip
            for t in range(lengths[b]):
                g = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0, lo:hi]
                for f in range(n):
                    all_of[f] += g[f]
                if by_trace:
                    above_row(real[t + 1, :n], threshold, q)
                    held_rate_row(real[t + 1, :n], driven[t + 1, :n], beta, gain, threshold, q)
                    for f in range(n):
                        kept[f] += g[f] * q[f]
                else:
                    add_fired(g, words[t, b, lo // WORD_BITS : (hi + WORD_BITS - 1) // WORD_BITS], kept)
                if t % FEW == FEW - 1 or t == lengths[b] - 1:
                    flush(part, total)
        sums[group, :, lo:hi] = total


@kernel
def tiled_backward(
    drive, gamma, shift, coefficients, reset, lengths, estimator, tile, v, traces, grad, factors, learn, carry, totals,
    dcurrent, sums,
):  # pyright: ignore  # fmt: skip
    """Walk time backwards from the whole numbers: dcurrent (T, B, F) filled, of the neurons' current γ·ĉ + β.

    v, traces: the states before the first step; drive, gamma, shift: as in :func:`tiled_scan`. Sums (groups of SAMPLES, 2, F)
    are filled with Σdcurrent and Σdcurrent·ĉ. The others as in :func:`tbnn.ops.lif.backward.scan_backward`.
    """
    _, batch, features = dcurrent.shape
    tiles = (features + tile - 1) // tile
    learns, with_fired = learn.any(), reset == ZERO or learn[THRESHOLD]
    for task in prange(sums.shape[0] * tiles):
        group, lo = task // tiles, task % tiles * tile
        hi = min(lo + tile, features)
        n = hi - lo
        room = scratch(8, n, v)
        x, q, w, du, current, kept = room[0, :n], room[1, :n], room[2, :n], room[3, :n], room[4, :n], room[5, :n]
        part = room[6:]
        part[:] = 0
        all_of, with_normal = part[0, :n], part[1, :n]
        beta, gain, threshold = coefficients[BETA, lo:hi], coefficients[GAIN, lo:hi], coefficients[THRESHOLD, lo:hi]
        total = np.zeros((2, n), np.float64)
        for b in range(group * SAMPLES, min((group + 1) * SAMPLES, batch)):
            normal, real, driven = _states(v, traces, lengths[b], b, lo, hi)
            _again(drive, gamma, shift, coefficients, reset, lengths[b], b, lo, normal, real, driven, current)
            levels = driven if estimator.kind == TRACE else real
            carry_b = carry[b, lo:hi]
            dcurrent[lengths[b] :, b, lo:hi] = 0
            for t in range(lengths[b] - 1, -1, -1):
                level = levels[t + 1, :n]
                g = grad[t if grad.shape[0] > 1 else 0, b if grad.shape[1] > 1 else 0, lo:hi]
                if estimator.kind == SURROGATE:
                    surrogate_row(estimator, level, threshold, g, factors[1, 0, lo:hi], w, du)
                else:
                    above_row(real[t + 1, :n], threshold, q)
                    if estimator.kind == TRACE:
                        held_rate_row(real[t + 1, :n], level, beta, gain, threshold, q)
                    x_rows(estimator, level, threshold, gain, x, w)
                    ridge_row(g, factors, 0, lo, x, q, w, du)
                if with_fired:
                    above_row(real[t, :n], threshold, q)
                d = dcurrent[t, b, lo:hi]
                membrane_adjoint_row(du, beta, carry_b, d)
                if reset == ZERO:
                    clear_row(q, carry_b)
                if learns:
                    kept[:] = levels[t, :n]
                    if reset == ZERO:
                        clear_row(q, kept)
                    membrane_share(learn, reset, level, kept, q, du, d, b, lo, totals)
                add_row_sums(d, normal[t, :n], all_of, with_normal)
                if t % FEW == 0:
                    flush(part, total)
        sums[group, :, lo:hi] = total


@kernel
def norm_back(drive, gain, lengths, tile, d):  # pyright: ignore
    """d (T, B, F), the gradient of a norm's output, becomes its input's: gain·d + what ``drive`` makes; gain (F,)."""
    steps, batch, features = d.shape
    tiles = (features + tile - 1) // tile
    for task in prange(steps * batch):
        t, b = task // batch, task % batch
        if t < lengths[b]:
            room = np.empty(tile, d.dtype)
            for i in range(tiles):
                row, factor = d[t, b, i * tile : (i + 1) * tile], gain[i * tile : (i + 1) * tile]
                more = room[: row.size]
                counted_row(drive, t, b, i * tile, more)
                for f in range(row.size):
                    row[f] = factor[f] * row[f] + more[f]
