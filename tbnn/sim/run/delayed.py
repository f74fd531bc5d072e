"""Weights with a delay a synapse at work."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import pack_bits, wide_words, words_for
from tbnn.ops.binary_linear import WeightColumns, weight_columns
from tbnn.ops.binary_linear.choice import binary_product_cpu
from tbnn.ops.kernels import as_numpy
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedDelayed
from tbnn.sim.run.currents import Currents, ready
from tbnn.sim.run.state import WORD_BYTES, Floats, Words, spikes_in
from tbnn.sim.run.wires import DelayState, given_past

Ints = npt.NDArray[np.int32]


class _Rows(NamedTuple):
    """Bits of weights (outputs, 64-bit words), and their columns for the event-driven product."""

    rows: npt.NDArray[np.uint64]
    columns: WeightColumns


class _Block(NamedTuple):
    """Inputs that share a scale: the weights' planes, and where there is a synapse at all, for all delays side by side."""

    part: slice
    planes: list[_Rows]
    synapses: _Rows


class DelayedRun:
    """A layer with delays at work: the last steps' bits, and for every delay that occurs the synapses that have it.

    The bits of those steps lie side by side in one long row; in the same places of a weight's row its bits stand where the
    synapse has that delay and are 0 elsewhere, so that one popcount product gives what all delays let through.
    """

    def __init__(self, layer: PackedDelayed, batch: int, state: DelayState | None) -> None:
        self.layer, spec, kernel = layer, layer.spec, layer.kernel
        self.past = given_past(spec.name, (spec.max_delay, batch, words_for(spec.in_features)), state)
        delays = layer.delays()
        self.delays = [int(d) for d in delays.unique()]
        there = torch.stack([pack_bits(delays == d) for d in self.delays], 1)  # (outputs, delays, words)
        self.blocks: list[_Block] = []
        for lo in kernel.spec.starts:
            size = min(kernel.spec.block, spec.in_features - lo)
            part = slice(words_for(lo), words_for(lo + size))
            here = there[:, :, part]
            planes = [_rows(plane[:, None, part] & here) for plane in kernel.planes]
            self.blocks.append(_Block(part, planes, _rows(here)))
        self.steps = self.effective = 0

    def advance(self, words: Words) -> Currents:
        """Packed bits (t, B, words) -> currents (t, B, out_features)."""
        longest, steps = self.layer.spec.max_delay, len(words)
        extended = np.concatenate([self.past, words])
        late = np.stack([extended[longest - d : longest - d + steps] for d in self.delays], 2)
        y = self._current(late.reshape(-1, *late.shape[2:]))
        self.past = extended[steps:].copy()
        self.steps += steps
        return ready(y.reshape(*words.shape[:2], -1))

    def _current(self, late: Words) -> Floats:
        """Bits of every delay (M, delays, words) -> currents (M, outputs), rounded in the order of the model's."""
        kernel, spec = self.layer.kernel, self.layer.kernel.spec
        y = np.zeros((len(late), spec.out_features), np.float32)
        for k, block in enumerate(self.blocks):
            product, passed = self._product(late[:, :, block.part].reshape(len(late), -1), block)
            term = product.astype(np.float32) * as_numpy(kernel.scale[:, k])
            if kernel.offset is not None:
                term += passed.astype(np.float32) * as_numpy(kernel.offset[:, k])
            y = term if k == 0 else y + term
        return y if kernel.bias is None else y + as_numpy(kernel.bias)

    def _product(self, rows: Words, block: _Block) -> tuple[Ints, Ints]:
        """Rows of bits times the values of a block, and how many of the bits pass a synapse at all, each (M, outputs)."""
        spec, (factors, constant) = self.layer.kernel.spec, self.layer.kernel.spec.coefficients
        ones, wide = spikes_in(rows), wide_words(np.ascontiguousarray(rows))
        passed = _counts(wide, block.synapses, ones)
        product = np.int32(constant) * passed
        for j, (plane, factor) in enumerate(zip(block.planes, factors, strict=True)):
            counts = _counts(wide, plane, ones)
            product += np.int32(factor) * counts
            if spec.zeros and (spec.bits == 1 or j == len(factors) - 1):
                self.effective += int(counts.sum(dtype=np.int64))
        if not spec.zeros:
            self.effective += int(passed.sum(dtype=np.int64))
        return product, passed

    def state(self) -> DelayState:
        """The last steps' bits."""
        return DelayState(torch.from_numpy(self.past))

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec, rows = self.layer.spec, self.steps * self.past.shape[1]
        stored = sum(t.nbytes for t in (*self.layer.tensors().values(), *self.layer.kernel.tensors().values()))
        row = LayerCounts(
            spec.name,
            spec.kind,
            effective_synops=self.effective,
            bytes_moved=rows * len(self.delays) * words_for(spec.in_features) * WORD_BYTES + stored,
            path="delays",
        )
        return [row]


def _rows(words: Tensor) -> _Rows:
    """Bits (outputs, delays, words) as one row an output."""
    wide = wide_words(as_numpy(words.flatten(1).contiguous()))
    return _Rows(wide, weight_columns(wide))


def _counts(wide: npt.NDArray[np.uint64], rows: _Rows, ones: Ints) -> Ints:
    """popcount(s ∧ w) of every row of spikes with every row of weights, (M, outputs)."""
    out = np.empty((len(wide), len(rows.rows)), np.int32)
    binary_product_cpu(wide, rows.rows, rows.columns, ones, 1, np.zeros_like(ones), False, out)
    return out
