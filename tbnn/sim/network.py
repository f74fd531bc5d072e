"""A network of packed bits, and its simulation."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tbnn.bits import check_words, has_stray_bits, pack_bits, words_for
from tbnn.sim import file
from tbnn.sim.counts import Counts
from tbnn.sim.gpu.device import check_device
from tbnn.sim.layers import (
    PackedEdge,
    PackedIntegrator,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
    PackedSparse,
    Wire,
    check_order,
    inner_linear,
    outputs_of,
)
from tbnn.sim.stream import State, Stream, load_state

Neurons = Mapping[str, Sequence[int] | None]
"""Which neurons of which layers, by the layer's name; None for all of a layer."""


class SimulationResult(NamedTuple):
    """What :meth:`PackedNetwork.simulate` returns."""

    readout: Tensor | None
    """(T, B, C) float32: what left the last layer; None if that is spikes."""
    output_spikes: Tensor | None
    """The packed spikes of a last layer that spikes, int32 (T, B, words); None otherwise."""
    spikes: dict[str, Tensor]
    """Packed int32 (T, B, words) of each recorded layer, by the name it has in the model."""
    membranes: dict[str, Tensor]
    """float32 (T, B, neurons) of the neurons asked for, after each step, by layer."""
    counts: Counts
    """Operations, spikes and bytes."""
    state: State
    """One entry a packed layer (None for those without), to go on from."""


