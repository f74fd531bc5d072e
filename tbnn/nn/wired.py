"""Weights of a wiring: how they start, and how the synapses that exist are quantised."""

import math
from typing import Any

import torch
from torch import Tensor

from tbnn.nn.wiring import Dale, DeepR, WiringLike, part_of
from tbnn.ops.ddt.reference import ridge_reference
from tbnn.ops.quantize.estimators import Estimator, Pege, estimator_of
from tbnn.ops.quantize.grid import scheme_of
from tbnn.ops.quantize.reference import quantize_blocks
from tbnn.ops.quantize.sparsify import SparsityLike, sparsity_of


def check_wired(sparsity: SparsityLike, scope: str, estimator: str | Estimator, form: str, lam: float) -> None:
    """Raise ``ValueError`` for options of a quantiser that do not go with a wiring."""
    if sparsity_of(sparsity, scope).prunes:
        raise ValueError(f"sparsity: expected 0 with a wiring, which says itself what is there, got {sparsity!r}")
    if form != "linear":
        raise ValueError(
            f"form: expected 'linear' with a wiring (an offset would give every missing synapse a weight), got {form!r}"
        )
    if isinstance(estimator_of(estimator), Pege):
        raise ValueError("estimator: expected another with a wiring: 'pege' mixes weights in that have any sign")
    if lam == 0:
        raise ValueError("lam: expected a number > 0 with a wiring, got 0")


@torch.no_grad()
def start_wired(
    weight: Tensor, mask: Tensor, signs: Tensor | None, wiring: WiringLike | None, start_gain: float
) -> None:
    """Draw latent weights uniformly, mean |w| = start_gain/√k with the k synapses of a row; 0 where there is none.

    Where signs are given weights have them; of :class:`Dale`'s that are silent at the start, the other.
    """
    counts = mask.flatten(1).sum(1).clamp(min=1).reshape(-1, *[1] * (weight.ndim - 1))
    drawn = (2 * torch.rand_like(weight) - 1) * (2 * start_gain / counts.sqrt())
    if signs is not None:
        drawn = drawn.abs() * signs
        law = part_of(wiring, Dale)
        if law is not None and part_of(wiring, DeepR) is None:  # what DEEP R activates is present
            silent = torch.rand_like(weight) >= law.present(signs).to(weight)
            drawn = torch.where(silent, -drawn, drawn)
    weight.copy_(torch.where(mask, drawn, 0))


def present_of(weight: Tensor, mask: Tensor, signs: Tensor | None) -> Tensor:
    """Which synapses there are that are not silent: of latent weights with the sign that is theirs."""
    return mask if signs is None else mask & (weight.detach() * signs > 0)


def quantize_wired(
    weight: Tensor,
    mask: Tensor,
    signs: Tensor | None,
    *,
    bits: float | None,
    lam: float,
    block: int | None,
    estimator: str | Estimator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ŵ (outputs, row) of latent weights, differentiable in them, and its values, scale and offset (outputs, blocks).

    In the linear form of :func:`tbnn.quantize`, where silent synapses are pruned ones: values 0, no data of the ridge, a
    gradient by the estimator. Where there is no synapse the value is 0, nothing counts and no gradient passes. In float64.
    """
    row = weight.shape[1]
    scheme: Any = scheme_of(bits, "linear", lam, sparse=True)
    x = torch.where(mask, weight, 0).double()
    kept = present_of(weight, mask, signs)
    size = min(block or row, row)
    done, scales = [], []
    for part, here in zip(x.split(size, 1), kept.split(size, 1), strict=True):
        x_hat, q = quantize_blocks(part, here, scheme, estimator_of(estimator))
        done.append((x_hat, q))
        share = here.sum(1, keepdim=True).double() / part.shape[1]
        penalty = torch.where(share > 0, lam * share, 1.0)
        scales.append(ridge_reference(part.detach(), q, penalty, "linear")[0])
    x_hat, q = (torch.cat(parts, 1).to(weight.dtype) for parts in zip(*done, strict=True))
    scale = torch.cat(scales, 1).to(weight.dtype)
    return x_hat, q.detach() + 0.0, scale, torch.zeros_like(scale)  # + 0: no −0 among the codes


def feedback_gain(weight: Tensor, mask: Tensor) -> float:
    """Mean |w|·√k over the synapses, k those of a row."""
    count = int(mask.sum())
    return weight[mask].abs().mean().item() * math.sqrt(count / len(weight)) if count else 0.0
