"""What learning costs a sample: operations, bits kept, and joules on a hypothetical chip. An estimate, not a measurement."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tbnn.learning.alignment import borrowed
from tbnn.learning.binary import BinaryOptimizer, bits_per_synapse
from tbnn.learning.online import StageState
from tbnn.learning.operations import WORD, Sizes, Work, work_of
from tbnn.learning.ottt import Ottt
from tbnn.learning.rule import Rule
from tbnn.learning.stages import Stage, Synapses
from tbnn.nn import Adaptive
from tbnn.nn.weights import BinaryWeight
from tbnn.sim.energy import PICO, TECHNOLOGIES, Technology, joules


@dataclass(frozen=True)
class LayerCost:
    """One stage: weights, those that return among them, and the neurons they drive. Numbers a sample.

    Attributes:
        name: of the weights in the network.
        forward: additions of weights that are not 0, one for each spike that meets one: effective synaptic operations.
        neurons: multiply-additions of membranes and scales.
        eligibility, update: multiply-additions, see :func:`tbnn.learning.operations.work_of`; dense.
        input_bits: kept of each input while learning.
        neuron_bits: of each neuron, its own state included.
        synapse_bits: of each synapse, the optimizer's part and the weight's own bit included.
        feedback_bits: of weights that only bring errors, all together.
        kept_bits: of the whole stage.
        forward_energy, neuron_energy, eligibility_energy, update_energy: joules of the arithmetic.
        memory_energy: joules of the memories.
    """

    name: str
    forward: float = 0.0
    neurons: float = 0.0
    eligibility: float = 0.0
    update: float = 0.0
    input_bits: float = 0.0
    neuron_bits: float = 0.0
    synapse_bits: float = 0.0
    feedback_bits: float = 0.0
    kept_bits: float = 0.0
    forward_energy: float = 0.0
    neuron_energy: float = 0.0
    eligibility_energy: float = 0.0
    update_energy: float = 0.0
    memory_energy: float = 0.0

    @property
    def energy(self) -> float:
        """Joules in all."""
        arithmetic = self.forward_energy + self.neuron_energy + self.eligibility_energy + self.update_energy
        return arithmetic + self.memory_energy


@dataclass(frozen=True)
class LearningCost:
    """What one sample of ``steps`` steps costs under ``rule``, stage by stage."""

    rule: str
    steps: int
    technology: Technology
    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> LayerCost:
        """All stages added up; bits of an input, neuron or synapse, which do not add up, are 0."""
        apart = ("name", "input_bits", "neuron_bits", "synapse_bits")
        names = [field.name for field in fields(LayerCost) if field.name not in apart]
        return LayerCost("total", **{key: math.fsum(getattr(row, key) for row in self.layers) for key in names})

    def table(self) -> list[dict[str, Any]]:
        """One plain row a stage, the network last, each with its rule and its energy."""
        return [{"rule": self.rule, **asdict(row), "energy": row.energy} for row in (*self.layers, self.total)]

    def text(self) -> str:
        """What was estimated, from what, in one paragraph."""
        total = self.total
        learning = total.eligibility + total.update
        return (
            f"Learning one sample of {self.steps} steps by {self.rule} takes {total.forward:,.0f} additions forward and "
            f"{learning:,.0f} multiply-additions to learn, keeps {total.kept_bits:,.0f} bits, and would take about "
            f"{joules(total.energy)} on a hypothetical {self.technology.name} chip, {joules(total.memory_energy)} of it for "
            f"memory. An estimate, not a measurement. Constants: {self.technology.source}."
        )


def learning_cost(
    rule: Rule, x: Tensor, optimizer: Optimizer | None = None, technology: str | Technology = "45nm"
) -> LearningCost:
    """Count what a rule does for a sample, averaged over a batch, and estimate its energy.

    Spikes are counted on the batch; all that learns is counted dense, as its equations are written, whatever tricks this
    library has for it. The chip is that of :func:`tbnn.sim.energy.energy`: an integer addition for a spike that meets a
    weight of few bits, float32 elsewhere, each memory the smallest that holds its data. Traces, eligibilities and membranes
    are read and written once a step, gradients once for each change that is gathered, weights once for each addition, and for
    an error that passes down through them. Left out: the optimizer's step, once a batch, and what one left out there.

    Args:
        rule: over a :class:`tbnn.nn.Network` that :class:`tbnn.learning.Ottt` takes; rule and network stay as they are.
        x: (T, B, features...) of 0/1, or words.
        optimizer: whose share of every synapse is kept; None: of the weight its own bits.
        technology: a name in :data:`tbnn.sim.energy.TECHNOLOGIES`, or constants of one's own.

    Raises:
        ValueError: a rule without a formula; a network of other layers; an optimizer, or a technology, that is unknown.

    >>> print(learning_cost(Eprop(network), x, optimizer).text())
    """
    if isinstance(technology, str):
        if technology not in TECHNOLOGIES:
            raise ValueError(f"technology: expected one of {', '.join(TECHNOLOGIES)}, got {technology!r}")
        technology = TECHNOLOGIES[technology]
    watch = Ottt(rule.network)
    with torch.no_grad(), borrowed(watch) as twin:
        state, spikes = None, [0.0] * len(watch.stages)
        for x_t in x.unbind(0):
            state = twin.step(x_t, state)
            for index, (stage, now) in enumerate(zip(watch.stages, state.traces[0], strict=True)):
                spikes[index] += _effective(stage, now)
        if state is None:
            raise ValueError("learning_cost: expected at least one step, got none")
        sizes = _sizes(watch, state.traces[0], state.readout.shape[1], len(x))
    rows = [
        _layer(stage, size, work_of(rule, size), count / x.shape[1], _kept(optimizer, stage.weights), technology)
        for stage, size, count in zip(watch.stages, sizes, spikes, strict=True)
    ]
    return LearningCost(rule.name, len(x), technology, tuple(rows))


def cost_rows(costs: Sequence[LearningCost]) -> list[dict[str, str]]:
    """A row of text for each rule, totals of the network, to compare rules by."""
    rows = []
    for cost in costs:
        total = cost.total
        rows.append(
            {
                "rule": cost.rule,
                "forward": f"{total.forward:,.0f}",
                "eligibility": f"{total.eligibility:,.0f}",
                "update": f"{total.update:,.0f}",
                "bits a synapse": " ".join(f"{row.synapse_bits:g}" for row in cost.layers),
                "bits kept": f"{total.kept_bits:,.0f}",
                "energy": joules(total.energy),
            }
        )
    return rows


def _effective(stage: Stage, now: StageState) -> float:
    """Effective synaptic operations of one step, of a whole batch."""
    count = (now.passage.left * 1.0 != 0).to(now.out.dtype).mul(_fan_out(stage.weights, now, True)).sum().item()
    if now.last is not None and stage.recurrent is not None:
        count += (now.last @ _exist(stage.recurrent).to(now.last).flatten(1).sum(0)).sum().item()
    return count


def _fan_out(layer: Any, now: StageState, counted: bool) -> Tensor:
    """Synapses of each input (1, features...), those whose weight is 0 left out if ``counted``."""
    weight = _exist(layer).to(now.out.dtype)
    weight = weight if counted else torch.ones_like(weight)
    return Synapses(layer).back(now.passage.left[:1].detach(), torch.ones_like(now.out[:1]), weight)


def _exist(layer: Any) -> Tensor:
    """Which weights are not 0, as they are simulated."""
    values = layer.codes().values if isinstance(layer, BinaryWeight) else layer.weight
    return values.detach() != 0


def _sizes(watch: Ottt, states: tuple[StageState, ...], classes: int, steps: int) -> list[Sizes]:
    found = []
    everything = 0
    for stage, filter_, now in zip(watch.stages, watch.filters, states, strict=True):
        neurons = now.out[0].numel()
        kept = sum(part is not None for part in now.neuron)
        everything += neurons * (kept + (now.last is not None))
        biases = any(getattr(layer, "bias", None) is not None for layer in (stage.weights, stage.recurrent))
        coefficients = [filter_.rho, filter_.from_v, filter_.from_current, filter_.to_v]
        second = 0 if filter_.rho is None else sum(bool(c) for c in coefficients) + (filter_.current_gain != 1)
        size = Sizes(
            inputs=now.passage.left[0].numel(),
            weights=stage.weights.weight.numel(),  # pyright: ignore[reportCallIssue]
            neurons=neurons,
            synapses=round(_fan_out(stage.weights, now, False).sum().item()),
            returning=0 if now.last is None else neurons * neurons,
            biases=neurons if biases else 0,
            products=1 + second,
            trace=1 if filter_.rho is None else 2,
            states=kept,
            first=not found,
            spikes=stage.spikes,
            adaptive=type(stage.neuron) is Adaptive,
            classes=classes,
            network_states=0,
            steps=steps,
        )
        found.append(size)
    return [Sizes(**{**asdict(size), "network_states": everything}) for size in found]


def _kept(optimizer: Optimizer | None, layer: Any) -> float:
    """Bits of a synapse that its optimizer keeps, or its own."""
    if optimizer is None:
        return _weight_bits(layer)
    if isinstance(optimizer, BinaryOptimizer) and not isinstance(layer, BinaryWeight) and optimizer.rest is not None:
        return bits_per_synapse(optimizer.rest)
    return bits_per_synapse(optimizer)


def _weight_bits(layer: Any) -> int:
    """Of a weight that is read."""
    bits = layer.bits if isinstance(layer, BinaryWeight) else None
    return WORD if bits is None else math.ceil(bits)


def _scales(layer: Any, neurons: int) -> int:
    """Multiplications by scales and offsets, a step and sample."""
    if not isinstance(layer, BinaryWeight) or layer.bits is None:
        return 0
    outputs, blocks = layer.codes().scale.shape
    positions = neurons // outputs
    return outputs * positions * blocks * (1 if layer.form == "linear" else 2)


def _layer(
    stage: Stage, size: Sizes, work: Work, effective: float, optimizer_bits: float, technology: Technology
) -> LayerCost:
    steps = size.steps
    layers: list[Any] = [layer for layer in (stage.weights, stage.recurrent) if layer is not None]
    weights = sum(layer.weight.numel() for layer in layers)
    bits = _weight_bits(stage.weights)
    add = technology.float_add if bits == WORD else technology.integer_add
    mac = technology.float_multiply + technology.float_add
    scales = sum(_scales(layer, size.neurons) for layer in layers)
    compares = size.neurons if size.spikes else 0
    eligibility, update = steps * work.eligibility, steps * work.update + work.once

    learning = size.inputs * work.input_bits + size.neurons * work.neuron_bits + size.plastic * work.synapse_bits
    membranes = size.neurons * size.states * WORD
    moved = (  # bits of each memory, and those read or written a sample
        (weights * bits + WORD * scales, effective * bits + steps * (WORD * scales + work.down * bits)),
        (membranes, 2 * steps * membranes),
        (learning, 2 * steps * work.rewritten * learning),
        (work.feedback_bits, steps * work.feedback_read),
        (WORD * (weights + size.biases), 2 * (1 if work.once else steps) * WORD * (weights + size.biases)),
    )
    memory = sum(passed * technology.access(held / 8) for held, passed in moved)
    energies = {
        "forward_energy": effective * add,
        "neuron_energy": steps * ((size.neurons * size.states + scales) * mac + compares * technology.float_add),
        "eligibility_energy": eligibility * mac,
        "update_energy": update * mac,
        "memory_energy": memory,
    }
    kept = membranes + learning + work.feedback_bits + weights * optimizer_bits
    return LayerCost(
        stage.name,
        forward=effective,
        neurons=steps * (size.neurons * size.states + scales),
        eligibility=eligibility,
        update=update,
        input_bits=work.input_bits,
        neuron_bits=work.neuron_bits + WORD * size.states,
        synapse_bits=work.synapse_bits + optimizer_bits,
        feedback_bits=work.feedback_bits,
        kept_bits=kept,
        **{name: value * PICO for name, value in energies.items()},
    )
