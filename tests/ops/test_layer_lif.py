"""A layer of weights and its neurons as one function: the spikes of the two apart, bit for bit, and every gradient."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tbnn import surrogate
from tbnn.bits import pack_bits
from tbnn.nn import BinaryConv2d, BinaryLinear, Leaky
from tbnn.nn.fused import Group, weighted_spikes
from tbnn.nn.weights import BinaryWeight
from tbnn.ops.layer_lif import WeightedSpikes, kept_bytes, layer_lif, layer_lif_reference, plan, plan_of
from tbnn.ops.lif import LifOutput, LifState, Second, SpikeGradient

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
ADLIF = {"rho": 0.5, "from_v": 0.25, "from_spike": 0.5, "to_v": -1.0}
SYNAPTIC = {"rho": 0.75, "from_current": 1.0, "current_gain": 0.0, "to_v": 1.0}
MODES = ["speed", "balanced", "minimal"]
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
    return (torch.rand(steps, batch, *shape) < 0.4).to(dtype)


def second_of(values: dict[str, float], dtype: torch.dtype) -> Second:
    names = dict.fromkeys(Second._fields, 0.0) | {"current_gain": 1.0} | values
    return Second(*(torch.tensor(value, dtype=dtype, requires_grad=True) for value in names.values()))


def compare(
    layer: BinaryWeight,
    x: Tensor,
    memory: str | float,
    *,
    state: LifState | None = None,
    second: dict[str, float] | None = None,
    fires: bool = True,
    **options: Any,
) -> LifOutput:
    """Outputs equal, gradients of everything close; ``fires``: neither silence nor saturation."""
    dtype = x.dtype
    layer = layer.to(dtype)
    beta = torch.tensor(0.75, dtype=dtype, requires_grad=True)
    threshold = torch.tensor(0.875, dtype=dtype, requires_grad=True)
    x = x.clone().requires_grad_()
    options["second"] = None if second is None else second_of(second, dtype)
    state = None if state is None else LifState._make(None if s is None else s.clone().requires_grad_() for s in state)
    inputs = [x, beta, threshold, *layer.parameters(), *(options["second"] or ())]
    inputs += [] if state is None else [s for s in state if s is not None]
    inputs = [t for t in inputs if t.requires_grad]
    results = []
    for call in (layer_lif_reference, layer_lif):
        weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), x, memory)
        assert weighted is not None
        run = call(weighted, beta, threshold, state, **options)
        torch.manual_seed(1)
        parts = [t for t in (run.out, *run.state) if t is not None and t.requires_grad]
        loss = sum((t * torch.randn_like(t)).sum() for t in parts)
        results.append((run, torch.autograd.grad(loss, inputs, allow_unused=True)))  # pyright: ignore[reportArgumentType]
        if call is layer_lif:
            assert weighted.emitted is not None
            assert torch.equal(weighted.emitted, pack_bits(run.out.detach().flatten(2)))
    (expected, wanted), (got, gradients) = results
    assert not fires or 0.02 < expected.out.mean() < 0.8
    assert torch.equal(got.out, expected.out)
    for a, b in zip(got.state, expected.state, strict=True):
        assert a is b is None or torch.equal(a, b)
    for a, b in zip(gradients, wanted, strict=True):
        if b is None or not b.any():
            assert a is None or not a.any()
            continue
        assert a is not None
        assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()
    return got


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("memory", [*MODES, 0.6])
@pytest.mark.parametrize("gradient", [
    {"gradient": "surrogate"}, {}, {"stats": "step"}, {"target": "trace"}, {"target": "trace", "stats": "step"},
    {"per_channel": False, "differentiate_stats": False},
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_estimator(gradient: dict[str, Any], memory: str | float, dtype: torch.dtype) -> None:
    layer = BinaryLinear(33, 63)
    compare(layer, spikes_for(layer, 31, 3, dtype), memory, gradient=SpikeGradient(**gradient))


@pytest.mark.usefixtures("short_segments")
@given(
    steps=st.integers(1, 23),
    batch=st.integers(1, 4),
    sizes=st.tuples(st.integers(20, 70), st.integers(1, 70)),
    reset=st.sampled_from(["subtract", "zero", "none"]),
    refractory=st.sampled_from([0, 0, 1, 4]),
    winners=st.sampled_from([None, None, 5]),
    second=st.sampled_from([None, ADLIF, SYNAPTIC]),
    memory=st.sampled_from([*MODES, 0.5]),
    target=st.sampled_from(["soft", "trace", "surrogate"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    ended=st.booleans(),
)
def test_every_neuron(
    steps: int, batch: int, sizes: tuple[int, int], reset: str, refractory: int, winners: int | None,
    second: dict[str, float] | None, memory: str, target: str, dtype: torch.dtype, ended: bool,
) -> None:  # fmt: skip
    """Resets, gates, second states, lengths and states that are carried in, with checkpoints between all of them."""
    kind = {"gradient": "surrogate"} if target == "surrogate" else {"target": target}
    trace = target == "trace"
    if trace:
        reset = "subtract"
    torch.manual_seed(steps)
    layer = BinaryLinear(*sizes)
    shape = (batch, sizes[1])
    numbers = [torch.randn(shape, dtype=dtype) for _ in range(4)]
    fired = (torch.rand(shape) < 0.3).to(dtype)
    state = LifState(
        numbers[0], numbers[1] if trace else None, numbers[2] if second else None, numbers[3] if second and trace else None,
        fired if refractory or winners else None, refractory * fired if refractory else None,
    )  # fmt: skip
    lengths = torch.randint(0, steps + 1, (batch,)) if ended else None
    options = {"reset": reset, "refractory": refractory, "winners": winners, "lengths": lengths}
    x = spikes_for(layer, steps, batch, dtype)
    compare(layer, x, memory, state=state, second=second, fires=False, gradient=SpikeGradient(**kind), **options)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("memory", ["speed", "minimal"])
def test_a_refractory_period_across_a_checkpoint(memory: str) -> None:
    """Checkpoints stand every few steps and every spike is followed by four silent ones."""
    layer = BinaryLinear(40, 65)
    x = spikes_for(layer, 30, 2, torch.float64)
    run = compare(layer, x, memory, refractory=4, gradient=SpikeGradient())
    assert plan_of(memory, 30, 2, 65, 3).every < 15
    starts = [lo for lo, _ in plan_of(memory, 30, 2, 65, 3).segments[1:]]
    assert all(run.out[lo - 2 : lo].any() for lo in starts)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layer", [
    BinaryLinear(70, 9, bias=False, form="linear"), BinaryLinear(96, 33, bits=1.58, block=32),
    BinaryLinear(65, 33, bits=3, sparsity=0.5), BinaryLinear(65, 33, bits=2), BinaryLinear(64, 5, block=64, sparsity=0.3),
    BinaryConv2d(2, 4, 3, padding="same", bits=2), BinaryConv2d(4, 6, (3, 2), stride=2, padding=((1, 0), (0, 2)), groups=2),
    BinaryConv2d(3, 5, 3, dilation=2, padding=1, bias=False, bits=1.58, form="linear"),
], ids=repr)  # fmt: skip
def test_every_layer_of_weights(layer: BinaryWeight, dtype: torch.dtype) -> None:
    layer.reset_parameters()  # from the test's seed
    compare(layer, spikes_for(layer, 17, 3, dtype), "minimal", gradient=SpikeGradient())


def test_weights_of_one_value_and_zero_weights() -> None:
    layer = BinaryLinear(32, 8, bits=1.58)
    with torch.no_grad():
        layer.weight[:4] = 0
    compare(layer, spikes_for(layer, 9, 2, torch.float64), "minimal")


def test_gradients_of_a_mean_are_not_copied_out_and_none_is_needed() -> None:
    layer = BinaryLinear(40, 33)
    x = spikes_for(layer, 9, 2, torch.float32)
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


@pytest.mark.parametrize("shape", ["atan", "fast_sigmoid", "sigmoid", "triangular", "boxcar", *BARE])
def test_every_surrogate(shape: str) -> None:
    layer = BinaryLinear(33, 40)
    how = "surrogate" if shape in BARE else "ddt"
    gradient = SpikeGradient(how, BARE[shape] if shape in BARE else getattr(surrogate, shape)(), scale=0.5)
    compare(layer, spikes_for(layer, 12, 2, torch.float64), "minimal", gradient=gradient)


def test_fresh_memory_is_written_before_it_is_read(poisoned_memory: Any) -> None:
    layer = BinaryLinear(33, 40)
    x = spikes_for(layer, 12, 3, torch.float64)
    with poisoned_memory():
        compare(layer, x, 0.5, second=ADLIF, refractory=2, lengths=torch.tensor([12, 0, 5]), gradient=SpikeGradient())


@given(
    memory=st.sampled_from([*MODES, 0.3]), steps=st.integers(1, 3000), batch=st.integers(1, 64),
    features=st.integers(1, 5000), numbers=st.integers(1, 6),
)  # fmt: skip
def test_a_plan_covers_the_sequence(memory: str, steps: int, batch: int, features: int, numbers: int) -> None:
    way = plan_of(memory, steps, batch, features, numbers)
    spans = [span for segment in way.segments for span in way.chunks(segment)]
    assert [t for lo, hi in spans for t in range(lo, hi)] == list(range(steps))
    parts = kept_bytes(memory, steps, batch, features, features, numbers, 1, 4)
    every = {"speed": 32.0, "balanced": 8.0, "minimal": 0.0, 0.3: 9.6}[memory]
    assert 8 * parts["states"] <= every * steps * batch * features
    if memory == "minimal" and steps > 1000:
        assert 8 * parts["checkpoints"] < 0.5 * steps * batch * features


def test_what_is_wrong_is_said() -> None:
    layer = BinaryLinear(33, 40)
    weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), spikes_for(layer, 2, 2, torch.float32), "minimal")
    assert weighted is not None
    with pytest.raises(ValueError, match="expected emit='bits', got 'denoised'"):
        layer_lif(weighted, 0.9, gradient=SpikeGradient(emit="denoised"))
    with pytest.raises(ValueError, match=r"beta: expected a shape that broadcasts to \(40,\), got \(3,\)"):
        layer_lif(weighted, torch.ones(3))
    with pytest.raises(ValueError, match=r"lengths: expected values in \[0, 2\], got 1 to 3"):
        layer_lif(weighted, 0.9, lengths=torch.tensor([1, 3]))
    weighted.memory = "least"
    with pytest.raises(ValueError, match="memory: expected 'speed', 'balanced', 'minimal'"):
        layer_lif(weighted, 0.9)
    with pytest.raises(ValueError, match=r"expected int32 words \(T, B, 2\), got torch.int32 \(2, 2, 1\)"):
        WeightedSpikes(weighted.words[..., :1], None, weighted.weights, weighted.compose)
