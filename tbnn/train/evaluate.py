"""How well a network does on a split."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.losses import cross_entropy, logits
from tbnn.metrics import confusion_matrix
from tbnn.nn import FiringRates


@dataclass(frozen=True)
class Evaluation:
    """The result on one split."""

    loss: float
    accuracy: float
    samples: int
    confusion: list[list[int]]
    """Counts, [true class][predicted class]."""
    rates: dict[str, float]
    """Spikes per neuron and step of every spiking layer."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int, readout: str) -> Evaluation:
    """Run a network in evaluation mode over batches of (words or frames (T, B, …), labels (B,))."""
    was_training = network.training
    network.eval()
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    loss = 0.0
    with FiringRates(network) as rates:
        for x, labels in batches:
            y = network(x)[0]
            loss += cross_entropy(y, labels, readout).item() * len(labels)
            confusion += confusion_matrix(labels.cpu(), logits(y, readout).argmax(1).cpu(), classes)
    network.train(was_training)
    samples = int(confusion.sum())
    accuracy = confusion.trace().item() / samples
    return Evaluation(loss / samples, accuracy, samples, confusion.tolist(), rates.mean())
