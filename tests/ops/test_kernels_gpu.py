"""On a CUDA device, at real sizes: the Triton kernels against the reference, through the public functions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn.ops.ddt import ddt
from tbnn.ops.lif import LifState, Second, SpikeGradient, lif
from tbnn.ops.lif.integrate import leaky_integrate
from tbnn.ops.quantize import quantize, quantize_with_codes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ESTIMATORS: list[dict[str, Any]] = [
    {"gradient": "surrogate"},
    {},
    {"stats": "step"},
    {"target": "trace"},
    {"target": "trace", "stats": "step", "differentiate_stats": False},
    {"emit": "denoised"},
]
SIZES = [(500, 16, 512), (63, 5, 500), (100, 128, 1024), (4, 64, 63), (1, 3, 7)]


def dyadic(*shape: int, low: float = -1.0, high: float = 1.5, seed: int = 0) -> Tensor:
    """Multiples of 1/64."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return ((low + (high - low) * torch.rand(shape, generator=generator, device="cuda")) * 64).round() / 64


def compare(got: Tensor, expected: Tensor, name: str, tolerance: float) -> None:
    assert (got.dtype, got.shape, got.device) == (expected.dtype, expected.shape, expected.device), name
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * largest, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "second", "waits", "ragged"])
def test_neurons(size: tuple[int, int, int], estimator: dict[str, Any], kind: str) -> None:
    steps, batch, features = size
    leaves = {
        "current": dyadic(*size),
        "beta": torch.full((features,), 0.75, device="cuda"),
        "threshold": torch.ones(features, device="cuda"),
        "v": dyadic(batch, features, seed=1),
    }
    if kind == "second":
        numbers = (0.5, 0.0, 1.0, 0.0, 0.0, 1.0, 0.125)
        leaves |= {n: torch.full((features,), c, device="cuda") for n, c in zip(Second._fields, numbers, strict=True)}
        leaves["w"] = dyadic(batch, features, seed=2)
    if estimator.get("target") == "trace":
        leaves["trace"] = dyadic(batch, features, seed=3)
        if kind == "second":
            leaves["w_trace"] = dyadic(batch, features, seed=4)
    lengths = torch.arange(batch, device="cuda") % (steps + 1) if kind == "ragged" else None
    weights = torch.randn(size, generator=torch.Generator("cuda").manual_seed(5), device="cuda")
    results = []
    for backend in (None, "reference"):
        own = {n: t.clone().requires_grad_() for n, t in leaves.items()}
        state = LifState(own["v"], own.get("trace"), own.get("w"), own.get("w_trace"))
        if kind == "waits":
            state = state._replace(spikes=torch.zeros_like(leaves["v"]), waiting=torch.zeros_like(leaves["v"]))
        run = lif(
            own["current"], own["beta"], own["threshold"], state, lengths=lengths, refractory=2 * (kind == "waits"),
            second=Second(*(own[n] for n in Second._fields)) if kind == "second" else None,
            gradient=SpikeGradient(**estimator), backend=backend,
        )  # fmt: skip
        last = run.state.v if run.state.trace is None else run.state.trace
        grads = torch.autograd.grad((run.out * weights).sum() + last.sum(), list(own.values()), allow_unused=True)
        results.append((run, dict(zip(own, grads, strict=True))))
    (got, grads), (expected, expected_grads) = results
    if "emit" in estimator:
        compare(got.out, expected.out, "out", 1e-4)
    else:
        assert torch.equal(got.out, expected.out)
    for name, a, b in zip(LifState._fields, got.state, expected.state, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            # dyadic numbers with β = ¾ outgrow float32's bits over many steps; both sides round alike
            assert torch.equal(a, b), name
    for name, b in expected_grads.items():
        a = grads[name]
        compare(
            torch.zeros_like(leaves[name]) if a is None else a,
            torch.zeros_like(leaves[name]) if b is None else b,
            name,
            2e-3,
        )


def test_two_runs_give_the_same_bits() -> None:
    def run() -> tuple[Tensor, Tensor]:
        current = dyadic(100, 32, 512).requires_grad_()
        out = lif(current, 0.9).out
        (out * torch.linspace(-1, 1, 512, device="cuda")).sum().backward()
        assert current.grad is not None
        return out.detach(), current.grad

    first = run()
    assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(first, run(), strict=True))


def test_the_integrator() -> None:
    results = []
    for backend in (None, "reference"):
        current, v0 = dyadic(200, 33, 20).requires_grad_(), dyadic(33, 20, seed=1).requires_grad_()
        beta = torch.full((20,), 0.9, device="cuda", requires_grad=True)
        v = leaky_integrate(current, beta, v0, backend)
        results.append((v, *torch.autograd.grad(v.square().sum(), (current, v0, beta))))
    for a, b in zip(*results, strict=True):
        compare(a, b, "integrate", 1e-4)


LAYOUTS: list[dict[str, Any]] = [{"dim": 1}, {"dim": 1, "block": 128}, {"dim": 0}, {}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("form", ["affine", "linear"])
@pytest.mark.parametrize("sparsity", [0.0, 0.9, (2, 4)], ids=str)
@pytest.mark.parametrize("bits", [1, 1.58, 4, None])
def test_weights(bits: float | None, sparsity: Any, form: str, layout: dict[str, Any]) -> None:
    x, g = (torch.randn(1023, 1111, generator=torch.Generator("cuda").manual_seed(s), device="cuda") for s in (0, 1))
    for estimator in ("ddt", "ddt_ridge", "ddt_slope", "ste", "ewgs", *(("reste",) if bits == 1 else ())):
        results = []
        for backend in (None, "reference"):
            leaf = x.clone().requires_grad_()
            y, codes = quantize_with_codes(
                leaf, bits=bits, sparsity=sparsity, form=form, estimator=estimator, backend=backend, **layout
            )
            results.append((y, codes, torch.autograd.grad(y, leaf, g)[0]))
        (y, codes, dx), (expected, expected_codes, expected_dx) = results
        if bits is not None:
            assert torch.equal(codes.values, expected_codes.values)
        compare(y, expected, "x_hat", 1e-5)
        compare(dx, expected_dx, estimator, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_widths(dtype: torch.dtype) -> None:
    x = torch.randn(512, 1000, device="cuda").to(dtype)
    got, expected = (quantize(x, bits=4, dim=1, block=128, backend=b) for b in (None, "reference"))
    compare(got, expected, "x_hat", {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float64: 1e-12}[dtype])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("form", ["affine", "linear"])
def test_ddt(form: str, layout: dict[str, Any]) -> None:
    x, noise, g = (
        torch.randn(1023, 1111, generator=torch.Generator("cuda").manual_seed(s), device="cuda") for s in range(3)
    )
    results = []
    for backend in (None, "reference"):
        a, b = x.clone().requires_grad_(), ((x > 0) + 0.1 * noise).requires_grad_()
        y = ddt(a, b, form=form, backend=backend, **layout)
        results.append((y, *torch.autograd.grad(y, (a, b), g)))
    for got, expected in zip(*results, strict=True):
        compare(got, expected, "ddt", 1e-4)
