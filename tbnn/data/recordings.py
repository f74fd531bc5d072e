"""The recordings of one split of a source, read one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events


@dataclass(frozen=True, eq=False)
class Recordings:
    """N recordings of a source: what is known of each, and how to read it.

    Attributes:
        labels: int64 (N,), index into the recipe's classes.
        index: int64 (N,), number of the recording in the source, no two alike within a split.
        names: (N,) what a recording is called in messages and in hash splits: file and record.
        read: the events of recording i (0 <= i < N), in time order, times in microseconds from the recording's start;
            raises ``ValueError`` that starts with the file's path.
        groups: int64 (N,), the person or speaker, where the source tells.
        words: sources of ready 0/1 frames only: the packed frames (T, words) of recording i, instead of ``read``.
    """

    labels: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]
    names: Sequence[str]
    read: Callable[[int], Events]
    groups: npt.NDArray[np.int64] | None = None
    words: Callable[[int], npt.NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: npt.NDArray[np.integer]) -> "Recordings":
        """The recordings number ``which`` (M,), in that order."""
        read, words = self.read, self.words
        names: list[str] = [self.names[int(i)] for i in which]
        return Recordings(
            self.labels[which],
            self.index[which],
            names,
            lambda i: read(int(which[i])),
            None if self.groups is None else self.groups[which],
            None if words is None else lambda i: words(int(which[i])),
        )
