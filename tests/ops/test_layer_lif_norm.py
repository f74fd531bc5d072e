"""A layer of weights, a batch norm and its neurons as one function: the spikes of the three apart, and every gradient."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn import surrogate
from tbnn.bits import pack_bits
from tbnn.nn import BinaryConv2d, BinaryLinear, Leaky
from tbnn.nn.fused import Group, weighted_spikes
from tbnn.nn.weights import BinaryWeight
from tbnn.ops.layer_lif import Norm, WeightedSpikes, kept_bytes, layer_lif, layer_lif_reference, plan
from tbnn.ops.lif import LifOutput, LifState, Second, SpikeGradient

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
EPS = 1e-5
ADLIF = {"rho": 0.5, "from_v": 0.25, "from_spike": 0.5, "to_v": -1.0}
SYNAPTIC = {"rho": 0.75, "from_current": 1.0, "current_gain": 0.0, "to_v": 1.0}
BARE = {
    "leaky_spike": surrogate.leaky_spike(),
    "signed": surrogate.signed(0.5),
    "spike_rate_escape": surrogate.spike_rate_escape(2.0, 3.0),
    "sparse_fast_sigmoid": surrogate.sparse_fast_sigmoid(2.0, 0.25),
}


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints every few steps, two chunks from one to the next."""
    monkeypatch.setattr(plan, "SPACING", 3)
    monkeypatch.setattr(plan, "CHUNK", 2000)


def spikes_for(layer: BinaryWeight, steps: int, batch: int, dtype: torch.dtype) -> Tensor:
    shape = (layer.in_features,) if isinstance(layer, BinaryLinear) else (layer.in_channels, 7, 6)  # pyright: ignore[reportAttributeAccessIssue]
    return (torch.rand((steps, batch, *shape)) < 0.4).to(dtype)  # pyright: ignore


def normed_by_definition(current: Tensor, norm: Norm, lengths: Tensor | None) -> Tensor:
    """The norm of currents (T, B, C, ...) over the steps within ``lengths``."""
    per_channel = (-1, *[1] * (current.ndim - 3))
    if norm.mean is not None:
        return F.batch_norm(current.flatten(0, 1), norm.mean, norm.var, norm.weight, norm.bias, eps=norm.eps).view_as(
            current
        )
    if lengths is None:
        return F.batch_norm(current.flatten(0, 1), None, None, norm.weight, norm.bias, True, 0.1, norm.eps).view_as(
            current
        )
    counted = current[torch.arange(len(current))[:, None] < lengths]
    mean, var = (
        t.reshape(per_channel)
        for t in (counted.transpose(0, 1).flatten(1).mean(1), counted.transpose(0, 1).flatten(1).var(1, correction=0))
    )
    return (current - mean) / (var + norm.eps).sqrt() * norm.weight.reshape(per_channel) + norm.bias.reshape(
        per_channel
    )


