"""Variation of training samples: shifts in space and lost bits."""

import torch
from torch import Tensor


def shift_frames(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each sample by its own random (dy, dx), each within ±``pixels``; what leaves the frame is lost.

    x: (T, B, C, H, W) -> the same shape; all steps of a sample move together.
    """
    out = torch.zeros_like(x)
    height, width = x.shape[-2:]
    moves = torch.randint(-pixels, pixels + 1, (x.shape[1], 2), generator=generator).tolist()
    for b, (dy, dx) in enumerate(moves):
        to_y, from_y = _overlap(dy, height)
        to_x, from_x = _overlap(dx, width)
        out[:, b, :, to_y, to_x] = x[:, b, :, from_y, from_x]
    return out


def _overlap(move: int, size: int) -> tuple[slice, slice]:
    """Where the kept part lands and where it comes from, along one axis."""
    move = max(-size, min(size, move))
    return slice(max(0, move), size + min(0, move)), slice(max(0, -move), size + min(0, -move))


def drop_bits(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Erase each bit with probability ``share``."""
    return x * (torch.rand(x.shape, generator=generator) >= share)
