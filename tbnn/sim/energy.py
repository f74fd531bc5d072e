"""What a simulation would cost in joules on a chip: an estimate from counts and published energies, not a measurement."""

import itertools
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from tbnn.bits import words_for
from tbnn.sim.counts import Counts, LayerCounts, kernel_of, scale_multiplies, specs_of, synapses
from tbnn.sim.layers import (
    ConvSpec,
    DelayedSpec,
    DelaySpec,
    IntegratorSpec,
    LeakySpec,
    LinearSpec,
    PoolSpec,
    SparseSpec,
    Spec,
)

if TYPE_CHECKING:
    from tbnn.sim.network import PackedNetwork

ACCESS_BITS = 64  # of one memory access
WORD = 32  # bits of a packed word, and of a float
PICO = 1e-12


@dataclass(frozen=True)
class Memory:
    """A memory that holds ``size`` bytes: ``access`` pJ for 64 bits, read or written."""

    size: float
    access: float


@dataclass(frozen=True)
class Technology:
    """Energies of one process, in pJ.

    Attributes:
        name, source: of the process, and where its constants were published (who, year, process, voltage).
        integer_add: of 32 bits.
        float_add, float_multiply: of 32 bits.
        memories: from small to large, the last one without limit (``math.inf``); data lie in the smallest that holds them.

    Raises ``ValueError`` for an empty source, an energy that is negative or not finite, and other memories.
    """

    name: str
    source: str
    integer_add: float
    float_add: float
    float_multiply: float
    memories: tuple[Memory, ...]

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.source.strip():
            raise ValueError(f"technology: expected a name and a source, got {self.name!r} and {self.source!r}")
        energies = {key: getattr(self, key) for key in ("integer_add", "float_add", "float_multiply")}
        energies |= {f"memories[{i}]": memory.access for i, memory in enumerate(self.memories)}
        for key, value in energies.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"technology {self.name}: {key}: expected an energy of 0 pJ or more, got {value}")
        sizes = [memory.size for memory in self.memories]
        if not sizes or sizes[-1] != math.inf or any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ValueError(
                f"technology {self.name}: memories: expected growing sizes up to math.inf, got {sizes or 'none'}"
            )

    def access(self, size: float) -> float:
        """pJ a bit of the smallest memory that holds ``size`` bytes."""
        return next(memory.access for memory in self.memories if size <= memory.size) / ACCESS_BITS


TECHNOLOGIES = {
    "45nm": Technology(
        "45nm",
        "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, 45 nm, 0.9 V; DRAM at the mean of "
        "its 1.3 to 2.6 nJ",
        integer_add=0.1,
        float_add=0.9,
        float_multiply=3.7,
        memories=(Memory(8 << 10, 10), Memory(32 << 10, 20), Memory(1 << 20, 100), Memory(math.inf, 1950)),
    )
}


@dataclass(frozen=True)
class LayerEnergy:
    """Joules that one layer takes for one sample, and what it would take with dense float32 weights and activations.

    Attributes:
        name, kind: the layer, as in :class:`tbnn.sim.LayerCounts`.
        synapses: effective synaptic operations, an integer addition each.
        scales: multiplications by scales and offsets, and the addition of each product.
        neurons: membrane updates: one multiplication, one addition, and for neurons that spike one comparison (as dear as an
            addition); twice the first two with a second state.
        weight_memory: for each effective synaptic operation its weight's bits (1 to 9; of a sparse layer's lists an entry), and 32
            bits for each scale and offset.
        spike_memory: packed words that layers read and write at each step.
        membrane_memory: 32 bits of each state, read and written at each update.
        dense_float32: a float32 multiplication and addition for each synapse and step, no memory.
    """

    name: str
    kind: str
    synapses: float = 0.0
    scales: float = 0.0
    neurons: float = 0.0
    weight_memory: float = 0.0
    spike_memory: float = 0.0
    membrane_memory: float = 0.0
    dense_float32: float = 0.0

    @property
    def arithmetic(self) -> float:
        """Joules without the memories."""
        return self.synapses + self.scales + self.neurons

    @property
    def memory(self) -> float:
        """Joules of the memories."""
        return self.weight_memory + self.spike_memory + self.membrane_memory

    @property
    def total(self) -> float:
        """Joules of all but ``dense_float32``."""
        return self.arithmetic + self.memory


