"""Maxima over windows by definition; the gradient is shared among equal maxima."""

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool_reference(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """x (M, H, W) -> (M, H', W'): ``amax`` over unfolded windows, whose gradient torch shares among equals."""
    (pad_h, pad_w), (size_h, size_w), (step_h, step_w) = padding, kernel, stride
    x = F.pad(x, (pad_w, pad_w, pad_h, pad_h), value=-torch.inf)
    return x.unfold(1, size_h, step_h).unfold(2, size_w, step_w).amax((-2, -1))
