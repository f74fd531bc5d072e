"""Quantise to bits and reconstruct: what a weight passes through before it meets a spike."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import BlockLayout, check_ridge, closed_form, cpu, sums_of
from tbnn.ops.kernels import as_numpy, backend_for
from tbnn.ops.quantize.reference import grid_codes, grid_scale, quantize_reference

ESTIMATORS = ("ddt", "ste")


class Codes(NamedTuple):
    """A quantised tensor in parts: ``x̂ = scale·sign + offset``, scale and offset constant over a block."""

    sign: Tensor
    """±1, of the tensor's shape."""
    scale: Tensor
    """One value a block, (outer, blocks, inner)."""
    offset: Tensor
    """One value a block, (outer, blocks, inner); 0 in the linear form."""


def quantize(
    x: Tensor,
    *,
    bits: float = 1,
    sparsity: float = 0.0,
    form: str = "affine",
    lam: float = 0.01,
    dim: int | tuple[int, ...] | None = None,
    block: int | None = None,
    estimator: str = "ddt",
    backend: str | None = None,
) -> Tensor:
    """Quantise to one bit a value and reconstruct: ``x̂ = s·q + b`` (affine, q ∈ {0,1}) or ``s·q`` (linear, q ∈ {−1,1}).

    Forward, every estimator gives the ridge reconstruction of :func:`tbnn.ddt`. Backward, "ddt" is its exact gradient
    with the rounding error δ held constant, "ste" the identity.

    Args:
        x: floating point, any shape.
        bits: 1.
        sparsity: 0.0.
        form, lam, dim, block: as in :func:`tbnn.ddt`.
        estimator: "ddt" or "ste".

    Raises:
        ValueError: as :func:`tbnn.ddt`; other ``bits`` or ``sparsity``; an unknown estimator.

    Source: arXiv 2409.09245.

    >>> quantize(torch.tensor([-1.0, -0.5, 0.5, 2.0]), form="linear")
    tensor([-0.9901, -0.9901,  0.9901,  0.9901])
    """
    check_quantize(bits, sparsity, form, lam, estimator)
    if not x.is_floating_point() or x.numel() == 0:
        raise ValueError(f"quantize: expected a floating point tensor with values, got {x.dtype} {tuple(x.shape)}")
    layout = BlockLayout(x, dim, block)
    x3 = layout.split(x)
    if backend_for(x, backend) == "cpu":
        return layout.join(_Quantize.apply(x3, lam, form, estimator, layout.block))
    pieces = torch.split(x3.transpose(1, 2), layout.block, dim=-1)
    return layout.join(torch.cat([quantize_reference(p, lam, form, estimator) for p in pieces], -1).transpose(1, 2))


def quantize_codes(
    x: Tensor, *, form: str, lam: float, dim: int | tuple[int, ...] | None = None, block: int | None = None
) -> Codes:
    """The sign and the scalars of :func:`quantize`'s result, without gradient: what is packed and simulated."""
    layout = BlockLayout(x, dim, block)
    x3 = layout.split(x.detach()).contiguous()
    q3 = grid_codes(x3, form)
    ridge = closed_form.solve(sums_of(x3, q3, layout.block), lam, form)
    scale, offset = (torch.from_numpy(np.ascontiguousarray(a)) for a in ridge)
    if form == "affine":  # q = (sign + 1)/2
        scale, offset = scale / 2, offset + scale / 2
    sign = grid_codes(x.detach(), "linear")
    return Codes(sign, scale.to(x.device, x.dtype), offset.to(x.device, x.dtype))


def check_quantize(bits: float, sparsity: float, form: str, lam: float, estimator: str) -> None:
    """Raise ``ValueError`` unless the arguments are among those :func:`quantize` takes."""
    if bits != 1:
        raise ValueError(f"bits: expected 1, got {bits}")
    if sparsity != 0:
        raise ValueError(f"sparsity: expected 0.0, got {sparsity}")
    check_ridge(lam, form)
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: expected 'ddt' or 'ste', got {estimator!r}")


class _Quantize(torch.autograd.Function):
    """:func:`quantize` over (outer, n, inner); backward in closed form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lam: float, form: str, estimator: str, block: int) -> Tensor:
        q = grid_codes(x, form)
        sums = sums_of(x, q, block)
        ridge = closed_form.solve(sums, lam, form)
        ctx.settings = (sums, lam, form, estimator, block)
        ctx.save_for_backward(x)
        qn = as_numpy(q)
        zero = np.zeros_like(ridge.s)
        return torch.from_numpy(cpu.combine(qn, qn, qn, np.stack([ridge.s, zero, zero, ridge.offset]), block))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        sums, lam, form, estimator, block = ctx.settings
        if estimator == "ste":
            return grads[0], None, None, None, None
        (x,) = ctx.saved_tensors
        q, g = grid_codes(x, form), grads[0].contiguous()
        g_sums = sums_of(g, q, block)
        back = closed_form.gradient(sums, g_sums.x, g_sums.xq, lam, form)
        scale = _grid_scales(x, form, block)
        slope = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)  # dq/dx; 0 for a block of zeros
        factors = np.stack([
            slope * back.s,
            slope * back.r,
            back.r * (1 - 2 * slope * back.s),
            back.x_const + slope * back.q_const,
        ])  # fmt: skip
        return (
            torch.from_numpy(cpu.combine(as_numpy(g), as_numpy(x), as_numpy(q), factors, block)),
            None,
            None,
            None,
            None,
        )


def _grid_scales(x3: Tensor, form: str, block: int) -> np.ndarray[Any, Any]:
    """:func:`grid_scale` of every block of (outer, n, inner): (outer, blocks, inner)."""
    pieces = torch.split(x3.transpose(1, 2), block, dim=-1)
    return torch.stack([grid_scale(p.double(), form).squeeze(-1) for p in pieces], dim=1).numpy()
