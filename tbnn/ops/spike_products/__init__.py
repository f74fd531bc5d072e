"""Products of 0/1 spikes with weights of few bits, forward and backward, from packed bits.

Forward the products are whole numbers, counted from bits. Backward one operand is real: dW = dyᵀx sums the rows of dy that
met a spike, dx = dy·Ŵ the rows of dyᵀ with signs, all in float32, four bits at a time from tables of sums.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import WORD_BITS, check_words, pack_bits_numpy, wide_words, words_for
from tbnn.ops.binary_linear.choice import binary_product_cpu
from tbnn.ops.binary_linear.events import WeightColumns, weight_columns
from tbnn.ops.kernels import as_numpy, backend_for, fresh
from tbnn.ops.spike_products.cpu import WIDTH, bits_product_cpu, pack_spikes_cpu, scale_products_cpu
from tbnn.ops.spike_products.events import CHUNK, add_events_cpu, list_events_cpu, turn_sums_cpu
from tbnn.ops.spike_products.events import WIDTH as EVENT_WIDTH
from tbnn.ops.spike_products.reference import (
    input_gradient_reference,
    spike_linear_reference,
    weight_gradient_reference,
)

__all__ = [
    "Planes",
    "WeightGradient",
    "bit_planes",
    "input_gradient",
    "input_gradient_of_blocks",
    "input_gradient_reference",
    "pack_spikes",
    "planes_of",
    "spike_linear",
    "spike_linear_reference",
    "weight_gradient",
    "weight_gradient_reference",
]

MOST_VALUE = 15  # of weights whose planes are made: up to five of them
COUNTED = 1 << 18  # whole numbers in memory before they are scaled
FROM_BITS = 1 << 22  # rows·inputs·outputs, and
FEW = 32  # rows or inputs that products from bits are worth it from: below, a float32 product is as fast
FEW_OUTPUTS = 8  # likewise, of what reads bits; the tables of the inputs' gradient want FEW of them too
SHORT_BLOCK, MOST_SIGNED = 64, 2  # inputs of a block, planes of the weights in the inputs' gradient
FEW_EVENTS = 0.25  # share of spikes up to which adding them one by one beats the tables
TASK_COLUMNS = 256  # of a gradient that too few rows would keep from all threads

Words = npt.NDArray[np.int32]


class Planes(NamedTuple):
    """Whole values (N, F) as bit planes: ``v = Σ_p factor_p·plane_p + constant``."""

    words: Words
    """(P, N, ⌈F/32⌉), P >= 1."""
    factors: tuple[int, ...]
    """(P,): powers of two."""
    constant: int
    inputs: int
    """F."""


def pack_spikes(x: Tensor) -> Tensor | None:
    """x (..., F) float32 of 0 and 1 on the CPU -> int32 words (..., ⌈F/32⌉); None for a tensor with other values."""
    rows = x.shape[:-1].numel()
    words = torch.empty((*x.shape[:-1], words_for(x.shape[-1])), dtype=torch.int32)
    ones = np.empty(rows, np.int32)
    flat = as_numpy(x).reshape(rows, x.shape[-1])
    other = pack_spikes_cpu(flat, words.numpy().view(np.uint32).reshape(rows, -1), ones, work=x.numel() // 8)
    return None if other else words


def planes_of(values: Tensor) -> Planes | None:
    """The planes of values (N, F); None where one is not a whole number or beyond ±15."""
    v = as_numpy(values)
    most = float(np.abs(v).max())
    if not most <= MOST_VALUE or most != int(most) or not np.array_equal(np.rint(v), v):
        return None
    return bit_planes(values)


def bit_planes(values: Tensor) -> Planes:
    """The planes of whole numbers (N, F) in [−255, 255]: those of value + max |value|, but for planes of zeros."""
    most = int(values.abs().max())
    raised = (as_numpy(values) + most).astype(np.uint8 if most < 128 else np.uint16)
    there = int(np.bitwise_or.reduce(raised, axis=None))
    levels = [p for p in range(there.bit_length()) if there >> p & 1] or [0]
    words = np.stack([pack_bits_numpy(raised & raised.dtype.type(1 << p) != 0) for p in levels])
    return Planes(words, tuple(1 << p for p in levels), -most, values.shape[1])


def spike_linear(
    words: Tensor, inputs: int, planes: list[Planes], scale: Tensor, offset: Tensor | None, block: int
) -> Tensor:
    """``y = Σ_k scale_k·(x·values_k) + offset_k·Σx_k`` over blocks of inputs, from bits; whole numbers before the scaling.

    Each operation rounds by itself, block after block: a float product of the same numbers gives the same bits.

    Args:
        words: int32 (M, ⌈F/32⌉), on the CPU.
        inputs: F.
        planes: of the values of each block.
        scale, offset: float32 (N, blocks); None for no offset.
        block: inputs of a block, a multiple of 32 if there are several.

    Returns:
        float32 (M, N).

    Raises:
        ValueError: words of another width; blocks that do not begin with a word.
    """
    check_words(words, inputs, "spike_linear")
    if len(planes) > 1 and block % WORD_BITS:
        raise ValueError(f"spike_linear: expected blocks of a multiple of {WORD_BITS} inputs, got {block}")
    rows, outputs = words.shape[0], scale.shape[0]
    y = fresh((rows, outputs), torch.float32)
    packed, out = as_numpy(words), as_numpy(y)
    together = max(COUNTED // outputs, 256)
    counts = np.empty((min(together, rows), outputs), np.int32)
    none = np.empty(0, np.float32)
    for k, block_planes in enumerate(planes):
        first = k * block // WORD_BITS
        part = wide_words(packed[:, first : first + words_for(block_planes.inputs)])
        ones = np.bitwise_count(part).sum(-1, dtype=np.int32)
        scales, offsets = as_numpy(scale[:, k]), none if offset is None else as_numpy(offset[:, k])
        wide = [wide_words(plane) for plane in block_planes.words]
        columns = [weight_columns(plane) for plane in wide] if rows > together else [None] * len(wide)
        for lo in range(0, rows, together):
            some = counts[: min(together, rows - lo)]
            here = slice(lo, lo + len(some))
            _count(part[here], ones[here], wide, columns, block_planes, some)
            scale_products_cpu(some, ones[here], scales, offsets, k > 0, out[here], work=some.size)
    return y


def _count(
    s: npt.NDArray[np.uint64],
    ones: Words,
    wide: list[npt.NDArray[np.uint64]],
    columns: list[WeightColumns] | list[None],
    planes: Planes,
    out: Words,
) -> None:
    """out (M, N) = x·valuesᵀ."""
    shift = planes.constant * ones
    for p, (plane, turned) in enumerate(zip(wide, columns, strict=True)):
        binary_product_cpu(s, plane, turned, ones, planes.factors[p], shift, p > 0, out)
        shift = np.zeros_like(ones)


def weight_gradient(dy: Tensor, words: Tensor, inputs: int, *, backend: str | None = None) -> Tensor:
    """``dW[n, f] = Σ_m dy[m, n]·x[m, f]`` for packed 0/1 x, the sums in dy's precision.

    Args:
        dy: (M, N).
        words: int32 (M, ⌈F/32⌉).
        inputs: F.
        backend: for tests; the device and dtype decide otherwise.

    Returns:
        (N, F), of dy's dtype. Few spikes are added one by one over 128 rows and those sums in turn, else tables give the
        sums of four rows, added as a tree over 64 rows and those in turn: errors like a float32 matrix product's.

    Raises:
        ValueError: words of another width or number of rows.
    """
    check_words(words, inputs, "weight_gradient")
    if words.ndim != 2 or dy.ndim != 2 or len(words) != len(dy):
        raise ValueError(
            f"weight_gradient: expected dy and words of M rows, got {tuple(dy.shape)}, {tuple(words.shape)}"
        )
    if backend_for(dy, backend, kernel_dtypes=(torch.float32,)) != "cpu":
        return weight_gradient_reference(dy, words, inputs)
    total = WeightGradient(dy.shape[1], inputs)
    total.add(dy, words)
    return total.total()


class WeightGradient:
    """:func:`weight_gradient` of float32 on the CPU, added up over calls for some rows each.

    Args:
        outputs, inputs: N and F.
    """

    def __init__(self, outputs: int, inputs: int) -> None:
        self.outputs, self.inputs = outputs, inputs
        self._sums: Tensor | None = None  # as the events' kernel adds them
        self._total: Tensor | None = None

    def add(self, dy: Tensor, words: Tensor) -> None:
        """Add dyᵀx for dy (M, N) and words (M, ⌈F/32⌉)."""
        rows = len(dy)
        columns = _bit_columns(as_numpy(words), self.inputs)
        starts = _event_starts(columns)
        if starts[-1] <= FEW_EVENTS * rows * self.inputs:
            self._add_events(dy, columns, starts)
            return
        ones, zeros = np.ones(rows, np.float32), np.zeros(self.outputs, np.float32)
        some = _bits_product(dy, False, ones, columns[None], (1.0,), False, zeros, (self.outputs, self.inputs))
        self._total = some if self._total is None else self._total.add_(some)

    def _add_events(self, dy: Tensor, columns: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64]) -> None:
        """Spike by spike."""
        places = np.empty(starts[-1], np.uint16)
        list_events_cpu(columns, starts, places, work=columns.size * 16)
        if self._sums is None:  # torch's memory begins at a cache line
            self._sums = torch.zeros(-(-self.outputs // EVENT_WIDTH), self.inputs, EVENT_WIDTH)
        add_events_cpu(as_numpy(dy), starts, places, self._sums.numpy(), work=int(starts[-1]) * self.outputs)

    def total(self) -> Tensor:
        """The sum of all calls, (N, F)."""
        if self._sums is None:
            return torch.zeros(self.outputs, self.inputs) if self._total is None else self._total
        out = fresh((self.outputs, self.inputs), torch.float32)
        turn_sums_cpu(self._sums.numpy(), as_numpy(out), work=out.numel())
        return out if self._total is None else out.add_(self._total)


def _event_starts(columns: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Where the spikes of each chunk of rows and each column (⌈M/64⌉, F) begin in a list of all, and its length."""
    words = CHUNK // 64
    counts = np.add.reduceat(np.bitwise_count(columns), np.arange(0, len(columns), words), axis=0, dtype=np.int64)
    return np.concatenate([[0], np.cumsum(counts)])


