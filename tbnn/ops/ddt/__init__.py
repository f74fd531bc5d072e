"""The denoising dequantization transform: a ridge regression, in closed form, forward and backward."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import closed_form, cpu
from tbnn.ops.ddt.closed_form import Sums
from tbnn.ops.ddt.reference import ddt_reference
from tbnn.ops.kernels import as_numpy, backend_for

FORMS = ("affine", "linear")


def ddt(
    x: Tensor,
    q: Tensor,
    *,
    lam: float = 0.01,
    form: str = "affine",
    dim: int | tuple[int, ...] | None = None,
    block: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Reconstruct dense, full-precision ``x`` from its noisy copy ``q`` by ridge regression over blocks.

    ``form="affine"``: minimise ``‖s·q + b − x‖²/2N + λs²/2`` over s, b: ``x̂ = s·(q − q̄) + x̄``, ``s = Cov(x,q)/(Var(q)+λ)``.
    ``form="linear"``: the same without b: ``x̂ = s·q``, ``s = mean(x·q)/(mean(q²)+λ)``.
    As Var(q) → 0 or λ → ∞ the affine form falls back to the block's mean.

    Differentiable in ``x`` and in ``q``, through the statistics too. To train through a quantiser write
    ``q = f + (round(f) − f).detach()``.

    Args:
        x, q: floating point, the same shape, dtype and device.
        lam: the ridge's λ, in units of q².
        dim: the axes that form a block (all of them: one block a tensor).
        block: cut the axis ``dim`` (one axis, default the last) into runs of ``block``; the last run may be shorter,
            and a ``block`` longer than the axis means the whole axis.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        x̂, of the shape of ``x``.

    Raises:
        ValueError: shapes that differ, an unknown form, a negative or non-finite λ, λ = 0 where a block's slope
            is undefined, ``block`` with several axes.

    Source: arXiv 2409.09245.

    >>> x = torch.tensor([-1.0, -0.5, 0.5, 2.0])
    >>> ddt(x, (x > 0).float())
    tensor([-0.7115, -0.7115,  1.2115,  1.2115])
    """
    if x.shape != q.shape or x.dtype != q.dtype or x.device != q.device:
        raise ValueError(
            f"ddt: expected x and q alike, got x {tuple(x.shape)} {x.dtype} on {x.device}, q {tuple(q.shape)} {q.dtype} on {q.device}"
        )
    if not x.is_floating_point():
        raise ValueError(f"ddt: expected floating point tensors, got {x.dtype}")
    check_ridge(lam, form)
    if x.numel() == 0:
        raise ValueError(f"ddt: expected at least one value, got shape {tuple(x.shape)}")
    layout = BlockLayout(x, dim, block)
    x3, q3 = layout.split(x), layout.split(q)
    if backend_for(x, backend) == "cpu":
        return layout.join(_Ridge.apply(x3, q3, lam, form, layout.block))
    return layout.join(_reference_blocks(x3, q3, lam, form, layout.block))


def check_ridge(lam: float, form: str) -> None:
    """Raise ``ValueError`` unless ``lam`` is finite and not negative and ``form`` is known."""
    if form not in FORMS:
        raise ValueError(f"form: expected 'affine' or 'linear', got {form!r}")
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam: expected a finite number >= 0, got {lam}")


