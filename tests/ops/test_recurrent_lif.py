"""The fused recurrent layer against the loop that defines it: spikes, final state and every gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn import surrogate
from tbnn.ops.lif import LifState, SpikeGradient
from tbnn.ops.recurrent_lif import Feedback, RecurrentResult, backward, function, recurrent_lif

LEVELS = {
    "signs": (-1, 1),
    "ternary": (-1, 0, 1),
    "three bits": (-7, -5, -3, -1, 1, 3, 5, 7),
    "six bits": tuple(range(-63, 64, 2)),
    "alike": (3,),
}
ESTIMATORS: list[tuple[dict[str, Any], str]] = [
    ({}, "subtract"),
    ({"scale": 2.0, "surrogate": surrogate.fast_sigmoid(4)}, "zero"),
    ({"differentiate_stats": False, "surrogate": surrogate.triangular()}, "none"),
    ({"gradient": "surrogate", "scale": 0.5}, "subtract"),
    ({"gradient": "surrogate", "surrogate": surrogate.boxcar(1.5)}, "zero"),
    ({"gradient": "surrogate", "surrogate": surrogate.sigmoid(5)}, "none"),
    ({"target": "trace"}, "subtract"),
    ({"target": "trace", "differentiate_stats": False, "floor": -0.1}, "subtract"),
]
SIZES = [(1, 1, 1, 1), (1, 3, 63, 1), (9, 2, 63, 1), (13, 5, 130, 1), (7, 3, 70, 2), (2, 3, 5, 4)]  # T, B, N, delay


def inputs_of(size: tuple[int, ...], levels: tuple[int, ...], dtype: torch.dtype, trace: bool) -> dict[str, Tensor]:
    steps, batch, n, delay = size
    generator = torch.Generator().manual_seed(sum(size))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    values = torch.tensor(levels, dtype=dtype)[torch.randint(0, len(levels), (n, n), generator=generator)]
    scale, offset = 0.3 * normal(n) / (n**0.5 * max(abs(v) for v in levels)), 0.02 * normal(n)
    return {
        "values": values, "scale": scale, "offset": offset,
        "current": 0.6 * normal(steps, batch, n) + 0.3, "weight": scale[:, None] * values + offset[:, None],
        "bias": 0.1 * normal(n), "beta": torch.sigmoid(normal(n) + 1), "threshold": 0.6 + 0.4 * torch.sigmoid(normal(n)),
        "v": normal(batch, n), "past": (normal(delay, batch, n) > 0.5).to(dtype),
        **({"trace": 0.5 * normal(batch, n)} if trace else {}),
    }  # fmt: skip


def run(inputs: dict[str, Tensor], gradient: SpikeGradient, reset: str, backend: str) -> RecurrentResult:
    feedback = Feedback(*(inputs[name] for name in Feedback._fields))
    state = LifState(inputs["v"], inputs.get("trace"))
    past = inputs["past"]
    return recurrent_lif(
        inputs["current"], feedback, inputs["beta"], inputs["threshold"], state, past,
        delay=len(past), reset=reset, gradient=gradient, backend=backend,
    )  # fmt: skip


def compare(
    size: tuple[int, ...],
    levels: tuple[int, ...],
    case: tuple[dict[str, Any], str],
    dtype: torch.dtype,
    losses: tuple[str, ...] = ("out", "state", "past"),
) -> dict[str, Tensor]:
    """Run both paths and compare all that comes out; the gradients."""
    gradient, reset = SpikeGradient(stats="step", **case[0]), case[1]
    inputs = inputs_of(size, levels, dtype, gradient.uses_trace)
    learned = [name for name in inputs if name not in ("values", "scale", "offset")]
    results = []
    for backend in ("cpu", "reference"):
        leaves = {name: t.clone().requires_grad_(name in learned) for name, t in inputs.items()}
        got = run(leaves, gradient, reset, backend)
        state = got.state.trace if got.state.trace is not None else got.state.v
        torch.manual_seed(1)
        parts = {
            name: (t * torch.randn_like(t)).sum()
            for name, t in zip(("out", "state", "past"), (got.out, state, got.past), strict=True)
        }
        loss = torch.stack([parts[name] for name in losses]).sum()
        grads = torch.autograd.grad(loss, [leaves[name] for name in learned], allow_unused=True)
        results.append((got, dict(zip(learned, grads, strict=True))))
    (got, got_grads), (want, want_grads) = results
    assert torch.equal(got.out, want.out)
    assert torch.equal(got.past, want.past)
    for a, b in zip(got.state, want.state, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for name, b in want_grads.items():
        a = torch.zeros_like(inputs[name]) if got_grads[name] is None else got_grads[name]
        b = torch.zeros_like(inputs[name]) if b is None else b
        largest = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * largest, msg=lambda m, n=name: f"d{n}: {m}")
    return got_grads


@pytest.mark.parametrize("case", ESTIMATORS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_the_loop(size: tuple[int, ...], case: tuple[dict[str, Any], str], dtype: torch.dtype) -> None:
    compare(size, LEVELS["signs"], case, dtype)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("case", ESTIMATORS[:1] + ESTIMATORS[3:4], ids=str)
def test_weights_of_any_bits(levels: str, case: tuple[dict[str, Any], str]) -> None:
    for dtype in (torch.float64, torch.float32):
        compare((9, 5, 130, 1), LEVELS[levels], case, dtype)


@pytest.mark.parametrize("kind", [backward.DENSE, backward.LOOKUP])
def test_both_products_of_the_backward_pass(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == backward.LOOKUP and not function.has_lookups():
        pytest.skip("no instruction that looks up sixteen floats")
    monkeypatch.setattr(function, "has_lookups", lambda: kind == backward.LOOKUP)
    grads = compare((9, 5, 130, 1), LEVELS["ternary"], ESTIMATORS[0], torch.float32)
    assert grads["weight"].abs().sum() > 0


@pytest.mark.parametrize("loss", ["out", "state", "past"])
@pytest.mark.parametrize("case", ESTIMATORS[:1] + ESTIMATORS[3:4] + ESTIMATORS[6:7], ids=str)
def test_gradients_of_one_result_alone(loss: str, case: tuple[dict[str, Any], str]) -> None:
    compare((6, 3, 70, 2), LEVELS["signs"], case, torch.float64, (loss,))


def test_many_spikes_take_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "DENSE_RATE", 0.0)
    monkeypatch.setattr(function, "ROWS_AT_ONCE", 7)
    for dtype in (torch.float64, torch.float32):
        compare((9, 5, 130, 1), LEVELS["signs"], ESTIMATORS[0], dtype)


@pytest.mark.parametrize("n", [256, 300])
def test_whole_strips_of_outputs(n: int) -> None:
    compare((40, 4, n, 1), LEVELS["signs"], ESTIMATORS[3], torch.float32)


def test_two_threads_give_the_bits_of_one() -> None:
    threads, results = torch.get_num_threads(), []
    gradient = SpikeGradient(stats="step")
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            inputs = inputs_of((50, 7, 200, 1), (-1, 1), torch.float32, False)
            leaves = {name: t.requires_grad_(name in ("current", "weight", "bias")) for name, t in inputs.items()}
            got = run(leaves, gradient, "subtract", "cpu")
            results.append(
                [got.out, *torch.autograd.grad(got.out.sum(), [leaves[k] for k in ("current", "weight", "bias")])]
            )
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_nothing_but_membranes_and_bits_is_kept() -> None:
    inputs = inputs_of((64, 4, 128, 1), (-1, 1), torch.float32, False)
    inputs["current"].requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run(inputs, SpikeGradient(stats="step"), "subtract", "cpu")
    big = sorted(t.nbytes for t in saved if t.nbytes > 64 * 4 * 128 // 16)
    assert big == [65 * 4 * 128 // 8, 4 * 128 * 128, 64 * 4 * 128 * 4]  # bits, weights, membranes


def test_refusals() -> None:
    x, weight = torch.zeros(3, 2, 4), torch.ones(4, 4)
    feedback = Feedback(weight, weight, torch.ones(4))
    bad: list[tuple[str, dict[str, Any]]] = [
        (r"expected floating point \(T, B, N\)", {"current": x[0]}),
        (r"feedback.scale: expected \(4,\) .* got \(3,\)", {"feedback": feedback._replace(scale=torch.ones(3))}),
        (r"feedback.bias: expected .*float32 .*float64", {"feedback": feedback._replace(bias=torch.ones(4).double())}),
        (r"delay: expected a number of steps >= 1, got 0", {"delay": 0}),
        (r"past: expected \(1, 2, 4\) .* got \(2, 2, 4\)", {"past": x[:2]}),
        (r"past: expected spikes 0 and 1", {"past": x[:1] + 0.5}),
        (r"expected emit='bits' and stats='step', got 'bits' and 'sequence'", {"gradient": SpikeGradient()}),
        (r"reset: expected one of", {"reset": "soft"}),
        (r"beta: expected a shape that broadcasts to \(4,\), got \(3,\)", {"beta": torch.ones(3)}),
    ]
    for message, arguments in bad:
        with pytest.raises(ValueError, match=message):
            recurrent_lif(**{"current": x, "feedback": feedback, "beta": 0.5, **arguments})
