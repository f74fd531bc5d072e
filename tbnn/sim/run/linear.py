"""Layers of weights at work: packed spikes become currents."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tbnn.bits import unpack_bits_numpy, wide_words, words_for
from tbnn.ops.binary_linear import WeightColumns, weight_columns
from tbnn.ops.binary_linear.choice import binary_product_cpu, choose
from tbnn.ops.kernels import as_numpy
from tbnn.sim import cpu
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedLinear
from tbnn.sim.run.state import NOTHING, WORD_BYTES, Floats, Words, spikes_in


class Plane(NamedTuple):
    """One bit plane of a block of weights, a row an output, and its columns for the event-driven product."""

    rows: npt.NDArray[np.uint64]
    columns: WeightColumns


class Block(NamedTuple):
    """Inputs that share a scale: their words, the planes, scale and offset (outputs,)."""

    part: slice
    planes: list[Plane]
    scale: Floats
    offset: Floats
    kept: npt.NDArray[np.int64]
    """How many weights of each input are not 0, (inputs,); empty where none is."""


class LinearRun:
    """A binary linear layer at work: its bit planes block by block, and what it has done.

    Each product goes the way that :func:`tbnn.ops.binary_linear.choice.choose` takes for its spikes: by popcounts over rows
    ("dense"), or by adding the columns of the inputs that spiked ("events"). ``rows``: the outputs that run, all by default
    (a group of a convolution has its own).
    """

    def __init__(self, layer: PackedLinear, rows: slice = slice(None)) -> None:
        self.layer, spec = layer, layer.spec
        self.rows = self.effective = 0
        self.ways = {"dense": 0, "events": 0}
        planes = as_numpy(layer.planes)[:, rows]
        self.outputs = planes.shape[1]
        self.blocks: list[Block] = []
        for k, lo in enumerate(spec.starts):
            size = min(spec.block, spec.in_features - lo)
            part = slice(words_for(lo), words_for(lo + size))
            wide = [wide_words(plane[:, part]) for plane in planes]
            scale = as_numpy(layer.scale[rows, k])
            offset = NOTHING if layer.offset is None else as_numpy(layer.offset[rows, k])
            kept = _kept(planes[:, :, part], size, spec.bits) if spec.zeros else np.empty(0, np.int64)
            self.blocks.append(Block(part, [Plane(w, weight_columns(w)) for w in wide], scale, offset, kept))
        self.bias = NOTHING if layer.bias is None else as_numpy(layer.bias[rows])

    def advance(self, words: Words) -> Floats:
        """Packed spikes (t, B, words) -> currents (t, B, out_features)."""
        return self.current(words.reshape(-1, words.shape[-1])).reshape(*words.shape[:2], -1)

    def current(self, words: Words, bias: Floats | None = None) -> Floats:
        """Packed spikes (M, words) -> currents (M, outputs); ``bias`` takes the place of the layer's own."""
        rows = words.shape[0]
        y = np.empty((rows, self.outputs), np.float32)
        bias = self.bias if bias is None else bias
        for k, block in enumerate(self.blocks):
            spikes = words[:, block.part]
            ones = spikes_in(spikes)
            product = self._product(spikes, block, ones)
            own = bias if k == len(self.blocks) - 1 else NOTHING
            cpu.scale_block(product, ones, block.scale, block.offset, k == 0, own, y, work=y.size)
            count = int(ones.sum(dtype=np.int64))
            self.effective += _effective(spikes, block.kept) if block.kept.size else count * self.outputs
        self.rows += rows
        return y

    def _product(self, spikes: Words, block: Block, ones: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Spikes (M, words) times the values of a block: ``Σ_j c_j·popcount(s ∧ P_j) + c·popcount(s)``, (M, outputs)."""
        wide = wide_words(spikes)
        factors, constant = self.layer.spec.coefficients
        shift, nothing = np.int32(constant) * ones, np.zeros_like(ones)
        product = np.empty((len(spikes), self.outputs), np.int32)
        for j, (plane, factor) in enumerate(zip(block.planes, factors, strict=True)):
            self.ways[choose(ones, wide.shape[1], self.outputs)] += 1
            add = j > 0
            binary_product_cpu(wide, plane.rows, plane.columns, ones, factor, nothing if add else shift, add, product)
        return product

    def state(self) -> None:
        """Weights carry nothing."""
        return

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        stored = sum(tensor.nbytes for tensor in self.layer.tensors().values())
        row = LayerCounts(
            spec.name,
            spec.kind,
            dense_synops=self.rows * spec.in_features * self.outputs,
            effective_synops=self.effective,
            bytes_moved=self.rows * words_for(spec.in_features) * WORD_BYTES + stored,
            path=way_taken(self.ways),
        )
        return [row]


def way_taken(ways: dict[str, int]) -> str:
    """ "dense", "events", or how often each."""
    taken = {name: count for name, count in ways.items() if count}
    return next(iter(taken), "") if len(taken) < 2 else ", ".join(f"{name} {count}" for name, count in taken.items())


def _kept(planes: npt.NDArray[np.int32], size: int, bits: int) -> npt.NDArray[np.int64]:
    """How many weights of each input are not 0: planes (P, outputs, words) -> (size,)."""
    words = planes[0] | planes[1] if bits == 1 else planes[-1]
    return unpack_bits_numpy(words, size).sum(0, dtype=np.int64)


def _effective(spikes: Words, kept: npt.NDArray[np.int64]) -> int:
    """Operations that meet a spike and a weight that is not 0."""
    return int(unpack_bits_numpy(spikes, len(kept)).sum(0, dtype=np.int64) @ kept)
