"""The sides of a product of spikes and weights: packed (dense, event-driven, the chosen one) and torch's."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from tbnn.bits import pack_bits_numpy, wide_words
from tbnn.ops.binary_linear.choice import binary_product_cpu
from tbnn.ops.binary_linear.cpu import binary_counts_cpu
from tbnn.ops.binary_linear.events import WeightColumns, binary_events_cpu, weight_columns
from tbnn.ops.sparse_linear import SparseColumns, index_dtype, sparse_linear

DENSE, EVENTS, CHOSEN = "dense packed", "event-driven", "the chosen one"
FP32, BF16, INT8 = "torch fp32 matmul", "torch bf16 matmul", "torch int8 matmul"
LISTS = "index lists"
CSR, CSR_WEIGHTS = "torch sparse CSR matmul", "torch matmul of CSR weights"

Size = tuple[int, int, int]
Sides = dict[str, Callable[[], Any]]


class Operands(NamedTuple):
    """0/1 spikes (M, K) bool and weights (N, K) int8 of −1, 0 and 1."""

    spikes: np.ndarray
    weights: np.ndarray

    @property
    def product(self) -> np.ndarray:
        """What every side has to give, int32 (M, N)."""
        # Sums of whole numbers far below 2^24 are exact in float32.
        return (self.spikes.astype(np.float32) @ self.weights.astype(np.float32).T).astype(np.int32)


def operands(size: Size, density: float, weight_density: float = 1.0) -> Operands:
    """Random spikes and weights, so many of them not 0."""
    (m, k, n), rng = size, np.random.default_rng(0)
    spikes = rng.random((m, k)) < density
    weights = np.where(rng.random((n, k)) < 0.5, 1, -1)
    if weight_density < 1:
        weights = weights * (rng.random((n, k)) < weight_density)
    return Operands(spikes, weights.astype(np.int8))


class Plane(NamedTuple):
    """A bit plane of the weights: its words, their columns, what a bit counts, and what every spike counts besides."""

    words: np.ndarray
    columns: WeightColumns
    factor: int
    constant: int


def planes_of(weights: np.ndarray) -> list[Plane]:
    """One plane for ±1, two where there are zeros."""
    if (weights != 0).all():
        parts = [(weights > 0, 2, -1)]
    else:
        parts = [(weights > 0, 1, 0), (weights < 0, -1, 0)]
    words = [(wide_words(pack_bits_numpy(bits)), factor, constant) for bits, factor, constant in parts]
    return [Plane(w, weight_columns(w), factor, constant) for w, factor, constant in words]


def packed_sides(given: Operands) -> Sides:
    """The three packed products into int32 (M, N). The weights' columns are made beforehand, as a layer makes them once."""
    spikes, planes = wide_words(pack_bits_numpy(given.spikes)), planes_of(given.weights)
    m, n = len(given.spikes), len(given.weights)
    ones, out = given.spikes.sum(1, dtype=np.int32), np.empty((m, n), np.int32)
    shifts = [np.int32(plane.constant) * ones for plane in planes]
    work = m * planes[0].words.size // 16

    def through(product: Callable[[Plane, np.ndarray, bool], None]) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            for j, plane in enumerate(planes):
                product(plane, shifts[j], j > 0)
            return out

        return run

    def dense(plane: Plane, shift: np.ndarray, add: bool) -> None:
        binary_counts_cpu(spikes, plane.words, np.int32(plane.factor), shift, add, out, work=work)

    def events(plane: Plane, shift: np.ndarray, add: bool) -> None:
        binary_events_cpu(spikes, ones, plane.columns, plane.factor, shift, add, out, work=work if m > 1 else 1)

    def chosen(plane: Plane, shift: np.ndarray, add: bool) -> None:
        binary_product_cpu(spikes, plane.words, plane.columns, ones, plane.factor, shift, add, out)

    return {DENSE: through(dense), EVENTS: through(events), CHOSEN: through(chosen)}


def list_side(given: Operands) -> Sides:
    """The product of sparse weights as lists of connections, made beforehand as well."""
    inputs, outputs = np.nonzero(given.weights.T)
    lists = 2 * inputs + (given.weights[outputs, inputs] < 0)  # an input's positive connections, then its negative ones
    order, count = np.argsort(lists, kind="stable"), np.bincount(lists, minlength=2 * given.weights.shape[1])
    starts = torch.from_numpy(np.concatenate([[0], count.cumsum()]).astype(np.int32))
    n = len(given.weights)
    columns = SparseColumns(starts, torch.from_numpy(outputs[order]).to(index_dtype(n)), n)
    words = torch.from_numpy(pack_bits_numpy(given.spikes))
    return {LISTS: lambda: sparse_linear(words, columns)}


def float_sides(given: Operands) -> Sides:
    """torch's dense matmuls, into memory that is there already, as ours."""
    spikes, weights = (torch.from_numpy(a) for a in (given.spikes, given.weights))
    m, n = len(spikes), len(weights)

    def matmul(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        a, b, out = spikes.to(dtype), weights.to(dtype).T.contiguous(), torch.empty((m, n), dtype=dtype)
        return lambda: torch.mm(a, b, out=out)

    return {FP32: matmul(torch.float32), BF16: matmul(torch.bfloat16)}


def int8_side(given: Operands) -> Sides:
    """torch's int8 matmul; nothing, and a note, where this torch has none for the CPU."""
    a = torch.from_numpy(given.spikes).to(torch.int8)
    b = torch.from_numpy(given.weights).T.contiguous()
    out = torch.empty((len(given.spikes), len(given.weights)), dtype=torch.int32)
    matmul: Any = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]
    try:
        matmul(a, b, out=out)
    except (RuntimeError, NotImplementedError) as error:
        print(f"{INT8}: left out: {str(error).splitlines()[0]}")
        return {}
    return {INT8: lambda: matmul(a, b, out=out)}


def sparse_sides(given: Operands) -> Sides:
    """torch's products of CSR spikes, and of CSR weights where some are 0; the CSR form is made beforehand."""
    spikes, weights = (torch.from_numpy(a).float() for a in (given.spikes, given.weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR support a beta
        rows, turned = spikes.to_sparse_csr(), weights.T.contiguous()
        sides: Sides = {CSR: lambda: rows @ turned}
        if (given.weights == 0).any():
            sparse, columns = weights.to_sparse_csr(), spikes.T.contiguous()
            sides[CSR_WEIGHTS] = lambda: (sparse @ columns).T
    return sides


def check(name: str, sides: Sides, expected: np.ndarray) -> None:
    """End the program unless every side gives the product: equal, in bfloat16 but for its rounding."""
    for side, run in sides.items():
        got = run()
        if isinstance(got, torch.Tensor):
            got = got.float().numpy()
        error = 2**-7 * np.abs(expected) if side == BF16 else 0
        if not (np.abs(got - expected) <= error).all():
            raise SystemExit(f"{name}: {side} differs from the sum")
