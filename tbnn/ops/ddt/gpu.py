"""The two passes of the DDT on a GPU, in Triton: sums over a block, and a linear combination back out.

Data are (outer, n, inner); a block is a run along ``n``. A program takes a tile of blocks × values, (R, N), and a part of
their length. Everything is summed in float64, in a fixed order and without atomics, so two runs give the same bits; and
nothing waits for the device, but for the check of λ = 0, which must see the sums.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.closed_form import Sums

VALUES = 512  # of a tile
PART = 1 << 13  # of a block: longer ones are shared among programs


@triton.jit
def blocks_of(outer, n, inner, block, runs, parts, R: tl.constexpr, COLUMNS: tl.constexpr):
    """Of R blocks, each (R, 1): number, address of their line's first value, start along n, length; and the part.

    With COLUMNS they are neighbours along ``inner``, else, inner being 1, along n and ``outer``.
    """
    part, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
    lane = tl.arange(0, R)[:, None]
    if COLUMNS:
        tiles = (inner + R - 1) // R
        above, i = tile // tiles, tile % tiles * R + lane
        exists, unit = i < inner, above * inner + i
        start = above % runs * block + 0 * lane
        line = tl.cast(above // runs, tl.int64) * n * inner + i
    else:
        unit = tile * R + lane
        exists, start = unit < outer * runs, unit % runs * block
        line = tl.cast(unit // runs, tl.int64) * n
    return unit, line, start, tl.where(exists, tl.minimum(block, n - start), 0), part


@triton.jit
def wide(x):
    """As float64; half precision by way of float32, since nothing converts it directly."""
    if x.dtype.scalar == tl.float64:
        return x
    else:
        return x.to(tl.float32).to(tl.float64)


@triton.jit
def narrow(y, dtype: tl.constexpr):
    """The inverse of :func:`wide`."""
    if dtype == tl.float64:
        return y
    else:
        return y.to(tl.float32).to(dtype)


@triton.jit
def sum_blocks(
    x, q, out, outer, n, inner, block, runs, parts, part_size,
    R: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Fill out (4, blocks, parts) with Σx, Σq, Σq², Σxq of every part of every block."""
    unit, line, start, size, part = blocks_of(outer, n, inner, block, runs, parts, R, COLUMNS)
    sum_x = tl.full((R, N), 0.0, tl.float64)
    sum_q, sum_qq, sum_xq = sum_x, sum_x, sum_x
    for first in range(0, part_size, N):
        k = part * part_size + first + tl.arange(0, N)[None, :]
        place = line + tl.cast(start + k, tl.int64) * inner
        xs = wide(tl.load(x + place, mask=k < size, other=0.0))
        qs = wide(tl.load(q + place, mask=k < size, other=0.0))
        sum_x, sum_q, sum_qq, sum_xq = sum_x + xs, sum_q + qs, sum_qq + qs * qs, sum_xq + xs * qs
    blocks = tl.cast(outer * runs * inner, tl.int64) * parts
    into, exists = out + tl.cast(unit, tl.int64) * parts + part, size > 0
    tl.store(into, tl.sum(sum_x, 1, keep_dims=True), mask=exists)
    tl.store(into + blocks, tl.sum(sum_q, 1, keep_dims=True), mask=exists)
    tl.store(into + 2 * blocks, tl.sum(sum_qq, 1, keep_dims=True), mask=exists)
    tl.store(into + 3 * blocks, tl.sum(sum_xq, 1, keep_dims=True), mask=exists)


