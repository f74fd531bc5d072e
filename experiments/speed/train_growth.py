"""GROWTH: how the time of forward and backward grows with steps, batch and neurons."""

import torch
from growth import exponent
from suite import Part, Settings, claim
from train_sides import binary, check_networks, network_of, neuron, spikes_in, trained

INPUTS, RATE = 512, 0.2
FIXED = {"T": 100, "B": 16, "N": 512}
SWEEPS = {
    "T": [100, 200, 500, 1000, 2000, 5000, 10_000],
    "B": [4, 8, 20, 40, 80, 200, 400],
    "N": [128, 256, 512, 1024, 2048, 4096, 8192, 12_800],
}
TOLERANCE = 0.1


def measure(settings: Settings) -> Part:
    """A binary layer from 512 inputs to N leaky neurons; one of steps, batch and neurons varied over two decades."""
    part = Part(facts={"gate": [], "sweeps": [], "claims": []})
    x = spikes_in(20, 3, INPUTS, RATE)
    part.facts["gate"].append(check_networks("GROWTH", network_of([binary(INPUTS, 40, RATE), neuron()]), x, 2))
    fixed = {"T": 10, "B": 2, "N": 32} if settings.tiny else FIXED
    for grows, values in SWEEPS.items():
        some = [10 * fixed[grows], 20 * fixed[grows]] if settings.tiny else values
        seconds = [_seconds({**fixed, grows: value}, settings) for value in some]
        power = exponent([float(value) for value in some], seconds)
        part.facts["sweeps"].append({"grows": grows, "values": some, "seconds": seconds, "exponent": power})
        name = f"GROWTH: exponent of the time over {grows}, {some[0]} to {some[-1]}, {settings.label}"
        part.facts["claims"].append(claim(name, power, 1 - TOLERANCE, 1 + TOLERANCE))
    return part


def _seconds(size: dict[str, int], settings: Settings) -> float:
    """The median of several runs."""
    network = network_of([binary(INPUTS, size["N"], RATE), neuron()])
    x, own = spikes_in(size["T"], size["B"], INPUTS, RATE), list(network.parameters())
    times = settings.times({"tbnn": lambda: trained(lambda: network(x)[0], own)}, rounds=3, repeats=3)
    return float(torch.tensor(times["tbnn"]).median())
