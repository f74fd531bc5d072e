"""The inner loop of the binary product as one LLVM vector loop: rows of spike words against a strip of weights.

Each lane of a vector belongs to another output, so that nothing is summed across lanes: a spike word is broadcast,
ANDed with a vector of weight words, and the bits are counted (``vpopcntq`` where the machine has it) and added up in
registers. LLVM splits the vectors where the machine's are narrower.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 8  # 64-bit words in a vector
VECTORS = 2  # vectors side by side in a strip
STRIP = LANES * VECTORS  # outputs of a strip

_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, LANES)


def _vector_popcount(builder: Any, vector: Any) -> Any:
    name = f"llvm.ctpop.v{LANES}i64"
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(_VECTOR, [_VECTOR]), name)
    return builder.call(function, [vector])


def _broadcast(builder: Any, word: Any) -> Any:
    index, undefined = ir.IntType(32), ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, word, ir.Constant(index, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))


def _address(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    return builder.inttoptr(builder.add(base, offset), kind.as_pointer())


def strip_popcounts(rows: int) -> Any:
    """An intrinsic (s, stride, w, words, out): popcounts of ``rows`` rows of spikes against a strip of weights.

    s, w and out are addresses: spike rows ``stride`` bytes apart, each of ``words`` > 0 uint64; weights (words, STRIP)
    uint64; out (rows, STRIP) int64, overwritten.
    """

    @intrinsic
    def popcounts(_context, _s, _stride, _w, _words, _out):  # pyright: ignore
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            s, stride, w, words, out = arguments
            number = lambda n: ir.Constant(_WORD, n)  # noqa: E731
            before, loop, after = (
                builder.block,
                builder.append_basic_block("words"),
                builder.append_basic_block("store"),
            )
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(_WORD)
            k.add_incoming(number(0), before)
            sums = [[builder.phi(_VECTOR) for _ in range(VECTORS)] for _ in range(rows)]
            weights = []
            for j in range(VECTORS):
                offset = builder.add(builder.mul(k, number(8 * STRIP)), number(8 * LANES * j))
                weights.append(builder.load(_address(builder, w, offset, _VECTOR), align=8))
            grown = []
            for i in range(rows):
                offset = builder.add(builder.mul(stride, number(i)), builder.mul(k, number(8)))
                spike = _broadcast(builder, builder.load(_address(builder, s, offset, _WORD)))
                counts = [_vector_popcount(builder, builder.and_(spike, weight)) for weight in weights]
                grown.append([builder.add(total, count) for total, count in zip(sums[i], counts, strict=True)])
            following = builder.add(k, number(1))
            k.add_incoming(following, loop)
            for total_row, grown_row in zip(sums, grown, strict=True):
                for total, more in zip(total_row, grown_row, strict=True):
                    total.add_incoming(ir.Constant(_VECTOR, [0] * LANES), before)
                    total.add_incoming(more, loop)
            builder.cbranch(builder.icmp_signed("<", following, words), loop, after)
            builder.position_at_end(after)
            for i in range(rows):
                for j in range(VECTORS):
                    place = _address(builder, out, number(8 * (i * STRIP + j * LANES)), _VECTOR)
                    builder.store(grown[i][j], place, align=8)
            return context.get_dummy_value()

        return types.void(types.uintp, types.intp, types.uintp, types.intp, types.uintp), codegen

    return popcounts
