"""The leaky integrate-and-fire neuron and its gradients by definition: a loop over time, differentiated by autograd."""

from typing import NamedTuple

import torch
from torch import Tensor

from tbnn.ops.ddt.reference import ddt_reference
from tbnn.ops.lif.gradient import SpikeGradient


class LifResult(NamedTuple):
    """What a sequence of steps gives: what leaves, the final state, and the moments of emit='denoised'."""

    out: Tensor  # (T, B, F)
    v: Tensor  # (B, F)
    trace: Tensor | None  # (B, F), with target='trace'
    moments: Tensor | None  # (3, blocks): mean f, q, f·q


def lif_reference(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    v: Tensor,
    trace: Tensor | None,
    reset: str,
    gradient: SpikeGradient,
    channels: int,
    affine: tuple[Tensor, Tensor] | None,
) -> LifResult:
    """Run current (T, B, F) through neurons with beta and threshold (F,) from the state v, trace (B, F)."""
    drives, beta_v, threshold_v = current, beta, threshold
    if gradient.uses_trace:  # the gradient runs through the trace alone
        drives, beta_v, threshold_v, v = current.detach(), beta.detach(), threshold.detach(), v.detach()
    vs: list[Tensor] = []
    traces: list[Tensor] = []
    spike_trace = None if trace is None else (beta * (trace - v) / threshold + (v > threshold)).detach()
    spike_traces: list[Tensor] = []
    for current_t, drive_t in zip(current.unbind(0), drives.unbind(0), strict=True):
        fired = (v > threshold).to(v.dtype)
        if reset == "subtract":
            v = beta_v * v + drive_t - threshold_v * fired
        elif reset == "zero":
            v = beta_v * ((1 - fired) * v) + drive_t
        else:
            v = beta_v * v + drive_t
        vs.append(v)
        if trace is not None and spike_trace is not None:
            trace = beta * trace + current_t
            spike_trace = (beta * spike_trace + (v > threshold)).detach()
            traces.append(trace)
            spike_traces.append(spike_trace)
    u = torch.stack(vs) - threshold
    bits = (u > 0).to(u.dtype)
    moments = None
    if gradient.gradient == "surrogate":
        f = gradient.surrogate.soft(u) * gradient.surrogate.area
        out = bits + gradient.scale * (f - f.detach())
    else:
        if gradient.uses_trace:
            x = ((1 - beta) * torch.stack(traces) / threshold).clamp(gradient.floor, 1)
            value = (1 - beta) * torch.stack(spike_traces)
        else:
            x, value = gradient.surrogate.soft(u), bits
        q = x + (value - x).detach()
        if gradient.emit == "denoised":
            out, moments = _emit_denoised(x, q, gradient, channels, affine)
        else:
            x_hat = _denoise(x, q, gradient, channels)
            out = bits + gradient.scale * (x_hat - x_hat.detach())
    return LifResult(out, v, trace, moments)


def to_blocks(x: Tensor, gradient: SpikeGradient, channels: int) -> Tensor:
    """Lay (T, B, F) out as (blocks, n)."""
    steps, batch, features = x.shape
    if gradient.stats == "step":
        return x.reshape(steps, batch * features)
    if not gradient.per_channel:
        return x.reshape(1, -1)
    return x.reshape(steps * batch, channels, features // channels).transpose(0, 1).reshape(channels, -1)


def from_blocks(blocks: Tensor, like: Tensor, gradient: SpikeGradient, channels: int) -> Tensor:
    """The inverse of :func:`to_blocks`."""
    steps, batch, features = like.shape
    if gradient.stats == "step" or not gradient.per_channel:
        return blocks.reshape(like.shape)
    return blocks.reshape(channels, steps * batch, features // channels).transpose(0, 1).reshape(like.shape)


def _denoise(x: Tensor, q: Tensor, gradient: SpikeGradient, channels: int) -> Tensor:
    x_blocks, q_blocks = to_blocks(x, gradient, channels), to_blocks(q, gradient, channels)
    if gradient.differentiate_stats:
        x_hat = ddt_reference(x_blocks, q_blocks, gradient.lam, "affine")
    else:
        x_hat = _slope_only(x_blocks, q_blocks, gradient.lam)
    return from_blocks(x_hat, x, gradient, channels)


def _slope_only(x: Tensor, q: Tensor, lam: float) -> Tensor:
    """The affine DDT whose slope and means are constants."""
    xd, qd = x.detach(), q.detach()
    x_mean, q_mean = xd.mean(-1, keepdim=True), qd.mean(-1, keepdim=True)
    covariance = ((xd - x_mean) * (qd - q_mean)).mean(-1, keepdim=True)
    s = covariance / ((qd - q_mean).square().mean(-1, keepdim=True) + lam)
    return s * (q - q_mean) + x_mean


def _emit_denoised(
    x: Tensor, q: Tensor, gradient: SpikeGradient, channels: int, affine: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """What leaves with emit='denoised': a·q + b, from this block's ridge or from the given constants (channels,) or (1,)."""
    if affine is not None:
        a, b = (value.repeat_interleave(q.shape[-1] // value.numel()) for value in affine)
        return a * q + b, None
    x_blocks, q_blocks = to_blocks(x, gradient, channels), to_blocks(q, gradient, channels)
    moments = torch.stack([x_blocks.mean(-1), q_blocks.mean(-1), (x_blocks * q_blocks).mean(-1)]).detach()
    return _denoise(x, q, gradient, channels), moments
