"""Packed neurons against their definition, bit for bit: currents, membranes, spikes, the feedback's loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.bits import pack_bits, unpack_bits, wide_words
from tbnn.ops.binary_linear import weight_columns
from tbnn.ops.lif.cpu import RESETS
from tbnn.ops.packed_lif.cpu import (
    NO_VALUES,
    NOTHING,
    Drive,
    drive_of,
    drive_values,
    neurons_of,
    packed_integrate,
    packed_scan,
)
from tbnn.ops.packed_lif.recurrent import feedback_of, packed_recurrent
from tbnn.ops.packed_lif.reference import drive_reference, packed_lif_reference

NONE_SEEN = np.empty((0, 0, 0), np.float32)
UNWATCHED = np.empty(0, np.int64)


def random_drive(
    steps: int, batch: int, channels: int, pixels: int, groups: int, parts: tuple[bool, bool, bool], seed: int
) -> tuple[Drive, Tensor]:
    """A drive and its currents."""
    generator = torch.Generator().manual_seed(seed)
    shape = steps, batch, channels * pixels
    product = torch.randint(-40, 40, shape, dtype=torch.int32, generator=generator)
    ones = torch.randint(0, 40, (steps, batch, groups * pixels), dtype=torch.int32, generator=generator)
    scale, *rest = (torch.randn(channels, generator=generator) for _ in range(3))
    offset, bias = (values if there else None for values, there in zip(rest, parts[:2], strict=True))
    added = torch.randn(shape, generator=generator) if parts[2] else None
    arrays = (NOTHING if values is None else values.numpy() for values in (offset, bias))
    drive = Drive(product.numpy(), ones.numpy(), scale.numpy(), *arrays, NO_VALUES if added is None else added.numpy())
    return drive, drive_reference(product, ones, scale, offset, bias, added)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    steps=st.integers(1, 5),
    batch=st.integers(1, 3),
    layout=st.sampled_from(
        [(1, 1, 1), (33, 1, 1), (600, 1, 1), (6, 49, 1), (8, 33, 2), (2, 300, 2), (1, 65, 1), (4, 7, 4), (4, 1, 2)]
    ),
    parts=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    own=st.tuples(st.booleans(), st.booleans()),
    reset=st.sampled_from(sorted(RESETS)),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_scan_is_its_definition(steps, batch, layout, parts, own, reset, seed):
    drive, current = random_drive(steps, batch, *layout, parts, seed)
    features = current.shape[2]
    out = np.empty(current.shape, np.float32)
    drive_values(drive, out)
    assert torch.equal(torch.from_numpy(out), current)

    generator = torch.Generator().manual_seed(seed)
    beta, threshold = (torch.rand(features if each else 1, generator=generator) for each in own)
    v0 = torch.randn(batch, features, generator=generator)
    words, membranes = packed_lif_reference(current, beta, threshold - 0.3, reset, v0)
    watched = np.unique(np.random.default_rng(seed).integers(0, features, 4))
    for given_drive in (drive, drive_of(current.numpy())):
        v, got = v0.numpy().copy(), np.full(words.shape, -1, np.int32)  # every word must be written, padding too
        seen = np.empty((steps, batch, len(watched)), np.float32)
        neurons = neurons_of(beta.numpy(), (threshold - 0.3).numpy(), RESETS[reset], features)
        packed_scan(given_drive, neurons, v, watched, seen, got.view(np.uint32))
        assert torch.equal(torch.from_numpy(got), words)
        assert torch.equal(torch.from_numpy(v), membranes[-1])
        assert torch.equal(torch.from_numpy(seen), membranes[..., watched])


@settings(deadline=None, max_examples=15, derandomize=True)
@given(steps=st.integers(1, 5), layout=st.sampled_from([(5, 1, 1), (700, 1, 1), (3, 17, 1)]), seed=st.integers(0, 99))
def test_the_integrator_is_its_definition(steps, layout, seed):
    drive, current = random_drive(steps, 2, *layout, (True, True, False), seed)
    features = current.shape[2]
    beta, v = torch.rand(features, generator=torch.Generator().manual_seed(seed)), torch.zeros(2, features)
    rows = []
    for current_t in current:
        v = beta * v + current_t
        rows.append(v)
    carried, out = np.zeros((2, features), np.float32), np.empty(current.shape, np.float32)
    packed_integrate(drive, neurons_of(beta.numpy(), beta.numpy(), RESETS["none"], features), carried, out)
    assert torch.equal(torch.from_numpy(out), torch.stack(rows))
    assert torch.equal(torch.from_numpy(carried), rows[-1])


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    steps=st.integers(1, 6),
    batch=st.integers(1, 3),
    features=st.sampled_from([1, 31, 64, 65, 513, 1100]),
    planes=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    parts=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_loop_with_feedback_is_its_definition(steps, batch, features, planes, density, parts, seed):
    drive, current = random_drive(steps, batch, features, 1, 1, (True, True, True), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    bits = torch.rand(planes, features, features, generator=generator) < 0.5
    factors, constant = (2, 4, -7)[:planes], -3
    scale, offset, bias = (torch.randn(features, generator=generator) / features for _ in range(3))
    threshold = torch.randn(1, generator=generator)
    fired = torch.rand(batch, features, generator=generator) < density
    v0 = torch.randn(batch, features, generator=generator)

    values = (bits.int() * torch.tensor(factors)[:, None, None]).sum(0) + constant
    v, spikes, words, membranes = v0, fired, [], []
    for t in range(steps):
        product = (spikes.double() @ values.double().T).to(torch.int32)
        returned = drive_reference(
            product[None], spikes.sum(1, dtype=torch.int32)[None, :, None], scale,
            offset if parts[0] else None, bias if parts[1] else None, current[t : t + 1],
        )  # fmt: skip
        word, v = (part[0] for part in packed_lif_reference(returned, torch.tensor([0.5]), threshold, "subtract", v))
        spikes = unpack_bits(word, features, torch.bool)
        words.append(word)
        membranes.append(v)

    columns = [weight_columns(wide_words(pack_bits(plane).numpy())) for plane in bits]
    back = feedback_of(
        columns,
        factors,
        constant,
        scale.numpy(),
        offset.numpy() if parts[0] else NOTHING,
        bias.numpy() if parts[1] else NOTHING,
    )
    carried, last = v0.numpy().copy(), pack_bits(fired).numpy()
    got, watched = np.full((steps, batch, last.shape[1]), -1, np.int32), np.array([0, features - 1][: min(features, 2)])
    seen = np.empty((steps, batch, len(watched)), np.float32)
    neurons = neurons_of(np.array([0.5], np.float32), threshold.numpy(), RESETS["subtract"], features)
    packed_recurrent(drive, neurons, back, carried, last, watched, seen, got.view(np.uint32))
    assert torch.equal(torch.from_numpy(got), torch.stack(words))
    assert torch.equal(torch.from_numpy(carried), membranes[-1])
    assert torch.equal(torch.from_numpy(last), words[-1])
    assert torch.equal(torch.from_numpy(seen), torch.stack(membranes)[..., watched])


def test_threads_change_nothing(with_threads):
    drive, _ = random_drive(4, 3, 1300, 1, 1, (True, True, False), 7)
    neurons = neurons_of(np.array([0.5], np.float32), np.array([1.0], np.float32), 0, 1300)

    def run():
        v, words = np.zeros((3, 1300), np.float32), np.empty((4, 3, 41), np.int32)
        packed_scan(drive, neurons, v, UNWATCHED, NONE_SEEN, words.view(np.uint32), work=1 << 20)
        return v, words

    one, two = with_threads(1, run), with_threads(2, run)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert one[1].any()


@pytest.mark.parametrize("count", [1, 63, 64])
def test_padding_bits_are_zero_for_negative_thresholds(count):
    v, words = np.zeros((1, count), np.float32), np.full((1, 1, (count + 31) // 32), -1, np.int32)
    neurons = neurons_of(np.array([0.5], np.float32), np.array([-1.0], np.float32), RESETS["none"], count)
    packed_scan(drive_of(np.zeros((1, 1, count), np.float32)), neurons, v, UNWATCHED, NONE_SEEN, words.view(np.uint32))
    assert np.bitwise_count(words.view(np.uint32)).sum() == count
