"""Packed frames convolved with packed signs: against torch's convolution and the patches' product, at odd sizes."""

import doctest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tbnn.ops.binary_conv
from tbnn.bits import pack_bits, wide_words
from tbnn.nn import BinaryConv2d
from tbnn.ops.binary_conv import ConvProducts, binary_conv2d
from tbnn.ops.patches.reference import windows_over

Pair = tuple[int, int]


def operands(
    m: int, shape: tuple[int, int, int], outputs: int, kernel: Pair, groups: int = 1, density: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Frames of bool and weights of ±1."""
    rng = np.random.default_rng(0)
    x = rng.random((m, *shape)) < density
    return torch.from_numpy(x), torch.from_numpy(
        2 * rng.integers(0, 2, (outputs, shape[0] // groups, *kernel)) - 1
    ).float()


def packed(x: Tensor) -> Tensor:
    return pack_bits(x.flatten(1) > 0)


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@given(
    per_group=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 7, 16, 17, 31, 32, 33, 65])),
    kernel=pairs(1, 7),
    stride=pairs(1, 9),
    padding=pairs(0, 8),
    dilation=pairs(1, 3),
    density=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
@example((1, 1), 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1.0)
@example((1, 5), 1, (2, 200), (1, 70), (1, 1), (0, 35), (1, 1), 0.5)
@example((70, 33), 1, (4, 17), (3, 3), (1, 1), (1, 1), (1, 1), 0.05)
@settings(max_examples=60)
def test_equals_torchs_convolution(
    per_group: Pair,
    groups: int,
    size: Pair,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    density: float,
) -> None:
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (max(n, span - 2 * p) for n, span, p in zip(size, spans, padding, strict=True))
    shape = (per_group[0] * groups, height, width)
    x, w = operands(2, shape, per_group[1] * groups, kernel, groups, density)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    want = F.conv2d(x.float(), w, **options)
    for backend, spikes in (("cpu", False), ("cpu", True), ("reference", False), (None, False)):
        with one_by_one(spikes):
            y = binary_conv2d(packed(x), packed(w), shape, kernel, backend=backend, **options)
        assert y.dtype == torch.int32
        assert torch.equal(y.float(), want)


@contextmanager
def one_by_one(spikes: bool) -> Iterator[None]:
    """The product spike by spike, or from popcounts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConvProducts, "_few", lambda *_: spikes)
        yield


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.int32, np.int16])
@pytest.mark.parametrize(
    "geometry", [{}, {"stride": (3, 2), "padding": ((5, 1), (0, 6))}, {"dilation": (1, 3)}], ids=str
)
def test_both_ways_count_the_same(planes: int, dtype: Any, geometry: dict[str, Any]) -> None:
    """Products of several planes, the spikes under each window, and how many weight bits were met."""
    rng = np.random.default_rng(0)
    words = packed(torch.from_numpy(rng.random((5, 4, 10, 13)) < 0.2)).numpy()
    options: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1} | geometry
    windows = windows_over("test", (4, 10, 13), (3, 4), **options)
    bits = rng.integers(0, 2, (planes, 36, 24))
    products = ConvProducts(
        (4, 10, 13),
        windows,
        2,
        np.stack([pack_bits(torch.from_numpy(b)).numpy() for b in bits]),
        (1, 2, 8)[:planes],
        -3,
    )
    found = []
    for spikes in (False, True):
        out, totals = (np.full((5, n, products.pixels), 77, dtype) for n in (36, 2))
        with one_by_one(spikes):
            found.append((products.fill(words, out, totals), out, totals))
    (met, out, totals), (also, again, counted) = found
    assert met == also
    assert np.array_equal(out, again)
    assert np.array_equal(totals, counted)


def test_few_spikes_are_added_one_by_one_where_the_sums_fit() -> None:
    x, w = operands(20, (16, 17, 17), 32, (5, 5), density=0.05)
    windows = windows_over("test", (16, 17, 17), 5, 1, 2, 1)
    signs, rare, often = packed(w).numpy()[None], packed(x).numpy(), packed(torch.ones_like(x)).numpy()
    few = lambda products, words: products._few(wide_words(words), 32)  # noqa: E731
    assert few(ConvProducts((16, 17, 17), windows, 1, signs, (2,), -1), rare)
    assert not few(ConvProducts((16, 17, 17), windows, 1, signs, (2,), -1), often)
    assert not few(ConvProducts((16, 17, 17), windows, 1, signs, (200,), -100), rare)


