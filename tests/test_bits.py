"""Packed bits: order, padding, refusals, and the path without NumPy that other devices take."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tbnn.bits import (
    has_stray_bits,
    pack_bits,
    pack_bits_numpy,
    popcount,
    unpack_bits,
    unpack_bits_numpy,
    wide_words,
    words_for,
)

WIDTHS = [0, 1, 31, 32, 33, 63, 64, 500]


def random_bits(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed))


class OtherDevice(TorchFunctionMode):
    """Tensors claim to live on another device, and NumPy is out of reach: what a GPU tensor sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.device.__get__:  # pyright: ignore
            return torch.device("cuda")
        if func is torch.Tensor.numpy or func is torch.from_numpy:
            raise TypeError("no NumPy on this device")
        return func(*args, **{name: value for name, value in (kwargs or {}).items() if name != "device"})


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 0), (5, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_round_trip(n: int, lead: tuple[int, ...], dtype: torch.dtype) -> None:
    bits = random_bits((*lead, n)).to(dtype)
    words = pack_bits(bits)
    assert words.dtype == torch.int32
    assert words.shape == (*lead, -(-n // 32))
    assert torch.equal(unpack_bits(words, n, dtype), bits)


@pytest.mark.parametrize(
    ("ones", "n", "words"),
    [
        ([0], 1, [1]),
        ([1], 32, [2]),
        ([30], 31, [1 << 30]),
        ([31], 32, [-(2**31)]),
        (range(32), 32, [-1]),
        ([32], 33, [0, 1]),
        ([0, 31, 33, 63], 64, [1 - 2**31, 2 - 2**31]),
        ([5, 69], 70, [32, 0, 32]),
    ],
)
def test_element_i_is_bit_i_mod_32_of_word_i_div_32(ones: list[int], n: int, words: list[int]) -> None:
    x = torch.zeros(n)
    x[list(ones)] = 1
    assert pack_bits(x).tolist() == words
    assert unpack_bits(torch.tensor(words, dtype=torch.int32), n).nonzero().flatten().tolist() == list(ones)


@given(n=st.integers(0, 200), seed=st.integers(0, 999))
def test_words_are_sums_of_powers_of_two_and_padding_is_zero(n: int, seed: int) -> None:
    bits = random_bits((n,), seed).tolist()
    expected = [sum(bit << i for i, bit in enumerate(bits[lo : lo + 32])) for lo in range(0, n, 32)]
    words = pack_bits(torch.tensor(bits, dtype=torch.uint8))
    assert [word % 2**32 for word in words.tolist()] == expected
    assert not has_stray_bits(words, n)


@pytest.mark.parametrize("n", WIDTHS)
def test_the_path_of_other_devices_gives_the_same_words(n: int) -> None:
    bits = random_bits((3, 5, n)).float()
    words = pack_bits(bits)
    with OtherDevice():
        packed, unpacked, counts = pack_bits(bits), unpack_bits(words, n, torch.float64), popcount(words)
        with pytest.raises(TypeError, match="no NumPy"):
            words.numpy()
    assert torch.equal(packed, words)
    assert torch.equal(unpacked, bits.double())
    assert torch.equal(counts, popcount(words))
    assert counts.dtype == torch.int32


def test_non_contiguous_inputs() -> None:
    bits = random_bits((70, 6)).float()
    assert torch.equal(pack_bits(bits.T), pack_bits(bits.T.contiguous()))
    words = torch.randint(-(2**31), 2**31 - 1, (3, 8), dtype=torch.int32)
    assert torch.equal(unpack_bits(words.T, 96), unpack_bits(words.T.contiguous(), 96))
    assert torch.equal(unpack_bits(words[:, ::2], 128), unpack_bits(words[:, ::2].contiguous(), 128))
    assert torch.equal(popcount(words[:, ::2]), popcount(words)[:, ::2])


@pytest.mark.parametrize("bad", [2, -1, 0.5, float("nan"), float("inf")])
def test_values_other_than_0_and_1_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=f"expected values 0 and 1, got {bad}"):
        pack_bits(torch.tensor([[0, 1], [1, bad]]))


def test_refusals() -> None:
    words = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="0-dimensional"):
        pack_bits(torch.tensor(1))
    for n in (32, 65):
        with pytest.raises(ValueError, match=rf"{n} bits take {words_for(n)} words, got a last axis of 2"):
            unpack_bits(words, n)
    with pytest.raises(ValueError, match=r"expected packed int32 words \(\.\.\., 2\), got torch.int64"):
        unpack_bits(words.long(), 64)
    with pytest.raises(ValueError, match=r"got torch\.uint8"):
        popcount(words.to(torch.uint8))


def test_popcount_counts_every_bit_of_signed_words() -> None:
    words = torch.randint(-(2**31), 2**31 - 1, (400,), dtype=torch.int32)
    expected = [bin(word % 2**32).count("1") for word in words.tolist()]
    assert popcount(words).tolist() == expected
    assert popcount(torch.tensor([0, -1, -(2**31), 2**31 - 1], dtype=torch.int32)).tolist() == [0, 32, 1, 31]


@pytest.mark.parametrize("n", [1, 31, 33, 63, 500])
def test_a_bit_past_the_last_is_stray(n: int) -> None:
    words = pack_bits(torch.ones(3, n))
    assert not has_stray_bits(words, n)
    for bit in {n % 32, 31}:
        stray = words.clone()
        stray[1, -1] ^= -(2**31) if bit == 31 else 1 << bit
        assert has_stray_bits(stray, n)


def test_full_words_have_no_padding_to_stray_into() -> None:
    assert not has_stray_bits(torch.full((2, 2), -1, dtype=torch.int32), 64)
    assert not has_stray_bits(torch.zeros(0, 2, dtype=torch.int32), 40)


@pytest.mark.parametrize("n", [1, 32, 33, 64, 65, 500])
def test_wide_words_hold_the_same_bits_64_to_a_word(n: int) -> None:
    bits = random_bits((3, n)).bool().numpy()
    wide = wide_words(pack_bits_numpy(bits))
    assert wide.shape == (3, -(-n // 64))
    spread = (wide[:, :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.array_equal(spread.reshape(3, -1)[:, :n].astype(bool), bits)
    assert not spread.reshape(3, -1)[:, n:].any()


def test_wide_words_copies_only_odd_rows() -> None:
    even, odd = np.ones((2, 4), np.int32), np.ones((2, 3), np.int32)
    assert np.shares_memory(wide_words(even), even)
    assert not np.shares_memory(wide_words(odd), odd)


def test_numpy_and_torch_agree() -> None:
    bits = random_bits((4, 77))
    words = pack_bits_numpy(bits.numpy())
    assert np.array_equal(words, pack_bits(bits).numpy())
    assert np.array_equal(unpack_bits_numpy(words, 77), bits.numpy())