class BlockLayout:
    """How a tensor's axes fall into blocks: (outer, n, inner), each block a run of ``block`` along ``n``."""

    def __init__(self, x: Tensor, dim: int | tuple[int, ...] | None, block: int | None) -> None:
        ndim = max(x.ndim, 1)
        if block is not None and dim is None:
            dim = -1
        axes = tuple(range(ndim)) if dim is None else ((dim,) if isinstance(dim, int) else tuple(dim))
        if any(not -ndim <= a < ndim for a in axes) or not axes or len({a % ndim for a in axes}) < len(axes):
            raise ValueError(f"dim: expected distinct axes of a tensor with {ndim}, got {dim}")
        axes = tuple(sorted(a % ndim for a in axes))
        if block is not None and (len(axes) != 1 or block < 1):
            raise ValueError(f"block: expected a length >= 1 along one axis, got block={block} with dim={dim}")
        kept = [a for a in range(ndim) if a not in axes]
        # Adjacent axes need no copy: what stands before them is `outer`, what stands behind is `inner`.
        adjacent = axes[-1] - axes[0] == len(axes) - 1
        before = [a for a in kept if a < axes[0]] if adjacent else kept
        self.order = (*before, *axes, *(a for a in kept if a not in before))
        self.shape = x.shape if x.ndim else torch.Size((1,))
        self.scalar = x.ndim == 0
        sizes = [self.shape[a] for a in self.order]
        end = len(before) + len(axes)
        self.sizes = (math.prod(sizes[: len(before)]), math.prod(sizes[len(before) : end]), math.prod(sizes[end:]))
        self.block = min(block or self.sizes[1], self.sizes[1])

    def split(self, x: Tensor) -> Tensor:
        """The tensor as (outer, n, inner)."""
        return x.reshape(self.shape).permute(self.order).reshape(self.sizes)

    def join(self, x3: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        x = x3.reshape([self.shape[a] for a in self.order])
        x = x.permute([self.order.index(a) for a in range(len(self.order))])
        return x.squeeze(0) if self.scalar else x


def _reference_blocks(x3: Tensor, q3: Tensor, lam: float, form: str, block: int) -> Tensor:
    """The reference over (outer, n, inner), block by block."""
    if lam == 0:
        closed_form.solve(sums_of(x3, q3, block), lam, form)  # raises where the slope is undefined
    pieces = zip(*(torch.split(t.transpose(1, 2), block, dim=-1) for t in (x3, q3)), strict=True)
    return torch.cat([ddt_reference(x, q, lam, form) for x, q in pieces], dim=-1).transpose(1, 2)


def sums_of(x3: Tensor, q3: Tensor, block: int) -> Sums:
    """The sums of every block of x, q (outer, n, inner): each entry (outer, runs, inner)."""
    if x3.device.type == "cpu" and x3.dtype in (torch.float32, torch.float64):
        sums = cpu.block_sums(as_numpy(x3), as_numpy(q3), block)
    else:
        x64, q64 = x3.detach().double(), q3.detach().double()
        parts = [[p.sum(1) for p in torch.split(v, block, dim=1)] for v in (x64, q64, q64 * q64, x64 * q64)]
        sums = np.stack([torch.stack(p, dim=1).cpu().numpy() for p in parts])
    n = x3.shape[1]
    counts = np.array([min(block, n - lo) for lo in range(0, n, block)], np.float64)
    return Sums(np.broadcast_to(counts[None, :, None], sums[0].shape), sums[0], sums[1], sums[2], sums[3])


class _Ridge(torch.autograd.Function):
    """DDT over (outer, n, inner) with the closed-form backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, lam: float, form: str, block: int) -> Tensor:
        sums = sums_of(x, q, block)
        ridge = closed_form.solve(sums, lam, form)
        ctx.save_for_backward(x, q)
        ctx.sums, ctx.lam, ctx.form, ctx.block = sums, lam, form, block
        qn = as_numpy(q)
        zero = np.zeros_like(ridge.s)
        return torch.from_numpy(cpu.combine(qn, qn, qn, np.stack([ridge.s, zero, zero, ridge.offset]), block))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, q = ctx.saved_tensors
        block = ctx.block
        g_sums = sums_of(grads[0].contiguous(), q, block)
        back = closed_form.gradient(ctx.sums, g_sums.x, g_sums.xq, ctx.lam, ctx.form)
        g, xn, qn = as_numpy(grads[0]), as_numpy(x), as_numpy(q)
        zero = np.zeros_like(back.r)
        dx = dq = None
        if ctx.needs_input_grad[0]:
            dx = torch.from_numpy(cpu.combine(qn, qn, qn, np.stack([back.r, zero, zero, back.x_const]), block))
        if ctx.needs_input_grad[1]:
            factors = np.stack([back.s, back.r, -2 * back.s * back.r, back.q_const])
            dq = torch.from_numpy(cpu.combine(g, xn, qn, factors, block))
        return dx, dq, None, None, None
