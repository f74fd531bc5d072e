"""Counts of learning, by hand on tiny networks, and against the simulator's and the rules' own memory."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from tbnn import pack, pack_bits
from tbnn.learning import (
    Bptt,
    Decolle,
    DirectFeedbackAlignment,
    Eprop,
    FeedbackAlignment,
    LearningConfig,
    Ostl,
    Ottt,
    RewardEprop,
    Rtrl,
    Rule,
    rule_of,
)
from tbnn.learning.binary import optimizer_for
from tbnn.learning.cost import cost_rows, learning_cost
from tbnn.nn import (
    Adaptive,
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
)
from tbnn.sim.energy import Memory, Technology
from tests.learning.small_networks import BATCH, HIDDEN, INPUTS, ONLINE, batch, with_readout

SURROGATE: dict[str, Any] = {"gradient": "surrogate"}
T = 3
# Powers of ten, so that each part of a sum can be read off; access: 64 bits for 64 pJ, whatever the size.
CHIP = Technology("toy", "a test", 1.0, 10.0, 90.0, (Memory(float("inf"), 64.0),))


def tiny(recurrent: bool = False, neuron: Any = None) -> Network:
    """Two inputs, three neurons, two classes, no bias."""
    neuron = neuron or Leaky(0.5, **SURROGATE)
    first = BinaryLinear(2, 3, bias=False, form="linear")
    layer = Recurrent(neuron, BinaryLinear(3, 3, bias=False, form="linear")) if recurrent else neuron
    return Network([first, layer, BinaryLinear(3, 2, bias=False, form="linear"), LeakyIntegrator(0.5)])


X = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])  # (3, 1, 2): three spikes


# I = 2, N = 3, C = 2; a hidden layer S = M = 6 (recurrent: 6 + 9 = 15), a readout S = 6, N = 2.
@pytest.mark.parametrize(
    ("kind", "recurrent", "hidden", "readout", "bits"),
    [
        # eligibility and update a step, hidden then readout; bits an input, neuron, synapse of the hidden stage
        (Ottt, False, (2, 6 + 3), (3, 6 + 6), (32, 0, 0)),
        (Ottt, True, (2 + 3, 15 + 3), (3, 6 + 6), (32, 32, 0)),
        (FeedbackAlignment, False, (2, 6 + 3), (3, 6 + 6), (32, 0, 0)),
        (DirectFeedbackAlignment, False, (2, 6 + 3 + 2 * 3), (3, 6), (32, 0, 0)),
        (Decolle, False, (2, 6 + 3 + 2 * 2 * 3), (3, 6), (32, 0, 0)),
        (Eprop, False, (2 + 2 * 6, 6 + 3), (3, 6 + 6), (32, 0, 32)),
        (Eprop, True, (2 + 3 + 2 * 15, 15 + 3), (3, 6 + 6), (32, 32, 32)),
        (RewardEprop, False, (2 + 4 * 6, 3), (3 + 2 * 6, 6), (32, 0, 64)),
        (Ostl, False, (2 * 6, 6 + 3), (3, 6 + 6), (0, 0, 32)),
        (Ostl, True, (5 * 45, 45 + 3), (3, 6 + 6), (0, 0, 32 * 6)),
        (Rtrl, False, (5 * 6 * 6, 6 * 6), (5 * 6 * 6, 6 * 6), (0, 0, 32 * 5)),
        (Bptt, False, (0, 6 + 2 * 3), (0, 6 + 2 + 6), (T, T * 33, 0)),
        (Bptt, True, (0, 15 + 2 * 3 + 9), (0, 6 + 2 + 6), (T, T * 33, 0)),
    ],
)
def test_by_hand(
    kind: Any, recurrent: bool, hidden: tuple[int, int], readout: tuple[int, int], bits: tuple[int, int, int]
) -> None:
    cost = learning_cost(kind(tiny(recurrent)), X)
    for row, (eligibility, update) in zip(cost.layers, (hidden, readout), strict=True):
        once = 6 if kind is RewardEprop else 0
        assert (row.eligibility, row.update) == (T * eligibility, T * update + once)
    first = cost.layers[0]
    assert (first.input_bits, first.neuron_bits - 32, first.synapse_bits - 1) == bits
    assert cost.total.eligibility == sum(row.eligibility for row in cost.layers)
    learning = 2 * bits[0] + 3 * bits[1] + (15 if recurrent else 6) * bits[2]
    feedback = 32 * 2 * 3 if kind in (DirectFeedbackAlignment, Decolle) else 0
    assert first.feedback_bits == feedback
    assert first.kept_bits == learning + feedback + 3 * 32 + (15 if recurrent else 6)


def test_options_that_cost_more() -> None:
    adaptive = tiny(neuron=Adaptive(0.5, rho=0.75, strength=0.25, **SURROGATE))

    def hidden(rule: Rule) -> Any:
        return learning_cost(rule, X).layers[0]

    with_, without = hidden(Eprop(adaptive)), hidden(Ottt(adaptive))
    assert with_.eligibility - without.eligibility == T * 4 * 6
    assert without.eligibility == T * 2 * 2  # β and ρ of each input's trace
    assert without.input_bits == 64
    assert with_.synapse_bits - without.synapse_bits == 64
    fixed, learnt = (hidden(Eprop(tiny(), feedback=kind)) for kind in ("random", "adaptive"))
    assert (fixed.feedback_bits, learnt.feedback_bits) == (32 * 6, 32 * 6)
    assert learnt.update - fixed.update == T * 6
    assert learnt.neuron_bits - fixed.neuron_bits == 32
    assert hidden(Ostl(tiny(), through_reset=True)).eligibility == T * 3 * 6
    assert hidden(Bptt(tiny(), truncate=2)).neuron_bits == 32 + 2 * 33
    assert learning_cost(FeedbackAlignment(tiny()), X).layers[1].feedback_bits == 32 * 6


def test_energy_by_hand() -> None:
    """OTTT on the tiny network, of two inputs, three spikes of which meet three weights each."""
    cost = learning_cost(Ottt(tiny()), X, technology=CHIP)
    row = cost.layers[0]
    assert row.forward == 3 * 3
    parts = row.forward_energy, row.neuron_energy, row.eligibility_energy, row.update_energy
    assert parts == pytest.approx([9e-12, T * (6 * 100 + 3 * 10) * 1e-12, T * 2 * 100e-12, T * 9 * 100e-12])
    weights = 9 * 1 + T * 32 * 3  # and a scale an output
    membranes, traces, gradients = 2 * T * 3 * 32, 2 * T * 2 * 32, 2 * T * 6 * 32
    assert row.memory_energy == pytest.approx((weights + membranes + traces + gradients) * 1e-12)
    assert row.energy == pytest.approx(sum(parts) + row.memory_energy)
    above = cost.layers[1]  # whose weights are read for the error on its way down
    moved = T * (6 + 2 * 32) + above.forward + 2 * T * 32 * (2 + 3 + 6)
    assert above.memory_energy == pytest.approx(moved * 1e-12)
    assert cost.total.energy == pytest.approx(row.energy + above.energy)
    whole = learning_cost(Bptt(tiny()), X, technology=CHIP).layers[0]
    stored = 2 * (2 * T + 3 * T * 33)  # written once, read once
    assert whole.memory_energy == pytest.approx((weights + membranes + stored + gradients) * 1e-12)


def test_learning_is_counted_dense() -> None:
    pruned = Network(
        [BinaryLinear(8, 6, sparsity=0.5), Leaky(0.5, **SURROGATE), BinaryLinear(6, 2), LeakyIntegrator(0.5)]
    )
    x = torch.ones(T, 1, 8)
    row = learning_cost(Eprop(pruned), x).layers[0]
    assert row.forward == T * 24
    assert row.update == T * (48 + 6 + 6)


def test_synaptic_operations_are_the_simulators() -> None:
    """Of sparse, convolutional, pooled and recurrent layers, from words."""
    torch.manual_seed(1)
    layers = [
        BinaryConv2d(2, 3, 3, padding=1, stride=2), Leaky(0.5), MaxPool2d(2), Flatten(),
        BinaryLinear(12, 8, sparsity=0.5), Recurrent(Leaky(0.5), BinaryLinear(8, 8)), BinaryLinear(8, 4), LeakyIntegrator(0.5),
    ]  # fmt: skip
    net = Network(layers, input_shape=(2, 8, 8)).eval()
    x = pack_bits((torch.rand(4, BATCH, 128) < 0.6).float())
    counts = pack(net).simulate(x).counts
    by_name = {row.name: row.effective_synops / BATCH for row in counts.layers if row.effective_synops}
    expected = list(by_name.values())
    found = [row.forward for row in learning_cost(Ottt(net), x).layers]
    assert found == pytest.approx([expected[0], expected[1] + expected[2], expected[3]])
    assert all(expected)


@pytest.mark.parametrize("recurrent", [False, True])
def test_rtrl_keeps_what_it_says(recurrent: bool) -> None:
    x, _ = batch(steps=2)
    net = with_readout(recurrent, **SURROGATE)
    rule = Rtrl(net)
    influence = rule.step(x[1, :1], rule.step(x[0, :1])).traces
    rows = learning_cost(Rtrl(net), x).layers
    # A bias of the recurrent layer is a column more, which as a second bias of the same neurons is not counted.
    columns = influence.shape[1] - (HIDDEN if recurrent else 0)
    kept = sum(row.kept_bits for row in rows) - sum(
        row.kept_bits for row in learning_cost(Bptt(net, truncate=1), x).layers
    )
    states = HIDDEN + 4 + (HIDDEN if recurrent else 0)
    assert influence.shape[0] == states
    other = INPUTS + HIDDEN * 33 + 4 * 32  # of the truncated gradient
    assert kept + other == 32 * states * columns


def test_eprop_keeps_what_it_says() -> None:
    x, _ = batch()
    rule = Eprop(with_readout(recurrent=True, **SURROGATE))
    state = None
    for x_t in x:
        state = rule.step(x_t, state)
    kept = state.traces[0][0].extra.value(rule.kappa)[0].numel()  # pyright: ignore[reportOptionalMemberAccess]
    own, without = learning_cost(rule, x).layers[0], learning_cost(Ottt(rule.network), x).layers[0]
    assert own.kept_bits - without.kept_bits == 32 * kept


def test_what_optimizers_keep() -> None:
    net = tiny()
    bits = [
        learning_cost(Ottt(net), X, optimizer).layers[0].synapse_bits
        for optimizer in (None, Adam(net.parameters()), SGD(net.parameters()), optimizer_for(net, "bop", lr=1e-3))
    ]
    assert bits == [1, 96, 32, 33]
    plain = Network([nn.Linear(2, 3), Leaky(0.5, **SURROGATE), BinaryLinear(3, 2), LeakyIntegrator(0.5)])
    mixed = learning_cost(Ottt(plain), X, optimizer_for(plain, "bop", lr=1e-3))
    assert [row.synapse_bits for row in mixed.layers] == [96, 33]
    assert learning_cost(Ottt(plain), X).layers[0].synapse_bits == 32


@pytest.mark.parametrize("name", ["bptt", *ONLINE])
def test_every_rule_has_a_formula_and_a_row(name: str) -> None:
    x, _ = batch(steps=4)
    net = with_readout(**SURROGATE)
    rule = Bptt(net) if name == "bptt" else rule_of(net, LearningConfig(rule=name))  # pyright: ignore[reportArgumentType]
    cost = learning_cost(rule, x)
    (row,) = cost_rows([cost])
    assert row["rule"] == name
    assert row["update"] == f"{cost.total.update:,.0f}"
    assert cost.table()[-1] == {"rule": name, **cost.table()[-1], "name": "total", "energy": cost.total.energy}
    assert f"by {name}" in cost.text()
    assert "Horowitz" in cost.text()
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_errors() -> None:
    class Unknown(Ottt):
        name = "unknown"

    with pytest.raises(ValueError, match=r"expected one of the rules ottt, fa, .*, got 'unknown'"):
        learning_cost(Unknown(tiny()), X)
    with pytest.raises(ValueError, match="technology: expected one of 45nm, got '7nm'"):
        learning_cost(Ottt(tiny()), X, technology="7nm")
    with pytest.raises(ValueError, match="at least one step"):
        learning_cost(Ottt(tiny()), X[:0])
