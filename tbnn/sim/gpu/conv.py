"""Convolutions and pooling at work on a device."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from tbnn.bits import words_for
from tbnn.ops.patches.gpu import bit_patches_gpu, or_pool2d_gpu
from tbnn.ops.patches.reference import Windows
from tbnn.sim.counts import LayerCounts
from tbnn.sim.gpu.base import GpuRun
from tbnn.sim.gpu.linear import WORD_BYTES, LinearRun, path_of
from tbnn.sim.layers import PackedConv, PackedPool

VALUES = 1 << 26  # products, currents or words of windows at a time: 256 MB of each


class ConvRun(GpuRun):
    """A convolution at work: windows laid out as rows of bits, times the kernel, group by group."""

    carried: ClassVar[tuple[str, ...]] = ("frames",)

    def __init__(self, layer: PackedConv, device: torch.device) -> None:
        self.layer, spec = layer, layer.spec
        self.frames, per_group = 0, spec.kernel.out_features // spec.groups
        top, _, left, _ = spec.margins
        self.windows = Windows(spec.window, spec.stride, spec.dilation, (top, left), spec.out_shape[1:])
        self.groups = [
            LinearRun(layer.kernel, device, slice(g * per_group, (g + 1) * per_group)) for g in range(spec.groups)
        ]

    def advance(self, words: Tensor) -> Tensor:
        """Packed frames (t, B, words) -> currents (t, B, out_features)."""
        flat = words.flatten(0, 1)
        return self.current(flat).unflatten(0, words.shape[:2])

    def current(self, frames: Tensor) -> Tensor:
        """Packed frames (M, words) -> currents (M, out_features)."""
        spec = self.layer.spec
        channels, rows, columns = spec.out_shape
        y = torch.empty((len(frames), channels, rows * columns), device=frames.device)
        a_frame = rows * columns * max(channels, spec.groups * words_for(spec.kernel.in_features))
        together = max(1, VALUES // a_frame)
        for lo in range(0, len(frames), together):
            self._multiply(frames[lo : lo + together], y[lo : lo + together])
        self.frames += len(frames)
        return y.flatten(1)

    def _multiply(self, frames: Tensor, y: Tensor) -> None:
        """Frames (M, words) times the kernel -> y (M, channels, pixels)."""
        spec, start = self.layer.spec, 0
        shape = (spec.channels, spec.height, spec.width)
        windows = bit_patches_gpu(frames, shape, self.windows, spec.groups).flatten(1, 2)  # (M, pixels, groups, words)
        for g, run in enumerate(self.groups):
            currents = run.current(windows[:, :, g].flatten(0, 1)).unflatten(0, windows.shape[:2])
            y[:, start : start + run.outputs] = currents.transpose(1, 2)
            start += run.outputs

    def snapshot(self) -> dict[str, Any]:
        """As any, and the groups'."""
        return super().snapshot() | {"groups": [run.snapshot() for run in self.groups]}

    def restore(self, kept: dict[str, Any]) -> None:
        """As any, and the groups'."""
        super().restore({name: kept[name] for name in self.carried})
        for run, own in zip(self.groups, kept["groups"], strict=True):
            run.restore(own)

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        stored = sum(tensor.nbytes for tensor in self.layer.kernel.tensors().values())
        ways: dict[str, int] = {}
        for run in self.groups:
            ways = {way: ways.get(way, 0) + run.ways.get(way, 0) for way in {**ways, **run.ways}}
        row = LayerCounts(
            spec.name,
            spec.kind,
            effective_synops=sum(int(run.effective) for run in self.groups),
            bytes_moved=self.frames * words_for(spec.in_features) * WORD_BYTES + stored,
            path=path_of(ways),
        )
        return [row]


class PoolRun(GpuRun):
    """OR over windows."""

    carried: ClassVar[tuple[str, ...]] = ("frames",)

    def __init__(self, layer: PackedPool) -> None:
        self.layer, self.frames, spec = layer, 0, layer.spec
        self.windows = Windows(spec.window, spec.stride, (1, 1), spec.padding, spec.out_shape[1:])

    def advance(self, words: Tensor) -> Tensor:
        """Packed frames (t, B, words) -> packed frames of the windows."""
        spec, flat = self.layer.spec, words.flatten(0, 1)
        pooled = or_pool2d_gpu(flat, (spec.channels, spec.height, spec.width), self.windows)
        self.frames += len(flat)
        return pooled.unflatten(0, words.shape[:2])

    def counts(self) -> list[LayerCounts]:
        """One row."""
        spec = self.layer.spec
        moved = self.frames * (words_for(spec.in_features) + words_for(spec.out_features)) * WORD_BYTES
        return [LayerCounts(spec.name, spec.kind, bytes_moved=moved)]
