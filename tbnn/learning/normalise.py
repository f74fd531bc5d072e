"""A batch norm as online rules use it: at running statistics, which follow step by step."""

import torch
from torch import Tensor

from tbnn.learning.ridge import followed
from tbnn.nn import TemporalBatchNorm

MOMENTUM = 0.01  # of a step, in place of a batch norm's own of a sequence


@torch.no_grad()
def normalised(norm: TemporalBatchNorm, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Several steps' current (T, B, C, ...) at a norm's running statistics, which in training follow each step first.

    Returns it less its mean over its deviation; that times the norm's weight plus its bias; and the factor on the current.
    """
    per_channel = (len(current), 1, -1, *[1] * (current.ndim - 3))
    means, variances = norm.running_mean.unsqueeze(0), norm.running_var.unsqueeze(0)
    if norm.training:
        axes, shares = [axis for axis in range(1, current.ndim) if axis != 2], (MOMENTUM,) * len(current)
        means = followed(current.mean(axes), norm.running_mean, shares)
        apart = (current - means.reshape(per_channel)).square().mean(axes)
        variances = followed(apart, norm.running_var, shares)
        norm.running_mean.copy_(means[-1])
        norm.running_var.copy_(variances[-1])
    means, variances = means.expand(len(current), -1), variances.expand(len(current), -1)
    deviation = torch.rsqrt(variances + norm.eps)
    hat = (current - means.reshape(per_channel)) * deviation.reshape(per_channel)
    over = (-1, *[1] * (current.ndim - 3))
    weighted = hat * norm.weight.detach().reshape(over) + norm.bias.detach().reshape(over)
    return hat, weighted, (deviation * norm.weight.detach()).reshape(per_channel)
