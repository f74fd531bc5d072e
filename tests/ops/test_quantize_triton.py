"""The quantiser's Triton kernels under the interpreter against the definition: codes equal, x̂ and gradients alike."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tbnn.ops.ddt import closed_form, sums_of
from tbnn.ops.quantize import Ewgs, Reste
from tbnn.ops.quantize.estimators import Estimator, estimator_of, name_and_settings
from tbnn.ops.quantize.grid import scheme_of
from tbnn.ops.quantize.parts import OFFSET, S
from tbnn.ops.quantize.reference import quantize_reference
from tbnn.ops.quantize.sparsify import sparsity_of
from tests.interpreter import interpreted

pytestmark = interpreted


class Case(NamedTuple):
    """A scheme, a layout (outer, n, inner) with its block, and an estimator."""

    bits: float | None
    form: str = "affine"
    shape: tuple[int, int, int] = (3, 17, 1)
    block: int = 17
    sparsity: Any = 0.0
    scope: str = "block"
    estimator: str | Estimator = "ddt"
    dtype: torch.dtype = torch.float32
    part: int = 1 << 13


BITS = (1, 1.58, 2, 4, None)
FORMS = ("affine", "linear")
LAYOUTS = [((1, 1, 1), 1), ((2, 300, 1), 128), ((1, 5, 6), 5), ((2, 7, 3), 4)]
SPARSE: list[tuple[Any, str]] = [
    (0.4, "block"),
    (0.4, "row"),
    (0.4, "tensor"),
    ((2, 4), "block"),
    ((1, 3), "row"),
    (0.9, "block"),
]

CASES = [
    *(Case(bits, form) for bits in BITS for form in FORMS),
    *(Case(bits, "affine", *layout) for bits in (1, 4) for layout in LAYOUTS),
    *(Case(bits, form, (1, 300, 1), 300, part=64) for bits in (1, 1.58, 4) for form in FORMS),  # few, long: pass by pass
    *(Case(1.58, "linear", (2, 19, 3), 8, s, scope) for s, scope in SPARSE),
    *(Case(bits, "affine", (3, 17, 1), 5, s, scope) for bits in (1, 2, None) for s, scope in (SPARSE[0], SPARSE[3])),
    *(Case(bits, "linear", (1, 300, 1), 300, s, scope, part=64) for bits, (s, scope) in ((1, SPARSE[2]), (3, SPARSE[3]))),
    *(Case(bits, form, estimator=how, sparsity=s)
      for bits in (1, None) for form in FORMS for how in ("ddt_ridge", "ddt_slope") for s in (0.0, 0.4)),
    *(Case(1.58, form, (1, 300, 1), 300, 0.4, estimator=how, part=64) for form in FORMS for how in ("ddt_ridge", "ddt_slope")),
    *(Case(bits, form, estimator=Ewgs(0.3), sparsity=s) for bits in (1, 4, None) for form in FORMS for s in (0.0, 0.4)),
    *(Case(1, form, estimator=Reste(2.5, 1.2, 0.2), sparsity=s) for form in FORMS for s in (0.0, 0.4)),
    *(Case(bits, "affine", (2, 19, 1), 8, 0.4, dtype=torch.float64) for bits in (1.58, 8)),
]  # fmt: skip


def arguments(case: Case) -> tuple[Any, ...]:
    prune = sparsity_of(case.sparsity, case.scope)
    scheme = scheme_of(case.bits, case.form, 0.01, prune.keep, prune.group, prune.prunes)
    return prune, scheme, estimator_of(case.estimator)


def check(case: Case, x: Tensor) -> None:
    from tbnn.ops.quantize import gpu

    prune, scheme, how = arguments(case)
    leaf, g = x.double().clone().requires_grad_(), torch.randn(x.shape, dtype=torch.float64)
    expected, q, kept = quantize_reference(leaf, prune, scheme, how, case.block)
    (expected_dx,) = torch.autograd.grad(expected, leaf, g)
    x_hat, facts = gpu.quantize(x, case.block, prune.fraction, prune.scope, *scheme)
    dx = gpu.quantize_backward(g.to(x.dtype), x, facts, case.block, *scheme, *name_and_settings(how))
    values = gpu.quantize_values(x, facts, case.block, *scheme)
    wanted = (scheme.value_factor * q + scheme.value_shift).to(x.dtype).detach()
    if case.bits is None:
        torch.testing.assert_close(values, wanted)
    else:
        assert torch.equal(values, wanted)
    tolerance = 1e-5 if x.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(x_hat.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    largest = max(1.0, expected_dx.abs().max().item())
    torch.testing.assert_close(dx.double(), expected_dx, rtol=tolerance, atol=tolerance * largest)
    sums, counts = (sums_of(t.double(), q.detach(), case.block) for t in (x, kept))
    ridge = closed_form.solve(sums, 0.01, case.form, counts.x)
    for which, part in ((S, ridge.s), (OFFSET, ridge.offset)):
        torch.testing.assert_close(
            facts[..., which], torch.from_numpy(part + facts[..., which].numpy() * 0), rtol=1e-8, atol=1e-9
        )


def label(case: Case) -> str:
    return "-".join(str(part) for part in case)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_kernels_are_the_definition(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbnn.ops.ddt.gpu.VALUES", 64)
    monkeypatch.setattr("tbnn.ops.ddt.gpu.PART", case.part)
    check(case, torch.randn(case.shape, generator=torch.Generator().manual_seed(7)).to(case.dtype))


@pytest.mark.parametrize("scope", ["block", "row", "tensor"])
@pytest.mark.parametrize("shape", [(2, 11, 1), (2, 11, 3)])
def test_of_equal_values_the_first_stay(shape: tuple[int, int, int], scope: str) -> None:
    lattice = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2).round() / 2
    check(Case(1.58, "linear", shape, 4, 0.5, scope), lattice)
    check(Case(1, "linear", shape, 4, (2, 5), scope), lattice)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_zeros_stay_finite(bits: float | None, form: str, poisoned_memory: Any) -> None:
    x = torch.zeros(2, 5, 1)
    with poisoned_memory():
        check(Case(bits, form, (2, 5, 1), 5), x)


@pytest.mark.parametrize("how", ["ddt", "ddt_ridge", "ddt_slope", "ewgs"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", [1 << 13, 64])
def test_blocks_that_keep_nothing(how: str, form: str, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbnn.ops.ddt.gpu.VALUES", 64)
    monkeypatch.setattr("tbnn.ops.ddt.gpu.PART", part)
    x = torch.randn(3, 300, 1, generator=torch.Generator().manual_seed(7))
    x[1] /= 64
    check(Case(1.58, form, (3, 300, 1), 300, 0.9, "tensor", how), x)


def test_half_precision_is_read_as_it_is() -> None:
    from tbnn.ops.quantize import gpu

    prune, scheme, _ = arguments(Case(4))
    x = torch.randn(3, 17, 1).half()
    got, wide = (gpu.quantize(t, 17, prune.fraction, prune.scope, *scheme)[0] for t in (x, x.float()))
    assert torch.equal(got, wide.half())


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_no_slope_is_refused() -> None:
    from tbnn.ops.quantize import gpu

    prune = sparsity_of(0.0, "block")
    scheme = scheme_of(1, "affine", 0.0)
    with pytest.raises(ValueError, match="lam=0 divides by zero"):
        gpu.quantize(torch.ones(2, 5, 1), 5, prune.fraction, prune.scope, *scheme)
