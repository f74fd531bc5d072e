"""Norms folded into the weights before them."""

import copy

import torch
from torch import Tensor, nn

from tbnn.nn.network import Network
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.weights import BinaryWeight

NORMS = (TemporalBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def fold_batch_norms(network: Network) -> Network:
    """A copy, in evaluation, whose binary layers have taken in the norm that follows each.

    ``scale_n·(x·Ŵᵀ + bias) + shift_n`` is a product with scales and offsets times scale_n, and another bias: the layer's
    ``gain`` and ``bias`` hold them, and :meth:`codes` includes the gain. Where the norm was stands an ``nn.Identity``, so
    that layers and states keep their places. Networks inside layers (residual blocks) are folded as well.

    Raises:
        ValueError: a norm that no binary layer precedes directly: it cannot be folded.

    >>> folded = fold_batch_norms(Network([BinaryLinear(8, 16), TemporalBatchNorm(16), Leaky(0.9)]))
    """
    folded = copy.deepcopy(network).eval()
    for name, inner in [(name, m) for name, m in folded.named_modules() if isinstance(m, Network)]:
        _fold_inside(name, inner)
    for name, module in folded.named_modules():
        if isinstance(module, NORMS):
            raise ValueError(f"{name}: expected a binary layer right before a norm that is to be folded, got {module}")
    return folded


def _fold_inside(name: str, network: Network) -> None:
    for index in range(1, len(network.layers)):
        before, norm = network.layers[index - 1], network.layers[index]
        if isinstance(norm, NORMS) and isinstance(before, BinaryWeight):
            scale, shift = norm_affine(norm)
            if scale.numel() != before.weight.shape[0]:
                raise ValueError(
                    f"{name + '.' if name else ''}layers.{index}: expected a norm of {before.weight.shape[0]} features, "
                    f"got {scale.numel()}"
                )
            before.fold(scale, shift)
            network.layers[index] = nn.Identity()


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a norm does in evaluation, (scale, shift) a channel: tbnn's, or torch's ``BatchNorm1d`` and ``BatchNorm2d``.

    Raises ``ValueError`` for torch's without running statistics, and for other modules.
    """
    if isinstance(norm, TemporalBatchNorm):
        return norm.folded()
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"expected a batch norm with running statistics, got {norm}")
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
