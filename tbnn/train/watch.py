"""What changes in a network from epoch to epoch, for the log: signs that turned, and how a rule's updates agree with the gradient."""

import math

import torch
from torch import nn

from tbnn.data import PackedFrames
from tbnn.learning import Rule
from tbnn.learning.alignment import ALL, alignment
from tbnn.learning.retention import flips, signs
from tbnn.nn.weights import BinaryWeight

LOOKED_AT = 64  # validation recordings on which alignment is measured
FLIPS, COSINE, RATIO = "flips/", "cosine/", "norm_ratio/"


class Watch:
    """Follows one network over its training.

    Args:
        network: as it is before the first epoch.
        aligned: a rule over it whose updates are to be held against back-propagation's, and the recordings for that; None: no.
    """

    def __init__(self, network: nn.Module, aligned: tuple[Rule, PackedFrames] | None = None) -> None:
        self.network, self._aligned = network, aligned
        self._quantised = any(isinstance(module, BinaryWeight) for module in network.modules())
        self._before = signs(network) if self._quantised else {}

    def epoch(self) -> dict[str, float]:
        """What an epoch did: entries for its row of the log.

        ``flips/LAYER`` and ``flips/all``: the share of signs that turned. ``cosine/WEIGHT`` and ``norm_ratio/WEIGHT``: of the update
        that the rule proposes with the gradient (:func:`tbnn.learning.alignment.alignment`), where both are finite.
        """
        found: dict[str, float] = {}
        if self._quantised:
            after = signs(self.network)
            found |= {FLIPS + name: flips({name: self._before[name]}, {name: now}) for name, now in after.items()}
            found[FLIPS + ALL] = flips(self._before, after)
            self._before = after
        if self._aligned is not None:
            rule, frames = self._aligned
            device = next(self.network.parameters()).device
            words = frames.words(LOOKED_AT).transpose(0, 1).contiguous().to(device)
            labels = torch.as_tensor(frames.labels[:LOOKED_AT]).to(device)
            for name, one in alignment(rule, words, labels).items():
                if (name == ALL or name.endswith("weight")) and math.isfinite(one.cosine) and math.isfinite(one.ratio):
                    found |= {COSINE + name: one.cosine, RATIO + name: one.ratio}
        return found
