"""Agreement with back-propagation: exact rules, opposite ones, what recurrence costs, and that measuring changes nothing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.learning import Bptt, Eprop, LearningConfig, Ostl, Ottt, Rtrl, Rule, RuleState, rule_of
from tbnn.learning.alignment import ALL, AlignmentLog, agreement, alignment
from tbnn.learning.rule import Outcome
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, TargetRate, TemporalBatchNorm
from tests.learning.small_networks import CLASSES, HIDDEN, INPUTS, ONLINE, batch, one_layer, with_readout

SURROGATE: dict[str, Any] = {"gradient": "surrogate"}
TRACE: dict[str, Any] = {"target": "trace", "stats": "step", "differentiate_stats": False}


class Opposite(Rule):
    """Steps up the gradient."""

    name = "opposite"

    def step(self, x: Tensor, state: RuleState | None = None) -> RuleState:
        raise NotImplementedError

    def credit(self, target: Tensor, weight: float) -> float:
        raise NotImplementedError

    def sequence(self, x: Tensor, target: Tensor, *_: Any, **__: Any) -> Outcome:
        outcome = Bptt(self.network).sequence(x, target)
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(-3)
        return outcome


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        (Eprop, lambda: with_readout(**SURROGATE)),
        (Eprop, lambda: with_readout(**TRACE)),
        (Ottt, lambda: one_layer(**SURROGATE)),
        (Ostl, lambda: one_layer(recurrent=True, **SURROGATE)),
        (Rtrl, lambda: with_readout(recurrent=True, **SURROGATE)),
        (Bptt, lambda: with_readout(recurrent=True)),
    ],
)
def test_exact_rules_agree_in_every_parameter(kind: Any, network: Any) -> None:
    net = network()
    x, y = batch(HIDDEN if len(net.layers) == 2 else CLASSES)
    found = alignment(kind(net), x, y)
    assert list(found) == [*(name for name, _ in net.named_parameters()), ALL]
    for name, (cosine, ratio) in found.items():
        assert cosine == pytest.approx(1, abs=1e-9), name
        assert ratio == pytest.approx(1, rel=1e-6), name


def test_smoothed_labels_are_the_rules_own() -> None:
    x, y = batch()
    rule = Eprop(with_readout(**SURROGATE))
    rule.label_smoothing = 0.3
    assert alignment(rule, x, y)[ALL].cosine == pytest.approx(1, abs=1e-9)
    assert alignment(rule, x, y, Bptt(rule.network))[ALL].cosine < 1 - 1e-6


def test_the_other_way() -> None:
    x, y = batch()
    for cosine, ratio in alignment(Opposite(with_readout(recurrent=True)), x, y).values():
        assert cosine == pytest.approx(-1)
        assert ratio == pytest.approx(3)


def test_what_eprop_leaves_out_of_recurrent_credit_is_seen() -> None:
    x, y = batch()
    net = with_readout(recurrent=True, **SURROGATE)
    found = alignment(Eprop(net), x, y)
    assert 0 < found["layers.0.weight"].cosine < 0.999
    assert 0 < found["layers.1.recurrent_layer.weight"].cosine < 0.999
    assert found["layers.2.weight"].cosine == pytest.approx(1)
    # Without the feedback's weights there is nothing to leave out.
    with torch.no_grad():
        net.layers[1].recurrent_layer.weight.mul_(1e-9)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    assert alignment(Eprop(net), x, y)["layers.0.weight"].cosine == pytest.approx(1)


def test_a_truncated_gradient_against_the_whole() -> None:
    x, y = batch()
    found = alignment(Bptt(with_readout(**SURROGATE), truncate=2), x, y)
    assert found["layers.0.weight"].cosine < 1 - 1e-6


def test_agreement_by_hand() -> None:
    assert agreement(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])) == pytest.approx((24 / 25, 1.0))
    assert agreement(torch.tensor([1e-30, 0.0]), torch.tensor([2e30, 0.0])) == pytest.approx((1.0, 5e-61))
    zero, one = torch.zeros(2), torch.ones(2)
    assert agreement(zero, one) == (0.0, 0.0)
    assert agreement(one, zero) == (0.0, math.inf)
    assert all(math.isnan(number) for number in agreement(zero, zero))


def everything(rule: Rule) -> dict[str, Tensor]:
    """What a measurement could change."""
    network = rule.network
    own = {f"own {i}": p for i, p in enumerate(rule.parameters())}
    values = {**network.state_dict(), **{f"rule {k}": v for k, v in rule.state_dict().items()}, **own}
    grads = {f"grad {k}": p.grad for k, p in [*network.named_parameters(), *own.items()] if p.grad is not None}
    modes = {f"mode {k}": torch.tensor(m.training) for k, m in network.named_modules()}
    return {k: v.clone() for k, v in {**values, **grads, **modes, "random": torch.get_rng_state()}.items()}


OPTIONS: dict[str, dict[str, Any]] = {
    "decolle": {"learn_readouts": True},
    "dfa": {"feedback": "adaptive"},
    "eprop": {"feedback": "adaptive"},
}


class Restless(nn.Module):
    """Counts its calls and draws numbers, in evaluation too."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (torch.rand(()) >= 0)


