"""The fused recurrent layer against the loop that defines it: spikes, final state and every gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn import pack_bits, surrogate, unpack_bits
from tbnn.ops.layer_lif import WeightedSpikes, Weights, plan
from tbnn.ops.lif import LifState, Second, SpikeGradient
from tbnn.ops.recurrent_lif import Feedback, RecurrentResult, adjoint, backward, recurrent_lif

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
    ({"gradient": "surrogate", "surrogate": surrogate.leaky_spike(), "scale": 0.5}, "subtract"),
    ({"gradient": "surrogate", "surrogate": surrogate.signed(0.5)}, "zero"),
    ({"gradient": "surrogate", "surrogate": surrogate.spike_rate_escape(2.0, 0.5)}, "none"),
    ({"gradient": "surrogate", "surrogate": surrogate.sparse_fast_sigmoid(2.0, 0.25)}, "subtract"),
    ({"target": "trace"}, "subtract"),
    ({"target": "trace", "differentiate_stats": False, "floor": -0.1}, "subtract"),
]
SIZES = [(1, 1, 1, 1), (1, 3, 63, 1), (9, 2, 63, 1), (13, 5, 130, 1), (7, 3, 70, 2), (2, 3, 5, 4)]  # T, B, N, delay


CONSTANT = ("values", "scale", "offset")


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


def second_of(inputs: dict[str, Tensor], trace: bool) -> dict[str, Tensor]:
    """Every coefficient of a second state, all different, in a range where the trace target holds; and that state."""
    batch, n = inputs["v"].shape
    spread = torch.rand(len(Second._fields), n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    size = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.8, 0.2, 0.2], dtype=torch.float64)[:, None]
    parts = dict(zip(Second._fields, (size * (0.5 + spread / 2)).to(inputs["v"].dtype), strict=True))
    parts["to_v"] = -parts["to_v"]
    w = torch.rand(2, batch, n, generator=torch.Generator().manual_seed(batch), dtype=torch.float64).to(
        inputs["v"].dtype
    )
    return {**parts, "w": w[0], **({"w_trace": w[1]} if trace else {})}


def run(
    inputs: dict[str, Tensor], gradient: SpikeGradient, reset: str, backend: str, **options: Any
) -> RecurrentResult:
    feedback = Feedback(*(inputs[name] for name in Feedback._fields))
    second = Second(*(inputs[name] for name in Second._fields)) if "rho" in inputs else None
    past = inputs["past"]
    gates = {}
    if options.get("refractory") or options.get("winners"):
        gates["spikes"] = (inputs["v"] > inputs["threshold"]).to(past.dtype).detach()
    if options.get("refractory"):
        gates["waiting"] = gates["spikes"] * options["refractory"]
    states = {name: inputs[name] for name in ("v", "trace", "w", "w_trace") if name in inputs}
    return recurrent_lif(
        inputs["current"], feedback, inputs["beta"], inputs["threshold"], LifState(**states, **gates), past,
        delay=len(past), second=second, reset=reset, gradient=gradient, backend=backend, **options,
    )  # fmt: skip


def compare(
    size: tuple[int, ...],
    levels: tuple[int, ...],
    case: tuple[dict[str, Any], str],
    dtype: torch.dtype,
    losses: tuple[str, ...] = ("out", "state", "past"),
    second: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """Run both paths and compare all that comes out; the gradients."""
    gradient, reset = SpikeGradient(stats="step", **case[0]), case[1]
    inputs = inputs_of(size, levels, dtype, gradient.uses_trace)
    inputs |= second_of(inputs, gradient.uses_trace) if second else {}
    learned = [name for name in inputs if name not in CONSTANT]
    results = []
    for backend in ("cpu", "reference"):
        leaves = {name: t.clone().requires_grad_(name in learned) for name, t in inputs.items()}
        got = run(leaves, gradient, reset, backend, **options)
        torch.manual_seed(1)
        states = (got.state.v, got.state.w) if not gradient.uses_trace else (got.state.trace, got.state.w_trace)
        state = torch.cat([t for t in states if t is not None])
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
    for name, a, b in zip(LifState._fields, got.state, want.state, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or b is None or torch.equal(a, b), name
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for name, b in want_grads.items():
        a = torch.zeros_like(inputs[name]) if got_grads[name] is None else got_grads[name]
        b = torch.zeros_like(inputs[name]) if b is None else b
        largest = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * largest, msg=lambda m, n=name: f"d{n}: {m}")
    return got_grads


def small_chunks(monkeypatch: pytest.MonkeyPatch, membranes: int) -> None:
    """Chunks of so many membranes, checkpoints every few steps."""
    monkeypatch.setattr(plan, "CHUNK", membranes)
    monkeypatch.setattr(plan, "SPACING", 2)


@pytest.mark.parametrize("case", ESTIMATORS, ids=str)
@pytest.mark.parametrize("delay", [1, 3])
def test_a_second_state_gates_and_lengths(
    case: tuple[dict[str, Any], str], delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every coefficient's gradient; in chunks, from states that are kept, from some of them and from checkpoints."""
    size = (13, 5, 70, delay)
    small_chunks(monkeypatch, 2 * 5 * 70)
    lengths = torch.tensor([13, 2, 7, 0, 12])
    for dtype in (torch.float64, torch.float32):
        for memory in ("speed", 0.3, "minimal"):
            compare(size, LEVELS["signs"], case, dtype, second=True, memory=memory)
            compare(size, LEVELS["signs"], case, dtype, second=True, refractory=2, lengths=lengths, memory=memory)
            compare(size, LEVELS["signs"], case, dtype, winners=9, lengths=lengths, memory=memory)
            compare(size, LEVELS["signs"], case, dtype, lengths=lengths, memory=memory)


