"""Triton kernels of packed products: spikes times bit planes, by popcounts or on tensor cores, and counts of spikes.

All is integer arithmetic, so every tile, order and way gives the same bits. Rows of words may lie apart (strides in words);
the words of a row follow each other.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl


@triton.jit
def popcount(x):
    """The set bits of int32 words; a compiler knows this sum of bit fields (Warren, Hacker's Delight, 5-1) as one instruction."""
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def unpacked(words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Words (ROWS, WORDS) as int8 0/1 (ROWS, 32·WORDS), lowest bit first."""
    bits = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    return tl.reshape(bits.to(tl.int8), (ROWS, 32 * WORDS))


@triton.jit
def binary_product(
    spikes, planes, factors, shift, out, rows, columns, words, plane_count, spike_stride, plane_stride, row_stride,
    rows_like,
    SHIFT: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """out (M, N) = Σ_j factors[j]·popcount(s ∧ P_j) + shift: spikes (M, W), planes (P, N, W), factors (P,), shift (M,).

    With DOT bits become 0/1 in int8 tiles, which tensor cores multiply; else popcounts, a word at a time. ``rows_like`` is
    M's order of magnitude, for the choice of a tile alone.
    """
    tiles = (columns + BN - 1) // BN
    m, n = tl.program_id(0) // tiles * BM + tl.arange(0, BM), tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    spike_row = spikes + tl.cast(m, tl.int64)[:, None] * spike_stride
    total = tl.zeros((BM, BN), tl.int32)
    for j in range(plane_count):
        weight_row = planes + tl.cast(j, tl.int64) * plane_stride + tl.cast(n, tl.int64) * row_stride
        count = tl.zeros((BM, BN), tl.int32)
        if DOT:
            for first in range(0, words, BW):
                k = first + tl.arange(0, BW)[None, :]
                s = tl.load(spike_row + k, mask=(m[:, None] < rows) & (k < words), other=0)
                w = tl.load(weight_row[:, None] + k, mask=(n[:, None] < columns) & (k < words), other=0)
                count = tl.dot(unpacked(s, BM, BW), tl.trans(unpacked(w, BN, BW)), count, out_dtype=tl.int32)
        else:
            for k in range(words):
                s = tl.load(spike_row + k, mask=m[:, None] < rows, other=0)
                w = tl.load(weight_row[None, :] + k, mask=n[None, :] < columns, other=0)
                count += popcount(s & w)
        total += tl.load(factors + j) * count
    if SHIFT:
        total += tl.load(shift + m, mask=m < rows, other=0)[:, None]
    place = tl.cast(m, tl.int64)[:, None] * columns + n[None, :]
    tl.store(out + place, total, mask=(m[:, None] < rows) & (n[None, :] < columns))


@triton.jit
def count_rows(
    spikes, kept, ones, weighted, rows, words, stride, WEIGHTED: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr
):
    """ones (M,) int32: the spikes of each row (M, W). With WEIGHTED, weighted (M,) int64: Σ_i s_i·kept_i, kept (32·W,) int32."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    row = spikes + tl.cast(m, tl.int64)[:, None] * stride
    count, total = tl.zeros((BM,), tl.int32), tl.zeros((BM,), tl.int64)
    for first in range(0, words, BW):
        k = first + tl.arange(0, BW)
        s = tl.load(row + k[None, :], mask=(m[:, None] < rows) & (k[None, :] < words), other=0)
        count += tl.sum(popcount(s), 1)
        if WEIGHTED:
            i = 32 * first + tl.arange(0, 32 * BW)
            worth = tl.load(kept + i, mask=i < 32 * words, other=0)
            met = unpacked(s, BM, BW).to(tl.int32) * worth[None, :]
            total += tl.sum(met.to(tl.int64), 1)
    tl.store(ones + m, count, mask=m < rows)
    if WEIGHTED:
        tl.store(weighted + m, total, mask=m < rows)
