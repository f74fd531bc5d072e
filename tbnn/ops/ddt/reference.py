"""The denoising dequantization transform by its definition, differentiated by autograd (arXiv 2409.09245)."""

from torch import Tensor


def ddt_reference(x: Tensor, q: Tensor, lam: float, form: str) -> Tensor:
    """Ridge-reconstruct ``x`` from ``q``, each (blocks, n): statistics run over the last axis.

    affine: ``x̂ = s·(q − q̄) + x̄``, ``s = Cov(x,q) / (Var(q) + λ)``; linear: ``x̂ = s·q``, ``s = mean(x·q) / (mean(q²) + λ)``.
    """
    if form == "linear":
        s = (x * q).mean(-1, keepdim=True) / (q.square().mean(-1, keepdim=True) + lam)
        return s * q
    q_mean = q.mean(-1, keepdim=True)
    x_mean = x.mean(-1, keepdim=True)
    covariance = ((x - x_mean) * (q - q_mean)).mean(-1, keepdim=True)
    variance = (q - q_mean).square().mean(-1, keepdim=True)
    return covariance / (variance + lam) * (q - q_mean) + x_mean
