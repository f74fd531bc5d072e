"""Pieces of LLVM code shared by the packed product's inner loops: vectors of 64-bit words, wherever LLVM can put them."""

from typing import Any

from llvmlite import ir

LANES = 8  # 64-bit words in a vector; LLVM splits it where the machine's are narrower

BIT, BYTE, INDEX, WORD = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(WORD, LANES)
ZERO = ir.Constant(VECTOR, [0] * LANES)


def number(n: int) -> Any:
    """A 64-bit constant."""
    return ir.Constant(WORD, n)


def address(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    """The pointer to a ``kind`` that lies ``offset`` bytes past the address ``base``."""
    return builder.inttoptr(builder.add(base, offset), kind.as_pointer())


def broadcast(builder: Any, value: Any, kind: Any = VECTOR) -> Any:
    """The value in every lane of a vector type."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INDEX, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INDEX, kind.count), [0] * kind.count))


def call(builder: Any, name: str, *arguments: Any) -> Any:
    """Call an LLVM intrinsic whose result has the type of its first argument."""
    kinds = [argument.type for argument in arguments]
    known = builder.module.globals.get(name)
    return builder.call(known or ir.Function(builder.module, ir.FunctionType(kinds[0], kinds), name), arguments)


def popcount(builder: Any, vector: Any) -> Any:
    """The number of set bits of each word (``vpopcntq`` where the machine has it)."""
    return call(builder, f"llvm.ctpop.v{LANES}i64", vector)


def full_adder(context: Any, builder: Any, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    """Add three bits in every bit of a vector: (sum, carry)."""
    if "+avx512f" in context.codegen().magic_tuple()[2]:  # LLVM does not find the two instructions by itself
        parity, majority = (ir.Constant(INDEX, table) for table in (0x96, 0xE8))
        name = "llvm.x86.avx512.pternlog.q.512"
        return call(builder, name, x, y, z, parity), call(builder, name, x, y, z, majority)
    differ = builder.xor(x, y)
    return builder.xor(differ, z), builder.or_(builder.and_(differ, z), builder.and_(builder.not_(differ), x))
