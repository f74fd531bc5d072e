"""The whole numbers behind a layer's currents, kept in place of these, and their moments."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tbnn.ops.layer_lif.cpu import hold_counts
from tbnn.ops.lif.memory import reused

if TYPE_CHECKING:
    from tbnn.ops.layer_lif.products import Products
    from tbnn.ops.layer_lif.weighted import Weights

Array = np.ndarray[Any, Any]

PIECE = 1 << 18  # whole numbers counted at a time: 1 MB of int32, which the caches hold until they are added up
TASKS = 16
SHORT = np.iinfo(np.int16).max


class Moments(NamedTuple):
    """Mean and variance of a layer's currents over time, batch and space."""

    mean: Array
    """(C,) float64"""
    var: Array
    """(C,) float64, biased."""
    values: int
    """How many of a channel."""


class Counts(NamedTuple):
    """Whole numbers of some steps, int16 or int32."""

    product: Tensor
    """(T, B, F): Σ value·spike."""
    ones: Tensor
    """(T, B, groups·pixels): the spikes under each window; none for weights without an offset, but of linear layers."""

    def part(self, lo: int, hi: int) -> "Counts":
        """Steps lo … hi."""
        return Counts(self.product[lo:hi], self.ones[lo:hi])


def count_layout(weights: "Weights") -> tuple[torch.dtype, int]:
    """The type that holds a layer's whole numbers, and how many :attr:`Counts.ones` there are a step and sample."""
    row = weights.values[0].numel()
    most = row * max(1, int(weights.values.abs().max()))
    conv = weights.convolution
    ones = (
        1
        if conv is None
        else 0
        if weights.offset is None
        else conv.groups * conv.windows.counts[0] * conv.windows.counts[1]
    )
    return torch.int16 if most <= SHORT else torch.int32, ones


def count_bytes(weights: "Weights", features: int) -> int:
    """Bytes of a step's whole numbers of one sample."""
    dtype, ones = count_layout(weights)
    return dtype.itemsize * (features + ones)


def counts_of(products: "Products", words: Array, lengths: Array, room: Counts, moments: bool) -> Moments | None:
    """Fill ``room`` with the whole numbers of packed spikes (T, B, words), int32; their currents' ``moments`` if asked for.

    Steps past a sequence's ``lengths`` (B,) do not count.
    """
    steps, batch, features = room.product.shape
    frames, ones = words.reshape(steps * batch, -1), products.ones
    alive = (np.arange(steps)[:, None] < lengths).reshape(-1)
    together = min(len(frames), max(TASKS, PIECE // features))
    product, total = np.empty((together, features), np.int32), np.empty((together, ones), np.int32)
    tasks, groups = (TASKS if moments else 0), products.groups
    sums, sums_ones = np.zeros((tasks, 3, products.outputs), np.int64), np.zeros((tasks, 2, groups), np.int64)
    whole, whole_ones = np.zeros((3, products.outputs), np.int64), np.zeros((2, groups), np.int64)
    held, held_ones = room.product.numpy().reshape(len(frames), -1), room.ones.numpy().reshape(len(frames), -1)
    for lo in range(0, len(frames), together):
        hi = min(lo + together, len(frames))
        some, more = product[: hi - lo], total[: hi - lo]
        products.count(frames[lo:hi], some, more)
        hold_counts(
            some, more, alive[lo:hi], held[lo:hi], held_ones[lo:hi], sums, sums_ones, work=some.size
        )  # fmt: skip
        whole += sums.sum(0)
        whole_ones += sums_ones.sum(0)
    if not moments:
        return None
    count = int(alive.sum()) * (features // products.outputs)
    return _moments(products, whole, whole_ones, count)


def _moments(products: "Products", sums: Array, sums_ones: Array, count: int) -> Moments:
    """Of the currents ``scale·p + offset·n + bias`` from the exact sums of p and n."""
    (p, pp, pn), n = sums.astype(np.float64), max(count, 1)
    ones, squares = (np.repeat(row, products.outputs // len(row)) for row in sums_ones.astype(np.float64))
    scale, offset, bias = products.constants()
    var = (
        scale**2 * (pp - p * p / n) + 2 * scale * offset * (pn - p * ones / n) + offset**2 * (squares - ones * ones / n)
    )
    return Moments(scale * (p / n) + offset * (ones / n) + bias, np.maximum(var / n, 0), count)


def moments_of(products: "Products", words: Array, lengths: Array, features: int) -> Moments:
    """The moments of a layer whose rows have several blocks, from its currents."""
    steps, batch, _ = words.shape
    outputs = products.outputs
    total, squares, count, shift = np.zeros(outputs), np.zeros(outputs), 0, np.zeros(outputs)
    for t in range(steps):
        current = np.empty((1, batch, features), products.dtype)
        products.current(words[t : t + 1], current)
        some = current[0, lengths > t].astype(np.float64).reshape(-1, outputs, features // outputs)
        if count == 0 and some.size:
            shift = some.mean((0, 2))  # from near the mean, squares do not cancel
        some -= shift[:, None]
        total, squares = total + some.sum((0, 2)), squares + (some * some).sum((0, 2))
        count += some.shape[0] * some.shape[2]
    n = max(count, 1)
    return Moments(shift + total / n, np.maximum(squares / n - (total / n) ** 2, 0), count)


def room_for(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for whole numbers, a freed array's where one of this size waits."""
    count = int(np.prod(shape))
    if count * dtype.itemsize % 4 == 0 and count:
        return reused((count * dtype.itemsize // 4,), torch.float32).view(dtype).view(shape)
    return torch.from_numpy(np.empty(shape, np.int16 if dtype == torch.int16 else np.int32))
