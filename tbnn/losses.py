"""From a readout over time to one score a class, and to a loss."""

import torch
from torch import Tensor

READOUTS = ("mean", "max", "last")


def logits(readout: Tensor, how: str = "mean") -> Tensor:
    """Scores over classes from a readout over time: (T, B, C) -> (B, C), by its mean, maximum or last value over time.

    Raises ``ValueError`` for an unknown ``how`` or a readout that is not (T, B, C).
    """
    if readout.ndim != 3:
        raise ValueError(f"logits: expected a readout (T, B, C), got shape {tuple(readout.shape)}")
    if how == "mean":
        return readout.mean(0)
    if how == "max":
        return readout.amax(0)
    if how == "last":
        return readout[-1]
    raise ValueError(f"readout: expected one of {', '.join(map(repr, READOUTS))}, got {how!r}")


def cross_entropy(readout: Tensor, labels: Tensor, how: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of :func:`logits` against labels (B,), averaged over the batch."""
    return torch.nn.functional.cross_entropy(logits(readout, how), labels, label_smoothing=label_smoothing)
