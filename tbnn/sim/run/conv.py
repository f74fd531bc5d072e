"""Convolutions and pooling at work."""

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import pack_bits, words_for
from tbnn.ops.binary_conv import binary_conv2d
from tbnn.ops.kernels import as_numpy
from tbnn.ops.or_pool import or_pool2d
from tbnn.ops.patches import bit_patches
from tbnn.sim import cpu
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedConv, PackedPool
from tbnn.sim.run.linear import LinearRun, way_taken
from tbnn.sim.run.state import NOTHING, WORD_BYTES, Floats, Words

WINDOW_WORDS = 1 << 22  # of windows at a time: 16 MB
OUTPUTS = 1 << 22  # integer products at a time: 16 MB


class ConvRun:
    """A convolution at work.

    With one block a row and one group the kernel slides over the packed frames; otherwise the windows are laid out as rows of
    bits and multiplied group by group.
    """

    def __init__(self, layer: PackedConv) -> None:
        self.layer, spec = layer, layer.spec
        per_group = spec.kernel.out_features // spec.groups
        self.frames = self.effective = 0
        self.slides = spec.groups == 1 and len(spec.kernel.starts) == 1
        groups = range(0 if self.slides else spec.groups)
        self.groups = [LinearRun(layer.kernel, slice(g * per_group, (g + 1) * per_group)) for g in groups]
        # One more row of +1: its product is the number of spikes under the window.
        ones = pack_bits(torch.ones(1, spec.kernel.in_features, dtype=torch.bool))
        self.planes = [torch.cat([plane, ones]) for plane in layer.kernel.planes] if self.slides else []

    def advance(self, words: Words) -> Floats:
        """Packed frames (t, B, words) -> currents (t, B, out_features)."""
        spec, flat = self.layer.spec, words.reshape(-1, words.shape[-1])
        channels, rows, columns = spec.out_shape
        out = np.empty((len(flat), channels, rows * columns), np.float32)
        row_words = words_for(spec.kernel.in_features)
        costs = (channels + 1) * rows * columns if self.slides else rows * columns * spec.groups * row_words
        together = max(1, (OUTPUTS if self.slides else WINDOW_WORDS) // costs)
        for lo in range(0, len(flat), together):
            part = torch.from_numpy(np.ascontiguousarray(flat[lo : lo + together]))
            (self._slide if self.slides else self._lay_out)(part, out[lo : lo + together])
        self.frames += len(flat)
        return out.reshape(*words.shape[:2], -1)

    def _options(self) -> dict[str, object]:
        spec = self.layer.spec
        top, bottom, left, right = spec.margins
        return {"stride": spec.stride, "padding": ((top, bottom), (left, right)), "dilation": spec.dilation}

    def _slide(self, frames: Tensor, out: Floats) -> None:
        """The kernel over packed frames (M, words) -> out (M, channels, pixels)."""
        spec, kernel = self.layer.spec, self.layer.kernel
        shape = (spec.channels, spec.height, spec.width)
        signed = [
            binary_conv2d(frames, plane, shape, spec.window, **self._options()).flatten(2).numpy()  # pyright: ignore[reportArgumentType]
            for plane in self.planes
        ]
        totals = np.ascontiguousarray(signed[0][:, -1])
        product = self._combined([plane[:, :-1] for plane in signed], totals)
        scale = as_numpy(kernel.scale[:, 0])
        offset = NOTHING if kernel.offset is None else as_numpy(kernel.offset[:, 0])
        bias = NOTHING if kernel.bias is None else as_numpy(kernel.bias)
        cpu.scale_channels(product, totals, scale, offset, bias, out, work=out.size)

    def _combined(self, signed: list[np.ndarray], totals: np.ndarray) -> np.ndarray:
        """``Σ_j c_j·popcount(s ∧ P_j) + c·popcount(s)`` from ``2·popcount(s ∧ P_j) − popcount(s)``, (M, channels, pixels)."""
        spec = self.layer.spec.kernel
        if not spec.zeros:
            self.effective += int(totals.sum(dtype=np.int64)) * spec.out_features
            if len(signed) == 1:
                return signed[0]
        factors, constant = spec.coefficients
        product = np.broadcast_to(constant * totals[:, None], signed[0].shape).copy()
        for j, (plane, factor) in enumerate(zip(signed, factors, strict=True)):
            counts = (plane + totals[:, None]) >> 1
            if spec.zeros and (spec.bits == 1 or j == len(factors) - 1):
                self.effective += int(counts.sum(dtype=np.int64))
            product += factor * counts
        return product

    def _lay_out(self, frames: Tensor, out: Floats) -> None:
        """The windows as rows of bits, times the kernel, group by group."""
        spec = self.layer.spec
        shape = (spec.channels, spec.height, spec.width)
        windows = bit_patches(frames, shape, spec.window, groups=spec.groups, **self._options())  # pyright: ignore[reportArgumentType]
        patches = windows.flatten(1, 2).numpy()  # (M, pixels, groups, words)
        per_group = spec.kernel.out_features // spec.groups
        for g, run in enumerate(self.groups):
            rows = np.ascontiguousarray(patches[:, :, g])
            y = run.current(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:2], per_group)
            out[:, g * per_group : (g + 1) * per_group] = y.transpose(0, 2, 1)

    def state(self) -> None:
        """Weights carry nothing."""
        return

    def _way(self) -> str:
        if self.slides:
            return "windows"
        return way_taken({name: sum(run.ways[name] for run in self.groups) for name in ("dense", "events")})

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        _, rows, columns = spec.out_shape
        stored = sum(tensor.nbytes for tensor in self.layer.kernel.tensors().values())
        effective = self.effective + sum(run.effective for run in self.groups)
        dense = self.frames * rows * columns * spec.kernel.in_features * spec.kernel.out_features
        read = self.frames * words_for(spec.in_features) * WORD_BYTES
        row = LayerCounts(
            spec.name,
            spec.kind,
            dense_synops=dense,
            effective_synops=effective,
            bytes_moved=read + stored,
            path=self._way(),
        )
        return [row]


class PoolRun:
    """OR over windows."""

    def __init__(self, layer: PackedPool) -> None:
        self.layer, self.frames = layer, 0

    def advance(self, words: Words) -> Words:
        """Packed frames (t, B, words) -> packed frames of the windows."""
        spec, flat = self.layer.spec, torch.from_numpy(np.ascontiguousarray(words.reshape(-1, words.shape[-1])))
        shape = (spec.channels, spec.height, spec.width)
        pooled = or_pool2d(flat, shape, spec.window, stride=spec.stride, padding=spec.padding)
        self.frames += len(flat)
        return pooled.numpy().reshape(*words.shape[:2], -1)

    def state(self) -> None:
        """It carries nothing."""
        return

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        moved = self.frames * (words_for(spec.in_features) + words_for(spec.out_features)) * WORD_BYTES
        return [LayerCounts(spec.name, spec.kind, bytes_moved=moved)]
