"""The protocol, and what each rule claims beyond being a gradient."""

import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn import pack_bits
from tbnn.learning import (
    Bptt,
    Decolle,
    DirectFeedbackAlignment,
    Eprop,
    FeedbackAlignment,
    LearningConfig,
    Ottt,
    RewardEprop,
    Rule,
    RuleState,
    rule_of,
)
from tbnn.nn import (
    Adaptive,
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    SpikeDropout,
    TargetRate,
    TemporalBatchNorm,
    Voting,
    detach,
)
from tests.learning.small_networks import (
    BATCH,
    CLASSES,
    HIDDEN,
    INPUTS,
    KAPPA,
    ONLINE,
    batch,
    deep,
    gradients,
    with_readout,
)

SURROGATE: dict[str, Any] = {"gradient": "surrogate"}


def rule_named(name: str, network: nn.Module, **options: Any) -> Rule:
    return rule_of(network, LearningConfig(rule=name, **options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ONLINE)
def test_steps_and_updates_are_what_a_sequence_does(name: str) -> None:
    x, y = batch(steps=5)
    net = with_readout(**SURROGATE)
    expected = gradients(rule_named(name, net), x, y)
    net.zero_grad()
    rule, state, loss = rule_named(name, net), None, 0.0
    for t, x_t in enumerate(x, 1):
        state = rule.step(x_t, state)
        if rule.every is not None or t == len(x):
            loss += rule.update(y, 1 / len(x) if rule.every else 1.0)
    for key, value in net.named_parameters():
        torch.testing.assert_close(value.grad, expected.get(key))
    assert math.isfinite(loss)


@pytest.mark.parametrize("name", [*ONLINE, "bptt"])
def test_readouts_are_the_networks_and_words_are_bits(name: str) -> None:
    x, y = batch(steps=4)
    net = with_readout(recurrent=True, **SURROGATE)
    rule = Bptt(net) if name == "bptt" else rule_named(name, net)
    outcome = rule.sequence(pack_bits(x), y)
    torch.testing.assert_close(outcome.readout, net(x)[0].detach())
    assert not outcome.readout.requires_grad
    losses = [torch.nn.functional.cross_entropy(readout, y).item() for readout in outcome.readout]
    if name != "reward":  # its loss is the share of wrong guesses
        assert outcome.loss == pytest.approx(sum(losses) / len(losses))


def detached(state: RuleState) -> RuleState:
    return state._replace(network=detach(state.network))


@pytest.mark.parametrize("name", ["bptt", *(name for name in ONLINE if name != "reward")])  # which draws at each step
def test_the_state_is_a_value(name: str) -> None:
    x, y = batch(steps=4)
    net = with_readout(recurrent=True, **SURROGATE)
    rule = Bptt(net) if name == "bptt" else rule_named(name, net)

    def last(state: RuleState | None) -> Tensor:
        net.zero_grad()
        rule.step(x[2], state)
        rule.update(y)
        return net.layers[0].weight.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]

    state = detached(rule.step(x[1], rule.step(x[0])))
    rule._readouts = []  # pyright: ignore[reportAttributeAccessIssue]
    first = last(state)
    last(None)
    torch.testing.assert_close(last(state), first)


def tensors() -> list[Tensor]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]


def kept_bytes(make: Callable[[], Rule], steps: int) -> int:
    """Bytes of all tensors alive after so many steps, those of the input left out."""
    gc.collect()
    before = {id(thing) for thing in tensors()}
    rule, state = make(), None
    for _ in range(steps):
        state = rule.step(torch.ones(BATCH, INPUTS, dtype=torch.float64), state)
    gc.collect()
    alive = [thing for thing in tensors() if id(thing) not in before]
    del rule, state
    return sum(thing.numel() * thing.element_size() for thing in alive)


@pytest.mark.parametrize("name", ["ottt", "eprop", "ostl", "decolle", "fa", "dfa", "rtrl"])
def test_memory_does_not_grow_with_time(name: str) -> None:
    net = with_readout(recurrent=True, **SURROGATE)
    lengths = (3, 9) if name == "rtrl" else (16 + 4, 5 * 16 + 4)  # at the same place of a chunk of e-prop's
    few, many = (kept_bytes(lambda: rule_named(name, net), steps) for steps in lengths)
    assert many == few


def test_bptts_memory_does() -> None:
    net = with_readout(recurrent=True, **SURROGATE)
    few, many = (kept_bytes(lambda: Bptt(net), steps) for steps in (4, 24))
    assert many > few


