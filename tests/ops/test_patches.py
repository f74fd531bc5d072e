"""Patches of packed frames: against torch's unfold and its convolution, at odd sizes."""

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

import tbnn.ops.patches
from tbnn.bits import has_stray_bits, pack_bits, unpack_bits
from tbnn.nn import BinaryConv2d
from tbnn.ops.binary_linear import binary_linear
from tbnn.ops.patches import bit_patches

Pair = tuple[int, int]


def frames(m: int, shape: tuple[int, ...], density: float = 0.3, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((m, *shape)) < density)


def unfolded(x: Tensor, kernel: Pair, groups: int, **options: Any) -> Tensor:
    """torch's unfold in the op's layout: (M, OH·OW, groups, n)."""
    return F.unfold(x.float(), kernel, **options).transpose(1, 2).unflatten(2, (groups, -1))


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@given(
    per_group=st.integers(1, 9),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 7, 16, 17, 31, 32, 33, 65, 90])),
    kernel=pairs(1, 7),
    stride=pairs(1, 9),
    padding=pairs(0, 8),
    dilation=pairs(1, 3),
    density=st.sampled_from([0.02, 0.5, 1.0]),
)
@example(1, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1.0)
@example(1, 1, (1, 1), (7, 7), (1, 1), (3, 3), (1, 1), 1.0)  # a window larger than the frame
@example(2, 1, (5, 33), (3, 3), (4, 5), (1, 1), (1, 1), 0.5)  # a stride beyond the window
@example(3, 2, (9, 33), (3, 3), (1, 1), (2, 2), (2, 2), 0.5)
@example(1, 1, (2, 200), (1, 70), (1, 1), (0, 35), (1, 1), 0.5)  # rows of the window longer than a word
@example(2, 1, (3, 300), (2, 5), (1, 3), (0, 9), (1, 40), 0.5)
@example(64, 1, (4, 17), (3, 3), (1, 1), (1, 1), (1, 1), 0.05)
@example(2, 1, (3, 200), (1, 2), (1, 70), (0, 0), (1, 1), 0.5)
@settings(max_examples=120)
def test_equals_torchs_unfold(
    per_group: int,
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
    shape = (per_group * groups, height, width)
    x, options = frames(2, shape, density), {"stride": stride, "padding": padding, "dilation": dilation}
    want = unfolded(x, kernel, groups, **options)
    n = per_group * kernel[0] * kernel[1]
    for backend in ("cpu", "reference", None):
        patches = bit_patches(pack_bits(x.flatten(1)), shape, kernel, groups=groups, backend=backend, **options)
        assert patches.dtype == torch.int32
        assert not has_stray_bits(patches, n)
        rows = [(n + 2 * p - span) // s + 1 for n, p, span, s in zip((height, width), padding, spans, stride, strict=True)]  # fmt: skip
        assert patches.shape[:4] == (2, *rows, groups)
        assert torch.equal(unpack_bits(patches, n).flatten(1, 2), want)


def test_by_hand() -> None:
    x = torch.tensor([[[[1, 0], [0, 1]], [[0, 0], [1, 0]]]])  # one frame, two channels
    patches = bit_patches(pack_bits(x.flatten(1)), (2, 2, 2), 2, padding=((0, 1), (1, 0)))
    assert patches.shape == (1, 2, 2, 1, 1)
    want = [
        [[0, 1, 0, 0, 0, 0, 0, 1], [1, 0, 0, 1, 0, 0, 1, 0]],  # its left column lies outside; the whole frame
        [[0, 0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0]],  # the bottom row lies outside
    ]
    assert unpack_bits(patches, 8, torch.int64)[0, :, :, 0].tolist() == want


@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "options"),
    [
        ((2, 16, 33), 5, (5, 5), {"stride": 2, "padding": 2}),
        ((6, 9, 7), 9, (3, 2), {"groups": 3, "dilation": 2, "padding": (2, 1)}),
        ((40, 8, 8), 17, (3, 3), {"padding": 1}),
        ((3, 1, 50), 4, (1, 9), {"padding": (0, 4), "stride": (1, 3)}),
    ],
)
def test_patches_times_weights_are_a_convolution(
    shape: tuple[int, int, int], outputs: int, kernel: Pair, options: dict[str, Any]
) -> None:
    x, groups = frames(3, shape), options.get("groups", 1)
    weight = 2.0 * frames(outputs, (shape[0] // groups, *kernel), 0.5, seed=1) - 1
    patches = bit_patches(pack_bits(x.flatten(1)), shape, kernel, **options)
    signs = pack_bits(weight.flatten(1) > 0).chunk(groups)
    n = weight[0].numel()
    y = torch.cat([binary_linear(patches[..., g, :], signs[g], n) for g in range(groups)], -1)
    assert torch.equal(y.permute(0, 3, 1, 2).float(), F.conv2d(x.float(), weight, **options))


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), ((4, 3), 1), (2, 3)])
def test_margins_are_those_of_the_layer(kernel: Any, dilation: int) -> None:
    layer = BinaryConv2d(2, 3, kernel, padding="same", dilation=dilation, bias=False)
    x, weight = frames(2, (2, 6, 9)), layer.weight.sign()
    patches = bit_patches(pack_bits(x.flatten(1)), (2, 6, 9), kernel, padding=layer.margins, dilation=dilation)
    y = binary_linear(patches, pack_bits(weight.flatten(1) > 0), weight[0].numel()).squeeze(3)
    (top, bottom), (left, right) = layer.margins
    want = F.conv2d(F.pad(x.float(), (left, right, top, bottom)), weight, dilation=dilation)
    assert y.shape[1:3] == (6, 9)
    assert torch.equal(y.permute(0, 3, 1, 2).float(), want)


