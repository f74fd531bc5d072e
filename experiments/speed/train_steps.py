"""E2E: whole steps of training (forward, loss, backward, optimizer) of the zoo's networks against the same in snntorch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from suite import BETA, Part, Settings
from timing import row
from torch import Tensor, nn
from train_sides import check_networks, in_snntorch, modes

from tbnn.nn import Network, calibrate
from tbnn.nn.zoo import braille_recurrent, nmnist_conv

OURS, SNNTORCH = "tbnn", "snntorch"
AIM = 5.0
LEARNING_RATE = 1e-3
NEURON = {"beta": BETA, "gradient": "surrogate"}


class Case(NamedTuple):
    """A network and the shape and density of its data."""

    name: str
    make: Callable[[], Network]
    features: tuple[int, ...]
    classes: int
    steps: int
    batch: int
    rate: float
    spiking: int
    """Layers until the last spikes."""
    pools: bool


CASES = (
    Case("nmnist_conv", lambda: nmnist_conv(dropout=0, neuron=NEURON), (2, 34, 34), 10, 20, 32, 0.05, 8, True),
    Case(
        "braille_recurrent",
        lambda: braille_recurrent((256,), in_features=48, neuron=NEURON),
        (48,),
        7,
        64,
        32,
        0.05,
        2,
        False,
    ),
)


def measure(settings: Settings) -> Part:
    """Both networks; random data of their shapes, nothing is read from disk."""
    part = Part(facts={"gate": [], "samples_per_s": []})
    for case in CASES:
        steps, batch = (5, 2) if settings.tiny else (case.steps, case.batch)
        shape = f"E2E {case.name} T={steps} B={batch}, {settings.label}"
        torch.manual_seed(0)
        network = case.make()
        x = (torch.rand(steps, batch, *case.features) < case.rate).float()
        target = torch.randint(0, case.classes, (batch,))
        calibrate(network, x)
        network.eval()  # a batch norm of snntorch's network sees one step, ours all: in evaluation they are the same
        part.facts["gate"].append(check_networks(shape, network, x[:, :4], case.spiking, last_only=case.pools))
        network.train()
        times = settings.times(_sides(network, x, target), rounds=5, repeats=3)
        found = row(times, OURS, SNNTORCH, AIM)
        part.rows.append({"shape": shape, **found})
        rates = {side: 1e3 * batch / found[f"{key}_ms"] for side, key in ((OURS, "ours"), (SNNTORCH, "theirs"))}
        part.facts["samples_per_s"].append({"shape": shape, "memory": modes()[0], **rates})
        print(f"{shape}: " + ", ".join(f"{rate:.0f} samples a second with {side}" for side, rate in rates.items()))
    return part


def _sides(network: Network, x: Tensor, target: Tensor) -> dict[str, Callable[[], object]]:
    return {side: _step(net, x, target) for side, net in ((OURS, network), (SNNTORCH, in_snntorch(network)))}


def _step(network: nn.Module, x: Tensor, target: Tensor) -> Callable[[], object]:
    """A step of training, its optimizer and its loss the same for both."""
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, fused=True)

    def step() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x)[0].mean(0), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
