"""Packed bits: 32 to an int32 word, little-endian. The only file that knows word size and bit order.

Element ``i`` of the last axis is bit ``i % 32`` of word ``i // 32``; the last word is padded with zeros.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WORD_BITS = 32

_LITTLE_ENDIAN_WORD = np.dtype("<i4")


def words_for(n: int) -> int:
    """How many words hold ``n`` bits."""
    return -(-n // WORD_BITS)


def pack_bits(x: Tensor) -> Tensor:
    """Pack 0/1 values into words: (..., N) of bool or of any dtype holding 0 and 1 -> int32 (..., ceil(N/32)).

    Raises ``ValueError`` when ``x`` is 0-dimensional or holds a value other than 0 and 1.

    >>> pack_bits(torch.tensor([1, 0, 1, 1]))
    tensor([13], dtype=torch.int32)
    """
    if x.ndim == 0:
        raise ValueError("pack_bits: expected a tensor of shape (..., N), got a 0-dimensional one")
    bits = x if x.dtype == torch.bool else x != 0
    if x.dtype != torch.bool and not torch.equal(bits.to(x.dtype), x):
        bad = x[bits.to(x.dtype) != x].flatten()[0].item()
        raise ValueError(f"pack_bits: expected values 0 and 1, got {bad}")
    if x.device.type == "cpu":
        return torch.from_numpy(pack_bits_numpy(bits.numpy()))
    n = x.shape[-1]
    padded = torch.nn.functional.pad(bits.to(torch.int32), (0, words_for(n) * WORD_BITS - n))
    shifts = torch.arange(WORD_BITS, dtype=torch.int32, device=x.device)
    # The 32 shifted bits never overlap, so their sum is their OR, bit 31 wrapping to the sign.
    return (padded.unflatten(-1, (-1, WORD_BITS)) << shifts).sum(-1, dtype=torch.int32)


def unpack_bits(words: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack words into 0/1 values: int32 (..., ceil(n/32)) -> ``dtype`` (..., n).

    Raises ``ValueError`` when ``words`` is not int32 or its last axis does not hold exactly ``n`` bits.

    >>> unpack_bits(torch.tensor([13], dtype=torch.int32), 4)
    tensor([1., 0., 1., 1.])
    """
    check_words(words, n, "unpack_bits")
    if words.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.from_numpy(unpack_bits_numpy(words.numpy(), n)).to(dtype)
    shifts = torch.arange(WORD_BITS, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :n].to(dtype)


def popcount(words: Tensor) -> Tensor:
    """The number of set bits in each word: int32 (...) -> int32 (...)."""
    if words.dtype != torch.int32:
        raise ValueError(f"popcount: expected int32 words, got {words.dtype}")
    if words.device.type == "cpu":
        return torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint32)).astype(np.int32))
    bit_count = torch.zeros_like(words)
    for shift in range(WORD_BITS):
        bit_count += (words >> shift) & 1
    return bit_count


def check_words(words: Tensor, n: int, caller: str) -> None:
    """Raise ``ValueError`` unless ``words`` is int32 of shape (..., ceil(n/32))."""
    if words.dtype != torch.int32 or words.ndim == 0:
        raise ValueError(f"{caller}: expected packed int32 words (..., {words_for(n)}), got {words.dtype}")
    if words.shape[-1] != words_for(n):
        raise ValueError(
            f"{caller}: {n} bits take {words_for(n)} words, got a last axis of {words.shape[-1]} (shape {tuple(words.shape)})"
        )


def has_stray_bits(words: Tensor, n: int) -> bool:
    """Whether a padding bit, one past the ``n``-th, is set anywhere in ``words`` (..., ceil(n/32)).

    False while a compiler traces, which knows no values.
    """
    tail = n % WORD_BITS
    if tail == 0 or words.numel() == 0 or torch.compiler.is_compiling():
        return False
    if words.device.type == "cpu":  # a tenth of torch's time for one step of a stream
        return bool((words.numpy()[..., -1].view(np.uint32) >> np.uint32(tail)).any())
    return bool(((words[..., -1] >> tail) & ((1 << (WORD_BITS - tail)) - 1)).any())


def pack_bits_numpy(a: npt.NDArray[np.bool_ | np.integer]) -> npt.NDArray[np.int32]:
    """:func:`pack_bits` for a NumPy array of bool or 0/1; every nonzero value counts as 1."""
    n = a.shape[-1]
    octets = np.packbits(a, axis=-1, bitorder="little")
    padded = np.zeros((*a.shape[:-1], words_for(n) * (WORD_BITS // 8)), np.uint8)
    padded[..., : octets.shape[-1]] = octets
    return padded.view(_LITTLE_ENDIAN_WORD).astype(np.int32, copy=False)


def unpack_bits_numpy(words: npt.NDArray[np.int32], n: int) -> npt.NDArray[np.uint8]:
    """:func:`unpack_bits` for a NumPy array: int32 (..., ceil(n/32)) -> uint8 (..., n)."""
    octets = np.ascontiguousarray(words, _LITTLE_ENDIAN_WORD).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=n, bitorder="little")


def wide_words(words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """The same bits 64 to a word, for kernels: int32 (..., W) -> uint64 (..., ceil(W/2)), a copy only if W is odd."""
    if words.shape[-1] % 2:
        even = np.zeros((*words.shape[:-1], words.shape[-1] + 1), np.int32)
        even[..., :-1] = words
        return even.view(np.uint64)
    return np.ascontiguousarray(words).view(np.uint64)
