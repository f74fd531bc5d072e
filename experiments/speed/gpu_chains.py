"""A Triton kernel that does nothing but AND, popcount and addition: what a device can do at most."""

import triton
import triton.language as tl

from tbnn.ops.binary_linear.gpu_kernels import popcount

BLOCK = 1024  # words of a program


@triton.jit
def chains(x, out, turns, BLOCK: tl.constexpr):  # pyright: ignore
    """Each of the words x: ``turns`` times AND with a number that the last count changed, popcount, addition."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(x + i)
    total = word * 0
    for turn in range(turns):
        total += popcount(word & (total + turn))
    tl.store(out + i, total)
