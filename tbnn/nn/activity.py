"""Sparse activity: how a layer of neurons is held to few spikes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LOWEST_THRESHOLD = 0.05  # of the neuron's own threshold: how far homeostasis may lower it


@dataclass(frozen=True)
class Winners:
    """At most ``count`` neurons of a layer spike in each step of a sample: those furthest above their threshold.

    ``count`` is a number of neurons, or a share of them in (0, 1). The losers keep their membranes and try again. In the
    ridge regression of the gradient the lost spikes are noise like any other: sparsification, then quantisation.

    Raises ``ValueError`` for a count below 1 that is no share, or a share outside (0, 1).
    """

    count: int | float

    def __post_init__(self) -> None:
        whole = isinstance(self.count, int) and not isinstance(self.count, bool) and self.count >= 1
        share = isinstance(self.count, float) and 0 < self.count < 1
        if not (whole or share):
            raise ValueError(f"Winners: expected a number of neurons >= 1 or a share in (0, 1), got {self.count!r}")

    def of(self, neurons: int) -> int:
        """How many of ``neurons`` may spike in a step."""
        if isinstance(self.count, int):
            return self.count
        return max(1, round(self.count * neurons))


@dataclass(frozen=True)
class TargetRate:
    """A homeostatic threshold that holds a firing rate: θ + offset, the offset one value a channel or one for the layer.

    Where a layer fires at r and should at r*, the log-ratio e = log((r + r*/10)/(r* + r*/10)), clipped to ±1, says how far
    off it is. With ``how="running"`` each training sequence moves the offset by ``speed``·θ·e. With ``how="learnt"`` the
    offset is a parameter whose gradient, besides the task's, is −``speed``·e, so that the optimizer weighs both. The
    threshold never falls below 0.05·θ. In evaluation it stands still.

    Attributes:
        rate: spikes per neuron and step, in (0, 0.5].
        channels: length of the first feature axis, for one offset a channel; None: one for the layer.
        how: "running" or "learnt".
        speed: see above.

    Raises ``ValueError`` for values outside these ranges.
    """

    rate: float
    channels: int | None = None
    how: str = "running"
    speed: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 0.5:
            raise ValueError(f"TargetRate: rate: expected a number in (0, 0.5], got {self.rate}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"TargetRate: channels: expected None or a number >= 1, got {self.channels}")
        if self.how not in ("running", "learnt"):
            raise ValueError(f"TargetRate: how: expected 'running' or 'learnt', got {self.how!r}")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"TargetRate: speed: expected a finite number > 0, got {self.speed}")


class Homeostasis(nn.Module):
    """The threshold offset of :class:`TargetRate`, and how it follows the rates it sees."""

    offset: Tensor

    def __init__(self, target: TargetRate) -> None:
        super().__init__()
        self.target = target
        start = torch.zeros(target.channels or 1)
        if target.how == "learnt":
            self.offset = nn.Parameter(start)
        else:
            self.register_buffer("offset", start)
        self._seen: list[Tensor] = []  # the error of the latest sequence, for its backward pass

    def threshold(self, threshold: Tensor, features: torch.Size) -> Tensor:
        """θ + offset over the features, at least 0.05·θ."""
        offset = self.offset
        if self.training and torch.is_grad_enabled() and offset.requires_grad:
            self._seen = []
            offset = _Pulled.apply(offset, self._seen, self.target.speed)
        if offset.numel() > 1:
            if not features or features[0] != offset.numel():
                raise ValueError(
                    f"TargetRate: expected {offset.numel()} channels in the first feature axis, got features {tuple(features)}"
                )
            offset = offset.reshape(-1, *[1] * (len(features) - 1))
        return torch.maximum(threshold + offset, LOWEST_THRESHOLD * threshold.detach())

    @torch.no_grad()
    def observe(self, spikes: Tensor, count: Tensor | float, threshold: Tensor, joined: bool) -> None:
        """Follow one training sequence: spikes summed over time and batch, (features...), of ``count`` steps in all.

        With ``joined``, the processes of a distributed run add theirs up.
        """
        per_channel = spikes.reshape(self.offset.numel(), -1)
        total = torch.cat([per_channel.sum(1), torch.as_tensor([float(count)]).to(spikes)])
        if joined:
            torch.distributed.all_reduce(total)
        rate = total[:-1] / (total[-1].clamp(min=1) * per_channel.shape[1])
        error = torch.log((rate + self.target.rate / 10) / (1.1 * self.target.rate)).clamp(-1, 1)
        if self.target.how == "running":
            self.offset += self.target.speed * threshold.mean() * error.to(self.offset)
            self.offset.clamp_(min=-(1 - LOWEST_THRESHOLD) * float(threshold.mean()))
        else:
            self._seen.append(error.to(self.offset))

    def extra_repr(self) -> str:
        return f"rate={self.target.rate:g}, how={self.target.how}"


class _Pulled(torch.autograd.Function):
    """The identity on the learnt offset; its gradient is joined by the pull of the rate seen after this call."""

    @staticmethod
    def forward(ctx: Any, offset: Tensor, seen: list[Tensor], speed: float) -> Tensor:
        ctx.seen, ctx.speed = seen, speed
        return offset.view_as(offset)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (grads[0] - ctx.speed * sum(ctx.seen) if ctx.seen else grads[0]), None, None


def distributed() -> bool:
    """Whether several processes train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ready and torch.distributed.get_world_size() > 1
