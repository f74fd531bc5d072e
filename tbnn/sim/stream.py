"""A packed network that runs on and on: bits pushed in, outputs taken out, memory that does not grow with time."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tbnn.files import replacing
from tbnn.ops.lif import LifState
from tbnn.sim.counts import Counts
from tbnn.sim.run import DelayState, NeuronState, State, run_chunk, spikes_in, start

if TYPE_CHECKING:
    from tbnn.sim.network import PackedNetwork

# A chunk of time holds about this many values of the widest layer: a few MB, however many steps are pushed.
CHUNK_VALUES = 1 << 20


class Pushed(NamedTuple):
    """What :meth:`Stream.push` returns."""

    output: Tensor
    """What left the last layer in these steps: float32 (t, B, C), or packed spikes int32 (t, B, words)."""
    spikes: dict[str, Tensor]
    """With record=("spikes",): packed int32 (t, B, words) of each spiking layer."""


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
        self, network: "PackedNetwork", batch: int, state: State | None = None, *, spikes: bool = False
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self.network, self.batch, self._record = network, batch, spikes
        self.steps = self._input_spikes = 0
        layers = network.layers
        if state is not None and len(state) != len(layers):
            raise ValueError(f"state: expected one entry for each of {len(layers)} layers, got {len(state)}")
        self._given: State = state if state is not None else (None,) * len(layers)
        self._runs = start(layers, batch, self._given)
        self._closed = False

    def push(self, x: Tensor) -> Pushed:
        """Advance by some steps: packed words (t, B, words), or frames of 0 and 1 (t, B, features...).

        Raises ``ValueError`` as :meth:`PackedNetwork.simulate`, for another batch, and for a stream that is closed; the
        stream is then as it was.
        """
        self._check_open("push")
        self.network.check_input(x)
        if x.shape[1] != self.batch:
            raise ValueError(f"push: expected a batch of {self.batch}, got {x.shape[1]} (shape {tuple(x.shape)})")
        network, last = self.network, self.network.layers[-1].spec.name
        recorded = list(network.spiking_layers) if self._record else []
        whole: dict[str, npt.NDArray[Any]] = {}
        together = max(1, CHUNK_VALUES // (self.batch * network.widest))
        for lo in range(together, len(x), together):
            network.packed_words(x[lo : lo + together])  # checks the later chunks before the first one moves the state
        for lo in range(0, len(x), together):
            words = network.packed_words(x[lo : lo + together])
            self._input_spikes += int(spikes_in(words).sum(dtype="int64"))
            out = run_chunk(self._runs, words)
            for name in {*recorded, last}:
                part = out[name]
                room = whole.setdefault(name, np.empty((len(x), *part.shape[1:]), part.dtype))
                room[lo : lo + together] = part
        self.steps += len(x)
        return Pushed(torch.from_numpy(whole[last]), {name: torch.from_numpy(whole[name]) for name in recorded})

    @property
    def state(self) -> State:
        """What is carried to the next step, copied: one entry a layer, None for those without."""
        self._check_open("state")
        if self.steps == 0:  # before the first step a neuron rests, which is not the same as membranes of 0
            return self._given
        return tuple(_copied(run.state()) for run in self._runs)

    @property
    def counts(self) -> Counts:
        """The work of all steps so far."""
        return Counts(
            self.steps, self.batch, self._input_spikes, tuple(row for run in self._runs for row in run.counts())
        )

    def save_state(self, path: str | Path) -> None:
        """Write the state to a safetensors file, whole or not at all; :meth:`PackedNetwork.open_stream` takes it back."""
        tensors = state_tensors(self.state)
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"batch": str(self.batch), "layers": str(len(self.network.layers))})

    def close(self) -> None:
        """Let go of the memory. Raises ``ValueError`` when it is closed already."""
        self._check_open("close")
        self._closed, self._runs = True, []

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ValueError(f"{what}: expected an open stream, this one is closed")

    def __enter__(self) -> "Stream":
        self._check_open("with")
        return self

    def __exit__(self, *_: object) -> None:
        if not self._closed:
            self.close()


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
