"""A recurrent layer's Triton kernels under the interpreter against the loop that defines them, and on a device at real sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tbnn import surrogate
from tbnn.nn import BinaryLinear, Leaky, Recurrent
from tbnn.ops.lif import Cell, LifState, Rule, Second, SpikeGradient, check_state
from tbnn.ops.recurrent_lif import Feedback, RecurrentResult, recurrent_lif, recurrent_lif_reference
from tests.interpreter import interpreted

CONSTANT = ("values", "scale", "offset")
SIGNS, TERNARY, SEVEN_BITS = (-1, 1), (-1, 0, 1), (-127, -33, 1, 99, 127)


class Case(NamedTuple):
    """A layer and its estimator; sizes are odd, so that tiles have edges."""

    estimator: dict[str, Any]
    size: tuple[int, int, int, int] = (3, 3, 40, 1)  # T, B, N, delay
    rule: Rule = Rule()
    second: bool = False
    ragged: bool = False
    levels: tuple[int, ...] = SIGNS
    without: tuple[str, ...] = ()  # of the feedback
    learns: bool = True
    shared: bool = False  # whether programs share a sample's neurons


SURROGATE, SOFT, TRACE = {"gradient": "surrogate", "scale": 0.5}, {"scale": 2.0}, {"target": "trace"}
ESTIMATORS: list[dict[str, Any]] = [SURROGATE, SOFT, TRACE]
WAITS = Rule("subtract", 2)

CASES = [
    *(Case(e, size) for e in ESTIMATORS for size in ((1, 1, 1, 1), (2, 3, 5, 4))),
    *(Case(e, (2, 17, 33, 1)) for e in (SURROGATE, TRACE)),
    *(Case(e, (4, 2, 40, delay), shared=True) for e, delay in ((SURROGATE, 1), (SURROGATE, 2), (SOFT, 1))),
    *(Case(e, (4, 3, 34, 1), rule, ragged=True) for e in (SURROGATE, SOFT) for rule in (Rule("zero"), Rule("none"), WAITS)),
    *(Case(e, (4, 2, 33, 2), second=True) for e in ESTIMATORS),
    *(Case(e, (5, 3, 40, 3), WAITS, second=True, ragged=True, shared=e == SOFT) for e in ESTIMATORS),
    *(Case(e, (3, 2, 33, 1), WAITS, second=True, learns=False) for e in ESTIMATORS),
    *(Case({**e, "differentiate_stats": False}, (3, 2, 9, 1)) for e in (SOFT, TRACE)),
    *(Case({**SURROGATE, "surrogate": shape}, (3, 2, 9, 1)) for shape in (
        surrogate.sigmoid(5), surrogate.boxcar(1.5), surrogate.leaky_spike(), surrogate.signed(0.5),
        surrogate.spike_rate_escape(2.0, 3.0), surrogate.sparse_fast_sigmoid(2.0, 0.25),
    )),
    Case(SURROGATE, levels=TERNARY, without=("offset",)),
    Case(SOFT, levels=SEVEN_BITS, without=("bias",)),
    Case(SURROGATE, levels=SEVEN_BITS, without=("offset", "bias")),
    Case(SURROGATE, (3, 2, 33, 1), Rule("subtract", 0, 33)),  # as many winners as neurons
]  # fmt: skip


def inputs_of(case: Case, device: str = "cpu") -> dict[str, Tensor]:
    """Numbers of all bits: both sides round alike."""
    steps, batch, n, delay = case.size
    generator = torch.Generator().manual_seed(sum(case.size))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    values = torch.tensor(case.levels, dtype=torch.float32)[
        torch.randint(0, len(case.levels), (n, n), generator=generator)
    ]
    scale, offset = uniform(0.2, 0.6, n) / (n**0.5 * max(map(abs, case.levels))), uniform(-0.04, 0.04, n)
    offset = 0 * offset if "offset" in case.without else offset
    inputs = {
        "current": uniform(-0.8, 1.5, steps, batch, n), "weight": scale[:, None] * values + offset[:, None],
        "values": values, "scale": scale, "offset": offset, "bias": uniform(-0.2, 0.2, n),
        "beta": uniform(0.5, 0.9, n), "threshold": uniform(0.7, 1.1, n), "v": uniform(-1, 1.5, batch, n),
        "past": (uniform(0, 1, delay, batch, n) > 0.6).float(),
    }  # fmt: skip
    inputs = {name: t for name, t in inputs.items() if name not in case.without}
    if case.second:
        ranges = ((0.25, 0.75), (-0.1, 0.2), (0.5, 1), (-0.3, 0.2), (0.25, 0.75), (-0.1, 0.5), (-0.1, 0.3))
        inputs |= {name: uniform(*r, n) for name, r in zip(Second._fields, ranges, strict=True)}
        inputs["w"] = uniform(-0.5, 0.5, batch, n)
    if case.estimator.get("target") == "trace":
        inputs["trace"] = uniform(-0.5, 0.5, batch, n)
        inputs |= {"w_trace": uniform(-0.5, 0.5, batch, n)} if case.second else {}
    if case.rule.gated:
        inputs["spikes"] = (uniform(0, 1, batch, n) > 0.7).float()
        inputs["waiting"] = (uniform(0, 1, batch, n) > 0.7).float()
    return {name: t.to(device) for name, t in inputs.items()}


def run(
    layer: Any, case: Case, inputs: dict[str, Tensor], losses: tuple[str, ...] = ("out", "state", "past")
) -> tuple[RecurrentResult, dict[str, Tensor]]:
    """All that leaves a run, and the gradients of a sum of it."""
    frozen = (*CONSTANT, "spikes", "waiting")
    frozen += () if case.learns else ("beta", "threshold", "past", "bias", *Second._fields)
    leaves = {name: t.clone().requires_grad_(name not in frozen) for name, t in inputs.items()}
    feedback = Feedback(*(leaves.get(name) for name in Feedback._fields))  # pyright: ignore[reportArgumentType]
    second = Second(*(leaves[name] for name in Second._fields)) if case.second else None
    gradient, current = SpikeGradient(stats="step", **case.estimator), leaves["current"]
    flags = {"with_trace": gradient.uses_trace, "with_second": case.second, "rule": case.rule}
    state = check_state(LifState(*(leaves.get(name) for name in LifState._fields)), current, **flags)  # pyright: ignore[reportArgumentType]
    steps, batch = current.shape[:2]
    lengths = (
        torch.tensor([steps - 1, 0, steps, steps // 2] * batch)[:batch].to(current.device) if case.ragged else None
    )
    cell = Cell(leaves["beta"], leaves["threshold"], second)
    got = layer(current, feedback, cell, state, leaves["past"], case.rule, gradient, lengths)
    parts = {"out": [got.out], "state": list(got.state), "past": [got.past]}
    total = torch.zeros((), device=current.device)
    for i, part in enumerate(p for name in losses for p in parts[name]):
        if part is not None and part.requires_grad:
            weights = torch.arange(1 + i, 1 + i + part.numel(), device=part.device).reshape(part.shape).cos()
            total = total + (part * weights).sum()
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return got, {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(wanted.items(), grads, strict=True)}


def check(
    case: Case, inputs: dict[str, Tensor], tolerance: float, losses: tuple[str, ...] = ("out", "state", "past")
) -> None:
    """Spikes, states and the spikes on their way equal bit for bit; gradients to a tolerance."""
    from tbnn.ops.recurrent_lif.gpu import recurrent_lif_gpu

    (want, want_grads), (got, grads) = (
        run(layer, case, inputs, losses) for layer in (recurrent_lif_reference, recurrent_lif_gpu)
    )
    assert torch.equal(got.out, want.out)
    assert torch.equal(got.past, want.past)
    for name, a, b in zip(LifState._fields, got.state, want.state, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or b is None or torch.equal(a, b), name
    for name, b in want_grads.items():
        largest = max(1.0, b.abs().max().item())
        torch.testing.assert_close(
            grads[name], b, rtol=tolerance, atol=tolerance * largest, msg=lambda m, n=name: f"d{n}: {m}"
        )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Tiles of 32 neurons, in programs of their own or all in one."""

    def tiles(shared: bool) -> None:
        monkeypatch.setattr("tbnn.ops.recurrent_lif.gpu.NEURONS", 32)
        monkeypatch.setattr("tbnn.ops.recurrent_lif.gpu.FEW_NEURONS", 32)
        monkeypatch.setattr("tbnn.ops.recurrent_lif.gpu.UNPACKED", 200)
        monkeypatch.setattr("tbnn.ops.recurrent_lif.gpu.ALONE", 0 if shared else 1024)

    return tiles


