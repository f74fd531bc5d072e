"""A layer of weights and its neurons by definition: the current of the whole sequence, then the neurons."""

from torch import Tensor

from tbnn.ops.layer_lif.weighted import WeightedSpikes
from tbnn.ops.lif import LifOutput, LifState, Second, SpikeGradient, lif


def layer_lif_reference(
    weighted: WeightedSpikes,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    state: LifState | None = None,
    *,
    second: Second | None = None,
    reset: str = "subtract",
    refractory: int = 0,
    winners: int | None = None,
    gradient: SpikeGradient | None = None,
    lengths: Tensor | None = None,
    joined: bool = False,
) -> LifOutput:
    """:func:`tbnn.ops.lif.lif` of the current that the layer of weights works out."""
    return lif(
        weighted.compose(), beta, threshold, state, second=second, reset=reset, refractory=refractory, winners=winners,
        gradient=gradient, lengths=lengths, joined=joined,
    )  # fmt: skip
