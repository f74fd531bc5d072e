"""The leaky integrate-and-fire neuron over a whole sequence, with surrogate or ridge-denoised gradients."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.closed_form import Sums
from tbnn.ops.kernels import as_numpy, backend_for, fresh, unexpanded
from tbnn.ops.lif import cpu
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.reference import LifResult, lif_reference

__all__ = ["LifState", "SpikeGradient", "lif", "lif_reference"]


class LifState(NamedTuple):
    """What a leaky neuron carries from step to step, each (B, features...)."""

    v: Tensor
    """The membrane after the last step; it spiked where v > threshold."""
    trace: Tensor | None = None
    """With target='trace': the input's leaky trace L[t] = β·L[t−1] + I[t]."""


class LifOutput(NamedTuple):
    """What :func:`lif` returns."""

    out: Tensor
    """(T, B, features...): spikes 0/1, or their reconstruction with emit='denoised'."""
    state: LifState
    moments: Tensor | None
    """With emit='denoised' and no ``affine``: mean f, q and f·q of each block, (3, blocks), for running statistics."""


def lif(
    current: Tensor,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    state: LifState | None = None,
    *,
    reset: str = "subtract",
    gradient: SpikeGradient | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> LifOutput:
    """Run a sequence of currents through leaky integrate-and-fire neurons.

    ``v[t] = β·v[t−1] + I[t] − θ·q[t−1]``, ``q[t] = 1[v[t] > θ]``: snntorch's ``Leaky``, spike for spike. The reset is
    detached. Other resets: "zero" (``v[t] = β·(1 − q[t−1])·v[t−1] + I[t]``) and "none".

    Args:
        current: I, (T, B, features...), T and B at least 1.
        beta, threshold: floats, or tensors that broadcast to (features...).
        state: the state after an earlier sequence; None means rest, v = 0.
        gradient: the estimator, see :class:`SpikeGradient`; the default is the DDT of the soft spike. With
            target="trace" the gradient runs through the trace, and v is a constant.
        affine: with emit="denoised": the constants (a, b) of a·q + b, each (channels,) or (1,), for evaluation.
        backend: for tests; the tensor's device decides otherwise.

    Raises:
        ValueError: wrong shapes, dtypes or devices; target="trace" with another reset than
            "subtract", with β >= 1 or with θ <= 0.

    Source: snntorch (Eshraghian et al. 2023) for the neuron; arXiv 2409.09245 for the DDT.
    """
    gradient = gradient if gradient is not None else SpikeGradient()
    check_current(current)
    features = current.shape[2:]
    if reset not in cpu.RESETS:
        raise ValueError(f"reset: expected one of 'subtract', 'zero', 'none', got {reset!r}")
    beta_f = _per_feature("beta", beta, current)
    threshold_f = _per_feature("threshold", threshold, current)
    if gradient.uses_trace:
        check_trace(beta_f, threshold_f, reset)
    state = check_state(state, current, gradient.uses_trace)
    steps, batch = current.shape[:2]
    flat = (steps, batch, math.prod(features))
    v0 = state.v.reshape(flat[1:])
    trace0 = None if state.trace is None else state.trace.reshape(flat[1:])
    channels = features[0] if features else 1
    run = _lif_cpu if backend_for(current, backend) == "cpu" else lif_reference
    result = run(current.reshape(flat), beta_f, threshold_f, v0, trace0, reset, gradient, channels, affine)
    per_sample = (batch, *features)
    trace = None if result.trace is None else result.trace.reshape(per_sample)
    return LifOutput(result.out.reshape(current.shape), LifState(result.v.reshape(per_sample), trace), result.moments)


def check_trace(beta: Tensor, threshold: Tensor, reset: str) -> None:
    """Raise ``ValueError`` unless the trace target holds: v = L − θ·Q and a rate (1 − β)·L/θ."""
    if reset != "subtract":
        raise ValueError(f"target='trace' holds for reset 'subtract' only (v = L − θ·Q needs it), got {reset!r}")
    if bool((beta >= 1).any()):
        raise ValueError(
            f"target='trace' needs beta < 1 (its rate is (1 − beta)·L/θ), got {float(beta.detach().max()):g}"
        )
    if bool((threshold <= 0).any()):
        raise ValueError(f"target='trace' needs threshold > 0, got {float(threshold.detach().min()):g}")


def check_current(current: Tensor) -> None:
    """Raise ``ValueError`` unless ``current`` is a floating point (T, B, features...) with no empty axis."""
    if current.ndim < 3 or current.numel() == 0 or not current.is_floating_point():
        raise ValueError(
            f"expected floating point (T, B, features...), no axis empty, got {current.dtype} {tuple(current.shape)}"
        )


def check_state(state: LifState | None, current: Tensor, with_trace: bool) -> LifState:
    """The state to start from: zeros, or the given one after a check against ``current`` (T, B, features...)."""
    shape = current.shape[1:]
    if state is None:
        rest = current.new_zeros(shape)
        return LifState(rest, rest.clone() if with_trace else None)
    v, trace = state
    if with_trace and trace is None:
        raise ValueError("state: target='trace' carries a trace, got a state without one")
    for name, value in (("v", v), ("trace", trace if with_trace else None)):
        if value is not None and (
            value.shape != shape or value.device != current.device or value.dtype != current.dtype
        ):
            raise ValueError(
                f"state.{name}: expected {tuple(shape)} {current.dtype} on {current.device}, "
                f"got {tuple(value.shape)} {value.dtype} on {value.device}"
            )
    return LifState(v, trace if with_trace else None)


def _per_feature(name: str, value: Tensor | float, current: Tensor) -> Tensor:
    """A parameter spread over the flattened features, (F,)."""
    features = current.shape[2:]
    tensor = torch.as_tensor(value, dtype=current.dtype, device=current.device)
    try:
        return tensor.expand(features).reshape(-1)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {tuple(features)}, got {tuple(tensor.shape)}"
        ) from None


