"""Random recordings of a recipe, as bits and as splits to write."""

import numpy as np

from tbnn.bits import pack_bits_numpy
from tbnn.data.recipe import SPLITS
from tbnn.data.store import PackedSplit


def random_splits(recipe, sizes=(7, 3, 4), seed=0):
    """Unpacked frames (N, T, bits) and the splits made of them."""
    rng = np.random.default_rng(seed)
    bits, splits = {}, {}
    for name, size in zip(SPLITS, sizes, strict=True):
        bits[name] = rng.integers(0, 2, (size, recipe.frames.frames, recipe.frame_sensor.bits), np.uint8)
        labels = rng.integers(0, len(recipe.classes), size)
        splits[name] = PackedSplit.of(pack_bits_numpy(bits[name]), labels, rng.integers(0, 1000, size))
    return bits, splits
