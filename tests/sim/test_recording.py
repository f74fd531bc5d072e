"""What a simulation keeps besides its output: membranes of named neurons, spikes of named layers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_networks import Case, Shape, dyadic, shapes, small_input, small_network
from torch import Tensor

from tbnn.nn import Adaptive, BinaryConv2d, BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.sim import pack, stream


def membranes_of(network: Network, x: Tensor) -> dict[str, Tensor]:
    """The model's membranes after each step, (T, B, N) by layer."""
    state: Any = None
    rows: dict[str, list[Tensor]] = {}
    for x_t in x.unbind(0):
        _, state = network.step(x_t, state)
        for i, entry in enumerate(state):
            inner = entry if entry is None or hasattr(entry, "v") else entry[0]
            if inner is not None:
                rows.setdefault(f"layers.{i}", []).append(inner.v.flatten(1))
    return {name: torch.stack(steps) for name, steps in rows.items()}


@torch.no_grad()
def assert_kept(case: Case, chosen: dict[str, list[int] | None]) -> None:
    expected, plain = membranes_of(case.network, case.x), pack(case.network).simulate(case.x)
    result = pack(case.network).simulate(case.x, membranes=chosen)
    assert list(result.membranes) == list(chosen)
    for name, neurons in chosen.items():
        assert torch.equal(result.membranes[name], expected[name] if neurons is None else expected[name][..., neurons])
    assert plain.membranes == {}
    if plain.readout is not None:
        assert torch.equal(result.readout, plain.readout)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(shape=shapes(max_steps=8), data=st.data())
def test_membranes_are_the_models(shape: Shape, data: st.DataObject) -> None:
    case = dyadic(shape)
    chosen: dict[str, list[int] | None] = {}
    for name, v in membranes_of(case.network, case.x).items():
        some = st.lists(st.integers(0, v.shape[2] - 1), unique=True, max_size=5)  # in any order
        chosen[name] = data.draw(st.one_of(st.none(), some))
    assert_kept(case, chosen)


def test_membranes_across_tiles_chunks_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    from tbnn.sim.run import currents

    torch.manual_seed(0)
    network = Network([BinaryLinear(9, 1200), Leaky(0.5), BinaryLinear(1200, 3), LeakyIntegrator(0.5)]).eval()
    case = Case(network, (torch.rand(7, 3, 9) < 0.4).float())
    for values, piece in ((1 << 20, 1 << 19), (1200 * 6, 1200 * 2), (1200 * 9, 1200 * 4)):
        monkeypatch.setattr(stream, "CHUNK_VALUES", values)
        monkeypatch.setattr(currents, "PIECE", piece)
        assert_kept(case, {"layers.1": [1199, 0, 511, 512, 1024], "layers.3": None})


@pytest.mark.parametrize("second", [False, True])
def test_membranes_of_other_neurons(second: bool) -> None:
    torch.manual_seed(1)
    neuron = Adaptive(0.5, 0.25) if second else Leaky(0.5, refractory=1)
    back = BinaryConv2d(2, 2, 3, padding=1)
    network = Network(
        [BinaryConv2d(1, 2, 3), neuron, BinaryConv2d(2, 2, 1), Recurrent(Leaky(0.5), back)], input_shape=(1, 6, 6)
    ).eval()
    case = Case(network, (torch.rand(6, 2, 1, 6, 6) < 0.5).float())
    assert_kept(case, {"layers.1": [31, 4], "layers.3": None})


def test_spikes_of_named_layers_alone() -> None:
    packed, x = pack(small_network()), small_input()
    every = packed.simulate(x, record=("spikes",)).spikes
    one = list(every)[-1]
    some = packed.simulate(x, record=(one,)).spikes
    assert list(some) == [one]
    assert torch.equal(some[one], every[one])


def test_a_stream_gives_the_membranes_of_each_push() -> None:
    packed, x = pack(small_network()), small_input()
    name = next(iter(packed.spiking_layers))
    whole = packed.simulate(x, membranes={name: [2, 0]}).membranes[name]
    with packed.open_stream(x.shape[1], membranes={name: [2, 0]}) as running:
        parts = [running.push(x[:4]).membranes[name], running.push(x[4:]).membranes[name]]
    assert torch.equal(torch.cat(parts), whole)
    assert running.counts.as_dict() == packed.simulate(x).counts.as_dict()  # of a stream that is closed
