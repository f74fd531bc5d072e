"""The neuron's Triton kernels under the interpreter against the loop that defines them: all that comes out, every gradient."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tbnn import surrogate
from tbnn.ops.lif import Cell, LifState, Rule, Second, SpikeGradient, Statistics, check_state
from tbnn.ops.lif.integrate import leaky_integrate_reference
from tbnn.ops.lif.reference import LifResult, lif_reference
from tests.interpreter import interpreted

pytestmark = interpreted

SHAPES = [
    surrogate.atan(),
    surrogate.fast_sigmoid(4),
    surrogate.sigmoid(5),
    surrogate.triangular(),
    surrogate.boxcar(1.5),
]
BARE = [
    surrogate.leaky_spike(),
    surrogate.signed(0.5),
    surrogate.spike_rate_escape(2.0, 3.0),
    surrogate.sparse_fast_sigmoid(2.0, 0.25),
]


class Case(NamedTuple):
    """A layer, its rule and its estimator; sizes are odd, so that tiles have edges."""

    estimator: dict[str, Any]
    size: tuple[int, int, int] = (3, 3, 5)
    rule: Rule = Rule()
    second: bool = False
    ragged: bool = False
    channels: int = 0  # 0: every neuron its own
    learns: bool = True
    lanes: int = 16  # of a tile


TRACE, SOFT = {"target": "trace"}, {"target": "soft", "scale": 2.0}
SURROGATE = {"gradient": "surrogate", "scale": 0.5}
STEP, LAYER, SLOPE, DENOISED = (
    {"stats": "step"},
    {"per_channel": False},
    {"differentiate_stats": False},
    {"emit": "denoised"},
)
WAITS = Rule("subtract", 2)

CASES = [
    *(Case({**estimator, "surrogate": shape}) for shape in SHAPES for estimator in (SURROGATE, SOFT)),
    *(Case({**SURROGATE, "surrogate": shape}) for shape in BARE),
    Case({**TRACE, "surrogate": BARE[1]}),
    *(Case(e, size) for e in (SURROGATE, SOFT, TRACE) for size in ((1, 1, 1), (7, 2, 17), (1, 3, 5))),
    *(Case({**e, **s}, (4, 3, 5)) for e in (SOFT, TRACE, DENOISED) for s in (STEP, LAYER, SLOPE, {**STEP, **SLOPE})),
    *(Case(e, (7, 2, 6), channels=2) for e in (SOFT, TRACE, DENOISED)),
    *(Case(e, (7, 2, 5), Rule(reset, wait)) for e in (SURROGATE, SOFT) for reset in ("zero", "none") for wait in (0, 2)),
    *(Case(e, (7, 2, 5), WAITS) for e in (SURROGATE, TRACE, DENOISED)),
    *(Case(e, (4, 3, 5), second=True) for e in (SURROGATE, SOFT, TRACE, DENOISED, {**TRACE, **STEP})),
    *(Case(e, (4, 3, 5), Rule(r, w), second=True, ragged=True) for e in (SURROGATE, SOFT) for r, w in (("zero", 1), ("none", 0))),
    *(Case({**e, **s}, (4, 3, 5), ragged=True) for e in (SURROGATE, SOFT, TRACE, DENOISED) for s in ({}, STEP)),
    *(Case(e, (4, 3, 5), WAITS, second=True, ragged=True) for e in (TRACE, DENOISED)),
    *(Case(e, (3, 2, 5), second=second, learns=False) for e in (SURROGATE, SOFT, TRACE) for second in (False, True)),
    *(Case(e, (7, 9, 17), lanes=64) for e in (SOFT, TRACE)),
    Case({"target": "trace", "floor": -0.5}, (4, 3, 5), Rule("subtract", 0, 5)),  # as many winners as neurons
]  # fmt: skip


def leaves_of(case: Case, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Multiples of 1/64: exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: float, high: float, *shape: int) -> Tensor:
        values = low + (high - low) * torch.rand(shape, generator=generator)
        return ((values * 64).round() / 64).to(dtype)

    _, batch, features = case.size
    leaves = {
        "current": number(-1, 1.75, *case.size),
        "beta": number(0.5, 0.9, features),
        "threshold": number(0.75, 1.25, features),
        "v": number(-1, 1.5, batch, features),
    }
    if case.second:
        ranges = ((0.25, 0.75), (-0.1, 0.2), (0.5, 1), (-0.3, 0.2), (0.25, 0.75), (-0.1, 0.5), (-0.1, 0.3))
        leaves |= {name: number(*r, features) for name, r in zip(Second._fields, ranges, strict=True)}
        leaves["w"] = number(-0.5, 0.5, batch, features)
    if case.estimator.get("target") == "trace":
        leaves["trace"] = number(-0.5, 0.5, batch, features)
        if case.second:
            leaves["w_trace"] = number(-0.5, 0.5, batch, features)
    return leaves


def run(neuron: Any, case: Case, leaves: dict[str, Tensor], affine: Any = None) -> tuple[LifResult, dict[str, Tensor]]:
    """Everything that leaves a run, and the gradients of a sum of it."""
    dtype, (steps, batch, features) = leaves["current"].dtype, case.size
    constant = () if case.learns else ("beta", "threshold", "v", "w", *Second._fields)
    leaves = {n: t.clone().requires_grad_(n not in constant) for n, t in leaves.items()}
    second = Second(*(leaves[n] for n in Second._fields)) if case.second else None
    estimator = SpikeGradient(**case.estimator)
    given = LifState(leaves["v"], leaves.get("trace"), leaves.get("w"), leaves.get("w_trace"))
    if case.rule.gated:
        given = given._replace(
            spikes=(torch.arange(batch * features).reshape(batch, features) % 3 == 0).to(dtype),
            waiting=(torch.arange(batch * features).reshape(batch, features) % 2).to(dtype),
        )
    flags = {"with_trace": estimator.uses_trace, "with_second": case.second, "rule": case.rule}
    state = check_state(given, leaves["current"], **flags)
    alive = None
    if case.ragged:
        alive = (torch.arange(steps)[:, None] < torch.tensor([steps, 0, steps // 2, 1])[:batch]).to(dtype)
    statistics = Statistics(case.channels or features, alive)
    cell = Cell(leaves["beta"], leaves["threshold"], second)
    result = neuron(leaves["current"], cell, state, case.rule, estimator, statistics, affine)
    total = torch.zeros(())
    for i, part in enumerate((result.out, *result.state)):
        if part is not None and part.requires_grad:
            total = total + (part * torch.arange(1 + i, 1 + i + part.numel()).reshape(part.shape).cos()).sum()
    wanted = {n: t for n, t in leaves.items() if t.requires_grad}
    grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return result, {
        f"d{n}": torch.zeros_like(t) if g is None else g for (n, t), g in zip(wanted.items(), grads, strict=True)
    }


def compare(got: Tensor, expected: Tensor, name: str, tolerance: float = 2e-5) -> None:
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * largest, msg=lambda m: f"{name}: {m}")


def check(case: Case, leaves: dict[str, Tensor], affine: Any = None) -> None:
    """Spikes and states equal bit for bit, what is summed to a tolerance."""
    from tbnn.ops.lif.gpu import lif_gpu

    (expected, expected_grads), (got, grads) = (
        run(neuron, case, leaves, affine) for neuron in (lif_reference, lif_gpu)
    )
    if case.estimator.get("emit") == "denoised":
        compare(got.out, expected.out, "out")
    else:
        assert torch.equal(got.out, expected.out)
    for name, a, b in zip(LifState._fields, got.state, expected.state, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name
    assert (got.moments is None) == (expected.moments is None)
    if got.moments is not None:
        compare(got.moments, expected.moments, "moments")
    for name, b in expected_grads.items():
        compare(grads[name], b, name)


def label(case: Case) -> str:
    parts = [*(str(v) for v in case.estimator.values()), "x".join(map(str, case.size)), case.rule.reset]
    parts += [
        n for n, there in (("waits", case.rule.refractory), ("second", case.second), ("ragged", case.ragged)) if there
    ]
    return "-".join(parts)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_kernels_are_the_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbnn.ops.lif.gpu_scan.FEW_LANES", case.lanes)
    monkeypatch.setattr("tbnn.ops.lif.gpu_scan.ROWS", 2)
    check(case, leaves_of(case, sum(case.size)))


def test_constants_of_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbnn.ops.lif.gpu_scan.FEW_LANES", 8)
    a, b = torch.tensor([0.5, 0.75]), torch.tensor([0.125, -0.25])
    for ragged in (False, True):
        case = Case(DENOISED, (3, 3, 6), ragged=ragged, channels=2)
        check(case, leaves_of(case, 1), (a, b))


def test_any_float32_current_gives_the_same_spikes() -> None:
    case = Case(SURROGATE, (7, 3, 17), second=True)
    leaves = {n: t + 1e-3 * torch.randn_like(t) for n, t in leaves_of(case, 3).items()}
    check(case, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_states_in_float32(dtype: torch.dtype) -> None:
    from tbnn.ops.lif.gpu import lif_gpu

    case = Case(SOFT, (4, 3, 5), Rule("subtract", 1), second=True, ragged=True)
    half = leaves_of(case, 5, dtype)
    got, grads = run(lif_gpu, case, half)
    expected, expected_grads = run(lif_reference, case, {n: t.float() for n, t in half.items()})
    assert got.out.dtype == got.state.v.dtype == grads["dbeta"].dtype == dtype
    assert torch.equal(got.out.float(), expected.out)
    assert torch.equal(got.state.v, expected.state.v.to(dtype))
    for name, b in expected_grads.items():
        compare(grads[name].float(), b, name, 2e-2)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 3, 17)])
def test_the_integrator(size: tuple[int, int, int], learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tbnn.ops.lif.gpu import integrate_gpu

    monkeypatch.setattr("tbnn.ops.lif.gpu_scan.FEW_LANES", 8)
    results = []
    for integrate in (leaky_integrate_reference, integrate_gpu):
        torch.manual_seed(0)
        current, v0 = torch.randn(size, requires_grad=True), torch.randn(size[1:], requires_grad=True)
        beta = torch.rand(size[2], requires_grad=learns)
        v = integrate(current, beta, v0)
        leaves = (current, v0, beta) if learns else (current, v0)
        results.append((v, *torch.autograd.grad((v * v.detach().cos()).sum(), leaves)))
    assert torch.equal(results[0][0], results[1][0])
    for name, b, a in zip(("dcurrent", "dv0", "dbeta"), results[0][1:], results[1][1:], strict=False):
        compare(a, b, name)


def test_without_gradient_nothing_is_kept_and_fresh_memory_does_not_leak(poisoned_memory: Any) -> None:
    from tbnn.ops.lif import gpu

    case = Case({"target": "trace"}, (3, 2, 5), WAITS, second=True, ragged=True)
    leaves = leaves_of(case, 2)
    plain = run(gpu.lif_gpu, case, leaves)
    with poisoned_memory():
        again = run(gpu.lif_gpu, case, leaves)
    assert torch.equal(plain[0].out, again[0].out)
    for name, grad in plain[1].items():
        assert torch.equal(grad, again[1][name]), name
    with torch.no_grad():
        state = check_state(None, leaves["current"])
        quiet = gpu.lif_gpu(
            leaves["current"],
            Cell(leaves["beta"], leaves["threshold"]),
            state,
            Rule(),
            SpikeGradient(),
            Statistics(5),
            None,
        )
    assert quiet.out.grad_fn is None


def test_winners_run_the_reference() -> None:
    case = Case(SOFT, (3, 2, 5), Rule("subtract", 0, 2))
    check(case, leaves_of(case, 4))


def test_sums_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that see the same: every sum doubles, no mean changes, and neither does anything else."""
    from tbnn.ops.lif.gpu import lif_gpu

    case, calls = Case({**TRACE, **STEP}, (3, 2, 5)), []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda sums: calls.append(sums.mul_(2)))
    leaves = leaves_of(case, 6)
    state = check_state(LifState(leaves["v"], leaves["trace"]), leaves["current"], with_trace=True)
    grads = []
    for joined in (False, True):
        current = leaves["current"].clone().requires_grad_()
        cell, estimator = Cell(leaves["beta"], leaves["threshold"]), SpikeGradient(**case.estimator)
        out = lif_gpu(current, cell, state, Rule(), estimator, Statistics(5, None, joined), None).out
        grads += torch.autograd.grad((out * leaves["current"].cos()).sum(), current)
    assert len(calls) == 1
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-7)
