"""The denoising dequantization transform: a ridge regression, in closed form, forward and backward."""

import math

import torch
from torch import Tensor

from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.operator import Ridge, sums_of, widened
from tbnn.ops.ddt.reference import ddt_reference
from tbnn.ops.kernels import backend_for

__all__ = ["FORMS", "BlockLayout", "check_ridge", "closed_form", "ddt", "sums_of"]

KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

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
    ``q = f + (round(f) − f).detach()``. A second derivative is refused on the CPU. Sums run in float64 there (on other
    devices in float32 for half precision); torch.compile, torch.export and checkpointing see one operator.

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
    if backend_for(x, backend, KERNEL_DTYPES, KERNEL_DTYPES, exports=True) != "reference":
        return layout.join(Ridge.apply(x3, q3, lam, form, layout.block))
    return layout.join(_reference_blocks(x3, q3, lam, form, layout.block))


def check_ridge(lam: float, form: str) -> None:
    """Raise ``ValueError`` unless ``lam`` is finite and not negative and ``form`` is known."""
    if form not in FORMS:
        raise ValueError(f"form: expected 'affine' or 'linear', got {form!r}")
    if not 0 <= lam < math.inf:
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
    """The reference over (outer, n, inner), block by block; half precision in float32."""
    if lam == 0:
        closed_form.check_slopes(sums_of(x3, q3, block), form)
    pieces = zip(*(torch.split(t.transpose(1, 2), block, dim=-1) for t in (widened(x3), widened(q3))), strict=True)
    return torch.cat([ddt_reference(x, q, lam, form) for x, q in pieces], dim=-1).transpose(1, 2).to(x3.dtype)
