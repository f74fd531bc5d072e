"""Run packed layers over chunks of time on the CPU, from packed bits only; state is carried from chunk to chunk."""

from tbnn.sim.layers import (
    PackedConv,
    PackedDelay,
    PackedEdge,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
    PackedPool,
    PackedVoting,
)
from tbnn.sim.run.conv import ConvRun, PoolRun
from tbnn.sim.run.linear import LinearRun
from tbnn.sim.run.neurons import IntegratorRun, LeakyRun
from tbnn.sim.run.state import Floats, NeuronState, Words, spikes_in
from tbnn.sim.run.wires import DelayRun, DelayState, EdgeRun, VotingRun

__all__ = ["DelayState", "NeuronState", "Run", "State", "run_chunk", "spikes_in", "start"]

Run = LinearRun | ConvRun | PoolRun | LeakyRun | IntegratorRun | DelayRun | EdgeRun | VotingRun
State = tuple[NeuronState | DelayState | None, ...]
"""One entry a layer, None for those that carry nothing."""


def start(layers: tuple[PackedLayer, ...], batch: int, state: State) -> list[Run]:
    """The layers ready to run from ``state``, one entry a layer, None for rest."""
    runs: list[Run] = []
    for layer, layer_state in zip(layers, state, strict=True):
        if isinstance(layer, PackedLinear):
            runs.append(LinearRun(layer))
        elif isinstance(layer, PackedConv):
            runs.append(ConvRun(layer))
        elif isinstance(layer, PackedPool):
            runs.append(PoolRun(layer))
        elif isinstance(layer, PackedVoting):
            runs.append(VotingRun(layer))
        elif isinstance(layer, PackedEdge):
            runs.append(EdgeRun(layer))
        elif isinstance(layer, PackedDelay):
            runs.append(DelayRun(layer, batch, layer_state))  # pyright: ignore[reportArgumentType]
        elif isinstance(layer, PackedLeaky):
            runs.append(LeakyRun(layer, batch, layer_state))  # pyright: ignore[reportArgumentType]
        else:
            runs.append(IntegratorRun(layer, batch, layer_state))  # pyright: ignore[reportArgumentType]
    return runs


def run_chunk(runs: list[Run], words: Words) -> dict[str, Words | Floats]:
    """Advance every layer by the packed input (t, B, words): each spiking layer's spikes, and the last one's output."""
    out: dict[str, Words | Floats] = {}
    x: Words | Floats = words
    pile: list[Words | Floats] = []  # what residual blocks keep
    for run in runs:
        x = run.turn(x, pile) if isinstance(run, EdgeRun) else run.advance(x)  # pyright: ignore[reportArgumentType]
        if isinstance(run, LeakyRun) or run is runs[-1]:
            out[run.layer.spec.name] = x
    return out
