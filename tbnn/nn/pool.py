"""Pooling, flattening and voting over the features of a sequence."""

import torch.nn.functional as F
from torch import Tensor, nn

from tbnn.nn.conv import Sizes, sizes_of
from tbnn.nn.recorded import Recorded
from tbnn.ops.max_pool import max_pool


class _Pool2d(Recorded, nn.Module, abstract=True):
    """A window that moves over the last two axes of (..., C, H, W)."""

    def __init__(self, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> None:
        super().__init__()
        self.kernel_size = sizes_of("kernel_size", kernel_size, 2)
        self.stride = self.kernel_size if stride is None else sizes_of("stride", stride, 2)
        self.padding = sizes_of("padding", padding, 2, least=0)
        if any(2 * margin > size for margin, size in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"padding: expected at most half of the window {self.kernel_size}, got {self.padding}")

    def forward(self, x: Tensor) -> Tensor:
        sizes = [size + 2 * margin for size, margin in zip(x.shape[-2:], self.padding, strict=False)]
        if x.ndim < 3 or any(have < need for have, need in zip(sizes, self.kernel_size, strict=True)):
            raise ValueError(
                f"{type(self).__name__}: expected (..., C, H, W) of at least the window {self.kernel_size}, "
                f"got {tuple(x.shape)}"
            )
        return self._pool(x)

    def _pool(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool2d):
    """The maximum over windows: of spikes, their OR, so bits stay bits. (..., C, H, W) -> (..., C, H', W').

    The gradient is shared among the equal maxima, the least of max's subgradients. Among bits a tie is the rule: a
    silent window is one, and routing its gradient to one place, as ``torch.nn.MaxPool2d`` does, would always train the
    same corner.

    Raises:
        ValueError: sizes out of range, padding beyond half of the window, an input smaller than the window.

    >>> MaxPool2d(2)(torch.eye(4).reshape(1, 1, 1, 4, 4)).flatten().tolist()
    [1.0, 0.0, 0.0, 1.0]
    """

    def _pool(self, x: Tensor) -> Tensor:
        (kh, kw), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        return max_pool(x, (kh, kw), (sh, sw), (ph, pw))


class AvgPool2d(_Pool2d):
    """The mean over windows, zeros padded included. (..., C, H, W) -> (..., C, H', W').

    Spikes become multiples of 1/(kh·kw): counts, not bits. Put it before a layer's weights only where the wire may
    carry counts, or after them, on currents.

    Raises:
        ValueError: as :class:`MaxPool2d`.
    """

    def _pool(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x.reshape(-1, *x.shape[-3:]), self.kernel_size, self.stride, self.padding)
        return y.reshape(*x.shape[:-3], *y.shape[-3:])


class Flatten(Recorded, nn.Module):
    """The features of each step in one axis: (T, B, C, H, W) -> (T, B, C·H·W).

    Raises:
        ValueError: fewer than three axes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise ValueError(f"Flatten: expected (T, B, features...), got {tuple(x.shape)}")
        return x.flatten(2)


class Voting(Recorded, nn.Module):
    """The mean over each class's ``voters`` neurons, next to each other: (..., classes·voters) -> (..., classes).

    Raises:
        ValueError: fewer than one voter, features that the voters do not divide.

    Source: Fang et al., "Incorporating learnable membrane time constant ...", ICCV 2021.
    """

    def __init__(self, voters: int) -> None:
        super().__init__()
        if voters < 1:
            raise ValueError(f"voters: expected an integer >= 1, got {voters}")
        self.voters = voters

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.voters:
            raise ValueError(f"Voting: expected features that {self.voters} voters divide, got {tuple(x.shape)}")
        return x.unflatten(-1, (-1, self.voters)).mean(-1)

    def extra_repr(self) -> str:
        return f"{self.voters}"
