"""The DDT's forward pass: against least squares, pinned values, identities and refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tbnn.ops.ddt import ddt
from tbnn.surrogate import atan

FORMS = ["affine", "linear"]
Layout = tuple[tuple[int, ...], Any, Any]

LAYOUTS: list[Layout] = [
    ((), None, None),
    ((1,), None, None),
    ((63,), None, None),
    ((63,), None, 10),
    ((7, 5), 0, None),
    ((7, 5), 0, 3),
    ((5, 33), -1, 8),
    ((5, 33), 1, 100),
    ((3, 4, 5), (0, 1), None),
    ((3, 4, 5), (0, 2), None),
    ((3, 4, 5), (2, -2), None),
    ((3, 7, 5), 1, 2),
    ((2, 3, 4, 3), (1, 3), None),
    ((2, 3, 300), 1, 2),
]


def blocks_of(shape: tuple[int, ...], dim: Any, block: int | None) -> list[np.ndarray]:
    """The flat indices of every block."""
    index = np.arange(math.prod(shape)).reshape(shape or (1,))
    if block is not None and dim is None:
        dim = -1
    axes = range(index.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
    runs = np.moveaxis(index, tuple(axes), tuple(range(-len(axes), 0)))
    runs = runs.reshape(-1, math.prod(runs.shape[-len(axes) :]))
    length = block or runs.shape[1]
    return [row[lo : lo + length] for row in runs for lo in range(0, runs.shape[1], length)]


def solved(x: np.ndarray, q: np.ndarray, lam: float, form: str) -> np.ndarray:
    """A block's reconstruction by a generic least-squares solver on the ridge problem itself."""
    ones = np.ones_like(q) if form == "affine" else np.zeros_like(q)
    rows = np.stack([np.append(q, np.sqrt(q.size * lam)), np.append(ones, 0.0)], axis=1)
    s, b = np.linalg.lstsq(rows, np.append(x, 0.0), rcond=None)[0]
    return s * q + (b if form == "affine" else 0.0)


def solved_everywhere(x: Tensor, q: Tensor, lam: float, form: str, dim: Any, block: int | None) -> Tensor:
    out = np.empty(x.numel())
    xn, qn = x.double().numpy().reshape(-1), q.double().numpy().reshape(-1)
    for at in blocks_of(tuple(x.shape), dim, block):
        out[at] = solved(xn[at], qn[at], lam, form)
    return torch.from_numpy(out).reshape(x.shape)


def pair(shape: tuple[int, ...], seed: int, codes: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    q = (x > 0).double() if codes else torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, q


@given(
    layout=st.sampled_from(LAYOUTS),
    form=st.sampled_from(FORMS),
    lam=st.sampled_from([1e-4, 0.01, 1.0, 30.0]),
    seed=st.integers(0, 99),
    codes=st.booleans(),
)
def test_every_layout_solves_the_ridge_problem(layout: Layout, form: str, lam: float, seed: int, codes: bool) -> None:
    shape, dim, block = layout
    x, q = pair(shape, seed, codes)
    expected = solved_everywhere(x, q, lam, form, dim, block)
    for backend in ("cpu", "reference"):
        got = ddt(x, q, lam=lam, form=form, dim=dim, block=block, backend=backend)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [16384, 16385, 40001, 2**17, 3 * 2**14 + 32])
@pytest.mark.parametrize("form", FORMS)
def test_a_block_too_long_for_one_run_of_sums(n: int, form: str) -> None:
    x, q = pair((n,), 3)
    torch.testing.assert_close(
        ddt(x, q, form=form), torch.from_numpy(solved(x.numpy(), q.numpy(), 0.01, form)), rtol=1e-9, atol=1e-9
    )


def test_long_runs_with_a_remainder_and_long_runs_side_by_side() -> None:
    x, q = pair((3, 50_000), 4)
    expected = solved_everywhere(x, q, 0.01, "affine", 1, 20_000)
    torch.testing.assert_close(ddt(x, q, dim=1, block=20_000), expected, rtol=1e-9, atol=1e-9)
    x, q = pair((2, 100_003), 4)
    expected = solved_everywhere(x, q, 0.01, "affine", 1, 40_000)  # runs of several parts, the last one shorter
    torch.testing.assert_close(ddt(x, q, dim=1, block=40_000), expected, rtol=1e-9, atol=1e-9)
    x, q = pair((20_000, 5), 5)
    torch.testing.assert_close(ddt(x, q, dim=0), solved_everywhere(x, q, 0.01, "affine", 0, None), rtol=1e-9, atol=1e-9)


