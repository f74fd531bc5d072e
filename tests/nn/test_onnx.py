"""Networks as ONNX models of one step: stepped by ONNX Runtime they give tbnn's bits and states."""

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tbnn.nn import (
    Adaptive,
    AdLIF,
    AvgPool2d,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    CustomNeuron,
    Delay,
    DelayedLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
    Residual,
    SpikeDropout,
    Synaptic,
    TargetRate,
    TemporalBatchNorm,
    Voting,
    Winners,
    fold_batch_norms,
)
from tbnn.nn.onnx import to_onnx
from tbnn.nn.residual import JOINS
from tbnn.nn.snntorch_export import OneToOne
from tests.nn.snntorch_nets import exact

WHY = "the packages that write and run ONNX are not installed: pip install 'tbnn[test]'"
onnx = pytest.importorskip("onnx", reason=WHY)
runtime = pytest.importorskip("onnxruntime", reason=WHY)


def spikes(*shape: int, rate: float = 0.5) -> Tensor:
    return (torch.rand(shape) < rate).float()


def session(path: Path, optimised: bool = True) -> Any:
    """Without optimisation each operator rounds by itself."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def stepped(run: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """All steps of x (T, B, ...) from states of zeros: (y, the last states)."""
    batch = x.shape[1]
    ends = {i.name: [batch if size == "batch" else size for size in i.shape] for i in run.get_inputs()[1:]}
    state = {name: np.zeros(shape, np.float32) for name, shape in ends.items()}
    assert [o.name for o in run.get_outputs()] == ["y", *(f"{name}.next" for name in state)]
    out = []
    for x_t in x.numpy():
        y, *after = run.run(None, {"x": x_t, **state})
        state = dict(zip(state, after, strict=True))
        out.append(torch.from_numpy(y))
    return torch.stack(out), {name: torch.from_numpy(value) for name, value in state.items()}


def named(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network's state that decide about what follows, by their places."""
    if isinstance(state, Tensor):
        if state.numel():
            yield name, state
    elif isinstance(state, tuple):
        for field, part in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
            if "trace" not in str(field):
                yield from named(part, f"{name}.{field}")


@torch.no_grad()
def check(network: Network, x: Tensor, path: Path, *, optimised: bool = True, **options: Any) -> Tensor:
    """The model's bits and states are the network's; returns y."""
    file = path / "step.onnx"
    to_onnx(network, file, **options)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    y, state = network.eval()(x)
    got, after = stepped(session(file, optimised), x)
    torch.testing.assert_close(got, y, rtol=1e-6, atol=1e-6)
    bits = (y == 0) | (y == 1)
    if bits.all():
        assert torch.equal(got, y)
    wants = dict(named(state, "layers"))
    assert after.keys() == wants.keys()
    for name, want in wants.items():
        torch.testing.assert_close(after[name], want, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    return y


dyadic = st.integers(0, 7).map(lambda k: k / 8)


@st.composite
def neurons(draw: Any, features: int) -> nn.Module:
    spread = st.lists(dyadic, min_size=features, max_size=features).map(torch.tensor)
    beta, other = draw(dyadic | st.just(1.0) | spread), draw(dyadic | spread)
    options = {
        "threshold": draw(st.sampled_from([0.5, 1.0, -0.25])),
        "reset_mechanism": draw(st.sampled_from(["subtract", "zero", "none"])),
        "refractory": draw(st.integers(0, 2)),
        "activity": draw(st.sampled_from([None, Winners(1), Winners(0.5), Winners(9)])),
    }
    kind = draw(st.sampled_from([Leaky, Synaptic, Adaptive, AdLIF]))
    more = {Leaky: {}, Synaptic: {}, Adaptive: {"strength": 0.25}, AdLIF: {"a": 2.0, "b": other}}[kind]
    neuron = kind(*([beta] if kind is Leaky else [other, beta]), **more, **options)
    feedback = draw(st.sampled_from([None, nn.Linear(features, features, bias=False), OneToOne(-0.5)]))
    return neuron if feedback is None else Recurrent(neuron, feedback, draw(st.integers(1, 3)))


@st.composite
def chains(draw: Any) -> Network:
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=draw(st.booleans())), draw(neurons(after))]
        if draw(st.booleans()):
            layers.append(Delay(after, draw(st.integers(0, 3)), learn=False))
    if draw(st.booleans()):
        layers += [nn.Linear(sizes[-1], 3), LeakyIntegrator(draw(dyadic))]
    return exact(Network(layers))  # type: ignore[return-value]


