"""ON and REC: a binary layer of leaky neurons, and a recurrent network, forward and backward, against the other libraries."""

from collections.abc import Callable, Sequence
from typing import Any

from peers import SNNTORCH, SPIKINGJELLY, check_rates, snntorch_loop, spikingjelly_node
from suite import BETA, Part, Settings
from timing import row
from torch import Tensor
from train_sides import (
    Outcome,
    binary,
    check,
    check_networks,
    in_snntorch,
    modes,
    network_of,
    neuron,
    pulled,
    spikes_in,
    trained,
)

from tbnn import pack_bits
from tbnn.nn import LeakyIntegrator, Network, Recurrent

ON_RATE, REC_RATE, FEEDBACK_RATE = 0.2, 0.05, 0.2
NEURONS, BATCHES = (512, 2048), (16, 128)
OURS, WORDS = "tbnn", "tbnn, packed input"
ON_AIMS = {(512, SNNTORCH): 5.0, (2048, SNNTORCH): 8.0, (512, SPIKINGJELLY): 4.0, (2048, SPIKINGJELLY): 5.0}
REC_AIMS = {16: 10.0, 128: 5.0}
RLEAKY = "snntorch, RLeaky"
SPIKING = 2  # layers of REC until its spikes


def measure_on(settings: Settings) -> Part:
    """Every N; snntorch and SpikingJelly have the quantised weights as dense float weights, one matmul for all steps."""
    part = Part(facts={"gate": [], "firing_rates": []})
    for neurons in (64,) if settings.tiny else NEURONS:
        steps, batch = (20, 3) if settings.tiny else (500, 16)
        shape = f"ON N={neurons} T={steps} B={batch} fwd+bwd, {settings.label}"
        x = spikes_in(steps, batch, neurons, ON_RATE)
        network, sides = on_sides(neurons, x)
        gate_on(shape, network, sides, part)
        times = settings.times(sides, rounds=5, repeats=1)
        part.rows += [
            {"shape": shape, **row(times, OURS, name, ON_AIMS.get((neurons, name)))}
            for name in sides
            if name not in (OURS, WORDS)
        ]
        part.rows.append({"shape": shape.replace("ON", "ON, packed input,", 1), **row(times, WORDS, OURS)})
    return part


def on_sides(neurons: int, x: Tensor) -> tuple[Network, dict[str, Callable[[], Outcome]]]:
    """Forward and backward of every side; gradients of weights and bias, none of the input."""
    network = network_of([binary(neurons, neurons, ON_RATE), neuron()])
    layer: Any = network.layers[0]
    weight = layer.quantized_weight().detach().requires_grad_()
    bias, words = layer.bias.detach().clone().requires_grad_(), pack_bits(x)
    own, theirs = [layer.weight, layer.bias], [weight, bias]
    loop, jelly = snntorch_loop(weight, bias, x), spikingjelly_node(weight, bias, x)
    sides: dict[str, Callable[[], Outcome]] = {
        OURS: lambda: trained(lambda: network(x)[0], own),
        WORDS: lambda: trained(lambda: network(words)[0], own),
        SNNTORCH: lambda: trained(loop, theirs),
    }
    if jelly is not None:
        sides[SPIKINGJELLY] = lambda: trained(jelly, theirs)
    return network, sides


def gate_on(shape: str, network: Network, sides: dict[str, Callable[[], Outcome]], part: Part) -> None:
    """Spikes and gradients of snntorch's, rates of SpikingJelly's."""
    theirs = sides[SNNTORCH]()
    for name in (WORDS, OURS):
        ours = sides[name]()
        pairs = [*pulled(network, theirs.gradients[:1]), (ours.gradients[1], theirs.gradients[1])]
        part.facts["gate"].append(check(f"{shape}, {name}", ours.spikes, theirs.spikes, pairs, "snntorch's"))
    rates = {name: sides[name]().spikes.mean().item() for name in (OURS, SPIKINGJELLY) if name in sides}
    check_rates(shape, rates, OURS)
    part.facts["firing_rates"].append({"shape": shape, "rates": rates})


def recurrent_layers(inputs: int, neurons: int, classes: int) -> list[Any]:
    """inputs -> N recurrent -> classes, read by a leaky integrator."""
    feedback = binary(neurons, neurons, FEEDBACK_RATE, bias=False)
    return [
        binary(inputs, neurons, REC_RATE),
        Recurrent(neuron(), feedback),
        binary(neurons, classes, FEEDBACK_RATE),
        LeakyIntegrator(BETA),
    ]


def rec_sides(network: Network, exported: Any, x: Tensor) -> dict[str, Callable[[], Outcome]]:
    """Forward and backward of the readout's sum."""
    own, theirs = list(network.parameters()), list(exported.parameters())
    return {
        OURS: lambda: trained(lambda: network(x)[0], own),
        RLEAKY: lambda: trained(lambda: exported(x)[0], theirs),
    }


def measure_rec(settings: Settings) -> Part:
    """Every batch, in every memory mode; the gate on 100 steps, before a rounded sum's spike has spread."""
    part = Part(facts={"gate": []})
    inputs, neurons, classes, steps = (20, 40, 5, 15) if settings.tiny else (700, 512, 20, 500)
    layers = recurrent_layers(inputs, neurons, classes)
    batches: Sequence[int] = (3,) if settings.tiny else BATCHES
    for batch in batches:
        shape = f"REC {inputs}-{neurons}R-{classes} T={steps} B={batch} fwd+bwd, {settings.label}"
        x = spikes_in(steps, batch, inputs, REC_RATE)
        sides: dict[str, Callable[[], Outcome]] = {}
        for mode in modes():
            network = network_of(layers, mode)
            part.facts["gate"].append({"mode": mode, **check_networks(shape, network, x[:100, :4], SPIKING)})
            both = rec_sides(network, in_snntorch(network), x)
            sides |= {_named(mode): both[OURS], RLEAKY: both[RLEAKY]}
        times = settings.times(sides, rounds=3, repeats=1)
        part.rows.append({"shape": shape, **row(times, OURS, RLEAKY, REC_AIMS.get(batch))})
        part.rows += [{"shape": shape, **row(times, OURS, _named(mode))} for mode in modes()[1:]]
    return part


def _named(mode: str) -> str:
    return OURS if mode == modes()[0] else f"{OURS}, {mode}"