def test_margins_are_those_of_the_layer() -> None:
    layer = BinaryConv2d(2, 3, (4, 3), padding="same", bias=False)
    x, w = operands(2, (2, 6, 9), 3, (4, 3))
    (top, bottom), (left, right) = layer.margins
    y = binary_conv2d(packed(x), packed(w), (2, 6, 9), (4, 3), padding=layer.margins)
    assert y.shape[2:] == (6, 9)
    assert torch.equal(y.float(), F.conv2d(F.pad(x.float(), (left, right, top, bottom)), w))


def test_any_leading_shape() -> None:
    x, w = operands(6, (3, 5, 7), 5, (3, 3))
    call = lambda words: binary_conv2d(words, packed(w), (3, 5, 7), 3)  # noqa: E731
    rows = call(packed(x))
    assert torch.equal(call(packed(x).reshape(2, 3, -1)), rows.reshape(2, 3, 5, 3, 5))
    assert torch.equal(call(packed(x)[4]), rows[4])
    assert call(packed(x)[:0]).shape == (0, 5, 3, 5)
    assert torch.equal(call(packed(x).T.contiguous().T), rows)


def test_threads_and_fresh_memory_change_nothing(
    poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    x, w = operands(9, (6, 20, 33), 10, (3, 3), 2)
    x[3], x[4, :, :9] = False, False
    words, signs, want = packed(x), packed(w), F.conv2d(x.float(), w, padding=1, groups=2)
    call = lambda: binary_conv2d(words, signs, (6, 20, 33), 3, padding=1, groups=2).float()  # noqa: E731
    for n in (1, 2):
        assert torch.equal(with_threads(n, call), want)
    with poisoned_memory():
        assert torch.equal(call(), want)


def test_the_example_runs() -> None:
    assert doctest.testmod(tbnn.ops.binary_conv) == (0, 3)


def test_refusals() -> None:
    words, signs = torch.zeros(4, 2, dtype=torch.int32), torch.zeros(5, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="binary_conv2d: words: 75 bits take 3 words, got a last axis of 2"):
        binary_conv2d(words, signs, (3, 5, 5), 3)
    with pytest.raises(ValueError, match="binary_conv2d: signs: 50 bits take 2 words, got a last axis of 1"):
        binary_conv2d(words, signs, (2, 5, 5), 5)
    with pytest.raises(ValueError, match=r"binary_conv2d: words: expected packed int32 words .* got torch.float32"):
        binary_conv2d(words.float(), signs, (2, 5, 5), 3)
    with pytest.raises(ValueError, match=r"expected signs \(N, words\) on cpu, N a multiple of 2, got \(5, 1\) on cpu"):
        binary_conv2d(words, signs, (2, 5, 5), 3, groups=2)
    with pytest.raises(ValueError, match=r"expected signs \(N, words\) on cpu, .* got \(5, 1\) on meta"):
        binary_conv2d(words, signs.to("meta"), (2, 5, 5), 3)
    with pytest.raises(ValueError, match=r"expected signs \(N, words\) on cpu, .* got \(1,\) on cpu"):
        binary_conv2d(words, signs[0], (2, 5, 5), 3)
    with pytest.raises(ValueError, match="binary_conv2d: expected channels that 3 groups divide, got 2"):
        binary_conv2d(words, signs, (2, 5, 5), 3, groups=3)
    with pytest.raises(ValueError, match=r"binary_conv2d: expected frames of at least the window \(9, 9\)"):
        binary_conv2d(words, signs, (2, 5, 5), 9, padding=1)
    with pytest.raises(ValueError, match="backend: expected 'cpu' or 'reference', got 'gpu'"):
        binary_conv2d(words, signs, (2, 5, 5), 3, backend="gpu")
