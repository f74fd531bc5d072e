"""A layer of weights and its neurons as one function on a GPU: under Triton's interpreter, and on a CUDA device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.bits import pack_bits
from tbnn.nn import BinaryConv2d, BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, Winners
from tbnn.nn.fused import Group, group_at, weighted_spikes
from tbnn.ops.layer_lif import kept_bytes, layer_lif, layer_lif_reference, packed_spikes, plan
from tbnn.ops.lif import LifOutput, LifState, Second, SpikeGradient
from tests.interpreter import HERE, interpreted

ADLIF = {"rho": 0.5, "from_v": 0.25, "from_spike": 0.5, "to_v": -1.0}
SYNAPTIC = {"rho": 0.75, "from_current": 1.0, "current_gain": 0.0, "to_v": 1.0}
TRACE, STEP = {"target": "trace"}, {"stats": "step"}
SURROGATE = {"gradient": "surrogate"}
SIZE = (8, 2, 40)  # steps, batch, inputs


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer by Triton's kernels, interpreted; checkpoints every few steps, and two chunks from one to the next."""
    from tbnn.ops.layer_lif import gpu

    monkeypatch.setattr("tbnn.ops.layer_lif.layer_lif_fused", gpu.layer_lif_gpu)
    monkeypatch.setattr(plan, "SPACING", 3)
    monkeypatch.setattr(gpu, "CHUNK", 160)
    monkeypatch.setattr("tbnn.ops.lif.gpu_scan.FEW_LANES", 128)
    monkeypatch.setattr("tbnn.ops.binary_linear.gpu.INTERPRETED_TILE", {"DOT": False, "BM": 16, "BN": 64, "BW": 1})


def second_of(values: dict[str, float], device: str) -> Second:
    names = dict.fromkeys(Second._fields, 0.0) | {"current_gain": 1.0} | values
    return Second(*(torch.tensor(value, device=device, requires_grad=True) for value in names.values()))


def compare(
    layer: BinaryLinear,
    memory: str | float,
    size: tuple[int, int, int] = SIZE,
    *,
    state: LifState | None = None,
    second: dict[str, float] | None = None,
    floats: bool = True,
    device: str = "cpu",
    fires: bool = True,
    tolerance: float = 1e-4,
    **options: Any,
) -> LifOutput:
    """Outputs equal, gradients of everything close; ``fires``: neither silence nor saturation."""
    layer = layer.to(device)
    beta, threshold = (torch.tensor(value, device=device, requires_grad=True) for value in (0.75, 0.875))
    x = (torch.rand(size) < 0.4).float().to(device).requires_grad_()
    options["second"] = None if second is None else second_of(second, device)
    state = None if state is None else LifState._make(None if s is None else s.clone().requires_grad_() for s in state)
    inputs = [x, beta, threshold, *layer.parameters(), *(options["second"] or ()), *(state or ())]
    inputs = [t for t in inputs if t is not None and t.requires_grad]
    results = []
    for call in (layer_lif_reference, layer_lif):
        weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), x, memory)
        assert weighted is not None
        weighted.floats = floats
        run = call(weighted, beta, threshold, state, **options)
        torch.manual_seed(1)
        parts = [t for t in (run.out, *run.state) if t is not None and t.requires_grad]
        loss = torch.stack([(t * torch.randn(t.shape).to(t)).sum() for t in parts]).sum()
        results.append((run, torch.autograd.grad(loss, inputs, allow_unused=True)))
        if call is layer_lif:
            assert weighted.emitted is not None
            assert torch.equal(weighted.emitted, pack_bits(results[0][0].out.detach()))
    (expected, wanted), (got, gradients) = results
    assert not fires or 0.02 < expected.out.mean() < 0.8
    assert torch.equal(got.out, expected.out) if floats else not got.out.any()
    for a, b in zip(got.state, expected.state, strict=True):
        assert a is b is None or torch.equal(a, b)
    for a, b in zip(gradients, wanted, strict=True):
        if b is None or not b.any():
            assert a is None or not a.any()
            continue
        assert a is not None
        assert (a - b).abs().max() <= tolerance * b.abs().max()
    return got