@dataclass(frozen=True)
class Energy:
    """An estimate in joules a sample, layer by layer, on a hypothetical chip of ``technology``."""

    technology: Technology
    layers: tuple[LayerEnergy, ...]

    @property
    def total(self) -> LayerEnergy:
        """All layers added up."""
        sums = {f.name: math.fsum(getattr(row, f.name) for row in self.layers) for f in fields(LayerEnergy)[2:]}
        return LayerEnergy("total", "network", **sums)

    def table(self) -> list[dict[str, Any]]:
        """One plain row a layer with its total, the network last: joules a sample."""
        return [{**asdict(row), "total": row.total} for row in (*self.layers, self.total)]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; a memory without limit has the size None."""
        technology = asdict(self.technology)
        for memory in technology["memories"]:
            memory["size"] = None if memory["size"] == math.inf else memory["size"]
        technology["memories"] = list(technology["memories"])
        return {
            "unit": "joules a sample",
            "technology": technology,
            "layers": self.table()[:-1],
            "total": self.table()[-1],
        }

    def text(self) -> str:
        """What was estimated, from what, in one paragraph."""
        total, technology = self.total, self.technology
        mac = (technology.float_multiply + technology.float_add) * PICO
        return (
            f"Estimated energy on a hypothetical {technology.name} chip: {joules(total.total)} a sample, of which "
            f"{joules(total.synapses)} for synaptic operations, {joules(total.scales)} for scales and offsets, "
            f"{joules(total.neurons)} for neurons and {joules(total.memory)} for memory (weights "
            f"{joules(total.weight_memory)}, spikes {joules(total.spike_memory)}, membranes {joules(total.membrane_memory)}). "
            f"The same network's dense float32 multiply-accumulates, at {joules(mac)} each and without memory, would take "
            f"{joules(total.dense_float32)}. Not a measurement, and not the machine it ran on. Constants: {technology.source}."
        )


def energy(packed: "PackedNetwork", counts: Counts, technology: str | Technology = "45nm") -> Energy:
    """Estimate the energy of a simulation, in joules a sample, on a chip that does what was counted and nothing else.

    The chip adds a weight for each spike that meets one that is not 0, scales and offsets each output, and updates every
    neuron at every step. Each layer has memories of its own for weights, spikes and membranes of one sample, each the smallest
    that holds them. Left out: control, clock, leakage, wires between layers, where zeros among bit planes and lists begin, parameters
    of neurons, and the additions of joins and votes; the 64 bits of an access are all of use.

    Args:
        packed: the network.
        counts: of a simulation of it.
        technology: a name in ``TECHNOLOGIES``, or constants of one's own.

    Raises:
        ValueError: an unknown technology, counts of another network.

    Source: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, for the constants of "45nm".
    """
    if isinstance(technology, str):
        if technology not in TECHNOLOGIES:
            raise ValueError(f"technology: expected one of {', '.join(TECHNOLOGIES)}, got {technology!r}")
        technology = TECHNOLOGIES[technology]
    specs = specs_of(packed.layers, counts)
    return Energy(technology, tuple(_layer(specs[row.name], row, counts, technology) for row in counts.layers))


def joules(value: float) -> str:
    """An energy to three digits: "1.23 µJ"."""
    for power, prefix in ((0, ""), (-3, "m"), (-6, "µ"), (-9, "n")):
        if value >= 0.9995 * 10.0**power:
            return f"{value / 10.0**power:.3g} {prefix}J"
    return f"{value / PICO:.3g} pJ"


def _layer(spec: Spec, row: LayerCounts, counts: Counts, technology: Technology) -> LayerEnergy:
    mac = technology.float_multiply + technology.float_add
    scales = counts.steps * scale_multiplies(spec)
    updates, effective = row.neuron_updates / counts.batch, row.effective_synops / counts.batch
    words, features, states = _words(spec), _features(spec), _states(spec)
    compare = technology.float_add if isinstance(spec, LeakySpec) else 0.0
    weight_bits = effective * _weight_bits(spec) + WORD * scales
    # Membranes of one sample, spikes of one step.
    membrane_access = technology.access(states * features * WORD / 8)
    parts = {
        "synapses": effective * technology.integer_add,
        "scales": scales * mac,
        "neurons": updates * (states * mac + compare),
        "weight_memory": weight_bits * technology.access(_stored(spec)),
        "spike_memory": counts.steps * sum(n * WORD * technology.access(n * WORD / 8) for n in words),
        "membrane_memory": updates * states * 2 * WORD * membrane_access,
        "dense_float32": counts.steps * synapses(spec) * mac,
    }
    return LayerEnergy(row.name, row.kind, **{key: value * PICO for key, value in parts.items()})


def _weight_bits(spec: Spec) -> int:
    """What is read for a synaptic operation: the bits of a plane each, or a list's entry; and of a delay."""
    kernel, delay = kernel_of(spec), spec.delay_bits if isinstance(spec, DelayedSpec) else 0
    if isinstance(kernel, SparseSpec):
        entry = [dtype.itemsize for key, (dtype, _) in kernel.shapes().items() if key in ("outputs", "magnitudes")]
        return 8 * sum(entry) + delay
    return 0 if kernel is None else kernel.planes + delay


def _stored(spec: Spec) -> int:
    """Bytes of a layer's weights, scales, offsets and bias, and of delays."""
    kernel = kernel_of(spec)
    parts = () if kernel is None else (kernel,) if kernel is spec else (kernel, spec)
    return sum(dtype.itemsize * math.prod(shape) for part in parts for dtype, shape in part.shapes().values())


def _words(spec: Spec) -> tuple[int, ...]:
    """Packed words that a layer reads or writes at each step of a sample."""
    if isinstance(spec, LinearSpec | SparseSpec | ConvSpec | DelayedSpec):
        return (words_for(spec.in_features),)
    if isinstance(spec, LeakySpec):
        return (words_for(spec.features),)
    if isinstance(spec, PoolSpec):
        return (words_for(spec.in_features), words_for(spec.out_features))
    return (words_for(spec.features),) * 2 if isinstance(spec, DelaySpec) else ()


def _features(spec: Spec) -> int:
    return spec.features if isinstance(spec, LeakySpec | IntegratorSpec) else 0


def _states(spec: Spec) -> int:
    return 2 if isinstance(spec, LeakySpec) and spec.second_size else 1
