"""Packed files as a dataset: recordings straight from the page cache, checked when they are first read."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import has_stray_bits, words_for
from tbnn.data.hdf5 import open_hdf5
from tbnn.data.recipe import SPLITS
from tbnn.data.store import COLUMNS, StoreInfo, existing, read_structure, split_datasets


class PackedFrames(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One split of a packed file: a map-style dataset of (words, label).

    A file written without compression is mapped into memory, not read: every process and every DataLoader worker on the
    machine shares one copy, in the page cache. A gzip file is read whole, by each of them. The frames of a recording are
    compared with their checksum when they are first used.

    Args:
        path: a file that :func:`tbnn.data.make` returned.
        split: "train", "validation" or "test".

    Attributes:
        info: what the file says about itself.
        split: as given.
        frames: int32 (N, T, words), packed as in :mod:`tbnn.bits`; not compared with the checksums: see :meth:`check`.
        labels: int64 (N,), index into ``info.classes``.
        index: int64 (N,), number of the recording in the source.
        lengths: int64 (N,), frames up to each recording's end.
        events, durations: int64 (N,), events of each recording and microseconds from the first to the last.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown split; or the file is not a packed one, has another schema version, is damaged, holds
            labels outside the classes or, when they are read, ones in the padding of a word.
    """

    frames: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    events: npt.NDArray[np.int64]
    durations: npt.NDArray[np.int64]

    def __init__(self, path: str | Path, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        self.path, self.split = existing(path), split
        with open_hdf5(self.path) as file:
            self.info: StoreInfo = read_structure(file, self.path)
            datasets = split_datasets(file, split, self.path)
            columns = {name: datasets[name][()] for name in COLUMNS}
            frames = datasets["frames"]
            self._offset: int | None = frames.id.get_offset()  # None: in chunks
            self._read = frames[()] if self._offset is None else None
        self._crc: npt.NDArray[np.uint32] = columns.pop("crc")
        vars(self).update(columns)
        self._checked = np.zeros(len(self.labels), np.bool_)
        self._check_columns()
        self._map()

    def _check_columns(self) -> None:
        classes, where = len(self.info.classes), f"{self.path}: {self.split}"
        for name, low, high in (("labels", 0, classes - 1), ("lengths", 1, self.info.steps)):
            column: npt.NDArray[np.int64] = getattr(self, name)
            bad = np.flatnonzero((column < low) | (column > high))
            if bad.size:
                raise ValueError(f"{where}/{name}: expected {low}..{high}, got {column[bad[0]]} at {bad[0]}")

    def _map(self) -> None:
        if self._offset is None:
            self.frames = self._read  # pyright: ignore[reportAttributeAccessIssue]
            return
        shape = (len(self.labels), self.info.steps, words_for(self.info.bits))
        # Copy on write: torch takes the pages as they are, and nothing ever reaches the file.
        self.frames = np.memmap(self.path, np.int32, "c", self._offset, shape)

    def __getstate__(self) -> dict[str, Any]:
        """Without the map, which would be copied: a worker process maps the file itself."""
        return {key: value for key, value in vars(self).items() if key != "frames"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Recording ``index``: words int32 (T, words) and its label."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The recordings of a batch, for :func:`collate`."""
        words = torch.from_numpy(self.batch(indices))
        return list(zip(words, self.labels[indices].tolist(), strict=True))

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """The frames of several recordings, copied: int32 (B, T, words). Raises ``ValueError`` for a damaged one."""
        which = np.asarray(indices)
        new = which[~self._checked[which]]
        if new.size:
            self._check(new)
        return np.asarray(self.frames[which])

    def words(self, first: int | None = None) -> Tensor:
        """The ``first`` recordings, by default all: int32 (N, T, words), copied. Raises as :meth:`batch`."""
        return torch.from_numpy(self.batch(np.arange(len(self))[:first]))

    def check(self) -> None:
        """Compare every recording with its checksum. Raises ``ValueError`` naming the first that differs."""
        self._check(np.arange(len(self)))

    def _check(self, which: npt.NDArray[np.integer]) -> None:
        where = f"{self.path}: {self.split}: recording"
        for i in which.tolist():
            got, expected = zlib.crc32(self.frames[i].tobytes()), self._crc[i]
            if got != expected:
                told = f"expected frames of CRC-32 {expected:08x}, got {got:08x}"
                raise ValueError(f"{where} {i}: {told}; make the file again (--force true)")
            if has_stray_bits(torch.from_numpy(self.frames[i]), self.info.bits):
                raise ValueError(f"{where} {i}: expected zeros past bit {self.info.bits} of a frame, got ones")
        self._checked[which] = True


def collate(samples: "Sequence[tuple[Tensor, int | Tensor]]") -> tuple[Tensor, Tensor]:
    """Batch samples of :class:`PackedFrames` or :class:`AugmentedFrames`; time is axis 0.

    Returns:
        Words int32 (T, B, words), and labels int64 (B,) or, where samples were mixed, shares of classes (B, classes).
    """
    words, labels = zip(*samples, strict=True)
    return torch.stack(words, dim=1), torch.stack([torch.as_tensor(label) for label in labels])