def test_an_eligibility_by_hand() -> None:
    """One input, one adaptive neuron: ψ, ε_v, ε_a and ē of three steps as the equations of e-prop say."""
    neuron = Adaptive(0.5, rho=0.75, strength=0.25, gradient="surrogate")
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    net = Network([first, neuron, second, LeakyIntegrator(0.5)])
    with torch.no_grad():
        first.weight.fill_(1.5)
        second.weight.fill_(2.0)
    rule, state = Eprop(net), None
    v = a = q = trace = adapted = eligible = filtered = 0.0
    for x in (1.0, 0.0, 1.0, 1.0):
        state = rule.step(torch.tensor([[x]]), state)
        a = 0.75 * a + q
        v = 0.5 * v + 1.5 * x - q
        u = v - 0.25 * a - 1
        q = float(u > 0)
        psi = 1 / (1 + (math.pi * u) ** 2)  # atan, α = 2
        adapted = 0.75 * adapted + eligible
        trace = 0.5 * trace + x
        eligible = psi * (trace - 0.25 * adapted)
        filtered = 0.5 * filtered + eligible
        kept = state.traces[0][0].extra
        assert kept.filtered[0, 0, 0].item() == pytest.approx(filtered, rel=1e-5)
        assert kept.adaptation[0, 0, 0].item() == pytest.approx(adapted, rel=1e-5)
    rule.credit(torch.tensor([0]), 1.0)  # one class: no error
    assert rule.forward_synapses[0].dweight.item() == 0


def test_adaptation_is_the_gradient_through_the_threshold() -> None:
    """Against autograd through a loop whose adaptation is not detached."""
    x, y = batch()
    beta, rho, strength, alpha = 0.875, 0.75, 0.25, 2.0
    neuron = Adaptive(beta, rho=rho, strength=strength, gradient="surrogate")
    net = with_readout(neuron=neuron)
    weight = net.layers[0].quantized_weight().detach().requires_grad_()  # pyright: ignore[reportCallIssue]
    readout = net.layers[2].quantized_weight().detach()  # pyright: ignore[reportCallIssue]
    from tbnn.surrogate import atan

    spike = atan(alpha)
    v = a = q = torch.zeros(BATCH, HIDDEN, dtype=torch.float64)
    out, loss = torch.zeros(BATCH, CLASSES, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for x_t in x:
        a = rho * a + q
        v = beta * v + x_t @ weight.T - q.detach()
        q = spike(v - strength * a - 1)
        out = KAPPA * out + q @ readout.T
        loss = loss + torch.nn.functional.cross_entropy(out, y) / len(x)
    loss.backward()
    rule, state = Eprop(net), None
    for x_t in x:
        state = rule.step(x_t, state)
        rule.credit(y, 1 / len(x))
    torch.testing.assert_close(rule.forward_synapses[0].dweight, weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("feedback", ["random", "adaptive"])
def test_broadcast_errors_need_no_weights_of_the_layers_above(feedback: str) -> None:
    x, _ = batch(steps=1)
    net = deep(**SURROGATE)
    error = torch.randn(BATCH, CLASSES, dtype=torch.float64)
    for rule in (Eprop(net, feedback=feedback), DirectFeedbackAlignment(net)):
        matrices = list(rule.broadcast.matrices)  # pyright: ignore[reportOptionalMemberAccess]
        states = rule.step(x[0]).traces[0]
        for index, matrix in enumerate(matrices):
            assert matrix.std().item() == pytest.approx(1 / math.sqrt(HIDDEN), rel=0.4)
            signal = rule.below(index + 1, states, torch.full((BATCH, CLASSES), torch.nan), error)
            torch.testing.assert_close(signal, error @ matrix.detach().double())


def test_adaptive_feedback_comes_to_agree_with_the_readout() -> None:
    """Kolen & Pollack: the same gradient and weight decay, so B − Wᵀ shrinks by 1 − η·λ a step, whatever is learnt."""
    net = Network(
        [nn.Linear(INPUTS, HIDDEN), Leaky(0.875, **SURROGATE), nn.Linear(HIDDEN, CLASSES), LeakyIntegrator(KAPPA)]
    )
    rule = Eprop(net.double(), feedback="adaptive")
    optimizer = torch.optim.SGD([*net.parameters(), *rule.parameters()], lr=0.5, weight_decay=0.1)
    weight, matrix = net.layers[2].weight, rule.parameters()[0]
    x, y = batch()
    apart = matrix.detach().double() - weight.detach()
    for _ in range(5):
        optimizer.zero_grad()
        rule.sequence(x, y)
        optimizer.step()
        apart = apart * (1 - 0.5 * 0.1)
        torch.testing.assert_close(matrix.detach().double() - weight.detach(), apart, rtol=1e-4, atol=1e-5)


def toy() -> tuple[Tensor, Tensor]:
    """Which half of the inputs is busy."""
    y = torch.arange(32) % 2
    busy = (torch.arange(16) < 8)[None] == (y == 0)[:, None]
    return (torch.rand(10, 32, 16) < torch.where(busy, 0.5, 0.1)).float(), y


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), 0).item()


@pytest.mark.parametrize("kind", [FeedbackAlignment, DirectFeedbackAlignment], ids=["fa", "dfa"])
def test_feedback_alignment_aligns(kind: Callable[..., Rule]) -> None:
    """At the start the hidden update has nothing to do with the gradient; while the readout learns, they come to agree."""
    x, y = toy()
    starts, ends = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        net = Network([nn.Linear(16, 32), Leaky(0.9, **SURROGATE), nn.Linear(32, 2), LeakyIntegrator(0.5)])
        rule = kind(net, seed=seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)

        def agreement(net: Network = net, rule: Rule = rule) -> float:
            own, exact = gradients(rule, x, y), gradients(Bptt(net), x, y)
            return cosine(own["layers.0.weight"], exact["layers.0.weight"])

        starts.append(agreement())
        for _ in range(60):
            optimizer.zero_grad()
            rule.sequence(x, y)
            optimizer.step()
        ends.append(agreement())
    assert abs(sum(starts)) / 4 < 0.6
    assert sum(ends) / 4 > 0.4
    assert sum(ends) > sum(starts) + 0.5


