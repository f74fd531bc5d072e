"""Sparsify, put on a grid, round and reconstruct: by definition, in float64 (arXiv 2409.09245)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt.reference import ddt_reference, ridge_reference
from tbnn.ops.quantize.estimators import Ddt, Estimator, Ewgs, Qgait, Reste
from tbnn.ops.quantize.grid import MAGNITUDE, ODD, REAL, ROUND, SIGN, SPREAD, Scheme
from tbnn.ops.quantize.soft import sloped, soft_slope
from tbnn.ops.quantize.sparsify import Sparsity, kept_of


def largest(size: Tensor, keep: int) -> Tensor:
    """True at the ``keep`` largest of ``size`` along the last axis; of equals, those that come first."""
    order = torch.sort(size, dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(size, dtype=torch.bool).scatter(-1, order[..., :keep], True)


def kept_mask(x: Tensor, sparsity: Sparsity, block: int) -> Tensor:
    """Which values of x (outer, n, inner) stay; see :func:`tbnn.quantize`."""
    size = x.detach().abs()
    if sparsity.scope == "tensor" and not sparsity.group:
        return largest(size.reshape(-1), kept_of(size.numel(), sparsity.fraction)).reshape(x.shape)
    rows, n = size.transpose(1, 2), x.shape[1]
    if sparsity.group:
        filled = torch.nn.functional.pad(rows, (0, -n % sparsity.group), value=-1.0)  # the last group may be short
        kept = largest(filled.unflatten(-1, (-1, sparsity.group)), sparsity.keep).flatten(-2)[..., :n]
    else:
        pieces = torch.split(rows, block if sparsity.scope == "block" else n, dim=-1)
        kept = torch.cat([largest(p, kept_of(p.shape[-1], sparsity.fraction)) for p in pieces], -1)
    return kept.transpose(1, 2)


class Placed(NamedTuple):
    """Where the grid lies over a block: f(x) = (x − origin)·slope, each (…, 1)."""

    origin: Tensor
    slope: Tensor


def place(x: Tensor, kept: Tensor, scheme: Scheme) -> Placed:
    """The block's grid, from statistics of the kept values of x (…, n). A constant block has slope 0."""
    count = kept.sum(-1, keepdim=True)
    mean = x.mean(-1, keepdim=True)
    origin = torch.zeros_like(mean)
    if scheme.measure == MAGNITUDE:
        step = (x * kept).abs().sum(-1, keepdim=True) / count  # s_f
        if scheme.low == 0:
            step = 2 * step
            origin = -step / 2  # f = x/s_f + ½
    elif scheme.measure == SPREAD:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        deviation = coarse(((x - mean).square().sum(-1, keepdim=True) / x.shape[-1]).sqrt())
        if scheme.levels == 3:
            step, origin = torch.minimum(scheme.step * deviation, (high - low) / 2), mean
        else:
            reach = scheme.step * deviation * ((scheme.levels - 1) / 2)
            origin = torch.maximum(low, mean - reach)
            step = (torch.minimum(high, mean + reach) - origin) / (scheme.levels - 1)
    else:
        rms = ((x * kept).square().sum(-1, keepdim=True) / count).sqrt()
        peak = (x * kept).abs().amax(-1, keepdim=True)
        if scheme.rule == ODD:
            step = torch.minimum(scheme.step * coarse(rms) / 2, peak / (scheme.levels - 1))
        elif scheme.rule == REAL:
            step = rms
        else:
            step = torch.minimum(scheme.step * coarse(rms), peak)
    return Placed(origin, torch.where(step > 0, 1 / step, 0.0))


def coarse(statistic: Tensor) -> Tensor:
    """Round to 24 bits, so that the order in which a sum was taken cannot move a value across a rounding edge."""
    split = statistic * (2.0**29 + 1)
    return split - (split - statistic)


def codes(x: Tensor, kept: Tensor, grid: Placed, scheme: Scheme) -> Tensor:
    """q of x (…, n), on the grid of ``scheme``."""
    f = (x - grid.origin) * grid.slope
    if scheme.rule == SIGN:
        q = torch.where(x > 0, scheme.high, scheme.low).to(x.dtype)
    elif scheme.rule == ROUND:
        q = f.clamp(scheme.low, scheme.high).round()
    elif scheme.rule == ODD:
        q = (2 * (f / 2).ceil() - 1).clamp(scheme.low, scheme.high)
    else:
        q = f
    return q * kept if scheme.sparse else q


