"""The simulator on a GPU: equal bit for bit to the CPU's, layer kind by layer kind, in pieces, and after failures.

Under Triton's interpreter on tiny networks; on a CUDA device up to a thousand neurons.
"""

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_networks import small_input, small_network
from test_everything_packs import GRIDS, Case, conv_networks, flat_networks, residual_networks
from test_late_and_pooled import late_networks, pooled_networks
from test_sparse_layers import network as sparse_network
from torch import Tensor, nn

from tbnn.bits import pack_bits
from tbnn.nn import BinaryConv2d, BinaryLinear, Flatten, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.nn.pool import Voting
from tbnn.sim import PackedNetwork, pack
from tbnn.sim.counts import Counts, completed
from tbnn.sim.gpu import DeviceMemoryError, check_device, restore, run_chunk_gpu, snapshot, start_gpu
from tbnn.sim.layers import PackedSparse
from tests.interpreter import interpreted

on_device = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
INTERPRETED = torch.device("cpu")


def words_of(x: Tensor) -> Tensor:
    return x if x.dtype == torch.int32 else pack_bits(x.flatten(2))


class Ran:
    """A network that ran on a device: all that came out, on the CPU."""

    def __init__(
        self, packed: PackedNetwork, x: Tensor, *cuts: int, state: Any = None, device: Any = INTERPRETED
    ) -> None:
        words = words_of(x)
        given_state = state if state is not None else (None,) * len(packed.layers)
        self.runs = start_gpu(packed.layers, words.shape[1], given_state, device)
        edges = [0, *cuts, len(words)]
        parts = [run_chunk_gpu(self.runs, words[a:b].to(device)) for a, b in pairwise(edges) if b > a]
        whole = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
        self.output = whole[packed.layers[-1].spec.name]
        self.spikes = {name: whole[name] for name in packed.spiking_layers}
        self.state = tuple(run.state() for run in self.runs)
        rows = tuple(row for run in self.runs for row in run.counts())
        self.counts = completed(packed.layers, Counts(len(words), words.shape[1], 0, rows))


def without_paths(packed: PackedNetwork, counts: Counts) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "path"} for row in completed(packed.layers, counts).table()]


def tensors_in(entry: Any) -> list[Tensor]:
    """All tensors of a layer's state, in order."""
    if isinstance(entry, Tensor):
        return [entry]
    return [] if entry is None else [t for part in entry for t in tensors_in(part)]


