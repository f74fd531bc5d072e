"""Dropout of spikes."""

import torch
from torch import Tensor

from tbnn.nn.recorded import Recorded
from tbnn.nn.stateful import Stateful

PER = ("element", "channel", "sequence")


class SpikeDropout(Recorded, Stateful):
    """Silence each place with probability ``p`` in training: bits stay bits, for what remains is not rescaled.

    ``dropout(x, state=None, mask=None) -> (y, state)``, x (T, B, features...); in evaluation y = x.

    Args:
        p: the probability, 0 <= p < 1.
        per: what is silenced: "element" (a neuron at a step), "channel" (a whole channel, the first feature axis, at
            a step) or "sequence" (a neuron for the whole sequence: the state carries who is silent, so steps and
            pieces of a sequence agree).
        rescale: multiply what remains by 1/(1 − p), as ``torch.nn.Dropout`` does, which keeps the mean of the next
            layer's currents in evaluation but sends scaled bits in training.

    Raises:
        ValueError: p outside [0, 1), another ``per``, a state of another shape.

    Source: Srivastava et al., "Dropout", JMLR 2014; one mask over time: Lee et al., "Enabling spike-based
    backpropagation for training deep neural network architectures", 2020.

    >>> y, _ = SpikeDropout(0.5, per="sequence")(torch.ones(3, 2, 8))
    """

    def __init__(self, p: float = 0.5, per: str = "element", rescale: bool = False) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: expected a probability in [0, 1), got {p}")
        if per not in PER:
            raise ValueError(f"per: expected one of {', '.join(map(repr, PER))}, got {per!r}")
        self.p, self.per, self.rescale = p, per, rescale

    def forward(
        self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if not self.training or self.p == 0:
            return x, state
        if self.per == "sequence":
            state = kept = self._draw(x[0]) if state is None else state
            if kept.shape != x.shape[1:]:
                raise ValueError(f"state: expected {tuple(x.shape[1:])}, got {tuple(kept.shape)}")
        elif self.per == "channel":
            kept = self._draw(x[(..., *[slice(0, 1)] * (x.ndim - 3))])
        else:
            kept = self._draw(x)
        return x * kept, state

    def _draw(self, like: Tensor) -> Tensor:
        """Of the shape of ``like``: 0 where silent, elsewhere 1 or the factor that makes up for it."""
        kept = (torch.rand(like.shape, device=like.device) >= self.p).to(like.dtype)
        return kept / (1 - self.p) if self.rescale else kept

    def extra_repr(self) -> str:
        return f"p={self.p}, per={self.per}, rescale={self.rescale}"