class _Settings(NamedTuple):
    """The arguments of the autograd function that are not tensors."""

    reset: str
    gradient: SpikeGradient
    channels: int
    affine: tuple[Tensor, Tensor] | None


def _lif_cpu(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    v0: Tensor,
    trace0: Tensor | None,
    reset: str,
    gradient: SpikeGradient,
    channels: int,
    affine: tuple[Tensor, Tensor] | None,
) -> LifResult:
    """:func:`lif_reference` by the fused kernels."""
    settings = _Settings(reset, gradient, channels, affine)
    out, v, trace, moments = _Lif.apply(current, beta, threshold, v0, trace0, settings)
    return LifResult(out, v, trace, moments)


class _Lif(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        beta: Tensor,
        threshold: Tensor,
        v0: Tensor,
        trace0: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        gradient = settings.gradient
        current, beta, threshold, v0 = (t.contiguous() for t in (current, beta, threshold, v0))
        trace0 = v0 if trace0 is None else trace0.contiguous()
        v, spikes = fresh(current.shape, current.dtype), fresh(current.shape, current.dtype)
        trace = fresh(current.shape if gradient.uses_trace else (0, *v0.shape), current.dtype)
        arrays = (as_numpy(t) for t in (current, beta, threshold, v0, trace0))
        cpu.scan(
            *arrays,
            cpu.RESETS[settings.reset],
            cpu.rows_per_task(*v0.shape),
            *map(as_numpy, (v, trace, spikes)),
            work=current.numel(),
        )
        moments = None
        if gradient.emit == "denoised":
            moments = _emit_denoised(spikes, v, trace, beta, threshold, settings)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v, trace, beta, threshold, v0, trace0)
        ctx.mark_non_differentiable(*(t for t in (moments,) if t is not None))
        if gradient.uses_trace:
            ctx.mark_non_differentiable(v_last := v[-1].clone())
            return spikes, v_last, trace[-1].clone(), moments
        return spikes, v[-1].clone(), None, moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v, trace, beta, threshold, v0, trace0 = ctx.saved_tensors
        settings: _Settings = ctx.settings
        gradient = settings.gradient
        dout = v.new_zeros((1, 1, v.shape[2])) if grads[0] is None else unexpanded(grads[0])
        kind, shape = _kind(gradient), _shape(gradient)
        factors = _factors(dout, v, trace, beta, threshold, settings)
        dstate = grads[2] if gradient.uses_trace else grads[1]
        carry = torch.zeros_like(v0) if dstate is None else dstate.clone(memory_format=torch.contiguous_format)
        learn = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        dbeta, dthreshold = torch.zeros_like(v0), torch.zeros_like(v0)
        dcurrent = fresh(v.shape, v.dtype)
        inputs = (as_numpy(t) for t in (dout, v, trace, v0, trace0, beta, threshold))
        outputs = (as_numpy(t) for t in (carry, dbeta, dthreshold, dcurrent))
        cpu.scan_backward(
            kind,
            *inputs,
            cpu.RESETS[settings.reset],
            *shape,
            factors,
            learn,
            cpu.rows_per_task(*v0.shape),
            *outputs,
            work=v.numel(),
        )
        dv0, dtrace0 = (None, carry) if gradient.uses_trace else (carry, None)
        return dcurrent, dbeta.sum(0), dthreshold.sum(0), dv0, dtrace0, None


