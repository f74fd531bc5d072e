"""Weights with a delay a synapse at work on a device."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tbnn.bits import pack_bits, words_for
from tbnn.ops.binary_linear.gpu import binary_product_gpu, count_rows_gpu
from tbnn.sim.counts import LayerCounts
from tbnn.sim.gpu.base import GpuRun
from tbnn.sim.gpu.linear import WORD_BYTES, kept_of
from tbnn.sim.layers import PackedDelayed
from tbnn.sim.run import DelayState
from tbnn.sim.run.wires import given_past


class _Block(NamedTuple):
    """Inputs that share a scale, the bits of all delays side by side in a row."""

    part: slice
    planes: Tensor
    """The weights' planes, and last where there is a synapse at all: (P + 1, N, delays·words)."""
    scale: Tensor  # (N,)
    offset: Tensor | None  # (N,)
    kept: Tensor
    """How many weights of each place are not 0, int32 (32·delays·words,)."""


class DelayedRun(GpuRun):
    """A layer with delays at work: as :class:`tbnn.sim.run.delayed.DelayedRun`, one product for all delays that occur."""

    carried: ClassVar[tuple[str, ...]] = ("past", "steps", "effective")

    def __init__(self, layer: PackedDelayed, batch: int, state: DelayState | None, device: torch.device) -> None:
        self.layer, spec, kernel = layer, layer.spec, layer.kernel
        past = given_past(spec.name, (spec.max_delay, batch, words_for(spec.in_features)), state)
        self.past = torch.from_numpy(past).to(device)
        delays = layer.delays()
        self.delays = [int(d) for d in delays.unique()]
        there = torch.stack([pack_bits(delays == d) for d in self.delays], 1)  # (outputs, delays, words)
        coefficients, constant = kernel.spec.coefficients
        self.factors = torch.tensor([*coefficients, constant], dtype=torch.int32, device=device)
        self.one = torch.ones(1, dtype=torch.int32, device=device)
        self.blocks: list[_Block] = []
        for k, lo in enumerate(kernel.spec.starts):
            part = slice(words_for(lo), words_for(min(lo + kernel.spec.block, spec.in_features)))
            here = there[:, :, part]
            planes = torch.stack([*(plane[:, None, part] & here for plane in kernel.planes), here]).flatten(2)
            kept = kept_of(planes[:-1], kernel.spec.bits) if kernel.spec.zeros else kept_of(planes, 8)
            scale, offset = (None if t is None else t[:, k].to(device) for t in (kernel.scale, kernel.offset))
            self.blocks.append(_Block(part, planes.to(device), scale, offset, kept.to(device)))  # pyright: ignore[reportArgumentType]
        self.bias = None if kernel.bias is None else kernel.bias.to(device)
        self.steps, self.effective = 0, torch.zeros((), dtype=torch.int64, device=device)

    def advance(self, words: Tensor) -> Tensor:
        """Packed bits (t, B, words) -> currents (t, B, out_features)."""
        longest, steps = self.layer.spec.max_delay, len(words)
        extended = torch.cat([self.past, words])
        late = torch.stack([extended[longest - d : longest - d + steps] for d in self.delays], 2)
        y = self._current(late.flatten(0, 1))
        self.past = extended[steps:].clone()
        self.steps += steps
        return y.unflatten(0, words.shape[:2])

    def _current(self, late: Tensor) -> Tensor:
        """Bits of every delay (M, delays, words) -> currents (M, outputs), rounded in the order of the model's."""
        y: Tensor | None = None
        for block in self.blocks:
            rows = late[:, :, block.part].flatten(1)
            product, _ = binary_product_gpu(rows, block.planes, self.factors, None)
            term = product.float() * block.scale
            if block.offset is not None:
                passed, _ = binary_product_gpu(rows, block.planes[-1:], self.one, None)
                term += passed.float() * block.offset
            y = term if y is None else y + term
            _, met = count_rows_gpu(rows, block.kept)
            if met is not None:
                self.effective = self.effective + met.sum()
        if y is None:
            raise RuntimeError(f"{self.layer.spec.name}: a layer of weights has at least one block")
        return y if self.bias is None else y + self.bias

    def state(self) -> DelayState:
        """The last steps' bits."""
        return DelayState(self.past.cpu())

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec, rows = self.layer.spec, self.steps * self.past.shape[1]
        stored = sum(t.nbytes for t in (*self.layer.tensors().values(), *self.layer.kernel.tensors().values()))
        row = LayerCounts(
            spec.name,
            spec.kind,
            effective_synops=int(self.effective),
            bytes_moved=rows * len(self.delays) * words_for(spec.in_features) * WORD_BYTES + stored,
            path="delays",
        )
        return [row]
