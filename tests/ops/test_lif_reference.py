"""The fused neuron against the loop that defines it: outputs, final state and every gradient."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn import surrogate
from tbnn.ops.lif import LifState, SpikeGradient, lif

SHAPES = [
    surrogate.atan(),
    surrogate.fast_sigmoid(4),
    surrogate.sigmoid(5),
    surrogate.triangular(),
    surrogate.boxcar(1.5),
]
SIZES = [(1, 1, 1), (1, 3, 63), (9, 2, 63), (13, 1, 7), (3, 2, 500), (7, 3, 2, 5, 3), (5, 2, 1, 1), (4, 2, 3, 600)]
ESTIMATORS: list[dict[str, Any]] = [
    {"gradient": "surrogate", "scale": 0.5},
    *(
        {"stats": stats, "per_channel": per_channel, "differentiate_stats": full, **target}
        for stats, per_channel, full, target in itertools.product(
            ("sequence", "step"),
            (True, False),
            (True, False),
            (
                {"target": "soft", "scale": 2.0},
                {"emit": "denoised"},
                {"target": "trace"},
                {"target": "trace", "floor": -0.1},
            ),
        )
    ),
]


def difference(
    size: tuple[int, ...], estimator: SpikeGradient, reset: str, seed: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Run both backends on the same numbers and compare all that comes out."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    sample, features = size[1:], size[2:]
    inputs = {
        "current": 0.6 * normal(*size) + 0.3,
        "beta": torch.sigmoid(normal(*features) + 1),
        "threshold": 0.6 + 0.4 * torch.sigmoid(normal(*features)),
        "v0": normal(*sample),
    }
    if estimator.uses_trace:
        inputs["trace0"] = 0.5 * normal(*sample)
    weights, v_weights, trace_weights = normal(*size), normal(*sample), normal(*sample)
    results = []
    for backend in ("cpu", "reference"):
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        state = LifState(leaves["v0"], leaves.get("trace0"))
        run = lif(
            leaves["current"],
            leaves["beta"],
            leaves["threshold"],
            state,
            reset=reset,
            gradient=estimator,
            backend=backend,
        )
        loss = (run.out * weights).sum()
        if run.state.trace is None:
            loss = loss + (run.state.v * v_weights).sum()
        else:
            assert not run.state.v.requires_grad
            loss = loss + (run.state.trace * trace_weights).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        results.append((run, dict(zip(leaves, grads, strict=True))))
    (got, got_grads), (expected, expected_grads) = results
    if estimator.emit == "bits":
        assert torch.equal(got.out, expected.out)
    assert torch.equal(got.state.v, expected.state.v)
    pairs = {"out": (got.out, expected.out), "trace": (got.state.trace, expected.state.trace)}
    pairs |= {"moments": (got.moments, expected.moments)}
    pairs |= {f"d{name}": (got_grads[name], expected_grads[name]) for name in inputs}
    for name, (a, b) in pairs.items():
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert a.shape == b.shape, name
            largest = max(1.0, b.abs().max().item())
            torch.testing.assert_close(
                a, b, rtol=tolerance, atol=tolerance * largest, msg=lambda m, name=name: f"{name}: {m}"
            )


def estimators_and_resets() -> list[tuple[dict[str, Any], str]]:
    resets = ("subtract", "zero", "none")
    return [(e, r) for e in ESTIMATORS for r in resets if r == "subtract" or e.get("target") != "trace"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(
    case=st.sampled_from(estimators_and_resets()),
    size=st.sampled_from(SIZES),
    lam=st.sampled_from([0.01, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_float64(
    shape: surrogate.Surrogate, case: tuple[dict[str, Any], str], size: tuple[int, ...], lam: float, seed: int
) -> None:
    estimator, reset = case
    difference(size, SpikeGradient(surrogate=shape, lam=lam, **estimator), reset, seed, torch.float64, 1e-9)


@pytest.mark.parametrize(
    "shape",
    [
        surrogate.leaky_spike(),
        surrogate.signed(0.5),
        surrogate.spike_rate_escape(2.0, 3.0),
        surrogate.sparse_fast_sigmoid(2.0, 0.25),
    ],
    ids=str,
)
@given(reset=st.sampled_from(["subtract", "zero", "none"]), size=st.sampled_from(SIZES[:5]), seed=st.integers(0, 99))
def test_surrogates_without_a_soft_spike(
    shape: surrogate.Surrogate, reset: str, size: tuple[int, ...], seed: int
) -> None:
    estimator = SpikeGradient("surrogate", shape, scale=0.5)
    difference(size, estimator, reset, seed, torch.float64, 1e-9)
    difference(size, estimator, reset, seed, torch.float32, 1e-3)


@pytest.mark.parametrize(
    ("estimator", "reset"),
    estimators_and_resets(),
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else v,
)
def test_every_estimator_and_reset_at_least_once(estimator: dict[str, Any], reset: str) -> None:
    difference((7, 2, 3, 5), SpikeGradient(**estimator), reset, 1, torch.float64, 1e-9)


@pytest.mark.parametrize(
    "estimator",
    [{"gradient": "surrogate"}, {}, {"stats": "step"}, {"emit": "denoised"}, {"target": "trace"}],
    ids=lambda e: "-".join(map(str, e.values())) or "default",
)
@pytest.mark.parametrize("size", [(1, 2, 63), (63, 2, 31), (20, 2, 500)])
def test_float32(estimator: dict[str, Any], size: tuple[int, ...]) -> None:
    difference(size, SpikeGradient(**estimator), "subtract", 2, torch.float32, 2e-4)


@pytest.mark.parametrize("constants", [1, 3])
@pytest.mark.parametrize("stats", ["sequence", "step"])
def test_given_constants_leave_the_neuron_in_evaluation(constants: int, stats: str) -> None:
    current, weights = torch.randn(2, 6, 2, 3, 4, dtype=torch.float64)
    a, b = 0.5 + torch.rand(constants, dtype=torch.float64), torch.randn(constants, dtype=torch.float64)
    bits = lif(current, 0.8).out
    spread_a, spread_b = (t.reshape(-1, 1).expand(3, 4) if constants == 3 else t for t in (a, b))
    results = []
    for backend in ("cpu", "reference"):
        leaf = current.clone().requires_grad_()
        run = lif(leaf, 0.8, gradient=SpikeGradient(emit="denoised", stats=stats), affine=(a, b), backend=backend)
        assert run.moments is None
        torch.testing.assert_close(run.out, spread_a * bits + spread_b, rtol=1e-12, atol=1e-12)
        results.append(torch.autograd.grad(run.out, leaf, weights)[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
    plain = current.clone().requires_grad_()  # a constant slope is a bare surrogate, a times
    out = lif(plain, 0.8, gradient=SpikeGradient(gradient="surrogate")).out
    torch.testing.assert_close(
        results[0], torch.autograd.grad(out, plain, weights * spread_a)[0], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    "estimator", [{}, {"stats": "step"}, {"emit": "denoised"}, {"target": "trace"}, {"gradient": "surrogate"}], ids=str
)
@pytest.mark.parametrize("reset", ["subtract", "none"])
def test_threads_and_fresh_memory_change_no_bit(
    estimator: dict[str, Any], reset: str, poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    if estimator.get("target") == "trace" and reset == "none":
        return
    current, weights = torch.randn(2, 17, 3, 1030)
    gradient = SpikeGradient(**estimator)

    def run() -> tuple[Tensor, ...]:
        leaves = [
            t.clone().requires_grad_()
            for t in (current, torch.full((1030,), 0.8), torch.ones(1030), torch.zeros(3, 1030))
        ]
        trace0 = leaves[3] + 0.1 if gradient.uses_trace else None
        out = lif(leaves[0], leaves[1], leaves[2], LifState(leaves[3], trace0), reset=reset, gradient=gradient)
        last = out.state.v if out.state.trace is None else out.state.trace
        return out.out, out.state.v, last, *torch.autograd.grad((out.out * weights).sum() + last.sum(), leaves)

    plain = with_threads(1, run)
    assert all(bool(t.isfinite().all()) for t in plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, with_threads(2, run), strict=True))
    with poisoned_memory():
        assert all(torch.equal(a, b) for a, b in zip(plain, run(), strict=True))


def test_non_contiguous_currents_and_gradients() -> None:
    current, weights = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    straight, turned = current.clone().requires_grad_(), current.permute(2, 1, 0).contiguous().requires_grad_()
    expected, got = lif(straight, 0.8), lif(turned.permute(2, 1, 0), 0.8)
    assert torch.equal(got.out, expected.out)
    (dx,) = torch.autograd.grad(expected.out, straight, weights)
    (dy,) = torch.autograd.grad(got.out, turned, weights.permute(2, 0, 1).contiguous().permute(1, 2, 0))
    torch.testing.assert_close(dy.permute(2, 1, 0), dx, rtol=1e-12, atol=1e-12)


def test_half_precision_takes_the_reference() -> None:
    current = torch.randn(5, 2, 7, dtype=torch.bfloat16, requires_grad=True)
    run = lif(current, 0.875, gradient=SpikeGradient(emit="denoised"))
    expected = lif(current, 0.875, gradient=SpikeGradient(emit="denoised"), backend="reference")
    assert run.out.dtype == torch.bfloat16
    assert torch.equal(run.out, expected.out)
