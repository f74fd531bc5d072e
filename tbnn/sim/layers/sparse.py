"""Linear layers of which few weights are not 0: lists of connections in place of bit planes."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import popcount
from tbnn.ops.sparse_linear import SparseColumns, dense_values, index_dtype
from tbnn.sim.layers.checks import LARGEST, Shapes, check_sizes, check_tensors, present
from tbnn.sim.layers.linear import LinearSpec, PackedLinear, planes_of

# Below this share of weights that are not 0, lists take the place of planes. With 2 % of the inputs active both take as
# long at 1.5 to 7 % (batch 16 and 1, 1024 to 16384 inputs and outputs, one Zen 4 core; the mean is 3.4 %), with 5 % at
# 0.3 to 18 %; in bytes lists are the smaller below 12 % of 1024 inputs and outputs.
LISTS_BELOW = 0.03

DRAWN_TOGETHER = 1 << 20  # connections of a random layer


@dataclass(frozen=True)
class SparseSpec:
    """A sparse layer's name, sizes and grid: a weight is 0, or an odd value ±1 … ±(2^bits − 1).

    Attributes:
        connections: how many weights are not 0.
        offset, bias: whether there are any; the linear form of a weight has no offset. The offset counts at zeros too.
        bits: 1 to 8.

    Raises ``ValueError`` for sizes below 1, other bits, and more connections than weights or than int32 holds.
    """

    kind: ClassVar[str] = "sparse"
    name: str
    in_features: int
    out_features: int
    connections: int
    offset: bool
    bias: bool
    bits: int = 1

    def __post_init__(self) -> None:
        check_sizes(self.name, in_features=self.in_features, out_features=self.out_features)
        check_sizes(self.name, lists=2 * self.in_features + 1)
        most = min(self.in_features * self.out_features, LARGEST)
        if not 0 <= self.connections <= most:
            raise ValueError(f"{self.name}: connections: expected 0 to {most}, got {self.connections}")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"{self.name}: bits: expected 1 to 8, got {self.bits}")

    def shapes(self) -> Shapes:
        """Every tensor of the layer."""
        column = (torch.float32, (self.out_features, 1))
        shapes: Shapes = {
            "starts": (torch.int32, (2 * self.in_features + 1,)),
            "outputs": (index_dtype(self.out_features), (self.connections,)),
            "scale": column,
        }
        if self.bits > 1:
            shapes["magnitudes"] = (torch.uint8, (self.connections,))
        if self.offset:
            shapes["offset"] = column
        if self.bias:
            shapes["bias"] = (torch.float32, (self.out_features,))
        return shapes


@dataclass(frozen=True, eq=False)
class PackedSparse:
    """``y = scale·p + offset·n + bias``: p the product of the spikes with the values, n the number of spikes.

    Attributes:
        starts, outputs, magnitudes: the connections by input, as :class:`tbnn.ops.sparse_linear.SparseColumns` tells;
            magnitudes uint8 (connections,), or None with 1 bit.
        scale: float32 (out_features, 1).
        offset: float32 (out_features, 1), or None for 0.
        bias: float32 (out_features,), or None for 0.

    Raises ``ValueError`` where a tensor disagrees with the spec, lists are out of order or of range, an output is in both
    lists of an input, a magnitude is not odd or too large, or a number is not finite.
    """

    spec: SparseSpec
    starts: Tensor
    outputs: Tensor
    scale: Tensor
    magnitudes: Tensor | None = None
    offset: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        spec = self.spec
        check_tensors(spec.name, self.tensors(), spec.shapes())
        SparseColumns(self.starts, self.outputs, spec.out_features, self.magnitudes, spec.name)  # checks the lists
        if self.magnitudes is not None and spec.connections:
            most = int(self.magnitudes.max())
            if most >= 2**spec.bits or not bool((self.magnitudes & 1).all()):
                raise ValueError(
                    f"{spec.name}.magnitudes: expected odd numbers below {2**spec.bits}, got {most} or even ones"
                )

    def values(self) -> Tensor:
        """The weights' values, int32 (out_features, in_features): all of them, zeros too."""
        return dense_values(self.starts, self.outputs, self.spec.out_features, self.magnitudes)

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return present(
            starts=self.starts, outputs=self.outputs, scale=self.scale,
            magnitudes=self.magnitudes, offset=self.offset, bias=self.bias,
        )  # fmt: skip

    def to_linear(self) -> PackedLinear:
        """The same layer as bit planes, which hold every weight."""
        spec = self.spec
        linear = LinearSpec(
            spec.name, spec.in_features, spec.out_features, spec.in_features, spec.offset, spec.bias, spec.bits, True
        )
        return PackedLinear(linear, planes_of(self.values(), spec.bits, True), self.scale, self.offset, self.bias)

    @classmethod
    def from_linear(cls, layer: PackedLinear) -> "PackedSparse":
        """The same layer as lists. Raises ``ValueError`` for more than one block of inputs."""
        spec = layer.spec
        if spec.block != spec.in_features:
            raise ValueError(f"{spec.name}: block: expected one of all {spec.in_features} inputs, got {spec.block}")
        return cls.from_values(spec.name, layer.values(), spec.bits, layer.scale, layer.offset, layer.bias)

    @classmethod
    def from_values(
        cls, name: str, values: Tensor, bits: int, scale: Tensor, offset: Tensor | None, bias: Tensor | None
    ) -> "PackedSparse":
        """A layer of whole-numbered values (out_features, in_features)."""
        turned = values.T
        inputs, outputs = turned.nonzero().numpy().T
        kept = turned[inputs, outputs].numpy()
        starts, order = _listed(inputs, kept < 0, values.shape[1])
        spec = SparseSpec(
            name, values.shape[1], values.shape[0], len(order), offset is not None, bias is not None, bits
        )
        magnitudes = None if bits == 1 else torch.from_numpy(np.abs(kept)[order].astype(np.uint8))
        indices = _indices(outputs[order], values.shape[0])
        return cls(spec, torch.from_numpy(starts), torch.from_numpy(indices), scale, magnitudes, offset, bias)

    @classmethod
    def random(
        cls,
        name: str,
        in_features: int,
        out_features: int,
        density: float,
        seed: int,
        *,
        scale: float | Tensor = 1.0,
        negative: float = 0.5,
    ) -> "PackedSparse":
        """Each weight independently ±scale with probability ``density``, else 0; no matrix of all weights is made.

        Args:
            name, in_features, out_features: of the layer.
            density: share of weights that are not 0, in (0, 1].
            seed: of NumPy's generator.
            scale: one number, or float32 (out_features,), one an output.
            negative: share of connections that are negative.

        Raises:
            ValueError: a density or a share out of range, sizes that a :class:`SparseSpec` refuses.
        """
        if not 0 < density <= 1 or not 0 <= negative <= 1:
            raise ValueError(
                f"{name}: expected a density in (0, 1] and a negative share in [0, 1], got {density:g} and {negative:g}"
            )
        expected = round(density * in_features * out_features)
        spec = SparseSpec(name, in_features, out_features, expected, offset=False, bias=False)
        scales = torch.as_tensor(scale, dtype=torch.float32).reshape(-1, 1)
        if len(scales) not in (1, out_features):
            raise ValueError(f"{name}: scale: expected 1 or {out_features} values, got {len(scales)}")
        generator = np.random.default_rng(seed)
        together = max(1, int(DRAWN_TOGETHER / (density * out_features)))  # inputs
        starts, outputs, count = [np.zeros(1, np.int32)], [], 0
        for first in range(0, in_features, together):
            inputs = min(together, in_features - first)
            of, output = np.divmod(_chosen(inputs * out_features, density, generator), out_features)
            own, order = _listed(of, generator.random(len(of)) < negative, inputs)
            starts.append(own[1:] + np.int32(count))
            outputs.append(_indices(output[order], out_features))
            count += len(order)
        spec = replace(spec, connections=count)
        # NumPy joins them, not torch: its large arrays lie in huge pages, which the random reads of a run gain a tenth from.
        begins, indices = (torch.from_numpy(np.concatenate(parts)) for parts in (starts, outputs))
        return cls(spec, begins, indices, scales.expand(out_features, 1).clone())


