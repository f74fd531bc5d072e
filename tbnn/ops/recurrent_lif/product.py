# pyright: reportCallIssue=false
"""The inner loops of the feedback's adjoint, as LLVM vector code: a few rows of gradients times weights of few bits.

``c[s, k] += Σ_n a[s, n]·w[n, k]`` for ROWS rows s and TILE columns k at once, whose sums stay in registers. With one bit a
weight, w[n, k] = ±1, the 16 sums of four neighbours a[s, n … n + 3] with all signs make a table, and four bits of column k
look theirs up ("four Russians" [1]): with AVX-512 sixteen look-ups are one instruction, which with its addition
stands for 64 multiplications and additions.

[1] Arlazarov, Dinic, Kronrod, Faradzhev, On economical construction of the transitive closure of a directed graph, 1970.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.vectors import INDEX, WORD, address, broadcast, number

ROWS = 4  # rows of gradients at once
VECTORS = 4  # vectors of a row's sums in registers
LOOKUPS = 16  # entries of a table, look-ups of an instruction
TILE = VECTORS * LOOKUPS  # columns at once
GROUP = 4  # neighbours of a table

_FLOAT = ir.FloatType()
_FLOATS, _INDICES = ir.VectorType(_FLOAT, LOOKUPS), ir.VectorType(INDEX, LOOKUPS)
_FLOAT_BYTES, _VECTOR_BYTES = 4, 4 * LOOKUPS


def has_lookups() -> bool:
    """Whether this machine looks up sixteen floats in one instruction."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx512f"))


class _Loop:
    """A loop from 0 to ``count`` (at least 1) whose carried values stay in registers."""

    def __init__(self, b: Any, count: Any, starts: list[Any]) -> None:
        self.b, self.count = b, count
        before = b.block
        self.body, self.done = b.append_basic_block("body"), b.append_basic_block("done")
        b.branch(self.body)
        b.position_at_end(self.body)
        self.index, self.values = b.phi(WORD), [b.phi(start.type) for start in starts]
        for phi, start in zip((self.index, *self.values), (number(0), *starts), strict=True):
            phi.add_incoming(start, before)

    def close(self, values: list[Any]) -> None:
        """End the body with the values of the next turn, which are also those after the last."""
        following = self.b.add(self.index, number(1))
        for phi, value in zip((self.index, *self.values), (following, *values), strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.cbranch(self.b.icmp_unsigned("<", following, self.count), self.body, self.done)
        self.b.position_at_end(self.done)


@intrinsic
def build_tables(_context, _a, _groups, _tables):  # pyright: ignore
    """(a, groups, tables): the sums of each GROUP of neighbours with all signs.

    a is the address of float32 (GROUP·groups); tables of float32 (groups, 16), entry i the sum with + where a bit of i is 1.
    """

    def codegen(_target: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        a, groups, tables = arguments
        loop = _Loop(b, groups, [])
        total = None
        for j in range(GROUP):
            offset = b.add(b.mul(loop.index, number(GROUP * _FLOAT_BYTES)), number(j * _FLOAT_BYTES))
            value = broadcast(b, b.load(address(b, a, offset, _FLOAT), align=4), _FLOATS)
            chosen = ir.Constant(ir.VectorType(ir.IntType(1), LOOKUPS), [i >> j & 1 for i in range(LOOKUPS)])
            part = b.select(chosen, value, b.fneg(value))
            total = part if total is None else b.fadd(total, part)
        b.store(total, address(b, tables, b.mul(loop.index, number(_VECTOR_BYTES)), _FLOATS), align=4)
        loop.close([])
        return _target.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp), codegen


@intrinsic
def look_up(_context, _tables, _stride, _bits, _words, _out, _out_stride):  # pyright: ignore
    """(tables, stride, bits, words, out, out_stride): add a tile's sums to ROWS rows of TILE float32, at the address out.

    tables are ROWS times float32 (8·words, 16), ``stride`` bytes apart; bits uint32 (words, TILE): bit i of word j is the
    weight of neighbour 32·j + i. Rows of out lie ``out_stride`` bytes apart. Only where :func:`has_lookups`.
    """

    def codegen(_target: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        if "+avx512f" not in _target.codegen().magic_tuple()[2]:
            return _target.get_dummy_value()  # never called there
        tables, stride, bits, words, out, out_stride = arguments
        places = _places(b, out, out_stride)
        loop = _Loop(b, words, [b.load(place, align=4) for place in places])
        sums = list(loop.values)
        first = b.add(bits, b.mul(loop.index, number(VECTORS * _VECTOR_BYTES)))
        index = [b.load(address(b, first, number(v * _VECTOR_BYTES), _INDICES), align=4) for v in range(VECTORS)]
        choose = b.module.globals.get("llvm.x86.avx512.permvar.sf.512") or ir.Function(
            b.module, ir.FunctionType(_FLOATS, [_FLOATS, _INDICES]), "llvm.x86.avx512.permvar.sf.512"
        )
        for group in range(32 // GROUP):
            offset = b.add(b.mul(loop.index, number(32 // GROUP * _VECTOR_BYTES)), number(group * _VECTOR_BYTES))
            for s in range(ROWS):
                here = b.add(b.add(tables, b.mul(stride, number(s))), offset)
                table = b.load(address(b, here, number(0), _FLOATS), align=4)
                for v in range(VECTORS):
                    i = s * VECTORS + v
                    sums[i] = b.fadd(sums[i], b.call(choose, [table, index[v]]))
            index = [b.lshr(one, ir.Constant(_INDICES, [GROUP] * LOOKUPS)) for one in index]
        loop.close(sums)
        for place, value in zip(places, sums, strict=True):
            b.store(value, place, align=4)
        return _target.get_dummy_value()

    return types.void(*[types.uintp] * 6), codegen


def _places(b: Any, out: Any, stride: Any) -> list[Any]:
    """Pointers to the vectors of ROWS rows."""
    rows = [b.add(out, b.mul(stride, number(s))) for s in range(ROWS)]
    return [address(b, row, number(v * _VECTOR_BYTES), _FLOATS) for row in rows for v in range(VECTORS)]


@intrinsic
def multiply(_context, _a, _stride, _weights, _weight_stride, _count, _out, _out_stride):  # pyright: ignore
    """(a, stride, weights, weight_stride, count, out, out_stride): the same with any weights, one multiplication each.

    a are ROWS rows of float32 (count,), weights (count, TILE) float32, all strides in bytes.
    """

    def codegen(_target: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        a, stride, weights, weight_stride, count, out, out_stride = arguments
        places = _places(b, out, out_stride)
        loop = _Loop(b, count, [b.load(place, align=4) for place in places])
        sums = list(loop.values)
        row = b.add(weights, b.mul(loop.index, weight_stride))
        w = [b.load(address(b, row, number(v * _VECTOR_BYTES), _FLOATS), align=4) for v in range(VECTORS)]
        name = f"llvm.fmuladd.v{LOOKUPS}f32"
        fma = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), name)
        for s in range(ROWS):
            here = b.add(b.add(a, b.mul(stride, number(s))), b.mul(loop.index, number(_FLOAT_BYTES)))
            value = broadcast(b, b.load(address(b, here, number(0), _FLOAT), align=4), _FLOATS)
            for v in range(VECTORS):
                i = s * VECTORS + v
                sums[i] = b.call(fma, [value, w[v], sums[i]])
        loop.close(sums)
        for place, value in zip(places, sums, strict=True):
            b.store(value, place, align=4)
        return _target.get_dummy_value()

    return types.void(*[types.uintp] * 7), codegen
