"""A packed network that runs on and on: bits pushed in, outputs taken out, memory that does not grow with time."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tbnn.files import replacing
from tbnn.ops.lif import LifState
from tbnn.sim.counts import Counts, LayerCounts, completed
from tbnn.sim.engine import CpuEngine, GpuEngine, Watched
from tbnn.sim.run import DelayState, NeuronState, State, count_spikes

if TYPE_CHECKING:
    from tbnn.sim.network import PackedNetwork

# A chunk of time holds about this many bits of the widest layer, a few MB however many steps are pushed.
CHUNK_VALUES = 1 << 26
ON_DEVICE = 4  # times as many on a GPU, where every chunk launches every kernel once more


class Pushed(NamedTuple):
    """What :meth:`Stream.push` returns."""

    output: Tensor
    """What left the last layer in these steps: float32 (t, B, C), or packed spikes int32 (t, B, words)."""
    spikes: dict[str, Tensor]
    """Packed int32 (t, B, words) of each recorded layer."""
    membranes: dict[str, Tensor]
    """float32 (t, B, neurons) of the neurons asked for, after each step, by layer."""


class Stream:
    """A network at work on ``batch`` samples, as :meth:`PackedNetwork.open_stream` opens it.

    Any number of steps at a time gives what all of them at once would. Use it in a ``with`` block, or close it.

    Attributes:
        batch: number of samples.
        steps: how many steps were pushed.

    >>> from tbnn.nn import BinaryLinear, Leaky, Network
    >>> from tbnn.sim import pack
    >>> with pack(Network([BinaryLinear(8, 16), Leaky(0.9)])).open_stream(batch=1) as stream:
    ...     stream.push(torch.ones(3, 1, 8)).output.shape, stream.push(torch.ones(1, 1, 8)).output.shape, stream.steps
    (torch.Size([3, 1, 1]), torch.Size([1, 1, 1]), 4)
    """

    def __init__(
        self,
        network: "PackedNetwork",
        batch: int,
        state: State | None = None,
        *,
        spikes: tuple[str, ...] = (),
        membranes: Watched | None = None,
        device: torch.device | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self.network, self.batch = network, batch
        self._spikes, self._watched = spikes, membranes or {}
        self.steps = self._input_spikes = 0
        layers = network.layers
        if state is not None and len(state) != len(layers):
            raise ValueError(f"state: expected one entry for each of {len(layers)} layers, got {len(state)}")
        self._given: State = state if state is not None else (None,) * len(layers)
        self._rows: tuple[LayerCounts, ...] = ()  # of a stream that was closed
        self._engine: CpuEngine | GpuEngine | None
        if device is None or device.type == "cpu":
            self._engine = CpuEngine(layers, batch, self._given, self._watched)
        else:
            self._engine = GpuEngine(layers, batch, self._given, device)

    def push(self, x: Tensor) -> Pushed:
        """Advance by some steps: packed words (t, B, words), or frames of 0 and 1 (t, B, features...).

        What it returns lies where x lies.

        Raises ``ValueError`` as :meth:`PackedNetwork.simulate`, for another batch, and for a stream that is closed, and
        :class:`tbnn.sim.DeviceMemoryError` for a GPU without room; the stream is then as it was.
        """
        engine, network = self._open("push"), self.network
        network.check_input(x, engine.device)
        if x.shape[1] != self.batch:
            raise ValueError(f"push: expected a batch of {self.batch}, got {x.shape[1]} (shape {tuple(x.shape)})")
        # Where currents meet they are values, not bits, for a while.
        room = CHUNK_VALUES // 8 if network.adds_currents else CHUNK_VALUES
        room *= 1 if engine.device.type == "cpu" else ON_DEVICE
        together = max(1, room // (self.batch * network.widest))
        for lo in range(together, len(x), together):
            network.packed_words(x[lo : lo + together])  # checks the later chunks before the first one moves the state
        last = network.layers[-1].spec.name
        whole = _Kept(len(x), x.device)
        before, spikes = engine.snapshot(), 0
        try:
            for lo in range(0, len(x), together):
                words = network.packed_words(x[lo : lo + together])
                spikes += count_spikes(words.cpu().numpy())
                out = engine.chunk(words.to(engine.device))
                parts = {name: out[name] for name in (*self._spikes, last)}
                whole.put(lo, parts | {f"membranes of {n}": v for n, v in engine.membranes().items()})
        except BaseException:
            engine.restore(before)
            raise
        self.steps += len(x)
        self._input_spikes += spikes
        kept = whole.tensors
        return Pushed(
            kept[last],
            {name: kept[name] for name in self._spikes},
            {name: kept[f"membranes of {name}"] for name in self._watched},
        )

    @property
    def state(self) -> State:
        """What is carried to the next step, copied: one entry a layer, None for those without."""
        engine = self._open("state")
        if self.steps == 0:  # before the first step a neuron rests, which is not the same as membranes of 0
            return self._given
        return tuple(_copied(entry) for entry in engine.state())

    @property
    def counts(self) -> Counts:
        """The work of all steps so far; also of a stream that is closed."""
        rows = self._rows if self._engine is None else self._engine.counts()
        return completed(self.network.layers, Counts(self.steps, self.batch, self._input_spikes, rows))

    def save_state(self, path: str | Path) -> None:
        """Write the state to a safetensors file, whole or not at all; :meth:`PackedNetwork.open_stream` takes it back."""
        tensors = state_tensors(self.state)
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"batch": str(self.batch), "layers": str(len(self.network.layers))})

    def close(self) -> None:
        """Let go of the memory. Raises ``ValueError`` when it is closed already."""
        self._rows, self._engine = self._open("close").counts(), None

    def _open(self, what: str) -> CpuEngine | GpuEngine:
        if self._engine is None:
            raise ValueError(f"{what}: expected an open stream, this one is closed")
        return self._engine

    def __enter__(self) -> "Stream":
        self._open("with")
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self.close()


class _Kept:
    """Tensors of ``steps`` steps on a device, filled chunk by chunk."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        self.tensors: dict[str, Tensor] = {}

    def put(self, lo: int, parts: dict[str, Tensor]) -> None:
        """Parts (t, ...) of the steps from ``lo`` on."""
        for name, part in parts.items():
            if len(part) == self.steps:
                self.tensors[name] = part.to(self.device)
                continue
            if name not in self.tensors:
                self.tensors[name] = torch.empty((self.steps, *part.shape[1:]), dtype=part.dtype, device=self.device)
            self.tensors[name][lo : lo + len(part)] = part


