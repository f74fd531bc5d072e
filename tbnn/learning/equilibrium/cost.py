"""What the output of a relaxing network is nudged to lower, of each sample."""

import torch
from torch import Tensor
from torch.nn import functional

COSTS = ("mse", "cross_entropy")


class Cost:
    """``C = ½·Σ_c (y_c − p_c)²`` or ``−Σ_c p_c·log softmax(y)_c`` of a sample, p the shares of classes asked for.

    Args:
        kind: "mse" or "cross_entropy".
        target: classes (B,) int64, or shares (B, C).
        readout: y (B, C) of the free phase, for sizes and dtype.

    Raises:
        ValueError: a target that is neither; a class outside [0, C).
    """

    def __init__(self, kind: str, target: Tensor, readout: Tensor) -> None:
        batch, classes = readout.shape
        whole = not target.is_floating_point() and target.dtype != torch.bool
        if target.shape == (batch,) and whole:
            if batch and not 0 <= int(target.min()) <= int(target.max()) < classes:
                raise ValueError(
                    f"target: expected classes in [0, {classes}), got {int(target.min())} to {int(target.max())}"
                )
            self.shares = functional.one_hot(target.long(), classes).to(readout.dtype)
        elif target.shape == readout.shape:
            self.shares = target.to(readout.dtype)
        else:
            raise ValueError(
                f"target: expected classes ({batch},) or shares ({batch}, {classes}), "
                f"got {target.dtype} {tuple(target.shape)}"
            )
        self.entropy = kind == "cross_entropy"

    def value(self, readout: Tensor) -> Tensor:
        """C of each sample, (B,)."""
        if self.entropy:
            return -(self.shares * readout.log_softmax(1)).sum(1)
        return 0.5 * (readout - self.shares).square().sum(1)

    def gradient(self, readout: Tensor) -> Tensor:
        """∂C/∂y, (B, C)."""
        if self.entropy:
            return readout.softmax(1) * self.shares.sum(1, keepdim=True) - self.shares
        return readout - self.shares
