"""Networks of a few neurons, and the gradients that rules find in them."""

from typing import Any

import torch
from torch import Tensor

from tbnn.learning import Rule
from tbnn.learning.config import USES
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent

ONLINE = [
    name for name in USES if name not in ("bptt", "equilibrium", "stdp")
]  # the last two have networks of their own
STEPS, BATCH, INPUTS, HIDDEN, CLASSES = 12, 3, 6, 9, 4
KAPPA = 0.75


def hidden(neuron: Any, recurrent: bool) -> list[Any]:
    return [BinaryLinear(INPUTS, HIDDEN), Recurrent(neuron, BinaryLinear(HIDDEN, HIDDEN)) if recurrent else neuron]


def one_layer(recurrent: bool = False, **options: Any) -> Network:
    """Neurons that are themselves the readout."""
    return Network(hidden(Leaky(0.875, **options), recurrent)).double()


def with_readout(recurrent: bool = False, neuron: Any = None, **options: Any) -> Network:
    neuron = neuron or Leaky(0.875, **options)
    return Network([*hidden(neuron, recurrent), BinaryLinear(HIDDEN, CLASSES), LeakyIntegrator(KAPPA)]).double()


def deep(**options: Any) -> Network:
    middle = [BinaryLinear(HIDDEN, HIDDEN), Leaky(0.875, **options)]
    readout = [BinaryLinear(HIDDEN, CLASSES), LeakyIntegrator(KAPPA)]
    return Network([*hidden(Leaky(0.875, **options), False), *middle, *readout]).double()


def batch(classes: int = CLASSES, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    return (torch.rand(steps, BATCH, INPUTS) < 0.5).double(), torch.randint(0, classes, (BATCH,))


def gradients(rule: Rule, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """By a sequence, of every parameter."""
    rule.network.zero_grad()
    rule.sequence(x, target)
    return {name: p.grad.clone() for name, p in rule.network.named_parameters() if p.grad is not None}
