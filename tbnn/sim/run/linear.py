"""Layers of weights at work: packed spikes become what drives neurons."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tbnn.bits import unpack_bits_numpy, wide_words, words_for
from tbnn.ops.binary_linear import WeightColumns, weight_columns
from tbnn.ops.binary_linear.choice import binary_product_cpu
from tbnn.ops.binary_linear.events import weigh_ones
from tbnn.ops.kernels import as_numpy
from tbnn.ops.packed_lif.cpu import NO_VALUES, Drive, drive_of
from tbnn.ops.packed_lif.recurrent import Feedback, feedback_of
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedLinear
from tbnn.sim.run.currents import Currents, Room, currents_of
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
    """How many weights of each input are not 0, (inputs,), 0 past them; empty where none is 0."""


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
            kept = _kept(planes[:, :, part], spec.bits) if spec.zeros else np.empty(0, np.int64)
            self.blocks.append(Block(part, [Plane(w, weight_columns(w)) for w in wide], scale, offset, kept))
        self.bias = NOTHING if layer.bias is None else as_numpy(layer.bias[rows])
        self.room = Room()

    def advance(self, words: Words) -> Currents:
        """Packed spikes (t, B, words) -> currents (t, B, outputs)."""
        shape = (*words.shape[:2], self.outputs)
        return Currents(shape, lambda steps, samples: self.drive(words[steps, samples]))

    def drive(self, words: Words, bias: Floats | None = None) -> Drive:
        """What packed spikes (t, B, words) drive (t, B, outputs) with; ``bias`` takes the place of the layer's own.

        It holds until the next call.
        """
        steps, batch, width = words.shape
        flat, bias = np.ascontiguousarray(words).reshape(-1, width), self.bias if bias is None else bias
        self.rows += len(flat)
        shape, added = (steps, batch, self.outputs), NO_VALUES
        for block in self.blocks:
            spikes = flat[:, block.part]
            ones = spikes_in(spikes)
            product = self._product(spikes, block, ones).reshape(shape)
            own = bias if len(self.blocks) == 1 else NOTHING
            drive = Drive(product, ones.reshape(steps, batch, 1), block.scale, block.offset, own, added)
            if len(self.blocks) == 1:
                return drive
            added = currents_of(drive)
        if bias.size:
            added += bias
        return drive_of(added)

    def current(self, words: Words) -> Floats:
        """Packed spikes (M, words) -> currents (M, outputs)."""
        return currents_of(self.drive(words[None]))[0]

    def feedback(self) -> Feedback | None:
        """The layer as the feedback of :func:`tbnn.ops.packed_lif.recurrent.packed_recurrent`; None for several blocks."""
        if len(self.blocks) > 1:
            return None
        block, (factors, constant) = self.blocks[0], self.layer.spec.coefficients
        columns = [plane.columns for plane in block.planes]
        return feedback_of(columns, factors, constant, block.scale, block.offset, self.bias)

    def returned(self, words: Words) -> None:
        """Count spikes (t, B, words) that went through :meth:`feedback`."""
        flat = words.reshape(-1, words.shape[-1])
        self.rows += len(flat)
        self.ways["events"] += len(words) * len(self.blocks[0].planes)
        self._count(flat, self.blocks[0], int(spikes_in(flat).sum(dtype=np.int64)))

    def _product(self, spikes: Words, block: Block, ones: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Spikes (M, words) times the values of a block: ``Σ_j c_j·popcount(s ∧ P_j) + c·popcount(s)``, (M, outputs)."""
        wide = wide_words(spikes)
        factors, constant = self.layer.spec.coefficients
        shift, nothing = np.int32(constant) * ones, np.zeros_like(ones)
        product = self.room.take((len(spikes), self.outputs))
        for j, (plane, factor) in enumerate(zip(block.planes, factors, strict=True)):
            add = j > 0
            way = binary_product_cpu(
                wide, plane.rows, plane.columns, ones, factor, nothing if add else shift, add, product
            )
            self.ways[way] += 1
        self._count(spikes, block, int(ones.sum(dtype=np.int64)))
        return product

    def _count(self, spikes: Words, block: Block, count: int) -> None:
        """Add the operations that meet a spike and a weight that is not 0."""
        if block.kept.size:
            self.effective += int(weigh_ones(wide_words(spikes), block.kept, work=spikes.size))
        else:
            self.effective += count * self.outputs

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
            effective_synops=self.effective,
            bytes_moved=self.rows * words_for(spec.in_features) * WORD_BYTES + stored,
            path=way_taken(self.ways),
        )
        return [row]


def way_taken(ways: dict[str, int]) -> str:
    """ "dense", "events", or how often each."""
    taken = {name: count for name, count in ways.items() if count}
    return next(iter(taken), "") if len(taken) < 2 else ", ".join(f"{name} {count}" for name, count in taken.items())


def _kept(planes: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.int64]:
    """How many weights of each input are not 0: planes (P, outputs, words) -> (64·ceil(words/2),)."""
    words = planes[0] | planes[1] if bits == 1 else planes[-1]
    even = wide_words(words).view(np.int32)
    return unpack_bits_numpy(even, 32 * even.shape[1]).sum(0, dtype=np.int64)
