"""Traces of one recording: they are those the rule learns by."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from tbnn import pack_bits
from tbnn.learning import Bptt, LearningConfig, Ottt, Rtrl, rule_of
from tbnn.learning.recording import TRACED, record_traces
from tbnn.nn import Adaptive, BinaryConv2d, Flatten, Leaky, LeakyIntegrator, Network, Recurrent

T, INPUTS, HIDDEN, CLASSES = 14, 6, 9, 4
SURROGATE: dict[str, Any] = {"gradient": "surrogate"}


def network(neuron: Any = None, recurrent: bool = False) -> Network:
    neuron = neuron or Leaky(0.875, **SURROGATE)
    first = nn.Linear(INPUTS, HIDDEN)
    with torch.no_grad():
        first.weight.mul_(3)
    hidden = Recurrent(neuron, nn.Linear(HIDDEN, HIDDEN)) if recurrent else neuron
    return Network([first, hidden, nn.Linear(HIDDEN, CLASSES), LeakyIntegrator(0.75)]).double()


def recording() -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.rand(T, 1, INPUTS) < 0.5).double(), torch.tensor([2])


@pytest.mark.parametrize("neuron", ["leaky", "trace", "adaptive"])
@pytest.mark.parametrize("name", TRACED)
def test_signal_times_eligibility_is_what_is_learned(name: str, neuron: str) -> None:
    kinds: dict[str, Any] = {
        "leaky": Leaky(0.875, **SURROGATE),
        "trace": Leaky(0.875, target="trace", stats="step", differentiate_stats=False),
        "adaptive": Adaptive(0.5, rho=0.75, strength=0.25, **SURROGATE),
    }
    if name == "ostl" and neuron != "leaky":
        pytest.skip("ostl knows the membrane of leaky neurons alone")
    x, y = recording()
    net = network(kinds[neuron])
    rule = rule_of(net, LearningConfig(rule=name))  # pyright: ignore[reportArgumentType]
    if name == "reward":
        rule.baseline = torch.tensor(-1.0)  # pyright: ignore[reportAttributeAccessIssue]
    chosen = [7, 0, 3]
    traces = record_traces(rule, x, y, chosen)
    learned = (traces.signal * traces.eligibility).mean(0)
    rule.sequence(x, y)
    first: Any = net.layers[0]
    grad = first.weight.grad.numpy()[chosen]  # pyright: ignore[reportOptionalMemberAccess]
    found = grad[np.arange(3), traces.inputs]
    assert_array_equal(traces.inputs, np.abs(grad).argmax(1))
    if name == "reward":  # a factor for all synapses: how much better than the mean it was
        largest = np.abs(learned).argmax()
        assert abs(found[largest]) > 1e-9
        learned = learned * (found[largest] / learned[largest])
    assert_allclose(found, learned, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["ottt", "eprop", "ostl"])
def test_recurrent_synapses_have_places_after_the_inputs(name: str) -> None:
    """With feedback that is there and weighs nothing, so that a neuron's spikes move no other."""
    x, y = recording()
    net = network(recurrent=True)
    first, recurrent = cast(Any, net.layers[0]), cast(Any, net.layers[1]).recurrent_layer
    with torch.no_grad():
        recurrent.weight.zero_()
    rule = rule_of(net, LearningConfig(rule=name))  # pyright: ignore[reportArgumentType]
    traces = record_traces(rule, x, y, list(range(HIDDEN)))
    rule.sequence(x, y)
    grad = torch.cat([first.weight.grad, recurrent.weight.grad], 1).numpy()
    assert traces.fan_in == INPUTS
    assert {place >= INPUTS for place in traces.inputs} == {True, False}
    found = grad[np.arange(HIDDEN), traces.inputs]
    assert_allclose(found, (traces.signal * traces.eligibility).mean(0), rtol=1e-6, atol=1e-12)
    assert_array_equal(traces.inputs, np.abs(grad).argmax(1))


def test_membranes_and_spikes_are_the_networks() -> None:
    x, y = recording()
    net = network()
    traces = record_traces(Ottt(net), pack_bits(x), y, 4)
    spikes = net.layers[1](net.layers[0](x))[0][:, 0].detach().numpy()
    assert_array_equal(traces.spikes, spikes)
    assert_array_equal(traces.spikes[:, traces.chosen], traces.membrane > traces.threshold)
    assert_array_equal(traces.threshold, 1)
    spread = traces.spikes.std(0)
    assert spread[traces.chosen].min() >= np.sort(spread)[-4]
    assert list(traces.chosen) == sorted(traces.chosen)
    assert (traces.rule, traces.layer) == ("ottt", "layers.0")


def test_it_forgets_the_recording() -> None:
    x, y = recording()
    rule = rule_of(network(), LearningConfig(rule="reward"))
    known = {name: value.clone() for name, value in rule.state_dict().items()}
    record_traces(rule, x, y)
    assert all(torch.equal(value, rule.state_dict()[name]) for name, value in known.items())
    assert all(parameter.grad is None for parameter in rule.network.parameters())
    assert rule._actions == []  # pyright: ignore[reportAttributeAccessIssue]


def test_errors() -> None:
    x, y = recording()
    net = network()
    for rule in (Bptt(net), Rtrl(net)):
        with pytest.raises(ValueError, match=f"a rule that keeps traces, ottt, eprop, .*, got '{rule.name}'"):
            record_traces(rule, x, y)
    with pytest.raises(ValueError, match=r"one recording \(T, 1, features...\), got \(14, 2, 6\)"):
        record_traces(Ottt(net), x.expand(-1, 2, -1), y)
    with pytest.raises(ValueError, match=r"stage: expected .*one of \[0\], got 1"):
        record_traces(Ottt(net), x, y, stage=1)
    for neurons in ([9], [], [-1]):
        with pytest.raises(ValueError, match="neurons: expected numbers from 0 to 8"):
            record_traces(Ottt(net), x, y, neurons)
    with pytest.raises(ValueError, match="neurons: expected at least 1, got 0"):
        record_traces(Ottt(net), x, y, 0)
    images = Network([BinaryConv2d(1, 2, 2), Leaky(0.9), Flatten(), nn.Linear(8, 2), LeakyIntegrator(0.9)], (1, 3, 3))
    with pytest.raises(ValueError, match=r"one of \[\], got 0"):
        record_traces(Ottt(images), torch.zeros(4, 1, 9), y)