@given(chains())
def test_chains_step_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, network: Network) -> None:
    check(network, spikes(12, 3, network.layers[0].in_features), tmp_path_factory.getbasetemp())  # type: ignore[arg-type]


def learned(*layers: nn.Module, shape: tuple[int, ...] | None = None, x: Tensor) -> Network:
    """A network whose norms, rates and denoised values have seen some training."""
    network = Network(layers, shape)
    with torch.no_grad():
        for _ in range(3):
            network(x)
    return network


BINARY = [
    {"bits": bits, "form": form, "sparsity": sparsity, "block": block}
    for bits, form, sparsity, block in (
        (1, "affine", 0, None), (1, "linear", 0, 5), (1, "affine", 0, 7), (1.58, "affine", 0, None), (1, "linear", 0.5, None),
        (2, "affine", 0, 32), (3, "affine", 0.25, None), (4, "linear", 0, None), (7, "affine", 0, 50), (8, "affine", 0.5, None),
        (None, "affine", 0.5, None),
    )
]  # fmt: skip


@pytest.mark.parametrize("options", BINARY, ids=str)
@pytest.mark.parametrize("kind", ["linear", "delayed", "conv1d", "conv2d"])
def test_binary_weights(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    """Whole numbers first, then scales and offsets rounded in tbnn's order, whatever the runtime optimises."""
    layer, shape = {
        "linear": (lambda: BinaryLinear(33, 12, **options), (33,)),
        "delayed": (lambda: DelayedLinear(33, 12, 3, bias=False, **options), (33,)),
        "conv1d": (lambda: BinaryConv1d(4, 6, 3, stride=2, padding=1, groups=2, **options), (4, 11)),
        "conv2d": (lambda: BinaryConv2d(4, 6, (3, 2), padding="same", dilation=(1, 3), groups=2, **options), (4, 7, 5)),
    }[kind]
    x = spikes(10, 3, *shape)
    network = Network([layer(), Leaky(0.9)], shape)
    y = check(network, x, tmp_path)
    assert 0.02 < y.mean() < 0.98
    if options["bits"] is not None:
        currents = Network([network.layers[0]], shape)
        to_onnx(currents, tmp_path / "currents.onnx")
        assert torch.equal(stepped(session(tmp_path / "currents.onnx"), x)[0], currents(x)[0])


def test_weights_take_few_bits(tmp_path: Path) -> None:
    path, weights = tmp_path / "step.onnx", 512 * 512
    for bits, stored in ((1, 1), (1.58, 2), (2, 2), (3, 4), (4, 4), (8, 8), (None, 32)):
        to_onnx(Network([BinaryLinear(512, 512, bits=bits)]), path)
        beside = 4 * 3 * 512  # bytes of scale, offset and bias
        assert stored * weights // 8 <= path.stat().st_size < stored * weights // 8 + beside + 2500


SPATIAL = {
    "tbnn's": lambda: [
        BinaryConv2d(2, 4, 3, padding=1), TemporalBatchNorm(4), Leaky(0.75), MaxPool2d(3, 2, 1), SpikeDropout(0.5),
        Residual([BinaryConv2d(4, 4, 3, padding="same"), Adaptive(0.75)], [BinaryConv2d(4, 4, 1), TemporalBatchNorm(4), Leaky(0.5)]),
        Recurrent(Leaky(0.75, 2.0), BinaryConv2d(4, 4, 3, padding=1)), Delay(4, 4), AvgPool2d((2, 3), padding=1), Flatten(),
        BinaryLinear(48, 8), Synaptic(0.5, 0.75), Voting(4),
    ],
    "torch's": lambda: [
        nn.Conv2d(2, 4, (3, 1), padding="same", groups=2, bias=False), nn.BatchNorm2d(4), Leaky(0.5), nn.MaxPool2d(3, 2, 1, 2), nn.Dropout(),
        nn.Conv2d(4, 3, 3, stride=(2, 1), padding=1, dilation=(1, 2)), nn.BatchNorm2d(3, affine=False), Leaky(0.5),
        nn.AvgPool2d(2, 1, 1, count_include_pad=False), nn.Identity(), nn.Flatten(2), nn.Linear(60, 8), nn.BatchNorm1d(8), LeakyIntegrator(0.75),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", SPATIAL)
@pytest.mark.parametrize("optimised", [True, False])
def test_pictures(tmp_path: Path, case: str, optimised: bool) -> None:
    x = spikes(15, 3, 2, 14, 14)
    network = exact(learned(*SPATIAL[case](), shape=(2, 14, 14), x=x))
    y = check(network, x, tmp_path, optimised=optimised)  # type: ignore[arg-type]
    assert y.std() > 0.05
    if case == "tbnn's":
        check(fold_batch_norms(network), x, tmp_path, optimised=optimised)  # type: ignore[arg-type]
        flat = tmp_path / "flat.onnx"
        to_onnx(network, flat, input_shape=[2 * 14 * 14])  # type: ignore[arg-type]
        torch.testing.assert_close(stepped(session(flat, False), x.flatten(2))[0], y)


def test_sounds(tmp_path: Path) -> None:
    layers = [
        nn.Conv1d(2, 4, 3, 2, "valid"),
        nn.MaxPool1d(2),
        Leaky(0.5),
        nn.AvgPool1d(2),
        BinaryConv1d(4, 3, 3),
        Leaky(0.75),
    ]
    check(exact(Network(layers, (2, 25))), spikes(10, 3, 2, 25), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("join", JOINS)
def test_residual_blocks(tmp_path: Path, join: str) -> None:
    last = [] if join == "current" else [AdLIF(0.75, activity=Winners(3))]
    block = Residual([nn.Linear(6, 6), *last], None if join != "iand" else [nn.Linear(6, 6), Leaky(0.5)], join)
    after = [Leaky(0.5)] if join == "current" else []
    y = check(exact(Network([block, *after])), spikes(12, 3, 6), tmp_path, input_shape=[6])  # type: ignore[arg-type]
    assert 0 < y.mean() < 1


def test_what_neurons_learned(tmp_path: Path) -> None:
    """Clamped decays, rates that thresholds hold, and what leaves denoised: as evaluation has them."""
    x = spikes(20, 4, 8)
    held = Leaky(0.5, learn_beta=True, learn_threshold=True, activity=TargetRate(0.05, channels=8))
    denoised = Adaptive(0.75, emit="denoised")
    network = learned(
        nn.Linear(8, 8), held, nn.Linear(8, 8), denoised, Recurrent(Leaky(0.5, emit="denoised"), nn.Linear(8, 8)), x=x
    )
    with torch.no_grad():
        held.beta.fill_(-0.5)
        held.threshold.mul_(torch.tensor(0.75))
    assert denoised.emitted_affine()[0].numel() == 8
    assert not torch.equal(held.effective_threshold(torch.Size([8])), held.threshold.expand(8))
    y = check(network, x, tmp_path)
    assert len(y.unique()) == 2
    readout = LeakyIntegrator(0.5, learn_beta=True)
    with torch.no_grad():
        readout.beta.fill_(1.5)
    check(Network([readout]), x, tmp_path, input_shape=[8])


def test_the_trace_target_leaves_no_state(tmp_path: Path) -> None:
    network = Network([nn.Linear(4, 4), Adaptive(0.5, target="trace")])
    check(exact(network), spikes(9, 2, 4), tmp_path)  # type: ignore[arg-type]


def test_a_neuron_by_hand(tmp_path: Path) -> None:
    """v = ½·v + I − q, a spike above 1, then a step's rest."""
    path = tmp_path / "step.onnx"
    to_onnx(Network([Leaky(0.5, refractory=1)]), path, input_shape=[1])
    x = torch.tensor([1.0, 1, 2, 2, 0]).reshape(5, 1, 1)
    y, state = stepped(session(path), x)
    assert y.flatten().tolist() == [0, 1, 0, 1, 0]  # v = 1, 1½, 1¾, 2⅞, 7/16
    assert {name: value.item() for name, value in state.items()} == {
        "layers.0.v": 0.4375, "layers.0.spikes": 0, "layers.0.waiting": 0,
    }  # fmt: skip


def test_among_equals_the_first_wins(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    to_onnx(Network([Leaky(0.5, activity=Winners(2))]), path, input_shape=[2, 2])
    x = torch.tensor([[2.0, 3, 2, 2], [0, 0, 0, 2]]).reshape(1, 2, 2, 2)
    assert stepped(session(path), x)[0].reshape(2, 4).tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]


def test_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    network = Network([BinaryLinear(5, 4), Recurrent(Synaptic(0.5, 0.5), nn.Linear(4, 4), delay=3)])
    to_onnx(network, path, batch=2)
    assert network.training
    model = onnx.load(path)
    assert (model.producer_name, model.opset_import[0].version, model.ir_version) == ("tbnn", 17, 8)
    assert "starts with states of zeros" in model.doc_string
    (said,) = model.metadata_props
    assert json.loads(said.value) == {
        f"layers.1.{name}": {"next": f"layers.1.{name}.next", "shape": shape, "start": 0}
        for name, shape in {"out": [3, 2, 4], "neuron.v": [2, 4], "neuron.w": [2, 4]}.items()
    }
    run = session(path)
    assert [i.shape for i in run.get_inputs()] == [[2, 5], [3, 2, 4], [2, 4], [2, 4]]
    to_onnx(network, path)  # over the first, for any batch
    assert {stepped(session(path), spikes(2, batch, 5))[0].shape for batch in (1, 4)} == {(2, 1, 4), (2, 4, 4)}
    assert [file.name for file in tmp_path.iterdir()] == ["step.onnx"]


def test_an_input_that_leaves_as_it_came(tmp_path: Path) -> None:
    x = spikes(4, 2, 3)
    assert torch.equal(check(Network([nn.Identity()]), x, tmp_path, input_shape=[3]), x)


class Own(CustomNeuron):
    def rest(self, current: Tensor) -> Tensor:
        return torch.zeros_like(current)

    def membrane(self, current: Tensor, spikes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return current - self.threshold, state


REFUSED = {
    r"layers.0 \(Own\): .*one with a step of its own": ([Own(1.0)], (3,)),
    r"layers.1 \(ReLU\): to_onnx knows no operators": ([nn.Identity(), nn.ReLU()], (3,)),
    r"layers.0 \(Residual\): layers.0.body.1 \(ReLU\): to_onnx": ([Residual([nn.Linear(3, 3), nn.ReLU()])], (3,)),
    r"layers.0 \(Recurrent\): recurrent_layer \(ReLU\)": ([Recurrent(Leaky(0.5), nn.ReLU())], (3,)),
    r"layers.0 \(Recurrent\): to_onnx writes": ([Recurrent(Own(1.0), nn.Linear(3, 3))], (3,)),
    r"layers.0 \(Linear\): mat1": ([nn.Linear(4, 3)], (3,)),
    r"padding_mode: expected 'zeros', got 'circular'": ([nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")], (2, 4, 4)),
    r"layers.0 \(BinaryConv2d\): expected features of 3 axes": ([BinaryConv2d(2, 2, 3)], (2, 2, 4, 4)),
    r"ceil_mode: expected False, got True": ([nn.MaxPool2d(2, ceil_mode=True)], (2, 4, 4)),
    r"divisor_override: expected None, got 3": ([nn.AvgPool2d(2, divisor_override=3)], (2, 4, 4)),
    r"running statistics": ([nn.BatchNorm1d(3, track_running_stats=False)], (3, 2)),
    r"start_dim: expected an axis after time and batch, got 1": ([nn.Flatten(1, -1)], (2, 3)),
    r"input_shape: expected the sizes": ([Leaky(0.5)], None),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_export(tmp_path: Path, message: str) -> None:
    layers, shape = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        to_onnx(Network(layers), tmp_path / "step.onnx", input_shape=shape)
    assert not list(tmp_path.iterdir())


def test_arguments_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = Network([nn.Linear(2, 3)]), tmp_path / "step.onnx"
    with pytest.raises(ValueError, match=r"to_onnx: expected a tbnn.nn.Network, got Linear"):
        to_onnx(nn.Linear(2, 3), path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batch: expected None or a size >= 1, got 0"):
        to_onnx(network, path, batch=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        to_onnx(network, tmp_path / "nowhere" / "step.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"onnx: expected the package.*pip install 'tbnn\[exchange\]'"):
        to_onnx(network, path)
