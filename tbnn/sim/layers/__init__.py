"""The layers of a packed network: what is stored, in which shapes, checked once when a layer is made.

A *spec* is what a file's header says about a layer, and knows the dtype and shape of every tensor that belongs to it.
"""

from typing import NamedTuple

from tbnn.sim.layers.checks import Shapes
from tbnn.sim.layers.conv import ConvSpec, PackedConv, PackedPool, PoolSpec
from tbnn.sim.layers.delayed import DelayedSpec, PackedDelayed
from tbnn.sim.layers.linear import LinearSpec, PackedLinear, planes_of
from tbnn.sim.layers.neurons import IntegratorSpec, LeakySpec, PackedIntegrator, PackedLeaky
from tbnn.sim.layers.sparse import PackedSparse, SparseSpec, thinned
from tbnn.sim.layers.wires import DelaySpec, EdgeSpec, PackedDelay, PackedEdge, PackedVoting, VotingSpec

__all__ = [
    "ConvSpec", "DelaySpec", "DelayedSpec", "EdgeSpec", "IntegratorSpec", "LeakySpec", "LinearSpec", "PackedConv", "PackedDelay", "PackedDelayed", "PackedEdge",
    "PackedIntegrator", "PackedLayer",
    "PackedLeaky", "PackedLinear", "PackedPool", "PackedSparse", "PackedVoting", "PoolSpec", "Shapes", "SparseSpec", "Spec", "VotingSpec", "Wire", "check_order", "inner_linear",
    "outputs_of", "planes_of", "thinned",
]  # fmt: skip

Spec = (
    LinearSpec
    | ConvSpec
    | DelayedSpec
    | PoolSpec
    | LeakySpec
    | IntegratorSpec
    | DelaySpec
    | EdgeSpec
    | VotingSpec
    | SparseSpec
)
PackedLayer = (
    PackedLinear
    | PackedSparse
    | PackedConv
    | PackedDelayed
    | PackedPool
    | PackedLeaky
    | PackedIntegrator
    | PackedDelay
    | PackedEdge
    | PackedVoting
)


def inner_linear(layer: PackedLayer) -> PackedLinear | PackedSparse | None:
    """The layer of weights that a layer is or has: a convolution's kernel, a neuron's feedback."""
    if isinstance(layer, PackedLeaky) and layer.feedback is not None:
        return inner_linear(layer.feedback)
    if isinstance(layer, PackedConv | PackedDelayed):
        return layer.kernel
    return layer if isinstance(layer, PackedLinear | PackedSparse) else None


def outputs_of(layer: PackedLayer) -> int:
    """How many values or bits leave a layer at each step; 0 for an edge, through which others' go."""
    spec = layer.spec
    if isinstance(spec, EdgeSpec):
        return 0
    return spec.features if isinstance(spec, LeakySpec | IntegratorSpec | DelaySpec) else spec.out_features


class Wire(NamedTuple):
    """What is on a wire at each step: how many, and whether bits or values."""

    size: int
    bits: bool


def check_order(layers: tuple[PackedLayer, ...], in_features: int) -> Wire:
    """Raise ``ValueError`` unless layers follow each other: weights on bits, neurons on their currents, pooling on bits.

    A readout comes last; a last layer of weights without one gives currents. Returns what leaves the last layer.
    """
    if not layers:
        raise ValueError("expected at least one layer, got none")
    names = [layer.spec.name for layer in layers]
    if len(set(names)) < len(names):
        raise ValueError(f"expected layers of different names, got {', '.join(names)}")
    here, pile = Wire(in_features, True), []
    for i, layer in enumerate(layers):
        name, spec = layer.spec.name, layer.spec
        if isinstance(spec, EdgeSpec):
            here = _turned(spec, here, pile)
            continue
        voting = isinstance(layer, PackedVoting)  # takes bits and values
        if not voting and isinstance(layer, PackedLeaky | PackedIntegrator) == here.bits:
            raise ValueError(f"{name}: expected a binary layer, then a neuron, in turns, got {spec.kind} at {i}")
        follows = layers[i + 1] if i + 1 < len(layers) else None
        if voting and follows is not None:
            raise ValueError(f"{name}: what voters say is no bits: expected it as the last layer, got number {i}")
        if isinstance(layer, PackedIntegrator) and not isinstance(follows, PackedVoting | None):
            raise ValueError(f"{name}: a readout's output is no bits: expected it as the last layer, got number {i}")
        got = spec.features if isinstance(spec, LeakySpec | IntegratorSpec | DelaySpec) else spec.in_features
        if got != here.size:
            raise ValueError(f"{name}: expected {here.size} inputs, as many as come from before it, got {got}")
        here = Wire(outputs_of(layer), isinstance(layer, PackedLeaky | PackedPool | PackedDelay))
    if pile:
        raise ValueError(f"expected every fork to be joined, got {len(pile)} that are not")
    return here


def _turned(spec: EdgeSpec, here: Wire, pile: list[Wire]) -> Wire:
    """What is here after an edge."""
    if spec.op == "fork":
        pile.append(here)
        return here
    if not pile:
        raise ValueError(f"{spec.name}: expected a fork before {spec.op!r}, got none")
    kept = pile.pop()
    if spec.op == "swap":
        pile.append(here)
        return kept
    if kept != here or here.bits == (spec.op == "current"):
        raise ValueError(
            f"{spec.name}: expected two wires of the same {'values' if spec.op == 'current' else 'bits'}, got {here} and {kept}"
        )
    return here
