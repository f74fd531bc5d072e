"""Quantisation on a GPU: the operators ``tbnn::quantize``, ``quantize_backward`` and ``quantize_values`` in Triton.

One kernel a direction where blocks are short or many; the parts of few long ones are shared among programs, a kernel a
pass. The threshold of a pruned fraction comes from a stable sort. All of it stays on the device, but for the check of
λ = 0, which must see the sums. Every scheme, estimator, sparsity and floating dtype of the reference is covered.
"""

from typing import Any

import torch
from torch import Tensor

from tbnn.ops.ddt.closed_form import Sums, check_slopes
from tbnn.ops.ddt.gpu import Blocks, blocks_for, launch
from tbnn.ops.quantize.gpu_passes import (
    backward_blocks,
    finish_parts,
    forward_blocks,
    join_place,
    join_sums,
    pass_parts,
)
from tbnn.ops.quantize.grid import SPREAD, Scheme
from tbnn.ops.quantize.parts import COUNT, FACTS, LAST, MAP, MODES, RIDGE, STAY, SUM_Q, SUM_QQ, SUM_X, SUM_XQ, TAU
from tbnn.ops.quantize.sparsify import Sparsity, kept_of

MANY = 256  # blocks that keep a GPU busy, a program each
JOINED = 32  # long blocks whose passes one program joins
MEASURE_PASS, DEVIATE_PASS, SUM_PASS, GRADIENT_PASS = range(4)


