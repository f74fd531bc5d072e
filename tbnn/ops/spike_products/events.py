# pyright: reportCallIssue=false
"""The weights' gradient where few inputs spike: for each input the rows of dy at its spikes, added up in registers."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.binary_linear.vectors import WORD, address, number
from tbnn.ops.kernels import kernel
from tbnn.ops.spike_products.turn import turn_16, vectors

VECTOR = 16  # reals
VECTORS = 4  # side by side in registers
WIDTH = VECTOR * VECTORS
CHUNK = 128  # rows of a tile: 32 KB, and their places in bytes fit 16 bits

_REALS = ir.VectorType(ir.FloatType(), VECTOR)
_SHORT = ir.IntType(16)


@intrinsic
def add_rows(_context, _places, _count, _tile, _out):  # pyright: ignore
    """out += (Σ of ``count`` rows of WIDTH float32 at ``places`` (uint16, bytes) in the tile); all but count are addresses."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        b, (places, count, tile, out) = builder, arguments
        vectors = [address(b, out, number(4 * VECTOR * v), _REALS) for v in range(VECTORS)]
        zero = ir.Constant(_REALS, [0.0] * VECTOR)
        before, loop, done = b.block, b.append_basic_block("row"), b.append_basic_block("done")
        b.cbranch(b.icmp_signed(">", count, number(0)), loop, done)
        b.position_at_end(loop)
        i, sums = b.phi(WORD), [b.phi(_REALS) for _ in vectors]
        place = b.zext(b.load(address(b, places, b.mul(i, number(2)), _SHORT), align=2), WORD)
        row = b.add(tile, place)
        grown = [
            b.fadd(total, b.load(address(b, row, number(4 * VECTOR * v), _REALS), align=4))
            for v, total in enumerate(sums)
        ]
        following = b.add(i, number(1))
        for phi, start, then in zip((i, *sums), (number(0), *[zero for _ in sums]), (following, *grown), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(then, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, done)
        b.position_at_end(done)
        last = [b.phi(_REALS) for _ in vectors]
        for phi, then in zip(last, grown, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(then, loop)
        for phi, vector in zip(last, vectors, strict=True):
            b.store(b.fadd(b.load(vector, align=4), phi), vector, align=4)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uintp, types.uintp), codegen


@kernel
def list_events_cpu(columns, starts, places):  # pyright: ignore
    """The spikes of each chunk of CHUNK rows, column by column, as places in a tile.

    columns (⌈M/64⌉, F) uint64; starts (chunks·F + 1,) int64, where each column of each chunk begins in places, uint16.
    """
    words, inputs = columns.shape
    chunks = (starts.shape[0] - 1) // inputs
    for chunk in prange(chunks):
        first = chunk * (CHUNK // 64)
        for f in range(inputs):
            at = starts[chunk * inputs + f]
            for k in range(first, min(first + CHUNK // 64, words)):
                word = columns[k, f]
                while word:
                    row = 64 * (k - first) + np.int64(popcount64(~word & (word - np.uint64(1))))
                    places[at] = np.uint16(row * (4 * WIDTH))
                    at += 1
                    word &= word - np.uint64(1)


@kernel
def add_events_cpu(dy, starts, places, sums):  # pyright: ignore
    """sums[n // WIDTH, f, n % WIDTH] += Σ of dy[m, n], dy (M, N) float32, over the spikes m of column f that were listed."""
    (rows, outputs), (strips, inputs, _) = dy.shape, sums.shape
    for task in prange(strips):
        n0, n1 = task * WIDTH, min((task + 1) * WIDTH, outputs)
        tile = vectors(CHUNK * VECTORS).reshape(CHUNK, WIDTH)
        for chunk in range((rows + CHUNK - 1) // CHUNK):
            m0 = chunk * CHUNK
            for m in range(m0, min(m0 + CHUNK, rows)):
                row, there = dy[m, n0:n1], tile[m - m0]
                for n in range(row.shape[0]):
                    there[n] = row[n]
            for f in range(inputs):
                at = starts[chunk * inputs + f]
                count = starts[chunk * inputs + f + 1] - at
                add_rows(places.ctypes.data + 2 * at, count, tile.ctypes.data, sums[task, f].ctypes.data)


@kernel
def turn_sums_cpu(sums, out):  # pyright: ignore
    """out (N, F) of the sums (⌈N/WIDTH⌉, F, WIDTH)."""
    outputs, inputs = out.shape
    for task in prange((outputs + VECTOR - 1) // VECTOR):
        n0 = task * VECTOR
        strip, lane = n0 // WIDTH, n0 % WIDTH
        if inputs < VECTOR or n0 + VECTOR > outputs:
            for n in range(n0, min(n0 + VECTOR, outputs)):
                for f in range(inputs):
                    out[n, f] = sums[strip, f, n - n0 + lane]
            continue
        for first in range(0, inputs, VECTOR):
            f0 = min(first, inputs - VECTOR)
            here, there = sums[strip, f0].ctypes.data + 4 * lane, out[n0].ctypes.data + 4 * f0
            turn_16(here, 4 * WIDTH, there, 4 * inputs)
