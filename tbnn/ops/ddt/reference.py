"""The denoising dequantization transform by its definition, differentiated by autograd (arXiv 2409.09245)."""

import torch
from torch import Tensor


def ridge_reference(x: Tensor, q: Tensor, lam: float | Tensor, form: str) -> tuple[Tensor, Tensor, Tensor]:
    """(s, q̄, x̄) of the ridge of ``x`` on ``q``, each (blocks, n): statistics run over the last axis, which they keep as 1.

    affine: ``s = Cov(x,q) / (Var(q) + λ)``; linear: ``s = mean(x·q) / (mean(q²) + λ)``, and 0 for the means. λ is a number,
    or one a block.
    """
    if form == "linear":
        s = (x * q).mean(-1, keepdim=True) / (q.square().mean(-1, keepdim=True) + lam)
        return s, torch.zeros_like(s), torch.zeros_like(s)
    q_mean = q.mean(-1, keepdim=True)
    x_mean = x.mean(-1, keepdim=True)
    covariance = ((x - x_mean) * (q - q_mean)).mean(-1, keepdim=True)
    variance = (q - q_mean).square().mean(-1, keepdim=True)
    return covariance / (variance + lam), q_mean, x_mean


def ddt_reference(x: Tensor, q: Tensor, lam: float | Tensor, form: str) -> Tensor:
    """Ridge-reconstruct ``x`` from ``q``, each (blocks, n): ``x̂ = s·(q − q̄) + x̄`` (affine) or ``s·q`` (linear)."""
    s, q_mean, x_mean = ridge_reference(x, q, lam, form)
    return s * q if form == "linear" else s * (q - q_mean) + x_mean
