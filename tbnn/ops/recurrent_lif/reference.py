"""A recurrent layer of neurons by definition: a loop over time, differentiated by autograd."""

from typing import NamedTuple

import torch
from torch import Tensor

from tbnn.ops.lif.cell import Cell, Rule
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.reference import Statistics, lif_reference
from tbnn.ops.lif.state import LifState


class Feedback(NamedTuple):
    """The weights through which spikes return: ``Ŵ = scale·values + offset``, a row an output."""

    weight: Tensor
    """Ŵ (N, N), which the gradient sees."""
    values: Tensor
    """(N, N) whole numbers in [−255, 255]."""
    scale: Tensor
    """(N,)"""
    offset: Tensor | None = None
    """(N,), or None for zeros."""
    bias: Tensor | None = None
    """(N,), or None for zeros."""

    def detach(self) -> "Feedback":
        """The same numbers, as constants."""
        weight, values, scale, offset, bias = self
        offset, bias = (None if c is None else c.detach() for c in (offset, bias))
        return Feedback(weight.detach(), values.detach(), scale.detach(), offset, bias)

    def __call__(self, spikes: Tensor) -> Tensor:
        """spikes (B, N) -> ``scale·(spikes·valuesᵀ) + offset·Σ spikes + bias`` (B, N), rounded after every operation."""
        y = (spikes @ self.values.T) * self.scale
        if self.offset is not None:
            y = y + spikes.sum(1, keepdim=True) * self.offset
        y = y + spikes.detach() @ (self.weight - self.weight.detach()).T  # zeros, with Ŵ's gradient
        return y if self.bias is None else y + self.bias


class RecurrentResult(NamedTuple):
    """What a sequence gives."""

    out: Tensor  # (T, B, N)
    state: LifState  # (B, N) each
    past: Tensor  # (delay, B, N)


def recurrent_lif_reference(
    current: Tensor, feedback: Feedback, cell: Cell, state: LifState, past: Tensor, rule: Rule, gradient: SpikeGradient,
    lengths: Tensor | None = None,
) -> RecurrentResult:  # fmt: skip
    """Run current (T, B, N) through neurons, from a complete state and the spikes on their way, past (delay, B, N).

    Of each sequence ``lengths`` (B,) steps count: past them the state and the spikes on their way stand still.
    """
    waiting, out = past, []
    frozen = feedback.detach()._replace(weight=feedback.weight, bias=feedback.bias)
    for t, current_t in enumerate(current.unbind(0)):
        now = current_t + frozen(waiting[0])
        runs = None if lengths is None else t < lengths
        statistics = Statistics(1, None if runs is None else runs.to(current.dtype).unsqueeze(0))
        step = lif_reference(now.unsqueeze(0), cell, state, rule, gradient, statistics, None)
        state = step.state
        out.append(step.out.squeeze(0))
        shifted = torch.cat([waiting[1:], step.out])
        waiting = shifted if runs is None else torch.where(runs.unsqueeze(1), shifted, waiting)
    return RecurrentResult(torch.stack(out), state, waiting)
