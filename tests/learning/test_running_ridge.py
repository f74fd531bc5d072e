"""The online DDT: running averages that come to be the batch's statistics, and the closed form's gradient from them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn import ddt
from tbnn.learning import Bptt, Ottt, RunningRidge
from tbnn.nn import Leaky
from tests.learning.small_networks import gradients, one_layer

T, B, C, S = 40, 3, 4, 5  # steps, batch, channels, places of a channel


def activity() -> tuple[Tensor, Tensor, Tensor]:
    """x, its spikes q, and a gradient G of mean other than 0, (T, B, C, S)."""
    x = torch.rand(T, B, C, S, dtype=torch.float64) * torch.linspace(0.3, 1.0, C, dtype=torch.float64)[:, None]
    return x, (torch.rand_like(x) < x).double(), torch.randn_like(x) + 0.5


def in_blocks(a: Tensor, per_channel: bool) -> Tensor:
    return a.movedim(2, 0).reshape(C if per_channel else 1, -1)


@pytest.mark.parametrize("per_channel", [True, False])
def test_of_as_many_steps_as_it_remembers_the_averages_are_the_batchs(per_channel: bool) -> None:
    x, q, _ = activity()
    ridge = RunningRidge(Leaky(0.9, per_channel=per_channel, lam=0.02), momentum=1 / T).double()
    for x_t, q_t in zip(x, q, strict=True):
        ridge.observe(x_t, q_t)
    xs, qs = in_blocks(x, per_channel), in_blocks(q, per_channel)
    apart = xs - xs.mean(1, keepdim=True), qs - qs.mean(1, keepdim=True)
    slope = (apart[0] * apart[1]).mean(1) / (apart[1].square().mean(1) + 0.02)
    expected = slope[:, None].expand(C, S) if per_channel else slope
    torch.testing.assert_close(ridge.fitted(x[0]).expand(B, C, S), expected.expand(B, C, S))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_with_the_batchs_averages_the_gradient_is_the_closed_forms(per_channel: bool, full: bool) -> None:
    x, q, g = activity()
    ridge = RunningRidge(Leaky(0.9, per_channel=per_channel, differentiate_stats=full), momentum=1 / T).double()
    for parts in zip(g, x, q, strict=True):
        ridge.observe(*parts[1:])
        ridge.gradient(*parts)
    ridge.count.fill_(1e15)
    ridge.momentum = 1e-15  # they stand still from here on
    got = torch.stack([ridge.gradient(*parts) for parts in zip(g, x, q, strict=True)])
    leaf = in_blocks(x, per_channel).clone().requires_grad_()
    copy = leaf + (in_blocks(q, per_channel) - leaf).detach()  # q as x plus constant noise
    (in_blocks(g, per_channel) * ddt(leaf, copy, lam=0.01, dim=1)).sum().backward()
    slope = ridge.fitted(x[0]).reshape(-1, 1)
    expected = leaf.grad if full else slope * in_blocks(g, per_channel)
    torch.testing.assert_close(in_blocks(got, per_channel), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"target": "trace"}, {"target": "soft"}, {"target": "trace", "per_channel": False}]
)
def test_on_stationary_activity_an_online_rule_comes_to_the_batchs_ddt(options: dict[str, Any]) -> None:
    net = one_layer(**options)
    x, y = (torch.rand(60, 16, 6) < 0.4).double(), torch.randint(0, 9, (16,))
    exact = gradients(Bptt(net), x, y)["layers.0.weight"]
    rule = Ottt(net, momentum=1 / 600)
    errors = []
    for _ in range(10):
        found = gradients(rule, x, y)["layers.0.weight"]
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[-1] < 0.1
    assert errors[-1] < 0.5 * errors[0]


def test_a_silent_layer_stays_finite() -> None:
    x = torch.zeros(B, C, S)
    ridge = RunningRidge(Leaky(0.9))
    for _ in range(3):
        ridge.observe(x, x)
    assert torch.equal(ridge.gradient(torch.ones(B, C, S), x, x), torch.ones(B, C, S))  # of the mean alone


def test_it_is_saved_with_its_rule() -> None:
    net = one_layer(target="trace")
    x, y = (torch.rand(5, 3, 6) < 0.4).double(), torch.randint(0, 9, (3,))
    rule, twin = Ottt(net), Ottt(net)
    rule.sequence(x, y)
    twin.load_state_dict(rule.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(gradients(rule, x, y).values(), gradients(twin, x, y).values(), strict=True)
    )
