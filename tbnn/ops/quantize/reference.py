"""Quantisation to one bit a value, and its dense reconstruction, by definition (arXiv 2409.09245)."""

import torch
from torch import Tensor

from tbnn.ops.ddt.reference import ddt_reference


def grid_scale(x: Tensor, form: str) -> Tensor:
    """The step of the 1-bit grid of x (blocks, n), (blocks, 1): 2·mean|x| for {0, 1}, mean|x| for {−1, 1}; detached."""
    return x.detach().abs().mean(-1, keepdim=True) * (2 if form == "affine" else 1)


def grid_codes(x: Tensor, form: str) -> Tensor:
    """The 1-bit codes of x: {0, 1} in the affine form, {−1, 1} in the linear one; x <= 0 gives the lower."""
    low = 0.0 if form == "affine" else -1.0
    return torch.where(x > 0, x.new_ones(()), x.new_full((), low))


def quantize_reference(x: Tensor, lam: float, form: str, estimator: str) -> Tensor:
    """x (blocks, n) -> its reconstruction from one bit a value and two (affine) or one (linear) scalars a block.

    ``f = x/s_f + ½`` (affine) or ``x/s_f`` (linear), ``q = f + δ``, ``x̂ = DDT(x, q)``; "ste" sets dx̂/dx = 1.
    """
    scale = grid_scale(x, form)
    f = x / torch.where(scale > 0, scale, torch.inf) + (0.5 if form == "affine" else 0.0)
    q = f + (grid_codes(x.detach(), form) - f).detach()
    if estimator == "ste":
        return x + (ddt_reference(x, q, lam, form) - x).detach()
    return ddt_reference(x, q, lam, form)
