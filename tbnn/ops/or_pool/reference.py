"""Max-pooling of packed 0/1 frames by definition."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tbnn.bits import pack_bits, unpack_bits
from tbnn.ops.patches.reference import Windows, taps_of


def or_pool2d_reference(words: Tensor, shape: Sequence[int], windows: Windows) -> Tensor:
    """Words (M, W) of frames ``shape`` -> words (M, ceil(C·OH·OW/32)): whether any bit under a window is set."""
    frames = unpack_bits(words, math.prod(shape), torch.bool).reshape(-1, *shape)
    return pack_bits(taps_of(frames, windows).flatten(-2).any(-1).flatten(1))
