"""What a run says about its mechanism: gradients by layer and time, turned weights, what codes lose, where gradients point."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tbnn.compare.gradients import cosine, gradient_norms, gradient_over_time, smoothed_gradient, weight_gradients
from tbnn.compare.mechanism import Flips, reconstruction_errors
from tbnn.losses import cross_entropy
from tbnn.nn import Network
from tbnn.train.config import OptimConfig

POINTS = 32  # of a course over time


class Observer:
    """Watch one network train, on a batch of its own.

    Args:
        network: of tbnn.
        words, labels: the batch, (T, B, words) and (B,).
        optim: the objective's settings.
        smoothed: pairs of samples of the smoothed gradient that the estimator's is compared with at the start and at the
            end (:func:`tbnn.compare.gradients.smoothed_gradient`); 0 for none.
    """

    def __init__(self, network: Network, words: Tensor, labels: Tensor, optim: OptimConfig, smoothed: int) -> None:
        self.network, self.words, self.labels, self.optim, self.smoothed = network, words, labels, optim, smoothed
        self.flips = Flips(network)
        self.norms: dict[str, list[float]] = defaultdict(list)
        self.start = self._look()

    def step(self) -> None:
        """After a step's gradients are there."""
        for name, norm in gradient_norms(self.network).items():
            self.norms[name].append(norm)

    def epoch(self) -> None:
        """After an epoch."""
        self.flips.observe()

    def report(self) -> dict[str, Any]:
        """For JSON: medians over steps, shares of weights, and what the batch shows at the start and at the end."""
        turned = self.flips.report()
        medians = {name: torch.tensor(norms).median().item() for name, norms in self.norms.items()}
        return {
            "layer_norms": _rounded(medians),
            "flips": [_number(share) for share in turned.epochs["all"]],
            "oscillated": _rounded(turned.oscillated),
            "start": self.start,
            "end": self._look(),
        }

    def _loss(self, readout: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(readout, labels, self.optim.readout, self.optim.label_smoothing)

    def _look(self) -> dict[str, Any]:
        """At the network as it is, which stays so."""
        network, words = self.network, self.words
        errors = reconstruction_errors(network, words)
        over_time = gradient_over_time(network, words, lambda readout: self._loss(readout, self.labels))
        found: dict[str, Any] = {
            "weights_lose": _rounded(errors.weights),
            "spikes_lose": _rounded(errors.spikes),
            "rates": _rounded(errors.rates),
            "silent": _rounded(errors.silent),
            "over_time": {name: [_number(v) for v in _course(norms)] for name, norms in over_time.items()},
        }
        if self.smoothed:
            was_training = network.training
            reference = smoothed_gradient(network.eval(), words, self.labels, self._loss, samples=self.smoothed)
            own = weight_gradients(network, words, lambda readout: self._loss(readout, self.labels))
            network.train(was_training)
            shared = {
                name: reference.gradient[name] for name in own if name in reference.gradient
            }  # frozen weights have none
            found["cosine"] = _rounded(cosine({name: own[name] for name in shared}, shared))
            found["cosine_ceiling"] = _rounded(reference.ceiling)
        return found


def _course(norms: Tensor) -> list[float]:
    """A course (T,) as at most 32 values, each the root mean square of its steps."""
    pieces = norms.tensor_split(min(POINTS, len(norms)))
    return [piece.square().mean().sqrt().item() for piece in pieces]


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
