"""Packed spikes times lists of connections: against the sum itself, at odd sizes and extremes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.bits import pack_bits, wide_words
from tbnn.ops.kernels import as_numpy
from tbnn.ops.sparse_linear import SparseColumns, dense_values, index_dtype, lists_of, sparse_linear
from tbnn.ops.sparse_linear.cpu import sparse_product_cpu


def columns_of(w: np.ndarray) -> SparseColumns:
    """Values (outputs, inputs) as lists, one by one."""
    starts, outputs, magnitudes = [0], [], []
    for column in w.T:
        for side in (column > 0, column < 0):
            outputs += np.flatnonzero(side).tolist()
            magnitudes += np.abs(column[side]).tolist()
            starts.append(len(outputs))
    some = None if set(magnitudes) <= {1} else torch.tensor(magnitudes, dtype=torch.uint8)
    indices = torch.tensor(outputs, dtype=torch.int32).to(index_dtype(len(w)))
    return SparseColumns(torch.tensor(starts, dtype=torch.int32), indices, len(w), some)


def operands(m: int, n: int, outputs: int, active: float, density: float, most: int, seed: int) -> Any:
    """Spikes (m, n), values (outputs, n)."""
    rng = np.random.default_rng(seed)
    w = rng.integers(1, most + 1, (outputs, n)) * rng.choice([-1, 1], (outputs, n))
    return (rng.random((m, n)) < active).astype(np.int64), np.where(rng.random((outputs, n)) < density, w, 0)


def packed(s: np.ndarray) -> Tensor:
    return pack_bits(torch.from_numpy(s > 0))


@given(
    m=st.integers(1, 20),
    n=st.integers(1, 200),
    outputs=st.integers(1, 300),
    active=st.floats(0, 1),
    density=st.floats(0, 1),
    most=st.sampled_from([1, 1, 7, 255]),
    seed=st.integers(0, 99),
)
@example(m=1, n=1, outputs=1, active=1.0, density=1.0, most=1, seed=0)
@example(m=3, n=64, outputs=65, active=1.0, density=1.0, most=255, seed=0)
@example(m=2, n=65, outputs=33, active=0.5, density=0.0, most=1, seed=0)
@example(m=2, n=500, outputs=63, active=0.0, density=0.1, most=1, seed=0)
@settings(max_examples=60)
def test_equals_the_sum(m: int, n: int, outputs: int, active: float, density: float, most: int, seed: int) -> None:
    s, w = operands(m, n, outputs, active, density, most, seed)
    columns = columns_of(w)
    assert np.array_equal(dense_values(columns.starts, columns.outputs, outputs, columns.magnitudes).numpy(), w)
    for backend in ("cpu", "reference", None):
        y = sparse_linear(packed(s), columns, backend=backend)
        assert y.dtype == torch.int32
        assert np.array_equal(y.numpy(), s @ w.T)


@given(
    m=st.integers(1, 5),
    outputs=st.integers(1, 100),
    threads=st.integers(2, 9),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_ranges_of_outputs_on_threads_add_up(m: int, outputs: int, threads: int, density: float, seed: int) -> None:
    s, w = operands(m, 70, outputs, 0.4, density, 3, seed)
    columns, words = columns_of(w), wide_words(as_numpy(packed(s)))
    lists = lists_of(columns.starts, columns.outputs, columns.magnitudes)
    parted, whole = np.full((2, m, outputs), 77, np.int32)
    added = sparse_product_cpu(words, lists, threads, parted, work=10**9)
    assert added == sparse_product_cpu(words, lists, 1, whole, work=0) == np.count_nonzero(w, axis=0) @ s.sum(0)
    assert np.array_equal(parted, s @ w.T)
    assert np.array_equal(whole, parted)


def test_by_hand() -> None:
    s = packed(np.array([[1, 0, 1, 1], [0, 0, 0, 1]]))
    w = np.array([[1, 1, -1, 0], [0, 0, 0, 0], [-3, 0, 5, -1]])
    columns = columns_of(w)
    assert columns.starts.tolist() == [0, 1, 2, 3, 3, 4, 5, 5, 6]
    assert columns.outputs.tolist() == [0, 2, 0, 2, 0, 2]
    assert sparse_linear(s, columns).tolist() == [[0, 0, 1], [0, 0, -1]]


def test_more_outputs_than_16_bits_count() -> None:
    outputs = 2**16 + 3
    starts = torch.tensor([0, 2, 3, 3, 4], dtype=torch.int32)
    columns = SparseColumns(starts, torch.tensor([5, outputs - 1, 2**16, 2**16], dtype=torch.int32), outputs)
    for backend in ("cpu", "reference"):
        y = sparse_linear(packed(np.array([[1, 0], [0, 1], [1, 1]])), columns, backend=backend)
        assert y[:, [5, 2**16, outputs - 1]].tolist() == [[1, -1, 1], [0, -1, 0], [1, -2, 1]]
        assert y.abs().sum().item() == 8
    with pytest.raises(ValueError, match=r"expected torch.uint16 \(connections,\) for 65536 outputs, got torch.int32"):
        SparseColumns(starts, columns.outputs, 2**16)


def test_any_leading_shape_and_layout() -> None:
    s, w = operands(30, 77, 9, 0.3, 0.1, 1, 1)
    columns = columns_of(w)
    rows = sparse_linear(packed(s), columns)
    assert torch.equal(sparse_linear(packed(s).reshape(2, 3, 5, 3), columns), rows.reshape(2, 3, 5, 9))
    assert torch.equal(sparse_linear(packed(s)[4], columns), rows[4])
    assert sparse_linear(packed(s)[:0], columns).shape == (0, 9)
    assert torch.equal(sparse_linear(packed(s).T.contiguous().T, columns), rows)


def test_padding_bits_reach_no_list() -> None:
    s, w = operands(4, 70, 9, 0.3, 0.2, 1, 2)
    columns, spikes = columns_of(w), packed(s)
    stray = spikes.clone()
    stray[:, -1] |= -1 << 6
    for backend in ("cpu", "reference"):
        assert torch.equal(sparse_linear(stray, columns, backend=backend), sparse_linear(spikes, columns))


def test_threads_and_fresh_memory_change_nothing(
    poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    s, w = operands(3, 500, 513, 0.5, 0.3, 1, 3)
    columns, spikes = columns_of(w), packed(s)

    def run() -> Tensor:
        with poisoned_memory():
            return sparse_linear(spikes, columns)

    runs = [with_threads(threads, run) for threads in (1, 2, 4)]
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize(
    ("starts", "outputs", "message"),
    [
        ([0, 1, 1, 2], [0, 1], r"x.starts: expected int32 \(2\*inputs \+ 1,\), got torch.int32 \(4,\)"),
        ([0, 1, 3], [0, 1], r"x.starts: expected 0 to 2 in ascending order, got 0 to 3"),
        ([1, 1, 2], [0, 1], r"x.starts: expected 0 to 2 .*, got 1 to 2"),
        ([0, 2, 1, 2, 2], [0, 1], r"x.starts: .*with steps back"),
        ([0, 2, 2], [1, 0], r"x.outputs: expected every list in ascending order, each output once, got 0 at 1"),
        ([0, 2, 2], [1, 1], r"x.outputs: expected every list in ascending order, each output once, got 1 at 1"),
        ([0, 0, 1], [9], r"x.outputs: expected outputs below 9, got 9 at 0"),
        ([0, 2, 4], [3, 5, 1, 5], r"x.outputs: expected a weight that is positive or negative, .* got 5 at 3"),
    ],
)
def test_lists_that_the_kernels_could_not_trust(starts: list[int], outputs: list[int], message: str) -> None:
    indices = torch.tensor(outputs, dtype=torch.int32).to(torch.uint16)
    with pytest.raises(ValueError, match=message):
        SparseColumns(torch.tensor(starts, dtype=torch.int32), indices, 9, name="x")


def test_other_dtypes_and_shapes() -> None:
    columns = columns_of(np.array([[1, 0, -1]]))
    for change, message in (
        ({"starts": columns.starts.long()}, "starts: expected int32"),
        ({"outputs": columns.outputs.int()}, "outputs: expected torch.uint16"),
        ({"magnitudes": torch.ones(3, dtype=torch.uint8)}, r"magnitudes: expected torch.uint8 \(2,\)"),
        ({"magnitudes": torch.zeros(2, dtype=torch.uint8)}, "magnitudes: expected 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=f"SparseColumns.{message}"):
            SparseColumns(**{**vars(columns), **change})
    with pytest.raises(ValueError, match="sparse_linear: spikes: 3 bits take 1 words"):
        sparse_linear(torch.zeros(2, 2, dtype=torch.int32), columns)
    with pytest.raises(ValueError, match="sparse_linear: spikes: expected packed int32 words"):
        sparse_linear(torch.zeros(2, 1), columns)
