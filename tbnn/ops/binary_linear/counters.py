"""The inner loops of the event-driven product: weight columns added up in bit-sliced counters, as LLVM vector code.

A column holds one bit per output. Counters are bit planes: bit n of plane p is bit p of output n's count, so that one
full adder, two instructions with AVX-512, serves 512 outputs. Columns enter eight at a time through a tree of seven
full adders [1]. Its carry, worth eight, waits in its plane until the next one comes and both are added, so that plane
p is touched once in 2^p columns.

[1] Mula, Kurz, Lemire, Faster population counts using AVX2 instructions, The Computer Journal 61, 2018 (after Harley
    and Seal).
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tbnn.ops.binary_linear.vectors import (
    BIT,
    BYTE,
    INDEX,
    LANES,
    VECTOR,
    WORD,
    ZERO,
    address,
    broadcast,
    full_adder,
    number,
)

LOW = 4  # planes below a block's carry
BLOCK = 1 << LOW  # columns added together
PLANES = 32
VECTOR_BYTES = 8 * LANES

_BYTES, _BITS, _COUNTS = (ir.VectorType(kind, 64) for kind in (BYTE, BIT, INDEX))
_PLACES, _INDICES = ir.VectorType(BYTE, 8), ir.VectorType(INDEX, 8)


class _Strip:
    """Addresses and adders for strips that are ``vectors`` vectors wide."""

    def __init__(self, context: Any, builder: Any, vectors: int) -> None:
        self.context, self.builder, self.vectors, self.bytes = context, builder, vectors, VECTOR_BYTES * vectors

    def plane(self, planes: Any, level: Any, slot: int, v: int) -> Any:
        """Pointer to a plane's vector: slot 0 its counter bits, slot 1 the carry that waits."""
        offset = self.builder.mul(level, number(2 * self.bytes))
        return address(
            self.builder, self.builder.add(planes, offset), number(slot * self.bytes + v * VECTOR_BYTES), VECTOR
        )

    def add(self, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
        return full_adder(self.context, self.builder, x, y, z)

    def tree(self, low: list[Any], columns: list[Any]) -> Any:
        """Add 2^p columns to the low planes 0 … p − 1, changed in place; the carry."""
        if len(columns) == 1:
            return columns[0]
        half = len(columns) // 2
        first, second = self.tree(low, columns[:half]), self.tree(low, columns[half:])
        level = half.bit_length() - 1
        low[level], carry = self.add(low[level], first, second)
        return carry

    def loop_levels(self, levels: Any, first: int, carried: list[Any], body: Callable[..., list[Any]]) -> None:
        """For each level first … levels − 1, body(level, values) -> the values of the next one."""
        b = self.builder
        before, loop, done = b.block, b.append_basic_block("level"), b.append_basic_block("done")
        b.cbranch(b.icmp_unsigned("<", number(first), levels), loop, done)
        b.position_at_end(loop)
        level, values = b.phi(WORD), [b.phi(value.type) for value in carried]
        following = b.add(level, number(1))
        for phi, start, then in zip(
            (level, *values), (number(first), *carried), (following, *body(level, values)), strict=True
        ):
            phi.add_incoming(start, before)
            phi.add_incoming(then, loop)
        b.cbranch(b.icmp_unsigned("<", following, levels), loop, done)
        b.position_at_end(done)


def _add_blocks(strip: _Strip, indices: Any, blocks: Any, columns: Any, planes: Any) -> None:
    """All blocks but what waits at the end: see :func:`count_columns`."""
    b, every = strip.builder, range(strip.vectors)
    before, loop, level_loop, deeper, rest, done = (
        b.block,
        *(b.append_basic_block(name) for name in ("block", "carry", "deeper", "rest", "done")),
    )
    b.cbranch(b.icmp_unsigned(">", blocks, number(0)), loop, done)

    b.position_at_end(loop)
    block = b.phi(WORD)
    low = [[b.phi(VECTOR) for _ in range(LOW)] for _ in every]
    places = []
    for i in range(BLOCK):
        offset = b.add(b.mul(block, number(4 * BLOCK)), number(4 * i))
        index = b.zext(b.load(address(b, indices, offset, INDEX)), WORD)
        places.append(b.add(columns, b.mul(index, number(strip.bytes))))
    grown, eights = [list(planes_of_v) for planes_of_v in low], []
    for v in every:
        some = [b.load(address(b, place, number(v * VECTOR_BYTES), VECTOR), align=8) for place in places]
        eights.append(strip.tree(grown[v], some))
    b.branch(level_loop)

    b.position_at_end(level_loop)
    level, waiting, carries = b.phi(WORD), b.phi(WORD), [b.phi(VECTOR) for _ in every]
    b.cbranch(b.trunc(waiting, BIT), deeper, rest)

    b.position_at_end(deeper)
    further = []
    for v in every:
        counter = strip.plane(planes, level, 0, v)
        there, waited = (b.load(p, align=8) for p in (counter, strip.plane(planes, level, 1, v)))
        total, carry = strip.add(there, waited, carries[v])
        b.store(total, counter, align=8)
        further.append(carry)
    for phi, start, then in zip(
        (level, waiting, *carries),
        (number(LOW), block, *eights),
        (b.add(level, number(1)), b.lshr(waiting, number(1)), *further),
        strict=True,
    ):
        phi.add_incoming(start, loop)
        phi.add_incoming(then, deeper)
    b.branch(level_loop)

    b.position_at_end(rest)
    for v in every:
        b.store(carries[v], strip.plane(planes, level, 1, v), align=8)
    following = b.add(block, number(1))
    block.add_incoming(number(0), before)
    block.add_incoming(following, rest)
    b.cbranch(b.icmp_unsigned("<", following, blocks), loop, done)

    b.position_at_end(done)
    for v in every:
        for p in range(LOW):
            last = b.phi(VECTOR)
            for phi in (low[v][p], last):
                phi.add_incoming(ZERO, before)
                phi.add_incoming(grown[v][p], rest)
            low[v][p] = last
    for v in every:
        for p in range(LOW):
            b.store(low[v][p], strip.plane(planes, number(p), 0, v), align=8)


def count_columns(vectors: int) -> Any:
    """An intrinsic (indices, blocks, levels, columns, planes): the counters of blocks·BLOCK columns.

    indices, columns and planes are addresses: indices uint32 (blocks·BLOCK); columns (inputs, vectors·LANES) uint64;
    planes (PLANES, 2, vectors·LANES) uint64, of which [:max(levels, LOW), 0] is the result. Every count is < 2^levels.
    """

    @intrinsic
    def count(_context, _indices, _blocks, _levels, _columns, _planes):  # pyright: ignore
        def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
            indices, blocks, levels, columns, planes = arguments
            strip, every = _Strip(context, b, vectors), range(vectors)

            def clear(level: Any, _values: list[Any]) -> list[Any]:
                for v in every:
                    b.store(ZERO, strip.plane(planes, level, 0, v), align=8)
                return []

            def settle(level: Any, values: list[Any]) -> list[Any]:
                waiting, *carries = values
                live = broadcast(b, b.sub(number(0), b.and_(waiting, number(1))))
                further = []
                for v, carry in enumerate(carries):
                    counter = strip.plane(planes, level, 0, v)
                    waited = b.and_(live, b.load(strip.plane(planes, level, 1, v), align=8))
                    total, then = strip.add(b.load(counter, align=8), waited, carry)
                    b.store(total, counter, align=8)
                    further.append(then)
                return [b.lshr(waiting, number(1)), *further]

            strip.loop_levels(levels, LOW, [], clear)
            _add_blocks(strip, indices, blocks, columns, planes)
            strip.loop_levels(levels, LOW, [blocks, *(ZERO for _ in every)], settle)
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, types.uintp, types.uintp, types.uintp), codegen

    return count