def compare(packed: PackedNetwork, x: Tensor, *cuts: int, state: Any = None, device: Any = INTERPRETED) -> Ran:
    """Everything equal to the CPU's, bit for bit; two zeros may differ in sign."""
    expected = packed.simulate(x, record=("spikes",), state=state)
    got = Ran(packed, x, *cuts, state=state, device=device)
    output = expected.readout if expected.output_spikes is None else expected.output_spikes
    assert output is not None
    for name, spikes in expected.spikes.items():
        assert torch.equal(got.spikes[name], spikes), name
    assert got.output.dtype == output.dtype
    assert torch.equal(got.output, output)
    for layer, mine, theirs in zip(packed.layers, got.state, expected.state, strict=True):
        assert type(mine) is type(theirs), layer.spec.name
        a, b = tensors_in(mine), tensors_in(theirs)
        assert len(a) == len(b), layer.spec.name
        assert all(s.device.type == "cpu" and torch.equal(s, t) for s, t in zip(a, b, strict=True)), layer.spec.name
    assert without_paths(packed, got.counts) == without_paths(packed, expected.counts)
    return got


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products first, then the scan."""
    monkeypatch.setattr("tbnn.sim.gpu.launch.FUSED_WORK", 0)


@interpreted
@settings(max_examples=4)
@given(case=flat_networks(dyadic=False), cut=st.integers(0, 8))
def test_flat_networks(case: Case, cut: int) -> None:
    compare(pack(case.network), case.x, min(cut, len(case.x)))


@interpreted
@settings(max_examples=3)
@given(case=conv_networks(dyadic=False))
def test_convolutions_and_pooling(case: Case) -> None:
    compare(pack(case.network), case.x)


@interpreted
@settings(max_examples=3)
@given(case=residual_networks(dyadic=False), cut=st.integers(0, 8))
def test_residual_blocks_and_delays(case: Case, cut: int) -> None:
    compare(pack(case.network), case.x, min(cut, len(case.x)))


@interpreted
@settings(max_examples=4)
@given(case=st.one_of(late_networks(dyadic=False), pooled_networks(dyadic=False)), cut=st.integers(0, 5))
def test_delays_of_synapses_and_of_feedback(case: Case, cut: int) -> None:
    compare(pack(case.network), case.x, min(cut, len(case.x)))


@interpreted
@pytest.mark.parametrize("bits", [1, 3])
def test_lists_of_connections(bits: float) -> None:
    packed = pack(sparse_network(bits, sizes=(40, 64)))
    assert sum(isinstance(layer, PackedSparse) for layer in packed.layers) == 2
    compare(packed, frames_of(4, 2, 40))


def layers_of(bits: float = 1, sparsity: Any = 0.0, form: str = "affine", bias: bool = True) -> list[nn.Module]:
    torch.manual_seed(3)
    first, last = (BinaryLinear(i, o, bias, bits=bits, sparsity=sparsity, form=form) for i, o in ((45, 37), (37, 5)))  # type: ignore[arg-type]
    return [first, Leaky(torch.rand(37), 0.5), last, LeakyIntegrator(0.9)]


def frames_of(steps: int = 5, batch: int = 3, features: int = 45) -> Tensor:
    return (torch.rand(steps, batch, features, generator=torch.Generator().manual_seed(4)) < 0.4).float()


@interpreted
@pytest.mark.parametrize(("bits", "sparsity"), GRIDS)
def test_every_grid_of_weights(bits: float, sparsity: Any) -> None:
    form = "affine" if bits in (1, 3, 8) else "linear"
    got = compare(pack(Network(layers_of(bits, sparsity, form)).eval()), frames_of(3, 2))
    assert [row.path for row in got.counts.layers] == ["fused", "", "int8", ""]


@interpreted
@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize(("bits", "form", "bias"), [(1, "affine", True), (3, "linear", False)])
def test_products_first(bits: float, form: str, bias: bool, dot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = {"DOT": dot, "BM": 16, "BN": 16, "BW": 2}
    monkeypatch.setattr("tbnn.ops.binary_linear.gpu.INTERPRETED_TILE", tile)
    got = compare(pack(Network(layers_of(bits, 0.0, form, bias)).eval()), frames_of())
    assert got.counts.layers[0].path == ("int8" if dot else "popcount")


@interpreted
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_resets_through_every_kernel(reset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and neurons at once, integer products, blocks of currents, and a feedback: all three resets."""
    torch.manual_seed(5)
    neurons = [Leaky(torch.rand(n), 0.25 + torch.rand(n), reset_mechanism=reset) for n in (70, 33, 33)]  # type: ignore[arg-type]
    layers = [BinaryLinear(45, 70), neurons[0], BinaryLinear(70, 33, block=32), neurons[1], BinaryLinear(33, 33)]
    packed = pack(Network([*layers, Recurrent(neurons[2], BinaryLinear(33, 33))]).eval())
    monkeypatch.setattr("tbnn.sim.gpu.launch.LANES", 32)  # tiles with edges
    compare(packed, frames_of(4, 2))
    monkeypatch.setattr("tbnn.sim.gpu.launch.FUSED_WORK", 0)
    monkeypatch.setattr("tbnn.sim.gpu.launch.RESIDENT_WORDS", 1)
    compare(packed, frames_of(4, 2), 1)


@interpreted
def test_the_small_network_in_pieces_and_between_devices(poisoned_memory: Any) -> None:
    packed, x = pack(small_network()), small_input()
    with poisoned_memory():
        compare(packed, x, 1, 5)
    first = packed.simulate(x[:4])
    second = Ran(packed, x[4:6], state=first.state)
    third = packed.simulate(x[6:], state=second.state)
    whole = packed.simulate(x).readout
    assert third.readout is not None
    assert whole is not None
    assert torch.equal(second.output, whole[4:6])
    assert torch.equal(third.readout, whole[6:])