def label(case: Case) -> str:
    parts = [*(str(v) for v in case.estimator.values()), "x".join(map(str, case.size)), case.rule.reset]
    flags = {"waits": case.rule.refractory, "second": case.second, "ragged": case.ragged, "shared": case.shared}
    return "-".join([*parts, *(name for name, there in flags.items() if there)])


@interpreted
@pytest.mark.parametrize("case", CASES, ids=label)
def test_kernels_are_the_reference(case: Case, tiny: Callable[[bool], None]) -> None:
    tiny(case.shared)
    check(case, inputs_of(case), 2e-5)


@interpreted
@pytest.mark.parametrize("loss", ["out", "state", "past"])
@pytest.mark.parametrize("estimator", [SURROGATE, TRACE], ids=str)
def test_gradients_of_one_result_alone(loss: str, estimator: dict[str, Any], tiny: Callable[[bool], None]) -> None:
    tiny(False)
    case = Case(estimator, (3, 2, 33, 2))
    check(case, inputs_of(case), 2e-5, (loss,))


@interpreted
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("estimator", [SURROGATE, TRACE], ids=str)
def test_without_gradient_one_state_is_enough(
    second: bool, estimator: dict[str, Any], tiny: Callable[[bool], None]
) -> None:
    from tbnn.ops.recurrent_lif.gpu import recurrent_lif_gpu

    tiny(False)
    case = Case(estimator, (3, 3, 33, 2), WAITS if second else Rule(), second, ragged=True)
    inputs = inputs_of(case)
    (recorded, _), gradient = run(recurrent_lif_gpu, case, inputs), SpikeGradient(stats="step", **estimator)
    parts = Second(*(inputs[name] for name in Second._fields)) if second else None
    state = LifState(*(inputs.get(name) for name in LifState._fields))  # pyright: ignore[reportArgumentType]
    quiet = recurrent_lif_gpu(
        inputs["current"], Feedback(*(inputs[name] for name in Feedback._fields)),
        Cell(inputs["beta"], inputs["threshold"], parts), state, inputs["past"], case.rule, gradient,
        torch.tensor([2, 0, 3]),
    )  # fmt: skip
    assert quiet.out.grad_fn is None
    assert torch.equal(quiet.out, recorded.out)
    assert torch.equal(quiet.past, recorded.past)
    for name, a, b in zip(LifState._fields, quiet.state, recorded.state, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or b is None or torch.equal(a, b), name


@interpreted
@pytest.mark.parametrize("estimator", [SURROGATE, TRACE], ids=str)
def test_fresh_memory_does_not_leak(
    estimator: dict[str, Any], tiny: Callable[[bool], None], poisoned_memory: Any
) -> None:
    from tbnn.ops.recurrent_lif.gpu import recurrent_lif_gpu

    tiny(False)
    case = Case(estimator, (3, 2, 33, 2), WAITS, second=True, ragged=True)
    inputs = inputs_of(case)
    got, grads = run(recurrent_lif_gpu, case, inputs)
    with poisoned_memory():
        again, their_grads = run(recurrent_lif_gpu, case, inputs)
    assert torch.equal(got.out, again.out)
    for name, grad in grads.items():
        assert torch.equal(grad, their_grads[name]), name


@interpreted
@pytest.mark.parametrize("case", [Case(SOFT, rule=Rule(winners=2)), Case(SURROGATE, levels=(-255, 255))], ids=label)
def test_what_has_no_kernel_runs_the_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from tbnn.ops.recurrent_lif import gpu

    monkeypatch.setattr(gpu, "launch", lambda *_a, **_o: pytest.fail("a kernel ran"))
    check(case, inputs_of(case), 0.0)


@interpreted
def test_halves_of_a_gradient_hold_22_bits() -> None:
    """What TF32 takes of each has 11 significant bits, and both together all but the last two of float32's 24."""
    from tbnn.ops.recurrent_lif.gpu_backward import in_tf32

    x = torch.randn(1000).mul(2.0 ** torch.randint(-40, 40, (1000,)))
    halves = torch.empty(2, 1000)
    _split_kernel(in_tf32)[(1,)](x, halves, 1000, SIZE=1024)
    high, low = halves
    for half in halves:
        assert not (half.view(torch.int32) & 0x1FFF).any()
    assert ((high.double() + low.double() - x.double()).abs() <= 2.0**-21 * x.double().abs()).all()


def _split_kernel(split: Any) -> Any:
    import triton
    import triton.language as tl

    globals().update(tl=tl, split=split)

    @triton.jit
    def kernel(x, out, count, SIZE: tl.constexpr):
        i = tl.arange(0, SIZE)
        whole = tl.load(x + i, mask=i < count, other=0.0)
        tl.store(out + i, split(whole), mask=i < count)
        tl.store(out + count + i, split(whole - split(whole)), mask=i < count)

    return kernel


def test_products_under_autocast_stay_exact() -> None:
    """Sums beyond 256 do not fit bfloat16."""
    inputs = inputs_of(Case(SURROGATE, (4, 3, 40, 1), levels=SEVEN_BITS))
    feedback = Feedback(*(inputs[name] for name in Feedback._fields))
    outs = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outs.append(recurrent_lif(inputs["current"], feedback, 0.9, past=inputs["past"], backend="reference"))
    assert torch.equal(outs[0].out, outs[1].out)
    assert torch.equal(outs[0].state.v, outs[1].state.v)


def test_a_layer_on_a_device_is_one_call() -> None:
    """In float32; all else goes step by step."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    layers = Recurrent(Leaky(0.9), BinaryLinear(4, 4)), Recurrent(Leaky(0.9), BinaryLinear(4, 4)).bfloat16()
    with FakeTensorMode():
        x = torch.empty(3, 2, 4, device="cuda")
    assert [layer.fuses(x.to(dtype)) for layer, dtype in zip(layers, (torch.float32, torch.bfloat16), strict=True)] == [
        True, False,
    ]  # fmt: skip


on_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@on_device
@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize(
    "size", [(50, 128, 512, 1), (63, 5, 500, 3), (20, 40, 1100, 2), (12, 16, 1500, 1), (1, 3, 7, 1)], ids=str
)
@pytest.mark.parametrize("kind", ["plain", "second", "waits", "ragged"])
def test_real_sizes(size: tuple[int, int, int, int], estimator: dict[str, Any], kind: str) -> None:
    case = Case(estimator, size, WAITS if kind == "waits" else Rule(), kind == "second", kind == "ragged")
    check(case, inputs_of(case, "cuda"), 2e-3)


@on_device
@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_two_runs_give_the_same_bits(estimator: dict[str, Any]) -> None:
    from tbnn.ops.recurrent_lif.gpu import recurrent_lif_gpu

    case = Case(estimator, (100, 33, 512, 1), second=True)
    inputs = inputs_of(case, "cuda")
    first = run(recurrent_lif_gpu, case, inputs)
    for _ in range(3):
        got = run(recurrent_lif_gpu, case, inputs)
        assert torch.equal(got[0].out, first[0].out)
        for name, grad in first[1].items():
            assert torch.equal(grad, got[1][name]), name