def _copied(state: NeuronState | DelayState | None) -> NeuronState | DelayState | None:
    if state is None:
        return None
    if isinstance(state, DelayState):
        return DelayState(state.past.clone())
    cell = None if state.cell is None else LifState._make(None if t is None else t.clone() for t in state.cell)
    return NeuronState(state.v.clone(), None if state.spikes is None else state.spikes.clone(), cell)


def state_tensors(state: State) -> dict[str, Tensor]:
    """The tensors of a state by name: "3.v", "3.spikes", "3.cell.w"."""
    tensors: dict[str, Tensor] = {}
    for index, entry in enumerate(state):
        if entry is None:
            continue
        if isinstance(entry, DelayState):
            tensors[f"{index}.past"] = entry.past.contiguous().clone()
            continue
        cell = {} if entry.cell is None else {f"cell.{key}": value for key, value in entry.cell._asdict().items()}
        parts = {"v": entry.v, "spikes": entry.spikes, **cell}
        tensors |= {f"{index}.{key}": value.contiguous().clone() for key, value in parts.items() if value is not None}
    return tensors


def load_state(path: str | Path, layers: int) -> State:
    """A state that :meth:`Stream.save_state` wrote. Raises ``FileNotFoundError``, or ``ValueError`` that names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected the state of a stream, got a file that fails: {error}") from None
    entries: list[NeuronState | DelayState | None] = []
    for index in range(layers):
        own = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{index}.")}
        if own.keys() == {"past"}:
            entries.append(DelayState(own["past"]))
            continue
        cell = {key.removeprefix("cell."): own.pop(key) for key in list(own) if key.startswith("cell.")}
        if not own.keys() <= {"v", "spikes"} or not cell.keys() <= set(LifState._fields) or (own and "v" not in own):
            raise ValueError(f"{path}: expected the state of a stream, got the tensors {', '.join(sorted(tensors))}")
        entries.append(NeuronState(own["v"], own.get("spikes"), LifState(**cell) if cell else None) if own else None)
    if any(int(key.split(".", 1)[0]) >= layers for key in tensors if key.split(".", 1)[0].isdigit()):
        raise ValueError(f"{path}: expected the state of {layers} layers, got one of more")
    return tuple(entries)
