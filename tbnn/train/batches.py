"""Batches of packed frames, in an order that the seed and the epoch fix."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from tbnn.bits import unpack_bits
from tbnn.data import PackedFrames, collate
from tbnn.train.augment import drop_bits, shift_frames
from tbnn.train.config import DataConfig

EVALUATION_BATCH = 128


class EpochOrder(Sampler[int]):
    """A permutation of the samples, another one each epoch, the same for the same seed and epoch."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed, self.epoch = samples, seed, 0

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.samples, generator=epoch_generator(self.seed, self.epoch)).tolist()


def epoch_generator(seed: int, epoch: int, stream: int = 0) -> torch.Generator:
    """A random generator fixed by the run's seed, the epoch and a stream number (0: order, 1: augmentation)."""
    generator = torch.Generator()
    generator.manual_seed(((seed * 1_000_003 + epoch) * 16 + stream) % (2**63))
    return generator


def train_loader(frames: PackedFrames, order: EpochOrder, batch_size: int) -> DataLoader[tuple[Tensor, int]]:
    """Packed training batches (words (T, B, W), labels (B,)); no workers, since the bits lie in memory."""
    return DataLoader(frames, batch_size=batch_size, sampler=order, collate_fn=collate)


def evaluation_loader(frames: PackedFrames) -> DataLoader[tuple[Tensor, int]]:
    """Packed batches in the file's order."""
    return DataLoader(frames, batch_size=EVALUATION_BATCH, collate_fn=collate)


def augmented(words: Tensor, data: DataConfig, sensor: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """A training batch as the network gets it: packed words as they are, or varied 0/1 frames (T, B, bits)."""
    if not data.shift and not data.drop:
        return words
    channels, height, width = sensor
    x = unpack_bits(words.cpu(), channels * height * width)
    if data.shift:
        x = shift_frames(x.unflatten(2, (channels, height, width)), data.shift, generator).flatten(2)
    if data.drop:
        x = drop_bits(x, data.drop, generator)
    return x.to(words.device)
