"""Packed spikes times packed signs: against the sum itself, at odd sizes and extremes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.bits import pack_bits
from tbnn.ops.binary_linear import binary_linear


def operands(m: int, n: int, columns: int, density: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.random((m, n)) < density).astype(np.int64), 2 * rng.integers(0, 2, (columns, n)) - 1


def packed(a: np.ndarray) -> Tensor:
    return pack_bits(torch.from_numpy(a > 0))


@given(
    m=st.integers(1, 70),
    n=st.integers(1, 200),
    columns=st.integers(1, 300),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@example(m=1, n=1, columns=1, density=1.0, seed=0)
@example(m=65, n=64, columns=257, density=0.5, seed=0)
@example(m=3, n=65, columns=5, density=0.1, seed=0)
@example(m=2, n=500, columns=63, density=0.02, seed=0)
@settings(max_examples=40)
def test_equals_the_sum(m: int, n: int, columns: int, density: float, seed: int) -> None:
    s, w = operands(m, n, columns, density, seed)
    for backend in ("cpu", "reference", None):
        y = binary_linear(packed(s), packed(w), n, backend=backend)
        assert y.dtype == torch.int32
        assert np.array_equal(y.numpy(), s @ w.T)


def test_by_hand() -> None:
    s = packed(np.array([[1, 0, 1, 1], [0, 0, 0, 1]]))
    w = packed(np.array([[1, 1, -1, 1], [-1, -1, -1, -1], [-1, 1, 1, -1]]))
    assert binary_linear(s, w, 4).tolist() == [[1, -3, -1], [1, -1, -1]]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 65, 500])
def test_extremes(n: int) -> None:
    ones, zeros = torch.ones(2, n), torch.zeros(3, n)
    spikes, signs = pack_bits(torch.cat([ones, zeros])), pack_bits(torch.cat([ones, zeros]))
    y = binary_linear(spikes, signs, n)
    assert y[:2].tolist() == [[n, n, -n, -n, -n]] * 2
    assert not y[2:].any()


def test_any_leading_shape() -> None:
    s, w = operands(30, 77, 9, 0.3, 1)
    rows = binary_linear(packed(s), packed(w), 77)
    assert torch.equal(binary_linear(packed(s).reshape(2, 3, 5, 3), packed(w), 77), rows.reshape(2, 3, 5, 9))
    assert torch.equal(binary_linear(packed(s)[4], packed(w), 77), rows[4])
    assert binary_linear(packed(s)[:0], packed(w), 77).shape == (0, 9)


def test_words_that_are_not_contiguous() -> None:
    s, w = operands(8, 70, 6, 0.5, 2)
    spikes, signs = packed(s), packed(w)
    across = spikes.T.contiguous().T, signs.T.contiguous().T
    assert not across[0].is_contiguous()
    assert torch.equal(binary_linear(*across, 70), binary_linear(spikes, signs, 70))


def test_threads_and_fresh_memory_change_nothing(
    poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    s, w = operands(130, 321, 513, 0.2, 3)
    spikes, signs = packed(s), packed(w)
    for n in (1, 2):
        assert np.array_equal(with_threads(n, lambda: binary_linear(spikes, signs, 321)).numpy(), s @ w.T)
    with poisoned_memory():
        assert np.array_equal(binary_linear(spikes, signs, 321).numpy(), s @ w.T)


def test_refusals() -> None:
    words = torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="binary_linear: spikes: 65 bits take 3 words, got a last axis of 2"):
        binary_linear(words, words, 65)
    with pytest.raises(ValueError, match="binary_linear: signs: 64 bits take 2 words, got a last axis of 1"):
        binary_linear(words, words[:, :1], 64)
    with pytest.raises(ValueError, match=r"binary_linear: spikes: expected packed int32 words .* got torch.float32"):
        binary_linear(words.float(), words, 64)
    with pytest.raises(ValueError, match=r"expected signs \(N, words\) on cpu, got \(2,\)"):
        binary_linear(words, words[0], 64)
    with pytest.raises(ValueError, match="backend: expected"):
        binary_linear(words, words, 64, backend="numba")
