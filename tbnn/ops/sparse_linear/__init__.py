"""Packed 0/1 spikes times weights of which few are not 0, as lists of connections."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tbnn.bits import check_words, wide_words
from tbnn.ops.kernels import as_numpy, backend_for
from tbnn.ops.sparse_linear import cpu
from tbnn.ops.sparse_linear.cpu import Lists
from tbnn.ops.sparse_linear.reference import dense_values, sparse_linear_reference

__all__ = [
    "Lists",
    "SparseColumns",
    "dense_values",
    "index_dtype",
    "lists_of",
    "sparse_linear",
    "sparse_linear_reference",
]

MOST_CONNECTIONS = 2**31 - 1  # starts are int32
FAULTS = {
    cpu.UNSORTED: "expected every list in ascending order, each output once",
    cpu.OUTSIDE: "expected outputs below {}",
    cpu.TWICE: "expected a weight that is positive or negative, got an output in both lists of its input",
}


def index_dtype(out_features: int) -> torch.dtype:
    """How an output's index is kept: uint16 where all fit, else int32."""
    return torch.uint16 if out_features <= 2**16 else torch.int32


@dataclass(frozen=True, eq=False)
class SparseColumns:
    """Signed sparse weights by input: for each input its positive connections' outputs, then its negative ones'.

    Attributes:
        starts: int32 (2·inputs + 1,): list 2·i, input i's positive connections, is ``outputs[starts[2i] : starts[2i + 1]]``,
            and list 2·i + 1 its negative ones.
        outputs: uint16, int32 beyond 65536 outputs, (connections,): ascending in each list.
        out_features: how many outputs there are.
        magnitudes: uint8 (connections,) from 1: of each weight; None where all are 1.
        name: how errors begin.

    Raises ``ValueError`` for other dtypes and shapes, starts or lists out of order, an output out of range, or in both
    lists of an input, and a magnitude of 0: what the kernels then trust.
    """

    starts: Tensor
    outputs: Tensor
    out_features: int
    magnitudes: Tensor | None = None
    name: str = "SparseColumns"

    def __post_init__(self) -> None:
        starts, outputs, magnitudes = self.starts, self.outputs, self.magnitudes
        if starts.dtype != torch.int32 or starts.ndim != 1 or len(starts) % 2 == 0 or len(starts) < 3:
            raise ValueError(
                f"{self.name}.starts: expected int32 (2*inputs + 1,), got {starts.dtype} {tuple(starts.shape)}"
            )
        dtype = index_dtype(self.out_features)
        if self.out_features < 1 or outputs.dtype != dtype or outputs.ndim != 1:
            raise ValueError(
                f"{self.name}.outputs: expected {dtype} (connections,) for {self.out_features} outputs, "
                f"got {outputs.dtype} {tuple(outputs.shape)}"
            )
        ends = int(starts[0]), int(starts[-1])
        if ends != (0, len(outputs)) or bool((starts[1:] < starts[:-1]).any()):
            raise ValueError(
                f"{self.name}.starts: expected 0 to {len(outputs)} in ascending order, got {ends[0]} to {ends[1]}"
                + (" with steps back" if ends == (0, len(outputs)) else "")
            )
        if magnitudes is not None and (magnitudes.dtype != torch.uint8 or magnitudes.shape != outputs.shape):
            raise ValueError(
                f"{self.name}.magnitudes: expected torch.uint8 {tuple(outputs.shape)}, "
                f"got {magnitudes.dtype} {tuple(magnitudes.shape)}"
            )
        if magnitudes is not None and not bool(magnitudes.all()):
            raise ValueError(f"{self.name}.magnitudes: expected 1 or more, got 0")
        self._check_lists()

    def _check_lists(self) -> None:
        lists = lists_of(self.starts.cpu(), self.outputs.cpu(), None)
        fault, where = cpu.check_lists(lists.starts, lists.outputs, self.out_features)
        if fault != cpu.SORTED:
            expected = FAULTS[fault].format(self.out_features)
            raise ValueError(f"{self.name}.outputs: {expected}, got {lists.outputs[where]} at {where}")

    @property
    def in_features(self) -> int:
        """How many inputs there are."""
        return len(self.starts) // 2


def lists_of(starts: Tensor, outputs: Tensor, magnitudes: Tensor | None) -> Lists:
    """The tensors of :class:`SparseColumns`, on the CPU, as the kernels take them; no copies."""
    indices = as_numpy(outputs)
    return Lists(
        as_numpy(starts),
        indices if indices.dtype == np.uint16 else indices.view(np.uint32),
        np.empty(0, np.uint8) if magnitudes is None else as_numpy(magnitudes),
    )


def sparse_linear(spikes: Tensor, columns: SparseColumns, *, backend: str | None = None) -> Tensor:
    """``y = Σ_i s_i·w_i`` for packed spikes s ∈ {0,1} and sparse whole-numbered weights w.

    Args:
        spikes: int32 words (..., ceil(inputs/32)); bits past the inputs count for nothing.
        columns: the weights.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        int32 (..., out_features).

    Raises:
        ValueError: words of another dtype or width, tensors on two devices.

    >>> columns = SparseColumns(torch.tensor([0, 1, 1, 1, 2], dtype=torch.int32), torch.tensor([2, 0]).to(torch.uint16), 3)
    >>> sparse_linear(torch.tensor([[3]], dtype=torch.int32), columns)
    tensor([[-1,  0,  1]], dtype=torch.int32)
    """
    check_words(spikes, columns.in_features, "sparse_linear: spikes")
    if spikes.device != columns.starts.device:
        raise ValueError(f"sparse_linear: expected columns on {spikes.device}, got {columns.starts.device}")
    rows = spikes.reshape(-1, spikes.shape[-1])
    if backend_for(rows, backend, kernel_dtypes=(torch.int32,)) == "cpu":
        product = torch.empty((len(rows), columns.out_features), dtype=torch.int32)
        s = wide_words(as_numpy(rows))
        lists = lists_of(columns.starts, columns.outputs, columns.magnitudes)
        work = int(np.bitwise_count(s).sum(dtype=np.int64)) * len(lists.outputs) // columns.in_features
        cpu.sparse_product_cpu(s, lists, torch.get_num_threads(), as_numpy(product), work=work)
    else:
        values = dense_values(columns.starts, columns.outputs, columns.out_features, columns.magnitudes)
        product = sparse_linear_reference(rows, values)
    return product.reshape(*spikes.shape[:-1], columns.out_features)
