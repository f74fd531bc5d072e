"""Stochastic binary units: estimators of the gradient against the exact one, every hidden state enumerated."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import tbnn.nn.stochastic as stochastic
from tbnn.nn import (
    BinaryLinear,
    LeakyIntegrator,
    Network,
    StochasticLinear,
    by_flips,
    network_from_config,
    network_to_config,
)
from tbnn.ops.quantize import Qgait

X = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)


def layers(*sizes: int, seed: int = 0, gradient: str = "psa") -> list[StochasticLinear]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs, dtype=torch.float64)
        for parameter in linear.parameters():
            parameter.data = 2 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 1
        made.append(StochasticLinear(linear, gradient))
    return made


def curved(s: Tensor) -> Tensor:
    """A loss that is no sum over units."""
    weight = torch.linspace(-1.5, 2, s.shape[1], dtype=s.dtype)
    return (s @ weight - 0.4).square() + (3 * s.prod(1))


def additive(s: Tensor) -> Tensor:
    return s @ torch.linspace(-1.5, 2, s.shape[1], dtype=s.dtype)


def states(sizes: list[int]) -> Iterator[list[Tensor]]:
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        yield list(torch.tensor([bits], dtype=torch.float64).split(sizes, 1))


def gradients(net: list[StochasticLinear]) -> Tensor:
    return torch.cat([p.grad.flatten() for layer in net for p in layer.parameters() if p.grad is not None])


def exact(net: list[StochasticLinear], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of the expected loss: autograd through the sum over all states."""
    parameters = [p for layer in net for p in layer.parameters()]
    total = torch.zeros((), dtype=torch.float64)
    for some in states([layer.linear.weight.shape[0] for layer in net]):
        x, log_p = X, torch.zeros((), dtype=torch.float64)
        for layer, s in zip(net, some, strict=True):
            log_p = log_p - nn.functional.binary_cross_entropy_with_logits(layer.linear(x), s, reduction="sum")
            x = s
        total = total + log_p.exp() * loss(x).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])


