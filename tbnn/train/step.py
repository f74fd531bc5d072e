"""What one step of training is made of: the optimizer, its schedule, and the objective of a batch."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from tbnn.learning import Bptt, LearningConfig, Rule, match_scale, rule_of
from tbnn.learning.binary import optimizer_for
from tbnn.losses import cross_entropy, rate_target, temporal_efficient_training
from tbnn.nn import Network, rewire
from tbnn.nn.fused import sees_no_current
from tbnn.nn.health import spiking_layers
from tbnn.nn.weights import BinaryWeight
from tbnn.train.config import ModelConfig, OptimConfig


class Diverged(RuntimeError):
    """Training reached a loss, or a gradient, that is not a finite number."""


def optimizer_of(network: nn.Module, optim: OptimConfig, own: Iterable[nn.Parameter] = ()) -> Optimizer:
    """AdamW in one pass over all parameters, a rule's ``own`` among them, or an optimizer of binary weights.

    Where synapses may move (:class:`tbnn.nn.DeepR`) they do after each of its steps. Raises ``ValueError`` for options or
    weights that the optimizer does not know.
    """
    optimizer = _optimizer(network, optim, list(own))
    if any(isinstance(module, BinaryWeight) and module.rewirings is not None for module in network.modules()):

        def move(done: Optimizer, *_: Any) -> None:
            rewire(network, done)

        optimizer.register_step_post_hook(move)
    return optimizer


def _optimizer(network: nn.Module, optim: OptimConfig, own: list[nn.Parameter]) -> Optimizer:
    if optim.optimizer == "adamw":
        parameters = [*network.parameters(), *own]
        return AdamW(parameters, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)
    if own:
        raise ValueError(
            f"optim.optimizer: expected 'adamw' for a rule that learns its feedback, got {optim.optimizer!r}"
        )
    rates = {"lr": optim.learning_rate, "weight_decay": optim.weight_decay}
    whole = {name: int(value) if name in ("depth", "seed") else value for name, value in optim.options.items()}
    return optimizer_for(network, optim.optimizer, **rates, **whole)


def schedule_of(optimizer: Optimizer, optim: OptimConfig, batches: int) -> LRScheduler:
    """The learning rate over ``optim.epochs`` of ``batches`` steps each."""
    steps = optim.epochs * batches
    if optim.schedule == "one_cycle":
        return OneCycleLR(optimizer, optim.learning_rate, total_steps=steps)
    if optim.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return LambdaLR(optimizer, lambda _: 1.0)


def matched(network: nn.Module, words: Tensor, model: ModelConfig) -> None:
    """Before an epoch: scale surrogates by the ridge slope of a batch, if the configuration says so."""
    if model.match_scale and isinstance(network, Network):
        lam = model.lam if model.spike_lam is None else model.spike_lam
        match_scale(network, words, lam=lam, factor=model.scale)


@contextmanager
def _spikes_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """What each spiking layer emits inside the ``with`` block, with its graph."""
    spikes: list[Tensor] = []
    keep = sees_no_current(lambda _layer, _args, output: spikes.append(output[0]))
    hooks = [layer.register_forward_hook(keep) for layer in spiking_layers(network).values()]
    try:
        yield spikes
    finally:
        for hook in hooks:
            hook.remove()


def objective(model: nn.Module, x: Tensor, labels: Tensor, optim: OptimConfig) -> tuple[Tensor, Tensor]:
    """What training minimises, and the readout (T, B, C)."""
    return piece_objective(model, x, labels, optim, None)[:2]


def piece_objective(
    model: nn.Module, x: Tensor, labels: Tensor, optim: OptimConfig, state: Any
) -> tuple[Tensor, Tensor, Any]:
    """:func:`objective` of steps that go on from a state, and the state after them."""
    with _spikes_of(model) if optim.rate_weight else nullcontext([]) as spikes:
        readout, state = model(x) if state is None else model(x, state)
    if optim.loss == "tet":
        loss = temporal_efficient_training(readout, labels, optim.tet_lambda, label_smoothing=optim.label_smoothing)
    else:
        loss = cross_entropy(readout, labels, optim.readout, optim.label_smoothing)
    if optim.rate_weight:
        for layer_spikes in spikes:
            loss = loss + optim.rate_weight * rate_target(layer_spikes, optim.rate_target)
    return loss, readout, state


class Backpropagation(Bptt):
    """Back-propagation of training's objective, piece by piece if ``optim.truncate`` says so."""

    def __init__(self, network: nn.Module, optim: OptimConfig, backward: Callable[[Tensor], Any]) -> None:
        super().__init__(network, truncate=optim.truncate, backward=backward)
        self.optim = optim

    def piece(self, x: Tensor, target: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        loss, readout, state = piece_objective(self.network, x, target, self.optim, state)
        check_finite("the loss", loss.item())
        return loss, readout, state


def learner(
    network: nn.Module,
    optim: OptimConfig,
    learning: LearningConfig,
    seed: int = 0,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> Rule:
    """The rule by which training changes a network.

    Raises ``ValueError`` for a network that an online rule is not derived for, and for settings it has no use for.
    """
    if learning.rule == "bptt":
        return Backpropagation(network, optim, backward)
    for name, value in (("rate_weight", optim.rate_weight), ("truncate", optim.truncate)):
        if value:
            raise ValueError(
                f"optim.{name}: belongs to back-propagation, expected none with {learning.rule!r}, got {value:g}"
            )
    rule = rule_of(network, learning, seed)
    rule.label_smoothing = optim.label_smoothing
    return rule


def check_finite(what: str, value: float) -> None:
    """Raise :class:`Diverged` unless a number is finite."""
    if not math.isfinite(value):
        raise Diverged(f"{what} is {value}")
