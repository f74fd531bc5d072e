"""A batch norm between weights and neurons: its factors forward, and its gradients from two sums a channel."""

from typing import Any, NamedTuple

import numpy as np
import torch

from tbnn.ops.kernels import as_numpy
from tbnn.ops.layer_lif.counts import Moments
from tbnn.ops.layer_lif.weighted import Norm

Array = np.ndarray[Any, Any]


class Factors(NamedTuple):
    """``factor·current + shift``, (C,) float64 each."""

    factor: Array
    shift: Array


class Normed:
    """A call's norm, in float64: ``normal``, the current ĉ less its mean over its deviation, and ``whole``, γ·ĉ + β.

    Raises ``ValueError`` for a batch of fewer than two values a channel.
    """

    def __init__(self, norm: Norm, moments: Moments | None) -> None:
        gamma, beta = (as_numpy(t).astype(np.float64) for t in (norm.weight, norm.bias))
        self.gamma, self.beta = gamma, beta
        if norm.mean is not None and norm.var is not None:
            self.count = 0
            mean, var = (as_numpy(t).astype(np.float64) for t in (norm.mean, norm.var))
        elif moments is None or moments.values < 2:
            raise ValueError(
                "layer_lif: expected more than one value a channel to normalise in training, got "
                f"{0 if moments is None else moments.values}"
            )
        else:
            mean, var, self.count = moments
            if norm.observe is not None:
                seen_mean, seen_var = (torch.from_numpy(t).to(norm.weight.dtype) for t in (mean, var))
                norm.observe(seen_mean, seen_var, self.count)
        inverse = 1 / np.sqrt(var + norm.eps)
        self.normal = Factors(inverse, -mean * inverse)
        self.gain = gamma * inverse
        self.whole = Factors(self.gain, beta - mean * self.gain)

    @property
    def training(self) -> bool:
        """Whether mean and variance are the batch's."""
        return self.count > 0

    def back(self, sums: Array) -> Factors:
        """From Σdy and Σdy·ĉ, (2, C): with d the gradient of the output, the current's is gain·d + factor·current + shift."""
        if not self.training:
            return Factors(np.zeros_like(self.gain), np.zeros_like(self.gain))
        first, second = sums / self.count
        factor, shift = self.normal
        return Factors(-self.gain * second * factor, -self.gain * (first + second * shift))