def test_frames_that_are_empty_or_none_at_all_or_in_other_axes() -> None:
    x = frames(6, (3, 5, 7))
    x[1], x[2, :, 2:] = False, False
    words = pack_bits(x.flatten(1))
    rows = bit_patches(words, (3, 5, 7), 3)
    assert torch.equal(bit_patches(words, (3, 5, 7), 3, backend="reference"), rows)
    assert not rows[1].any()
    assert torch.equal(bit_patches(words.reshape(2, 3, -1), (3, 5, 7), 3), rows.reshape(2, 3, *rows.shape[1:]))
    assert torch.equal(bit_patches(words[4], (3, 5, 7), 3), rows[4])
    assert bit_patches(words[:0], (3, 5, 7), 3).shape == (0, *rows.shape[1:])
    assert torch.equal(bit_patches(words.T.contiguous().T, (3, 5, 7), 3), rows)


def test_threads_and_fresh_memory_change_nothing(
    poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    x = frames(9, (6, 20, 33))
    x[3], x[4, :, :9] = False, False
    words, want = pack_bits(x.flatten(1)), unfolded(x, (3, 3), 2, padding=1)
    call = lambda: unpack_bits(bit_patches(words, (6, 20, 33), 3, padding=1, groups=2), 27).flatten(1, 2)  # noqa: E731
    for n in (1, 2):
        assert torch.equal(with_threads(n, call), want)
    with poisoned_memory():
        assert torch.equal(call(), want)


def test_the_example_runs() -> None:
    assert doctest.testmod(tbnn.ops.patches) == (0, 1)


def test_refusals() -> None:
    words = torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="bit_patches: 75 bits take 3 words, got a last axis of 2"):
        bit_patches(words, (3, 5, 5), 3)
    with pytest.raises(ValueError, match=r"bit_patches: expected packed int32 words .* got torch.int64"):
        bit_patches(words.long(), (2, 5, 5), 3)
    with pytest.raises(ValueError, match=r"frames of at least the window \(3, 6\) .* got \(2, 5, 5\) with margins"):
        bit_patches(words, (2, 5, 5), (3, 6))
    with pytest.raises(ValueError, match="bit_patches: expected channels that 3 groups divide, got 2"):
        bit_patches(words, (2, 5, 5), 3, groups=3)
    with pytest.raises(ValueError, match=r"bit_patches: expected a shape \(C, H, W\) of sizes >= 1, got \(50,\)"):
        bit_patches(words, (50,), 3)
    for name, value in {"stride": 0, "dilation": (1, 0), "padding": (1, -1)}.items():
        with pytest.raises(ValueError, match=f"bit_patches: {name}: expected an integer >= .*, got"):
            bit_patches(words, (2, 5, 5), 3, **{name: value})
    with pytest.raises(ValueError, match=r"bit_patches: padding: expected an integer >= 0 .* got same"):
        bit_patches(words, (2, 5, 5), 3, padding="same")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="backend: expected 'cpu' or 'reference', got 'gpu'"):
        bit_patches(words, (2, 5, 5), 3, backend="gpu")
