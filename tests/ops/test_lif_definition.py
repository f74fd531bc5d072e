"""The neuron by hand: small sums, the identities of the trace, differences with frozen spikes, limits and refusals."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn import surrogate
from tbnn.ops.ddt import ddt
from tbnn.ops.lif import LifState, SpikeGradient, lif

BACKENDS = ["cpu", "reference"]
both = pytest.mark.parametrize("backend", BACKENDS)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)


@both
@pytest.mark.parametrize(
    ("reset", "v", "spikes"),
    [
        # currents 1.5, 0.25, 1 with beta 0.5 and threshold 1
        ("subtract", [1.5, 0.5 * 1.5 + 0.25 - 1, 0.5 * 0.0 + 1], [1, 0, 0]),
        ("zero", [1.5, 0.25, 0.125 + 1], [1, 0, 1]),
        ("none", [1.5, 1.0, 1.5], [1, 0, 1]),
    ],
)
def test_three_steps(reset: str, v: list[float], spikes: list[int], backend: str) -> None:
    current = column(1.5, 0.25, 1.0)
    for steps in (1, 2, 3):
        run = lif(current[:steps], 0.5, reset=reset, backend=backend)
        assert run.out.flatten().tolist() == spikes[:steps]
        assert run.state.v.item() == v[steps - 1]
        assert run.state.trace is None


@both
def test_a_spike_of_the_state_before_resets_the_first_step(backend: str) -> None:
    fired, silent = (LifState(column(v)[0]) for v in (1.25, 1.0))
    assert lif(column(0.5), 0.5, state=fired, backend=backend).state.v.item() == 0.5 * 1.25 + 0.5 - 1
    assert lif(column(0.5), 0.5, state=silent, backend=backend).state.v.item() == 0.5 + 0.5
    assert lif(column(0.5), 0.5, state=fired, reset="zero", backend=backend).state.v.item() == 0.5


@both
def test_surrogate_gradient_by_hand(backend: str) -> None:
    """v = (1.5, 0.25) − reset: u = (0.5, −1); out[1] hears I[0] through beta, the reset is detached."""
    current = column(1.5, 0.25).requires_grad_()
    beta, threshold = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 1.0))
    run = lif(current, beta, threshold, gradient=SpikeGradient(gradient="surrogate"), backend=backend)
    assert run.state.v.item() == 0
    w0, w1 = (1 / (1 + (math.pi * u) ** 2) for u in (0.5, -1.0))
    grads = torch.autograd.grad(2 * run.out[0].sum() + 3 * run.out[1].sum(), (current, beta, threshold))
    assert grads[0].flatten().tolist() == pytest.approx([2 * w0 + 0.5 * 3 * w1, 3 * w1], rel=1e-12)
    assert grads[1].item() == pytest.approx(1.5 * 3 * w1, rel=1e-12)
    assert grads[2].item() == pytest.approx(-2 * w0 - 3 * w1 - 3 * w1, rel=1e-12)  # θ at each step, and in the reset


def test_v_is_the_input_trace_less_the_spike_trace() -> None:
    beta, threshold = 0.875, 1.25
    current = (torch.randn(200, 2, 5, dtype=torch.float64) * 64).round() / 64
    spikes = lif(current, beta, threshold).out
    drive_trace, spike_trace, past = (torch.zeros(2, 5, dtype=torch.float64) for _ in range(3))
    for t in range(200):
        drive_trace, past, spike_trace = beta * drive_trace + current[t], spike_trace, beta * spike_trace + spikes[t]
        run = lif(current[: t + 1], beta, threshold, gradient=SpikeGradient(target="trace"))
        torch.testing.assert_close(run.state.v, drive_trace - threshold * past, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(run.state.trace, drive_trace, rtol=1e-12, atol=1e-12)
        bounded = drive_trace - (run.state.v - threshold * spikes[t]) - (1 - beta) * threshold * past
        torch.testing.assert_close(threshold * spike_trace, bounded, rtol=1e-12, atol=1e-12)
    assert 0.05 < spikes.mean() < 0.5


@both
def test_slope_only_trace_gradient_by_hand(backend: str) -> None:
    """beta = ½, θ = 1, I = (1.5, 0.25): L = (1.5, 1), x = L/2, spikes (1, 0), Q = (1, ½), q̃ = (½, ¼)."""
    current = column(1.5, 0.25).requires_grad_()
    beta, threshold = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 1.0))
    estimator = SpikeGradient(target="trace", differentiate_stats=False, scale=2.0)
    run = lif(current, beta, threshold, gradient=estimator, backend=backend)
    assert run.out.flatten().tolist() == [1, 0]
    x, q = (0.75, 0.5), (0.5, 0.25)
    s = ((x[0] - x[1]) / 2) * ((q[0] - q[1]) / 2) / (((q[0] - q[1]) / 2) ** 2 + 0.01)
    d0, d1 = 2 * s * 3 * 0.5, 2 * s * 5 * 0.5  # scale·s·G·dx/dL
    grads = torch.autograd.grad(3 * run.out[0].sum() + 5 * run.out[1].sum(), (current, beta, threshold))
    assert grads[0].flatten().tolist() == pytest.approx([d0 + 0.5 * d1, d1], rel=1e-12)
    # x = (1 − beta)·L/θ: beta moves L[1] through L[0], and the factor in front
    assert grads[1].item() == pytest.approx(d1 * 1.5 - 2 * (d0 * 1.5 + d1 * 1.0), rel=1e-12)
    assert grads[2].item() == pytest.approx(-(d0 * 1.5 + d1 * 1.0), rel=1e-12)


@both
def test_a_clipped_trace_passes_no_slope(backend: str) -> None:
    """x = (1 − beta)·L/θ beyond [floor, 1] is clipped: its own gradient is 0, the carry through L remains."""
    current = column(10.0, -20.0, 0.3).requires_grad_()  # L = 10, −15, −7.2: x = 5, −7.5, −3.6, then floor −0.5
    estimator = SpikeGradient(target="trace", differentiate_stats=False)
    run = lif(current, 0.5, gradient=estimator, backend=backend)
    run.out.sum().backward()
    assert not current.grad.any()
    wide = SpikeGradient(target="trace", differentiate_stats=False, floor=-4.0)
    current.grad = None
    lif(current, 0.5, gradient=wide, backend=backend).out.sum().backward()
    g = current.grad.flatten()
    assert g[2] != 0
    assert g.tolist() == pytest.approx([g[2].item() / 4, g[2].item() / 2, g[2].item()], rel=1e-12)


@both
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("target", ["soft", "trace"])
@pytest.mark.parametrize("stats", ["sequence", "step"])
def test_differences_with_spikes_and_rounding_frozen(
    target: str, reset: str, stats: str, backend: str, numeric_gradient: Callable[..., Tensor]
) -> None:
    """Move currents, beta, threshold and the first state while every spike and every δ stays what it was."""
    if target == "trace" and reset != "subtract":
        return
    inputs = {
        "current": 0.5 * torch.randn(6, 2, 3, dtype=torch.float64) + 0.3,
        "beta": torch.tensor(0.7, dtype=torch.float64),
        "threshold": torch.tensor(0.9, dtype=torch.float64),
        "v0": 0.5 * torch.randn(2, 3, dtype=torch.float64),
    }
    weights = torch.randn(6, 2, 3, dtype=torch.float64)
    trace0 = torch.zeros(2, 3, dtype=torch.float64)
    bits = lif(inputs["current"], inputs["beta"], inputs["threshold"], LifState(inputs["v0"]), reset=reset).out
    before = torch.cat([(inputs["v0"] > inputs["threshold"]).double()[None], bits[:-1]])
    shape = surrogate.atan(1.3)

    def clean(current: Tensor, beta: Tensor, threshold: Tensor, v0: Tensor) -> Tensor:
        """x of every step, from the frozen spikes."""
        if target == "trace":
            level, levels = trace0, []
            for current_t in current:
                level = beta * level + current_t
                levels.append(level)
            return ((1 - beta) * torch.stack(levels) / threshold).clamp(-0.5, 1)
        v, vs = v0, []
        for current_t, fired in zip(current, before, strict=True):
            v = beta * (v * (1 - fired) if reset == "zero" else v) + current_t
            v = v - threshold * fired if reset == "subtract" else v
            vs.append(v)
        return shape.soft(torch.stack(vs) - threshold)

    x0 = clean(**inputs)
    if target == "trace":
        q_trace, traces = inputs["beta"] * (trace0 - inputs["v0"]) / inputs["threshold"] + before[0], []
        for spikes in bits:
            q_trace = inputs["beta"] * q_trace + spikes
            traces.append(q_trace)
        delta = (1 - inputs["beta"]) * torch.stack(traces) - x0
    else:
        delta = bits - x0
    dim = (1, 2) if stats == "step" else (0, 1)

    def loss(**moved: Tensor) -> Tensor:
        x = clean(**(inputs | moved))
        return (weights * ddt(x, x + delta, dim=dim, backend="reference")).sum()

    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    state = LifState(leaves["v0"], trace0 if target == "trace" else None)
    estimator = SpikeGradient(floor=-0.5, target=target, stats=stats, surrogate=shape)
    run = lif(
        leaves["current"], leaves["beta"], leaves["threshold"], state, reset=reset, gradient=estimator, backend=backend
    )
    assert torch.equal(run.out, bits)
    (run.out * weights).sum().backward()
    for name, value in inputs.items():
        expected = numeric_gradient(lambda moved, name=name: loss(**{name: moved}), value)
        got = leaves[name].grad
        if target == "trace" and name == "v0":
            assert got is None  # the gradient runs through the trace alone
        else:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@both
@pytest.mark.parametrize(
    "estimator", [{}, {"stats": "step"}, {"emit": "denoised"}, {"target": "trace"}, {"gradient": "surrogate"}], ids=str
)
@pytest.mark.parametrize("level", [-30.0, 0.0, 30.0])
def test_silent_and_saturated_neurons_stay_finite(estimator: dict[str, Any], level: float, backend: str) -> None:
    current = torch.full((5, 1, 3), level, dtype=torch.float64, requires_grad=True)
    run = lif(current, 0.5, gradient=SpikeGradient(**estimator), backend=backend)
    (dx,) = torch.autograd.grad(run.out.sum(), current)
    assert bool(run.out.isfinite().all())
    assert bool(dx.isfinite().all())
    if level == 0:
        assert bool((dx > 0).all())  # a way back from silence


@both
def test_denoised_output_is_the_reconstruction_of_each_channel(backend: str) -> None:
    current = 0.7 * torch.randn(11, 2, 3, 4, dtype=torch.float64) + 0.2
    bits = lif(current, 0.75, backend=backend).out
    v, vs, fired = torch.zeros(2, 3, 4, dtype=torch.float64), [], torch.zeros(2, 3, 4, dtype=torch.float64)
    for current_t, bits_t in zip(current, bits, strict=True):
        v, fired = 0.75 * v + current_t - fired, bits_t
        vs.append(v)
    soft = surrogate.atan().soft(torch.stack(vs) - 1)
    for arguments, dim in (({}, (0, 1, 3)), ({"per_channel": False}, None), ({"stats": "step"}, (1, 2, 3))):
        run = lif(current, 0.75, gradient=SpikeGradient(emit="denoised", **arguments), backend=backend)
        torch.testing.assert_close(run.out, ddt(soft, bits, dim=dim), rtol=1e-10, atol=1e-10)
        axes = dim or (0, 1, 2, 3)
        means = torch.stack([t.mean(axes).reshape(-1) for t in (soft, bits, soft * bits)])
        torch.testing.assert_close(run.moments, means, rtol=1e-10, atol=1e-10)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"current": torch.zeros(0, 2, 3)},
        r"expected floating point \(T, B, features...\), no axis empty, got torch.float32 \(0, 2, 3\)",
    ),
    ({"current": torch.zeros(4, 2)}, r"got torch.float32 \(4, 2\)"),
    ({"current": torch.zeros(4, 2, 3, dtype=torch.int32)}, r"got torch.int32 \(4, 2, 3\)"),
    ({"reset": "hard"}, "reset: expected one of 'subtract', 'zero', 'none', got 'hard'"),
    ({"beta": torch.ones(4)}, r"beta: expected a shape that broadcasts to \(3,\), got \(4,\)"),
    ({"threshold": torch.ones(2, 3)}, r"threshold: expected a shape that broadcasts to \(3,\), got \(2, 3\)"),
    ({"state": LifState(torch.zeros(3, 3))}, r"state.v: expected \(2, 3\) torch.float32 on cpu, got \(3, 3\)"),
    ({"state": LifState(torch.zeros(2, 3).double())}, r"state.v: expected .* got \(2, 3\) torch.float64"),
    ({"trace": True, "reset": "zero"}, "target='trace' holds for reset 'subtract' only .* got 'zero'"),
    ({"trace": True, "reset": "none"}, "got 'none'"),
    ({"trace": True, "beta": 1.0}, r"target='trace' needs beta < 1 .* got 1"),
    ({"trace": True, "threshold": 0.0}, "target='trace' needs threshold > 0, got 0"),
    ({"trace": True, "beta": torch.tensor([0.5, 0.5, 1.5], requires_grad=True)}, "got 1.5"),
    (
        {"trace": True, "state": LifState(torch.zeros(2, 3))},
        "state: target='trace' carries a trace, got a state without one",
    ),
    (
        {"trace": True, "state": LifState(torch.zeros(2, 3), torch.zeros(3))},
        r"state.trace: expected \(2, 3\) torch.float32 on cpu, got \(3,\) torch.float32",
    ),
    ({"backend": "gpu"}, "backend: expected 'cpu' or 'reference', got 'gpu'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    given = {"current": torch.zeros(4, 2, 3), "beta": 0.9} | arguments
    trace = given.pop("trace", False)
    with pytest.raises(ValueError, match=message):
        lif(**given, gradient=SpikeGradient(target="trace") if trace else None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient": "ste"}, "gradient: expected one of 'ddt', 'surrogate', got 'ste'"),
        ({"target": "hard"}, "target: .* got 'hard'"),
        ({"emit": "floats"}, "emit: .* got 'floats'"),
        ({"stats": "batch"}, "stats: .* got 'batch'"),
        ({"lam": 0.0}, "lam: expected a number > 0 .* got 0"),
        ({"lam": math.nan}, "lam: .* got nan"),
        ({"scale": 0.0}, "scale: .* got 0"),
        ({"scale": math.inf}, "scale: .* got inf"),
        ({"floor": 0.1}, "floor: .* got 0.1"),
        ({"emit": "denoised", "target": "trace"}, "emit='denoised' needs .* got gradient='ddt', target='trace'"),
        ({"emit": "denoised", "gradient": "surrogate"}, "got gradient='surrogate'"),
        ({"emit": "denoised", "scale": 2.0}, "with emit='denoised' expected 1, got 2.0"),
    ],
)
def test_refused_estimators(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpikeGradient(**arguments)
