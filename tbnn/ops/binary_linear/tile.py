"""The inner loop of the dense product as one LLVM vector loop: rows of spike words against a strip of weights.

Each lane of a vector belongs to another output, so that nothing is summed across lanes: a spike word is broadcast,
ANDed with a vector of weight words, and the bits are counted (``vpopcntq`` where the machine has it) and added up in
registers.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.vectors import INDEX, LANES, VECTOR, WORD, ZERO, address, broadcast, number, popcount

VECTORS = 2  # vectors side by side in a strip
STRIP = LANES * VECTORS  # outputs of a strip

_COUNTS = ir.VectorType(INDEX, LANES)


def strip_popcounts(rows: int) -> Any:
    """An intrinsic (s, stride, w, words, out, out_stride): popcounts of ``rows`` rows of spikes against a strip of weights.

    s, w and out are addresses: spike rows ``stride`` bytes apart, each of ``words`` > 0 uint64; weights (words, STRIP)
    uint64; out rows of STRIP int32, ``out_stride`` bytes apart, overwritten.
    """

    @intrinsic
    def popcounts(_context, _s, _stride, _w, _words, _out, _out_stride):  # pyright: ignore
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            s, stride, w, words, out, out_stride = arguments
            before, loop, after = (
                builder.block,
                builder.append_basic_block("words"),
                builder.append_basic_block("store"),
            )
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(WORD)
            k.add_incoming(number(0), before)
            sums = [[builder.phi(VECTOR) for _ in range(VECTORS)] for _ in range(rows)]
            weights = []
            for j in range(VECTORS):
                offset = builder.add(builder.mul(k, number(8 * STRIP)), number(8 * LANES * j))
                weights.append(builder.load(address(builder, w, offset, VECTOR), align=8))
            grown = []
            for i in range(rows):
                offset = builder.add(builder.mul(stride, number(i)), builder.mul(k, number(8)))
                spike = broadcast(builder, builder.load(address(builder, s, offset, WORD)))
                counts = [popcount(builder, builder.and_(spike, weight)) for weight in weights]
                grown.append([builder.add(total, count) for total, count in zip(sums[i], counts, strict=True)])
            following = builder.add(k, number(1))
            k.add_incoming(following, loop)
            for total_row, grown_row in zip(sums, grown, strict=True):
                for total, more in zip(total_row, grown_row, strict=True):
                    total.add_incoming(ZERO, before)
                    total.add_incoming(more, loop)
            builder.cbranch(builder.icmp_signed("<", following, words), loop, after)
            builder.position_at_end(after)
            for i in range(rows):
                row = builder.add(out, builder.mul(out_stride, number(i)))
                for j in range(VECTORS):
                    counts = builder.trunc(grown[i][j], _COUNTS)
                    builder.store(counts, address(builder, row, number(4 * LANES * j), _COUNTS), align=4)
            return context.get_dummy_value()

        arguments = (types.uintp, types.intp, types.uintp, types.intp, types.uintp, types.intp)
        return types.void(*arguments), codegen

    return popcounts
