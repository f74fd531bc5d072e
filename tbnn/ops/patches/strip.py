"""The inner loop of the patches as one LLVM vector loop: one word of a strip of patches, gathered from row pieces."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.tile import VECTORS
from tbnn.ops.binary_linear.vectors import LANES, VECTOR, WORD, ZERO, address, broadcast, number

COLUMNS = 4  # of a field in the table: which piece, how far its bits lie in it, their mask, their place in the word


@intrinsic
def gather_word(_context, _table, _first, _end, _pieces, _shifts, _out):  # pyright: ignore
    """out (STRIP) = OR over fields of ((piece >> offset >> shifts) & mask) << place, for rows first < end of the table.

    table, pieces, shifts (STRIP) and out are addresses of 64-bit words; out is overwritten.
    """

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        table, first, end, pieces, shifts, out = arguments
        lanes = [number(8 * LANES * j) for j in range(VECTORS)]
        steps = [builder.load(address(builder, shifts, lane, VECTOR), align=8) for lane in lanes]
        before, loop, after = builder.block, builder.append_basic_block("fields"), builder.append_basic_block("store")
        builder.branch(loop)
        builder.position_at_end(loop)
        f = builder.phi(WORD)
        f.add_incoming(first, before)
        words = [builder.phi(VECTOR) for _ in range(VECTORS)]
        row = builder.mul(f, number(8 * COLUMNS))
        fields = [builder.add(row, number(8 * column)) for column in range(COLUMNS)]
        index, offset, mask, place = (builder.load(address(builder, table, field, WORD)) for field in fields)
        piece = builder.load(address(builder, pieces, builder.mul(index, number(8)), WORD))
        bits, kept, up = (broadcast(builder, word) for word in (builder.lshr(piece, offset), mask, place))
        grown = [builder.or_(w, builder.shl(builder.and_(builder.lshr(bits, s), kept), up)) for w, s in zip(words, steps, strict=True)]  # fmt: skip
        following = builder.add(f, number(1))
        f.add_incoming(following, loop)
        for word, more in zip(words, grown, strict=True):
            word.add_incoming(ZERO, before)
            word.add_incoming(more, loop)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
        builder.position_at_end(after)
        for word, lane in zip(grown, lanes, strict=True):
            builder.store(word, address(builder, out, lane, VECTOR), align=8)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.intp, types.uintp, types.uintp, types.uintp), codegen
