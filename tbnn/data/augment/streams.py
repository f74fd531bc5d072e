"""Random numbers by counter: a draw depends on its seed, epoch, sample, purpose and number alone, not on what was drawn before.

splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, with the constants of
Vigna's implementation) gives draw n of a stream; the stream's key folds the seed, the epoch, the sample's number and the
purpose into 64 bits, one after the other, each by a bijection, so that no two samples of an epoch share a key.
"""

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FACTOR_1 = 0xBF58476D1CE4E5B9
FACTOR_2 = 0x94D049BB133111EB

# Purposes: what a stream is for. bits.py is compiled with them, and its cache does not see a change here.
DROP, DROP_TIME, DROP_AREA, CROP, TIME_JITTER, TIME_SHIFT, FLIP, SHIFT, POLARITY_FLIP = range(9)
CUT_MIX, BOX, PARTNER, PARTNER_SAMPLE, GENERATOR = range(9, 14)


def mix64(z: int) -> int:
    """The output function of splitmix64, a bijection of 0 .. 2^64 - 1."""
    z = ((z ^ (z >> 30)) * FACTOR_1) & MASK
    z = ((z ^ (z >> 27)) * FACTOR_2) & MASK
    return z ^ (z >> 31)


def fold(key: int, value: int) -> int:
    """The key of the stream ``value`` below ``key``."""
    return mix64(((key ^ value) + GOLDEN) & MASK)


def sample_key(seed: int, epoch: int, index: int) -> int:
    """The key below which the streams of one sample in one epoch lie."""
    return fold(fold(fold(0, seed), epoch), index)


def draw(key: int, n: int) -> int:
    """Draw ``n`` of a stream: the (n + 1)-th output of splitmix64 with state ``key``, in 0 .. 2^64 - 1."""
    return mix64((key + (n + 1) * GOLDEN) & MASK)


def below(key: int, n: int, size: int) -> int:
    """Draw ``n`` as a whole number in 0 .. size - 1, size <= 2^31; no value is off 1/size by more than 2^-32."""
    return ((draw(key, n) >> 32) * size) >> 32


def unit(key: int, n: int) -> float:
    """Draw ``n`` as a multiple of 2^-53 in [0, 1)."""
    return (draw(key, n) >> 11) * 2.0**-53


def check_sample(seed: int, epoch: int, lowest_index: int) -> None:
    """Raise ``ValueError`` unless seed, epoch and sample number are 0 or more and fit 63 bits."""
    for name, value in (("seed", seed), ("epoch", epoch), ("index", lowest_index)):
        if not 0 <= value < 1 << 63:
            raise ValueError(f"{name}: expected a whole number in 0 .. 2^63 - 1, got {value}")


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample in one epoch: the same whichever worker, thread or batch asks for it.

    Philox (Salmon et al., SC 2011), keyed by :func:`sample_key`.

    Args:
        seed: of the whole training, 0 or more.
        epoch: number of the pass over the data, 0 or more.
        index: the sample's number in the data set, 0 or more.

    Raises:
        ValueError: a negative number.

    >>> bool(sample_rng(0, 1, 2).random() == sample_rng(0, 1, 2).random())
    True
    """
    check_sample(seed, epoch, index)
    return np.random.Generator(np.random.Philox(key=fold(sample_key(seed, epoch, index), GENERATOR)))
