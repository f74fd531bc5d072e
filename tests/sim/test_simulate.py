"""The simulator against the model it was packed from, and against values worked out by hand."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from sim_networks import Case, Shape, dyadic, rough, run_layers, shapes, small_input, small_network
from torch import Tensor, nn

from tbnn.bits import pack_bits, unpack_bits
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.sim import NeuronState, PackedNetwork, SimulationResult, pack, stream


def assert_equal_to_model(case: Case, dtype: torch.dtype = torch.float32) -> None:
    """Every spike and every value of the readout, bit for bit."""
    result = pack(case.network).simulate(case.x, record=("spikes",))
    spikes, out = run_layers(case.network.to(dtype), case.x.to(dtype))
    assert result.spikes.keys() == spikes.keys()
    for name, expected in spikes.items():
        got = unpack_bits(result.spikes[name], expected.shape[-1], dtype)
        assert torch.equal(got, expected), name
    if result.readout is None:
        assert result.output_spikes is not None
        assert torch.equal(unpack_bits(result.output_spikes, out.shape[-1], dtype), out)
    else:
        assert result.output_spikes is None
        assert result.readout.dtype == torch.float32
        assert torch.equal(result.readout.to(dtype), out)


def assert_same(a: SimulationResult, b: SimulationResult) -> None:
    for got, expected in ((a.readout, b.readout), (a.output_spikes, b.output_spikes)):
        assert (got is None) == (expected is None)
        assert got is None or torch.equal(got, expected)
    assert a.spikes.keys() == b.spikes.keys()
    assert all(torch.equal(a.spikes[name], b.spikes[name]) for name in a.spikes)
    assert a.counts == b.counts
    for got, expected in zip(a.state, b.state, strict=True):
        assert (got is None) == (expected is None)
        if got is not None and expected is not None:
            assert torch.equal(got.v, expected.v)
            assert (got.spikes is None) == (expected.spikes is None)
            assert got.spikes is None or torch.equal(got.spikes, expected.spikes)


@settings(max_examples=100)
@given(shapes())
def test_dyadic_networks_equal_the_model(shape: Shape) -> None:
    assert_equal_to_model(dyadic(shape))


@settings(max_examples=50)
@given(shapes(max_steps=12, forms=("linear",)))
def test_dyadic_networks_equal_the_model_in_float64(shape: Shape) -> None:
    assert_equal_to_model(dyadic(shape), torch.float64)


@settings(max_examples=100)
@given(shapes())
def test_other_networks_equal_the_model_too(shape: Shape) -> None:
    assert_equal_to_model(rough(shape))


def test_a_network_wider_than_a_tile_is_equal_on_one_thread_and_two(with_threads: Callable[..., Any]) -> None:
    layers = [BinaryLinear(70, 1100), Recurrent(Leaky(0.9), BinaryLinear(1100, 1100, block=512)), BinaryLinear(1100, 3)]
    case = Case(Network([*layers, LeakyIntegrator(0.9)]), (torch.rand(6, 40, 70) < 0.3).float())
    assert_equal_to_model(case)
    packed = pack(case.network)
    one = with_threads(1, lambda: packed.simulate(case.x, record=("spikes",)))
    two = with_threads(2, lambda: packed.simulate(case.x, record=("spikes",)))
    assert_same(one, two)


def hand_made() -> Network:
    """Two inputs to one neuron of weights +1, -1 and bias 1/2, beta 1/2, threshold 1, read out by ±1, beta 1/2."""
    first, last = (BinaryLinear(*sizes, form="linear", lam=0.0) for sizes in ((2, 1), (1, 2)))
    first.weight.data = torch.tensor([[1.0, -1.0]])
    first.bias.data = torch.tensor([0.5])
    last.weight.data = torch.tensor([[2.0], [-1.0]])
    last.bias.data = torch.tensor([0.0, 0.25])
    return Network([first, Leaky(0.5, 1.0), last, LeakyIntegrator(0.5)])


HAND_INPUT = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 1], [1, 0]]).reshape(5, 1, 2)


def test_values_worked_out_by_hand() -> None:
    # I = 1.5, 1.5, -0.5, 0.5, 1.5; v = 1.5*, 0.5·1.5+1.5-1 = 1.25*, 0.5·1.25-0.5-1 = -0.875, 0.0625, 1.53125*
    result = pack(hand_made()).simulate(HAND_INPUT, record=("spikes",))
    assert result.spikes["layers.1"].flatten().tolist() == [1, 1, 0, 0, 1]
    assert result.readout is not None
    # y = 2q and 0.25 - q, each leaking by 1/2.
    assert result.readout[:, 0, 0].tolist() == [2.0, 3.0, 1.5, 0.75, 2.375]
    assert result.readout[:, 0, 1].tolist() == [-0.75, -1.125, -0.3125, 0.09375, -0.703125]
    assert [None if s is None else s.v.tolist() for s in result.state] == [
        None,
        [[1.53125]],
        None,
        [[2.375, -0.703125]],
    ]


@pytest.mark.parametrize(
    "convert",
    [
        pack_bits,
        Tensor.bool,
        lambda x: x.to(torch.uint8),
        Tensor.double,
        Tensor.long,
        lambda x: x.unsqueeze(2).unsqueeze(-1),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    ],
    ids=["words", "bool", "uint8", "float64", "int64", "more axes", "strided"],
)
def test_words_and_frames_of_any_kind_are_the_same_input(convert: Callable[[Tensor], Tensor]) -> None:
    packed, x = pack(small_network()), small_input()
    assert_same(packed.simulate(convert(x), record=["spikes"]), packed.simulate(x, record=["spikes"]))


@pytest.mark.parametrize("values", [1, 3 * 40 * 2, 3 * 40 * 4, 3 * 40 * 9])
def test_in_chunks_of_time_it_is_the_same(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    packed, x = pack(small_network()), small_input()
    whole = packed.simulate(x, record=("spikes",))
    monkeypatch.setattr(stream, "CHUNK_VALUES", values)
    assert_same(packed.simulate(x, record=("spikes",)), whole)


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_going_on_from_a_state_is_the_same(cut: int) -> None:
    packed, x = pack(small_network()), small_input()
    whole = packed.simulate(x, record=("spikes",))
    first = packed.simulate(x[:cut], record=("spikes",))
    before = [None if s is None else s.v.clone() for s in first.state]
    second = packed.simulate(x[cut:], record=("spikes",), state=first.state)
    assert whole.readout is not None
    assert torch.equal(torch.cat([first.readout, second.readout]), whole.readout)
    for name, spikes in whole.spikes.items():
        assert torch.equal(torch.cat([first.spikes[name], second.spikes[name]]), spikes)
    for state, kept in zip(first.state, before, strict=True):
        assert state is None or torch.equal(state.v, kept)  # the caller's state is left alone


def test_fresh_memory_is_never_read(poisoned_memory: Callable[[], Any]) -> None:
    packed, x = pack(small_network()), small_input()
    expected = packed.simulate(x, record=("spikes",))
    with poisoned_memory():
        assert_same(packed.simulate(x, record=("spikes",)), expected)


def test_without_record_there_are_no_spikes_but_the_output() -> None:
    packed = pack(Network([BinaryLinear(7, 33), Leaky(0.9)]))
    result = packed.simulate(small_input())
    assert result.readout is None
    assert result.spikes == {}
    assert torch.equal(result.output_spikes, packed.simulate(small_input(), record=("spikes",)).spikes["layers.1"])


def peak_bytes(packed: PackedNetwork, x: Tensor) -> int:
    packed.simulate(x[:1])
    tracemalloc.start()
    try:
        packed.simulate(x)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_weights_never_become_floats() -> None:
    packed = pack(Network([BinaryLinear(2048, 2048, form="linear"), Leaky(0.9)]))
    signs = 2048 * 2048 // 8
    assert peak_bytes(packed, torch.ones(2, 1, 2048, dtype=torch.bool)) < 2 * signs  # floats would take 32 times that


def test_memory_does_not_grow_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_VALUES", 256 * 16)
    layers = [BinaryLinear(32, 256), Leaky(0.9), BinaryLinear(256, 1), LeakyIntegrator(0.9)]
    packed = pack(Network(layers))
    x = torch.ones(4096, 1, 32, dtype=torch.bool)
    short, long = peak_bytes(packed, x[:64]), peak_bytes(packed, x)
    assert long < short + 65_536  # the hidden spikes, as bits, would be 131,072; its currents 4 MiB


def denoised_network(recurrent: bool, **options: Any) -> Network:
    def neuron() -> Leaky:
        return Leaky(0.9, emit="denoised", **options)

    hidden = Recurrent(neuron(), BinaryLinear(40, 40)) if recurrent else neuron()
    return Network([BinaryLinear(20, 40), hidden, BinaryLinear(40, 33, block=32), neuron(), BinaryLinear(33, 4, False)])


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("options", [{"per_channel": False}, {"stats": "step"}])
def test_denoised_spikes_fold_into_the_next_layer(recurrent: bool, options: dict[str, Any]) -> None:
    network, x = denoised_network(recurrent, **options), (torch.rand(12, 5, 20) < 0.3).float()
    for layer in network.modules():
        if isinstance(layer, BinaryLinear) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.2)
    network(x)  # gives the running statistics
    affines = [
        (layer.neuron if isinstance(layer, Recurrent) else layer).emitted_affine() for layer in network.layers[1::2]
    ]
    assert all(0 < a < 1 and b > 0.05 for a, b in affines)
    result = pack(network).simulate(x, record=("spikes",))
    out, expected = run_layers(network, x)
    for (name, values), (a, b) in zip(out.items(), affines, strict=True):
        assert torch.equal(unpack_bits(result.spikes[name], values.shape[-1]), ((values - b) / a).round()), name
    assert result.readout is not None
    torch.testing.assert_close(result.readout, expected, rtol=1e-5, atol=1e-5)
    first = pack(network).simulate(x[:5])
    second = pack(network).simulate(x[5:], state=first.state)
    assert torch.equal(torch.cat([first.readout, second.readout]), result.readout)


STRAY = torch.full((4, 2, 1), 1 << 7, dtype=torch.int32)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 2, 8), r"expected 7 values a frame, got 8"),
        (torch.zeros(4, 2, 2, dtype=torch.int32), r"7 bits take 1 words, got a last axis of 2"),
        (torch.zeros(4, 2, 1, 1, dtype=torch.int32), r"expected int32 words \(T, B, 1\)"),
        (STRAY, r"padding bit past the 7 inputs"),
        (torch.full((4, 2, 7), 0.5), r"expected values 0 and 1, got 0.5"),
        (torch.full((4, 2, 7), torch.nan), r"expected values 0 and 1, got nan"),
        (torch.zeros(2, 7), r"got torch.float32 \(2, 7\)"),
        (torch.zeros(0, 2, 7), r"no axis empty"),
        (torch.zeros(4, 0, 7), r"no axis empty"),
        ([[[0.0] * 7]], r"expected a tensor on the CPU, got list"),
        (torch.zeros(4, 2, 7, device="meta"), r"expected a tensor on the CPU, got meta"),
    ],
)
def test_input_that_does_not_fit_is_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(small_network()).simulate(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device: expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"record": ("membranes",)}, "record: expected names among"),
        ({"membranes": {"layers.0": [0]}}, r"expected a layer among layers\.1, layers\.3, layers\.5, got 'layers\.0'"),
        (
            {"membranes": {"layers.1": [0, 40]}},
            r"membranes of layers\.1: expected different neurons in \[0, 40\), got \[0, 40\]",
        ),
        ({"membranes": {"layers.1": [3, 3]}}, r"membranes of layers\.1: expected different neurons"),
        ({"record": "spikes"}, "record: expected names among"),
        ({"state": ()}, "expected one entry for each of 6 layers, got 0"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(small_network()).simulate(small_input(), **options)


def test_a_state_that_does_not_fit_is_refused() -> None:
    packed, x = pack(small_network()), small_input()
    state = packed.simulate(x).state
    with pytest.raises(ValueError, match=r"state of layers\.1: v: expected torch.float32 \(2, 40\)"):
        packed.simulate(x[:, :2], state=state)
    without = NeuronState(state[3].v)
    with pytest.raises(ValueError, match=r"state of layers\.3: spikes: expected torch.int32 \(3, 2\), got None"):
        packed.simulate(x, state=(*state[:3], without, *state[4:]))


def test_a_flattened_or_plain_beginning_changes_nothing() -> None:
    network = small_network()
    longer = Network([nn.Flatten(2), nn.Identity(), *network.layers]).eval()
    frames = small_input().reshape(9, 3, 7, 1)
    result = pack(longer).simulate(frames, record=("spikes",))
    assert torch.equal(result.readout, network(small_input())[0])
    assert list(result.spikes) == ["layers.3", "layers.5"]
