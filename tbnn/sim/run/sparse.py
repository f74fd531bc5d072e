"""Sparse layers of weights at work: the lists of the inputs that spiked become currents."""

import numpy as np
import torch

from tbnn.bits import wide_words, words_for
from tbnn.ops.kernels import as_numpy
from tbnn.ops.packed_lif.cpu import NO_VALUES, Drive
from tbnn.ops.sparse_linear import lists_of
from tbnn.ops.sparse_linear.cpu import sparse_product_cpu
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedLinear, PackedSparse
from tbnn.sim.run.currents import Currents, Room, currents_of
from tbnn.sim.run.linear import LinearRun
from tbnn.sim.run.state import NOTHING, WORD_BYTES, Floats, Words, spikes_in


class SparseRun:
    """A sparse layer at work: its lists, and what it has done."""

    def __init__(self, layer: PackedSparse) -> None:
        self.layer = layer
        self.rows = self.effective = 0
        self.lists = lists_of(layer.starts, layer.outputs, layer.magnitudes)
        self.scale = as_numpy(layer.scale[:, 0])
        self.offset = NOTHING if layer.offset is None else as_numpy(layer.offset[:, 0])
        self.bias = NOTHING if layer.bias is None else as_numpy(layer.bias)
        self.room = Room()

    def advance(self, words: Words) -> Currents:
        """Packed spikes (t, B, words) -> currents (t, B, out_features)."""
        shape = (*words.shape[:2], self.layer.spec.out_features)
        return Currents(shape, lambda steps, samples: self.drive(words[steps, samples]))

    def drive(self, words: Words, bias: Floats | None = None) -> Drive:
        """What packed spikes (t, B, words) drive (t, B, out_features) with; ``bias`` takes the place of the layer's own.

        It holds until the next call.
        """
        spec, (steps, batch, width) = self.layer.spec, words.shape
        flat = np.ascontiguousarray(words).reshape(-1, width)
        product, ones = self.room.take((len(flat), spec.out_features)), spikes_in(flat)
        work = int(ones.sum(dtype=np.int64)) * spec.connections // spec.in_features
        threads = torch.get_num_threads()
        self.effective += sparse_product_cpu(wide_words(flat), self.lists, threads, product, work=work)
        self.rows += len(flat)
        shaped = product.reshape(steps, batch, -1), ones.reshape(steps, batch, 1)
        return Drive(*shaped, self.scale, self.offset, self.bias if bias is None else bias, NO_VALUES)

    def current(self, words: Words) -> Floats:
        """Packed spikes (M, words) -> currents (M, out_features)."""
        return currents_of(self.drive(words[None]))[0]

    def feedback(self) -> None:
        """Lists return spikes step by step: :func:`tbnn.ops.packed_lif.recurrent.packed_recurrent` has planes."""
        return

    def state(self) -> None:
        """Weights carry nothing."""
        return

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        row = LayerCounts(
            spec.name,
            spec.kind,
            effective_synops=self.effective,
            bytes_moved=self.rows * words_for(spec.in_features) * WORD_BYTES
            + sum(tensor.nbytes for tensor in self.layer.tensors().values()),
            path="lists" if self.rows else "",
        )
        return [row]


def weights_run(layer: PackedLinear | PackedSparse) -> LinearRun | SparseRun:
    """A layer of weights ready to run, as what it is stored as."""
    return SparseRun(layer) if isinstance(layer, PackedSparse) else LinearRun(layer)
