"""The family of neurons: snntorch's where it has them, hand-computed values elsewhere, one contract for all."""

import math
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor

from tbnn.nn import Adaptive, AdLIF, CustomNeuron, Leaky, Neuron, Recurrent, Stateful, Synaptic, Winners

FAMILY: dict[str, Any] = {
    "leaky": lambda **o: Leaky(0.75, **o),
    "integrate-and-fire": lambda **o: Leaky(1.0, **o),
    "synaptic": lambda **o: Synaptic(0.5, 0.8, **o),
    "adaptive": lambda **o: Adaptive(0.8, 0.9, 0.25, **o),
    "adlif": lambda **o: AdLIF(0.75, 0.875, 1.0, 2.0, 0.25, **o),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"gradient": "surrogate"},
    {"stats": "step", "target": "trace"},
    {"target": "trace", "refractory": 2},
    {"refractory": 1, "reset_mechanism": "zero"},
    {"activity": Winners(2), "reset_mechanism": "none"},
]
with_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())) or "default")
every_neuron = pytest.mark.parametrize("name", FAMILY)


def make(name: str, options: dict[str, Any]) -> Neuron:
    if name == "integrate-and-fire" and options.get("target") == "trace":
        pytest.skip("the trace target needs beta < 1, and says so: see test_trace_is_refused_where_it_does_not_hold")
    return FAMILY[name](**options).double()


def currents(*shape: int) -> Tensor:
    return (0.5 * torch.randn(*shape, dtype=torch.float64) * 64).round() / 64 + 0.25


def assert_same_state(got: Any, expected: Any) -> None:
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_neuron
@with_options
def test_steps_and_halves_make_the_sequence(name: str, options: dict[str, Any]) -> None:
    neuron, x = make(name, options), currents(21, 3, 7)
    out, state = neuron(x)
    assert 0.01 < out.mean() < 0.9
    first, middle = neuron(x[:8])
    second, last = neuron(x[8:], middle)
    assert torch.equal(torch.cat([first, second]), out)
    assert_same_state(last, state)
    now, steps = None, []
    for x_t in x.unbind(0):
        out_t, now = neuron.step(x_t, now)
        steps.append(out_t)
    assert torch.equal(torch.stack(steps), out)
    assert_same_state(now, state)


@every_neuron
@with_options
def test_a_padded_batch_is_each_sequence_alone(name: str, options: dict[str, Any]) -> None:
    """Spikes, states and the gradient; the padding holds NaN. (Bare surrogates: no statistics to share.)"""
    neuron, x = make(name, {**options, "gradient": "surrogate", "target": "soft"}), currents(12, 3, 7)
    lengths = [12, 5, 1]
    mask = torch.arange(12).unsqueeze(1) < torch.tensor(lengths)
    padded = torch.where(mask.unsqueeze(2), x, torch.nan).requires_grad_()
    out, state = neuron(padded, mask=mask)
    g = torch.randn_like(x)
    (dx,) = torch.autograd.grad(out, padded, g)
    assert torch.equal(out[~mask], torch.zeros_like(out[~mask]))
    assert torch.equal(dx[~mask], torch.zeros_like(dx[~mask]))
    for b, n in enumerate(lengths):
        alone = x[:n, b : b + 1].clone().requires_grad_()
        out_b, state_b = neuron(alone)
        assert torch.equal(out[:n, b : b + 1], out_b)
        assert_same_state([None if s is None else s[b : b + 1] for s in state], state_b)
        torch.testing.assert_close(dx[:n, b : b + 1], torch.autograd.grad(out_b, alone, g[:n, b : b + 1])[0])


