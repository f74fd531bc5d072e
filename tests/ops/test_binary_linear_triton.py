"""Packed products, counts of spikes, patches and pooling by Triton: under its interpreter, and on a CUDA device."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.bits import pack_bits
from tbnn.ops.binary_linear import binary_counts, binary_linear
from tbnn.ops.or_pool.reference import or_pool2d_reference
from tbnn.ops.patches.reference import Margins, Sizes, bit_patches_reference, windows_over
from tests.interpreter import interpreted

on_device = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
WAYS = ("popcount", "int8")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that the interpreter goes; tiles so small that there are several."""
    tile = {"DOT": request.param == "int8", "BM": 4, "BN": 8, "BW": 2}
    monkeypatch.setattr("tbnn.ops.binary_linear.gpu.INTERPRETED_TILE", tile)
    return request.param


def bits_of(rng: np.random.Generator, *shape: int, density: float = 0.5) -> np.ndarray:
    return (rng.random(shape) < density).astype(np.int64)


def packed(bits: np.ndarray) -> Tensor:
    return pack_bits(torch.from_numpy(bits > 0))


@interpreted
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15)
@given(
    rows=st.integers(1, 9), inputs=st.integers(1, 200), columns=st.integers(1, 20), planes=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.3, 1.0]), shifts=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@example(rows=1, inputs=1, columns=1, planes=1, density=1.0, shifts=False, seed=0)
@example(rows=5, inputs=65, columns=9, planes=2, density=0.3, shifts=True, seed=0)
def test_equals_the_sum(
    way: str, rows: int, inputs: int, columns: int, planes: int, density: float, shifts: bool, seed: int
) -> None:
    from tbnn.ops.binary_linear import gpu

    rng = np.random.default_rng(seed)
    s, w = bits_of(rng, rows, inputs, density=density), bits_of(rng, planes, columns, inputs)
    factors, shift = rng.integers(-255, 255, planes), rng.integers(-9, 9, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "INTERPRETED_TILE", {"DOT": way == "int8", "BM": 4, "BN": 8, "BW": 2})
        y, taken = gpu.binary_product_gpu(
            packed(s), packed(w), torch.from_numpy(factors).int(), torch.from_numpy(shift).int() if shifts else None
        )
    expected = np.einsum("mi,pni,p->mn", s, w, factors) + (shift[:, None] if shifts else 0)
    assert y.dtype == torch.int32
    assert taken == way
    assert np.array_equal(y.numpy(), expected)


@interpreted
@pytest.mark.usefixtures("way")
def test_words_that_lie_apart_and_fresh_memory(poisoned_memory: Any) -> None:
    from tbnn.ops.binary_linear.gpu import binary_counts_gpu, binary_linear_gpu

    rng = np.random.default_rng(0)
    s, w = packed(bits_of(rng, 6, 160)), packed(bits_of(rng, 11, 160))
    with poisoned_memory():
        signed, counted = binary_linear_gpu(s[:, 1:4], w[:, 1:4]), binary_counts_gpu(s.T.contiguous().T, w)
    assert torch.equal(signed, binary_linear(s[:, 1:4], w[:, 1:4], 96))
    assert torch.equal(counted, binary_counts(s, w, 160))
    assert binary_linear_gpu(s[:0], w).shape == (0, 11)


@interpreted
def test_words_of_all_ones() -> None:
    """Bit 31 is the sign: shifts and sums must not see it as one."""
    from tbnn.ops.binary_linear.gpu import binary_counts_gpu, count_rows_gpu

    full = torch.tensor([[-1, -1], [-(2**31), 0], [2**31 - 1, 1], [0, 0]], dtype=torch.int32)
    assert count_rows_gpu(full)[0].tolist() == [64, 1, 32, 0]
    assert binary_counts_gpu(full, full).tolist() == [[64, 1, 32, 0], [1, 1, 0, 0], [32, 0, 32, 0], [0, 0, 0, 0]]


@interpreted
@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (3, 33), (130, 64), (5, 1100)])
def test_counts_of_rows(rows: int, inputs: int) -> None:
    from tbnn.ops.binary_linear.gpu import count_rows_gpu

    rng = np.random.default_rng(inputs)
    s = bits_of(rng, rows, inputs)
    words = packed(s)
    kept = torch.zeros(32 * words.shape[1], dtype=torch.int32)
    kept[:inputs] = torch.from_numpy(rng.integers(0, 5, inputs))
    ones, met = count_rows_gpu(words, kept)
    assert ones.tolist() == s.sum(1).tolist()
    assert met is not None
    assert met.tolist() == (s @ kept[:inputs].numpy()).tolist()
    assert count_rows_gpu(words)[1] is None


