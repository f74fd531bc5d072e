"""Several steps at once find what the steps find one by one: loss, readouts, gradients, running averages."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.learning import Eprop, LearningConfig, Ottt, rule_of
from tbnn.learning.online import OnlineRule
from tbnn.nn import (
    Adaptive,
    BinaryConv2d,
    BinaryLinear,
    Leaky,
    LeakyIntegrator,
    Network,
    SpikeDropout,
    Synaptic,
    TargetRate,
    TemporalBatchNorm,
    Winners,
)
from tests.learning.small_networks import batch, deep, with_readout

RULES = [
    ("ottt", {}),
    ("eprop", {}),
    ("eprop", {"feedback": "random"}),
    ("eprop", {"feedback": "adaptive"}),
    ("fa", {}),
]
RULES += [("dfa", {}), ("dfa", {"feedback": "adaptive"}), ("decolle", {})]
SPIKES: dict[str, dict[str, Any]] = {
    "surrogate": {"gradient": "surrogate"},
    "soft": {"target": "soft"},
    "trace": {"target": "trace"},
    "trace's slope": {"target": "trace", "differentiate_stats": False},
    "of a step": {"target": "trace", "stats": "step"},
    "a layer": {"target": "soft", "per_channel": False},
    "no reset": {"gradient": "surrogate", "reset_mechanism": "none"},
    "refractory": {"target": "trace", "refractory": 2},
    "winners": {"target": "trace", "activity": Winners(3)},
}
NEURONS: dict[str, Any] = {
    "synaptic": lambda: Synaptic(0.8, 0.9, target="trace"),
    "adaptive": lambda: Adaptive(0.875, 0.9, target="trace"),
    "adaptive, surrogate": lambda: Adaptive(0.875, 0.9, gradient="surrogate"),
    "adaptive, no reset": lambda: Adaptive(0.875, 0.9, gradient="surrogate", reset_mechanism="none"),
    "a threshold each": lambda: Leaky(0.875, threshold=torch.linspace(0.5, 1.5, 9), target="trace"),
}


def convolutional() -> Network:
    def neuron() -> Leaky:
        return Leaky(0.875, target="trace", differentiate_stats=False)

    first = [BinaryConv2d(2, 4, 3, padding=1), TemporalBatchNorm(4), neuron(), nn.MaxPool2d(2), SpikeDropout(0.3)]
    second = [
        BinaryConv2d(4, 5, 3, padding="same"),
        neuron(),
        nn.Flatten(2),
        BinaryLinear(45, 4),
        LeakyIntegrator(0.75),
    ]
    return Network([*first, *second], input_shape=(2, 6, 6)).double()


def found(network: Network, rule: OnlineRule, x: Tensor, y: Tensor, **options: Any) -> list[Tensor]:
    """All that two batches leave behind."""
    changes: list[Tensor] = []

    def change() -> None:
        with torch.no_grad():
            for parameter in [*network.parameters(), *rule.parameters()]:
                if parameter.grad is not None:
                    changes.append(parameter.grad.clone())
                    parameter -= 0.01 * parameter.grad
                    parameter.grad = None

    outcomes = [rule.sequence(x, y, change, **options) for _ in range(2)]
    said = [part for outcome in outcomes for part in (torch.tensor(outcome.loss).double(), outcome.readout)]
    kept = [*rule.state_dict().values(), *network.state_dict().values()]
    return [*said, *changes, *(part.clone() for part in kept if part.is_floating_point())]


def check(make: Any, x: Tensor, y: Tensor, name: str, settings: dict[str, Any], **options: Any) -> None:
    results = []
    for stretch in (None, 5, 64):
        torch.manual_seed(3)
        network = make()
        rule = rule_of(network, LearningConfig(rule=name, **settings), 0)  # pyright: ignore[reportArgumentType]
        assert isinstance(rule, OnlineRule)
        assert rule.stretches
        rule.stretch = stretch
        torch.manual_seed(4)
        results.append(found(network, rule, x, y, **options))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(theirs.double(), mine.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("spikes", SPIKES)
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("name", "settings"), RULES)
def test_they_find_what_single_steps_find(name: str, settings: dict[str, Any], recurrent: bool, spikes: str) -> None:
    x, y = batch()
    check(lambda: with_readout(recurrent, **SPIKES[spikes]), x, y, name, settings)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize(("name", "settings"), [("ottt", {}), ("eprop", {"adaptation": False}), ("decolle", {})])
def test_of_neurons_with_a_second_state_too(name: str, settings: dict[str, Any], neuron: str) -> None:
    x, y = batch()
    check(lambda: with_readout(True, neuron=NEURONS[neuron]()), x, y, name, settings)


@pytest.mark.parametrize(("name", "settings"), RULES)
def test_of_deeper_networks_too(name: str, settings: dict[str, Any]) -> None:
    x, y = batch()
    check(lambda: deep(target="trace"), x, y, name, settings)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["ottt", "fa", "dfa", "decolle"])
def test_of_convolutions_norms_pools_and_dropout_too(name: str, training: bool) -> None:
    x, y = (torch.rand(12, 3, 2, 6, 6) < 0.5).double(), torch.tensor([0, 3, 1])
    check(lambda: convolutional().train(training), x, y, name, {})


@pytest.mark.parametrize("steps", [1, 3, 5, 7])
@pytest.mark.parametrize("name", ["ottt", "eprop"])
def test_where_weights_change_within_a_sequence_a_stretch_ends(name: str, steps: int) -> None:
    x, y = batch()
    check(lambda: with_readout(True, target="trace"), x, y, name, {}, steps=steps)


@pytest.mark.parametrize("neuron", [{"reset_mechanism": "zero"}, {"activity": TargetRate(0.1)}])
def test_what_is_not_linear_goes_step_by_step(neuron: dict[str, Any]) -> None:
    rule = Ottt(with_readout(neuron=Leaky(0.875, **neuron)))
    assert not rule.stretches
    x, y = batch()
    before = rule.sequence(x, y)
    rule.stretch = None
    assert torch.equal(before.readout, rule.sequence(x, y).readout)


def test_adaptation_that_carries_credit_goes_step_by_step() -> None:
    network = with_readout(neuron=Adaptive(0.875, 0.9))
    assert not Eprop(network).stretches
    assert Eprop(network, adaptation=False).stretches


def test_memory_does_not_grow_with_the_sequence() -> None:
    """What a stretch leaves for the next has one step's sizes."""
    network = with_readout(True, target="trace")
    rule, kept = Ottt(network), []
    carry = rule.carry_steps

    def watched(stage: Any) -> Any:
        kept.append(stage.carry(None))
        return carry(stage)

    rule.carry_steps = watched  # pyright: ignore[reportAttributeAccessIssue]
    x, y = batch(steps=150)
    rule.sequence(x, y)
    sizes = [sum(part.numel() for part in one.inputs + one.ones) for one in kept]
    assert len(sizes) == 2 * len(rule.stages)
    assert sizes[: len(rule.stages)] == sizes[len(rule.stages) :]
    assert max(sizes) <= 3 * (9 + 1)
