"""What a simulation cost: operations, spikes and bytes, layer by layer."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tbnn.sim.layers import ConvSpec, DelayedSpec, LinearSpec, PackedLayer, PackedLeaky, SparseSpec, Spec

SUMS = ("dense_synops", "effective_synops", "scale_multiplies", "spikes", "neuron_updates", "bytes_moved")


@dataclass(frozen=True)
class LayerCounts:
    """The work of one layer over all steps and samples.

    Attributes:
        name, kind: the layer; a recurrent layer's feedback is a layer of its own.
        dense_synops: T·B·synapses, what a network without spikes would do.
        effective_synops: spikes that meet a weight other than 0, what an event-driven machine does. A spike and a weight of
            few bits take no multiplication: these are accumulations.
        scale_multiplies: multiplications by a scale or an offset, one for each of them that an output has and each step; what
            the synaptic operations of real-valued weights would have hidden in every one of them.
        spikes: spikes that left the layer.
        neuron_updates: T·B·neurons.
        bytes_moved: a linear layer reads its packed input words each step, and its planes, scales, offsets and bias once
            a call; a spiking layer writes its packed output words; a readout writes 4 bytes a value. Currents and
            membranes, which stay in the working buffer of one chunk of time, are not counted.
        firing_rate: spikes / neuron_updates; None where nothing can spike.
        path: of weights: which product ran. On the CPU "dense" (popcounts), "events" (columns of the inputs that spiked),
            "windows" (the kernel slid over the frames), "lists" or "delays"; on a GPU "popcount", "int8" (tensor cores) or
            "fused" (weights and neurons in one kernel); or how often each.
    """

    name: str
    kind: str
    dense_synops: int = 0
    effective_synops: int = 0
    scale_multiplies: int = 0
    spikes: int = 0
    neuron_updates: int = 0
    bytes_moved: int = 0
    firing_rate: float | None = None
    path: str = ""


@dataclass(frozen=True)
class Counts:
    """The work of a whole simulation: ``layers`` in order, over ``steps`` steps of ``batch`` samples."""

    steps: int
    batch: int
    input_spikes: int
    layers: tuple[LayerCounts, ...]

    @property
    def total(self) -> LayerCounts:
        """All layers added up; the firing rate is that of the neurons that can spike."""
        sums = {key: sum(getattr(layer, key) for layer in self.layers) for key in SUMS}
        spiking = sum(layer.neuron_updates for layer in self.layers if layer.firing_rate is not None)
        return LayerCounts(
            "total", "network", **sums, path="", firing_rate=sums["spikes"] / spiking if spiking else None
        )

    def table(self) -> list[dict[str, Any]]:
        """One plain row a layer, and the total last."""
        return [asdict(row) for row in (*self.layers, self.total)]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "steps": self.steps,
            "batch": self.batch,
            "input_spikes": self.input_spikes,
            "layers": [asdict(layer) for layer in self.layers],
            "total": asdict(self.total),
        }


def completed(layers: Iterable[PackedLayer], counts: Counts) -> Counts:
    """Counts with all that follows from the layers' sizes alone filled in: dense_synops and scale_multiplies.

    Raises ``ValueError`` for counts of another network.
    """
    specs, runs = specs_of(layers, counts), counts.steps * counts.batch
    rows = (
        replace(
            row,
            dense_synops=runs * synapses(specs[row.name]),
            scale_multiplies=runs * scale_multiplies(specs[row.name]),
        )
        for row in counts.layers
    )
    return replace(counts, layers=tuple(rows))


def specs_of(layers: Iterable[PackedLayer], counts: Counts) -> dict[str, Spec]:
    """The spec of each row of ``counts``, by its name. Raises ``ValueError`` for counts of another network."""
    specs: dict[str, Spec] = {}
    for layer in layers:
        specs[layer.spec.name] = layer.spec
        if isinstance(layer, PackedLeaky) and layer.feedback is not None:
            specs[layer.feedback.spec.name] = layer.feedback.spec
    for row in counts.layers:
        if row.name not in specs or specs[row.name].kind != row.kind:
            raise ValueError(
                f"counts: expected those of this network, {', '.join(specs)}, got a {row.kind} called {row.name}"
            )
    return specs


def synapses(spec: Spec) -> int:
    """Synapses of a layer, each one operation a step and sample: inputs × outputs, zeros included.

    A convolution has one for each weight of each window, those that lie outside the frame left out. Layers without weights
    have none.
    """
    kernel = kernel_of(spec)
    if kernel is None:
        return 0
    if not isinstance(spec, ConvSpec):
        return kernel.in_features * kernel.out_features
    top, _, left, _ = spec.margins
    _, rows, columns = spec.out_shape
    vertical = _inside(spec.height, spec.window[0], spec.stride[0], spec.dilation[0], top, rows)
    horizontal = _inside(spec.width, spec.window[1], spec.stride[1], spec.dilation[1], left, columns)
    return vertical * horizontal * spec.channels // spec.groups * kernel.out_features


def scale_multiplies(spec: Spec) -> int:
    """Multiplications by scales and offsets, a step and sample: one for each block of an output, and each offset."""
    kernel = kernel_of(spec)
    if kernel is None:
        return 0
    outputs = spec.out_features if isinstance(spec, ConvSpec) else kernel.out_features
    blocks = len(kernel.starts) if isinstance(kernel, LinearSpec) else 1
    return outputs * blocks * (1 + kernel.offset)


def kernel_of(spec: Spec) -> LinearSpec | SparseSpec | None:
    """The weights of a layer, if it has any of its own."""
    if isinstance(spec, ConvSpec | DelayedSpec):
        return spec.kernel
    return spec if isinstance(spec, LinearSpec | SparseSpec) else None


def _inside(size: int, window: int, stride: int, dilation: int, before: int, outputs: int) -> int:
    """Along one axis: how many of all windows' positions lie inside the frame."""
    positions = np.arange(outputs)[:, None] * stride + np.arange(window) * dilation - before
    return int(((positions >= 0) & (positions < size)).sum())
