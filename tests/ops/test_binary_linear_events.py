"""The event-driven packed product: bit for bit the sum itself, like the dense one, whatever the choice between them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.bits import pack_bits_numpy, wide_words
from tbnn.ops.binary_linear import binary_counts, binary_linear, choice, weight_columns
from tbnn.ops.binary_linear.choice import active_columns, binary_product_cpu, choose, costs
from tbnn.ops.binary_linear.cpu import binary_counts_cpu
from tbnn.ops.binary_linear.events import binary_events_cpu
from tbnn.ops.kernels import SERIAL_BELOW

FEW, MANY = 1, SERIAL_BELOW
"""Work that takes the kernels' path for a few rows, and the one with threads."""


def bits(rows: int, n: int, density: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((rows, n)) < density).astype(np.int32)


def words(a: np.ndarray) -> np.ndarray:
    return wide_words(pack_bits_numpy(a))


def tensor(a: np.ndarray) -> Tensor:
    return torch.from_numpy(pack_bits_numpy(a))


def dense(s: np.ndarray, w: np.ndarray, work: int, *rest: Any) -> np.ndarray:
    out = np.full((len(s), len(w)), 77, np.int32)
    factor, *others = rest or (1, np.zeros(len(s), np.int32), False)
    binary_counts_cpu(words(s), words(w), np.int32(factor), *others, out, work=work)
    return out


def events(s: np.ndarray, w: np.ndarray, work: int, *rest: Any) -> np.ndarray:
    out = np.full((len(s), len(w)), 77, np.int32)
    rest = rest or (1, np.zeros(len(s), np.int32), False)
    ones = s.sum(1, dtype=np.int32)
    binary_events_cpu(words(s), ones, weight_columns(words(w)), *rest, out, work=work)
    return out


KERNELS = pytest.mark.parametrize("kernel", [dense, events])
WORK = pytest.mark.parametrize("work", [FEW, MANY])


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 700),
    outputs=st.integers(1, 200),
    density=st.floats(0, 1),
    factor=st.integers(-9, 9),
    add=st.booleans(),
    seed=st.integers(0, 99),
)
@example(m=1, n=1, outputs=1, density=1.0, factor=1, add=False, seed=0)
@example(m=17, n=63, outputs=63, density=0.1, factor=2, add=True, seed=0)
@example(m=16, n=500, outputs=65, density=0.02, factor=2, add=False, seed=0)
@example(m=3, n=64, outputs=513, density=0.5, factor=-1, add=True, seed=0)
@example(m=2, n=500, outputs=1100, density=0.9, factor=3, add=True, seed=0)
@settings(max_examples=40)
def test_both_kernels_equal_the_sum(
    m: int, n: int, outputs: int, density: float, factor: int, add: bool, seed: int
) -> None:
    s, w = bits(m, n, density, seed), bits(outputs, n, 0.5, seed + 1)
    shift = np.random.default_rng(seed).integers(-1000, 1000, m, dtype=np.int32)
    expected = factor * (s @ w.T) + shift[:, None] + 77 * add
    for kernel in (dense, events):
        for work in (FEW, MANY):
            assert np.array_equal(kernel(s, w, work, factor, shift, add), expected), (kernel, work)


@KERNELS
@WORK
def test_rows_of_every_activity_side_by_side(kernel: Callable[..., np.ndarray], work: int) -> None:
    """Empty, full and every number of spikes between: blocks that are whole, and those that are filled up."""
    n = 130
    s = np.tril(np.ones((n + 1, n), np.int32), -1)
    s = s[np.random.default_rng(0).permutation(n + 1)]
    w = bits(70, n, 0.5, 1)
    assert np.array_equal(kernel(s, w, work), s @ w.T)