@interpreted
@pytest.mark.parametrize("recurrent", [False, True])
def test_denoised_spikes_have_another_bias_at_first(recurrent: bool) -> None:
    torch.manual_seed(6)
    neuron = Leaky(0.9, 0.5, emit="denoised", stats="step")
    end = Recurrent(neuron, BinaryLinear(20, 20)) if recurrent else neuron
    net = Network([BinaryLinear(45, 20), end, BinaryLinear(20, 4), LeakyIntegrator(0.5)])
    net(frames_of())
    packed = pack(net.eval())
    compare(packed, frames_of(), 1)
    compare(packed, frames_of(), state=packed.simulate(frames_of()).state)


@interpreted
@pytest.mark.parametrize("readout", [True, False])
def test_voters(readout: bool) -> None:
    torch.manual_seed(0)
    end = LeakyIntegrator(0.5) if readout else Leaky(0.5)
    compare(pack(Network([BinaryLinear(45, 40), Leaky(0.5), BinaryLinear(40, 12), end, Voting(3)]).eval()), frames_of())


@interpreted
def test_a_convolution_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("tbnn.sim.gpu.conv.VALUES", 400)
    layers = [BinaryConv2d(2, 6, 3, padding=1, groups=2, bits=2), Leaky(0.5), Flatten(), BinaryLinear(6 * 30, 3)]
    x = (torch.rand(3, 3, 2, 5, 6) < 0.3).float()
    compare(pack(Network(layers, (2, 5, 6)).eval()), x)


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 2.00 GiB"
    )


