"""Squares of 16 by 16 reals turned in registers, and memory that begins at a cache line."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.vectors import INDEX, address, broadcast
from tbnn.ops.kernels import device_function
from tbnn.ops.spike_products.tables import LANES

_REALS = ir.VectorType(ir.FloatType(), LANES)


def _mixed(builder: Any, one: Any, other: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(INDEX, LANES), lanes))


@intrinsic
def turn_16(_context, _source, _stride, _target, _step):  # pyright: ignore
    """Row j of the target = column j of the source: 16 rows of 16 float32 each, at addresses, ``stride`` and ``step`` bytes apart."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        source, stride, target, step = arguments
        at = lambda base, gap, i: address(builder, base, builder.mul(gap, gap.type(i)), _REALS)  # noqa: E731
        rows = [builder.load(at(source, stride, i), align=4) for i in range(LANES)]
        size = LANES // 2
        while size:  # exchange the squares of this size beside the diagonal
            for i in [i for i in range(LANES) if not i & size]:
                one, other = rows[i], rows[i + size]
                rows[i] = _mixed(builder, one, other, [k if not k & size else LANES + k - size for k in range(LANES)])
                rows[i + size] = _mixed(
                    builder, one, other, [k + size if not k & size else LANES + k for k in range(LANES)]
                )
            size //= 2
        for i, row in enumerate(rows):
            builder.store(row, at(target, step, i), align=4)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uintp, types.intp), codegen


@intrinsic
def add_vector(_context, _from, _factor, _to):  # pyright: ignore
    """16 float32 at ``to`` += factor times those at ``from``, both addresses."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        source, factor, target = arguments
        there, here = (builder.inttoptr(each, _REALS.as_pointer()) for each in (target, source))
        more = builder.fmul(builder.load(here, align=4), broadcast(builder, factor, _REALS))
        builder.store(builder.fadd(builder.load(there, align=4), more), there, align=4)
        return context.get_dummy_value()

    return types.void(types.uintp, types.float32, types.uintp), codegen


@device_function
def vectors(count):  # pyright: ignore
    """Zeros (count, 16) float32 from a cache line's border on: a vector across two would be read twice."""
    memory = np.zeros((count + 1) * LANES, np.float32)
    first = (-(memory.ctypes.data // 4)) % LANES
    return memory[first : first + count * LANES].reshape(count, LANES)