FRAMES: list[tuple[tuple[int, int, int], Sizes, Sizes, Margins, Sizes, int]] = [
    ((1, 3, 3), 2, 1, 0, 1, 1),
    ((2, 5, 33), (3, 2), (2, 1), 1, 1, 1),
    ((4, 7, 8), 3, 1, ((0, 2), (1, 0)), 2, 2),
    ((3, 6, 5), 3, 2, 1, 1, 3),
    ((5, 4, 4), (4, 4), 4, 0, 1, 1),
]


@interpreted
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation", "groups"), FRAMES)
def test_patches_and_pooling(
    shape: tuple[int, int, int], kernel: Sizes, stride: Sizes, padding: Margins, dilation: Sizes, groups: int,
    poisoned_memory: Any,
) -> None:  # fmt: skip
    from tbnn.ops.patches.gpu import bit_patches_gpu, or_pool2d_gpu

    frames = packed(bits_of(np.random.default_rng(1), 3, int(np.prod(shape)), density=0.2))
    windows = windows_over("test", shape, kernel, stride, padding, dilation)
    with poisoned_memory():
        patches, pooled = bit_patches_gpu(frames, shape, windows, groups), or_pool2d_gpu(frames, shape, windows)
    assert torch.equal(patches, bit_patches_reference(frames, shape, windows, groups))
    assert torch.equal(pooled, or_pool2d_reference(frames, shape, windows))


class TestOnADevice:
    """Real sizes, through the public functions, against the CPU."""

    pytestmark = on_device

    @pytest.mark.parametrize(
        ("rows", "inputs", "columns"), [(1, 1, 1), (3, 63, 17), (100, 700, 1024), (1024, 1024, 500), (4097, 33, 129)]
    )
    def test_products(self, rows: int, inputs: int, columns: int) -> None:
        rng = np.random.default_rng(rows)
        s, w = packed(bits_of(rng, rows, inputs)), packed(bits_of(rng, columns, inputs))
        for product in (binary_linear, binary_counts):
            assert torch.equal(product(s.cuda(), w.cuda(), inputs).cpu(), product(s, w, inputs))

    @pytest.mark.parametrize("rows", [1, 20, 300])
    def test_every_tile_gives_the_same(self, rows: int) -> None:
        from tbnn.ops.binary_linear import gpu
        from tbnn.ops.ddt.gpu import launch

        rng = np.random.default_rng(rows)
        s, w = packed(bits_of(rng, rows, 500)), packed(bits_of(rng, 300, 500))
        expected = binary_counts(s, w, 500)
        arguments = s.cuda(), w[None].cuda(), torch.ones(1, dtype=torch.int32, device="cuda"), None
        for tile in gpu._configurations():
            out = torch.full((rows, 300), 77, dtype=torch.int32, device="cuda")
            across = -(-rows // tile.kwargs["BM"]) * -(-300 // tile.kwargs["BN"])
            sizes = rows, 300, 16, 1, 16, 300 * 16, 16, rows
            launch(gpu.binary_product, across, *arguments, out, *sizes, SHIFT=False, **tile.all_kwargs())
            assert torch.equal(out.cpu(), expected), tile

    @pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation", "groups"), FRAMES)
    def test_patches_and_pooling(
        self, shape: tuple[int, int, int], kernel: Sizes, stride: Sizes, padding: Margins, dilation: Sizes, groups: int
    ) -> None:
        from tbnn.ops.patches.gpu import bit_patches_gpu, or_pool2d_gpu

        frames = packed(bits_of(np.random.default_rng(1), 301, int(np.prod(shape)), density=0.2))
        windows = windows_over("test", shape, kernel, stride, padding, dilation)
        patches = bit_patches_gpu(frames.cuda(), shape, windows, groups)
        assert torch.equal(patches.cpu(), bit_patches_reference(frames, shape, windows, groups))
        assert torch.equal(
            or_pool2d_gpu(frames.cuda(), shape, windows).cpu(), or_pool2d_reference(frames, shape, windows)
        )
