"""What is pruned: exactly so many values, the smallest, the first of equals kept; N:M; arguments refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tbnn.ops.quantize import check_quantize, quantize, quantize_with_codes
from tbnn.ops.quantize.select import LONG, NARROW_FROM

LENGTHS = [1, 2, 7, 33, 64, 130]


def latent(shape: tuple[int, ...], seed: int, lattice: bool = False) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (2 * x).round() / 2 if lattice else x


def kept_by(x: Tensor, **how: Any) -> Tensor:
    """Which values of x are not pruned: one bit never rounds to 0."""
    return quantize_with_codes(x, bits=1, **how)[1].values != 0


def largest(size: list[float], keep: int) -> list[bool]:
    """By definition: sorted by size, then by place."""
    chosen = sorted(range(len(size)), key=lambda i: (-size[i], i))[:keep]
    return [i in chosen for i in range(len(size))]


def keep_of(n: int, fraction: float) -> int:
    return max(1, n - round(fraction * n))


@given(
    n=st.sampled_from(LENGTHS),
    block=st.none() | st.integers(1, 40),
    fraction=st.sampled_from([0.1, 0.5, 0.75, 0.9, 0.999]),
    scope=st.sampled_from(["block", "row", "tensor"]),
    lattice=st.booleans(),
    across=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_fraction_keeps_the_largest_and_exactly_so_many(
    n: int, block: int | None, fraction: float, scope: str, lattice: bool, across: bool, seed: int
) -> None:
    rows = latent((3, n), seed, lattice)
    if across:  # the same blocks, as columns
        kept = kept_by(rows.T.contiguous(), sparsity=fraction, scope=scope, dim=0, block=block).T
    else:
        kept = kept_by(rows, sparsity=fraction, scope=scope, dim=1, block=block)
    if scope == "tensor":
        order = rows.T if across else rows  # of equals the first in memory stay
        expected = torch.tensor(largest(order.abs().flatten().tolist(), keep_of(3 * n, fraction))).view(order.shape)
        assert torch.equal(kept, expected.T if across else expected)
        return
    run = n if scope == "row" or block is None else block
    for row, mask in zip(rows.abs().tolist(), kept.tolist(), strict=True):
        pieces = [row[lo : lo + run] for lo in range(0, n, run)]
        assert mask == [k for piece in pieces for k in largest(piece, keep_of(len(piece), fraction))]


@pytest.mark.parametrize("n", [NARROW_FROM - 1, NARROW_FROM, 3 * NARROW_FROM + 5, LONG - 1, LONG, LONG + 77])
@pytest.mark.parametrize("lattice", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_runs_are_cut_exactly_too(n: int, lattice: bool, dtype: torch.dtype) -> None:
    x = latent((n,), n, lattice).to(dtype)
    for fraction in (0.3, 0.9, 0.999):
        order = torch.sort(x.abs(), descending=True, stable=True).indices
        expected = torch.zeros(n, dtype=torch.bool).scatter(0, order[: keep_of(n, fraction)], True)
        assert torch.equal(kept_by(x, sparsity=fraction), expected)


@given(
    n=st.sampled_from(LENGTHS),
    pair=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 4), (3, 5), (1, 16), (8, 40)]),
    block=st.none() | st.integers(1, 40),
    lattice=st.booleans(),
    across=st.booleans(),
    seed=st.integers(0, 99),
)
def test_n_of_m_in_every_group_along_the_axis(
    n: int, pair: tuple[int, int], block: int | None, lattice: bool, across: bool, seed: int
) -> None:
    rows = latent((3, n), seed, lattice)
    how: dict[str, Any] = {"sparsity": pair, "form": "linear", "block": block}
    kept = kept_by(rows.T.contiguous(), dim=0, **how).T if across else kept_by(rows, dim=1, **how)
    keep, group = pair
    for row, mask in zip(rows.abs().tolist(), kept.tolist(), strict=True):
        groups = [row[lo : lo + group] for lo in range(0, n, group)]
        assert mask == [k for g in groups for k in largest(g, keep)]
    assert torch.equal(kept, kept_by(rows, dim=1, **{**how, "sparsity": f"{keep}:{group}"}))


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_every_pattern_of_equals_in_a_group_of_four(keep: int) -> None:
    digits = torch.arange(4**4)
    x = torch.stack([digits // 4**k % 4 for k in range(4)], 1) * torch.tensor([1.0, -1.0, -1.0, 1.0])
    expected = torch.tensor([largest(row, keep) for row in x.abs().tolist()])
    assert torch.equal(kept_by(x.flatten(), sparsity=(keep, 4)), expected.flatten())
    assert torch.equal(kept_by(x, sparsity=(keep, 4), dim=1), expected)


@pytest.mark.parametrize("n", [8190, 8192, 8195, 20_003, 200_001])
@pytest.mark.parametrize("pair", [(2, 4), (3, 5)])
def test_groups_reach_across_the_parts_of_a_long_block(n: int, pair: tuple[int, int]) -> None:
    x = latent((n,), n)
    padded = torch.nn.functional.pad(x.abs(), (0, -n % pair[1]), value=-1.0).view(-1, pair[1])
    rank = (padded[:, :, None] < padded[:, None, :]).sum(2)
    assert torch.equal(kept_by(x, sparsity=pair), (rank < pair[0]).flatten()[:n])
    two = torch.stack([x, x.flip(0)], 1)
    assert torch.equal(kept_by(two, sparsity=pair, dim=0)[:, 0], kept_by(x, sparsity=pair))


def test_sparsity_alone_keeps_the_values() -> None:
    x = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
    y, codes = quantize_with_codes(x, bits=None, sparsity=0.5, form="linear")
    rms = math.sqrt((4 + 16) / 2)
    assert codes.values.tolist() == pytest.approx([0, -2 / rms, 0, 4 / rms], abs=1e-15)
    slope = (20 / rms / 4) / (20 / rms**2 / 4 + 0.01 * 2 / 4)  # λ counts the two that stay
    assert y.tolist() == pytest.approx([0, -2 / rms * slope, 0, 4 / rms * slope], abs=1e-14)


def test_one_value_always_stays() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0]])
    assert kept_by(x, sparsity=0.999, dim=1).tolist() == [[False, True, False]]
    assert bool(kept_by(x, sparsity=0.9, dim=1, block=1).all())


def test_not_a_number_is_not_hidden() -> None:
    x = latent((4, 40), 0)
    x[2, 5] = math.nan
    for bits in (1, 4, 1.58, None):
        for sparsity in (0.0, 0.5, (2, 4)):
            y = quantize(x, bits=bits, sparsity=sparsity, dim=1)
            assert bool(y[[0, 1, 3]].isfinite().all())
            assert bool(y[2].isnan().any())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, r"bits: expected 1, 1.58 \(ternary\), 2 … 8 or None .* got 0"),
        ({"bits": 9}, "bits: .* got 9"),
        ({"bits": 2.5}, "bits: .* got 2.5"),
        ({"bits": True}, "bits: .* got True"),
        ({"bits": "4"}, "bits: .* got '4'"),
        ({"bits": math.nan}, "bits: .* got nan"),
        ({"sparsity": 1.0}, r"sparsity: expected a fraction in \[0, 0.999\], \(n, m\) or 'n:m', got 1.0"),
        ({"sparsity": 0.9991}, "sparsity: .* got 0.9991"),
        ({"sparsity": -0.1}, "sparsity: .* got -0.1"),
        ({"sparsity": math.nan}, "sparsity: .* got nan"),
        ({"sparsity": (5, 4)}, r"sparsity: expected \(n, m\) with integers 1 <= n <= m, got \(5, 4\)"),
        ({"sparsity": (0, 4)}, r"got \(0, 4\)"),
        ({"sparsity": (1.0, 4)}, r"got \(1.0, 4\)"),
        ({"sparsity": (1, 2, 3)}, r"got \(1, 2, 3\)"),
        ({"sparsity": "4:2"}, "1 <= n <= m, got '4:2'"),
        ({"sparsity": "2/4"}, "'n:m', got '2/4'"),
        ({"sparsity": None}, "got None"),
        ({"scope": "layer"}, "scope: expected one of 'block', 'row', 'tensor', got 'layer'"),
        ({"lam": -0.1}, "lam: expected a finite number >= 0, got -0.1"),
        ({"estimator": "lsq"}, "estimator: expected one of 'ddt', .*'ste', .*, or an instance, got 'lsq'"),
        ({"estimator": "reste", "bits": 2}, "'reste' is for one bit, expected bits=1, got bits=2"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(torch.ones(3, 4), **arguments)
    defaults = {"bits": 1, "sparsity": 0.0, "form": "affine", "lam": 0.01, "estimator": "ddt"}
    with pytest.raises(ValueError, match=message):
        check_quantize(**{**defaults, **arguments})
