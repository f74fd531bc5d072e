"""Products with bits, forward and backward, against the definitions: equal where they are whole numbers, else to float32."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.bits import pack_bits, unpack_bits
from tbnn.ops.spike_products import (
    FEW_EVENTS,
    Planes,
    WeightGradient,
    input_gradient,
    input_gradient_of_blocks,
    input_gradient_reference,
    pack_spikes,
    planes_of,
    spike_linear,
    spike_linear_reference,
    weight_gradient,
    weight_gradient_reference,
)
from tbnn.ops.spike_products.events import CHUNK

sizes = st.sampled_from([1, 3, 16, 31, 63, 64, 65, 130, 200])
densities = st.sampled_from([0.0, 0.01, 0.1, 0.24, 0.26, 0.5, 1.0])
alphabets = st.sampled_from([(-1, 1), (-1, 0, 1), (-3, -1, 1, 3), tuple(range(-15, 16, 2)), (0,), (-1,), (2,), (-2, 5)])


def spikes(rows: int, inputs: int, density: float, seed: int) -> Tensor:
    return (torch.rand(rows, inputs, generator=torch.Generator().manual_seed(seed)) < density).float()


def sixty_fourths(*shape: int) -> Tensor:
    """Reals whose sums are exact in float32."""
    return torch.randint(-64, 65, shape) / 64


def values_of(alphabet: tuple[int, ...], outputs: int, inputs: int) -> Tensor:
    return torch.tensor(alphabet, dtype=torch.float32)[torch.randint(len(alphabet), (outputs, inputs))]


def known(planes: Planes | None) -> Planes:
    assert planes is not None
    return planes


@given(rows=sizes, outputs=sizes, inputs=sizes, density=densities, seed=st.integers(0, 99))
def test_weight_gradient_on_exact_numbers_is_the_definition(
    rows: int, outputs: int, inputs: int, density: float, seed: int
) -> None:
    torch.manual_seed(seed)
    words, dy = pack_bits(spikes(rows, inputs, density, seed)), sixty_fourths(rows, outputs)
    got = weight_gradient(dy, words, inputs)
    assert torch.equal(got, weight_gradient_reference(dy.double(), words, inputs).float())
    assert torch.equal(got, weight_gradient(dy, words, inputs, backend="reference"))


@given(rows=sizes, outputs=sizes, inputs=sizes, alphabet=alphabets, affine=st.booleans(), seed=st.integers(0, 99))
def test_input_gradient_on_exact_numbers_is_the_definition(
    rows: int, outputs: int, inputs: int, alphabet: tuple[int, ...], affine: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    dy, values = sixty_fourths(rows, outputs), values_of(alphabet, outputs, inputs)
    scale, offset = torch.randint(1, 5, (outputs,)) / 4, torch.randint(-4, 5, (outputs,)) / 4 if affine else None
    got = input_gradient(dy, known(planes_of(values)), scale, offset)
    wide = None if offset is None else offset.double()
    assert torch.equal(got.double(), input_gradient_reference(dy.double(), values.double(), scale.double(), wide))


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_the_error_on_real_gradients_is_that_of_float32(heavy: bool, density: float) -> None:
    torch.manual_seed(0)
    dy = torch.randn(3000, 70) * (torch.randn(3000, 70).exp() ** 3 if heavy else 1)
    words = pack_bits(spikes(3000, 90, density, 1))
    want = weight_gradient_reference(dy.double(), words, 90)
    assert ((weight_gradient(dy, words, 90) - want).norm() / want.norm()).item() < 1e-6
    values, scale, offset = values_of((-1, 1), 70, 90), torch.rand(70), torch.randn(70) / 10
    want = input_gradient_reference(dy.double(), values.double(), scale.double(), offset.double())
    got = input_gradient(dy, known(planes_of(values)), scale, offset)
    assert ((got - want).norm() / want.norm()).item() < 1e-6


@given(
    rows=st.sampled_from([1, 40, 300]), outputs=sizes, block=st.sampled_from([32, 64, 1000]), inputs=sizes,
    alphabet=alphabets, density=densities, affine=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_forward_is_the_definition_bit_for_bit(
    rows: int, outputs: int, block: int, inputs: int, alphabet: tuple[int, ...], density: float, affine: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    values, block = values_of(alphabet, outputs, inputs), min(block, inputs)
    blocks = -(-inputs // block)
    scale, offset = torch.rand(outputs, blocks), torch.randn(outputs, blocks) if affine else None
    planes = [known(planes_of(part)) for part in values.split(block, 1)]
    words = pack_bits(spikes(rows, inputs, density, seed))
    got = spike_linear(words, inputs, planes, scale, offset, block)
    assert torch.equal(got, spike_linear_reference(words, inputs, values, scale, offset, block))


@given(rows=sizes, inputs=sizes, density=densities, seed=st.integers(0, 99))
def test_spikes_are_packed_as_bits_and_nothing_else_is(rows: int, inputs: int, density: float, seed: int) -> None:
    x = spikes(rows, inputs, density, seed)
    words = pack_spikes(x)
    assert words is not None
    assert torch.equal(words, pack_bits(x))
    assert torch.equal(pack_spikes(x.reshape(1, rows, inputs)), pack_bits(x[None]))
    for other in (0.5, 2.0, -1.0, float("nan"), float("inf"), 1 + 2**-23, 1e-45):
        wrong = x.clone()
        wrong[seed % rows, seed % inputs] = other
        assert pack_spikes(wrong) is None


@given(alphabet=alphabets, outputs=sizes, inputs=sizes)
def test_planes_rebuild_the_values(alphabet: tuple[int, ...], outputs: int, inputs: int) -> None:
    values = values_of(alphabet, outputs, inputs)
    planes = known(planes_of(values))
    rebuilt = torch.full_like(values, planes.constant)
    for factor, plane in zip(planes.factors, planes.words, strict=True):
        rebuilt += factor * unpack_bits(torch.from_numpy(plane), inputs)
    assert torch.equal(rebuilt, values)
    assert len(planes.factors) <= 5


def test_only_small_whole_numbers_have_planes() -> None:
    for other in (0.5, 16.0, -17.0, float("nan"), float("inf")):
        assert planes_of(torch.tensor([[1.0, other]])) is None
    assert planes_of(torch.tensor([[3.0, 0.5]])) is None


def test_both_ways_to_the_weight_gradient_are_taken() -> None:
    """The densities above lie on both sides of the border, whose two products round differently."""
    torch.manual_seed(0)
    dy = torch.randn(2000, 5)
    few, many = (spikes(2000, 40, density, 0) for density in (FEW_EVENTS - 0.02, FEW_EVENTS + 0.02))
    for x, one_by_one in ((few, True), (many, False)):
        total = np.zeros((5, 40), np.float32)
        for m0 in range(0, 2000, CHUNK):
            some = np.zeros_like(total)
            for m in range(m0, min(m0 + CHUNK, 2000)):
                some += np.outer(dy[m].numpy(), x[m].numpy())
            total += some
        assert np.array_equal(weight_gradient(dy, pack_bits(x), 40).numpy(), total) is one_by_one


@given(outputs=sizes, inputs=sizes, seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_weight_gradient_adds_up_over_calls(outputs: int, inputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    total = WeightGradient(outputs, inputs)
    want = torch.zeros(outputs, inputs)
    assert torch.equal(total.total(), want)
    for rows, density in ((3, 0.02), (130, 0.9), (200, 0.1), (64, 0.6)):
        words, dy = pack_bits(spikes(rows, inputs, density, seed)), sixty_fourths(rows, outputs)
        total.add(dy, words)
        want += weight_gradient_reference(dy.double(), words, inputs).float()
    assert torch.equal(total.total(), want)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_input_gradient_of_blocks(blocks: int) -> None:
    torch.manual_seed(0)
    dy, values = sixty_fourths(400, 130), values_of((-1, 1), 130, 128)
    scale, offset = torch.randint(1, 5, (130, blocks)) / 4, torch.randint(-4, 5, (130, blocks)) / 4
    planes = [planes_of(part) for part in values.split(128 // blocks, 1)]
    weight = values * scale.repeat_interleave(128 // blocks, 1) + offset.repeat_interleave(128 // blocks, 1)
    out = torch.full((400, 128), torch.nan)
    got = input_gradient_of_blocks(dy, planes, scale, offset, out)
    assert got is not None
    assert got.data_ptr() == out.data_ptr()
    assert torch.equal(out.double(), dy.double() @ weight.double())
    assert input_gradient_of_blocks(dy[:20], planes, scale, offset) is None
    assert input_gradient_of_blocks(dy.double(), planes, scale, offset) is None
    assert input_gradient_of_blocks(dy, [None] * blocks, scale, offset) is None


def test_refused() -> None:
    words = torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"weight_gradient: expected dy and words of M rows, got \(3, 5\), \(4, 2\)"):
        weight_gradient(torch.zeros(3, 5), words, 64)
    with pytest.raises(ValueError, match="weight_gradient: 100 bits take 4 words"):
        weight_gradient(torch.zeros(4, 5), words, 100)
    planes = [known(planes_of(torch.ones(1, 32)))] * 2
    with pytest.raises(ValueError, match="spike_linear: expected blocks of a multiple of 32 inputs, got 33"):
        spike_linear(words, 64, planes, torch.ones(1, 2), None, 33)
