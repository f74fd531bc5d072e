"""Triton kernels of the simulator: products become currents, currents become packed spikes.

They repeat, operation by operation and in the same order, what the CPU's kernels do in float32 (:mod:`tbnn.ops.packed_lif`). Launch
with ``enable_fp_fusion=False``: every product and sum is then rounded by itself, and spikes are equal bit for bit.

A program holds a tile of samples × neurons, (BB, BF), and its membranes in registers; the loop over time is inside. BF is a
multiple of 32, so that no two programs share a word of spikes.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl

from tbnn.ops.binary_linear.gpu_kernels import popcount

SUBTRACT, ZERO = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def scaled(product, ones, scale, offset, OFFSET: tl.constexpr):
    """scale·product + offset·ones, of integers."""
    y = product.to(tl.float32) * scale
    if OFFSET:
        y = y + ones.to(tl.float32) * offset
    return y


@triton.jit
def membrane(v, current, beta, threshold, RESET: tl.constexpr):
    """``β·v + current − θ·1[v > θ]``, or another reset."""
    if RESET == SUBTRACT:
        return beta * v + current - tl.where(v > threshold, threshold, 0.0)
    elif RESET == ZERO:
        return beta * tl.where(v > threshold, 0.0, v) + current
    else:
        return beta * v + current


@triton.jit
def packed(fired, BB: tl.constexpr, BF: tl.constexpr):
    """Bits (BB, BF) as words (BB, BF / 32), lowest bit first; bits never overlap, so their sum is their OR."""
    lanes = tl.reshape(fired.to(tl.int32), (BB, BF // 32, 32))
    return tl.sum(lanes << tl.arange(0, 32)[None, None, :], 2)


@triton.jit
def tile_of(batch, features, words, BB: tl.constexpr, BF: tl.constexpr):
    """Sample (BB, 1), neuron (1, BF), whether they exist; the place of a word in a step (BB, BF / 32), whether it exists."""
    tiles = (features + BF - 1) // BF
    tile = tl.program_id(0) % tiles
    b = tl.program_id(0) // tiles * BB + tl.arange(0, BB)[:, None]
    f = tile * BF + tl.arange(0, BF)[None, :]
    w = tile * (BF // 32) + tl.arange(0, BF // 32)[None, :]
    return b, f, (b < batch) & (f < features), b * words + w, (b < batch) & (w < words)


@triton.jit
def values_of(values, f, features, THERE: tl.constexpr):
    """One float a neuron, (1, BF); a zero that nobody reads where there are none."""
    if THERE:
        return tl.load(values + f, mask=f < features, other=0.0)
    else:
        return 0.0


@triton.jit
def scale_rows(
    product, ones, scale, offset, bias, y, rows, columns,
    FIRST: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y (M, N) += scale·product + offset·ones (or = with FIRST), then + bias: product (M, N), ones (M,), the rest (N,)."""
    tiles = (columns + BN - 1) // BN
    m = tl.cast(tl.program_id(0) // tiles, tl.int64) * BM + tl.arange(0, BM)[:, None]
    n = tl.program_id(0) % tiles * BN + tl.arange(0, BN)[None, :]
    inside = (m < rows) & (n < columns)
    spikes = tl.load(ones + m, mask=m < rows, other=0)
    term = scaled(
        tl.load(product + m * columns + n, mask=inside, other=0), spikes, values_of(scale, n, columns, True),
        values_of(offset, n, columns, OFFSET), OFFSET,
    )  # fmt: skip
    if not FIRST:
        term = tl.load(y + m * columns + n, mask=inside, other=0.0) + term
    if BIAS:
        term = term + values_of(bias, n, columns, BIAS)
    tl.store(y + m * columns + n, term, mask=inside)


@triton.jit
def packed_scan(
    source, ones, scale, offset, bias, beta, threshold, start, last, out, steps, batch, features, words,
    RESET: tl.constexpr, PRODUCT: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr,
    BB: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Fill out (T, B, words) with packed spikes, and last (B, N) with the membranes after them, from start (B, N).

    source (T, B, N): currents, or with PRODUCT integers that scale, offset, bias (N,) and ones (T, B) make currents of.
    """
    b, f, inside, word, exists = tile_of(batch, features, words, BB, BF)
    lane, layer = b * features + f, tl.cast(batch * features, tl.int64)
    leak, level = values_of(beta, f, features, True), values_of(threshold, f, features, True)
    gain, shift = values_of(scale, f, features, PRODUCT), values_of(offset, f, features, OFFSET)
    more = values_of(bias, f, features, BIAS)
    v = tl.load(start + lane, mask=inside, other=0.0)
    until = tl.zeros((BB, 1), tl.int32) + steps  # a block: the interpreter cannot join a scalar to a mask
    upcoming = tl.load(source + lane, mask=inside, other=0)
    for t in range(steps):
        current = upcoming  # the next step's is on its way while this one is worked on
        ahead = tl.cast(t + 1, tl.int64) * layer
        upcoming = tl.load(source + ahead + lane, mask=inside & (until > t + 1), other=0)
        if PRODUCT:
            spikes = tl.load(ones + tl.cast(t, tl.int64) * batch + b, mask=b < batch, other=0)
            current = scaled(current, spikes, gain, shift, OFFSET)
            if BIAS:
                current = current + more
        v = membrane(v, current, leak, level, RESET)
        fired = packed((v > level) & inside, BB, BF)
        tl.store(out + tl.cast(t, tl.int64) * batch * words + word, fired, mask=exists)
    tl.store(last + lane, v, mask=inside)


@triton.jit
def weights_at(planes, j, f, k, features, in_words, BF: tl.constexpr, BW: tl.constexpr):
    """Words k (BW,) of plane j of the neurons f (1, BF): (1, BF, BW)."""
    row = planes + (tl.cast(j, tl.int64) * features + tl.reshape(f, (BF,)))[:, None] * in_words
    there = (tl.reshape(f, (BF,)) < features)[:, None] & (k < in_words)[None, :]
    return tl.load(row + k[None, :], mask=there, other=0)[None, :, :]


@triton.jit
def layer_scan(
    spikes, planes, factors, scale, offset, bias, beta, threshold, current, start, last, out,
    steps, batch, features, in_words, words, plane_count, constant,
    RESET: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr, CURRENT: tl.constexpr, RESIDENT: tl.constexpr,
    BB: tl.constexpr, BF: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """A layer of weights and its neurons at once: packed spikes (T, B, in_words) in, packed spikes (T, B, words) out.

    planes (P, N, in_words), factors (P,): as in ``binary_product``, and ``constant``·popcount(s) more. With CURRENT, current
    (T, B, N) is added. With RESIDENT the one plane's words, at most BW a row, stay on chip while time passes.
    """
    b, f, inside, word, exists = tile_of(batch, features, words, BB, BF)
    lane, layer = b * features + f, tl.cast(batch * features, tl.int64)
    leak, level = values_of(beta, f, features, True), values_of(threshold, f, features, True)
    gain, shift = values_of(scale, f, features, True), values_of(offset, f, features, OFFSET)
    more = values_of(bias, f, features, BIAS)
    v = tl.load(start + lane, mask=inside, other=0.0)
    column = tl.arange(0, BW)
    if RESIDENT:
        held, factor = weights_at(planes, 0, f, column, features, in_words, BF, BW), tl.load(factors)
    for t in range(steps):
        row = spikes + (tl.cast(t, tl.int64) * batch + b) * in_words
        ones = tl.zeros((BB, 1), tl.int32)
        product = tl.zeros((BB, BF), tl.int32)
        for first in range(0, in_words, BW):
            k = first + column
            s = tl.load(row + k[None, :], mask=(b < batch) & (k[None, :] < in_words), other=0)
            ones += tl.sum(popcount(s), 1, keep_dims=True)
            if RESIDENT:
                product += factor * tl.sum(popcount(s[:, None, :] & held), 2)
            else:
                for j in range(plane_count):
                    w = weights_at(planes, j, f, k, features, in_words, BF, BW)
                    product += tl.load(factors + j) * tl.sum(popcount(s[:, None, :] & w), 2)
        driving = scaled(product + constant * ones, ones, gain, shift, OFFSET)
        if BIAS:
            driving = driving + more
        if CURRENT:
            driving = tl.load(current + t * layer + lane, mask=inside, other=0.0) + driving
        v = membrane(v, driving, leak, level, RESET)
        fired = packed((v > level) & inside, BB, BF)
        tl.store(out + tl.cast(t, tl.int64) * batch * words + word, fired, mask=exists)
    tl.store(last + lane, v, mask=inside)