@intrinsic
def unpack_counts(_context, _planes, _step, _first, _end, _factor, _shift, _add, _out):  # pyright: ignore
    """(planes, step, first, end, factor, shift, add, out): 64 counters' planes first … end − 1, at most 8, to int32.

    out[j] = factor·Σ_p bit_p·2^(p − first) + shift, plus what was there if ``add``. planes is the address of the
    64 outputs' word in plane 0, ``step`` bytes from plane to plane; out the address of 64 int32.
    """

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        planes, step, first, end, factor, shift, add, out = arguments
        before, loop, done = b.block, b.append_basic_block("plane"), b.append_basic_block("done")
        keep, store = b.append_basic_block("keep"), b.append_basic_block("store")
        b.branch(loop)
        b.position_at_end(loop)
        plane, bit, low = b.phi(WORD), b.phi(BYTE), b.phi(_BYTES)
        bits = b.bitcast(b.load(address(b, planes, b.mul(plane, step), WORD)), _BITS)
        grown = b.select(bits, b.add(low, broadcast(b, bit, _BYTES)), low)
        following = b.add(plane, number(1))
        for phi, start, then in (
            (plane, first, following),
            (bit, ir.Constant(BYTE, 1), b.shl(bit, ir.Constant(BYTE, 1))),
            (low, ir.Constant(_BYTES, [0] * 64), grown),
        ):
            phi.add_incoming(start, before)
            phi.add_incoming(then, loop)
        b.cbranch(b.icmp_unsigned("<", following, end), loop, done)

        b.position_at_end(done)
        place = address(b, out, number(0), _COUNTS)
        scaled = b.mul(b.zext(grown, _COUNTS), broadcast(b, factor, _COUNTS))
        values = b.add(scaled, broadcast(b, shift, _COUNTS))
        b.cbranch(b.trunc(add, BIT), keep, store)
        b.position_at_end(keep)
        summed = b.add(values, b.load(place, align=4))
        b.branch(store)
        b.position_at_end(store)
        result = b.phi(_COUNTS)
        result.add_incoming(values, done)
        result.add_incoming(summed, keep)
        b.store(result, place, align=4)
        return context.get_dummy_value()

    words = (types.uintp, types.uintp, types.uintp, types.uintp, types.int32, types.int32, types.uintp, types.uintp)
    return types.void(*words), codegen


