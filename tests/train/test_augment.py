"""Augmentation of training batches."""

import torch

from tbnn import pack_bits
from tbnn.train import DataConfig
from tbnn.train.augment import drop_bits, shift_frames
from tbnn.train.batches import EpochOrder, augmented, epoch_generator


def test_shift_moves_each_sample_as_one_and_loses_what_leaves() -> None:
    torch.manual_seed(0)
    x = (torch.rand(4, 30, 2, 5, 7) < 0.5).float()
    out = shift_frames(x, 2, epoch_generator(0, 1))
    seen = set()
    for b in range(x.shape[1]):
        moves = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                moved = torch.zeros_like(x[:, b])
                for y in range(5):
                    for z in range(7):
                        if 0 <= y + dy < 5 and 0 <= z + dx < 7:
                            moved[:, :, y + dy, z + dx] = x[:, b, :, y, z]
                if torch.equal(moved, out[:, b]):
                    moves.append((dy, dx))
        assert len(moves) == 1
        seen.update(moves)
    assert len(seen) > 10


def test_shift_larger_than_the_sensor_is_no_error() -> None:
    out = shift_frames(torch.ones(1, 200, 1, 2, 1), 3, epoch_generator(0, 0))
    assert 0 < out.sum() < 200


def test_drop_erases_the_asked_share_and_adds_nothing() -> None:
    x = (torch.rand(10, 10, 100) < 0.5).float()
    out = drop_bits(x, 0.3, epoch_generator(7, 2))
    assert torch.all(out <= x)
    assert abs(out.sum() / x.sum() - 0.7) < 0.03


def test_without_augmentation_words_stay_packed() -> None:
    words = pack_bits(torch.rand(3, 2, 24) < 0.5)
    assert augmented(words, DataConfig(), (2, 3, 4), epoch_generator(0, 0)) is words


def test_order_is_a_permutation_fixed_by_seed_and_epoch() -> None:
    order, same, other = EpochOrder(50, 3), EpochOrder(50, 3), EpochOrder(50, 4)
    first = list(order)
    assert sorted(first) == list(range(50))
    assert first == list(same) != list(other)
    order.epoch = 1
    assert list(order) != first