def _kind(gradient: SpikeGradient) -> int:
    if gradient.gradient == "surrogate":
        return cpu.SURROGATE
    return cpu.TRACE if gradient.uses_trace else cpu.SOFT


def _shape(gradient: SpikeGradient) -> tuple[int, float, float, float]:
    surrogate = gradient.surrogate
    return surrogate.code, surrogate.parameter, surrogate.area, gradient.floor


def _target_sums(
    dout: Tensor | None, v: Tensor, trace: Tensor, beta: Tensor, threshold: Tensor, settings: _Settings
) -> np.ndarray[Any, Any]:
    """Σx, Σq, Σq², Σxq, n and, given dout, ΣG, ΣGq of every block: (5 or 7, 1 or T, blocks across features)."""
    gradient = settings.gradient
    steps, _, features = v.shape
    by_step = gradient.stats == "step"
    grad = v.new_empty((0, *v.shape[1:])) if dout is None else dout
    out = np.empty((5 if dout is None else 7, steps if by_step else 1, features))
    arrays = (as_numpy(t) for t in (v, trace, grad, beta, threshold))
    cpu.target_sums(_kind(gradient), *arrays, *_shape(gradient), by_step, out, work=v.numel())
    blocks = settings.channels if gradient.per_channel and not by_step else 1
    return out.reshape(*out.shape[:2], blocks, -1).sum(-1)


def _spread(per_block: np.ndarray[Any, Any], like: Tensor) -> np.ndarray[Any, Any]:
    """(..., blocks across features) -> (..., F), in the dtype of ``like`` (T, B, F)."""
    spread = np.repeat(per_block, like.shape[-1] // per_block.shape[-1], axis=-1)
    return np.ascontiguousarray(spread, dtype=as_numpy(like).dtype)


def _factors(
    dout: Tensor, v: Tensor, trace: Tensor, beta: Tensor, threshold: Tensor, settings: _Settings
) -> np.ndarray[Any, Any]:
    """k0, kG, kx, kq of every neuron (and step): (4, 1 or T, F)."""
    gradient = settings.gradient
    if gradient.gradient == "surrogate" or settings.affine is not None:
        slope = (
            np.full((1, 1), gradient.scale) if settings.affine is None else as_numpy(settings.affine[0]).reshape(1, -1)
        )
        factors = np.zeros((4, *slope.shape))
        factors[1] = slope
        return _spread(factors, v)
    x, q, qq, xq, n, g, gq = _target_sums(dout, v, trace, beta, threshold, settings)
    back = closed_form.gradient(Sums(n, x, q, qq, xq), g, gq, gradient.lam, "affine", gradient.differentiate_stats)
    factors = np.stack([back.x_const + back.q_const, back.s, back.r, back.r - 2 * back.s * back.r])
    return _spread(gradient.scale * factors, v)


def _emit_denoised(
    spikes: Tensor, v: Tensor, trace: Tensor, beta: Tensor, threshold: Tensor, settings: _Settings
) -> Tensor | None:
    """Replace the spikes by a·q + b; the block moments, unless a and b were given."""
    if settings.affine is not None:
        a, b = (as_numpy(t).reshape(1, -1) for t in settings.affine)
        cpu.emit_affine(as_numpy(spikes), _spread(a, v), _spread(b, v), work=v.numel())
        return None
    x, q, qq, xq, n = _target_sums(None, v, trace, beta, threshold, settings)
    ridge = closed_form.solve(Sums(n, x, q, qq, xq), settings.gradient.lam, "affine")
    cpu.emit_affine(as_numpy(spikes), _spread(ridge.s, v), _spread(ridge.offset, v), work=v.numel())
    return torch.from_numpy(np.stack([x / n, q / n, xq / n]).reshape(3, -1)).to(v.dtype)