ESTIMATORS: list[dict[str, Any]] = [
    SURROGATE, {}, STEP, TRACE, {**TRACE, **STEP}, {"per_channel": False, "differentiate_stats": False, "scale": 2.0},
]  # fmt: skip


@interpreted
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(("gradient", "memory"), [
    *((g, memory) for g in (SURROGATE, {}, TRACE) for memory in ("speed", "minimal")), *((g, 0.6) for g in ESTIMATORS if g not in (SURROGATE, {}, TRACE)),
], ids=str)  # fmt: skip
def test_every_estimator(gradient: dict[str, Any], memory: str | float) -> None:
    compare(BinaryLinear(40, 35), memory, gradient=SpikeGradient(**gradient))


def state_for(shape: tuple[int, int], trace: bool, second: bool, refractory: int) -> LifState:
    numbers = [torch.randn(shape) for _ in range(4)]
    fired = (torch.rand(shape) < 0.3).float()
    return LifState(
        numbers[0], numbers[1] if trace else None, numbers[2] if second else None, numbers[3] if second and trace else None,
        fired if refractory else None, refractory * fired if refractory else None,
    )  # fmt: skip


@interpreted
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(
    ("gradient", "reset", "refractory", "second", "lengths"),
    [
        ({}, "zero", 0, None, None),
        (SURROGATE, "none", 2, None, None),
        ({}, "subtract", 3, ADLIF, None),
        (TRACE, "subtract", 2, SYNAPTIC, [8, 4]),
        ({}, "zero", 0, SYNAPTIC, [0, 7]),
        (STEP, "subtract", 1, None, [3, 8]),
        ({**TRACE, **STEP}, "subtract", 0, None, [2, 6]),
    ],
    ids=str,
)
def test_every_neuron(
    gradient: dict[str, Any], reset: str, refractory: int, second: dict[str, float] | None, lengths: list[int] | None
) -> None:
    """Resets, gates, second states, lengths and states that are carried in; half of the segments are kept."""
    state = state_for((2, 35), gradient.get("target") == "trace", second is not None, refractory)
    compare(
        BinaryLinear(40, 35), 0.6, state=state, second=second, reset=reset, refractory=refractory, fires=False,
        gradient=SpikeGradient(**gradient), lengths=None if lengths is None else torch.tensor(lengths),
    )  # fmt: skip


@interpreted
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("layer", [
    BinaryLinear(70, 9, bias=False, form="linear"), BinaryLinear(96, 33, bits=1.58, block=32), BinaryLinear(65, 33, bits=3, sparsity=0.5),
    BinaryLinear(65, 33, bits=8), BinaryLinear(64, 5, block=64, sparsity=0.3), BinaryLinear(33, 130, bits=2),
], ids=repr)  # fmt: skip
def test_every_layer_of_weights(layer: BinaryLinear) -> None:
    layer.reset_parameters()  # from the test's seed: the parameter is made before it is set
    with torch.no_grad():
        layer.weight[:2] = 0
        if layer.bias is not None:
            layer.bias.uniform_(0.3, 0.5)  # rows of zeros fire too
    compare(layer, "minimal", (5, 3, layer.in_features), floats=False)


@interpreted
@pytest.mark.usefixtures("on_triton")
def test_fresh_memory_is_written_before_it_is_read(poisoned_memory: Any) -> None:
    state = state_for((2, 35), True, True, 2)
    with poisoned_memory():
        compare(
            BinaryLinear(40, 35), 0.5, state=state, second=SYNAPTIC, refractory=2, gradient=SpikeGradient(target="trace"),
            lengths=torch.tensor([8, 3]), fires=False,
        )  # fmt: skip
        compare(BinaryLinear(40, 35), 0.5)


@interpreted
@pytest.mark.usefixtures("on_triton")
def test_gradients_of_a_mean_are_not_copied_out_and_none_is_needed() -> None:
    layer, x = BinaryLinear(40, 33), (torch.rand(SIZE) < 0.4).float()
    gradients = []
    for call in (layer_lif_reference, layer_lif):
        weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), x, "minimal")
        assert weighted is not None
        gradients += torch.autograd.grad(call(weighted, 0.9).out.mean(), layer.weight)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-8)
    with torch.no_grad():
        weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), x, "minimal")
        assert weighted is not None
        assert layer_lif(weighted, 0.9).out.grad_fn is None