def test_decolle_learns_each_layer_by_itself() -> None:
    x, y = batch()
    net = deep(**SURROGATE)
    rule = Decolle(net, seed=3)
    before = gradients(rule, x, y)
    with torch.no_grad():
        net.layers[4].weight.neg_()  # the readout's weights reach no other layer's learning
        net.layers[2].weight.roll(1, 0)
    after = gradients(rule, x, y)
    assert (
        not torch.equal(before["layers.4.weight"], after["layers.4.weight"])
        or before["layers.4.weight"].abs().sum() == 0
    )
    torch.testing.assert_close(before["layers.0.weight"], after["layers.0.weight"])


def test_decolle_is_the_gradient_of_its_local_losses() -> None:
    x, y = batch()
    net = deep(**SURROGATE)
    rule = Decolle(net)
    got = gradients(rule, x, y)
    net.zero_grad()
    spikes = net.layers[1](net.layers[0](x))[0]
    local = torch.stack([rule.readouts.matrices[0].detach().double()] * 1)[0]
    loss = sum(torch.nn.functional.cross_entropy(s @ local.T, y) for s in spikes) / len(x)
    loss.backward()  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(got["layers.0.weight"], net.layers[0].weight.grad)


def test_rewards_give_the_gradient_of_their_mean() -> None:
    """Many guesses at one step of one sample: REINFORCE's mean is the gradient of the chance to be right."""
    net = Network([nn.Linear(3, 4), LeakyIntegrator(0.5)]).double()
    rule = RewardEprop(net)
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64).expand(40_000, -1)
    y = torch.full((40_000,), 2)
    rule.sequence(x.unsqueeze(0), y)
    got = net.layers[0].weight.grad.clone()
    net.zero_grad()
    (-net(x[:1].unsqueeze(0))[0][0].softmax(1)[0, 2]).backward()
    torch.testing.assert_close(got, net.layers[0].weight.grad, rtol=0.05, atol=0.01)


def test_rewards_reach_hidden_neurons_by_random_feedback() -> None:
    x, y = batch(steps=4)
    found = gradients(RewardEprop(with_readout(**SURROGATE), feedback="random", seed=1), x, y)
    assert found["layers.0.weight"].abs().max() > 0


def test_rewards_are_all_it_hears() -> None:
    x, y = batch(steps=4)
    net = with_readout(**SURROGATE)
    draws = []
    for target in (y, (y + 1) % CLASSES):
        rule = RewardEprop(net, seed=5)
        rule.baseline = torch.tensor(0.0)
        state = None
        for x_t in x:
            state = rule.step(x_t, state)
        rule._actions = [torch.full((BATCH,), -1)] * len(
            x
        )  # never right, whatever the target: no reward to tell them apart
        net.zero_grad()
        rule.update(target)
        draws.append(net.layers[0].weight.grad.clone())  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("name", ["ottt", "eprop", "decolle", "dfa", "reward"])
def test_it_learns_a_toy(name: str) -> None:
    x, y = toy()
    net = Network([BinaryLinear(16, 32), Leaky(0.9, target="trace"), BinaryLinear(32, 2), LeakyIntegrator(0.5)])
    rule = rule_named(name, net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    first = rule.sequence(x, y).loss
    for _ in range(30):
        optimizer.zero_grad()
        last = rule.sequence(x, y, optimizer.step).loss
    assert last < 0.75 * first
    assert (net(x)[0].mean(0).argmax(1) == y).float().mean() > 0.9


def test_weights_may_change_within_a_sequence() -> None:
    x, y = batch(steps=6)
    net = with_readout(**SURROGATE)
    calls = []
    Ottt(net).sequence(x, y, lambda: calls.append(net.layers[0].weight.grad is not None), steps=4)
    assert calls == [True, True]


@pytest.mark.parametrize("name", ["ottt", "fa", "dfa", "decolle"])
def test_conv_nets_with_everything_between(name: str) -> None:
    layers = [
        BinaryConv2d(2, 4, 3, padding=1), TemporalBatchNorm(4), Leaky(0.9, target="trace", activity=TargetRate(0.1)),
        MaxPool2d(2), SpikeDropout(0.2, per="sequence"), Flatten(), BinaryLinear(64, 6), Leaky(0.9, target="trace"), Voting(3),
    ]  # fmt: skip
    net = Network(layers, (2, 8, 8))
    x, y = (torch.rand(8, 5, 2, 8, 8) < 0.3).float(), torch.randint(0, 2, (5,))
    rule = rule_named(name, net)
    found = gradients(rule, x, y)
    assert found.keys() == dict(net.named_parameters()).keys()
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert found["layers.0.weight"].abs().max() > 0
