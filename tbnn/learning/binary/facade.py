"""One optimizer for a whole network: binary weights by their rule, all that is real by AdamW."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from tbnn.learning.binary.bop import Bop, Bop2ndOrder
from tbnn.learning.binary.metaplastic import Metaplastic
from tbnn.learning.binary.signs import SignOptimizer
from tbnn.learning.binary.states import DiscreteStates
from tbnn.learning.binary.weights import binarize_, binary_layers, is_binary

KINDS: dict[str, type[SignOptimizer]] = {rule.kind: rule for rule in (Bop, Bop2ndOrder, Metaplastic, DiscreteStates)}


class BinaryOptimizer(Optimizer):
    """Two optimizers that step as one; ``param_groups`` are theirs, the binary weights' first.

    Every group has an ``lr`` that schedules may move, and ``betas``, which a one-cycle schedule moves too.

    Args:
        flips: over the binary weights.
        rest: over the real parameters; None if there are none.
    """

    def __init__(self, flips: SignOptimizer, rest: AdamW | None) -> None:
        self.flips, self.rest = flips, rest
        self._made = False
        defaults = flips.defaults if rest is None else rest.defaults
        shared = {"lr": defaults["lr"], "betas": defaults.get("betas", (0.9, 0.999))}
        super().__init__(self._groups(), shared)
        self._made = True

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._parts() for group in optimizer.param_groups]

    def _parts(self) -> list[Optimizer]:
        return [self.flips] if self.rest is None else [self.flips, self.rest]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not here: a group belongs to one of the two. Raises ``ValueError``."""
        if self._made:
            raise ValueError("BinaryOptimizer: expected parameters to be added to .flips or .rest, got a group")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._parts():
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Of both, by name."""
        return {
            "kind": self.flips.kind,
            "flips": self.flips.state_dict(),
            "rest": None if self.rest is None else self.rest.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`. Raises ``ValueError`` for one of another kind of optimizer, or of other weights."""
        if state_dict.get("kind") != self.flips.kind:
            raise ValueError(
                f"BinaryOptimizer: expected a state of kind {self.flips.kind!r}, got {state_dict.get('kind')!r}"
            )
        if (state_dict["rest"] is None) != (self.rest is None):
            raise ValueError("BinaryOptimizer: expected the same real parameters as in the state, got others")
        self.flips.load_state_dict(state_dict["flips"])
        if self.rest is not None:
            self.rest.load_state_dict(state_dict["rest"])
        self.param_groups = self._groups()


def optimizer_for(
    network: nn.Module, kind: str = "bop", *, lr: float = 2e-3, weight_decay: float = 0.0, **options: Any
) -> BinaryOptimizer:
    """An optimizer whose binary weights are ±c from now on: latent ones are turned into that first.

    Weights of 1 bit go to the rule of ``kind``; biases, norms' and neurons' parameters, delays and layers of real weights go
    to AdamW. A network that is binary already stays as it is; else the metaplastic rule starts from its latent weights.

    Args:
        network: with layers as :func:`tbnn.learning.binary.binary_layers` takes them.
        kind: "bop", "bop2", "metaplastic" or "states".
        lr, weight_decay: of AdamW; ``lr`` is also the rate of a schedule that means full strength for the binary weights.
        options: of the kind's class: :class:`Bop`, :class:`Bop2ndOrder`, :class:`Metaplastic`, :class:`DiscreteStates`.

    Raises:
        ValueError: another kind; options that it does not have or that make no sense; a network that cannot be binary.

    >>> from tbnn.nn import BinaryLinear, LeakyIntegrator, Network
    >>> network = Network([BinaryLinear(8, 4), LeakyIntegrator(0.9)])
    >>> optimizer = optimizer_for(network, "bop", threshold=1e-6)
    >>> is_binary(network)
    True
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    rule: Any = KINDS[kind]
    known = set(inspect.signature(rule).parameters) - {"weights", "lr", "latent"}
    if unknown := set(options) - known:
        raise ValueError(f"{kind}: expected options {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    layers = binary_layers(network)
    if not is_binary(network):
        latent = binarize_(network)
        options = options | ({"latent": latent} if kind == Metaplastic.kind else {})
    weights = list(dict.fromkeys(layer.weight for layer in layers.values()))
    flips = rule(weights, lr=lr, **options)
    real = [p for p in network.parameters() if p.requires_grad and p not in set(weights)]
    return BinaryOptimizer(flips, AdamW(real, lr=lr, weight_decay=weight_decay, fused=True) if real else None)
