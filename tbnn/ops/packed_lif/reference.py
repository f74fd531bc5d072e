"""Packed neurons by definition: a loop over time, on currents in float32."""

import torch
from torch import Tensor

from tbnn.bits import pack_bits


def drive_reference(
    product: Tensor, ones: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None, added: Tensor | None
) -> Tensor:
    """``scale·product + offset·ones + bias + added``: product (T, B, C·P), ones (T, B, groups·P) -> (T, B, C·P) float32."""
    pixels = product.shape[2] // scale.numel()
    y = product.float() * scale.repeat_interleave(pixels)
    if offset is not None:
        per_channel = (
            ones.float().unflatten(2, (-1, pixels)).repeat_interleave(scale.numel() * pixels // ones.shape[2], 2)
        )
        y = y + (offset[:, None] * per_channel).flatten(2)
    if bias is not None:
        y = y + bias.repeat_interleave(pixels)
    return y if added is None else y + added


def packed_lif_reference(
    current: Tensor, beta: Tensor, threshold: Tensor, reset: str, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Currents (T, B, N), membranes v (B, N): packed spikes int32 (T, B, words) and the membranes (T, B, N)."""
    words, membranes = [], []
    for current_t in current.unbind(0):
        fired = (v > threshold).float()
        v = beta * ((1 - fired) * v if reset == "zero" else v) + current_t
        if reset == "subtract":
            v = v - threshold * fired
        words.append(pack_bits(v > threshold))
        membranes.append(v)
    return torch.stack(words), torch.stack(membranes)
