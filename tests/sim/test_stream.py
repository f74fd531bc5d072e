"""Streams: pieces of any size equal the whole, states come back exactly, mistakes leave the stream as it was."""

import re
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_networks import small_input, small_network
from test_everything_packs import conv_networks, flat_networks

from tbnn.bits import pack_bits
from tbnn.nn import Adaptive, BinaryLinear, Leaky, LeakyIntegrator, Network
from tbnn.sim import PackedNetwork, pack, stream

X = small_input()


@pytest.fixture(scope="module")
def packed() -> PackedNetwork:
    return pack(small_network())


@settings(deadline=None, max_examples=40, derandomize=True)
@given(case=st.one_of(flat_networks(dyadic=False), conv_networks(dyadic=False)), data=st.data())
def test_pieces_of_any_size_are_the_whole(case, data):
    packed = pack(case.network)
    whole = packed.simulate(case.x, record=("spikes",))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(case.x)), max_size=4)))
    edges = [0, *cuts, len(case.x)]
    with packed.open_stream(case.x.shape[1], record=("spikes",)) as running:
        pieces = [running.push(case.x[a:b]) for a, b in pairwise(edges) if b > a]
        assert running.steps == len(case.x)
        assert running.counts.as_dict()["total"]["spikes"] == whole.counts.total.spikes
    assert torch.equal(torch.cat([p.output for p in pieces]), whole.readout)
    for name, spikes in whole.spikes.items():
        assert torch.equal(torch.cat([p.spikes[name] for p in pieces]), spikes)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(case=flat_networks(dyadic=False), cut=st.integers(0, 8))
def test_a_state_comes_back_from_a_file_exactly(tmp_path_factory, case, cut):
    packed, path = pack(case.network), tmp_path_factory.mktemp("state") / "s.safetensors"
    cut = min(cut, len(case.x) - 1)
    whole = packed.simulate(case.x)
    with packed.open_stream(case.x.shape[1]) as first:
        if cut:
            first.push(case.x[:cut])
        first.save_state(path)
    with packed.open_stream(case.x.shape[1], state=str(path)) as second:
        assert torch.equal(second.push(case.x[cut:]).output, whole.readout[cut:])


def test_a_state_is_a_copy(packed):
    with packed.open_stream(3) as running:
        running.push(X[:4])
        state = running.state
        kept = [None if entry is None else entry.v.clone() for entry in state]
        running.push(X[4:])
        assert all(k is None or torch.equal(k, s.v) for k, s in zip(kept, state, strict=True))
        again = packed.open_stream(3, state=state)
        assert torch.equal(again.push(X[4:]).output, packed.simulate(X).readout[4:])


def test_a_refused_push_leaves_the_stream_as_it_was(packed):
    whole = packed.simulate(X).readout
    with packed.open_stream(3) as running:
        parts = [running.push(X[:5]).output]
        bad = X[5:].clone()
        bad[-1, 0, 0] = 0.5
        for wrong, message in (
            (bad, "expected 0 and 1|values"),
            (X[5:, :2], r"push: expected a batch of 3, got 2"),
            (X[5:, :, :6], "expected 7 values a frame, got 6"),
            (torch.zeros(0, 3, 7), "no axis empty"),
        ):
            with pytest.raises(ValueError, match=message):
                running.push(wrong)
        assert running.steps == 5
        parts.append(running.push(pack_bits(X[5:])).output)
    assert torch.equal(torch.cat(parts), whole)


def test_a_closed_stream_says_so(packed):
    running = packed.open_stream(3)
    running.close()
    for use in (lambda: running.push(X), running.close, lambda: running.state, running.__enter__):
        with pytest.raises(ValueError, match="expected an open stream, this one is closed"):
            use()
    with packed.open_stream(3) as inside:
        inside.close()  # leaving the block does not close it twice


def test_bad_states_are_named(packed, tmp_path):
    other = pack(Network([BinaryLinear(7, 5), Adaptive(0.9), BinaryLinear(5, 2), LeakyIntegrator(0.5)]))
    path = tmp_path / "s.safetensors"
    with other.open_stream(3) as running:
        running.push(X)
        running.save_state(path)
    with pytest.raises(ValueError, match=r"state of layers\.1: v: expected torch.float32 \(3, 40\), got .*\(3, 5\)"):
        packed.open_stream(3, state=path)
    with pytest.raises(FileNotFoundError, match=r"absent: no such file"):
        packed.open_stream(3, state=tmp_path / "absent")
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected the state of a stream")):
        packed.open_stream(3, state=path)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        packed.open_stream(0)
    with pytest.raises(ValueError, match="state: expected one entry for each of 6 layers, got 1"):
        packed.open_stream(3, state=(None,))
    with pytest.raises(ValueError, match="record: expected names among"):
        packed.open_stream(3, record=("traces",))


def test_memory_does_not_grow_with_the_number_of_pushes():
    packed = pack(Network([BinaryLinear(64, 128), Leaky(0.9), BinaryLinear(128, 4), LeakyIntegrator(0.9)]))
    x = pack_bits(torch.rand(50, 4, 64) < 0.2)
    with packed.open_stream(4) as running:
        running.push(x)
        peaks = []
        for pushes in (2, 40):
            tracemalloc.start()
            for _ in range(pushes):
                running.push(x)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 10_000


def test_large_pushes_go_in_chunks(packed, monkeypatch):
    whole = packed.simulate(X).readout
    monkeypatch.setattr(stream, "CHUNK_VALUES", 240)
    assert torch.equal(packed.simulate(X).readout, whole)


def test_files_are_written_whole(packed, tmp_path, monkeypatch):
    path: Path = tmp_path / "s.safetensors"
    with packed.open_stream(3) as running:
        running.push(X)
        running.save_state(path)
        before = path.read_bytes()

        def broken(*_: object) -> None:
            raise OSError("no room")

        monkeypatch.setattr(stream, "save_file", broken)
        with pytest.raises(OSError, match="no room"):
            running.save_state(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
