"""A network of packed bits, and its simulation."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import check_words, has_stray_bits, pack_bits, words_for
from tbnn.ops.kernels import as_numpy
from tbnn.sim import file
from tbnn.sim.counts import Counts
from tbnn.sim.layers import PackedLayer, PackedLeaky, PackedLinear, check_order
from tbnn.sim.run import LinearRun, NeuronState, run_chunk, spikes_in, start

# A chunk of time holds about this many currents of the widest layer: a few MB, whatever the length of the sequence.
CHUNK_VALUES = 1 << 20
RECORDS = ("spikes",)

State = tuple[NeuronState | None, ...]


class SimulationResult(NamedTuple):
    """What :meth:`PackedNetwork.simulate` returns."""

    readout: Tensor | None
    """(T, B, C) float32: what left the last layer; None if that is spikes."""
    output_spikes: Tensor | None
    """The packed spikes of a last layer that spikes, int32 (T, B, words); None otherwise."""
    spikes: dict[str, Tensor]
    """With record=("spikes",): packed int32 (T, B, words) of each spiking layer, by the name it has in the model."""
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

    Raises ``ValueError`` where the layers do not fit each other.
    """

    layers: tuple[PackedLayer, ...]
    in_features: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_order(self.layers, self.in_features)

    @property
    def linear_layers(self) -> list[PackedLinear]:
        """Every layer of weights, feedback included."""
        found: list[PackedLinear] = []
        for layer in self.layers:
            inner = layer.feedback if isinstance(layer, PackedLeaky) else layer
            if isinstance(inner, PackedLinear):
                found.append(inner)
        return found

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
        """Bits stored a weight: signs with their padding, scales and offsets."""
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
        state: State | None = None,
    ) -> SimulationResult:
        """Run the network from packed bits: equal, bit for bit, to the model it was packed from in evaluation.

        Weights and spikes stay packed throughout. Time goes in chunks, so memory does not grow with T except for what
        is returned. Only after a neuron with emit="denoised", whose constants were folded into the next layer, do
        currents differ from the model's, by rounding.

        Args:
            x: packed int32 words (T, B, ceil(in_features/32)), or frames of 0 and 1 (any other dtype)
                (T, B, features...).
            device: "cpu".
            record: what to keep besides the output: "spikes", those of every spiking layer.
            state: the ``state`` of an earlier result, to go on from; None means rest.

        Raises:
            ValueError: x of another width or with values other than 0 and 1, words with padding bits set, an empty
                sequence, another device, an unknown record, a state that does not fit.
        """
        self._check_request(x, device, record)
        steps, batch = x.shape[:2]
        if state is not None and len(state) != len(self.layers):
            raise ValueError(f"state: expected one entry for each of {len(self.layers)} layers, got {len(state)}")
        runs = start(self.layers, batch, state if state is not None else (None,) * len(self.layers))
        kept, input_spikes = self._outputs(steps, batch, bool(record)), 0
        chunk_steps = self._chunk_steps(batch)
        for lo in range(0, steps, chunk_steps):
            words = self._packed(x[lo : lo + chunk_steps])
            input_spikes += int(spikes_in(words).sum(dtype="int64"))
            out = run_chunk(runs, words)
            for name, whole in kept.items():
                whole[lo : lo + chunk_steps] = out[name]
        last, spiking = self.layers[-1].spec.name, isinstance(self.layers[-1], PackedLeaky)
        return SimulationResult(
            readout=None if spiking else torch.from_numpy(kept[last]),
            output_spikes=torch.from_numpy(kept[last]) if spiking else None,
            spikes={name: torch.from_numpy(kept[name]) for name in self.spiking_layers} if record else {},
            counts=Counts(steps, batch, input_spikes, tuple(row for run in runs for row in run.counts())),
            state=tuple(None if isinstance(run, LinearRun) else run.state() for run in runs),
        )

    def _outputs(self, steps: int, batch: int, with_spikes: bool) -> dict[str, npt.NDArray[Any]]:
        """Room for what is returned, by layer: the last layer's output, and every layer's spikes if recorded."""
        room: dict[str, npt.NDArray[Any]] = {}
        for layer in self.layers:
            last = layer is self.layers[-1]
            if isinstance(layer, PackedLeaky) and (last or with_spikes):
                room[layer.spec.name] = np.empty((steps, batch, words_for(layer.spec.features)), np.int32)
            elif last:
                size = layer.spec.out_features if isinstance(layer, PackedLinear) else layer.spec.features
                room[layer.spec.name] = np.empty((steps, batch, size), np.float32)
        return room

    def _check_request(self, x: Tensor, device: str | torch.device, record: Collection[str]) -> None:
        if str(device) != "cpu":
            raise ValueError(f"simulate: device: expected 'cpu', got {str(device)!r}")
        unknown = [name for name in ([record] if isinstance(record, str) else record) if name not in RECORDS]
        if unknown or isinstance(record, str):
            raise ValueError(f"simulate: record: expected names among {RECORDS}, got {record!r}")
        if not isinstance(x, Tensor) or x.device.type != "cpu":
            raise ValueError(f"simulate: expected a tensor on the CPU, got {getattr(x, 'device', type(x).__name__)}")
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

    def _chunk_steps(self, batch: int) -> int:
        widest = max(layer.spec.out_features for layer in self.linear_layers)
        return max(1, CHUNK_VALUES // (batch * widest))

    def _packed(self, x: Tensor) -> npt.NDArray[np.int32]:
        """A chunk of the input as packed words (t, B, words)."""
        words = x if x.dtype == torch.int32 else pack_bits(x.flatten(2))
        if has_stray_bits(words, self.in_features):
            raise ValueError(f"simulate: a padding bit past the {self.in_features} inputs is set, expected 0")
        return as_numpy(words)