@pytest.mark.parametrize("gates", [{"refractory": 1}, {"winners": 5}, {"refractory": 3, "winners": 20}], ids=str)
@pytest.mark.parametrize("case", ESTIMATORS[:2] + ESTIMATORS[5:7], ids=str)
def test_gates(case: tuple[dict[str, Any], str], gates: dict[str, int]) -> None:
    for second in (False, True):
        grads = compare((9, 3, 130, 2), LEVELS["ternary"], case, torch.float64, second=second, **dict[str, Any](gates))
        assert grads["weight"].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("memory", ["speed", 0.5, "minimal"])
def test_spikes_and_weights_in_place_of_the_current(
    dtype: torch.dtype, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the composed current gives, and the spikes packed."""
    steps, batch, n, inputs = 11, 3, 70, 45
    small_chunks(monkeypatch, 3 * batch * n)
    arguments = inputs_of((steps, batch, n, 2), (-1, 1), dtype, False)
    torch.manual_seed(0)
    x = (torch.rand(steps, batch, inputs) < 0.3).to(dtype)
    codes, scale, bias = (
        torch.randint(-3, 4, (n, inputs)).to(dtype),
        torch.rand(n, 1).to(dtype) / 4,
        torch.randn(n).to(dtype),
    )
    results = []
    for fused in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, scale * codes, bias, arguments["weight"], arguments["bias"])]
        spikes, weight, own_bias, feedback_weight, feedback_bias = leaves

        def compose(spikes: Tensor = spikes, weight: Tensor = weight, own_bias: Tensor = own_bias) -> Tensor:
            exact = (spikes @ codes.T) * scale[:, 0]
            return exact.detach() + (spikes @ weight.T - (spikes @ weight.T).detach()) + own_bias

        weights = Weights(weight, codes, scale, None, own_bias)
        given = WeightedSpikes(pack_bits(x), spikes, weights, compose, memory)
        feedback = Feedback(
            feedback_weight, arguments["values"], arguments["scale"], arguments["offset"], feedback_bias
        )
        got = recurrent_lif(
            given, feedback, arguments["beta"], arguments["threshold"], delay=2, backend="cpu" if fused else "reference"
        )
        torch.manual_seed(1)
        results.append((got, given, torch.autograd.grad((got.out * torch.randn_like(got.out)).sum(), leaves)))
    (got, given, grads), (want, _, expected) = results
    assert torch.equal(got.out, want.out)
    assert given.emitted is not None
    assert torch.equal(unpack_bits(given.emitted, n, dtype=dtype), got.out)
    for name, a, b in zip(("x", "weight", "bias", "feedback", "its bias"), grads, expected, strict=True):
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * b.abs().max().item(), msg=lambda m, n=name: f"d{n}: {m}"
        )


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
    if kind == backward.LOOKUP and not adjoint.has_lookups():
        pytest.skip("no instruction that looks up sixteen floats")
    monkeypatch.setattr(adjoint, "has_lookups", lambda: kind == backward.LOOKUP)
    grads = compare((9, 5, 130, 1), LEVELS["ternary"], ESTIMATORS[0], torch.float32)
    assert grads["weight"].abs().sum() > 0


@pytest.mark.parametrize("loss", ["out", "state", "past"])
@pytest.mark.parametrize("case", ESTIMATORS[:1] + ESTIMATORS[3:4] + ESTIMATORS[6:7], ids=str)
def test_gradients_of_one_result_alone(loss: str, case: tuple[dict[str, Any], str]) -> None:
    compare((6, 3, 70, 2), LEVELS["signs"], case, torch.float64, (loss,))


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


def saved_by(run_it: Callable[[], Any]) -> dict[int, int]:
    """Bytes of each memory that autograd keeps."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run_it()
    return saved


def test_what_is_kept() -> None:
    """Of spikes one bit; of plain neurons' membranes the share, or checkpoints; of two states the current at most."""
    steps, batch, n = 1024, 2, 128
    inputs = inputs_of((steps, batch, n, 1), (-1, 1), torch.float32, False)
    inputs["current"].requires_grad_()
    bits, sequence = (steps + 1) * batch * n // 8, 4 * steps * batch * n
    small = 4 * n * n + 40 * n + 10 * 4 * batch * n  # weights, coefficients, checkpoints of 15 segments and a bit
    for second, memory, wanted in (
        (False, "speed", sequence),
        (False, "minimal", sequence),
        (True, "speed", 2 * sequence),
        (True, "minimal", sequence),
    ):
        given = inputs | (second_of(inputs, False) if second else {})
        options: Any = {"memory": memory}
        kept = saved_by(lambda g=given, o=options: run(g, SpikeGradient(stats="step"), "subtract", "cpu", **o))
        assert wanted + bits <= sum(kept.values()) <= wanted + bits + 3 * small

    x = (torch.rand(steps, batch, n) < 0.2).float()
    weights = Weights(inputs["weight"].clone().requires_grad_(), inputs["values"], inputs["scale"][:, None], None, None)
    feedback = Feedback(*(inputs[name] for name in Feedback._fields))
    sizes = {}
    for memory in ("speed", "balanced", "minimal"):
        given = WeightedSpikes(pack_bits(x), None, weights, lambda: x, memory)
        kept = saved_by(lambda g=given: recurrent_lif(g, feedback, 0.9))
        sizes[memory] = sum(kept.values())
    assert sizes["minimal"] < bits + 3 * small
    assert sequence + bits < sizes["speed"] < sequence + bits + 3 * small
    assert 0.15 * sequence < sizes["balanced"] - sizes["minimal"] <= 0.25 * sequence  # whole segments


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
        (r"refractory: expected a number of steps >= 0, got -1", {"refractory": -1}),
        (r"rho: expected a shape that broadcasts to \(4,\)", {"second": Second(torch.ones(3), *[torch.ones(4)] * 6)}),
        (r"lengths: expected torch.int64 \(2,\) .* got torch.int64 \(3,\)", {"lengths": torch.tensor([1, 2, 3])}),
        (r"lengths: expected values in \[0, 3\], got 1 to 4", {"lengths": torch.tensor([1, 4])}),
        (r"memory: expected .* got 'little'", {"memory": "little"}),
        (r"beta: expected a shape that broadcasts to \(4,\), got \(3,\)", {"beta": torch.ones(3)}),
    ]
    for message, arguments in bad:
        with pytest.raises(ValueError, match=message):
            recurrent_lif(**{"current": x, "feedback": feedback, "beta": 0.5, **arguments})
