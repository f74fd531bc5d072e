"""Packed recordings, varied anew each epoch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tbnn.data.augment import Augment, augment_words, partner_of
from tbnn.data.packed import PackedFrames


class AugmentedFrames(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A split whose recordings are varied by ``augment``, on their packed bits.

    The variation of a recording is fixed by the seed, the epoch and its number: the same in whatever batch it comes, with
    any number of workers and processes.

    Args:
        frames: the recordings.
        augment: how they are varied.
        seed: of all draws.

    Attributes:
        epoch: set it before an epoch begins; worker processes, those already running too, see it at once.

    Items are (words int32 (T, words), label int64 ()), or with ``augment.cut_mix`` (words, shares float32 (classes,)): how
    much of the recording is of which class. :func:`tbnn.data.collate` batches both.
    """

    def __init__(self, frames: PackedFrames, augment: Augment, seed: int = 0) -> None:
        self.frames, self.augment, self.seed = frames, augment, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that the variation belongs to."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Recording ``index``, varied."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The recordings of a batch, varied."""
        if not self.augment:
            return [(words, torch.tensor(label)) for words, label in self.frames.__getitems__(indices)]
        frames, where = self.frames, (self.seed, self.epoch, np.asarray(indices, np.int64))
        partners = partner_of(*where, len(frames)) if self.augment.cut_mix else None
        words, mix = augment_words(
            frames.batch(indices),
            frames.info.sensor,
            self.augment,
            *where,
            partners=None if partners is None else frames.batch(partners),
        )
        labels = torch.from_numpy(frames.labels[indices])
        if partners is not None:
            share = torch.from_numpy(mix).unsqueeze(1)
            own, other = (
                torch.nn.functional.one_hot(classes, len(frames.info.classes))
                for classes in (labels, torch.from_numpy(frames.labels[partners]))
            )
            labels = share * own + (1 - share) * other
        return list(zip(torch.from_numpy(words), labels, strict=True))
