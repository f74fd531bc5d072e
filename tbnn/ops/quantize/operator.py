"""The CPU kernels as torch operators, so that torch.compile, torch.export and checkpoints see through them.

The arguments after the tensors are a Scheme, a Sparsity and the estimator, taken apart: an operator takes plain values.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt.closed_form import Sums, check_slopes
from tbnn.ops.ddt.operator import on_gpu, widened
from tbnn.ops.kernels import as_numpy
from tbnn.ops.quantize import cpu
from tbnn.ops.quantize.grid import Scheme
from tbnn.ops.quantize.parts import COUNT, FACTS, STAY, SUM_Q, SUM_QQ, SUM_X, SUM_XQ
from tbnn.ops.quantize.sparsify import Sparsity

_SCHEME = (
    "int rule, int measure, int levels, float step, float low, float high, "
    "bool sparse, int keep, int group, bool linear, float lam"
)
_ESTIMATOR = "str estimator, float[] settings"

_library = torch.library.Library("tbnn", "FRAGMENT")
_library.define(f"quantize(Tensor x, int block, float fraction, str scope, {_SCHEME}) -> (Tensor, Tensor)")
_library.define(f"quantize_backward(Tensor g, Tensor x, Tensor facts, int block, {_SCHEME}, {_ESTIMATOR}) -> Tensor")
_library.define(f"quantize_values(Tensor x, Tensor facts, int block, {_SCHEME}) -> Tensor")


def _quantize(x: Tensor, block: int, fraction: float, scope: str, *scheme_parts: Any) -> tuple[Tensor, Tensor]:
    scheme = Scheme(*scheme_parts)
    sparsity = Sparsity(fraction, scheme.keep, scheme.group, scope)
    x_hat, facts = cpu.forward(as_numpy(widened(x)), scheme, sparsity, block)
    if scheme.lam == 0:
        sums = Sums(*(facts[..., i] for i in (COUNT, SUM_X, SUM_Q, SUM_QQ, SUM_XQ)))
        check_slopes(sums, "linear" if scheme.linear else "affine", facts[..., STAY])
    return torch.from_numpy(x_hat).to(x.dtype), torch.from_numpy(facts)


def _quantize_backward(g: Tensor, x: Tensor, facts: Tensor, block: int, *rest: Any) -> Tensor:
    *scheme, estimator, settings = rest
    arrays = (as_numpy(widened(g)), as_numpy(widened(x)), as_numpy(facts))
    return torch.from_numpy(cpu.backward(*arrays, Scheme(*scheme), estimator, list(settings), block)).to(x.dtype)


def _quantize_values(x: Tensor, facts: Tensor, block: int, *scheme: Any) -> Tensor:
    return torch.from_numpy(cpu.values(as_numpy(widened(x)), as_numpy(facts), Scheme(*scheme), block)).to(x.dtype)


for _name, _function in (
    ("quantize", _quantize),
    ("quantize_backward", _quantize_backward),
    ("quantize_values", _quantize_values),
):
    _library.impl(_name, _function, "CPU")
    _library.impl(_name, on_gpu("tbnn.ops.quantize.gpu", _name), "CUDA")


@torch.library.register_fake("tbnn::quantize", lib=_library)
def _(x: Tensor, block: int, *_rest: Any) -> tuple[Tensor, Tensor]:
    outer, n, inner = x.shape
    runs = (n + block - 1) // block
    return x.new_empty(x.shape), x.new_empty((outer, runs, inner, FACTS), dtype=torch.float64)


@torch.library.register_fake("tbnn::quantize_backward", lib=_library)
@torch.library.register_fake("tbnn::quantize_values", lib=_library)
def _(x: Tensor, *_rest: Any) -> Tensor:
    return x.new_empty(x.shape)


class _Quantize(torch.autograd.Function):
    """The operator with its gradient: cheaper a call than the operator's own autograd."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        block: int,
        fraction: float,
        scope: str,
        scheme: Scheme,
        estimator: str,
        settings: list[float],
    ) -> tuple[Tensor, Tensor]:
        x_hat, facts = torch.ops.tbnn.quantize(x, block, fraction, scope, *scheme)
        ctx.mark_non_differentiable(facts)
        ctx.save_for_backward(x, facts)
        ctx.rest = (block, *scheme, estimator, settings)
        return x_hat, facts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        g = grads[0]
        if ctx.rest[-2] != "ste":
            x, facts = ctx.saved_tensors
            g = torch.ops.tbnn.quantize_backward(g.contiguous(), x, facts, *ctx.rest)
        return g, None, None, None, None, None, None


def quantize_cpu(
    x: Tensor, scheme: Scheme, sparsity: Sparsity, estimator: str, settings: list[float], block: int
) -> tuple[Tensor, Tensor]:
    """x (outer, n, inner), any floating dtype -> x̂, differentiable in x, and the facts of every block."""
    x_hat, facts = _Quantize.apply(x, block, sparsity.fraction, sparsity.scope, scheme, estimator, settings)
    return x_hat, facts


def values_cpu(x: Tensor, facts: Tensor, scheme: Scheme, block: int) -> Tensor:
    """The codes that :func:`quantize_cpu` gave x, on their symmetric grid."""
    values: Tensor = torch.ops.tbnn.quantize_values(x.detach(), facts, block, *scheme)
    return values
