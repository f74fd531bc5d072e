"""Convolutions and pooling at work."""

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import wide_words, words_for
from tbnn.ops.binary_conv import ConvProducts
from tbnn.ops.kernels import as_numpy
from tbnn.ops.or_pool import or_pool2d
from tbnn.ops.packed_lif.conv import band_of, packed_conv_scan
from tbnn.ops.packed_lif.cpu import NO_VALUES, Drive, Neurons, drive_of
from tbnn.ops.patches import bit_patches
from tbnn.ops.patches.reference import windows_over
from tbnn.sim.counts import LayerCounts
from tbnn.sim.layers import PackedConv, PackedPool
from tbnn.sim.run.currents import Currents, Room
from tbnn.sim.run.linear import LinearRun, way_taken
from tbnn.sim.run.state import NOTHING, WORD_BYTES, Floats, Words

WINDOW_WORDS = 1 << 22  # of windows at a time: 16 MB


class ConvRun:
    """A convolution at work.

    With one block a row the kernel slides over the packed frames, and where the pixels of a channel fill whole words it takes
    plain neurons along; otherwise the windows are laid out as rows of bits and multiplied group by group.
    """

    def __init__(self, layer: PackedConv) -> None:
        self.layer, spec, kernel = layer, layer.spec, layer.kernel
        per_group = spec.kernel.out_features // spec.groups
        self.frames = self.effective = 0
        self.shape = spec.channels, spec.height, spec.width
        top, bottom, left, right = spec.margins
        self.options = {"stride": spec.stride, "padding": ((top, bottom), (left, right)), "dilation": spec.dilation}
        windows = windows_over(spec.name, self.shape, spec.window, *self.options.values())  # pyright: ignore[reportArgumentType]
        self.slides = len(spec.kernel.starts) == 1
        groups = range(0 if self.slides else spec.groups)
        self.groups = [LinearRun(kernel, slice(g * per_group, (g + 1) * per_group)) for g in groups]
        self.products = ConvProducts(
            self.shape, windows, spec.groups, as_numpy(kernel.planes), *spec.kernel.coefficients
        )
        self.scale = as_numpy(kernel.scale[:, 0])
        self.offset = NOTHING if kernel.offset is None else as_numpy(kernel.offset[:, 0])
        self.bias = NOTHING if kernel.bias is None else as_numpy(kernel.bias)
        self.band = band_of(*spec.out_shape[1:]) if self.slides else 0
        self.room, self.totals = Room(), Room()

    def advance(self, words: Words) -> Currents:
        """Packed frames (t, B, words) -> currents (t, B, out_features)."""
        drive = self._slide if self.slides else self._lay_out
        shape = (*words.shape[:2], self.layer.spec.out_features)
        scan = (lambda neurons, v: self._scan(words, neurons, v)) if self.band else None
        return Currents(shape, lambda steps, samples: drive(np.ascontiguousarray(words[steps, samples])), scan)

    def _scan(self, words: Words, neurons: Neurons, v: Floats) -> Words:
        """Packed frames (t, B, words) through the kernel and plain neurons: packed spikes."""
        spec, (steps, batch, _) = self.layer.spec, words.shape
        out = np.empty((steps, batch, words_for(spec.out_features)), np.int32)
        met = np.empty((batch, -(-spec.out_shape[1] // self.band), 2), np.int64)
        packed_conv_scan(
            wide_words(words), self.products.kernel(self.band), self.scale, self.offset, self.bias, neurons, v,
 out.view(np.uint32), met, work=self.products.work(steps * v.size),
        )  # fmt: skip
        self._count(steps * batch, int(met[..., 0].sum()), int(met[..., 1].sum()))
        return out

    def _count(self, frames: int, met: int, spikes: int) -> None:
        """Note frames, the spikes that met a weight, and the spikes under all windows."""
        spec = self.layer.spec
        self.frames += frames
        self.effective += met if spec.kernel.zeros else spikes * (spec.kernel.out_features // spec.groups)

    def _slide(self, words: Words) -> Drive:
        """The kernel over packed frames (t, b, words)."""
        spec, (steps, batch, _) = self.layer.spec, words.shape
        channels, rows, columns = spec.out_shape
        frames, pixels = words.reshape(steps * batch, -1), rows * columns
        product = self.room.take((len(frames), channels, pixels))
        totals = self.totals.take((len(frames), spec.groups, pixels))
        met = self.products.fill(frames, product, totals)
        self._count(len(frames), met, int(totals.sum(dtype=np.int64)))
        shaped = product.reshape(steps, batch, -1), totals.reshape(steps, batch, -1)
        return Drive(*shaped, self.scale, self.offset, self.bias, NO_VALUES)

    def _lay_out(self, words: Words) -> Drive:
        """The windows as rows of bits, times the kernel, group by group, a few frames (t, b, words) at a time."""
        spec, frames = self.layer.spec, words.reshape(-1, words.shape[-1])
        channels, rows, columns = spec.out_shape
        out = np.empty((len(frames), channels, rows * columns), np.float32)
        together = max(1, WINDOW_WORDS // (rows * columns * spec.groups * words_for(spec.kernel.in_features)))
        for lo in range(0, len(frames), together):
            some = torch.from_numpy(frames[lo : lo + together])
            self._multiply(
                bit_patches(some, self.shape, spec.window, groups=spec.groups, **self.options), out[lo : lo + together]
            )  # pyright: ignore[reportArgumentType]
        self.frames += len(frames)
        return drive_of(out.reshape(*words.shape[:2], -1))

    def _multiply(self, windows: Tensor, out: Floats) -> None:
        """Windows (M, OH, OW, groups, words) times the kernel: out (M, channels, pixels)."""
        patches = windows.flatten(1, 2).numpy()  # (M, pixels, groups, words)
        for g, run in enumerate(self.groups):
            rows = np.ascontiguousarray(patches[:, :, g])
            y = run.current(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:2], run.outputs)
            out[:, g * run.outputs : (g + 1) * run.outputs] = y.transpose(0, 2, 1)

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
        stored = sum(tensor.nbytes for tensor in self.layer.kernel.tensors().values())
        effective = self.effective + sum(run.effective for run in self.groups)
        read = self.frames * words_for(spec.in_features) * WORD_BYTES
        row = LayerCounts(
            spec.name,
            spec.kind,
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