@interpreted
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("memory", ["speed", "balanced", "minimal"])
def test_what_is_kept_is_what_was_said(memory: str) -> None:
    """But for one more state at the start of each chunk, weights and coefficients."""
    (steps, batch, inputs), outputs = SIZE, 35
    layer, saved = BinaryLinear(inputs, outputs), []
    weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), (torch.rand(SIZE) < 0.4).float(), memory)
    assert weighted is not None
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        layer_lif(weighted, 0.75, gradient=SpikeGradient())
    large = [t.numel() * 4 for t in saved if t.shape[-2:] == (batch, outputs) or t.shape == (steps, batch, 2)]
    said = kept_bytes(memory, steps, batch, inputs, outputs, 1, 1, 4)
    courses = sum(t.ndim == 4 and t.shape[1] > 1 for t in saved)
    assert (courses > 0) == (memory != "minimal")
    assert sum(large) == sum(said.values()) - said["inputs"] + courses * 4 * batch * outputs


@interpreted
def test_sums_of_all_processes(monkeypatch: pytest.MonkeyPatch, on_triton: None) -> None:
    """Two processes that see the same: every sum doubles, no mean changes, and neither does anything else."""
    calls: list[Tensor] = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda sums: calls.append(sums.mul_(2)))
    layer, x = BinaryLinear(40, 33), (torch.rand(SIZE) < 0.4).float()
    gradients = []
    for joined in (False, True):
        weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), x, "minimal")
        assert weighted is not None
        out = layer_lif(weighted, 0.75, joined=joined).out
        gradients += torch.autograd.grad((out * torch.arange(33.0).cos()).sum(), layer.weight)
    assert len(calls) == 1
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


@interpreted
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(("memory", "packs"), [("speed", False), ("minimal", True)])
def test_a_network_hands_packed_bits_on(memory: str, packs: bool) -> None:
    """The same as its layers one after the other, packed bits or numbers going in."""
    net = Network(
        [BinaryLinear(40, 35), Leaky(0.75), BinaryLinear(35, 20), Leaky(0.5), BinaryLinear(20, 4), LeakyIntegrator(0.5)]
    )
    net.memory = memory
    x = (torch.rand(SIZE) < 0.4).float()
    y, _ = net(pack_bits(x) if packs else x)
    gradients = torch.autograd.grad(y.square().sum(), list(net.parameters()))
    expected = x
    for layer in net.layers:
        expected = layer(expected)[0] if isinstance(layer, (Leaky, LeakyIntegrator)) else layer(expected)
    wanted = torch.autograd.grad(expected.square().sum(), list(net.parameters()))
    assert torch.equal(y, expected)
    for a, b in zip(gradients, wanted, strict=True):
        assert b.any()
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@interpreted
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 31), (2, 3, 32), (2, 2, 5, 13)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packing(shape: tuple[int, ...], dtype: torch.dtype, poisoned_memory: Any) -> None:
    from tbnn.ops.layer_lif.gpu_products import packed_spikes_gpu, unpacked

    x = (torch.rand(shape) < 0.5).to(dtype)
    x.view(-1)[-1] = 1
    with poisoned_memory():
        words = packed_spikes_gpu(x)
        assert words is not None
        assert torch.equal(words, pack_bits(x.flatten(2)))
        assert torch.equal(unpacked(words, x[0, 0].numel(), torch.int8), x.flatten(2).to(torch.int8))
        for other in (0.5, -1.0, 2.0, 3.0):
            strange = x.clone()
            strange.view(-1)[-1] = other
            assert packed_spikes_gpu(strange) is None


