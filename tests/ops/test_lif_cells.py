"""Every cell, reset, gate and estimator: the fused kernels against the loop that defines them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.ops.lif import LifOutput, LifState, Second, SpikeGradient, lif

CELLS = ("leaky", "synaptic", "threshold", "adlif", "any")
SIZES = [(1, 3, 63), (9, 2, 63), (7, 3, 2, 5, 3), (3, 2, 500), (13, 1, 1)]
ESTIMATORS: list[dict[str, Any]] = [
    {"gradient": "surrogate", "scale": 0.5},
    {"scale": 2.0},
    {"per_channel": False, "differentiate_stats": False},
    {"stats": "step"},
    {"emit": "denoised"},
    {"emit": "denoised", "stats": "step", "differentiate_stats": False},
    {"target": "trace"},
    {"target": "trace", "stats": "step", "floor": -0.5},
    {"target": "trace", "per_channel": False, "differentiate_stats": False},
]


class Case(NamedTuple):
    """What a run is, but for its numbers."""

    cell: str = "any"
    estimator: dict[str, Any] = {}  # noqa: RUF012
    reset: str = "subtract"
    refractory: int = 0
    winners: int | None = None
    with_lengths: bool = False

    @property
    def gradient(self) -> SpikeGradient:
        return SpikeGradient(**self.estimator)


def sixteenths(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=generator).double() / 16


def second_of(cell: str, shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """Coefficients, multiples of 1/16, of a stable second state whose spikes inhibit in the long run."""

    def some(low: int, high: int) -> Tensor:
        return sixteenths(low, high, shape, generator)

    zero, one = torch.zeros(shape).double(), torch.ones(shape).double()
    rho = some(4, 12)
    given = {
        "synaptic": (rho, zero, one, zero, zero, one, zero),
        "threshold": (rho, zero, zero, some(1, 8), one, zero, some(4, 16)),
        "adlif": (rho, some(0, 2), zero, some(0, 4), one, -some(1, 4), zero),
        "any": (rho, some(-2, 2), some(-8, 16), some(-2, 2), some(4, 16), some(-4, 4), some(-4, 8)),
    }
    return {} if cell == "leaky" else dict(zip(Second._fields, given[cell], strict=True))


def numbers(
    case: Case, size: tuple[int, ...], seed: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], Tensor | None]:
    """All that a gradient may run to, and the lengths. Currents and states are multiples of 1/64."""
    generator = torch.Generator().manual_seed(seed)
    sample, features = size[1:], size[2:]

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * 64).round() / 64

    inputs = {
        "current": 0.5 * normal(*size) + 0.5,
        "beta": sixteenths(0, 14, features, generator),
        "threshold": sixteenths(10, 18, features, generator),
        "v": normal(*sample),
    } | second_of(case.cell, features, generator)
    if case.cell != "leaky":
        inputs["w"] = 0.5 * normal(*sample)
    if case.gradient.uses_trace:
        inputs |= {f"{name}trace": 0.5 * normal(*sample) for name in ("", "w_") if name == "" or "w" in inputs}
    inputs = {name: value.to(dtype) for name, value in inputs.items()}
    lengths = None
    if case.with_lengths:
        lengths = torch.randint(0, size[0] + 1, size[1:2], generator=generator)
        inputs["current"][torch.arange(size[0]).unsqueeze(1) >= lengths] = torch.nan
    return inputs, lengths


def run_with(
    case: Case, inputs: dict[str, Tensor], lengths: Tensor | None, backend: str | None = None, **changed: Any
) -> LifOutput:
    """One call of ``lif``; the neurons of a gated case have just fired, or wait, by a pattern of their own."""
    pattern = torch.arange(inputs["v"].numel()).reshape(inputs["v"].shape)
    gated = case.refractory > 0 or case.winners is not None
    state = LifState(
        inputs["v"], inputs.get("trace"), inputs.get("w"), inputs.get("w_trace"),
        (pattern % 3 == 0).to(inputs["v"]) if gated else None,
        (pattern % (case.refractory + 1)).to(inputs["v"]) if case.refractory else None,
    )  # fmt: skip
    second = Second(*(inputs[name] for name in Second._fields)) if "rho" in inputs else None
    given = {
        "state": state, "second": second, "reset": case.reset, "refractory": case.refractory, "winners": case.winners,
        "gradient": case.gradient, "lengths": lengths, "backend": backend,
    }  # fmt: skip
    return lif(inputs["current"], inputs["beta"], inputs["threshold"], **(given | changed))


def outcome(
    case: Case, inputs: dict[str, Tensor], lengths: Tensor | None, weights: list[Tensor], backend: str
) -> tuple[LifOutput, dict[str, Tensor | None]]:
    """Output and every gradient of a loss that reads the output and every final state that has a gradient."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    run = run_with(case, leaves, lengths, backend)
    loss = (run.out * weights[0]).sum()
    for state, weight in zip(run.state, weights[1:], strict=False):
        if state is not None and state.requires_grad:
            loss = loss + (state * weight).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return run, dict(zip(leaves, grads, strict=True))


