# pyright: reportCallIssue=false
"""What this core can do at most: AND, popcount and addition of 512-bit vectors in registers, and reading memory.

The loops are LLVM code, like the products they are held against, so that no C compiler is needed. Eight sums grow side by
side, which hides every latency; nothing is loaded. A bit-MAC is one spike bit times one weight bit, added to a sum.
"""

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.vectors import INDEX, LANES, VECTOR, WORD, ZERO, broadcast, number, popcount

CHAINS = 8  # vectors that are worked on side by side
VECTOR_BITS = 64 * LANES
ODD = 0x9E3779B97F4A7C15  # makes words of no pattern: the golden ratio's bits
RUNS = 7
LONGER = 8
JIT = {"nogil": True, "error_model": "numpy"}


def _chains(builder: Any, seed: Any) -> list[Any]:
    """A vector of its own for each chain, unknown to the compiler."""
    lanes = ir.Constant(VECTOR, [(ODD * (lane + 1)) % 2**64 for lane in range(LANES)])
    words = broadcast(builder, seed)
    return [builder.mul(words, builder.add(lanes, ir.Constant(VECTOR, [2 * i + 1] * LANES))) for i in range(CHAINS)]


def _loop(builder: Any, turns: Any, start: list[Any], body: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """``body`` on the values ``turns`` > 0 times."""
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    turn, values = builder.phi(WORD), [builder.phi(VECTOR) for _ in start]
    grown, following = body(values), builder.add(turn, number(1))
    for phi, first, then in zip((turn, *values), (number(0), *start), (following, *grown), strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(then, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, turns), loop, after)
    builder.position_at_end(after)
    return grown


def _folded(builder: Any, vectors: list[Any]) -> Any:
    """One word that depends on all, so that nothing is thrown away as unused."""
    total = functools.reduce(builder.xor, vectors)
    words = [builder.extract_element(total, ir.Constant(INDEX, lane)) for lane in range(LANES)]
    return functools.reduce(builder.xor, words)


@intrinsic
def _and_popcount_add(_context, _seed, _turns):  # pyright: ignore
    """(seed, turns): sum_i += popcount(x ∧ mask_i) for CHAINS sums, x another vector each turn; a word of no meaning."""

    def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        seed, turns = arguments
        masks = _chains(builder, seed)

        def body(values: list[Any]) -> list[Any]:
            x, *sums = values
            grown = [builder.add(s, popcount(builder, builder.and_(x, m))) for s, m in zip(sums, masks, strict=True)]
            return [builder.add(x, masks[0]), *grown]

        return _folded(builder, _loop(builder, turns, [masks[1], *([ZERO] * CHAINS)], body))

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def _and_popcount(_context, _seed, _turns):  # pyright: ignore
    """(seed, turns): x_i = popcount(x_i ∧ mask_i) for CHAINS vectors, without a sum; a word of no meaning."""

    def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        seed, turns = arguments
        masks = _chains(builder, seed)

        def body(values: list[Any]) -> list[Any]:
            return [popcount(builder, builder.and_(x, m)) for x, m in zip(values, masks, strict=True)]

        return _folded(builder, _loop(builder, turns, masks, body))

    return types.uint64(types.uint64, types.uint64), codegen


@numba.njit(**JIT)
def _count_and_add(seed, turns):  # pyright: ignore
    return _and_popcount_add(np.uint64(seed), np.uint64(turns))


@numba.njit(**JIT)
def _count(seed, turns):  # pyright: ignore
    return _and_popcount(np.uint64(seed), np.uint64(turns))


@numba.njit(**JIT)
def _read(a):  # pyright: ignore
    total = np.uint64(0)
    for i in range(a.shape[0]):
        total += a[i]
    return total


@numba.njit(**JIT)
def _triad(a, b, c):  # pyright: ignore
    """McCalpin's STREAM triad."""
    for i in range(a.shape[0]):
        a[i] = b[i] + 3.0 * c[i]


class Ceiling(NamedTuple):
    """A side to be timed in turn with products: AND, popcount and addition at the ceiling."""

    run: Callable[[], object]
    longer: int
    """How many times the product's bit-MACs it works off: more than once where threads have to be started first."""


@contextmanager
def ceiling(threads: int, bit_macs: int) -> Iterator[Ceiling]:
    """As much work as a product of so many bit-MACs, on so many threads."""
    longer = 1 if threads == 1 else LONGER
    turns = -(-longer * bit_macs // (threads * CHAINS * VECTOR_BITS))
    with ThreadPoolExecutor(threads) as pool:

        def together() -> list[Any]:
            return list(pool.map(lambda i: _count_and_add(i + 1, turns), range(threads)))

        yield Ceiling(together if threads > 1 else lambda: _count_and_add(1, turns), longer)


@contextmanager
def moving(threads: int, amount: int) -> Iterator[Callable[[], object]]:
    """A side that moves so many bytes, two read for each one written, on so many threads: the triad."""
    values = -(-amount // (24 * threads))
    floats = [[np.ones(values) for _ in range(3)] for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        yield lambda: list(pool.map(lambda i: _triad(*floats[i]), range(threads)))


def measure_ceilings(threads: int, tiny: bool) -> dict[str, float]:
    """The highest rates of several runs, all threads together: bit-MACs a second, and bytes a second from memory."""
    turns, values = (1 << 12, 1 << 16) if tiny else (1 << 22, 1 << 25)
    words = [np.ones(values, np.uint64) for _ in range(threads)]
    floats = [[np.ones(values) for _ in range(3)] for _ in range(threads)]
    bits = threads * turns * CHAINS * VECTOR_BITS
    with ThreadPoolExecutor(threads) as pool:

        def shortest(work: Callable[[int], object]) -> float:
            times = []
            for _ in range(RUNS + 1):  # the first run compiles
                start = time.perf_counter()
                list(pool.map(work, range(threads)))
                times.append(time.perf_counter() - start)
            return min(times[1:])

        return {
            "and_popcount_add_per_s": bits / shortest(lambda i: _count_and_add(i + 1, turns)),
            "and_popcount_per_s": bits / shortest(lambda i: _count(i + 1, turns)),
            "read_bytes_per_s": threads * 8 * values / shortest(lambda i: _read(words[i])),
            "triad_bytes_per_s": threads * 24 * values / shortest(lambda i: _triad(*floats[i])),
        }