@intrinsic
def list_bits(_context, _places, _byte, _base, _out):  # pyright: ignore
    """(places, byte, base, out): base + the places of the byte's set bits to eight uint32, of which popcount are meant.

    places is the address of a table (256, 8) uint8 of those places; out an address with room for eight.
    """

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        places, byte, base, out = arguments
        row = b.load(address(b, places, b.mul(byte, number(8)), _PLACES), align=8)
        indices = b.add(b.zext(row, _INDICES), broadcast(b, b.trunc(base, INDEX), _INDICES))
        b.store(indices, address(b, out, number(0), _INDICES), align=4)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp, types.uintp), codegen


@intrinsic
def copy_bytes(_context, _to, _from, _bytes):  # pyright: ignore
    """(to, from, bytes): memcpy between two addresses."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        to, source, size = arguments
        target, origin = (b.inttoptr(place, BYTE.as_pointer()) for place in (to, source))
        cgutils.raw_memcpy(b, target, origin, size, 1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp), codegen


@intrinsic
def exchange_halves(_context, _low, _high, _shift, _mask):  # pyright: ignore
    """(low, high, shift, mask): in LANES words at each address, low's bits mask << shift change places with high's mask."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        low, high, shift, mask = arguments
        places = [address(b, place, number(0), VECTOR) for place in (low, high)]
        lower, upper = (b.load(place, align=8) for place in places)
        shifts = broadcast(b, shift)
        differ = b.and_(b.xor(b.lshr(lower, shifts), upper), broadcast(b, mask))
        b.store(b.xor(lower, b.shl(differ, shifts)), places[0], align=8)
        b.store(b.xor(upper, differ), places[1], align=8)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp, types.uintp), codegen
