"""The same variation with any number of data loader workers. Few imports here: every worker repeats them."""

import numpy as np
import pytest
import torch

from tbnn.bits import pack_bits_numpy
from tbnn.data.augment import Augment, augment_events, augment_words, sample_rng
from tbnn.data.events import Events, events_to_frames

SENSOR = (2, 6, 9)


class Varied(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Six samples, varied as events and binned; and binned and varied as packed bits."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(i)
        x, y, p = (rng.integers(0, size, 50) for size in (9, 6, 2))
        events = Events(x, y, np.sort(rng.integers(0, 1000, 50)), p)
        augment = Augment(shift=2, flip=True, drop=0.3, time_jitter=1, crop=1, polarity_flip=True)
        varied, _ = augment_events(events, SENSOR, augment, sample_rng(1, 2, i), frame_us=100)
        frames = [events_to_frames(e, SENSOR, 100, 10).reshape(1, 10, -1) for e in (events, varied)]
        words = augment_words(pack_bits_numpy(frames[0]), SENSOR, augment, 1, 2, np.array([i])).words
        return torch.from_numpy(words), torch.from_numpy(pack_bits_numpy(frames[1]))


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_a_sample_is_the_same_with_any_number_of_workers(workers: int) -> None:
    alone = torch.utils.data.DataLoader(Varied(), batch_size=2)
    # Forked workers would share what threads of this process are doing.
    shared = torch.utils.data.DataLoader(Varied(), batch_size=2, num_workers=workers, multiprocessing_context="spawn")
    for kind, again in zip(zip(*alone, strict=True), zip(*shared, strict=True), strict=True):
        assert torch.equal(torch.cat(kind), torch.cat(again))
        assert len({sample.numpy().tobytes() for sample in torch.cat(kind)}) == 6
