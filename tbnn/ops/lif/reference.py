"""Spiking neurons and their gradients by definition: a loop over time, differentiated by autograd."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tbnn.ops.lif.cell import Cell, Rule, advance, effective, spikes_of, trace_gain
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.state import LifState
from tbnn.surrogate import Bare


class LifResult(NamedTuple):
    """What a sequence of steps gives: what leaves, the final state, and the moments of emit='denoised'."""

    out: Tensor  # (T, B, F)
    state: LifState  # (B, F) each
    moments: Tensor | None  # (3, blocks): mean f, q, f·q


class Statistics(NamedTuple):
    """Over what the ridge regression of a call runs."""

    channels: int
    alive: Tensor | None = None
    """(T, B), 1 where a sequence still runs; None: everywhere."""
    joined: bool = False
    """Whether the processes of a distributed run add up their sums."""


def lif_reference(
    current: Tensor,
    cell: Cell,
    state: LifState,
    rule: Rule,
    gradient: SpikeGradient,
    statistics: Statistics,
    affine: tuple[Tensor, Tensor] | None,
) -> LifResult:
    """Run current (T, B, F) through neurons from a complete state."""
    by_trace = gradient.uses_trace
    if statistics.alive is not None:  # whatever stands in the padding
        current = torch.where(statistics.alive.unsqueeze(2) > 0, current, 0.0)
    # With the trace target the gradient runs through the trace alone: all else is a constant.
    real = cell.detach() if by_trace else cell
    v, trace, w, w_trace, fired, waiting = state.detach() if by_trace else state
    if by_trace:
        trace, w_trace = state.trace, state.w_trace
    if fired is None:
        fired = spikes_of(effective(v, w, real), real.threshold, None, None).detach()
    silent = torch.zeros_like(fired)
    levels, bits, traced, spike_traced = [], [], [], []
    for t, current_t in enumerate(current.unbind(0)):
        before, last = LifState(v, trace, w, w_trace, None, waiting), fired
        v, w = advance(v, w, fired, current_t.detach() if by_trace else current_t, real, rule.reset)
        levels.append(effective(v, w, real))
        fired = spikes_of(levels[-1].detach(), real.threshold, waiting, rule.winners)
        if waiting is not None:
            waiting = torch.where(fired > 0, float(rule.refractory), (waiting - 1).clamp(min=0))
        if trace is not None:
            trace, w_trace = advance(trace, w_trace, silent, current_t, cell, "none")
            traced.append(effective(trace, w_trace, cell))
            spike_traced.append(_spike_trace(v, w, trace, w_trace, fired, real))
        if statistics.alive is not None:
            alive = statistics.alive[t].unsqueeze(1) > 0
            after = LifState(v, trace, w, w_trace, None, waiting)
            stays = LifState._make(_where(alive, *pair) for pair in zip(after, before, strict=True))
            v, trace, w, w_trace, _, waiting = stays
            bits.append(fired * alive)
            fired = torch.where(alive, fired, last)
        else:
            bits.append(fired)
    pair = None
    if by_trace:
        gain, highest = trace_gain(cell), 1 / (1 + rule.refractory)
        x = (gain * torch.stack(traced)).clamp(gradient.floor, highest)
        pair = x, (gain * torch.stack(spike_traced)).detach()
    level = torch.stack(levels) - cell.threshold if not by_trace else torch.stack(levels)
    out, moments = emit(level, torch.stack(bits), pair, gradient, statistics, affine)
    return LifResult(out, LifState(v, trace, w, w_trace, fired if rule.gated else None, waiting), moments)


def _where(alive: Tensor, after: Tensor | None, before: Tensor | None) -> Tensor | None:
    return None if after is None or before is None else torch.where(alive, after, before)


def _spike_trace(
    v: Tensor, w: Tensor | None, trace: Tensor, w_trace: Tensor | None, fired: Tensor, cell: Cell
) -> Tensor:
    """How far this step's and all earlier spikes hold the level down: the response of the linear states to them."""
    down_w = None if w is None or w_trace is None else w_trace - w
    # `advance` lets a spike lower v by θ and raise w: here the states are counted downwards, so both signs turn.
    turned = cell._replace(threshold=-cell.threshold)
    if cell.second is not None:
        turned = turned._replace(second=cell.second._replace(from_spike=-cell.second.from_spike))
    down_v, down_w = advance(trace - v, down_w, fired, torch.zeros_like(v), turned, "subtract")
    return effective(down_v, down_w, cell).detach()