def compare(
    case: Case, size: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64, tol: float = 1e-9
) -> None:
    """Bits and states are equal; what reads transcendental functions or long sums agrees to ``tol`` of its largest."""
    inputs, lengths = numbers(case, size, seed, dtype)
    weights = [torch.randn(size, dtype=dtype), *torch.randn(4, *size[1:], dtype=dtype)]
    (got, got_grads), (expected, expected_grads) = (
        outcome(case, inputs, lengths, weights, backend) for backend in ("cpu", "reference")
    )
    for name, a, b in zip(LifState._fields, got.state, expected.state, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert torch.equal(a, b), name
            assert a.requires_grad == b.requires_grad, name
    if case.gradient.emit == "bits":
        assert torch.equal(got.out, expected.out)
    pairs = {"out": (got.out, expected.out), "moments": (got.moments, expected.moments)}
    pairs |= {f"d{name}": (got_grads[name], expected_grads[name]) for name in inputs}
    for name, (a, b) in pairs.items():
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert bool(b.isfinite().all()), name
            largest = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a, b, rtol=tol, atol=tol * largest, msg=lambda m, name=name: f"{name}: {m}")
    if lengths is not None:
        over = torch.arange(size[0]).unsqueeze(1) >= lengths
        assert not got.out[over].any()
        assert not got_grads["current"][over].any()


@given(
    cell=st.sampled_from(CELLS),
    estimator=st.sampled_from(ESTIMATORS),
    reset=st.sampled_from(["subtract", "zero", "none"]),
    refractory=st.sampled_from([0, 1, 3]),
    winners=st.sampled_from([None, None, 1, 3, 40]),
    with_lengths=st.booleans(),
    size=st.sampled_from(SIZES),
    seed=st.integers(0, 99),
)
@settings(max_examples=150)
def test_any_combination(
    cell: str,
    estimator: dict[str, Any],
    reset: str,
    refractory: int,
    winners: int | None,
    with_lengths: bool,
    size: tuple[int, ...],
    seed: int,
) -> None:
    reset = "subtract" if estimator.get("target") == "trace" else reset
    compare(Case(cell, estimator, reset, refractory, winners, with_lengths), size, seed)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_and_estimator_at_least_once(cell: str, estimator: dict[str, Any]) -> None:
    resets = ("subtract",) if estimator.get("target") == "trace" else ("subtract", "zero", "none")
    for reset in resets:
        compare(Case(cell, estimator, reset), (7, 2, 3, 5), 1)
    compare(Case(cell, estimator, resets[-1], 2, 4, True), (7, 4, 3, 5), 2)


@pytest.mark.parametrize("winners", [None, 30, 2000])
@pytest.mark.parametrize("cell", ["leaky", "any"])
def test_more_neurons_than_a_tile(cell: str, winners: int | None) -> None:
    compare(Case(cell, {"stats": "step"}, winners=winners, with_lengths=True), (3, 3, 1100), 3)
    compare(Case(cell, {"target": "trace"}, refractory=1, winners=winners), (3, 3, 1100), 3)


@pytest.mark.parametrize(
    "estimator", [{"gradient": "surrogate"}, {}, {"emit": "denoised"}, {"target": "trace"}], ids=str
)
@pytest.mark.parametrize("cell", ["leaky", "any"])
def test_float32(cell: str, estimator: dict[str, Any]) -> None:
    compare(Case(cell, estimator, with_lengths=True), (20, 3, 63), 4, torch.float32, 2e-4)
    compare(Case(cell, estimator, refractory=1, winners=5), (20, 3, 63), 4, torch.float32, 2e-4)


def test_floats_give_equal_bits_too() -> None:
    """The kernels round after every operation, in the order of the loop."""
    for cell in CELLS:
        case = Case(cell, {"gradient": "surrogate"}, refractory=1, winners=20)
        inputs, _ = numbers(case, (50, 3, 63), 5, torch.float32)
        inputs = {name: value * 1.0137 for name, value in inputs.items()}
        got, expected = (run_with(case, inputs, None, backend) for backend in ("cpu", "reference"))
        assert 0.02 < expected.out.mean() < 0.5
        assert torch.equal(got.out, expected.out)
        assert all(torch.equal(a, b) for a, b in zip(got.state, expected.state, strict=True) if a is not None)