@dataclass(frozen=True, eq=False)
class PackedNetwork:
    """Layers of packed bits in order: binary weights, spiking neurons, and at the end possibly a readout.

    Attributes:
        layers: see :mod:`tbnn.sim.layers`.
        in_features: how many bits enter at each step.
        provenance: where it comes from: plain values that JSON can hold.
        output: what leaves the last layer: how many, and whether bits.

    Raises ``ValueError`` where the layers do not fit each other.
    """

    layers: tuple[PackedLayer, ...]
    in_features: int
    provenance: dict[str, Any] = field(default_factory=dict)
    output: Wire = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", check_order(self.layers, self.in_features))

    @property
    def linear_layers(self) -> list[PackedLinear | PackedSparse]:
        """Every layer of weights, feedback included."""
        return [inner for layer in self.layers if (inner := inner_linear(layer)) is not None]

    @property
    def spiking_layers(self) -> dict[str, PackedLeaky]:
        """The layers that spike, by name."""
        return {layer.spec.name: layer for layer in self.layers if isinstance(layer, PackedLeaky)}

    @property
    def weights(self) -> int:
        """The number of weights."""
        return sum(layer.spec.in_features * layer.spec.out_features for layer in self.linear_layers)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored a weight: planes with their padding, scales and offsets."""
        return 8 * self._weight_bytes / self.weights

    @property
    def _weight_bytes(self) -> int:
        return sum(
            tensor.nbytes for layer in self.linear_layers for key, tensor in layer.tensors().items() if key != "bias"
        )

    @property
    def packed_bytes(self) -> int:
        """The bytes of every stored tensor."""
        return sum(tensor.nbytes for tensor in file.all_tensors(self.layers).values())

    @property
    def float32_bytes(self) -> int:
        """The bytes of the same network with float32 weights (no scales or offsets; biases and neurons alike)."""
        return self.packed_bytes - self._weight_bytes + 4 * self.weights

    def save(self, path: str | Path) -> None:
        """Write a ``.tbnn`` file, whole or not at all; see :mod:`tbnn.sim.file`."""
        file.save(self.layers, self.in_features, self.provenance, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "PackedNetwork":
        """Read a ``.tbnn`` file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no such file, broken, or of a newer version; the message names it.
        """
        return file.load(Path(path), cls)

    def simulate(
        self,
        x: Tensor,
        *,
        device: str | torch.device = "cpu",
        record: Collection[str] = (),
        membranes: Neurons | None = None,
        state: State | None = None,
    ) -> SimulationResult:
        """Run the network from packed bits: equal, bit for bit, to the model it was packed from in evaluation.

        Weights and spikes stay packed throughout. Time goes in chunks, so memory does not grow with T except for what
        is returned. Only after a neuron with emit="denoised", whose constants were folded into the next layer, do
        currents differ from the model's, by rounding.

        Args:
            x: packed int32 words (T, B, ceil(in_features/32)), or frames of 0 and 1 (any other dtype)
                (T, B, features...), on the CPU or on ``device``. What is returned lies where x lies.
            device: "cpu", "cuda" or "cuda:N".
            record: whose spikes to keep besides the output: "spikes" for every spiking layer's, or names of layers.
            membranes: neurons whose membranes to keep, by layer: ``{"layers.1": [0, 7], "layers.3": None}``, None for all of a
                layer; of spiking layers and readouts, on the CPU.
            state: the ``state`` of an earlier result, to go on from; None means rest.

        Raises:
            ValueError: x of another width or with values other than 0 and 1, words with padding bits set, an empty
                sequence, a device that is not there or lacks Triton, an unknown record, layer or neuron, a state that does
                not fit.
            DeviceMemoryError: a GPU without room: the layer and the bytes it wanted.
        """
        self.check_input(x, check_device(device))
        with self.open_stream(x.shape[1], device=device, record=record, membranes=membranes, state=state) as stream:
            pushed, state_after = stream.push(x), stream.state
        spiking = self.output.bits
        return SimulationResult(
            readout=None if spiking else pushed.output,
            output_spikes=pushed.output if spiking else None,
            spikes=pushed.spikes,
            membranes=pushed.membranes,
            counts=stream.counts,
            state=state_after,
        )

    def open_stream(
        self,
        batch: int = 1,
        *,
        device: str | torch.device = "cpu",
        record: Collection[str] = (),
        membranes: Neurons | None = None,
        state: State | str | Path | None = None,
    ) -> Stream:
        """A simulation that goes on: push bits, take what leaves, any number of steps at a time.

        Args:
            batch: number of samples that run side by side.
            device, record, membranes: as for :meth:`simulate`.
            state: to go on from: the ``state`` of a stream or a result, or a file that :meth:`Stream.save_state` wrote.

        Raises:
            ValueError: a batch below 1, and as :meth:`simulate`; FileNotFoundError: no such file.
        """
        given = load_state(state, len(self.layers)) if isinstance(state, str | Path) else state
        place = check_device(device)
        spikes, watched = self._recorded(record), self._watched(membranes or {}, place)
        return Stream(self, batch, given, spikes=spikes, membranes=watched, device=place)

    def _recorded(self, record: Collection[str]) -> tuple[str, ...]:
        """The names of the layers whose spikes are kept."""
        known = tuple(self.spiking_layers)
        if isinstance(record, str) or not set(record) <= {"spikes", *known}:
            raise ValueError(f"simulate: record: expected names among {('spikes', *known)}, got {record!r}")
        return known if "spikes" in record else tuple(name for name in known if name in record)

    def _watched(self, membranes: Neurons, device: torch.device) -> dict[str, tuple[int, ...]]:
        """The neurons whose membranes are kept."""
        sizes = {
            layer.spec.name: layer.spec.features
            for layer in self.layers
            if isinstance(layer, PackedLeaky | PackedIntegrator)
        }
        if membranes and device.type != "cpu":
            raise ValueError(f"simulate: membranes: expected device 'cpu' to record them, got {str(device)!r}")
        watched: dict[str, tuple[int, ...]] = {}
        for name, neurons in membranes.items():
            if name not in sizes:
                raise ValueError(f"simulate: membranes: expected a layer among {', '.join(sizes)}, got {name!r}")
            chosen = tuple(range(sizes[name]) if neurons is None else neurons)
            if not all(isinstance(i, int) and 0 <= i < sizes[name] for i in chosen) or len(set(chosen)) < len(chosen):
                raise ValueError(
                    f"simulate: membranes of {name}: expected different neurons in [0, {sizes[name]}), got {list(chosen)}"
                )
            watched[name] = chosen
        return watched

    def check_input(self, x: Tensor, device: torch.device) -> None:
        """Raise ``ValueError`` unless x is packed words (T, B, words) or frames (T, B, features...), here or on ``device``."""
        if not isinstance(x, Tensor) or x.device.type not in ("cpu", device.type):
            places = "the CPU" if device.type == "cpu" else f"the CPU or {device}"
            raise ValueError(f"simulate: expected a tensor on {places}, got {getattr(x, 'device', type(x).__name__)}")
        packed = x.dtype == torch.int32
        if x.ndim < 3 or x.numel() == 0 or (packed and x.ndim != 3):
            raise ValueError(
                f"simulate: expected int32 words (T, B, {words_for(self.in_features)}) or frames (T, B, features...) "
                f"of 0 and 1, no axis empty, got {x.dtype} {tuple(x.shape)}"
            )
        if packed:
            check_words(x, self.in_features, "simulate")
        elif x[0, 0].numel() != self.in_features:
            raise ValueError(
                f"simulate: expected {self.in_features} values a frame, got {x[0, 0].numel()} (shape {tuple(x.shape)})"
            )

    @property
    def widest(self) -> int:
        """The most values that leave a layer at a step."""
        return max(outputs_of(layer) for layer in self.layers)

    @property
    def adds_currents(self) -> bool:
        """Whether a residual block adds currents up."""
        return any(isinstance(layer, PackedEdge) and layer.spec.op == "current" for layer in self.layers)

    def packed_words(self, x: Tensor) -> Tensor:
        """A chunk of the input as packed words, int32 (t, B, words), contiguous."""
        words = x if x.dtype == torch.int32 else pack_bits(x.flatten(2))
        if has_stray_bits(words, self.in_features):
            raise ValueError(f"simulate: a padding bit past the {self.in_features} inputs is set, expected 0")
        return words.contiguous()
