"""Quantise to bits and reconstruct: what a weight passes through before it meets a spike."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import BlockLayout, check_ridge, closed_form, cpu, sums_of
from tbnn.ops.ddt.closed_form import Ridge, Scalars, Sums
from tbnn.ops.kernels import as_numpy, backend_for
from tbnn.ops.quantize.reference import grid_codes, quantize_reference

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
    return quantize_with_codes(
        x, bits=bits, sparsity=sparsity, form=form, lam=lam, dim=dim, block=block, estimator=estimator, backend=backend
    )[0]


def quantize_with_codes(
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
) -> tuple[Tensor, Codes]:
    """:func:`quantize`, and its result in parts, without gradient: what is multiplied, packed and simulated."""
    check_quantize(bits, sparsity, form, lam, estimator)
    if not x.is_floating_point() or x.numel() == 0:
        raise ValueError(f"quantize: expected a floating point tensor with values, got {x.dtype} {tuple(x.shape)}")
    layout = BlockLayout(x, dim, block)
    x3 = layout.split(x)
    q3 = grid_codes(x3.detach(), form)
    sums = sums_of(x3, q3, layout.block)
    ridge = closed_form.solve(sums, lam, form)
    if backend_for(x, backend) == "cpu":
        x_hat = _Quantize.apply(x3, q3, _Solved(sums, ridge, lam, form, estimator, layout.block))
    else:
        pieces = torch.split(x3.transpose(1, 2), layout.block, dim=-1)
        x_hat = torch.cat([quantize_reference(p, lam, form, estimator) for p in pieces], -1).transpose(1, 2)
    scale, offset = (torch.from_numpy(np.ascontiguousarray(a)) for a in ridge)
    if form == "affine":  # q = (sign + 1)/2
        scale, offset, q3 = scale / 2, offset + scale / 2, 2 * q3 - 1
    parts = Codes(layout.join(q3), *(t.to(x.device, x.dtype) for t in (scale, offset)))
    return layout.join(x_hat), parts


def check_quantize(bits: float, sparsity: float, form: str, lam: float, estimator: str) -> None:
    """Raise ``ValueError`` unless the arguments are among those :func:`quantize` takes."""
    if bits != 1:
        raise ValueError(f"bits: expected 1, got {bits}")
    if sparsity != 0:
        raise ValueError(f"sparsity: expected 0.0, got {sparsity}")
    check_ridge(lam, form)
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: expected 'ddt' or 'ste', got {estimator!r}")


class _Solved(NamedTuple):
    """What forward and backward share besides the tensors."""

    sums: Sums
    ridge: Ridge
    lam: float
    form: str
    estimator: str
    block: int

    def grid_scale(self) -> Scalars:
        """:func:`grid_scale` of every block: Σ|x| follows from the sums, since q tells the sign of x."""
        total = self.sums.xq if self.form == "linear" else 2 * (2 * self.sums.xq - self.sums.x)
        return total / self.sums.n


class _Quantize(torch.autograd.Function):
    """:func:`quantize` over (outer, n, inner), given the codes and the solution; backward in closed form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, solved: _Solved) -> Tensor:
        ctx.solved = solved
        ctx.save_for_backward(x, q)
        qn, ridge = as_numpy(q), solved.ridge
        zero = np.zeros_like(ridge.s)
        return torch.from_numpy(cpu.combine(qn, qn, qn, np.stack([ridge.s, zero, zero, ridge.offset]), solved.block))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        solved: _Solved = ctx.solved
        if solved.estimator == "ste":
            return grads[0], None, None
        x, q = ctx.saved_tensors
        g = grads[0].contiguous()
        g_sums = sums_of(g, q, solved.block)
        back = closed_form.gradient(solved.sums, g_sums.x, g_sums.xq, solved.lam, solved.form)
        scale = solved.grid_scale()
        slope = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)  # dq/dx; 0 for a block of zeros
        factors = np.stack([
            slope * back.s,
            slope * back.r,
            back.r * (1 - 2 * slope * back.s),
            back.x_const + slope * back.q_const,
        ])  # fmt: skip
        return torch.from_numpy(cpu.combine(as_numpy(g), as_numpy(x), as_numpy(q), factors, solved.block)), None, None