@pytest.mark.parametrize("name", ["beta", "threshold", *Second._fields, "v", "w"])
def test_the_comparison_can_fail(name: str) -> None:
    case = Case("any", {"gradient": "surrogate"})
    inputs, _ = numbers(case, (30, 3, 63), 6, torch.float64)
    expected = run_with(case, inputs, None, "reference")
    got = run_with(case, inputs | {name: inputs[name] + 1 / 64}, None, "cpu")
    assert not torch.equal(got.out, expected.out)
    for changed in ({"reset": "zero"}, {"reset": "none"}):
        assert not torch.equal(run_with(case, inputs, None, "cpu", **changed).out, expected.out)


@pytest.mark.parametrize("cell", ["leaky", "any"])
@pytest.mark.parametrize("estimator", [{}, {"emit": "denoised"}, {"target": "trace", "stats": "step"}], ids=str)
def test_threads_and_fresh_memory_change_no_bit(
    cell: str, estimator: dict[str, Any], poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    size = (17, 5, 1030)
    weights = [torch.randn(size, dtype=torch.float64), *torch.randn(4, *size[1:], dtype=torch.float64)]
    for refractory, winners, with_lengths in ((0, None, True), (2, None, False), (1, 30, True)):
        case = Case(cell, estimator, "subtract", refractory, winners, with_lengths)
        inputs, lengths = numbers(case, size, 7, torch.float64)

        def run(
            case: Case = case, inputs: dict[str, Tensor] = inputs, lengths: Tensor | None = lengths
        ) -> list[Tensor]:
            run, grads = outcome(case, inputs, lengths, weights, "cpu")
            return [t for t in (run.out, *run.state, run.moments, *grads.values()) if t is not None]

        plain = with_threads(1, run)
        assert all(bool(t.isfinite().all()) for t in plain)
        assert all(torch.equal(a, b) for a, b in zip(plain, with_threads(2, run), strict=True))
        with poisoned_memory():
            assert all(torch.equal(a, b) for a, b in zip(plain, run(), strict=True))


@pytest.mark.parametrize("estimator", [{"gradient": "surrogate"}, {"target": "trace"}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_steps_give_what_the_sequence_gives(cell: str, estimator: dict[str, Any]) -> None:
    for refractory, winners in ((0, None), (2, None), (0, 7), (1, 7)):
        case = Case(cell, estimator, "subtract", refractory, winners, with_lengths=True)
        inputs, lengths = numbers(case, (11, 4, 40), 8, torch.float64)
        assert lengths is not None
        whole = run_with(case, inputs, lengths)
        step = run_with(case, inputs | {"current": inputs["current"][:1]}, lengths.clamp(max=1))
        out = [step.out]
        for t in range(1, 11):
            step = run_with(
                case, inputs | {"current": inputs["current"][t : t + 1]}, (lengths - t).clamp(0, 1), state=step.state
            )
            out.append(step.out)
        assert torch.equal(torch.cat(out), whole.out)
        assert all(a is b or torch.equal(a, b) for a, b in zip(step.state, whole.state, strict=True))


@pytest.mark.parametrize("name", ["beta", "threshold", *Second._fields])
@pytest.mark.parametrize("estimator", [{"gradient": "surrogate"}, {"target": "trace"}], ids=str)
def test_one_learned_coefficient_alone(name: str, estimator: dict[str, Any]) -> None:
    """The kernel adds up only the gradients that are asked for; each must be what it is among all."""
    case = Case("any", estimator, refractory=1)
    inputs, _ = numbers(case, (9, 2, 30), 9, torch.float64)
    weights = [torch.randn(9, 2, 30, dtype=torch.float64), *torch.randn(4, 2, 30, dtype=torch.float64)]
    _, grads = outcome(case, inputs, None, weights[:1], "cpu")
    leaves = inputs | {name: inputs[name].clone().requires_grad_()}
    (alone,) = torch.autograd.grad((run_with(case, leaves, None).out * weights[0]).sum(), leaves[name])
    assert torch.equal(alone, grads[name])


def test_a_block_whose_sequences_have_all_ended_stays_finite() -> None:
    for estimator in ({"stats": "step"}, {"stats": "step", "emit": "denoised"}, {"target": "trace"}):
        case = Case("any", estimator)
        inputs, _ = numbers(case, (4, 2, 6), 10, torch.float64)
        for lengths in (torch.tensor([2, 1]), torch.tensor([0, 0])):
            weights = [torch.randn(4, 2, 6, dtype=torch.float64), *torch.randn(4, 2, 6, dtype=torch.float64)]
            runs = [outcome(case, inputs, lengths, weights, backend) for backend in ("cpu", "reference")]
            for run, grads in runs:
                assert all(bool(t.isfinite().all()) for t in (run.out, run.moments, *grads.values()) if t is not None)
                assert not run.out[2:].any()
