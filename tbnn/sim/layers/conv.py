"""Binary convolutions and pooling, over frames whose bits are channel, row, column."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tbnn.sim.layers.checks import Shapes, check_sizes
from tbnn.sim.layers.linear import LinearSpec, PackedLinear

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvSpec:
    """A convolution's name and geometry; ``kernel`` is the product of one window with the weights.

    Attributes:
        channels, height, width: of the input.
        window, stride, dilation: height and width.
        margins: zeros above, below, left and right.
        groups: of channels.
        kernel: the weights: in_features are channels/groups·window, out_features the output's channels.

    Raises ``ValueError`` for sizes below 1 and for a kernel or groups that do not fit.
    """

    kind: ClassVar[str] = "conv"
    name: str
    channels: int
    height: int
    width: int
    window: Pair
    stride: Pair
    dilation: Pair
    margins: tuple[int, int, int, int]
    groups: int
    kernel: LinearSpec

    def __post_init__(self) -> None:
        check_sizes(self.name, channels=self.channels, height=self.height, width=self.width, groups=self.groups)
        for what in ("window", "stride", "dilation"):
            check_sizes(self.name, **{what: min(getattr(self, what))})
            check_sizes(self.name, **{what: max(getattr(self, what))})
        if min(self.margins) < 0:
            raise ValueError(f"{self.name}: margins: expected 0 or more, got {self.margins}")
        check_sizes(self.name, output=min(self.out_shape[1:]))
        check_sizes(self.name, in_features=self.in_features, out_features=self.out_features)
        row = self.channels // self.groups * self.window[0] * self.window[1]
        uneven = self.channels % self.groups or self.kernel.out_features % self.groups
        if uneven or self.kernel.in_features != row:
            raise ValueError(
                f"{self.name}: expected a kernel of {row} inputs and outputs that {self.groups} groups divide, got "
                f"{self.kernel.in_features} -> {self.kernel.out_features}"
            )

    @property
    def in_features(self) -> int:
        """Bits of an input frame."""
        return self.channels * self.height * self.width

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the output."""
        top, bottom, left, right = self.margins
        sizes = (self.height + top + bottom, self.width + left + right)
        spans = ((size - 1) * step for size, step in zip(self.window, self.dilation, strict=True))
        rows, columns = (
            (size - span - 1) // step + 1 for size, span, step in zip(sizes, spans, self.stride, strict=True)
        )
        return self.kernel.out_features, rows, columns

    @property
    def out_features(self) -> int:
        """Values of an output frame."""
        channels, rows, columns = self.out_shape
        return channels * rows * columns

    def shapes(self) -> Shapes:
        """None of its own: the kernel has them."""
        return {}


@dataclass(frozen=True)
class PoolSpec:
    """OR over windows: ``torch.nn.MaxPool2d`` of bits. Raises ``ValueError`` for sizes below 1.

    Attributes:
        channels, height, width: of the input.
        window, stride, padding: height and width.
    """

    kind: ClassVar[str] = "pool"
    name: str
    channels: int
    height: int
    width: int
    window: Pair
    stride: Pair
    padding: Pair

    def __post_init__(self) -> None:
        check_sizes(self.name, channels=self.channels, height=self.height, width=self.width)
        for what in ("window", "stride"):
            check_sizes(self.name, **{what: min(getattr(self, what))})
        if any(not 0 <= 2 * margin <= size for margin, size in zip(self.padding, self.window, strict=True)):
            raise ValueError(f"{self.name}: padding: expected at most half of {self.window}, got {self.padding}")
        check_sizes(self.name, output=min(self.out_shape[1:]))
        check_sizes(self.name, in_features=self.in_features, out_features=self.out_features)

    @property
    def in_features(self) -> int:
        """Bits of an input frame."""
        return self.channels * self.height * self.width

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the output."""
        sizes = zip((self.height, self.width), self.window, self.stride, self.padding, strict=True)
        rows, columns = ((size + 2 * margin - window) // step + 1 for size, window, step, margin in sizes)
        return self.channels, rows, columns

    @property
    def out_features(self) -> int:
        """Bits of an output frame."""
        channels, rows, columns = self.out_shape
        return channels * rows * columns

    def shapes(self) -> Shapes:
        """It stores nothing."""
        return {}


@dataclass(frozen=True, eq=False)
class PackedConv:
    """A convolution of bits: every window times the kernel. Raises ``ValueError`` for another kernel than the spec's."""

    spec: ConvSpec
    kernel: PackedLinear

    def __post_init__(self) -> None:
        if self.kernel.spec != self.spec.kernel:
            raise ValueError(f"{self.spec.name}: expected the kernel {self.spec.kernel}, got {self.kernel.spec}")

    def tensors(self) -> dict[str, Tensor]:
        """None of its own."""
        return {}


@dataclass(frozen=True, eq=False)
class PackedPool:
    """OR over windows of bits."""

    spec: PoolSpec

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}
