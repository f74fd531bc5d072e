"""The leaky integrator: the membrane of a neuron that never spikes, as a readout."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.kernels import as_numpy, backend_for, unexpanded
from tbnn.ops.lif import backward, cpu
from tbnn.ops.lif.memory import reused
from tbnn.ops.lif.target import INTEGRATE, Estimator


def leaky_integrate(current: Tensor, beta: Tensor, v0: Tensor, backend: str | None = None) -> Tensor:
    """``v[t] = β·v[t−1] + I[t]``: current (T, B, F), beta (F,), v0 (B, F) -> v (T, B, F)."""
    path = backend_for(current, backend, gpu_dtypes=(torch.float32, torch.bfloat16, torch.float16))
    if path == "gpu":
        from tbnn.ops.lif.gpu import integrate_gpu

        return integrate_gpu(current, beta, v0)
    if path == "cpu":
        if torch.compiler.is_compiling():
            from tbnn.ops.lif.operator import integrate_traced

            return integrate_traced(current, beta, v0)
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
        v = forward(current, beta, v0)
        ctx.save_for_backward(v, beta, v0)
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v, beta, v0 = ctx.saved_tensors
        return backward_pass(grads[0], v, beta, v0, ctx.needs_input_grad[1])


def forward(current: Tensor, beta: Tensor, v0: Tensor) -> Tensor:
    """The scan forwards in time."""
    v = reused(current.shape, current.dtype)
    layer, real, nothing = _arguments(v, beta, v0)
    counter = np.empty((1, 1), nothing.start.dtype)
    rows = cpu.rows_per_task(*v0.shape)
    cpu.scan(as_numpy(current), layer, real, nothing, nothing, counter, rows, work=current.numel())
    return v


def backward_pass(
    dv: Tensor, v: Tensor, beta: Tensor, v0: Tensor, learns: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The scan backwards: the gradients of the current, of β if it ``learns``, and of v0."""
    layer, real, nothing = _arguments(v, beta, v0)
    carry, dcurrent = torch.zeros(v0.shape, dtype=v0.dtype), reused(v.shape, v.dtype)
    learn = np.zeros(cpu.COEFFICIENTS, bool)
    learn[cpu.BETA] = learns
    totals = v.new_zeros((1 if learns else 0, *v0.shape))
    factors = np.zeros((4, 1, beta.numel()), nothing.start.dtype)
    backward.scan_backward(
        Estimator(INTEGRATE), layer, real, real, nothing, nothing.steps[0], as_numpy(unexpanded(dv)), factors,
        learn, cpu.rows_per_task(*v0.shape), as_numpy(carry[None]), as_numpy(totals), as_numpy(dcurrent), work=v.numel(),
    )  # fmt: skip
    return dcurrent, totals[cpu.BETA].sum(0) if learns else None, carry


def _arguments(v: Tensor, beta: Tensor, v0: Tensor) -> tuple[cpu.Layer, cpu.Course, cpu.Course]:
    """The integrator as a layer of neurons that never spike, its course, and an empty one."""
    empty = np.empty((1, 0, *v0.shape), as_numpy(v0).dtype)
    coefficients = np.stack([as_numpy(beta)] * cpu.WITHOUT_SECOND)
    layer = cpu.Layer(coefficients, cpu.NONE, 0, 0, np.full(v.shape[1], v.shape[0]))
    return layer, cpu.Course(as_numpy(v0)[None, None], as_numpy(v)[None]), cpu.Course(empty, empty)