def emit(
    u: Tensor,
    bits: Tensor,
    pair: tuple[Tensor, Tensor] | None,
    gradient: SpikeGradient,
    statistics: Statistics,
    affine: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """What leaves, (T, B, F), with its gradient, and the moments of emit='denoised'.

    u is the distance from threshold, bits the spikes, ``pair`` the trace target's (x, spike trace) where it is used.
    """
    alive = None if statistics.alive is None else statistics.alive.to(bits.dtype).unsqueeze(2)
    moments = None
    if gradient.gradient == "surrogate":
        shape = gradient.surrogate
        f = shape(u) if isinstance(shape, Bare) else shape.soft(u) * shape.area
        out = bits + gradient.scale * (f - f.detach())
    else:
        x, value = (gradient.surrogate.soft(u), bits) if pair is None else pair
        q = x + (value - x).detach()
        if gradient.emit == "denoised":
            out, moments = _emit_denoised(x, q, gradient, statistics, affine)
        else:
            x_hat = _denoise(x, q, gradient, statistics)
            out = bits + gradient.scale * (x_hat - x_hat.detach())
    return (out if alive is None else out * alive), moments


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


def _mean(gradient: SpikeGradient, statistics: Statistics, like: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean over a block, (blocks, n) -> (blocks, 1): of what is alive, in all processes together."""
    if statistics.alive is None and not statistics.joined:
        return lambda a: a.mean(-1, keepdim=True)
    alive = torch.ones_like(like) if statistics.alive is None else statistics.alive.unsqueeze(2).expand_as(like)
    weight = to_blocks(alive.to(like.dtype), gradient, statistics.channels)

    def total(a: Tensor) -> Tensor:
        a = (weight * a).sum(-1, keepdim=True)
        return _sum_of_processes(a) if statistics.joined else a

    count = total(torch.ones_like(weight)).detach().clamp(min=1)
    return lambda a: total(a) / count


def _sum_of_processes(a: Tensor) -> Tensor:
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(a.contiguous())


def _denoise(x: Tensor, q: Tensor, gradient: SpikeGradient, statistics: Statistics) -> Tensor:
    """The affine DDT of x from q over each block; without ``differentiate_stats`` its slope and means are constants."""
    mean = _mean(gradient, statistics, x)
    xb, qb = to_blocks(x, gradient, statistics.channels), to_blocks(q, gradient, statistics.channels)
    xs, qs = (xb, qb) if gradient.differentiate_stats else (xb.detach(), qb.detach())
    x_mean, q_mean = mean(xs), mean(qs)
    s = mean((xs - x_mean) * (qs - q_mean)) / (mean((qs - q_mean).square()) + gradient.lam)
    return from_blocks(s * (qb - q_mean) + x_mean, x, gradient, statistics.channels)


def _emit_denoised(
    x: Tensor, q: Tensor, gradient: SpikeGradient, statistics: Statistics, affine: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """What leaves with emit='denoised': a·q + b, from this block's ridge or from the given constants (channels,) or (1,)."""
    if affine is not None:
        a, b = (value.repeat_interleave(q.shape[-1] // value.numel()) for value in affine)
        return a * q + b, None
    mean = _mean(gradient, statistics, x)
    xb, qb = to_blocks(x, gradient, statistics.channels), to_blocks(q, gradient, statistics.channels)
    moments = torch.cat([mean(xb), mean(qb), mean(xb * qb)], 1).T.detach()
    return _denoise(x, q, gradient, statistics), moments
