"""The neuron module: steps make the sequence, halves make the whole, parameters learn, nothing is hidden."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn import surrogate
from tbnn.nn import Leaky, LeakyIntegrator, LifState
from tbnn.ops.lif import SpikeGradient, lif

ESTIMATORS: list[dict[str, Any]] = [
    {},
    {"stats": "step"},
    {"target": "trace"},
    {"gradient": "surrogate"},
    {"reset_mechanism": "zero"},
    {"reset_mechanism": "none", "stats": "step", "differentiate_stats": False},
    {"surrogate": surrogate.fast_sigmoid(4), "per_channel": False, "scale": 0.5},
]
estimators = pytest.mark.parametrize("arguments", ESTIMATORS, ids=lambda a: "-".join(map(str, a.values())) or "default")


def currents(*shape: int) -> Tensor:
    return (0.5 * torch.randn(*shape, dtype=torch.float64) * 64).round() / 64 + 0.125


def stepped(neuron: Any, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    out = []
    for x_t in x.unbind(0):
        out_t, state = neuron.step(x_t, state)
        out.append(out_t)
    return torch.stack(out), state


def assert_same_state(got: LifState, expected: LifState) -> None:
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@estimators
def test_stepping_equals_the_sequence(arguments: dict[str, Any]) -> None:
    neuron, x = Leaky(0.8, **arguments).double(), currents(20, 3, 2, 7)
    out, state = neuron(x)
    assert 0.01 < out.mean() < 0.9
    steps, last = stepped(neuron, x)
    assert torch.equal(steps, out)
    assert_same_state(last, state)


@estimators
def test_two_halves_equal_the_whole(arguments: dict[str, Any]) -> None:
    neuron, x = Leaky(0.8, **arguments).double(), currents(21, 3, 7)
    out, state = neuron(x)
    first, middle = neuron(x[:8])
    second, last = neuron(x[8:], middle)
    assert torch.equal(torch.cat([first, second]), out)
    assert_same_state(last, state)
    cold, _ = neuron(x[8:])
    assert not torch.equal(cold, second)


@pytest.mark.parametrize(
    "arguments",
    [{"stats": "step"}, {"stats": "step", "differentiate_stats": False}, {"gradient": "surrogate"}],
    ids=str,
)
def test_gradients_flow_through_halves_and_steps_as_through_the_whole(arguments: dict[str, Any]) -> None:
    neuron, weights = (
        Leaky(0.8, learn_beta=True, learn_threshold=True, **arguments).double(),
        torch.randn(14, 3, 5).double(),
    )
    x = currents(14, 3, 5).requires_grad_()
    leaves = [x, neuron.beta, neuron.threshold]

    def halves() -> Tensor:
        first, middle = neuron(x[:6])
        return torch.cat([first, neuron(x[6:], middle)[0]])

    whole = torch.autograd.grad(neuron(x)[0], leaves, weights)
    for out in (halves(), stepped(neuron, x)[0]):
        torch.testing.assert_close(torch.autograd.grad(out, leaves, weights), whole, rtol=1e-9, atol=1e-11)


def test_the_trace_s_gradient_flows_through_halves() -> None:
    neuron, weights = Leaky(0.8, target="trace", stats="step").double(), torch.randn(14, 3, 5).double()
    x = currents(14, 3, 5).requires_grad_()
    first, middle = neuron(x[:6])
    halves = torch.cat([first, neuron(x[6:], middle)[0]])
    (whole,) = torch.autograd.grad(neuron(x)[0], x, weights)
    torch.testing.assert_close(torch.autograd.grad(halves, x, weights)[0], whole, rtol=1e-9, atol=1e-11)
    assert not middle.v.requires_grad


def test_every_argument_reaches_the_op() -> None:
    x, weights = currents(9, 2, 3, 4), torch.randn(9, 2, 3, 4, dtype=torch.float64)
    common = {
        "surrogate": surrogate.fast_sigmoid(3),
        "stats": "step",
        "differentiate_stats": False,
        "lam": 0.3,
        "scale": 2.0,
    }
    cases: list[tuple[dict[str, Any], str]] = [
        (common, "zero"),
        ({"target": "trace", "floor": -0.05, "per_channel": False}, "subtract"),
        ({"gradient": "surrogate", "scale": 0.3}, "none"),
        ({"emit": "denoised", "lam": 0.5}, "subtract"),
    ]
    for arguments, reset in cases:
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        neuron = Leaky(0.75, 0.9, reset_mechanism=reset, **arguments).double()
        out, _ = neuron(leaf)
        if "target" in arguments:
            arguments = arguments | {"lam": 0.01 * (1 - 0.75) / (1 + 0.75)}  # in the trace's units
        expected = lif(other, neuron.beta, neuron.threshold, reset=reset, gradient=SpikeGradient(**arguments)).out
        assert torch.equal(out, expected)
        got, want = torch.autograd.grad(out, leaf, weights)[0], torch.autograd.grad(expected, other, weights)[0]
        assert torch.equal(got, want)
        assert got.abs().sum() > 0


def test_a_single_step_keeps_the_neuron_s_estimator() -> None:
    """Only the statistics' block differs: one step, whatever the sequence's."""
    x, weights = 4 * currents(2, 3, 4), torch.randn(2, 3, 4, dtype=torch.float64)
    arguments = {"surrogate": surrogate.sigmoid(3), "differentiate_stats": False, "lam": 0.3, "scale": 2.0}
    leaf, other = x.clone().requires_grad_(), x[None].clone().requires_grad_()
    out, _ = Leaky(0.75, stats="sequence", **arguments).double().step(leaf)
    expected = lif(other, 0.75, gradient=SpikeGradient(stats="step", **arguments)).out
    got, want = torch.autograd.grad(out, leaf, weights)[0], torch.autograd.grad(expected, other, weights[None])[0]
    assert torch.equal(got, want[0])
    assert got.abs().sum() > 0


def test_two_neurons_and_two_calls_share_nothing() -> None:
    one, two, x = Leaky(0.8).double(), Leaky(0.8).double(), currents(9, 2, 5)
    alone, _ = two(x)
    first, _ = one(x)
    one(10 * x)
    stepped(one, x)
    again, _ = one(x)
    assert torch.equal(first, again)
    assert torch.equal(two(x)[0], alone)
    assert set(one.state_dict()) == {"beta", "threshold", "running_moments"}


def test_state_is_what_the_caller_holds() -> None:
    neuron, x = Leaky(0.8, target="trace").double(), currents(9, 2, 5)
    _, state = neuron(x)
    kept = LifState(*(None if t is None else t.clone() for t in state))
    after = neuron(x, state)[0]
    assert_same_state(state, kept)
    assert torch.equal(neuron(x, kept)[0], after)


@pytest.mark.parametrize("learned", [-0.4, 1.7])
def test_a_learned_beta_acts_clamped(learned: float) -> None:
    neuron, x = Leaky(0.5, learn_beta=True).double(), currents(30, 2, 5)
    with torch.no_grad():
        neuron.beta.fill_(learned)
    edge = Leaky(min(max(learned, 0.0), 1.0)).double()
    assert torch.equal(neuron(x)[0], edge(x)[0])
    readout = LeakyIntegrator(0.5, learn_beta=True).double()
    with torch.no_grad():
        readout.beta.fill_(learned)
    assert torch.equal(readout(x)[0], LeakyIntegrator(min(max(learned, 0.0), 1.0)).double()(x)[0])


def test_learned_parameters_are_parameters_and_others_are_not() -> None:
    assert {n for n, _ in Leaky(0.5, learn_beta=True).named_parameters()} == {"beta"}
    assert {n for n, _ in Leaky(0.5, learn_threshold=True).named_parameters()} == {"threshold"}
    assert not list(Leaky(torch.tensor([0.5, 0.6])).parameters())
    given = torch.tensor([0.5, 0.6])
    neuron = Leaky(given, learn_beta=True)
    with torch.no_grad():
        neuron.beta.zero_()
    assert given.tolist() == pytest.approx([0.5, 0.6])


def test_a_beta_and_threshold_for_each_channel() -> None:
    beta, threshold = torch.tensor([0.5, 0.9]).reshape(2, 1), torch.tensor([0.75, 1.25]).reshape(2, 1)
    x = currents(15, 3, 2, 4)
    out, _ = Leaky(beta, threshold).double()(x)
    for c in range(2):
        alone = lif(x[:, :, c], beta.double()[c], threshold.double()[c]).out
        assert torch.equal(out[:, :, c], alone)


def test_integrator_steps_halves_and_hand_values() -> None:
    readout = LeakyIntegrator(0.5).double()
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).reshape(3, 1, 1)
    v, state = readout(x)
    assert v.flatten().tolist() == [1, 2.5, 5.25]
    assert state.v.item() == 5.25
    assert torch.equal(stepped(readout, x)[0], v)
    x = currents(9, 2, 3, 4)
    v, state = readout(x)
    first, middle = readout(x[:4])
    assert torch.equal(torch.cat([first, readout(x[4:], middle)[0]]), v)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.1}, r"beta: expected values in \[0, 1\], got 1.1"),
        ({"beta": -0.1}, "beta: .* got -0.1"),
        ({"beta": float("nan")}, "beta: .* got nan"),
        ({"threshold": float("inf")}, "threshold: expected finite values, got inf"),
        ({"reset_mechanism": "hard"}, "reset_mechanism: .* got 'hard'"),
        (
            {"target": "trace", "reset_mechanism": "zero"},
            "target='trace' holds for reset 'subtract' only .*, got 'zero'",
        ),
        ({"target": "trace", "beta": 1.0}, r"target='trace' needs beta < 1, got 1"),
        ({"target": "trace", "beta": 1.0, "learn_beta": True}, r"target='trace' needs beta < 1, got 1"),
        ({"emit": "denoised", "target": "trace"}, "emit='denoised' needs"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Leaky(**({"beta": 0.9} | arguments))


def test_refused_inputs() -> None:
    x = torch.zeros(4, 2, 3)
    for module in (Leaky(0.5), LeakyIntegrator(0.5)):
        with pytest.raises(ValueError, match=r"expected floating point \(T, B, features...\)"):
            module(x[0])
        with pytest.raises(ValueError, match=r"state.v: expected \(2, 3\) .* got \(3, 2\)"):
            module(x, LifState(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="beta: expected values"):
        LeakyIntegrator(1.5)


def test_a_learned_beta_of_the_trace_target_stays_below_one() -> None:
    neuron = Leaky(0.9, target="trace", learn_beta=True)
    with torch.no_grad():
        neuron.beta.fill_(1.7)
    out, _ = neuron(torch.rand(5, 2, 3))
    out.sum().backward()
    assert neuron.beta.grad is not None
    assert neuron.beta.grad.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.98])
def test_lambda_shrinks_a_trace_as_it_shrinks_white_spikes(beta: float) -> None:
    """Var(q)/(Var(q) + λ) is the same of white spikes and of their trace, whose variance is smaller by (1−β)/(1+β)."""
    q = (torch.rand(20_000, 8) < 0.1).double()
    trace, filtered = torch.zeros(8, dtype=torch.float64), []
    for step in q:
        trace = beta * trace + (1 - beta) * step
        filtered.append(trace)
    variances = [values.var(0).mean().item() for values in (q, torch.stack(filtered)[200:])]
    lams = [Leaky(beta, target=target).spike_gradient.lam for target in ("soft", "trace")]
    shares = [v / (v + lam) for v, lam in zip(variances, lams, strict=True)]
    assert lams[0] == 0.01
    assert shares[0] == pytest.approx(shares[1], rel=0.02)


def test_lambda_of_a_heterogeneous_layer_is_the_mean() -> None:
    betas = torch.tensor([0.5, 0.9])
    lam = Leaky(betas, target="trace", lam=1.0).spike_gradient.lam
    assert lam == pytest.approx((0.5 / 1.5 + 0.1 / 1.9) / 2)
