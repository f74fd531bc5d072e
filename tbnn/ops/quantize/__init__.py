"""Prune, quantise to bits and reconstruct: what a weight passes through before it meets a spike."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tbnn.ops.ddt import BlockLayout, check_ridge, closed_form, sums_of
from tbnn.ops.kernels import backend_for
from tbnn.ops.quantize.estimators import (
    Ddt,
    Estimator,
    Ewgs,
    Pege,
    Qgait,
    Reste,
    Ste,
    estimator_of,
    name_and_settings,
)
from tbnn.ops.quantize.grid import Scheme, check_bits, scheme_of
from tbnn.ops.quantize.operator import quantize_cpu, values_cpu
from tbnn.ops.quantize.parts import OFFSET, ORIGIN, SLOPE, S
from tbnn.ops.quantize.reference import quantize_reference
from tbnn.ops.quantize.soft import mixed, sloped, soft_slope
from tbnn.ops.quantize.sparsify import Sparsity, SparsityLike, sparsity_of

__all__ = [
    "Codes",
    "Ddt",
    "Ewgs",
    "Pege",
    "Qgait",
    "Reste",
    "Ste",
    "check_quantize",
    "quantize",
    "quantize_with_codes",
]

KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Codes(NamedTuple):
    """A quantised tensor in parts: ``x̂ = scale·values + offset``, scale and offset constant over a block."""

    values: Tensor
    """Of the tensor's shape and dtype: ±1 (1 bit), −1, 0, 1 (ternary), ±1, ±3, … ±(2^k − 1) (k bits); 0 where pruned.

    An odd integer is ``Σ 2^i·(±1)_i``, k planes of signs. With ``bits=None``: the kept x over the grid's scale. Where
    :class:`Pege` mixes x in there are no codes: the mixture, with scale 1 and offset 0.
    """
    scale: Tensor
    """One value a block, (outer, blocks, inner)."""
    offset: Tensor
    """One value a block, (outer, blocks, inner); 0 in the linear form."""


def quantize(
    x: Tensor,
    *,
    bits: float | None = 1,
    sparsity: SparsityLike = 0.0,
    scope: str = "block",
    form: str = "affine",
    lam: float = 0.01,
    dim: int | tuple[int, ...] | None = None,
    block: int | None = None,
    estimator: str | Estimator = "ddt",
    backend: str | None = None,
) -> Tensor:
    """Prune, quantise to a few bits a value, and reconstruct x: ``x̂ = s·q + b`` (affine) or ``s·q`` (linear).

    1. *Sparsify*: x_S = x where |x| is among the largest, 0 elsewhere.
    2. *Grid*: ``f(x) = (x − b_f)·(1/s_f)``, with s_f and b_f statistics of the block, or of what it keeps; detached.
    3. *Quantise*: ``q = f(x_S) + δ``, δ the rounding error, detached; 0 where pruned.
    4. *Denoise*: s and b by ridge regression of the dense x on q, as in :func:`tbnn.ddt`, with λ·kept/n in place of λ
       where a block keeps ``kept`` of its n values: λ counts as often as there are codes to weigh it against, so that
       zeros between the values do not change s of the linear form. Where nothing is kept s = 0.

    The grids, with c_N the optimal step of N levels for a Gaussian (Max 1960), σ the block's standard deviation:

    =========  =======================================  =====================================================
    bits       affine                                   linear; both forms where values are pruned
    =========  =======================================  =====================================================
    1          q = 1[x > 0], s_f = 2·mean|x|            q = ±1 by x > 0, s_f = mean|x|
    1.58       q ∈ −1…1 about the mean,                 q ∈ −1…1,
               s_f = min(c_3·σ, half the range)         s_f = min(c_3·rms, max|x|)
    k = 2 … 8  q ∈ 0…N−1, N = 2^k, from lo to hi:       q odd, ±1 … ±(N−1), the lower of two as near,
               mean ∓ c_N·σ·(N−1)/2, cut to the range,  s_f = min(c_N·rms/2, max|x|/(N−1))
               s_f = (hi − lo)/(N−1)
    None       q = x_S/s_f, s_f = rms                   q = x_S/s_f, s_f = rms
    =========  =======================================  =====================================================

    λ is in units of a kept value's q² on these grids. Multiplying x by a power of two multiplies x̂ by it exactly. Adding a constant
    to x adds it to x̂ in the affine form of 1.58 and 2 … 8 bits, but not of one bit, whose threshold stays at 0, nor
    where values are pruned. A constant block (affine) or one of zeros comes back as its mean.

    Forward, every estimator gives the same x̂, with one exception: a :class:`Pege` whose progress is below 1 leaves
    some of the values as they are. Backward: "ddt", the gradient with δ constant (so dq/dx = 1/s_f for every value,
    pruned and clipped ones too) of a ridge whose data are the kept values; "ddt_ridge", pruned ones too, as in the
    paper; "ddt_slope", none, the slope alone: :class:`Ddt`; "ste", the identity; "ewgs", "reste" (one bit only),
    "qgait", "pege": :class:`Ewgs`, :class:`Reste`, :class:`Qgait`, :class:`Pege`. A second derivative is refused on
    the CPU.

    Statistics and codes are computed in float64 from x, so q does not depend on the dtype that holds x; the result
    has x's dtype. On the CPU float32 and float64 run in compiled kernels, which torch.compile, torch.export and
    checkpointing see as one operator; half precision is widened to float32 for them. Other devices run the reference.
    Of "qgait" and "pege" the kernels compute x̂; the slopes of the one and the mixing of the other are plain torch on
    every device, some passes over x more.

    Args:
        x: floating point, any shape, with at least one value.
        bits: 1, 1.58 (ternary), 2 … 8, or None: no rounding, sparsity alone.
        sparsity: a fraction p in [0, 0.999]: exactly n − round(p·n) of n values stay, at least one, so the
            smallest blocks keep more than their share; of equal |x| the first stay. Or N:M, as (n, m) or "n:m": the
            n largest of every m neighbours along ``dim`` stay, min(n, r) of a last group of r.
        scope: over what a fraction is taken: each "block", each "row" (all runs along ``dim`` together) or the
            whole "tensor". N:M has no use for it.
        form, lam, dim, block: as in :func:`tbnn.ddt`.
        estimator: "ddt", "ddt_ridge", "ddt_slope", "ste", "ewgs", "reste", "qgait", "pege", or an instance of their
            classes.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        x̂, of x's shape and dtype.

    Raises:
        ValueError: as :func:`tbnn.ddt`, and for arguments other than the above.

    Source: arXiv 2409.09245; J. Max, "Quantizing for Minimum Distortion", IRE Trans. Inf. Theory 6 (1960).

    >>> quantize(torch.tensor([-1.0, -0.5, 0.5, 2.0]), form="linear")
    tensor([-0.9901, -0.9901,  0.9901,  0.9901])
    """
    scheme, prune, how = _checked(x, bits, sparsity, scope, form, lam, estimator)
    layout = BlockLayout(x, dim, block)
    x3 = layout.split(x)
    x_hat, _ = _run(x3, scheme, prune, how, layout.block, _has_kernels(x, backend))
    return layout.join(x_hat.to(x.dtype))


def quantize_with_codes(
    x: Tensor,
    *,
    bits: float | None = 1,
    sparsity: SparsityLike = 0.0,
    scope: str = "block",
    form: str = "affine",
    lam: float = 0.01,
    dim: int | tuple[int, ...] | None = None,
    block: int | None = None,
    estimator: str | Estimator = "ddt",
    backend: str | None = None,
) -> tuple[Tensor, Codes]:
    """:func:`quantize`, and its result in parts, without gradient: what is multiplied, packed and simulated."""
    scheme, prune, how = _checked(x, bits, sparsity, scope, form, lam, estimator)
    layout = BlockLayout(x, dim, block)
    x3 = layout.split(x)
    factor, shift = scheme.value_factor, scheme.value_shift
    kernels = _has_kernels(x, backend)
    x_hat, found = _run(x3, scheme, prune, how, layout.block, kernels)
    if isinstance(how, Pege) and how.share < 1:
        x_hat = layout.join(x_hat.to(x.dtype))
        scale = x.new_ones((x3.shape[0], -(-x3.shape[1] // layout.block), x3.shape[2]))
        return x_hat, Codes(x_hat.detach(), scale, torch.zeros_like(scale))
    if kernels:
        s, offset = found[..., S], found[..., OFFSET]
        values = values_cpu(x3, found, scheme, layout.block)
    else:
        q, kept = found
        sums, counts = _sums(x3, q, kept, layout.block)
        ridge = closed_form.solve(sums, scheme.lam, form, counts)
        s, offset = (torch.from_numpy(part).to(x.device) for part in ridge)
        values = factor * q + shift if factor != 1 else q
    scale = s / factor  # q = (values − shift)/factor
    parts = Codes(layout.join(values.to(x.dtype)), scale.to(x.dtype), (offset - scale * shift).to(x.dtype))
    return layout.join(x_hat.to(x.dtype)), parts


def check_quantize(
    bits: float | None,
    sparsity: SparsityLike,
    form: str,
    lam: float,
    estimator: str | Estimator,
    scope: str = "block",
) -> None:
    """Raise ``ValueError`` unless the arguments are among those :func:`quantize` takes."""
    check_bits(bits)
    sparsity_of(sparsity, scope)
    check_ridge(lam, form)
    if isinstance(estimator_of(estimator), Reste) and bits != 1:
        raise ValueError(f"estimator: 'reste' is for one bit, expected bits=1, got bits={bits!r}")


def _checked(
    x: Tensor, bits: float | None, sparsity: SparsityLike, scope: str, form: str, lam: float, estimator: str | Estimator
) -> tuple[Scheme, Sparsity, Estimator]:
    """What the arguments mean, once they are known to be good."""
    check_quantize(bits, sparsity, form, lam, estimator, scope)
    if not x.is_floating_point() or x.numel() == 0:
        raise ValueError(f"quantize: expected a floating point tensor with values, got {x.dtype} {tuple(x.shape)}")
    prune = sparsity_of(sparsity, scope)
    scheme = scheme_of(bits, form, lam, prune.keep, prune.group, prune.prunes)
    return scheme, prune, estimator_of(estimator)


def _has_kernels(x: Tensor, backend: str | None) -> bool:
    return backend_for(x, backend, KERNEL_DTYPES, KERNEL_DTYPES, exports=True) != "reference"


def _run(x3: Tensor, scheme: Scheme, prune: Sparsity, how: Estimator, block: int, kernels: bool) -> tuple[Tensor, Any]:
    """x̂ of x3 (outer, n, inner), differentiable in it, and what the kernels found out about every block; else q, kept."""
    inner, source = (Ste(), x3.detach()) if isinstance(how, Pege) else (how, x3)
    if not kernels:
        x_hat, found = _by_reference(source, scheme, prune, inner, block)
    else:
        x_hat, found = quantize_cpu(source, scheme, prune, *name_and_settings(inner), block)
        if isinstance(how, Qgait):
            origin, slope = (found[..., i].repeat_interleave(block, 1)[:, : x3.shape[1]] for i in (ORIGIN, SLOPE))
            f = (x3.detach().double() - origin) * slope
            x_hat = sloped(x3, x_hat, soft_slope(f, scheme, how))
    return mixed(x3, x_hat, how) if isinstance(how, Pege) else x_hat, found


def _by_reference(
    x3: Tensor, scheme: Scheme, prune: Sparsity, how: Estimator, block: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The reference over (outer, n, inner): x̂, and q and which values are kept, in float64."""
    x_hat, q, kept = quantize_reference(x3, prune, scheme, how, block)
    if scheme.lam == 0:
        sums, counts = _sums(x3, q, kept, block)
        closed_form.check_slopes(sums, "linear" if scheme.linear else "affine", counts)
    return x_hat, (q, kept)


def _sums(x3: Tensor, q: Tensor, kept: Tensor, block: int) -> tuple[closed_form.Sums, closed_form.Scalars]:
    """The sums of every block, and how many values it keeps."""
    return sums_of(x3.double(), q, block), sums_of(kept.double(), q, block).x