def quantize(x: Tensor, block: int, fraction: float, scope: str, *scheme_parts: Any) -> tuple[Tensor, Tensor]:
    """x̂ of x (outer, n, inner), and the facts of every block, float64 (outer, runs, inner, FACTS)."""
    scheme, x = Scheme(*scheme_parts), x.contiguous()
    how, out = blocks_for(x, block), torch.empty_like(x)
    facts = torch.empty((how.outer, how.runs, how.inner, FACTS), dtype=torch.float64, device=x.device)
    if scheme.sparse and not scheme.group:
        facts[..., TAU], facts[..., LAST] = _cut(x, Sparsity(fraction, scheme.keep, scheme.group, scope), how)
    else:
        facts[..., TAU:].zero_()
    if _is_long(how):
        measured = _pass(x, x, facts, None, how, scheme, MEASURE_PASS)
        about = measured[0]
        if scheme.measure == SPREAD:
            about = _pass(x, x, facts, measured, how, scheme, DEVIATE_PASS)[0]
        joined = -(-how.units // JOINED)
        grid = {name: getattr(scheme, name.lower()) for name in ("RULE", "MEASURE", "LEVELS", "STEP", "LOW")}
        launch(join_place, joined, measured, about, facts, how.units, **grid, R=JOINED)
        sums, counts = _pass(x, x, facts, None, how, scheme, SUM_PASS), how.counts(x).contiguous()
        launch(join_sums, joined, sums, counts, facts, how.units, scheme.lam, LINEAR=scheme.linear, R=JOINED)
        launch(
            finish_parts,
            how.programs,
            x,
            x,
            facts,
            None,
            out,
            *how.sizes,
            scheme.lam,
            MODE=MAP,
            LINEAR=scheme.linear,
            **_codes(scheme),
            **how.options,
        )
    else:
        whole = _whole(how)
        measure = {"MEASURE": scheme.measure, "LEVELS": scheme.levels, "STEP": scheme.step}
        launch(
            forward_blocks,
            whole.programs,
            x,
            facts,
            out,
            *whole.sizes,
            scheme.lam,
            LINEAR=scheme.linear,
            **measure,
            **_codes(scheme),
            **whole.options,
        )
    if scheme.lam == 0:
        sums = Sums(*(facts[..., i].cpu().numpy() for i in (COUNT, SUM_X, SUM_Q, SUM_QQ, SUM_XQ)))
        check_slopes(sums, "linear" if scheme.linear else "affine", facts[..., STAY].cpu().numpy())
    return out, facts


def quantize_backward(g: Tensor, x: Tensor, facts: Tensor, block: int, *rest: Any) -> Tensor:
    """dL/dx from G = dL/dx̂, each (outer, n, inner); the last arguments are the scheme, the estimator, its settings."""
    *scheme_parts, estimator, settings = rest
    return _again(g.contiguous(), x.contiguous(), facts, block, Scheme(*scheme_parts), MODES[estimator], settings)


def quantize_values(x: Tensor, facts: Tensor, block: int, *scheme_parts: Any) -> Tensor:
    """The codes of x on their symmetric grid."""
    scheme, x = Scheme(*scheme_parts), x.contiguous()
    return _again(x, x, facts, block, scheme, MAP, [scheme.value_factor, scheme.value_shift])


def _again(g: Tensor, x: Tensor, facts: Tensor, block: int, scheme: Scheme, mode: int, settings: list[float]) -> Tensor:
    """Codes once more, and what ``mode`` makes of them."""
    how, out, facts = blocks_for(x, block), torch.empty_like(x), facts.contiguous()
    if mode >= RIDGE and _is_long(how):
        sums = _pass(g, x, facts, None, how, scheme, GRADIENT_PASS)
        launch(
            finish_parts,
            how.programs,
            g,
            x,
            facts,
            sums,
            out,
            *how.sizes,
            scheme.lam,
            MODE=mode,
            LINEAR=scheme.linear,
            **_codes(scheme),
            **how.options,
        )
        return out
    how = _whole(how) if mode >= RIDGE else how
    three = (*settings, 1.0, 1.0, 1.0)[:3]
    launch(
        backward_blocks,
        how.programs,
        g,
        x,
        facts,
        out,
        *how.sizes,
        scheme.lam,
        *three,
        MODE=mode,
        LINEAR=scheme.linear,
        **_codes(scheme),
        **how.options,
    )
    return out


def _is_long(how: Blocks) -> bool:
    return how.parts > 1 and how.units < MANY


def _whole(how: Blocks) -> Blocks:
    """A program each."""
    return how._replace(part_size=how.block)


def _codes(scheme: Scheme) -> dict[str, Any]:
    """What is known of a scheme when a kernel that makes codes is compiled."""
    names = ("RULE", "LOW", "HIGH", "SPARSE", "KEEP", "GROUP")
    return {name: getattr(scheme, name.lower()) for name in names}


def _pass(
    g: Tensor, x: Tensor, facts: Tensor, measured: Tensor | None, how: Blocks, scheme: Scheme, which: int
) -> Tensor:
    """One pass over the parts of long blocks, and its parts joined: (4, blocks)."""
    parts = torch.empty((4, how.units, how.parts), dtype=torch.float64, device=x.device)
    launch(
        pass_parts,
        how.programs,
        g,
        x,
        facts,
        measured,
        parts,
        *how.sizes,
        PASS=which,
        MEASURE=scheme.measure,
        **_codes(scheme),
        **how.options,
    )
    if which != MEASURE_PASS:
        return parts.sum(-1)
    return torch.cat([parts[:2].sum(-1), parts[2].amin(-1)[None], parts[3].amax(-1)[None]])


def _cut(x: Tensor, sparsity: Sparsity, how: Blocks) -> tuple[Tensor, Tensor]:
    """(τ, last) of every block: of a fraction, values with |x| > τ stay, or |x| = τ at an index of at most ``last``.

    ``last`` counts from the block's start, along n, and may lie before it or behind its end.
    """
    size, (outer, n, inner) = x.abs(), x.shape
    starts = how.block * torch.arange(how.runs, device=x.device)[None, :, None]
    if sparsity.scope == "tensor":
        tau, last = _threshold(size.reshape(-1), sparsity.fraction)
        lines = torch.arange(outer, device=x.device)[:, None, None] * (n * inner) + torch.arange(inner, device=x.device)
        return tau.double(), torch.div(last - lines, inner, rounding_mode="floor") - starts
    rows = size.transpose(1, 2)
    if sparsity.scope == "row":
        tau, last = _threshold(rows, sparsity.fraction)
        return tau[:, None].double(), last[:, None] - starts
    full = n // how.block * how.block
    cuts = []
    if full:
        cuts.append(_threshold(rows[..., :full].unflatten(-1, (-1, how.block)), sparsity.fraction))
    if full < n:
        cuts.append(_threshold(rows[..., full:].unsqueeze(-2), sparsity.fraction))
    tau, last = (torch.cat(parts, -1).transpose(1, 2) for parts in zip(*cuts, strict=True))
    return tau.double(), last


def _threshold(size: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """(τ, last) along the last axis: magnitude and index of the last value that stays; of equals the first stay."""
    keep = kept_of(size.shape[-1], fraction)
    ordered, order = torch.sort(size, dim=-1, descending=True, stable=True)
    return ordered[..., keep - 1], order[..., keep - 1]
