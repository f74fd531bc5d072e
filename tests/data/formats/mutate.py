"""Damaged copies of a file, to try a reader on."""

from collections.abc import Callable, Iterator

import numpy as np

Mutator = Callable[[bytes, np.random.Generator], bytes]


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut at a random place, or a few bytes before the end."""
    last = len(data)
    return data[: rng.integers(last) if rng.random() < 0.7 else last - min(last, 1 + rng.integers(9))]


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bits anywhere turned over."""
    out = bytearray(data)
    for at in rng.integers(0, len(out), 1 + rng.integers(8)):
        out[at] ^= 1 << rng.integers(8)
    return bytes(out)


def flip_header(data: bytes, rng: np.random.Generator) -> bytes:
    """As ``flip_bits``, among the first 256 bytes."""
    return flip_bits(data[:256], rng) + data[256:]


def set_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """A run of up to 8 bytes set to 0, to 255, or to random values: sizes and offsets at their worst."""
    at, length = rng.integers(len(data)), 1 + rng.integers(8)
    value = (bytes(8), b"\xff" * 8, rng.bytes(8), b"\x7f" + b"\xff" * 7)[rng.integers(4)]
    return data[:at] + value[: min(length, len(data) - at)] + data[at + length :]


def set_header(data: bytes, rng: np.random.Generator) -> bytes:
    """As ``set_bytes``, among the first 256 bytes."""
    return set_bytes(data[:256], rng) + data[256:]


def drop_piece(data: bytes, rng: np.random.Generator) -> bytes:
    """Up to 64 bytes taken out."""
    at = rng.integers(len(data))
    return data[:at] + data[at + 1 + rng.integers(64) :]


def insert_piece(data: bytes, rng: np.random.Generator) -> bytes:
    """Up to 64 random bytes put in."""
    at = rng.integers(len(data) + 1)
    return data[:at] + rng.bytes(int(rng.integers(1, 65))) + data[at:]


def repeat_piece(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece of the file copied over another place of it."""
    a, b, length = rng.integers(len(data)), rng.integers(len(data)), 1 + rng.integers(64)
    piece = data[a : a + length]
    return (data[:b] + piece + data[b + len(piece) :])[: len(data)]


def append_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Random bytes after the end."""
    return data + rng.bytes(int(rng.integers(1, 41)))


def random_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Nothing of the file but, half of the time, its first 16 bytes."""
    return data[: 16 * rng.integers(2)] + rng.bytes(int(rng.integers(400)))


MUTATORS: tuple[Mutator, ...] = (
    truncate,
    flip_bits,
    flip_header,
    set_bytes,
    set_header,
    drop_piece,
    insert_piece,
    repeat_piece,
    append_bytes,
    random_bytes,
)


def mutations(data: bytes, rng: np.random.Generator, n: int) -> Iterator[bytes]:
    """n damaged copies of ``data`` (at least 1 byte): the mutators in turn, now and then two after each other."""
    for i in range(n):
        damaged = MUTATORS[i % len(MUTATORS)](data, rng)
        if damaged and rng.random() < 0.2:
            damaged = MUTATORS[rng.integers(len(MUTATORS))](damaged, rng)
        yield damaged
