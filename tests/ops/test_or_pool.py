"""The OR over windows of packed frames: against torch's max_pool2d, at odd sizes."""

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tbnn.ops.or_pool
from tbnn.bits import has_stray_bits, pack_bits, unpack_bits
from tbnn.nn import MaxPool2d
from tbnn.ops.or_pool import or_pool2d

Pair = tuple[int, int]


def frames(m: int, shape: tuple[int, ...], density: float = 0.1, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((m, *shape)) < density)


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@given(
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 7, 16, 17, 31, 32, 33, 65, 130])),
    kernel=pairs(1, 7),
    stride=st.none() | pairs(1, 9),
    padding=pairs(0, 3),
    dilation=pairs(1, 3),
    ceil_mode=st.booleans(),
    density=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
)
@example(1, (1, 1), (1, 1), None, (0, 0), (1, 1), False, 1.0)
@example(3, (5, 33), (2, 2), None, (1, 1), (1, 1), True, 0.1)
@example(1, (1, 1), (2, 2), (2, 2), (0, 0), (1, 1), True, 1.0)  # a window larger than the frame
@example(2, (3, 200), (1, 70), (1, 1), (0, 35), (1, 1), False, 0.01)  # wider than a word
@example(2, (3, 300), (2, 5), (1, 3), (0, 2), (1, 40), False, 0.1)
@example(3, (4, 64), (2, 2), (2, 4), (0, 0), (1, 1), False, 0.1)
@example(2, (3, 200), (1, 2), (1, 70), (0, 0), (1, 1), False, 0.5)
@settings(max_examples=120)
def test_equals_torchs_max_pool(
    channels: int,
    size: Pair,
    kernel: Pair,
    stride: Pair | None,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    density: float,
) -> None:
    padding = (min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (
        n if ceil_mode and n + 2 * p - span + s > 0 else max(n, span - 2 * p)
        for n, span, p, s in zip(size, spans, padding, stride or kernel, strict=True)
    )
    x = frames(3, (channels, height, width), density)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    want = F.max_pool2d(x.float(), kernel, **options) > 0  # where a window sees nothing, torch gives -inf
    for backend in ("cpu", "reference", None):
        pooled = or_pool2d(pack_bits(x.flatten(1)), x.shape[1:], kernel, backend=backend, **options)
        assert pooled.dtype == torch.int32
        assert not has_stray_bits(pooled, want[0].numel())
        assert torch.equal(unpack_bits(pooled, want[0].numel(), torch.bool), want.flatten(1))


@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0))])
def test_equals_the_layer(arguments: tuple[Any, ...]) -> None:
    x, layer = frames(4, (3, 9, 11)), MaxPool2d(*arguments)
    pooled = or_pool2d(
        pack_bits(x.flatten(1)), (3, 9, 11), layer.kernel_size, stride=layer.stride, padding=layer.padding
    )
    assert torch.equal(pooled, pack_bits(layer(x.float()).flatten(1)))


def test_by_hand() -> None:
    x = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
    words = pack_bits(x.flatten())
    assert unpack_bits(or_pool2d(words, (1, 4, 5), 2), 4).tolist() == [1, 0, 0, 1]
    assert unpack_bits(or_pool2d(words, (1, 4, 5), 2, ceil_mode=True), 6).tolist() == [1, 0, 1, 0, 1, 0]
    assert unpack_bits(or_pool2d(words, (1, 4, 5), (1, 2), stride=(2, 3)), 4).tolist() == [0, 1, 0, 0]


def test_any_leading_shape() -> None:
    x = frames(6, (3, 5, 7))
    words = pack_bits(x.flatten(1))
    rows = or_pool2d(words, (3, 5, 7), 2)
    assert torch.equal(or_pool2d(words.reshape(2, 3, -1), (3, 5, 7), 2), rows.reshape(2, 3, -1))
    assert torch.equal(or_pool2d(words[4], (3, 5, 7), 2), rows[4])
    assert or_pool2d(words[:0], (3, 5, 7), 2).shape == (0, 1)
    assert torch.equal(or_pool2d(words.T.contiguous().T, (3, 5, 7), 2), rows)


def test_threads_and_fresh_memory_change_nothing(
    poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    x = frames(300, (3, 21, 33))
    x[3] = False
    words, want = pack_bits(x.flatten(1)), pack_bits(F.max_pool2d(x.float(), 3, 2, 1).flatten(1))
    call = lambda: or_pool2d(words, (3, 21, 33), 3, stride=2, padding=1)  # noqa: E731
    for n in (1, 2):
        assert torch.equal(with_threads(n, call), want)
    with poisoned_memory():
        assert torch.equal(call(), want)


def test_the_example_runs() -> None:
    assert doctest.testmod(tbnn.ops.or_pool) == (0, 1)


def test_refusals() -> None:
    words = torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="or_pool2d: 75 bits take 3 words, got a last axis of 2"):
        or_pool2d(words, (3, 5, 5), 3)
    with pytest.raises(ValueError, match=r"or_pool2d: expected packed int32 words .* got torch.float32"):
        or_pool2d(words.float(), (2, 5, 5), 3)
    with pytest.raises(ValueError, match=r"or_pool2d: expected frames of at least the window \(6, 6\)"):
        or_pool2d(words, (2, 5, 5), 6)
    with pytest.raises(ValueError, match=r"or_pool2d: padding: expected at most half of the window \(3, 3\), got 2"):
        or_pool2d(words, (2, 5, 5), 3, padding=2)
    with pytest.raises(ValueError, match=r"or_pool2d: expected a shape \(C, H, W\) of sizes >= 1, got \(2, 0, 5\)"):
        or_pool2d(words, (2, 0, 5), 3)
    for name, value in {"kernel_size": 0, "stride": (1, 0), "dilation": 0, "padding": -1}.items():
        with pytest.raises(ValueError, match=f"or_pool2d: {name}: expected an integer >= .*, got"):
            or_pool2d(words, (2, 5, 5), **{"kernel_size": 3, name: value})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="backend: expected 'cpu' or 'reference', got 'gpu'"):
        or_pool2d(words, (2, 5, 5), 3, backend="gpu")
