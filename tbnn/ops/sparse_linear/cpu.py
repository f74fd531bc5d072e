# pyright: reportCallIssue=false
"""The event-driven product with sparse weights on the CPU: the lists of the active inputs, added output by output.

A connection costs a read of its index and one addition in the row of outputs. What was measured on one Zen 4 core, 65536
inputs and outputs, 1 % of the weights, 2 % of the inputs active, ns a connection: 1.8 plainly; 1.6 with four indices
read before their four additions; 0.9 with the lists of inputs to come asked for as well. Sums of 16 bits gained less than
a tenth, sums in tiles of the first cache's size lost a tenth to a half: the lists there are short.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.kernels import SERIAL_BELOW, device_function, kernel

AHEAD = 2  # how many inputs before its turn a list is asked for
LINE = 64  # bytes of a cache line

SORTED, UNSORTED, OUTSIDE, TWICE = 0, 1, 2, 3  # what check_lists finds


class Lists(NamedTuple):
    """Sparse weights as :class:`tbnn.ops.sparse_linear.SparseColumns` tells, for the kernels."""

    starts: npt.NDArray[np.int32]
    """(2·inputs + 1,)"""
    outputs: npt.NDArray[np.unsignedinteger[Any]]
    """(connections,) uint16 or uint32."""
    magnitudes: npt.NDArray[np.uint8]
    """(connections,), or (0,) where all are 1."""


@intrinsic
def _prefetch(_context: Any, _address: Any) -> Any:
    """Ask for the cache line at an address."""

    def codegen(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        name, kinds = "llvm.prefetch.p0i8", [pointer, number, number, number]
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), kinds), name
        )
        read, near, data = (ir.Constant(number, n) for n in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], pointer), read, near, data])
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64), codegen


@device_function
def _list_active(row, inputs, active):  # pyright: ignore
    """The places of the bits of row (K,) below ``inputs`` to ``active``; returns how many."""
    count = 0
    for k in range(row.shape[0]):
        word = row[k]
        while word:
            i = 64 * k + np.int64(popcount64(~word & (word - np.uint64(1))))
            word &= word - np.uint64(1)
            if i < inputs:
                active[count] = i
                count += 1
    return count


@device_function
def _first_not_below(outputs, first, last, border):  # pyright: ignore
    """The first place of outputs[first:last], which ascend, that is not below the border."""
    while first < last:
        middle = (first + last) // 2
        if outputs[middle] < border:
            first = middle + 1
        else:
            last = middle
    return first


@device_function
def _product_row(s, starts, outputs, magnitudes, lo, hi, row):  # pyright: ignore
    """row[lo:hi] from the spikes s (K,) of one row; returns how many connections it added."""
    inputs = starts.shape[0] // 2
    bits = np.uint64(0)
    for word in s:
        bits += popcount64(word)
    active = np.empty(np.int64(bits), np.int32)
    count = _list_active(s, inputs, active)
    row[lo:hi] = 0
    whole = lo == 0 and hi == row.shape[0]
    address, size, touched = outputs.ctypes.data, outputs.itemsize, 0
    for j in range(count):
        ahead = address + size * np.int64(starts[2 * active[min(j + AHEAD, count - 1)]])
        for line in range(4):
            _prefetch(ahead + LINE * line)
        for negative in range(2):
            place = 2 * active[j] + negative
            first, last = np.int64(starts[place]), np.int64(starts[place + 1])
            if not whole:
                first = _first_not_below(outputs, first, last, lo)
                last = _first_not_below(outputs, first, last, hi)
            touched += last - first
            delta = np.int32(1 - 2 * negative)
            if magnitudes.size:
                for p in range(first, last):
                    row[outputs[p]] += delta * np.int32(magnitudes[p])
                continue
            while first + 4 <= last:  # no output comes twice
                a, b, c, d = outputs[first], outputs[first + 1], outputs[first + 2], outputs[first + 3]
                row[a] += delta
                row[b] += delta
                row[c] += delta
                row[d] += delta
                first += 4
            while first < last:
                row[outputs[first]] += delta
                first += 1
    return touched


@kernel
def _product(s, starts, outputs, magnitudes, parts, out, touched):  # pyright: ignore
    """out (M, N) from spikes (M, K); the outputs of a row in ``parts`` tasks, touched (M·parts,) by each."""
    rows, columns = out.shape
    for task in prange(rows * parts):
        m, part = task // parts, task % parts
        lo, hi = columns * part // parts, columns * (part + 1) // parts
        touched[task] = _product_row(s[m], starts, outputs, magnitudes, lo, hi, out[m])


@device_function
def _few_products(s, starts, outputs, magnitudes, out):  # pyright: ignore
    """The same without threads."""
    touched = 0
    for m in range(out.shape[0]):
        touched += _product_row(s[m], starts, outputs, magnitudes, 0, out.shape[1], out[m])
    return touched


def sparse_product_cpu(
    s: npt.NDArray[np.uint64], lists: Lists, threads: int, out: npt.NDArray[np.int32], *, work: int
) -> int:
    """out (M, N) int32 from spike words s (M, K); returns the number of connections added, one for each spike of theirs.

    Rows go to threads; where there are fewer rows than ``threads``, so do ranges of their outputs. ``work`` decides about
    threads at all.
    """
    if work < SERIAL_BELOW or threads == 1:
        return int(_few_products(s, *lists, out))
    parts = max(1, -(-threads // max(1, len(s))))
    touched = np.zeros(len(s) * parts, np.int64)
    _product(s, *lists, parts, out, touched, work=work)
    return int(touched.sum())


@device_function
def check_lists(starts, outputs, columns):  # pyright: ignore
    """(what, where): whether each list ascends below ``columns`` and no output is in both lists of an input.

    ``starts`` has to be in order; ``where`` is the first connection at fault.
    """
    for i in range(starts.shape[0] // 2):
        first, middle, last = np.int64(starts[2 * i]), np.int64(starts[2 * i + 1]), np.int64(starts[2 * i + 2])
        for p in range(first, last):
            if outputs[p] >= columns:
                return OUTSIDE, p
            if p > first and p != middle and outputs[p] <= outputs[p - 1]:
                return UNSORTED, p
        p, q = first, middle
        while p < middle and q < last:
            if outputs[p] == outputs[q]:
                return TWICE, q
            if outputs[p] < outputs[q]:
                p += 1
            else:
                q += 1
    return SORTED, -1