@interpreted
@pytest.mark.usefixtures("on_triton")
def test_what_has_no_kernel_is_said() -> None:
    x = (torch.rand(SIZE) < 0.4).float()
    weighted = weighted_spikes(Group(BinaryLinear(40, 33), None, Leaky(0.5)), x, "minimal")
    assert weighted is not None
    with pytest.raises(
        ValueError, match="on a GPU expected no winners and fewer than 2³¹ values a step, got winners=5"
    ):
        layer_lif(weighted, 0.9, winners=5)
    frames = (torch.rand(2, 1, 2, 5, 5) < 0.4).float()
    conv = weighted_spikes(Group(BinaryConv2d(2, 3, 3), None, Leaky(0.5)), frames, "minimal")
    wide = weighted_spikes(Group(BinaryLinear(40, 33).double(), None, Leaky(0.5)), x.double(), "minimal")
    normed = weighted_spikes(Group(BinaryLinear(40, 33), nn.BatchNorm1d(33), Leaky(0.5)), x, "minimal")
    for given in (conv, wide, normed):
        assert given is not None
        with pytest.raises(ValueError, match="on a GPU expected a linear layer of float32 weights without a norm, got"):
            layer_lif(given, torch.tensor(0.9))


class Elsewhere(Tensor):
    """A tensor that says it is on a device."""

    device: Any = property(lambda _: torch.device("cuda"))


@pytest.mark.skipif(not HERE, reason="triton is not installed: pip install 'tbnn[gpu]'")
def test_what_runs_as_one() -> None:
    neuron, crowd, norm = Leaky(0.5), Leaky(0.5, activity=Winners(5)), nn.BatchNorm1d(33)
    recurrent = Recurrent(Leaky(0.5), BinaryLinear(33, 33))
    for device in ("cpu", "cuda"):
        linear, double, conv = BinaryLinear(40, 33), BinaryLinear(40, 33).double(), BinaryConv2d(2, 3, 3)
        if device == "cuda":
            for layer in (linear, double, conv):
                layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Elsewhere))
        assert linear.weight.device.type == device
        assert group_at([linear, neuron], 0) == (linear, None, neuron)
        assert group_at([linear, Leaky(0.5, activity=Winners(33))], 0) is not None
        for layers in ([linear, norm, neuron], [double, neuron], [conv, neuron], [linear, crowd], [linear, recurrent]):
            assert (group_at(layers, 0) is None) == (device == "cuda"), layers


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnADevice:
    """Real sizes, through the public functions, against the layers one after the other on the same device."""

    @pytest.fixture(autouse=True)
    def _exact(self) -> Iterator[None]:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
        torch.backends.cuda.matmul.allow_tf32 = before

    @pytest.mark.parametrize("memory", ["speed", "balanced", "minimal", 0.6])
    @pytest.mark.parametrize("gradient", ESTIMATORS, ids=str)
    def test_estimators(self, gradient: dict[str, Any], memory: str | float) -> None:
        compare(
            BinaryLinear(700, 1024), memory, (100, 64, 700), device="cuda", fires=False, tolerance=2e-3,
            gradient=SpikeGradient(**gradient),
        )  # fmt: skip

    @pytest.mark.parametrize("gradient", [SURROGATE, {}, TRACE], ids=str)
    @pytest.mark.parametrize("second", [None, ADLIF, SYNAPTIC], ids=str)
    @pytest.mark.parametrize("refractory", [0, 2])
    def test_neurons(self, gradient: dict[str, Any], second: dict[str, float] | None, refractory: int) -> None:
        lengths = torch.arange(33, device="cuda") * 8
        compare(
            BinaryLinear(333, 500, bits=2, sparsity=0.5), "minimal", (256, 33, 333), device="cuda", second=second,
            refractory=refractory, fires=False, tolerance=2e-3, gradient=SpikeGradient(**gradient), lengths=lengths,
        )  # fmt: skip

    def test_two_runs_give_the_same_bits(self) -> None:
        torch.manual_seed(0)
        net = Network(
            [
                BinaryLinear(512, 1024),
                Leaky(0.9),
                BinaryLinear(1024, 512),
                Leaky(0.9),
                BinaryLinear(512, 10),
                LeakyIntegrator(0.9),
            ]
        ).cuda()
        x = pack_bits(torch.rand(100, 32, 512) < 0.2).cuda()

        def run() -> list[Tensor]:
            y, _ = net(x)
            return [y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))]

        first = run()
        assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(first, run(), strict=True))

    def test_packing(self) -> None:
        x = (torch.rand(30, 20, 1001) < 0.5).float()
        words = packed_spikes(x.cuda())
        assert words is not None
        assert torch.equal(words.cpu(), pack_bits(x))
        assert packed_spikes(2 * x.cuda()) is None
