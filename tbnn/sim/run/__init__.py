"""Run packed layers over chunks of time on the CPU, from packed bits only; state is carried from chunk to chunk."""

from collections.abc import Mapping

from tbnn.sim.layers import (
    PackedConv,
    PackedDelay,
    PackedDelayed,
    PackedEdge,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
    PackedPool,
    PackedSparse,
    PackedVoting,
)
from tbnn.sim.run.conv import ConvRun, PoolRun
from tbnn.sim.run.currents import Currents
from tbnn.sim.run.delayed import DelayedRun
from tbnn.sim.run.feedback import FeedbackRun
from tbnn.sim.run.linear import LinearRun
from tbnn.sim.run.neurons import IntegratorRun, LeakyRun
from tbnn.sim.run.sparse import SparseRun, weights_run
from tbnn.sim.run.state import Floats, NeuronState, Words, count_spikes, spikes_in
from tbnn.sim.run.wires import DelayRun, DelayState, EdgeRun, VotingRun

__all__ = [
    "DelayState",
    "FeedbackRun",
    "IntegratorRun",
    "LeakyRun",
    "NeuronState",
    "Run",
    "State",
    "count_spikes",
    "run_chunk",
    "spikes_in",
    "start",
]

Run = (
    LinearRun
    | SparseRun
    | ConvRun
    | DelayedRun
    | PoolRun
    | LeakyRun
    | FeedbackRun
    | IntegratorRun
    | DelayRun
    | EdgeRun
    | VotingRun
)
State = tuple[NeuronState | DelayState | None, ...]
"""One entry a layer, None for those that carry nothing."""


def start(
    layers: tuple[PackedLayer, ...], batch: int, state: State, watched: Mapping[str, tuple[int, ...]] | None = None
) -> list[Run]:
    """The layers ready to run from ``state``, one entry a layer, None for rest.

    watched: neurons whose membranes the runs keep, in ascending order, by the name of their layer.
    """
    runs: list[Run] = []
    for layer, layer_state in zip(layers, state, strict=True):
        neurons = (watched or {}).get(layer.spec.name, ())
        if isinstance(layer, PackedLinear | PackedSparse):
            runs.append(weights_run(layer))
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
        elif isinstance(layer, PackedDelayed):
            runs.append(DelayedRun(layer, batch, layer_state))  # pyright: ignore[reportArgumentType]
        elif isinstance(layer, PackedLeaky) and (layer.spec.delay > 1 or isinstance(layer.feedback, PackedConv)):
            runs.append(FeedbackRun(layer, batch, layer_state, neurons))  # pyright: ignore[reportArgumentType]
        elif isinstance(layer, PackedLeaky):
            runs.append(LeakyRun(layer, batch, layer_state, neurons))  # pyright: ignore[reportArgumentType]
        else:
            runs.append(IntegratorRun(layer, batch, layer_state, neurons))  # pyright: ignore[reportArgumentType]
    return runs


def run_chunk(runs: list[Run], words: Words) -> dict[str, Words | Floats]:
    """Advance every layer by the packed input (t, B, words): each spiking layer's spikes, and the last one's output."""
    out: dict[str, Words | Floats] = {}
    x: Words | Floats | Currents = words
    pile: list[Words | Currents] = []  # what residual blocks keep
    for run in runs:
        x = run.turn(x, pile) if isinstance(run, EdgeRun) else run.advance(x)  # pyright: ignore[reportArgumentType]
        if run is runs[-1] and isinstance(x, Currents):
            x = x.values()
        if isinstance(run, LeakyRun | FeedbackRun) or run is runs[-1]:
            out[run.layer.spec.name] = x  # pyright: ignore[reportArgumentType]
    return out
