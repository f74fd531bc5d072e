"""The CPU kernels as torch operators, so that torch.compile, torch.export and checkpoints see through them."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import closed_form, cpu
from tbnn.ops.ddt.closed_form import Sums
from tbnn.ops.kernels import as_numpy

_library = torch.library.Library("tbnn", "FRAGMENT")
_library.define("ddt(Tensor x, Tensor q, float lam, str form, int block) -> (Tensor, Tensor)")
_library.define(
    "ddt_backward(Tensor g, Tensor x, Tensor q, Tensor sums, float lam, str form, int block, bool for_x, bool for_q)"
    " -> (Tensor, Tensor)"
)


def widened(x: Tensor) -> Tensor:
    """Half precision as float32, which the kernels take."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def sums_of(x3: Tensor, q3: Tensor, block: int) -> Sums:
    """The sums of every block of x, q (outer, n, inner): each entry (outer, runs, inner)."""
    if x3.device.type == "cpu" and x3.dtype in (torch.float32, torch.float64):
        sums = cpu.block_sums(as_numpy(x3), as_numpy(q3), block)
    else:
        x64, q64 = x3.detach().double(), q3.detach().double()
        parts = [[p.sum(1) for p in torch.split(v, block, dim=1)] for v in (x64, q64, q64 * q64, x64 * q64)]
        sums = np.stack([torch.stack(p, dim=1).cpu().numpy() for p in parts])
    n = x3.shape[1]
    counts = np.array([min(block, n - lo) for lo in range(0, n, block)], np.float64)
    return Sums(np.broadcast_to(counts[None, :, None], sums[0].shape), sums[0], sums[1], sums[2], sums[3])


def _ddt(x: Tensor, q: Tensor, lam: float, form: str, block: int) -> tuple[Tensor, Tensor]:
    qn = as_numpy(widened(q))
    sums = sums_of(widened(x), widened(q), block)
    ridge = closed_form.solve(sums, lam, form)
    zero = np.zeros_like(ridge.s)
    x_hat = cpu.combine(qn, qn, qn, np.stack([ridge.s, zero, zero, ridge.offset]), block)
    return torch.from_numpy(x_hat).to(x.dtype), torch.from_numpy(np.stack(sums))


def _ddt_backward(
    g: Tensor, x: Tensor, q: Tensor, sums: Tensor, lam: float, form: str, block: int, for_x: bool, for_q: bool
) -> tuple[Tensor, Tensor]:
    gn, xn, qn = (as_numpy(widened(t)) for t in (g, x, q))
    g_sums = sums_of(widened(g), widened(q), block)
    back = closed_form.gradient(Sums(*as_numpy(sums)), g_sums.x, g_sums.xq, lam, form)
    zero = np.zeros_like(back.r)
    dx = dq = x.new_empty(0)
    if for_x:
        dx = torch.from_numpy(cpu.combine(qn, qn, qn, np.stack([back.r, zero, zero, back.x_const]), block))
    if for_q:
        factors = np.stack([back.s, back.r, -2 * back.s * back.r, back.q_const])
        dq = torch.from_numpy(cpu.combine(gn, xn, qn, factors, block))
    return dx.to(x.dtype), dq.to(x.dtype) if for_q else x.new_empty(0)


def on_gpu(module: str, name: str) -> Callable[..., Any]:
    """The function of that name from ``module``, imported, and Triton with it, when it is first called."""
    return lambda *arguments: getattr(importlib.import_module(module), name)(*arguments)


_library.impl("ddt", _ddt, "CPU")
_library.impl("ddt_backward", _ddt_backward, "CPU")
for _name in ("ddt", "ddt_backward"):
    _library.impl(_name, on_gpu("tbnn.ops.ddt.gpu", _name), "CUDA")


@torch.library.register_fake("tbnn::ddt", lib=_library)
def _(x: Tensor, _q: Tensor, _lam: float, _form: str, block: int) -> tuple[Tensor, Tensor]:
    outer, n, inner = x.shape
    return x.new_empty(x.shape), x.new_empty((5, outer, (n + block - 1) // block, inner), dtype=torch.float64)


@torch.library.register_fake("tbnn::ddt_backward", lib=_library)
def _(_g: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    for_x, for_q = rest[-2:]
    return x.new_empty(x.shape if for_x else 0), x.new_empty(x.shape if for_q else 0)


class Ridge(torch.autograd.Function):
    """DDT over (outer, n, inner) with the closed-form backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, lam: float, form: str, block: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_hat, sums = torch.ops.tbnn.ddt(x, q, lam, form, block)
        ctx.save_for_backward(x, q, sums)
        ctx.rest = (lam, form, block)
        return x_hat

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for_x, for_q = ctx.needs_input_grad[:2]
        g = grads[0].contiguous()
        dx, dq = torch.ops.tbnn.ddt_backward(g, *ctx.saved_tensors, *ctx.rest, for_x, for_q)
        return dx if for_x else None, dq if for_q else None, None, None, None