@every_neuron
@pytest.mark.parametrize("target", ["soft", "trace"])
def test_statistics_do_not_see_the_padding(name: str, target: str) -> None:
    """A batch padded with anything has the gradient of the same batch padded with something else."""
    neuron = make(name, {"target": target})
    mask = torch.arange(9).unsqueeze(1) < torch.tensor([9, 4])
    x, g = currents(9, 2, 5), torch.randn(9, 2, 5).double()
    grads = []
    for padding in (0.0, 100.0):
        leaf = torch.where(mask.unsqueeze(2), x, padding).requires_grad_()
        grads.append(torch.autograd.grad(neuron(leaf, mask=mask)[0], leaf, g)[0])
    torch.testing.assert_close(*grads)
    assert grads[0].abs().sum() > 0
    unmasked = torch.where(mask.unsqueeze(2), x, 0.0).requires_grad_()
    without = torch.autograd.grad(neuron(unmasked)[0], unmasked, g * mask.unsqueeze(2))[0]
    assert not torch.allclose(without[mask], grads[0][mask])


@pytest.mark.parametrize("reset", ["subtract", "none"])
def test_synaptic_equals_snntorch(reset: str) -> None:
    x = 0.25 * torch.randn(200, 3, 50) + 0.03
    leaf, their_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()

    def theirs(alpha: float) -> Tensor:
        neuron = snn.Synaptic(alpha, 0.8, reset_mechanism=reset, learn_alpha=True, learn_beta=True)
        syn, mem, spikes = torch.zeros(3, 50), torch.zeros(3, 50), []
        for x_t in their_leaf.unbind(0):
            spikes_t, syn, mem = neuron(x_t, syn, mem)
            spikes.append(spikes_t)
        theirs.parameters = [neuron.alpha, neuron.beta]  # pyright: ignore[reportFunctionMemberAccess]
        return torch.stack(spikes)

    ours = Synaptic(0.9, 0.8, reset_mechanism=reset, gradient="surrogate", learn_alpha=True, learn_beta=True)
    out, spikes = ours(leaf)[0], theirs(0.9)
    assert 0.05 < spikes.mean() < 0.9
    assert torch.equal(out, spikes)
    g = torch.randn_like(x)
    got = torch.autograd.grad(out, [leaf, ours.alpha, ours.beta], g)
    want = torch.autograd.grad(spikes, [their_leaf, *theirs.parameters], g)  # pyright: ignore[reportFunctionMemberAccess]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b.reshape(a.shape), rtol=1e-4, atol=1e-5 * b.abs().max().item())
    assert not torch.equal(out, theirs(0.89))


def test_adaptive_by_hand() -> None:
    """β = ½, ρ = ½, b = ½, θ = 1, I = 1.5, 1, 1, 1.25: the second spike must climb over 1.5, the third over 1.25."""
    neuron = Adaptive(0.5, 0.5, 0.5)
    out, state = neuron(torch.tensor([1.5, 1.0, 1.0, 1.25]).reshape(4, 1, 1))
    # v: 1.5 | .75+1-1=.75 | .375+1=1.375 | .6875+1.25=1.9375 (-1 if it spiked at step 2)
    # a: 0   | 1           | .5           | .25  -> thresholds 1, 1.5, 1.25, 1.125
    assert out.flatten().tolist() == [1, 0, 1, 0]
    assert state.v.item() == 0.9375
    assert state.w is not None
    assert state.w.item() == 1.25  # .5·.5 + 1 of the spike at step 2


def test_adlif_by_hand() -> None:
    """β = ½, ρ = ½, a = 2, b = 4 (so w = w/2 + v + 2q), θ = 1: after a spike the adaptation holds v down."""
    neuron = AdLIF(0.5, 0.5, 2.0, 4.0)
    out, state = neuron(torch.tensor([3.0, 3.0, 3.0]).reshape(3, 1, 1))
    # t=0: w=0, v=1.5 -> spike;  t=1: w=1.5+2=3.5, v=.75+.5(3-3.5)-1=-.5;  t=2: w=1.75-.5=1.25, v=-.25+.875=.625
    assert out.flatten().tolist() == [1, 0, 0]
    assert state.v.item() == 0.625
    assert state.w is not None
    assert state.w.item() == 1.25


