"""What comes into a layer while a network is packed."""

import math
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Signal:
    """The features that enter a layer: a·x + b, x bits or the means over windows of bits.

    Attributes:
        shape: of the features, channels first; (1,) times their number where flat.
        a, b: constants of a neuron that emits denoised values; 1 and 0 for bits.
        frames: the bits' (C, H, W) before an average pooling of non-overlapping windows; None without one.
        window: height and width of these windows.
    """

    shape: Shape
    a: float = 1.0
    b: float = 0.0
    frames: tuple[int, int, int] | None = None
    window: tuple[int, int] = (1, 1)

    @property
    def size(self) -> int:
        """How many features there are."""
        return math.prod(self.shape)

    def reshaped(self, shape: Shape) -> "Signal":
        """The same features in another shape."""
        return replace(self, shape=shape)

    def expect_bits(self, name: str, purpose: str) -> None:
        """Raise ``ValueError`` unless bits come in."""
        if (self.a, self.b) != (1.0, 0.0):
            raise ValueError(f"{name}: expected bits {purpose}, got denoised values (emit='denoised' before it)")
        if self.frames is not None:
            raise ValueError(
                f"{name}: expected bits {purpose}, got the means of an AvgPool2d, which only a BinaryLinear or BinaryConv2d "
                "after it takes in"
            )
