"""Comparisons that come out as bits, which LLVM does not make of a loop."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.vectors import WORD, address, number

_FLOATS = ir.VectorType(ir.FloatType(), 64)


@intrinsic
def greater64(_context, _v, _threshold):  # pyright: ignore
    """(v, threshold), addresses of 64 float32 each -> uint64 whose bit i is v[i] > threshold[i]."""

    def codegen(_target: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        v, threshold = (b.load(address(b, place, number(0), _FLOATS), align=4) for place in arguments)
        return b.bitcast(b.fcmp_ordered(">", v, threshold), WORD)

    return types.uint64(types.uintp, types.uintp), codegen