@triton.jit
def combine_blocks(
    a, b, c, factors, out, outer, n, inner, block, runs, parts, part_size,
    WITH_AB: tl.constexpr, R: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = f0·a + f1·b + f2·c + f3, factors (4, blocks); f2·c + f3 alone without WITH_AB."""
    unit, line, start, size, part = blocks_of(outer, n, inner, block, runs, parts, R, COLUMNS)
    blocks = outer * runs * inner
    exists = size > 0
    f2 = tl.load(factors + 2 * blocks + unit, mask=exists, other=0.0)
    f3 = tl.load(factors + 3 * blocks + unit, mask=exists, other=0.0)
    if WITH_AB:
        f0 = tl.load(factors + unit, mask=exists, other=0.0)
        f1 = tl.load(factors + blocks + unit, mask=exists, other=0.0)
    for first in range(0, part_size, N):
        k = part * part_size + first + tl.arange(0, N)[None, :]
        place = line + tl.cast(start + k, tl.int64) * inner
        y = f2 * wide(tl.load(c + place, mask=k < size, other=0.0)) + f3
        if WITH_AB:
            y += f0 * wide(tl.load(a + place, mask=k < size, other=0.0))
            y += f1 * wide(tl.load(b + place, mask=k < size, other=0.0))
        tl.store(out + place, narrow(y, out.dtype.element_ty), mask=k < size)


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Run a kernel; no product is fused with a sum, so that it rounds as torch does."""
    kernel[(programs,)](*arguments, **options, enable_fp_fusion=False)


class Blocks(NamedTuple):
    """How blocks of (outer, n, inner) are shared among programs."""

    outer: int
    n: int
    inner: int
    block: int
    part_size: int
    tile: tuple[int, int]
    """R blocks × N values."""

    @property
    def runs(self) -> int:
        """Blocks along n."""
        return -(-self.n // self.block)

    @property
    def units(self) -> int:
        """Blocks in all."""
        return self.outer * self.runs * self.inner

    @property
    def parts(self) -> int:
        """Parts of a block."""
        return -(-self.block // self.part_size)

    @property
    def programs(self) -> int:
        """Tiles of blocks, times parts."""
        rows = self.tile[0]
        tiles = (
            self.outer * self.runs * -(-self.inner // rows) if self.inner > 1 else -(-self.outer * self.runs // rows)
        )
        return tiles * self.parts

    @property
    def sizes(self) -> tuple[int, ...]:
        """The integers that every kernel takes."""
        return self.outer, self.n, self.inner, self.block, self.runs, self.parts, self.part_size

    @property
    def options(self) -> dict[str, Any]:
        """What every kernel is compiled and launched with."""
        rows, values = self.tile
        warps = max(1, min(4, rows * values // 128))
        return {"R": rows, "N": values, "COLUMNS": self.inner > 1, "num_warps": warps}

    def counts(self, like: Tensor) -> Tensor:
        """How long each block is, (outer, runs, inner), float64."""
        counts = torch.full((self.runs,), self.block, dtype=torch.float64, device=like.device)
        counts[-1:].fill_(self.n - (self.runs - 1) * self.block)
        return counts[None, :, None].expand(self.outer, self.runs, self.inner)


def blocks_for(x: Tensor, block: int) -> Blocks:
    """Tiles along the axis that is contiguous: values of a block, or neighbouring blocks."""
    outer, n, inner = x.shape
    length = triton.next_power_of_2(block)
    if inner > 1:
        rows = min(triton.next_power_of_2(inner), 64, VALUES)
        tile = rows, min(length, VALUES // rows)
    else:
        values = min(length, VALUES)
        tile = min(VALUES // values, triton.next_power_of_2(outer * -(-n // block))), values
    return Blocks(outer, n, inner, block, min(PART, -(-block // tile[1]) * tile[1]), tile)


def solve(sums: Iterable[Tensor], lam: float, form: str) -> tuple[Tensor, Tensor]:
    """``closed_form.solve`` for λ > 0 on the device: slope and offset from n, Σx, Σq, Σq², Σxq of every block."""
    n, x, q, qq, xq = sums
    linear = form == "linear"
    return closed_form.ridge_of(n, x, q, xq, closed_form.denominator_of(n, q, qq, lam, linear), linear)


def gradient(
    sums: Iterable[Tensor], g: Tensor, gq: Tensor, lam: float, form: str, differentiate_stats: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``closed_form.gradient`` for λ > 0 on the device: s, r, x_const and q_const."""
    n, x, q, qq, xq = sums
    linear = form == "linear"
    denominator = closed_form.denominator_of(n, q, qq, lam, linear)
    s, _ = closed_form.ridge_of(n, x, q, xq, denominator, linear)
    if not differentiate_stats:
        zero = torch.zeros_like(s)
        return s, zero, zero, zero
    r = closed_form.slope_gradient_of(n, q, g, gq, denominator, linear)
    return s, r, *closed_form.constants_of(n, x, q, g, s, r, linear)


def block_sums(x: Tensor, q: Tensor, how: Blocks) -> Tensor:
    """Σx, Σq, Σq², Σxq of every block: float64 (4, outer, runs, inner)."""
    parts = torch.empty((4, how.units, how.parts), dtype=torch.float64, device=x.device)
    launch(sum_blocks, how.programs, x, q, parts, *how.sizes, **how.options)
    return parts.sum(-1).reshape(4, how.outer, how.runs, how.inner)


def ddt(x: Tensor, q: Tensor, lam: float, form: str, block: int) -> tuple[Tensor, Tensor]:
    """The operator ``tbnn::ddt``: x̂ and the sums n, Σx, Σq, Σq², Σxq of every block (5, outer, runs, inner)."""
    x, q = x.contiguous(), q.contiguous()
    how = blocks_for(x, block)
    sums = torch.cat([how.counts(x)[None], block_sums(x, q, how)])
    if lam == 0:
        closed_form.check_slopes(Sums(*sums.cpu().numpy()), form)
    s, offset = solve(sums, lam, form)
    x_hat, factors = torch.empty_like(x), torch.stack([s, s, s, offset])
    launch(combine_blocks, how.programs, None, None, q, factors, x_hat, *how.sizes, WITH_AB=False, **how.options)
    return x_hat, sums


def ddt_backward(
    g: Tensor, x: Tensor, q: Tensor, sums: Tensor, lam: float, form: str, block: int, for_x: bool, for_q: bool
) -> tuple[Tensor, Tensor]:
    """The operator ``tbnn::ddt_backward``: dL/dx and dL/dq, empty where not wanted."""
    g, x, q = g.contiguous(), x.contiguous(), q.contiguous()
    how = blocks_for(x, block)
    g_sum, _, _, gq_sum = block_sums(g, q, how)
    s, r, x_const, q_const = gradient(sums, g_sum, gq_sum, lam, form)
    dx, dq = (torch.empty_like(x) if wanted else x.new_empty(0) for wanted in (for_x, for_q))
    if for_x:
        factors = torch.stack([s, s, r, x_const])
        launch(combine_blocks, how.programs, None, None, q, factors, dx, *how.sizes, WITH_AB=False, **how.options)
    if for_q:
        factors = torch.stack([s, r, -2 * s * r, q_const])
        launch(combine_blocks, how.programs, g, x, q, factors, dq, *how.sizes, WITH_AB=True, **how.options)
    return dx, dq