@KERNELS
@pytest.mark.parametrize("n", [40_000, 150_000])
def test_more_active_inputs_than_sixteen_bits_count(kernel: Callable[..., np.ndarray], n: int) -> None:
    s = np.stack([np.ones(n, np.int32), np.arange(n, dtype=np.int32) % 2, *bits(2, n, 0.47, 0)])
    w = np.concatenate([bits(64, n, 0.5, 1), np.ones((1, n), np.int32)])
    counts = kernel(s, w, MANY)
    assert np.array_equal(counts, s @ w.T)
    assert counts[:2, -1].tolist() == [n, n // 2]
    assert active_columns(s.sum(1, dtype=np.int32), -(-n // 64)) > 1 << 15


@pytest.mark.parametrize(("outputs", "n"), [(1, 1), (64, 64), (65, 63), (512, 130), (513, 70), (1100, 64)])
def test_columns_are_the_weights_turned_around(outputs: int, n: int) -> None:
    w = bits(outputs, n, 0.5, outputs)
    columns = weight_columns(words(w))
    strips, rows, width = columns.words.shape
    assert rows == -(-n // 64) * 64 + 1
    assert columns.words.ctypes.data % 64 == 0
    unpacked = np.unpackbits(columns.words.view(np.uint8), axis=-1, bitorder="little")
    turned = unpacked.transpose(1, 0, 2).reshape(rows, strips * width * 64)
    assert np.array_equal(turned[:n, :outputs], w.T)
    assert not turned[n:].any()
    assert not turned[:, outputs:].any()
    assert np.array_equal(columns.totals, w.sum(1))


@KERNELS
def test_fresh_memory_and_threads_change_nothing(
    kernel: Callable[..., np.ndarray], poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    s, w = bits(70, 321, 0.2, 3), bits(600, 321, 0.5, 4)
    for threads in (1, 2):
        assert np.array_equal(with_threads(threads, lambda: kernel(s, w, MANY)), s @ w.T)
    with poisoned_memory():
        assert np.array_equal(kernel(s, w, MANY), s @ w.T)
        assert np.array_equal(kernel(s[:0], w, FEW), np.empty((0, 600)))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("outputs", "n"), [(63, 63), (600, 500)])
def test_the_operators_agree_with_and_without_columns(density: float, outputs: int, n: int) -> None:
    s, w = bits(20, n, density, 5), bits(outputs, n, 0.5, 6)
    columns = weight_columns(words(w))
    for operator, expected in ((binary_counts, s @ w.T), (binary_linear, s @ (2 * w - 1).T)):
        for options in ({}, {"columns": columns}, {"backend": "reference"}):
            y = operator(tensor(s), tensor(w), n, **options)
            assert y.dtype == torch.int32
            assert np.array_equal(y.numpy(), expected)


def test_the_sum_over_bit_planes() -> None:
    """Weights of three bits: Σ_j c_j·popcount(s ∧ plane_j) in one array."""
    s, planes = bits(9, 200, 0.3, 7), [bits(50, 200, 0.5, seed) for seed in range(3)]
    ones, out = s.sum(1, dtype=np.int32), np.full((9, 50), 77, np.int32)
    for j, plane in enumerate(planes):
        shift = -7 * ones if j == 0 else np.zeros_like(ones)
        binary_product_cpu(words(s), words(plane), weight_columns(words(plane)), ones, 2 << j, shift, j > 0, out)
    values = sum((2 << j) * plane for j, plane in enumerate(planes)) - 7
    assert np.array_equal(out, s @ values.T)


def test_the_cheaper_product_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in ("binary_counts_cpu", "binary_events_cpu"):
        kernel = getattr(choice, name)
        monkeypatch.setattr(choice, name, lambda *a, name=name, kernel=kernel, **k: (ran.append(name), kernel(*a, **k)))
    for density, outputs in ((0.01, 600), (0.3, 20), (0.99, 600)):
        s, w = bits(32, 300, density, 8), bits(outputs, 300, 0.5, 9)
        columns = weight_columns(words(w))
        assert np.array_equal(binary_counts(tensor(s), tensor(w), 300, columns=columns).numpy(), s @ w.T)
    assert ran == ["binary_events_cpu", "binary_counts_cpu", "binary_events_cpu"]


def test_the_choice() -> None:
    """Few outputs or many spikes: dense. Columns that have to be made first must pay for themselves."""

    def chosen(rows: int, words: int, outputs: int, spikes: int, **options: bool) -> str:
        return choose(np.full(rows, spikes, np.int32), words, outputs, **options)

    assert chosen(256, 64, 1024, 400) == "events"
    assert chosen(256, 64, 1024, 4096) == "events"
    assert chosen(320, 5, 64, 14) == "dense"
    assert chosen(1, 16, 1024, 51) == "events"
    assert chosen(1, 16, 1024, 51, turned=False) == "dense"
    assert chosen(256, 64, 1024, 40, turned=False) == "events"
    assert chosen(0, 64, 1024, 0) == "dense"
    between = [chosen(64, 36, 128, spikes) for spikes in range(0, 36 * 64 + 1, 16)]
    first, last = between.index("dense"), len(between) - between[::-1].index("dense")
    assert 0 < first < last < len(between)  # silence and its opposite alike are few events
    assert set(between[first:last]) == {"dense"}
    for spikes in (0, 50, 300, 1000):
        cost = costs(64, 36, 128, 64 * spikes)
        assert (chosen(64, 36, 128, spikes) == "dense") == (cost.dense <= cost.events)


@given(rows=st.integers(1, 500), width=st.integers(1, 100), outputs=st.integers(1, 3000), a=st.floats(0, 0.5))
def test_more_spikes_never_make_events_cheaper(rows: int, width: int, outputs: int, a: float) -> None:
    some, more = (costs(rows, width, outputs, rows * width * 64 * share) for share in (a, min(0.5, a + 0.01)))
    assert some.dense == more.dense > 0
    assert 0 < some.events <= more.events


def test_refusals() -> None:
    w = torch.zeros(4, 3, dtype=torch.int32)
    columns = weight_columns(np.zeros((4, 1), np.uint64))
    with pytest.raises(ValueError, match=r"binary_counts: columns: expected 128 inputs and 4 outputs, got 64 and 4"):
        binary_counts(w, w, 70, columns=columns)
    with pytest.raises(ValueError, match=r"binary_linear: columns: expected 64 inputs and 3 outputs, got 64 and 4"):
        binary_linear(w[:, :2], w[:3, :2], 64, columns=columns)
    with pytest.raises(ValueError, match="binary_counts: expected at least 1 input, got 0"):
        binary_counts(w, w, 0)
    with pytest.raises(ValueError, match="binary_counts: plane: 64 bits take 2 words, got a last axis of 3"):
        binary_counts(w[:, :2], w, 64)