def moments(
    net: list[StochasticLinear], loss: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch, flips: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean and total variance of the estimate over the layers' own draws, every one forced in turn."""
    mean = square = torch.zeros(())
    for some in states([layer.linear.weight.shape[0] for layer in net]):
        drawn, probability = iter(some), [1.0]

        def draw(p: Tensor, drawn: Iterator[Tensor] = drawn, probability: list[float] = probability) -> Tensor:
            s = next(drawn)
            probability[0] *= torch.where(s > 0, p, 1 - p).prod().item()
            return s.clone()

        monkeypatch.setattr(stochastic.torch, "bernoulli", draw)
        x = X
        for layer in net:
            layer.zero_grad()
            x = layer(x)
        (by_flips(loss, x) if flips else loss(x)).sum().backward()
        g = gradients(net)
        mean, square = mean + probability[0] * g, square + probability[0] * g.square()
    monkeypatch.undo()
    return mean, (square - mean.square()).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_hidden_layer_is_unbiased(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = layers(4, 5, seed=seed)
    right = exact(net, curved)
    mean, _ = moments(net, curved, monkeypatch)
    torch.testing.assert_close(mean, right, rtol=1e-10, atol=1e-12)
    straight, _ = moments(layers(4, 5, seed=seed, gradient="st"), curved, monkeypatch, flips=False)
    assert (straight - right).norm() > 0.3 * right.norm()  # the derivative of a curved loss is not its difference


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_hidden_layers_under_a_sum_are_unbiased(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = layers(4, 3, 4, seed=seed)
    right = exact(net, additive)
    mean, _ = moments(net, additive, monkeypatch)
    torch.testing.assert_close(mean, right, rtol=1e-10, atol=1e-12)
    straight, _ = moments(layers(4, 3, 4, seed=seed, gradient="st"), additive, monkeypatch)
    assert (straight - right).norm() > 1e-3 * right.norm()


@pytest.mark.parametrize("sizes", [(4, 3, 4), (4, 3, 2, 3)])
def test_deeper_it_has_a_small_bias(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = []
    for seed in range(3):
        net = layers(*sizes, seed=seed)
        right = exact(net, curved)
        mean, variance = moments(net, curved, monkeypatch)
        bias = ((mean - right).norm() / right.norm()).item()
        straight, _ = moments(layers(*sizes, seed=seed, gradient="st"), curved, monkeypatch, flips=False)
        assert bias > 1e-6  # the paper's: a small bias for a smaller variance
        ratios.append((bias, ((straight - right).norm() / right.norm()).item(), variance.item()))
    bias, straight_bias, variance = (sum(r[i] for r in ratios) / 3 for i in range(3))
    assert bias < 0.25
    assert bias < 0.5 * straight_bias
    assert variance < score_variance(layers(*sizes, seed=0), curved)


def score_variance(net: list[StochasticLinear], loss: Callable[[Tensor], Tensor]) -> float:
    """Of REINFORCE, loss·∇log p, which is unbiased."""
    mean, square = torch.zeros(()), torch.zeros(())
    for some in states([layer.linear.weight.shape[0] for layer in net]):
        x, log_p = X, torch.zeros((), dtype=torch.float64)
        for layer, s in zip(net, some, strict=True):
            log_p = log_p - nn.functional.binary_cross_entropy_with_logits(layer.linear(x), s, reduction="sum")
            x = s
        parameters = [p for layer in net for p in layer.parameters()]
        g = torch.cat([part.flatten() for part in torch.autograd.grad(log_p, parameters)]) * loss(x)
        mean, square = mean + log_p.exp().detach() * g, square + log_p.exp().detach() * g.square()
    torch.testing.assert_close(mean, exact(net, loss))
    return (square - mean.square()).sum().item()


def test_the_difference_becomes_the_derivative_for_small_weights() -> None:
    torch.manual_seed(0)
    g, u = torch.randn(2, 7, 5, dtype=torch.float64)
    x = (torch.rand(7, 6) < 0.5).double()
    weight = 1e-4 * torch.randn(5, 6, dtype=torch.float64)
    p = u.sigmoid()
    torch.testing.assert_close(
        stochastic.flip_gradient(g, u, x, weight), (g * p * (1 - p)) @ weight, rtol=1e-2, atol=1e-7
    )
    whole = stochastic.flip_gradient(g, u, x, 1e4 * weight)
    for i in range(6):  # and in general F where x_i = 1 less F where it is 0
        on, off = (u + (value - x[:, i : i + 1]) * 1e4 * weight[:, i] for value in (1.0, 0.0))
        torch.testing.assert_close(whole[:, i], (g * (on.sigmoid() - off.sigmoid())).sum(1))


def test_rows_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    g, u = torch.randn(2, 7, 5)
    x, weight = (torch.rand(7, 6) < 0.5).float(), torch.randn(5, 6)
    whole = stochastic.flip_gradient(g, u, x, weight)
    monkeypatch.setattr(stochastic, "FLIPPED", 60)
    torch.testing.assert_close(stochastic.flip_gradient(g, u, x, weight), whole)


def test_spikes_follow_their_probability() -> None:
    layer = StochasticLinear(nn.Linear(1, 3), scale=0.5)
    layer.linear.weight.data.zero_()
    layer.linear.bias = nn.Parameter(torch.tensor([-1.0, 0.0, 0.7]))
    torch.manual_seed(0)
    s = layer(torch.ones(20000, 1))
    torch.manual_seed(0)
    assert torch.equal(layer(torch.ones(20000, 1)), s)
    torch.testing.assert_close(s.mean(0), torch.tensor([-2.0, 0.0, 1.4]).sigmoid(), rtol=0, atol=0.015)
    layer.eval()
    assert layer(torch.ones(2, 1)).tolist() == [[0, 0, 1]] * 2
    layer.evaluation = "sample"
    assert 0.1 < layer(torch.ones(20000, 1))[:, 0].mean() < 0.15


@pytest.mark.parametrize("gradient", ["psa", "st"])
def test_a_network_of_them_trains(gradient: str) -> None:
    """Exclusive or, which no single layer solves, by binary weights."""
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]).repeat(1, 8)[None]
    labels = torch.tensor([0, 1, 1, 0])
    net = Network(
        [
            StochasticLinear(BinaryLinear(24, 48, estimator=Qgait()), gradient),
            StochasticLinear(BinaryLinear(48, 32), gradient),
            BinaryLinear(32, 2),
            LeakyIntegrator(0.0),
        ]
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        many = net(x.expand(8, -1, -1))[0]
        nn.functional.cross_entropy(many.flatten(0, 1), labels.repeat(8)).backward()
        optimizer.step()
    assert net.eval()(x)[0][0].argmax(1).tolist() == labels.tolist()


def test_networks_with_them_are_written_down() -> None:
    net = Network([StochasticLinear(BinaryLinear(6, 5, bits=2), scale=0.5), BinaryLinear(5, 2)])
    again = network_from_config(network_to_config(net))
    again.load_state_dict(net.state_dict())
    x = (torch.rand(4, 3, 6) < 0.5).float()
    assert torch.equal(again.eval()(x)[0], net.eval()(x)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StochasticLinear(nn.ReLU()), "linear: expected a BinaryLinear or torch.nn.Linear, got ReLU"),
        (lambda: StochasticLinear(nn.Linear(2, 2), "reste"), "gradient: expected one of 'psa', 'st', got 'reste'"),
        (lambda: StochasticLinear(nn.Linear(2, 2), scale=0.0), "scale: expected a finite number > 0, got 0.0"),
        (
            lambda: StochasticLinear(nn.Linear(2, 2), evaluation="mean"),
            "evaluation: expected one of 'threshold', 'sample'",
        ),
        (lambda: StochasticLinear(nn.Linear(2, 2))(torch.ones(3, 3)), r"expected \(..., 2\), got \(3, 3\)"),
        (
            lambda: StochasticLinear(nn.Linear(2, 2))(torch.full((3, 2), 0.5, requires_grad=True)),
            "passes a gradient to inputs of 0 and 1, got others",
        ),
        (lambda: by_flips(additive, torch.ones(3)), r"by_flips: expected spikes \(B, n\), got \(3,\)"),
        (lambda: by_flips(torch.sum, torch.ones(3, 2)), r"expected an objective that returns \(3,\), got \(\)"),
    ],
)
def test_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