def input_gradient(
    dy: Tensor, planes: Planes, scale: Tensor, offset: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """``dx = dy·Ŵ`` with ``Ŵ = scale·values + offset`` of one block, float32 on the CPU.

    Args:
        dy: (M, N).
        planes: of the values (N, F).
        scale, offset: (N,); None for no offset.
        out: (M, F), contiguous, to be filled; None for new memory.

    Returns:
        (M, F).
    """
    # Σ_p factor_p·plane_p = Σ_p factor_p/2·(±1)_p + half the factors' sum: signs need no second, cancelling term.
    halves = tuple(factor / 2 for factor in planes.factors)
    rest = scale * (sum(halves) + planes.constant)
    start = as_numpy(torch.mv(dy, rest if offset is None else rest + offset))
    columns = [_bit_columns(plane, planes.inputs) for plane in planes.words]
    shape = (len(dy), planes.inputs)
    return _bits_product(dy, True, as_numpy(scale), np.stack(columns), halves, True, start, shape, out)


def input_gradient_of_blocks(
    dy: Tensor, planes: Sequence[Planes | None], scale: Tensor, offset: Tensor | None, out: Tensor | None = None
) -> Tensor | None:
    """:func:`input_gradient` for blocks of inputs, scale and offset (N, blocks); None where a matrix product is as fast."""
    known = [some for some in planes if some is not None and len(some.factors) <= MOST_SIGNED]
    (rows, outputs), inputs = dy.shape, sum(some.inputs for some in known)
    large = min(rows, outputs, inputs) >= FEW and rows * inputs * outputs >= FROM_BITS
    narrow = len(known) > 1 and known[0].inputs < SHORT_BLOCK
    if not large or narrow or len(known) < len(planes) or dy.dtype != torch.float32 or dy.device.type != "cpu":
        return None
    offsets = [None] * len(known) if offset is None else offset.unbind(1)
    each = list(zip(known, scale.unbind(1), offsets, strict=True))
    if len(each) == 1:
        return input_gradient(dy, *each[0], out)
    return torch.cat([input_gradient(dy, *some) for some in each], 1, out=out)


def _bits_product(
    a: Tensor,
    turned: bool,
    scale: npt.NDArray[np.float32],
    columns: npt.NDArray[np.uint64],
    factors: tuple[float, ...],
    signs: bool,
    start: npt.NDArray[np.float32],
    shape: tuple[int, int],
    out: Tensor | None = None,
) -> Tensor:
    """:func:`tbnn.ops.spike_products.cpu.bits_product_cpu`, its work in parts for the threads there are."""
    out = fresh(shape, torch.float32) if out is None else out
    tiles = -(-shape[0] // WIDTH)
    parts = 1 if tiles >= 2 * torch.get_num_threads() else -(-shape[1] // TASK_COLUMNS)
    bits_product_cpu(
        as_numpy(a), turned, scale, columns, np.array(factors, np.float32), int(signs), start, parts, as_numpy(out),
        work=a.numel() * shape[1] // 16,
    )  # fmt: skip
    return out


def _bit_columns(words: Words, bits: int) -> npt.NDArray[np.uint64]:
    """Words (M, ⌈F/32⌉) turned: (⌈M/64⌉, F) uint64, bit m % 64 of word m // 64."""
    rows = words.shape[0]
    turned = weight_columns(wide_words(words)).words[:, :bits]
    return np.ascontiguousarray(turned.transpose(0, 2, 1)).reshape(-1, bits)[: -(-rows // 64)]
