"""What rules refuse, and what they say: layers they are not derived for, targets, options."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.learning import (
    Bptt,
    DirectFeedbackAlignment,
    Eprop,
    LearningConfig,
    Ostl,
    Ottt,
    RewardEprop,
    Rtrl,
    Rule,
    rule_of,
)
from tbnn.nn import (
    Adaptive,
    BinaryConv2d,
    BinaryLinear,
    CustomNeuron,
    DelayedLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    Residual,
    TemporalBatchNorm,
    Voting,
)
from tests.learning.small_networks import ONLINE, batch, with_readout

SURROGATE: dict[str, Any] = {"gradient": "surrogate"}


class Custom(CustomNeuron):
    def rest(self, current: Tensor) -> Tensor:
        return torch.zeros_like(current)

    def membrane(self, current: Tensor, spikes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return current - 1, state


@pytest.mark.parametrize(
    ("layers", "rule", "message"),
    [
        ([DelayedLinear(6, 4, 3), Leaky(0.9)], Ottt, "ottt: layers.0: expected .*BinaryLinear.*, got DelayedLinear"),
        ([BinaryConv2d(2, 3, 3), Leaky(0.9)], Eprop, "eprop: layers.0: expected Linear or BinaryLinear.*, got BinaryConv2d"),
        ([BinaryLinear(6, 4), Custom(1.0)], Ottt, "ottt: layers.1: expected Leaky, Synaptic, .*, got Custom"),
        ([BinaryLinear(6, 4)], Ottt, "ottt: layers.1: expected Leaky.* after the weights, got nothing"),
        ([BinaryLinear(6, 4), Leaky(0.9, learn_beta=True)], Ottt, "layers.1: expected .*constants are fixed, got a trained beta"),
        ([BinaryLinear(6, 4), Leaky(0.9, emit="denoised")], Ottt, "layers.1: expected emit='bits', got 'denoised'"),
        ([BinaryLinear(6, 4), Leaky(torch.linspace(0.1, 0.9, 4))], Ottt, "layers.0: beta: .*one value for the layer.*0.1 to 0.9"),
        ([BinaryLinear(6, 6), Recurrent(Leaky(0.9), BinaryLinear(6, 6), 2)], Eprop, "layers.1: .*after 1 step, got delay=2"),
        ([BinaryLinear(6, 4), TemporalBatchNorm(4), Leaky(0.9)], Eprop, "expected no batch norm.*ottt takes it"),
        ([BinaryLinear(6, 4), TemporalBatchNorm(4), Leaky(0.9)], Ostl, "expected no batch norm.*ottt takes it"),
        ([BinaryLinear(6, 4), Adaptive(0.9)], Ostl, "expected Leaky neurons, got Adaptive; ottt and eprop take them"),
        ([BinaryLinear(6, 4), Leaky(0.9, target="trace")], Ostl, "a surrogate or target='soft', got target='trace'"),
        ([BinaryLinear(6, 4), LeakyIntegrator(0.9), BinaryLinear(4, 4), Leaky(0.9)], Ottt, "a readout before the last layer"),
        ([Residual([BinaryLinear(6, 6), Leaky(0.9)])], Ottt, "ottt: layers.0: expected .*, got Residual"),
        ([Flatten()], Ottt, r"expected layers of weights and neurons, got \['Flatten'\]"),
    ],
)  # fmt: skip
def test_other_layers_are_refused_by_name(layers: list[nn.Module], rule: Callable[..., Rule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(Network(layers))


def test_bad_targets_states_and_options_are_refused() -> None:
    net = with_readout(**SURROGATE)
    x, y = batch(steps=2)
    for name in ONLINE:
        with pytest.raises(ValueError, match=f"{name}: update: expected a step before, got none"):
            rule_of(net, LearningConfig(rule=name)).update(y)  # pyright: ignore[reportArgumentType]
    rule = Ottt(net)
    rule.step(x[0])
    with pytest.raises(ValueError, match=r"target: expected classes \(3,\) or shares \(3, 4\), got torch.int64 \(2,\)"):
        rule.update(y[:2])
    with pytest.raises(ValueError, match=r"expected classes \(3,\) to reward"):
        RewardEprop(net).sequence(x, torch.rand(3, 4))
    for call, message in (
        (lambda: Bptt(net, truncate=0), "truncate: expected a number of steps >= 1, got 0"),
        (
            lambda: Eprop(net, feedback="none"),
            "feedback: expected one of 'symmetric', 'random', 'adaptive', got 'none'",
        ),
        (lambda: Ottt(net, momentum=0.0), r"momentum: expected a number in \(0, 1\], got 0"),
        (lambda: RewardEprop(net, discount=1.5), r"discount: expected a number in \[0, 1\], got 1.5"),
        (lambda: RewardEprop(net, feedback="adaptive"), "expected 'symmetric' or 'random' for rewards, got 'adaptive'"),
        (lambda: DirectFeedbackAlignment(net, feedback_scale=math.nan), "feedback_scale: .*, got nan"),
        (
            lambda: Ostl(with_readout(reset_mechanism="zero", **SURROGATE), through_reset=True),
            "reset_mechanism='subtract'",
        ),
        (lambda: Rtrl(net, largest=10).step(x[0]), "rtrl: expected .* at most 10, got"),
        (lambda: Ottt(nn.Linear(2, 2)), "ottt: expected a tbnn.nn.Network, got Linear"),
        (
            lambda: DirectFeedbackAlignment(Network([BinaryConv2d(2, 3, 3), Leaky(0.9), Flatten(), Voting(2)])),
            "dfa: expected a network with input_shape",
        ),
        (lambda: rule_of(net, LearningConfig()), "expected an online rule, ottt, .*, got 'bptt'"),
        (lambda: Ottt(net).load_state_dict({"ridges.0.count": torch.zeros(2)}), "Missing|Unexpected|count"),
        (lambda: Bptt(net).load_state_dict({"x": torch.zeros(2)}), "bptt: expected no saved state, got x"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rule": "ottt", "feedback": "random"},
            "learning.feedback: belongs to dfa, eprop, reward; .*'ottt', got 'random'",
        ),
        ({"rule": "dfa", "feedback": "symmetric"}, "expected 'random' or 'adaptive' for 'dfa', got 'symmetric'"),
        ({"rule": "ottt", "update_every": 0}, "update_every: expected a number of steps >= 1, got 0"),
        ({"update_every": 3}, "back-propagation takes optim.truncate instead"),
        ({"through_reset": True}, "learning.through_reset: belongs to ostl"),
    ],
)
def test_options_belong_to_their_rules(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningConfig(**options)
