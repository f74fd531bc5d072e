"""What a simulation cost: operations, spikes and bytes, layer by layer."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerCounts:
    """The work of one layer over all steps and samples.

    Attributes:
        name, kind: the layer; a recurrent layer's feedback is a layer of its own.
        dense_synops: T·B·inputs·outputs, what a network without spikes would do.
        effective_synops: input spikes × outputs, what an event-driven machine does.
        spikes: spikes that left the layer.
        neuron_updates: T·B·neurons.
        bytes_moved: a linear layer reads its packed input words each step, and its planes, scales, offsets and bias once
            a call; a spiking layer writes its packed output words; a readout writes 4 bytes a value. Currents and
            membranes, which stay in the working buffer of one chunk of time, are not counted.
        firing_rate: spikes / neuron_updates; None where nothing can spike.
        path: of weights: which product ran, "dense" (popcounts), "events" (columns of the inputs that spiked), "windows" (the
            kernel slid over the frames), or how often each.
    """

    name: str
    kind: str
    dense_synops: int = 0
    effective_synops: int = 0
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
        sums = {
            key: sum(getattr(layer, key) for layer in self.layers)
            for key in ("dense_synops", "effective_synops", "spikes", "neuron_updates", "bytes_moved")
        }
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
