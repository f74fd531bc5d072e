"""Whichever way the products go on the CPU, by popcounts or by the columns of the inputs that spiked: the same bits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_everything_packs import conv_networks, flat_networks

from tbnn.ops.binary_linear import choice
from tbnn.sim import pack
from tbnn.sim.run import conv, linear, neurons


@contextmanager
def by_the_way(way: str) -> Iterator[list[str]]:
    """All products one way, the ways asked for noted: feedback step by step for "dense", pieces instead of bands."""
    taken: list[str] = []

    def chosen(*_: Any, **__: Any) -> str:
        taken.append(way)
        return way

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "choose", chosen)
        if way == "dense":
            patch.setattr(linear.LinearRun, "feedback", lambda self: None)
            patch.setattr(conv, "band_of", lambda rows, width: 0)
        yield taken


@settings(deadline=None, max_examples=200, derandomize=True)
@given(case=st.one_of(flat_networks(dyadic=True), conv_networks(dyadic=True)))
@torch.no_grad()
def test_200_random_networks_are_equal_bit_for_bit(case: Any) -> None:
    expected, packed = case.network(case.x)[0], pack(case.network)
    results = []
    for way in ("dense", "events"):
        with by_the_way(way):
            results.append(packed.simulate(case.x, record=("spikes",)))
    results.append(packed.simulate(case.x, record=("spikes",)))
    for result in results:
        assert result.readout is None or torch.equal(result.readout, expected)
        for name, spikes in results[0].spikes.items():
            assert torch.equal(result.spikes[name], spikes)
    rows = [[(row.name, row.effective_synops, row.spikes) for row in result.counts.layers] for result in results]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize("way", ["dense", "events"])
def test_the_way_is_the_one_that_was_asked_for(way: str, recurrent: Callable[[], Any]) -> None:
    with by_the_way(way) as taken:
        counts = recurrent()
    assert set(taken) == {way}
    paths = {row.path for row in counts.layers if row.kind == "linear"}
    assert paths == {way}


@pytest.fixture
def recurrent() -> Callable[[], Any]:
    from tbnn.nn import BinaryLinear, Leaky, Network, Recurrent

    torch.manual_seed(0)
    network = Network([BinaryLinear(40, 70), Recurrent(Leaky(0.5), BinaryLinear(70, 70))]).eval()
    return lambda: pack(network).simulate((torch.rand(5, 2, 40) < 0.3).float()).counts


def test_neurons_run_their_loop_in_one_call(recurrent: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = neurons.packed_recurrent
    monkeypatch.setattr(neurons, "packed_recurrent", lambda *a, **k: (calls.append(len(a[-1])), kernel(*a, **k))[1])
    recurrent()
    assert calls == [5]