def watched(name: str) -> Network:
    """With all that keeps statistics and draws, where the rule takes it."""
    neuron = Leaky(0.875, target="soft" if name == "ostl" else "trace", activity=TargetRate(0.2))
    norm: list[nn.Module] = [TemporalBatchNorm(HIDDEN)] if name in ("ottt", "decolle", "fa", "dfa") else []
    layers = [Restless(), BinaryLinear(INPUTS, HIDDEN), *norm, Recurrent(neuron, BinaryLinear(HIDDEN, HIDDEN))]
    return Network(
        [*layers, nn.Dropout(0.3), BinaryLinear(HIDDEN, CLASSES), LeakyIntegrator(0.5)], input_shape=(INPUTS,)
    ).double()


@pytest.mark.parametrize("name", ["bptt", *ONLINE])
def test_measuring_changes_nothing(name: str) -> None:
    x, y = batch(steps=5)
    net = watched(name)
    net.layers[1].eval()
    config = LearningConfig(rule=name, **OPTIONS.get(name, {}))  # pyright: ignore[reportArgumentType]
    rule = Bptt(net) if name == "bptt" else rule_of(net, config)
    rule.sequence(x, y)
    before = everything(rule)
    found = alignment(rule, x, y)
    assert all(-1 <= row.cosine <= 1 for row in found.values())
    after = everything(rule)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


@pytest.mark.parametrize("name", ["bptt", *ONLINE])
def test_a_rule_goes_on_as_if_it_had_not_been_measured(name: str) -> None:
    x, y = batch(steps=5)

    def learn(measure: bool) -> list[Tensor | None]:
        torch.manual_seed(7)
        net = watched(name)
        config = LearningConfig(rule=name)  # pyright: ignore[reportArgumentType]
        rule = Bptt(net) if name == "bptt" else rule_of(net, config)
        rule.sequence(x, y)
        if measure:
            alignment(rule, x, y)
        rule.sequence(x, y)
        return [parameter.grad for parameter in net.parameters()]

    for one, other in zip(learn(False), learn(True), strict=True):
        assert one is other or torch.equal(one, other)  # pyright: ignore[reportArgumentType]


def test_dropout_is_off() -> None:
    x, y = batch()
    first, *rest = list(with_readout(**SURROGATE).layers)
    found = alignment(Eprop(Network([first, rest[0], nn.Dropout(0.5), *rest[1:]])), x, y)
    assert found[ALL].cosine == pytest.approx(1, abs=1e-9)


def test_in_the_middle_of_a_sequence_a_rule_loses_nothing() -> None:
    x, y = batch(steps=6)
    net = with_readout(recurrent=True, **SURROGATE)
    first: Any = net.layers[0]

    def learn(measure: bool) -> Tensor:
        net.zero_grad()
        rule, state = Eprop(net), None
        for t, x_t in enumerate(x):
            state = rule.step(x_t, state)
            rule.credit(y, 0.5)
            if measure and t == 3:
                alignment(rule, x, y)
        rule.finish()
        return first.weight.grad.clone()

    assert torch.equal(learn(False), learn(True))


def test_a_log_of_training() -> None:
    x, y = batch()
    rule = Ottt(with_readout(**SURROGATE))
    log = AlignmentLog(rule, x, y, range(0, 10, 4))
    optimizer = torch.optim.SGD(rule.network.parameters(), lr=0.5)
    for step in range(10):
        found = log.observe(step)
        assert (found is not None) == (step in (0, 4, 8))
        optimizer.zero_grad()
        rule.sequence(x, y, optimizer.step)
    assert log.steps == [0, 4, 8]
    assert log.agreements[1] != log.agreements[0]
    first, *_, last = log.table()
    assert first == {"step": 0, "parameter": "layers.0.weight", **log.agreements[0]["layers.0.weight"]._asdict()}
    assert (last["step"], last["parameter"]) == (8, ALL)
    with pytest.raises(ValueError, match="expected a step after 8, got 8"):
        log.observe(8)
    assert AlignmentLog(rule, x, y).observe(3) is not None


def test_errors() -> None:
    x, y = batch()
    net = with_readout(**SURROGATE)
    with pytest.raises(ValueError, match="over the rule's own network, got another"):
        alignment(Ottt(net), x, y, Bptt(with_readout()))
    with pytest.raises(ValueError, match="target: expected classes"):
        alignment(Ottt(net), x, y[:1])
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="expected a network with parameters that take a gradient"):
        alignment(Ottt(net), x, y)
