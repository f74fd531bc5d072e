"""What learning needs to remember of every synapse."""

from typing import cast

from torch.optim import SGD, Adam, AdamW, Optimizer

from tbnn.learning.binary.facade import BinaryOptimizer
from tbnn.learning.binary.signs import SignOptimizer, float_bits


def bits_per_synapse(optimizer: Optimizer) -> float:
    """Bits kept of a binary weight between two steps of learning; gradients, scales and shared counters not counted.

    A weight that is the sign of something kept costs nothing beside it. With float32:

    ==========================================  ===========================
    AdamW, Adam on latent weights               96 (128 with amsgrad)
    SGD on latent weights, with momentum        32, 64
    :class:`Metaplastic`, Adam, SGD, momentum   96, 32, 64
    :class:`Bop`, :class:`Bop2ndOrder`          33, 65
    :class:`DiscreteStates`                     log2(2·depth + 2)
    ==========================================  ===========================

    Raises:
        ValueError: an optimizer it does not know.
    """
    if isinstance(optimizer, BinaryOptimizer):
        return optimizer.flips.bits
    if isinstance(optimizer, SignOptimizer):
        return optimizer.bits
    group = optimizer.param_groups[0]
    if isinstance(optimizer, (Adam, AdamW)):
        kept = 3 + bool(group["amsgrad"])
    elif isinstance(optimizer, SGD):
        kept = 1 + bool(group["momentum"])
    else:
        raise ValueError(
            "bits_per_synapse: expected an optimizer of tbnn.learning.binary, AdamW, Adam or SGD, "
            f"got {type(optimizer).__name__}"
        )
    return cast("int", kept) * float_bits(group["params"][0])