def quantize_blocks(x: Tensor, kept: Tensor, scheme: Scheme, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """x (…, n) -> x̂, differentiable as ``estimator`` says, and q; a block is the whole last axis.

    λ counts what is kept: λ·kept/n for λ in the formulas. A block that keeps nothing has q = 0, and with any λ s = 0.
    """
    fixed = x.detach()
    grid = place(fixed, kept, scheme)
    q = codes(fixed, kept, grid, scheme)
    f = (x - grid.origin) * grid.slope
    form = "linear" if scheme.linear else "affine"
    share = kept.sum(-1, keepdim=True).to(x.dtype) / x.shape[-1]
    lam = torch.where(share > 0, scheme.lam * share, 1.0)
    if isinstance(estimator, Ddt):
        if estimator.pruned == "ridge" or not (scheme.sparse or estimator.slope_only):
            return ddt_reference(x, f + (q - f).detach(), lam, form), q
        data = torch.zeros_like(kept) if estimator.slope_only else kept
        slope = torch.where(share > 0, ridge_reference(fixed, q, lam, form)[0] * grid.slope, 1.0)
        return ridge_over(data, x, f + (q - f).detach(), slope, lam, form), q
    x_hat = ddt_reference(fixed, q, lam, form)
    if isinstance(estimator, Qgait):
        return sloped(x, x_hat, soft_slope(f.detach(), scheme, estimator)), q
    if isinstance(estimator, Ewgs):
        error = f.detach() - q if scheme.rule == REAL else f.detach().clamp(scheme.low, scheme.high) - q
        x = _Ewgs.apply(x, error if scheme.rule == REAL else error / (scheme.high - scheme.low), estimator.delta)
    elif isinstance(estimator, Reste):
        size = (fixed * grid.slope * (2 if scheme.low == 0 else 1)).abs()  # |x| / mean|x|
        x = x * reste_slope(size, estimator)
    return x_hat + (x - x.detach()), q


def ridge_over(data: Tensor, x: Tensor, q: Tensor, slope: Tensor, lam: Tensor, form: str) -> Tensor:
    """x̂ of x and q (…, n) whose statistics are differentiable where ``data`` alone; elsewhere dL/dx = slope·G."""
    x_hat = ddt_reference(torch.where(data, x, x.detach()), torch.where(data, q, q.detach()), lam, form)
    return x_hat + torch.where(data, 0.0, slope) * (x - x.detach())


def reste_slope(size: Tensor, estimator: Reste) -> Tensor:
    """h'(z) of :class:`Reste` at |z| = ``size``."""
    power = (1 - estimator.power_now) / estimator.power_now
    slope = torch.where(size <= estimator.flat, estimator.flat**power, size**power / estimator.power_now)
    return torch.where(size > estimator.bound, 0.0, slope)


class _Ewgs(torch.autograd.Function):
    """The identity, with the gradient of :class:`Ewgs`."""

    @staticmethod
    def forward(ctx, x: Tensor, error: Tensor, delta: float) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(error)
        ctx.delta = delta
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (error,) = ctx.saved_tensors
        return g * (1 + ctx.delta * g.sign() * error), None, None


def quantize_reference(
    x: Tensor, sparsity: Sparsity, scheme: Scheme, estimator: Estimator, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x (outer, n, inner) -> x̂ and q, in float64, and which values are kept; blocks are runs of ``block`` along n."""
    wide = x.double()
    kept = kept_mask(wide, sparsity, block) if scheme.sparse else torch.ones_like(wide, dtype=torch.bool)
    pieces = zip(*(torch.split(t.transpose(1, 2), block, dim=-1) for t in (wide, kept)), strict=True)
    done = [quantize_blocks(p, k, scheme, estimator) for p, k in pieces]
    x_hat, q = (torch.cat(parts, -1).transpose(1, 2) for parts in zip(*done, strict=True))
    return x_hat, q, kept
