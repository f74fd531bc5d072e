"""The leaky integrator: the membrane of a neuron that never spikes, as a readout."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.kernels import as_numpy, backend_for, fresh, unexpanded
from tbnn.ops.lif import cpu


def leaky_integrate(current: Tensor, beta: Tensor, v0: Tensor, backend: str | None = None) -> Tensor:
    """``v[t] = β·v[t−1] + I[t]``: current (T, B, F), beta (F,), v0 (B, F) -> v (T, B, F)."""
    if backend_for(current, backend) == "cpu":
        v: Tensor = _Integrate.apply(current, beta, v0)
        return v
    return leaky_integrate_reference(current, beta, v0)


def leaky_integrate_reference(current: Tensor, beta: Tensor, v0: Tensor) -> Tensor:
    """:func:`leaky_integrate` as a loop."""
    v, out = v0, []
    for current_t in current.unbind(0):
        v = beta * v + current_t
        out.append(v)
    return torch.stack(out)


class _Integrate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, beta: Tensor, v0: Tensor) -> Tensor:
        current, beta, v0 = current.contiguous(), beta.contiguous(), v0.contiguous()
        v, nothing = fresh(current.shape, current.dtype), current.new_empty((0, *v0.shape))
        threshold = torch.zeros_like(beta)
        arrays = (as_numpy(t) for t in (current, beta, threshold, v0, v0))
        cpu.scan(
            *arrays, cpu.NONE, cpu.rows_per_task(*v0.shape), *map(as_numpy, (v, nothing, nothing)), work=current.numel()
        )
        ctx.save_for_backward(v, beta, v0)
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v, beta, v0 = ctx.saved_tensors
        carry, dbeta, unused = torch.zeros_like(v0), torch.zeros_like(v0), torch.zeros_like(v0)
        dcurrent, no_trace, threshold = fresh(v.shape, v.dtype), v.new_empty((0, *v0.shape)), torch.zeros_like(beta)
        factors = as_numpy(v.new_zeros((4, 1, beta.numel())))
        inputs = (as_numpy(t) for t in (unexpanded(grads[0]), v, no_trace, v0, v0, beta, threshold))
        outputs = (as_numpy(t) for t in (carry, dbeta, unused, dcurrent))
        cpu.scan_backward(
            cpu.INTEGRATE, *inputs, cpu.NONE, 1, 1.0, 1.0, 0.0, factors, ctx.needs_input_grad[1], cpu.rows_per_task(*v0.shape), *outputs, work=v.numel()
        )  # fmt: skip
        return dcurrent, dbeta.sum(0), carry
