"""torch.compile, torch.export, checkpoints and a graph's second use, for quantize and for ddt."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tbnn
from tbnn.ops.quantize import Ewgs, quantize_with_codes

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "one bit": lambda x: tbnn.quantize(x),
    "four bits, runs": lambda x: tbnn.quantize(x, bits=4, dim=1, block=5),
    "2:4": lambda x: tbnn.quantize(x, bits=None, sparsity="2:4", dim=0),
    "fraction": lambda x: tbnn.quantize(x, bits=1.58, sparsity=0.9, scope="tensor", dim=1),
    "slope": lambda x: tbnn.quantize(x, sparsity=0.5, dim=1, estimator="ddt_slope"),
    "ste": lambda x: tbnn.quantize(x, estimator="ste", form="linear"),
    "ewgs": lambda x: tbnn.quantize(x, bits=2, estimator=Ewgs(0.1)),
    "codes": lambda x: quantize_with_codes(x, bits=3, dim=1)[1].values + tbnn.quantize(x, dim=1),
    "reference": lambda x: tbnn.quantize(x, bits=4, sparsity=0.5, dim=1, backend="reference"),
    "half": lambda x: tbnn.quantize(x.bfloat16(), bits=4).float(),
    "ddt": lambda x: tbnn.ddt(x, x.round(), dim=1, block=5) + tbnn.ddt(x * x, x, form="linear"),
}


def around(way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: (way(x * 2) * 3).sin()


def forward_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    return y.detach(), dx


def same(got: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.fixture
def _torch_may_warn() -> Any:
    """torch warns of its own ways while it compiles; that is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.compiler.reset()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.usefixtures("_torch_may_warn")
def test_compiles_as_one_graph(way: str, dynamic: bool | None) -> None:
    function = around(WAYS[way])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for seed, rows in ((0, 8), (1, 11)):
        x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))
        got, expected = forward_and_gradient(compiled, x), forward_and_gradient(function, x)
        if way == "reference":
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        else:
            assert same(got, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.usefixtures("_torch_may_warn")
def test_exports(way: str, strict: bool) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return WAYS[way](x)

    x, other = torch.randn(2, 8, 16)
    exported = torch.export.export(Module(), (x,), strict=strict).module()
    torch.testing.assert_close(exported(other), WAYS[way](other), rtol=0, atol=1e-6 if way == "reference" else 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(way: str, use_reentrant: bool) -> None:
    x = torch.randn(8, 16)
    got = forward_and_gradient_of_checkpoint(around(WAYS[way]), x, use_reentrant)
    assert same(got, forward_and_gradient(around(WAYS[way]), x))


def forward_and_gradient_of_checkpoint(
    function: Callable[[Tensor], Tensor], x: Tensor, use_reentrant: bool
) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = checkpoint(function, leaf, use_reentrant=use_reentrant)
    y.backward(torch.ones_like(y))
    return y.detach(), leaf.grad


def test_operators_do_what_they_declare() -> None:
    """Fake shapes, no aliases, no writes to what comes in."""
    x, q = torch.randn(2, 3, 10, 4)
    scheme = tbnn.ops.quantize.grid.scheme_of(4, "affine", 0.01, 0, 0, True)
    checks = ("test_schema", "test_faketensor")
    _, facts = torch.ops.tbnn.quantize(x, 4, 0.5, "block", *scheme)
    torch.library.opcheck(torch.ops.tbnn.quantize, (x, 4, 0.5, "block", *scheme), test_utils=checks)
    torch.library.opcheck(torch.ops.tbnn.quantize_backward, (q, x, facts, 4, *scheme, "ddt", []), test_utils=checks)
    torch.library.opcheck(torch.ops.tbnn.quantize_values, (x, facts, 4, *scheme), test_utils=checks)
    torch.library.opcheck(torch.ops.tbnn.ddt, (x, q, 0.01, "affine", 4), test_utils=checks)
    _, sums = torch.ops.tbnn.ddt(x, q, 0.01, "affine", 4)
    for for_x, for_q in ((True, True), (True, False), (False, True)):
        arguments = (q, x, q, sums, 0.01, "affine", 4, for_x, for_q)
        torch.library.opcheck(torch.ops.tbnn.ddt_backward, arguments, test_utils=checks)


def test_only_the_values_and_a_few_numbers_a_block_are_kept_for_backward() -> None:
    kept: list[Tensor] = []
    x = torch.randn(64, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tbnn.quantize(x, bits=4, sparsity=0.5, dim=1)
    others = [t for t in kept if t.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()]
    assert len(others) < len(kept)
    assert sum(t.numel() for t in others) <= 64 * 12