def test_symplectic_adlif_of_the_paper() -> None:
    """Baronig et al., eq. 6, with the reset within the step and w counted at its end."""
    beta, rho, a, b = 0.9, 0.95, 3.0, 5.0
    x = 2 * torch.randn(60, 2, 9, dtype=torch.float64) + 1.5
    u, w, spikes = torch.zeros(2, 9).double(), torch.zeros(2, 9).double(), []
    for x_t in x.unbind(0):
        u_hat = beta * u + (1 - beta) * (x_t - w)
        spike = (u_hat > 1).double()
        u = u_hat * (1 - spike)
        w = rho * w + (1 - rho) * (a * u + b * spike)
        spikes.append(spike)
    out, _ = AdLIF(beta, rho, a, b, reset_mechanism="zero").double()(x)
    assert torch.equal(out, torch.stack(spikes))
    assert 0.01 < out.mean() < 0.5


class OwnLeaky(CustomNeuron):
    """The leaky neuron, written as a user would."""

    def rest(self, current: Tensor) -> Tensor:
        return torch.zeros_like(current)

    def membrane(self, current: Tensor, spikes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.75 * state + current - self.threshold * spikes
        return v - self.threshold, v


class OwnAdLIF(CustomNeuron):
    """The adLIF neuron: a state of two tensors."""

    def rest(self, current: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(current), torch.zeros_like(current)

    def membrane(self, current: Tensor, spikes: Tensor, state: Any) -> tuple[Tensor, Any]:
        v, w = state
        w = 0.875 * w + (1 - 0.875) * (1.0 * v + 2.0 * spikes)
        v = 0.75 * v + (1 - 0.75) * (current - w) - self.threshold * spikes
        return v - self.threshold, (v, w)


@pytest.mark.parametrize(("own", "name", "theta"), [(OwnLeaky, "leaky", 1.0), (OwnAdLIF, "adlif", 0.25)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stats": "step"},
        {"gradient": "surrogate"},
        {"refractory": 2},
        {"activity": Winners(3)},
        {"emit": "denoised"},
    ],
    ids=str,
)
def test_an_own_neuron_is_the_librarys(own: Any, name: str, theta: float, options: dict[str, Any]) -> None:
    x = currents(15, 3, 7)
    g = torch.randn_like(x)
    mask = torch.arange(15).unsqueeze(1) < torch.tensor([15, 8, 3])
    for given in (None, mask):
        results = []
        for neuron in (
            own(theta, learn_threshold=True, **options).double(),
            make(name, {**options, "learn_threshold": True}),
        ):
            leaf = x.clone().requires_grad_()
            out, _ = neuron(leaf, mask=given)
            results.append((out, *torch.autograd.grad(out, [leaf, neuron.threshold], g)))
        assert results[0][0].sum() > 5
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)


def test_an_own_neuron_recurs_and_refuses_the_trace() -> None:
    x = currents(10, 2, 5).float()
    layer = torch.nn.Linear(5, 5)
    a, b = Recurrent(OwnLeaky(1.0), layer)(x)[0], Recurrent(Leaky(0.75), layer)(x)[0]
    assert torch.equal(a, b)
    assert a.sum() > 5
    with pytest.raises(ValueError, match="OwnLeaky: target='trace' needs a linear neuron"):
        OwnLeaky(1.0, target="trace")(x)


def test_heterogeneous_time_constants_are_per_neuron() -> None:
    beta = torch.linspace(0.5, 0.95, 7).double()
    x = currents(20, 2, 7)
    out, _ = Leaky(beta).double()(x)
    for f in range(7):
        alone, _ = Leaky(beta[f]).double()(x[:, :, f : f + 1])
        assert torch.equal(out[:, :, f : f + 1], alone)


@pytest.mark.parametrize(
    ("neuron", "names"),
    [
        (Leaky(0.8, learn_beta=True, learn_threshold=True), ["beta", "threshold"]),
        (Synaptic(0.5, 0.8, learn_alpha=True, learn_beta=True), ["alpha", "beta"]),
        (Adaptive(0.8, learn_beta=True, learn_rho=True, learn_strength=True), ["beta", "rho", "strength"]),
        (AdLIF(0.8, 0.9, learn_beta=True, learn_rho=True, learn_a=True, learn_b=True), ["beta", "rho", "a", "b"]),
    ],
    ids=["leaky", "synaptic", "adaptive", "adlif"],
)
@pytest.mark.parametrize("trace", [False, True])
def test_what_is_learned_gets_a_gradient(neuron: Neuron, names: list[str], trace: bool) -> None:
    options: dict[str, Any] = {"threshold": 0.25, **({"target": "trace"} if trace else {})}
    learn = {f"learn_{name}": True for name in names}
    values = {name: getattr(neuron, name).detach() for name in names if name != "threshold"}
    fresh = type(neuron)(**values, **learn, **options)
    fresh(2 * currents(20, 2, 5).float())[0].sum().backward()
    for name in names:
        gradient = getattr(fresh, name).grad
        assert gradient is not None, name
        assert math.isfinite(gradient.item())
        assert gradient.item() != 0, name


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: Leaky(1.0, target="trace"), "beta < 1"),
        (lambda: Synaptic(1.0, 0.9, target="trace"), "alpha < 1"),
        (lambda: Adaptive(0.9, 1.0, target="trace"), "rho < 1"),
        (lambda: AdLIF(0.9, 0.9, target="trace", reset_mechanism="zero"), "reset 'subtract' only"),
        (lambda: AdLIF(0.9, 0.9, a=-1.5, target="trace"), "states that decay"),
        (lambda: Adaptive(0.9, 0.9, strength=-2.0, target="trace"), "K > 0"),
        (lambda: Leaky(0.9, threshold=0.0, target="trace"), "threshold > 0"),
    ],
    ids=["if", "synapse", "adaptation", "zero", "unstable", "excites", "threshold"],
)
def test_trace_is_refused_where_it_does_not_hold(make_one: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_one()


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: Synaptic(1.5, 0.9), r"alpha: expected values in \[0, 1\], got 1.5"),
        (lambda: Adaptive(0.9, rho=-0.1), r"rho: expected values in \[0, 1\], got -0.1"),
        (lambda: AdLIF(0.9, a=math.inf), "a: expected finite values, got inf"),
        (lambda: Leaky(0.9, refractory=-1), "refractory: expected a number of steps >= 0, got -1"),
        (lambda: Leaky(0.9, activity=0.1), "activity: expected Winners, TargetRate or None, got 0.1"),  # pyright: ignore
        (lambda: Synaptic(0.5, 0.9)(torch.ones(3, 2, 4), Leaky(0.9)(torch.ones(3, 2, 4))[1]), "this neuron carries w"),
    ],
)
def test_bad_input(make_one: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_one()


def test_a_wrong_keyword_is_named() -> None:
    with pytest.raises(TypeError, match="Synaptic: unknown argument 'betta'"):
        Synaptic(0.5, 0.9, betta=1)  # pyright: ignore[reportCallIssue]


@every_neuron
def test_state_dict_round_trip(name: str) -> None:
    options = {"emit": "denoised"} if name != "integrate-and-fire" else {}
    neuron, x = make(name, options), currents(10, 3, 7)
    for _ in range(3):
        neuron(x)
    fresh = make(name, options)
    fresh.load_state_dict(neuron.state_dict())
    assert torch.equal(fresh.eval()(x)[0], neuron.eval()(x)[0])


def test_every_neuron_is_stateful() -> None:
    assert all(isinstance(neuron(), Stateful) for neuron in FAMILY.values())
