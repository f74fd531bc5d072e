"""The inner loops of products of real rows with bits, as LLVM vector code: sums looked up in tables.

Four rows of reals have 16 sums; with those in a table one load serves four bits of the other operand, whatever they are
("the method of the four Russians" [1], over the reals). A tile is 64 rows of 16 reals: 16 tables of 16 sums, 16 KB, hot in
the first cache while a column of 64 bits after another is looked up.

[1] Arlazarov, Dinic, Kronrod, Faradzhev, On economical construction of the transitive closure of a directed graph, 1970.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.vectors import INDEX, WORD, address, number

LANES = 16  # reals of a vector
ROWS = 64  # of a tile: the bits of a word
TOGETHER = 4  # rows whose sums stand in one table
SUMS = 1 << TOGETHER
TABLE_REALS = ROWS // TOGETHER * SUMS * LANES

_FLOAT = ir.FloatType()
_REALS = ir.VectorType(_FLOAT, LANES)
_BYTES = 4 * LANES


def _vector(builder: Any, base: Any, place: int) -> Any:
    return address(builder, base, number(_BYTES * place), _REALS)


@intrinsic
def build_tables(_context, _rows, _tables, _count, _signs):  # pyright: ignore
    """Addresses of rows of 16 float32 and of ``count`` tables; signs: entry i is Σ ±row, else Σ of the rows whose bit is 1."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        b, (rows, tables, count, signs) = builder, arguments
        one, two, zero = (ir.Constant(_REALS, [float(value)] * LANES) for value in (1, 2, 0))
        step = b.select(b.icmp_signed("!=", signs, number(0)), two, one)
        before, loop, done = b.block, b.append_basic_block("table"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        table = b.phi(WORD)
        source = b.add(rows, b.mul(table, number(TOGETHER * _BYTES)))
        target = b.add(tables, b.mul(table, number(SUMS * _BYTES)))
        here = [b.load(_vector(b, source, i), align=4) for i in range(TOGETHER)]
        total = b.fadd(b.fadd(here[0], here[1]), b.fadd(here[2], here[3]))
        sums = [b.select(b.icmp_signed("!=", signs, number(0)), b.fsub(zero, total), zero)]
        for row in here:
            more = b.fmul(row, step)
            sums += [b.fadd(some, more) for some in sums]
        for i, some in enumerate(sums):
            b.store(some, _vector(b, target, i), align=4)
        following = b.add(table, number(1))
        table.add_incoming(number(0), before)
        table.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, done)
        b.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp, types.intp), codegen


def look_up_rows(rows: int) -> Any:
    """An intrinsic (words, count, tables, factor, out): out[f] += factor·Σ_tables sum(bits of words[f]), f < count.

    words uint64, of which the low ``rows`` bits count, out rows of 16 float32, both addresses.
    """
    tables_used = rows // TOGETHER

    @intrinsic
    def add(_context, _words, _count, _tables, _factor, _out):  # pyright: ignore
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            b, (words, count, tables, factor, out) = builder, arguments
            undefined = ir.Constant(_REALS, ir.Undefined)
            lanes = ir.Constant(ir.VectorType(INDEX, LANES), [0] * LANES)
            scale = b.shuffle_vector(b.insert_element(undefined, factor, ir.Constant(INDEX, 0)), undefined, lanes)
            before, loop, done = b.block, b.append_basic_block("column"), b.append_basic_block("done")
            b.cbranch(b.icmp_signed(">", count, number(0)), loop, done)
            b.position_at_end(loop)
            f = b.phi(WORD)
            word = b.load(address(b, words, b.mul(f, number(8)), WORD), align=8)
            parts = []
            for table in range(tables_used):
                entry = b.and_(b.lshr(word, number(TOGETHER * table)), number(SUMS - 1))
                offset = b.add(b.mul(entry, number(_BYTES)), number(table * SUMS * _BYTES))
                parts.append(b.load(address(b, tables, offset, _REALS), align=4))
            while len(parts) > 1:
                parts = [b.fadd(one, other) for one, other in zip(parts[::2], parts[1::2], strict=True)]
            place = address(b, out, b.mul(f, number(_BYTES)), _REALS)
            b.store(b.fadd(b.load(place, align=4), b.fmul(parts[0], scale)), place, align=4)
            following = b.add(f, number(1))
            f.add_incoming(number(0), before)
            f.add_incoming(following, loop)
            b.cbranch(b.icmp_signed("<", following, count), loop, done)
            b.position_at_end(done)
            return context.get_dummy_value()

        return types.void(types.uintp, types.intp, types.uintp, types.float32, types.uintp), codegen

    return add


look_up, look_up_32, look_up_16 = (look_up_rows(rows) for rows in (ROWS, 32, 16))


@intrinsic
def compare_32(_context, _values):  # pyright: ignore
    """32 float32 at an address as a word: its low half the values that are not 0, the high half those neither 0 nor 1."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        b, (values,) = builder, arguments
        kind = ir.VectorType(_FLOAT, 32)
        x = b.load(address(b, values, number(0), kind), align=4)
        zero, one = (ir.Constant(kind, [float(value)] * 32) for value in (0, 1))
        some = b.fcmp_unordered("!=", x, zero)
        other = b.and_(some, b.fcmp_unordered("!=", x, one))
        low, high = (b.zext(b.bitcast(mask, INDEX), WORD) for mask in (some, other))
        return b.or_(low, b.shl(high, number(32)))

    return types.uint64(types.uintp), codegen
