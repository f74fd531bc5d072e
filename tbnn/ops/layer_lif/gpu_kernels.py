"""Triton kernels between packed spikes and numbers: packing and unpacking rows, currents of whole numbers, sums over spikes.

Launch with ``enable_fp_fusion=False``: currents are then rounded as the layer of weights rounds them.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl


@triton.jit
def pack_rows(values, words, strange, total, n, row_words, plane, CHECK: tl.constexpr, ROWS: tl.constexpr):
    """Bit ``plane`` of values (M, n) to words (M, ceil(n/32)), ``total`` in all, padding bits 0; a program fills ROWS.

    With CHECK, strange (programs,) int32 says which programs saw more than 0 and 1.
    """
    r, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, 32)[None, :]
    m, e = tl.cast(r // row_words, tl.int64), r % row_words * 32 + lane
    x = tl.load(values + m * n + e, mask=(r < total) & (e < n), other=0)
    bit = (x.to(tl.int32) >> plane) & 1
    tl.store(words + r, tl.sum(bit << lane, 1, keep_dims=True), mask=r < total)
    if CHECK:
        odd = tl.where(bit.to(tl.float32) == x.to(tl.float32), 0, 1)
        tl.store(strange + tl.program_id(0), tl.max(tl.max(odd, 1), 0))


@triton.jit
def unpack_rows(words, values, total, n, row_words, ROWS: tl.constexpr):
    """The inverse of :func:`pack_rows`: values (M, n) of 0 and 1."""
    r, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, 32)[None, :]
    m, e = tl.cast(r // row_words, tl.int64), r % row_words * 32 + lane
    bit = (tl.load(words + r, mask=r < total, other=0) >> lane) & 1
    tl.store(values + m * n + e, bit.to(values.dtype.element_ty), mask=(r < total) & (e < n))


@triton.jit
def scaled(
    product, ones, scale, offset, bias, out, rows, columns,
    OFFSET: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out (M, N) = scale·product + offset·ones + bias, added to what stands there with ADD, each operation rounded.

    product (M, N) and ones (M,) int32, scale, offset, bias (N,).
    """
    tiles = (columns + BN - 1) // BN
    m = tl.program_id(0) // tiles * BM + tl.arange(0, BM)[:, None]
    n = tl.program_id(0) % tiles * BN + tl.arange(0, BN)[None, :]
    inside, place = (m < rows) & (n < columns), tl.cast(m, tl.int64) * columns + n
    y = tl.load(product + place, mask=inside, other=0).to(tl.float32) * tl.load(scale + n, mask=n < columns, other=0.0)
    if OFFSET:
        count = tl.load(ones + m, mask=m < rows, other=0).to(tl.float32)
        y = y + count * tl.load(offset + n, mask=n < columns, other=0.0)
    if ADD:
        y = tl.load(out + place, mask=inside, other=0.0) + y
    if BIAS:
        y = y + tl.load(bias + n, mask=n < columns, other=0.0)
    tl.store(out + place, y, mask=inside)


@triton.jit
def gradient_sums(
    words, grad, grad_t, grad_b, lengths, out, batch, features, row_words, span, chunk, chunks,
    RAGGED: tl.constexpr, BB: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Fill out (2, groups·chunks, F) with ΣG and ΣG·q of what is alive, q the packed spikes words (T, B, W).

    Rows, groups and strides as in :func:`tbnn.ops.lif.gpu_kernels.target_sums`.
    """
    tiles = (features + BF - 1) // BF
    part = tl.program_id(0) // tiles
    f = tl.program_id(0) % tiles * BF + tl.arange(0, BF)[None, :]
    sum_g = tl.full((BB, BF), 0.0, tl.float32)
    sum_gq = sum_g
    first = part // chunks * span + part % chunks * chunk
    end = tl.minimum(first + chunk, part // chunks * span + span)
    for at in range(first, end, BB):
        row = at + tl.arange(0, BB)[:, None]
        t, b = row // batch, row % batch
        alive = (row < end) & (f < features)
        if RAGGED:
            alive = alive & (t < tl.load(lengths + b, mask=row < end, other=0))
        g = tl.load(grad + tl.cast(t, tl.int64) * grad_t + b * grad_b + f, mask=alive, other=0.0).to(tl.float32)
        word = tl.load(words + tl.cast(row, tl.int64) * row_words + f // 32, mask=alive, other=0)
        sum_g, sum_gq = sum_g + g, sum_gq + tl.where(((word >> (f % 32)) & 1) > 0, g, 0.0)
    neuron = tl.program_id(0) % tiles * BF + tl.arange(0, BF)
    into = out + tl.cast(part, tl.int64) * features + neuron
    size = tl.cast(tl.num_programs(0) // tiles, tl.int64) * features
    tl.store(into, tl.sum(sum_g, 0), mask=neuron < features)
    tl.store(into + size, tl.sum(sum_gq, 0), mask=neuron < features)
