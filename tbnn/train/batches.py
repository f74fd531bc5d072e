"""Batches of packed frames, in an order that the seed and the epoch fix."""

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from tbnn.data import AugmentedFrames, PackedFrames, collate, make
from tbnn.train.config import DataConfig

EVALUATION_BATCH = 128

# How workers start. Not forked: kernels may have started threads that a fork would not copy.
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def packed_file(data: DataConfig) -> Path:
    """The packed file of a configuration's dataset, made if need be."""
    return make(data.dataset, source=data.source, cache=data.cache, **data.frames.changes())


class EpochOrder(Sampler[int]):
    """A permutation of the samples, another one each epoch, the same for the same seed and epoch."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed, self.epoch = samples, seed, 0

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.samples, generator=epoch_generator(self.seed, self.epoch)).tolist()


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A random generator fixed by the run's seed and the epoch."""
    generator = torch.Generator()
    generator.manual_seed(((seed * 1_000_003 + epoch) * 16) % (2**63))
    return generator


def train_loader(
    frames: PackedFrames | AugmentedFrames, order: EpochOrder, batch_size: int, workers: int = 0
) -> DataLoader[Any]:
    """Packed training batches (words (T, B, W), labels (B,)); workers, if any, stay alive over the epochs."""
    return DataLoader(
        frames,
        batch_size=batch_size,
        sampler=order,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=_START if workers else None,
        persistent_workers=workers > 0,
    )


def first_batch(frames: PackedFrames, seed: int, batch_size: int) -> Tensor:
    """Words (T, B, W) of recordings drawn by the seed, to set a network's scales on before it trains."""
    words, _ = next(iter(train_loader(frames, EpochOrder(len(frames), seed), batch_size)))
    return words


def evaluation_loader(frames: PackedFrames) -> DataLoader[tuple[Tensor, int]]:
    """Packed batches in the file's order."""
    return DataLoader(frames, batch_size=EVALUATION_BATCH, collate_fn=collate)


class Waiting:
    """Batches, and the ``seconds`` that were spent waiting for them."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        for batch in self.batches:
            self.seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
        self.seconds += time.perf_counter() - start