@interpreted
def test_a_full_device_names_the_layer_and_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, words = pack(small_network()), words_of(small_input())
    runs = start_gpu(packed.layers, 3, (None,) * len(packed.layers), INTERPRETED)
    first = run_chunk_gpu(runs, words[:4])
    rows = [row for run in runs for row in run.counts()]
    kept = snapshot(runs)
    with monkeypatch.context() as patch:
        patch.setattr("tbnn.sim.gpu.neurons.integrate_gpu", full)
        message = (
            r"layers\.5: the device has no room for 1610612736 bytes \(1\.50 GiB\) more; simulate fewer samples or"
        )
        with pytest.raises(DeviceMemoryError, match=message) as raised:
            run_chunk_gpu(runs, words[4:])
        assert (raised.value.layer, raised.value.wanted) == ("layers.5", 3 * 2**29)
        patch.setattr("tbnn.sim.gpu.neurons.integrate_gpu", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_chunk_gpu(runs, words[4:])
    assert [row for run in runs for row in run.counts()] == rows
    second = run_chunk_gpu(runs, words[4:])
    whole = Ran(packed, words)
    assert torch.equal(torch.cat([first["layers.5"], second["layers.5"]]), whole.output)
    restore(runs, kept)
    assert torch.equal(run_chunk_gpu(runs, words[4:])["layers.5"], second["layers.5"])


@interpreted
def test_a_device_that_is_full_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(small_network())
    monkeypatch.setattr("tbnn.sim.gpu.linear.Weights", full)
    with pytest.raises(DeviceMemoryError, match=r"layers\.0: the device has no room for 1610612736 bytes"):
        start_gpu(packed.layers, 3, (None,) * len(packed.layers), INTERPRETED)


def test_an_allocator_that_does_not_say_how_much() -> None:
    error = DeviceMemoryError("layers.2", torch.OutOfMemoryError("no"))
    assert error.wanted is None
    assert "layers.2: the device has no room for memory more" in str(error)


@interpreted
def test_a_state_that_does_not_fit_is_named() -> None:
    packed = pack(small_network())
    state = packed.simulate(small_input()[:, :2]).state
    with pytest.raises(ValueError, match=r"state of layers\.1: v: expected torch.float32 \(3, 40\), got .*\(2, 40\)"):
        start_gpu(packed.layers, 3, state, INTERPRETED)
    with pytest.raises(ValueError, match=r"device: expected cpu \(interpreted\), got meta"):
        start_gpu(packed.layers, 3, state, torch.device("meta"))


class TestDevices:
    """check_device: one sentence for each thing that is missing."""

    def test_the_cpu(self) -> None:
        assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")

    @pytest.mark.parametrize("device", ["gpu", "mps", "meta", "cuda:x", 3.5])
    def test_other_devices(self, device: Any) -> None:
        with pytest.raises(
            ValueError, match=f"device: expected 'cpu', 'cuda' or 'cuda:N', got {re.escape(repr(device))}"
        ):
            check_device(device)

    @pytest.mark.parametrize(
        ("built", "there", "triton", "device", "message"),
        [
            (None, False, True, "cuda", "'cuda' needs a torch built for CUDA, got torch"),
            ("13.0", False, True, "cuda:1", "expected a CUDA device for 'cuda:1', got none"),
            ("13.0", True, True, "cuda:7", "expected one of cuda:0 to cuda:1, got 'cuda:7'"),
            ("13.0", True, False, "cuda", r"'cuda' needs Triton, which is not installed: pip install 'tbnn\[gpu\]'"),
        ],
    )
    def test_what_is_missing(
        self, built: str | None, there: bool, triton: bool, device: str, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretend(monkeypatch, built, there, triton)
        with pytest.raises(ValueError, match=f"^device: {message}"):
            check_device(device)

    def test_all_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend(monkeypatch, "13.0", True, True)
        assert check_device("cuda:1") == torch.device("cuda", 1)
        assert check_device("cuda") == torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, built: str | None, there: bool, triton: bool) -> None:
    """A machine with two CUDA devices, or without what is missing."""
    monkeypatch.setattr("torch.version.cuda", built)
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("tbnn.sim.gpu.device.has_triton", lambda: triton)


class TestOnADevice:
    """Compiled kernels, against the CPU."""

    pytestmark = on_device

    @pytest.mark.parametrize("size", [16, 63, 500, 1024])
    @pytest.mark.parametrize("batch", [1, 5, 64])
    @pytest.mark.parametrize("bits", [1, 1.58, 3])
    def test_networks(self, bits: float, batch: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(size)
        hidden = Recurrent(Leaky(torch.rand(size), 1.0), BinaryLinear(size, size, bits=bits))
        layers = [
            BinaryLinear(700, size, bits=bits),
            Leaky(0.9),
            BinaryLinear(size, size),
            hidden,
            BinaryLinear(size, 20),
        ]
        packed = pack(Network([*layers, LeakyIntegrator(0.9)]).eval())
        x = frames_of(150, batch, 700)  # two graphs of 64 steps, and some
        compare(packed, x, 3, device=torch.device("cuda", 0))
        monkeypatch.setattr("tbnn.sim.gpu.launch.FUSED_WORK", 0)
        compare(packed, x, device=torch.device("cuda", 0))

    @settings(max_examples=40)
    @given(
        case=st.one_of(
            *(
                kind(dyadic=False)
                for kind in (flat_networks, conv_networks, residual_networks, late_networks, pooled_networks)
            )
        )
    )
    def test_every_kind_of_layer(self, case: Case) -> None:
        compare(pack(case.network), case.x, device=torch.device("cuda", 0))

    def test_a_full_device(self) -> None:
        packed, words = pack(small_network()), words_of(small_input())
        runs = start_gpu(packed.layers, 3, (None,) * len(packed.layers), torch.device("cuda", 0))
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        hoard = torch.empty(free - 2**28, dtype=torch.uint8, device="cuda")
        with pytest.raises(DeviceMemoryError, match=r"layers\.[0-5]: the device has no room"):
            run_chunk_gpu(runs, words[:1].repeat(2**20, 1, 1).cuda())
        del hoard
        expected = packed.simulate(words).readout
        assert expected is not None
        assert torch.equal(run_chunk_gpu(runs, words.cuda())["layers.5"].cpu(), expected)
