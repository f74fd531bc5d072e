"""Layers of weights at work on a device: packed spikes become currents."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tbnn.bits import WORD_BITS, unpack_bits, words_for
from tbnn.ops.binary_linear.gpu import binary_product_gpu, count_rows_gpu
from tbnn.sim.counts import LayerCounts
from tbnn.sim.gpu.base import GpuRun
from tbnn.sim.gpu.launch import Weights, scale
from tbnn.sim.layers import PackedLinear, PackedSparse

WORD_BYTES = 4


class Block(NamedTuple):
    """Inputs that share a scale."""

    part: slice
    weights: Weights
    kept: Tensor | None
    """How many weights of each input are not 0, int32 (32·words,); None where none is 0."""


class Pending(NamedTuple):
    """Currents that are still to be made, by the neurons that need them: packed spikes (t, B, words), and the weights."""

    words: Tensor
    run: "LinearRun"


class LinearRun(GpuRun):
    """A binary linear layer at work, its weights on the device.

    ``rows``: the outputs that run, all by default (a group of a convolution has its own). ``pends``: leave the currents to the
    neurons that follow.
    """

    carried: ClassVar[tuple[str, ...]] = ("rows", "effective", "ways")

    def __init__(
        self, layer: PackedLinear, device: torch.device, rows: slice = slice(None), *, pends: bool = False
    ) -> None:
        self.layer: PackedLinear | PackedSparse = layer
        self.pends, spec = pends, layer.spec
        self.rows = 0
        self.effective = torch.zeros((), dtype=torch.int64, device=device)
        self.ways: dict[str, int] = {}
        planes = layer.planes[:, rows]
        self.outputs = planes.shape[1]
        coefficients, constant = spec.coefficients
        factors = torch.tensor(coefficients, dtype=torch.int32, device=device)
        self.blocks: list[Block] = []
        for k, lo in enumerate(spec.starts):
            size = min(spec.block, spec.in_features - lo)
            part = slice(words_for(lo), words_for(lo + size))
            own = planes[:, :, part].contiguous()
            offset = None if layer.offset is None else _moved(layer.offset[rows, k], device)
            weights = Weights(own.to(device), factors, constant, _moved(layer.scale[rows, k], device), offset)
            self.blocks.append(Block(part, weights, kept_of(own, spec.bits).to(device) if spec.zeros else None))
        self.bias = None if layer.bias is None else _moved(layer.bias[rows], device)

    def advance(self, words: Tensor) -> Tensor | Pending:
        """Packed spikes (t, B, words) -> currents (t, B, out_features)."""
        if self.pends:
            return Pending(words, self)
        return self.current(words.flatten(0, 1)).unflatten(0, words.shape[:2])

    def current(self, words: Tensor, bias: Tensor | None = None) -> Tensor:
        """Packed spikes (M, words) -> currents (M, outputs); ``bias`` takes the place of the layer's own."""
        y = torch.empty((words.shape[0], self.outputs), device=words.device)
        bias, last = self.bias if bias is None else bias, len(self.blocks) - 1
        for k, block in enumerate(self.blocks):
            product, ones = self.product(words[:, block.part], block)
            scale(product, ones, block.weights, bias if k == last else None, y, first=k == 0)
        self.rows += words.shape[0]
        return y

    def product(self, spikes: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """A block's integer products (M, outputs), and the spikes of each row (M,)."""
        weights, ones = block.weights, self.count(spikes, block)
        shift = weights.constant * ones if weights.constant else None
        product, way = binary_product_gpu(spikes, weights.planes, weights.factors, shift)
        self.took(way)
        return product, ones

    def count(self, spikes: Tensor, block: Block) -> Tensor:
        """The spikes of each row (M,); the operations they cause are added up on the device."""
        ones, met = count_rows_gpu(spikes, block.kept)
        self.effective = self.effective + (ones.sum(dtype=torch.int64) * self.outputs if met is None else met.sum())
        return ones

    def took(self, way: str) -> None:
        """Note which kernel ran."""
        self.ways = {**self.ways, way: self.ways.get(way, 0) + 1}

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        stored = sum(tensor.nbytes for tensor in self.layer.tensors().values())
        row = LayerCounts(
            spec.name,
            spec.kind,
            effective_synops=int(self.effective),
            bytes_moved=self.rows * words_for(spec.in_features) * WORD_BYTES + stored,
            path=path_of(self.ways),
        )
        return [row]


class SparseRun(LinearRun):
    """A sparse layer at work: on a device as bit planes, which tensor cores take."""

    def __init__(self, layer: PackedSparse, device: torch.device, *, pends: bool = False) -> None:
        super().__init__(layer.to_linear(), device, pends=pends)
        self.layer = layer


def weights_run(layer: PackedLinear | PackedSparse, device: torch.device, *, pends: bool = False) -> LinearRun:
    """A layer of weights ready to run."""
    run = SparseRun if isinstance(layer, PackedSparse) else LinearRun
    return run(layer, device, pends=pends)  # pyright: ignore[reportArgumentType]


def path_of(ways: dict[str, int]) -> str:
    """ "popcount", "int8", "fused", or how often each."""
    return next(iter(ways), "") if len(ways) < 2 else ", ".join(f"{way} {count}" for way, count in ways.items())


def _moved(values: Tensor, device: torch.device) -> Tensor:
    return values.contiguous().to(device)


def kept_of(planes: Tensor, bits: int) -> Tensor:
    """How many weights of each input are not 0: planes (P, outputs, words) -> (32·words,)."""
    words = planes[0] | planes[1] if bits == 1 else planes[-1]
    return unpack_bits(words, WORD_BITS * words.shape[1], torch.int32).sum(0, dtype=torch.int32)