def test_pinned_binary_affine() -> None:
    x = torch.tensor([-1, -0.5, 0.5, 2], dtype=torch.float64)
    q = (x > 0).double()
    mean, covariance, variance = 0.25, ((x - 0.25) * (q - 0.5)).mean().item(), 0.25
    assert covariance / (variance + 0.01) == pytest.approx(1.9230769230769231, abs=1e-15)
    x_hat = ddt(x, q)
    torch.testing.assert_close(x_hat, covariance / (variance + 0.01) * (q - 0.5) + mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        x_hat, torch.tensor([-0.711538461538, -0.711538461538, 1.211538461538, 1.211538461538], dtype=torch.float64)
    )


def test_pinned_ternary_linear() -> None:
    x = torch.tensor([-1, -0.5, 0.1, 2], dtype=torch.float64)
    q = torch.tensor([-1, 0, 0, 1], dtype=torch.float64)
    s = ((1 + 2) / 4) / (2 / 4 + 0.01)
    assert s == pytest.approx(1.4705882352941178, abs=1e-15)
    torch.testing.assert_close(ddt(x, q, form="linear"), s * q, rtol=0, atol=1e-14)


def test_pinned_soft_spike() -> None:
    u = torch.tensor([-0.6, -0.1, 0.2, 0.9], dtype=torch.float64)
    f = atan(2.0).soft(u)
    torch.testing.assert_close(
        f, torch.tensor([0.5 + math.atan(math.pi * a) / math.pi for a in u.tolist()], dtype=torch.float64)
    )
    low, high = (f[:2].mean(), f[2:].mean())
    s = (high - low) / 4 / 0.26
    x_hat = ddt(f, (u > 0).double())
    torch.testing.assert_close(x_hat, torch.stack([f.mean() - s / 2] * 2 + [f.mean() + s / 2] * 2), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        x_hat, torch.tensor([0.2889, 0.2889, 0.7754, 0.7754], dtype=torch.float64), rtol=0, atol=5e-5
    )
    torch.testing.assert_close(ddt(f, torch.zeros_like(f)), f.mean().expand(4), rtol=0, atol=1e-15)
    assert f.mean().item() == pytest.approx(0.5322, abs=5e-5)


@given(
    form=st.sampled_from(FORMS), lam=st.sampled_from([1e-3, 0.01, 2.0]), seed=st.integers(0, 99), n=st.integers(2, 40)
)
def test_no_other_slope_or_offset_has_a_lower_objective(form: str, lam: float, seed: int, n: int) -> None:
    x, q = pair((n,), seed, codes=False)
    x_hat = ddt(x, q, lam=lam, form=form)
    s = ((x_hat[0] - x_hat[1]) / (q[0] - q[1])).item()
    b = (x_hat[0] - s * q[0]).item()

    def objective(s: float, b: float) -> float:
        return (0.5 * (s * q + b - x).square().mean() + 0.5 * lam * s * s).item()

    least = objective(s, b)
    for ds, db in [(1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, 1e-3), (-1e-3, 1e-3)]:
        if form == "affine" or db == 0:
            assert objective(s + ds, b + db) > least
    assert form == "affine" or b == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_large_lambda_or_a_constant_code_leaves_the_mean(backend: str) -> None:
    x, q = pair((5, 9), 1)
    mean = x.mean(1, keepdim=True).expand_as(x)
    torch.testing.assert_close(ddt(x, q, lam=1e15, dim=1, backend=backend), mean, rtol=0, atol=1e-12)
    for constant in (0.0, 1.0, 0.3):
        torch.testing.assert_close(
            ddt(x, torch.full_like(x, constant), dim=1, backend=backend), mean, rtol=0, atol=1e-12
        )
    assert torch.equal(ddt(x, torch.zeros_like(x), form="linear", backend=backend), torch.zeros_like(x))