class _Carrier(torch.autograd.Function):
    """One NaN, expanded, in the place of spikes: its gradient is theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_full((), torch.nan).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0]


def weighted_for(
    layer: BinaryWeight, x: Tensor, memory: str | float, norm: Norm, lengths: Tensor | None, floats: bool
) -> WeightedSpikes:
    plain = weighted_spikes(Group(layer, None, Leaky(0.5)), x, memory)
    assert plain is not None

    def compose() -> Tensor:
        return normed_by_definition(plain.compose(), norm, lengths)

    values: Tensor = x if floats else _Carrier.apply(x)  # pyright: ignore[reportAssignmentType]
    return WeightedSpikes(plain.words, values, plain.weights, compose, memory, norm, floats)


def compare(
    layer: BinaryWeight,
    x: Tensor,
    memory: str | float,
    *,
    training: bool = True,
    state: LifState | None = None,
    second: dict[str, float] | None = None,
    floats: bool = True,
    fires: bool = True,
    tiled: bool | None = None,
    **options: Any,
) -> LifOutput:
    """Outputs equal (in float32 but for a few spikes), gradients of everything close."""
    dtype, outputs = x.dtype, layer.weight.shape[0]
    layer = layer.to(dtype)
    beta = torch.tensor(0.75, dtype=dtype, requires_grad=True)
    threshold = torch.tensor(0.875, dtype=dtype, requires_grad=True)
    x = x.clone().requires_grad_()
    gamma = (torch.rand(outputs, dtype=dtype) + 0.5).requires_grad_()
    shift = (0.5 * torch.rand(outputs, dtype=dtype)).requires_grad_()
    given = None if training else (torch.randn(outputs, dtype=dtype), torch.rand(outputs, dtype=dtype) + 4)
    names = dict.fromkeys(Second._fields, 0.0) | {"current_gain": 1.0} | (second or {})
    if second is not None:
        options["second"] = Second(*(torch.tensor(v, dtype=dtype, requires_grad=True) for v in names.values()))
    state = None if state is None else LifState._make(None if s is None else s.clone().requires_grad_() for s in state)
    inputs = [x, beta, threshold, gamma, shift, *layer.parameters(), *(options.get("second") or ())]
    inputs += [] if state is None else [s for s in state if s is not None]
    inputs = [t for t in inputs if t.requires_grad]
    results, seen = [], []
    for call in (layer_lif_reference, layer_lif):
        norm = Norm(gamma, shift, EPS, *(given or (None, None)), observe=lambda *moments: seen.append(moments))
        weighted = weighted_for(layer, x, memory, norm, options.get("lengths"), floats)
        run = call(weighted, beta, threshold, state, **options)
        torch.manual_seed(1)
        parts = [t for t in (run.out, *run.state) if t is not None and t.requires_grad]
        loss = torch.stack([(t * torch.randn_like(t)).sum() for t in parts]).sum()
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        results.append((run, gradients))
        if call is layer_lif:
            assert weighted.emitted is not None
            expected = results[0][0].out.detach()
            assert torch.equal(weighted.emitted, pack_bits(expected.flatten(2)))
            assert tiled is None or tiled == (weighted.products is not None)
            assert not floats or torch.equal(run.out, expected)
            assert floats or (
                run.out.shape == expected.shape and run.out.untyped_storage().nbytes() == x.element_size()
            )
    assert len(seen) == training
    (expected, wanted), (got, gradients) = results
    assert not fires or 0.02 < expected.out.mean() < 0.8
    for a, b in zip(got.state, expected.state, strict=True):
        assert a is b is None or (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max().clamp(min=1)
    bias = layer.bias
    for tensor, a, b in zip(inputs, gradients, wanted, strict=True):
        if tensor is bias and training:
            assert a is None or a.abs().max() <= 100 * TOLERANCE[dtype]  # 0 but for rounding, on either side
        elif b is None or not b.any():
            assert a is None or not a.any()
        else:
            assert a is not None
            assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()
    return got


LAYERS = [
    BinaryLinear(70, 9, bias=False, form="linear"), BinaryLinear(96, 33, bits=1.58, block=32),
    BinaryLinear(65, 33, bits=3, sparsity=0.5), BinaryLinear(65, 70, bits=2),
    BinaryConv2d(2, 4, 3, padding="same", bits=2), BinaryConv2d(4, 6, (3, 2), stride=2, padding=((1, 0), (0, 2)), groups=2),
    BinaryConv2d(3, 5, 3, dilation=2, padding=1, bias=False, bits=1.58, form="linear"), BinaryConv2d(2, 3, (7, 6)),
]  # fmt: skip


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_every_layer_of_weights(layer: BinaryWeight, training: bool, floats: bool) -> None:
    layer.reset_parameters()  # from the test's seed
    x = spikes_for(layer, 17, 3, torch.float64)
    compare(layer, x, "minimal", training=training, floats=floats, gradient=SpikeGradient(), tiled=layer.block is None)


@pytest.mark.parametrize("memory", ["speed", "balanced", "minimal", 0.6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gradient", [
    {"gradient": "surrogate"}, {}, {"stats": "step"}, {"target": "trace"}, {"target": "trace", "stats": "step"},
    {"per_channel": False, "differentiate_stats": False},
])  # fmt: skip
def test_every_estimator(gradient: dict[str, Any], memory: str | float, dtype: torch.dtype) -> None:
    layer = BinaryConv2d(2, 5, 3, padding=1)
    tiled = gradient.get("stats") != "step"
    compare(layer, spikes_for(layer, 13, 3, dtype), memory, gradient=SpikeGradient(**gradient), tiled=tiled)


@pytest.mark.usefixtures("short_segments")
@settings(max_examples=60)
@given(
    steps=st.integers(2, 23),
    batch=st.integers(1, 20),
    sizes=st.tuples(st.integers(20, 70), st.integers(1, 70)),
    reset=st.sampled_from(["subtract", "zero", "none"]),
    refractory=st.sampled_from([0, 0, 0, 3]),
    winners=st.sampled_from([None, None, None, 5]),
    second=st.sampled_from([None, None, ADLIF, SYNAPTIC]),
    memory=st.sampled_from(["speed", "balanced", "minimal", 0.5]),
    target=st.sampled_from(["soft", "trace", "surrogate"]),
    ended=st.booleans(),
    training=st.booleans(),
    floats=st.booleans(),
)
def test_every_neuron(
    steps: int, batch: int, sizes: tuple[int, int], reset: str, refractory: int, winners: int | None,
    second: dict[str, float] | None, memory: str, target: str, ended: bool, training: bool, floats: bool,
) -> None:  # fmt: skip
    """Resets, gates, second states, lengths and states that are carried in."""
    kind: dict[str, Any] = {"gradient": "surrogate"} if target == "surrogate" else {"target": target}
    trace = target == "trace"
    if trace:
        reset = "subtract"
    torch.manual_seed(steps)
    layer, dtype = BinaryLinear(*sizes), torch.float64
    numbers = [torch.randn((batch, sizes[1]), dtype=dtype) for _ in range(4)]
    fired = (torch.rand(batch, sizes[1]) < 0.3).to(dtype)
    state = LifState(
        numbers[0], numbers[1] if trace else None, numbers[2] if second else None, numbers[3] if second and trace else None,
        fired if refractory or winners else None, refractory * fired if refractory else None,
    )  # fmt: skip
    lengths = torch.randint(0, steps + 1, (batch,)) if ended else None
    if lengths is not None:
        lengths[0] = steps
    options = {"reset": reset, "refractory": refractory, "winners": winners, "lengths": lengths, "floats": floats}
    x = spikes_for(layer, steps, batch, dtype)
    compare(
        layer, x, memory, training=training, state=state, second=second, fires=False, gradient=SpikeGradient(**kind), **options,
        tiled=not (refractory or winners or second),
    )  # fmt: skip


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)), kernel=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.integers(0, 2), groups=st.integers(1, 2), batch=st.integers(1, 17), training=st.booleans(),
)  # fmt: skip
def test_convolutions_whose_channels_begin_within_words(
    size: tuple[int, int], kernel: int, stride: int, padding: int, groups: int, batch: int, training: bool
) -> None:
    layer = BinaryConv2d(2, 4, kernel, stride, padding, groups=groups)
    if min(size) + 2 * padding < kernel:
        return
    x = (torch.rand(3, batch, 2, *size) < 0.4).double()
    compare(layer, x, "speed", training=training, fires=False, tiled=True)


@pytest.mark.parametrize("shape", ["atan", "fast_sigmoid", "sigmoid", "triangular", "boxcar", *BARE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_surrogate(shape: str, dtype: torch.dtype) -> None:
    layer = BinaryConv2d(2, 3, 3)
    how = "surrogate" if shape in BARE else "ddt"
    gradient = SpikeGradient(how, BARE[shape] if shape in BARE else getattr(surrogate, shape)(), scale=0.5)
    compare(layer, spikes_for(layer, 12, 2, dtype), "speed", gradient=gradient, tiled=True)


def test_many_steps_and_neurons() -> None:
    """More than a tile of neurons, and more steps than small tiles go."""
    layer = BinaryLinear(20, 1100)
    compare(layer, spikes_for(layer, 140, 2, torch.float64), "minimal", tiled=True)
    layer = BinaryLinear(20, 30)
    compare(layer, spikes_for(layer, plan.LONGEST + 1, 2, torch.float64), "minimal", tiled=False)


def test_whole_numbers_beyond_16_bits() -> None:
    layer = BinaryLinear(300, 5, bits=7)
    weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), spikes_for(layer, 2, 2, torch.float32), "speed")
    assert weighted is not None
    assert 300 * weighted.weights.values.abs().max() > 32767
    compare(layer, spikes_for(layer, 9, 3, torch.float64), "speed", tiled=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_observed(dtype: torch.dtype) -> None:
    """Mean, biased variance and count of the currents, once, though the bias is far from 0."""
    for layer in (BinaryConv2d(2, 4, 3), BinaryLinear(96, 6, block=32)):
        layer = layer.to(dtype)
        torch.nn.init.constant_(layer.bias, 50.0)  # pyright: ignore[reportArgumentType]
        x, seen = spikes_for(layer, 11, 3, dtype), []
        ones = torch.ones(layer.weight.shape[0], dtype=dtype)
        norm = Norm(ones, ones, EPS, observe=lambda *moments, seen=seen: seen.append(moments))
        weighted = weighted_for(layer, x, "speed", norm, None, True)
        current = layer(x).double().transpose(1, 2).transpose(0, 1).flatten(1)
        layer_lif(weighted, 0.9, lengths=None)
        ((mean, var, count),) = seen
        assert count == current.shape[1]
        assert mean.dtype == var.dtype == dtype
        assert torch.allclose(mean.double(), current.mean(1), rtol=1e-6)
        assert torch.allclose(var.double(), current.var(1, correction=0), rtol=1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("memory", ["speed", "balanced", "minimal", 0.6])
@pytest.mark.parametrize("neuron", ["plain", "trace", "adaptive"])
def test_bytes_are_those_foretold(memory: str | float, neuron: str) -> None:
    layer = BinaryConv2d(2, 5, 3, padding=1)
    x = spikes_for(layer, 20, 3, torch.float32)
    ones = torch.ones(5, requires_grad=True)
    weighted = weighted_for(layer, x, memory, Norm(ones, ones, EPS), None, False)
    names = dict.fromkeys(Second._fields, 0.0) | {"current_gain": 1.0} | ADLIF
    second = Second(*map(torch.tensor, names.values())) if neuron == "adaptive" else None
    gradient = SpikeGradient(target="trace" if neuron == "trace" else "soft")
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer_lif(weighted, 0.9, second=second, gradient=gradient)
    states = 1 if neuron == "plain" else 2
    parts = kept_bytes(memory, 20, 3, 84, 5 * 42, states + (neuron == "adaptive"), states, 4, weighted.products)
    own = [
        t
        for t in kept.values()
        if t.untyped_storage().data_ptr() not in {weighted.weights.weight.untyped_storage().data_ptr()}
    ]
    small = 4 * 210 * (3 if second is None else 10)  # the coefficients, spread
    assert sum(t.untyped_storage().nbytes() for t in own) == sum(parts.values()) + small
    assert (parts["products"] > 0) == (neuron != "adaptive" and memory != "minimal")


def test_fresh_memory_is_written_before_it_is_read(poisoned_memory: Any) -> None:
    layer = BinaryConv2d(2, 5, 3)
    x = spikes_for(layer, 12, 3, torch.float64)
    for second in (None, ADLIF):
        for memory in (0.5, "speed"):
            with poisoned_memory():
                compare(layer, x, memory, second=second, lengths=torch.tensor([12, 0, 5]), floats=False)


def test_threads_do_not_change_a_number(with_threads: Any) -> None:
    layer = BinaryConv2d(2, 8, 3)
    x = (torch.rand(9, 20, 2, 20, 20) < 0.4).float()

    def run() -> list[np.ndarray[Any, Any]]:
        torch.manual_seed(2)
        gamma = torch.ones(8, requires_grad=True)
        out = layer_lif(weighted_for(layer, x, "speed", Norm(gamma, gamma, EPS), None, True), 0.9).out
        loss = (out * torch.randn_like(out)).sum()
        return [g.numpy() for g in (out.detach(), *torch.autograd.grad(loss, gamma))]

    for a, b in zip(with_threads(1, run), with_threads(3, run), strict=True):
        assert np.array_equal(a, b)


def test_what_is_wrong_is_said() -> None:
    layer, ones = BinaryLinear(33, 40), torch.ones(40)
    x = spikes_for(layer, 1, 1, torch.float32)
    with pytest.raises(ValueError, match="expected more than one value a channel to normalise in training, got 1"):
        layer_lif(weighted_for(layer, x, "speed", Norm(ones, ones, EPS), None, True), 0.9)
    with pytest.raises(ValueError, match=r"norm: expected a weight and a bias \(40,\), got \(3,\) and \(40,\)"):
        weighted_for(layer, x, "speed", Norm(ones[:3], ones, EPS), None, True)
    with pytest.raises(ValueError, match="expected a mean and a variance or neither"):
        weighted_for(layer, x, "speed", Norm(ones, ones, EPS, ones), None, True)
