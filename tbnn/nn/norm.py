"""Batch normalisation over time and batch."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tbnn.nn.recorded import Recorded


class TemporalBatchNorm(Recorded, nn.Module):
    """``y = weight·(x − mean)/√(var + ε) + bias``, per channel, mean and var over time, batch and space.

    ``norm(x, mask=None) -> y`` with x (T, B, C, ...), C = ``features``; steps where the mask (T, B) is False count in no
    statistics. Evaluation uses running statistics, so one sequence or one step gets what a batch gets. In training a
    call's statistics run over what it sees, over all processes where ``torch.distributed`` runs.

    Args:
        features: C.
        eps, momentum: as in ``torch.nn.BatchNorm2d``.
        affine: learn weight and bias, or leave them 1 and 0.
        threshold: of the neuron that follows; the weight then starts at ``alpha``·threshold, so that the current's
            deviation meets it (threshold-dependent batch norm).
        alpha: that factor.
        synchronise: share training's statistics between processes.

    Raises:
        ValueError: sizes, eps or momentum out of range; an input with other channels; one value a channel in training,
            whose variance says nothing.

    Source: Ioffe & Szegedy 2015; Zheng et al., "Going deeper with directly-trained larger spiking neural networks",
    AAAI 2021 (tdBN).

    >>> TemporalBatchNorm(16, threshold=1.0)(torch.randn(10, 4, 16, 8, 8)).shape
    torch.Size([10, 4, 16, 8, 8])
    """

    takes_mask = True

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        threshold: float | None = None,
        alpha: float = 1.0,
        synchronise: bool = True,
    ) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features: expected an integer >= 1, got {features}")
        if not eps > 0:
            raise ValueError(f"eps: expected a number > 0, got {eps}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum: expected a number in (0, 1], got {momentum}")
        self.features, self.eps, self.momentum, self.synchronise = features, eps, momentum, synchronise
        weight, bias = torch.full((features,), 1.0 if threshold is None else alpha * threshold), torch.zeros(features)
        if affine:
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.ndim < 3 or x.shape[2] != self.features:
            raise ValueError(f"TemporalBatchNorm: expected (T, B, {self.features}, ...), got {tuple(x.shape)}")
        if self.training and mask is None and not self.shared:
            return self._plain(x)
        scale, shift = self._batch(x, mask) if self.training else self.folded()
        per_channel = (-1, *[1] * (x.ndim - 3))
        return x * scale.reshape(per_channel) + shift.reshape(per_channel)

    def folded(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,): in evaluation, y = scale·x + shift."""
        return self._affine(self.running_mean, self.running_var)

    def _affine(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.weight * torch.rsqrt(var + self.eps)
        return scale, self.bias - mean * scale

    @property
    def shared(self) -> bool:
        """Whether statistics are those of several processes."""
        return self.synchronise and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def _plain(self, x: Tensor) -> Tensor:
        """Training on whole sequences in one process: torch's fused batch norm, time and batch as one axis."""
        if x.numel() // self.features < 2:
            raise ValueError(
                f"TemporalBatchNorm: expected more than one value a channel in training, got 1 from {tuple(x.shape)}"
            )
        flat, running = x.flatten(0, 1), (self.running_mean, self.running_var)
        return F.batch_norm(flat, *running, self.weight, self.bias, True, self.momentum, self.eps).view_as(x)

    def _batch(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and shift from the batch's statistics, which the running ones follow."""
        shared = self.shared
        space = x[0, 0, 0].numel()
        count = x.new_full((1,), x.shape[0] * x.shape[1] * space) if mask is None else (space * mask.sum()).to(x)[None]
        if not shared and count.item() < 2:
            raise ValueError(
                f"TemporalBatchNorm: expected more than one value a channel in training, got {int(count.item())} "
                f"from {tuple(x.shape)}"
            )
        counted = None if mask is None else mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
        axes = [axis for axis in range(x.ndim) if axis != 2]
        total = torch.cat([_sum(x, counted, axes), count])
        total = _AllReduce.apply(total) if shared else total  # (C + 1,)
        count = total[-1].detach().clamp(min=1)
        mean = total[:-1] / count
        # From the mean, not Σx² − (Σx)²/n: that difference cancels in float32 where the mean is large.
        squares = _sum((x - mean.reshape(-1, *[1] * (x.ndim - 3))).square(), counted, axes)
        var = (_AllReduce.apply(squares) if shared else squares) / count
        self.observe(mean.detach(), var.detach(), count)
        return self._affine(mean, var)

    @torch.no_grad()
    def observe(self, mean: Tensor, var: Tensor, count: Tensor | int) -> None:
        """Let the running statistics follow a batch's mean and variance (C,) over ``count`` values a channel."""
        fewer = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
        var = var * (count / fewer)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(var.to(self.running_var), self.momentum)

    def extra_repr(self) -> str:
        affine = isinstance(self.weight, nn.Parameter)
        return f"{self.features}, eps={self.eps}, momentum={self.momentum}, affine={affine}"


def _sum(x: Tensor, counted: Tensor | None, axes: list[int]) -> Tensor:
    return (x if counted is None else x * counted).sum(axes)


class _AllReduce(torch.autograd.Function):
    """The sum over processes; backward too, as every process's loss depends on every process's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total