@given(scale=st.floats(0.01, 100), shift=st.floats(-100, 100), seed=st.integers(0, 99), form=st.sampled_from(FORMS))
def test_equivariance(scale: float, shift: float, seed: int, form: str) -> None:
    x, q = pair((4, 11), seed)
    x_hat = ddt(x, q, form=form, dim=1)
    torch.testing.assert_close(ddt(scale * x, q, form=form, dim=1), scale * x_hat, rtol=1e-9, atol=1e-9)
    if form == "affine":  # the offset absorbs a shift of x, and a shift of the codes does not matter
        torch.testing.assert_close(ddt(x + shift, q, dim=1), x_hat + shift, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ddt(x, q + shift, dim=1), x_hat, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near_float64(form: str, dtype: torch.dtype) -> None:
    x, q = pair((6, 301), 2)
    got = ddt(x.to(dtype), q.to(dtype), form=form, dim=1, block=128)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(got.double(), ddt(x, q, form=form, dim=1, block=128), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("form", "constant"), [("affine", 0.0), ("affine", 1.0), ("affine", 0.1), ("affine", 0.7), ("linear", 0.0)]
)
def test_lambda_0_is_refused_on_a_block_without_a_slope(backend: str, form: str, constant: float) -> None:
    x, q = pair((3, 7), 0)
    q[1] = constant
    with pytest.raises(ValueError, match=r"lam=0 divides by zero, .* 1 of 3 blocks"):
        ddt(x, q, lam=0, form=form, dim=1, backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("form", FORMS)
def test_lambda_0_is_least_squares_where_the_slope_exists(backend: str, form: str) -> None:
    x, q = pair((12,), 0)
    torch.testing.assert_close(
        ddt(x, q, lam=0, form=form, backend=backend),
        solved_everywhere(x, q, 0.0, form, None, None),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": -0.01}, r"lam: expected a finite number >= 0, got -0.01"),
        ({"lam": math.nan}, "lam: .* got nan"),
        ({"lam": math.inf}, "lam: .* got inf"),
        ({"form": "ridge"}, "form: expected 'affine' or 'linear', got 'ridge'"),
        ({"dim": 2}, "dim: expected distinct axes of a tensor with 2, got 2"),
        ({"dim": -3}, "dim: .* got -3"),
        ({"dim": (0, -2)}, r"dim: .* got \(0, -2\)"),
        ({"dim": ()}, r"dim: .* got \(\)"),
        ({"dim": 1, "block": 0}, "block: expected a length >= 1 along one axis, got block=0"),
        ({"dim": (0, 1), "block": 2}, r"block: .* with dim=\(0, 1\)"),
        ({"backend": "gpu"}, "backend: expected 'cpu' or 'reference', got 'gpu'"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ddt(torch.zeros(3, 4), torch.zeros(3, 4), **arguments)


def test_refused_tensors() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"expected x and q alike, got x \(3, 4\) .* q \(4, 3\)"):
        ddt(x, x.T)
    with pytest.raises(ValueError, match=r"torch.float32 on cpu, .* torch.float64"):
        ddt(x, x.double())
    with pytest.raises(ValueError, match=r"expected floating point tensors, got torch.int64"):
        ddt(x.long(), x.long())
    with pytest.raises(ValueError, match=r"expected at least one value, got shape \(0, 4\)"):
        ddt(x[:0], x[:0])


def test_threads_and_fresh_memory_change_no_bit(
    poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    x, q = (t.float() for t in pair((3, 100_003), 6))

    def run() -> tuple[Tensor, ...]:
        xg, qg = x.clone().requires_grad_(), q.clone().requires_grad_()
        x_hat = ddt(xg, qg, dim=1, block=33_000)
        (x_hat * x).sum().backward()
        return x_hat.detach(), xg.grad, qg.grad

    plain = with_threads(1, run)
    for again in (with_threads(2, run), run()):
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    with poisoned_memory():
        assert all(torch.equal(a, b) for a, b in zip(plain, run(), strict=True))


def test_non_contiguous_inputs() -> None:
    x, q = pair((9, 14), 7)
    torch.testing.assert_close(ddt(x.T, q.T, dim=0, block=4), ddt(x, q, dim=1, block=4).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_rounded_only_at_the_end(dtype: torch.dtype, backend: str, form: str) -> None:
    x, q = (t.to(dtype) for t in pair((3, 2000), 2, codes=False))
    got = ddt(x, q, form=form, dim=1, backend=backend)
    assert got.dtype == dtype
    exact = ddt(x.double(), q.double(), form=form, dim=1)
    torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