def thinned(layer: PackedLinear) -> PackedLinear | PackedSparse:
    """The layer as lists where few of its weights are not 0, in one block, and lists are smaller; else as it is."""
    spec = layer.spec
    if spec.block != spec.in_features or not spec.zeros:
        return layer
    kept = layer.planes[0] | layer.planes[1] if spec.bits == 1 else layer.planes[-1]
    if int(popcount(kept).sum()) >= LISTS_BELOW * spec.in_features * spec.out_features:
        return layer
    lists = PackedSparse.from_linear(layer)
    sizes = [sum(tensor.nbytes for tensor in one.tensors().values()) for one in (lists, layer)]
    return lists if sizes[0] < sizes[1] else layer


def _chosen(cells: int, density: float, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which of 0 … cells − 1 are chosen, each with probability ``density``: the gaps between them are geometric."""
    parts, last = [], -1
    while last < cells:
        left = density * (cells - last)
        parts.append(last + generator.geometric(density, int(left + 4 * math.sqrt(left)) + 4).cumsum())
        last = int(parts[-1][-1])
    chosen = np.concatenate(parts)
    return chosen[: np.searchsorted(chosen, cells)]


def _listed(
    inputs: npt.NDArray[np.int64], negative: npt.NDArray[np.bool_], in_features: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Connections in the order of their inputs, then outputs -> starts, and the order in which they stand in the lists."""
    lists = 2 * inputs + negative
    counts = np.bincount(lists, minlength=2 * in_features)
    starts = np.concatenate([[0], counts.cumsum()])
    order = np.empty(len(inputs), np.int64)
    for sign in (0, 1):  # those of one sign keep their order, so one's place follows from its rank among them
        chosen = np.flatnonzero(negative == bool(sign))
        before = counts[sign::2].cumsum() - counts[sign::2]
        own = inputs[chosen]
        order[starts[2 * own + sign] + np.arange(len(chosen)) - before[own]] = chosen
    return starts.astype(np.int32), order


def _indices(outputs: npt.NDArray[np.int64], out_features: int) -> npt.NDArray[np.uint16 | np.int32]:
    """Outputs as a file keeps them."""
    return outputs.astype(np.uint16 if index_dtype(out_features) == torch.uint16 else np.int32)
