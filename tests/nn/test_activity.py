"""Sparse activity: exact winners, thresholds that hold a rate, and gradients that still train."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, TargetRate, Winners


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_at_most_k_winners_and_they_are_the_highest(neurons: int, k: int, refractory: int) -> None:
    torch.manual_seed(neurons * 100 + k)
    x = torch.randn(6, 3, neurons).mul(8).round() / 8 + 1  # many ties
    neuron = Leaky(0.5, activity=Winners(k), refractory=refractory, reset_mechanism="none")
    state = None
    for x_t in x.unbind(0):
        waiting = torch.zeros_like(x_t) if state is None or state.waiting is None else state.waiting
        out, state = neuron.step(x_t, state)
        may = (state.v > 1) & (waiting == 0)
        assert torch.equal(out.sum(1), may.sum(1).clamp(max=k).float())
        for b in range(3):
            losers = may[b] & (out[b] == 0)
            if losers.any():
                lowest_winner = state.v[b][out[b] == 1].min()
                assert lowest_winner >= state.v[b][losers].max()
                tied = (state.v[b] == lowest_winner) & may[b]
                first = tied.nonzero().flatten()[: int((tied & (out[b] == 1)).sum())]
                assert bool((out[b][first] == 1).all())  # of equals the first win


def test_share_of_winners() -> None:
    assert [Winners(0.02).of(n) for n in (1000, 100, 10)] == [20, 2, 1]
    out, _ = Leaky(0.9, activity=Winners(0.02))(torch.rand(30, 4, 500))
    assert out.sum(2).max() == 10


def test_a_loser_hears_the_gradient_and_keeps_its_membrane() -> None:
    x = torch.tensor([[[2.0, 3.0]]], requires_grad=True)
    out, state = Leaky(0.5, activity=Winners(1), gradient="surrogate")(x)
    assert out.flatten().tolist() == [0, 1]
    assert state.v.flatten().tolist() == [2, 3]
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert bool((dx > 0).all())


@pytest.mark.parametrize("how", ["running", "learnt"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_homeostasis_holds_the_rate_of_every_channel(how: str, recurrent: bool) -> None:
    target = TargetRate(0.02, channels=6, how=how, speed=0.1)
    neuron: Any = Leaky(0.8, activity=target)
    feedback = torch.nn.Linear(6, 6, bias=False)
    torch.nn.init.uniform_(feedback.weight, -0.1, 0.1)
    layer = Recurrent(neuron, feedback) if recurrent else neuron
    gain = torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0, 0.3])  # some channels silent, some busy
    optimizer = torch.optim.SGD(neuron.parameters(), lr=1.0) if how == "learnt" else None
    for _ in range(200):
        out, _ = layer(gain * torch.randn(20, 64, 6).abs())
        if optimizer is not None:
            optimizer.zero_grad()
            (0 * out.sum()).backward()
            optimizer.step()
    rates = layer.eval()(gain * torch.randn(20, 256, 6).abs())[0].mean((0, 1))
    assert torch.allclose(rates, torch.full((6,), 0.02), atol=0.012), rates.tolist()
    offset = neuron.homeostasis.offset.clone()
    layer(gain * torch.randn(20, 64, 6))
    assert torch.equal(neuron.homeostasis.offset, offset)  # evaluation changes nothing


def test_homeostasis_over_pictures() -> None:
    neuron = Leaky(0.8, activity=TargetRate(0.05, channels=2, speed=0.2))
    for _ in range(60):
        neuron(torch.rand(10, 4, 2, 5, 5))
    rates = neuron.eval()(torch.rand(10, 20, 2, 5, 5))[0].mean((0, 1, 3, 4))
    assert torch.allclose(rates, torch.full((2,), 0.05), atol=0.02)
    with pytest.raises(ValueError, match=r"expected 2 channels in the first feature axis, got features \(3, 5, 5\)"):
        neuron(torch.rand(10, 4, 3, 5, 5))


def test_winners_of_the_soft_target_share_one_block() -> None:
    assert not Leaky(0.8, activity=Winners(2)).spike_gradient.per_channel
    assert Leaky(0.8, activity=Winners(2), per_channel=True).spike_gradient.per_channel
    assert Leaky(0.8, activity=Winners(2), target="trace").spike_gradient.per_channel
    assert Leaky(0.8).spike_gradient.per_channel


@pytest.mark.parametrize("activity", [Winners(2), TargetRate(0.015, speed=0.1)], ids=["winners", "rate"])
@pytest.mark.parametrize("target", ["soft", "trace"])
def test_a_network_trains_at_two_percent_activity(activity: Any, target: str) -> None:
    """128 hidden neurons of which about two spike at a time tell two patterns of 40 channels apart."""
    labels = torch.arange(64) % 2
    busy = (torch.arange(40) < 20)[None] == (labels == 0)[:, None]
    x = (torch.rand(20, 64, 40) < torch.where(busy, 0.25, 0.1)).float()
    hidden = Leaky(0.8, target=target, activity=activity)
    network = Network([BinaryLinear(40, 128), hidden, BinaryLinear(128, 2), LeakyIntegrator(0.9)])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(network(x)[0].mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    spikes, _ = hidden.eval()(network.layers[0](x))
    assert 0.001 < spikes.mean() <= 0.025
    assert losses[-1] < 0.35 < losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Winners(0), "Winners: expected a number of neurons >= 1 or a share"),
        (lambda: Winners(1.0), "got 1.0"),
        (lambda: TargetRate(0.0), r"rate: expected a number in \(0, 0.5\], got 0.0"),
        (lambda: TargetRate(0.1, how="often"), "how: expected 'running' or 'learnt', got 'often'"),
        (lambda: TargetRate(0.1, speed=-1.0), "speed: expected a finite number > 0, got -1"),
        (lambda: Leaky(0.9, emit="denoised", activity=TargetRate(0.1)), "needs emit='bits', got 'denoised'"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
