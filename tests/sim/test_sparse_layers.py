"""Layers of few weights as lists of connections: packed, run, saved, drawn at random; the same network as bit planes."""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_reader
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.sim import PackedNetwork, check_parity, pack
from tbnn.sim.file import all_tensors, write
from tbnn.sim.layers import LeakySpec, LinearSpec, PackedLeaky, PackedLinear, PackedSparse, SparseSpec, planes_of
from tbnn.sim.layers.sparse import LISTS_BELOW
from tbnn.sim.pack import unpack

Content = tuple[dict[str, Any], dict[str, Tensor]]


def network(
    bits: float = 1,
    form: str = "affine",
    bias: bool = True,
    seed: int = 0,
    sizes: tuple[int, int] = (70, 120),
    **neuron: Any,
) -> Network:
    """Sparse, then sparse with feedback, then a readout; enough of the few weights make spikes."""
    torch.manual_seed(seed)
    grid = {"bits": bits, "sparsity": 0.98, "form": form}
    inputs, size = sizes
    layers: list[nn.Module] = [
        BinaryLinear(inputs, size, bias, **grid),  # type: ignore[arg-type]
        Leaky(torch.rand(size), 0.3, **neuron),
        BinaryLinear(size, size, bias, **grid),  # type: ignore[arg-type]
        Recurrent(Leaky(0.9, 0.3, **neuron), BinaryLinear(size, size, bias, **grid)),  # type: ignore[arg-type]
        BinaryLinear(size, 5),
        LeakyIntegrator(0.9),
    ]
    for layer in layers:
        if isinstance(layer, BinaryLinear) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.3)
    return Network(layers).eval()


def frames(inputs: int = 70, steps: int = 9, batch: int = 3) -> Tensor:
    return (torch.rand(steps, batch, inputs, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def as_planes(packed: PackedNetwork) -> PackedNetwork:
    """The same network without lists."""
    layers = []
    for layer in packed.layers:
        if isinstance(layer, PackedLeaky) and isinstance(layer.feedback, PackedSparse):
            feedback = layer.feedback.to_linear()
            layer = replace(layer, spec=replace(layer.spec, feedback=feedback.spec), feedback=feedback)
        layers.append(layer.to_linear() if isinstance(layer, PackedSparse) else layer)
    return PackedNetwork(tuple(layers), packed.in_features)


def in_a_file(packed: PackedNetwork) -> PackedNetwork:
    with tempfile.TemporaryDirectory() as folder:
        packed.save(Path(folder) / "a.tbnn")
        return PackedNetwork.load(Path(folder) / "a.tbnn")


@settings(max_examples=30)
@given(
    bits=st.sampled_from([1, 1.58, 2, 3, 8]),
    form=st.sampled_from(["affine", "linear"]),
    bias=st.booleans(),
    seed=st.integers(0, 999),
    sizes=st.tuples(st.integers(1, 100), st.integers(43, 150)),
    emit=st.sampled_from(["bits", "bits", "denoised"]),
)
def test_a_packed_network_is_its_model(
    bits: float, form: str, bias: bool, seed: int, sizes: tuple[int, int], emit: str
) -> None:
    model, x = network(bits, form, bias, seed, sizes, emit=emit), frames(sizes[0])
    packed = in_a_file(pack(model))
    parity = check_parity(model, packed, x)
    assert parity.equal if emit == "bits" else parity.ok, parity.summary()
    kinds = [type(layer).__name__ for layer in packed.linear_layers]
    if bits != 1.58:  # its grid has its own share of zeros
        assert kinds[1:] == ["PackedSparse", "PackedSparse", "PackedLinear"]
    planes, lists = (net.simulate(x, record=("spikes",)) for net in (as_planes(packed), packed))
    assert torch.equal(planes.readout, lists.readout)  # type: ignore[arg-type]
    assert all(torch.equal(planes.spikes[name], lists.spikes[name]) for name in lists.spikes)
    assert [row.effective_synops for row in planes.counts.layers] == [
        row.effective_synops for row in lists.counts.layers
    ]


def test_spikes_come_and_go_through_lists() -> None:
    packed = pack(network())
    counts = {row.name: row for row in packed.simulate(frames()).counts.layers}
    assert [row.path for row in counts.values() if row.kind == "sparse"] == ["lists"] * 3
    feedback = counts["layers.3.recurrent_layer"]
    assert 0 < feedback.effective_synops < 0.05 * feedback.dense_synops
    assert 0.05 < counts["layers.3"].firing_rate < 0.95  # type: ignore[operator]


def test_the_feedback_has_another_bias_at_the_first_step() -> None:
    packed, x = pack(network()), frames()
    leaky = packed.layers[3]
    assert isinstance(leaky, PackedLeaky)
    spec = replace(leaky.spec, rest_bias=True)
    other = replace(leaky, spec=spec, rest_bias=torch.linspace(-1, 1, spec.features))
    resting = replace(packed, layers=(*packed.layers[:3], other, *packed.layers[4:]))
    lists, planes, plain = (net.simulate(x).readout for net in (resting, as_planes(resting), packed))
    assert torch.equal(lists, planes)  # type: ignore[arg-type]
    assert not torch.equal(lists[0], plain[0])  # type: ignore[index]


def test_in_pieces_as_in_one() -> None:
    packed, x = pack(network()), frames()
    whole, first = packed.simulate(x), packed.simulate(x[:4])
    rest = packed.simulate(x[4:], state=first.state)
    assert torch.equal(torch.cat([first.readout, rest.readout]), whole.readout)  # type: ignore[arg-type, list-item]


def test_a_reader_in_numpy(tmp_path: Path) -> None:
    for bits in (1, 3):
        packed = pack(network(bits))
        packed.save(tmp_path / "a.tbnn")
        got = numpy_reader.simulate(tmp_path / "a.tbnn", frames().numpy())
        np.testing.assert_allclose(got, packed.simulate(frames()).readout.numpy(), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


def test_back_to_a_model_and_packed_again() -> None:
    packed = pack(network(3))
    again = pack(unpack(packed))
    assert [layer.spec for layer in again.layers] == [layer.spec for layer in packed.layers]
    ours, theirs = all_tensors(again.layers), all_tensors(packed.layers)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def values(density: float, inputs: int = 100, outputs: int = 100, most: int = 1) -> Tensor:
    rng = np.random.default_rng(0)
    kept = rng.permutation(inputs * outputs).reshape(outputs, inputs) < round(density * inputs * outputs)
    odd = 2 * rng.integers(0, (most + 1) // 2, (outputs, inputs)) + 1
    return torch.from_numpy(np.where(kept, odd * rng.choice([-1, 1], odd.shape), 0)).int()


def layer_of(numbers: Tensor, sparsity: float, block: int | None = None, bits: int = 1) -> PackedLinear | PackedSparse:
    """What packs from a model with these values."""
    layer = BinaryLinear(numbers.shape[1], numbers.shape[0], bits=bits, sparsity=sparsity, block=block, scope="tensor")
    layer.weight.data = numbers.float()
    return pack(Network([layer])).linear_layers[0]


def test_the_border_between_lists_and_planes() -> None:
    assert LISTS_BELOW == 0.03
    for density, kind in ((0.02, PackedSparse), (0.029, PackedSparse), (0.03, PackedLinear), (0.2, PackedLinear)):
        packed = layer_of(values(density), 1 - density)
        assert type(packed) is kind, density
        assert torch.equal(packed.values(), values(density))
    assert isinstance(layer_of(values(0.02, 128), 0.98, block=64), PackedLinear)  # scales of its own a block
    few = layer_of(values(0.02, 100, 20), 0.98)  # 8 bytes of starts an input: more than planes of 20 outputs
    assert isinstance(few, PackedLinear)


@pytest.mark.parametrize(("bits", "most"), [(1, 1), (2, 3), (8, 255)])
def test_lists_to_planes_and_back(bits: int, most: int) -> None:
    numbers, scale = values(0.1, 33, 70, most), torch.rand(70, 1)
    spec = LinearSpec("x", 33, 70, 33, True, True, bits, True)
    linear = PackedLinear(spec, planes_of(numbers, bits, True), scale, torch.rand(70, 1), torch.rand(70))
    sparse = PackedSparse.from_linear(linear)
    assert sparse.spec == SparseSpec("x", 33, 70, int((numbers != 0).sum()), True, True, bits)
    assert (sparse.magnitudes is None) == (bits == 1)
    assert torch.equal(sparse.values(), numbers)
    back = sparse.to_linear()
    assert back.spec == spec
    assert all(torch.equal(tensor, linear.tensors()[name]) for name, tensor in back.tensors().items())
    full = PackedLinear(LinearSpec("x", 33, 70, 33, False, False), planes_of(numbers, 1, False), scale)
    assert torch.equal(PackedSparse.from_linear(full).values(), full.values())
    blocks = PackedLinear(LinearSpec("x", 33, 70, 32, False, False), full.planes, torch.rand(70, 2))
    with pytest.raises(ValueError, match="x: block: expected one of all 33 inputs, got 32"):
        PackedSparse.from_linear(blocks)


def test_no_connection_at_all() -> None:
    for bits in (1, 2):
        bias = torch.arange(50.0)
        layer = PackedSparse.from_values("x", torch.zeros(50, 9).int(), bits, torch.ones(50, 1), None, bias)
        assert not layer.values().any()
        got = in_a_file(PackedNetwork((layer,), 9)).simulate(torch.ones(2, 1, 9)).readout
        assert torch.equal(got, bias.expand(2, 1, 50))  # type: ignore[arg-type]


def test_a_random_layer_has_the_share_it_was_asked_for() -> None:
    for inputs, outputs, density, negative in ((300, 500, 0.01, 0.5), (1500, 2000, 0.5, 0.2), (70, 9, 1.0, 0.0)):
        layer = PackedSparse.random("x", inputs, outputs, density, seed=3, scale=0.25, negative=negative)
        numbers, weights = layer.values(), inputs * outputs
        kept = int((numbers != 0).sum())
        assert kept == layer.spec.connections
        assert abs(kept - density * weights) <= 4 * (density * (1 - density) * weights) ** 0.5
        minus = int((numbers < 0).sum())
        assert abs(minus - negative * kept) <= 4 * (negative * (1 - negative) * kept) ** 0.5
        for axis, size in ((0, outputs), (1, inputs)):  # each row and column as a binomial of this variance
            sums = (numbers != 0).double().sum(axis)
            wanted = size * density * (1 - density)
            assert 0.7 * wanted <= float(sums.var()) <= 1.3 * wanted
        assert torch.equal(layer.scale, torch.full((outputs, 1), 0.25))


def test_a_random_layer_is_its_seed_s() -> None:
    one, same, other = (PackedSparse.random("x", 100, 100, 0.05, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors().values(), same.tensors().values(), strict=True))
    assert not torch.equal(one.starts, other.starts)
    scales = torch.arange(1.0, 101)
    assert torch.equal(PackedSparse.random("x", 100, 100, 0.05, 1, scale=scales).scale[:, 0], scales)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.0}, r"x: expected a density in \(0, 1\]"),
        ({"density": 1.5}, r"x: expected a density in \(0, 1\]"),
        ({"negative": 2.0}, "a negative share in"),
        ({"in_features": 0}, "x: in_features: expected at least 1, got 0"),
        ({"in_features": 2**20, "out_features": 2**20}, "x: connections: expected 0 to 2147483647, got 10995116278"),
        ({"scale": torch.ones(3)}, "x: scale: expected 1 or 50 values, got 3"),
    ],
)
def test_a_random_layer_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    arguments = {"name": "x", "in_features": 40, "out_features": 50, "density": 0.01, "seed": 0}
    with pytest.raises(ValueError, match=message):
        PackedSparse.random(**{**arguments, **changes})


def test_a_recurrent_network_of_4096_neurons() -> None:
    size, steps = 2**12, 50
    feedback = PackedSparse.random("neurons.feedback", size, size, 0.01, seed=0, scale=0.1)
    inputs = PackedSparse.random("inputs", 64, size, 0.1, seed=1, scale=0.5, negative=0.0)
    spec = LeakySpec("neurons", size, "subtract", 1, 1, feedback.spec, False)
    neurons = PackedLeaky(spec, torch.tensor([0.9]), torch.tensor([1.0]), feedback)
    packed = PackedNetwork((inputs, neurons), 64)
    assert packed.packed_bytes < 2.1 * 0.0102 * size**2 + 8 * size + 4 * 8 * size
    x = (torch.rand(steps, 2, 64, generator=torch.Generator().manual_seed(0)) < 0.05).float()
    result = packed.simulate(x)
    rows = {row.name: row for row in result.counts.layers}
    assert 0.005 < rows["neurons"].firing_rate < 0.2  # type: ignore[operator]
    assert rows["neurons.feedback"].path == "lists"
    expected = as_planes(packed).simulate(x)
    assert torch.equal(result.output_spikes, expected.output_spikes)  # type: ignore[arg-type]


def content(path: Path) -> Content:
    with safe_open(path, framework="pt") as opened:
        return json.loads(opened.metadata()["tbnn"]), {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (it has no iterator)


def changed(name: str, place: int, value: int) -> Callable[[Content], None]:
    def change(found: Content) -> None:
        tensor = found[1][name].int()
        tensor[place] = value
        found[1][name] = tensor.to(found[1][name].dtype)

    return change


def spec_of(**changes: Any) -> Callable[[Content], None]:
    return lambda found: found[0]["layers"][0].update(changes)


def feedback_of(**changes: Any) -> Callable[[Content], None]:
    return lambda found: found[0]["layers"][3]["feedback"].update(changes)


LIES = {
    "starts that fall": (changed("layers.0.starts", 5, 3000), "layers.0.starts: expected 0 to 120 .* with steps back"),
    "starts that end early": (changed("layers.0.starts", -1, 100), "layers.0.starts: expected 0 to 120 .*0 to 100"),
    "starts that begin late": (changed("layers.0.starts", 0, 1), "layers.0.starts: expected 0 to 120"),
    "an output that is none": (changed("layers.0.outputs", 7, 120), "layers.0.outputs: expected outputs below 120, got 120 at 7"),
    "a magnitude of 0": (changed("layers.0.magnitudes", 3, 0), "layers.0.magnitudes: expected 1 or more, got 0"),
    "an even magnitude": (changed("layers.0.magnitudes", 3, 2), "layers.0.magnitudes: expected odd numbers below 8"),
    "a large magnitude": (changed("layers.0.magnitudes", 3, 9), "layers.0.magnitudes: expected odd numbers below 8, got 9"),
    "more connections": (spec_of(connections=121), "layers.0.outputs: the header says torch.uint16 .121,., got .* .120,."),
    "huge connections": (spec_of(connections=2**40), "layers.0: connections: expected 0 to 8400, got 1099511627776"),
    "a negative number": (spec_of(connections=-1), "layers.0: connections: expected 0 to 8400, got -1"),
    "wide outputs": (spec_of(out_features=2**17), "layers.0.* the header says"),
    "huge inputs": (spec_of(in_features=2**31), "layers.0: in_features: expected at most"),
    "huge lists": (spec_of(in_features=2**31 - 1), "layers.0: lists: expected at most"),
    "other bits": (spec_of(bits=9), "layers.0: bits: expected 1 to 8, got 9"),
    "one bit": (spec_of(bits=1), r"that it does not name: \['layers.0.magnitudes'\]"),
    "no field": (lambda found: found[0]["layers"][0].pop("bits"), "sparse: expected the fields"),
    "feedback": (feedback_of(connections=1), "layers.3.recurrent_layer.*the header says"),
    "feedback of other fields": (feedback_of(block=120), "sparse: expected the fields"),
    "feedback's outputs": (changed("layers.3.recurrent_layer.outputs", 0, 65535), "outputs below 120, got 65535 at 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_with_a_right_digest(tmp_path: Path, name: str) -> None:
    lie, message = LIES[name]
    path = tmp_path / "a.tbnn"
    pack(network(3)).save(path)
    found = content(path)
    assert found[0]["layers"][0]["connections"] == 120
    lie(found)
    write(json.dumps(found[0]), found[1], path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        PackedNetwork.load(path)
    assert re.search(message, str(caught.value)), caught.value


def test_lists_out_of_order_and_in_both_signs() -> None:
    layer = PackedSparse.from_values("x", torch.tensor([[1, 0], [1, -1], [-1, 0]]), 1, torch.ones(3, 1), None, None)
    assert layer.starts.tolist() == [0, 2, 3, 3, 4]
    assert layer.outputs.tolist() == [0, 1, 2, 1]
    for outputs, message in (
        ([1, 0, 2, 1], "ascending order"),
        ([0, 1, 1, 1], "in both lists of its input, got 1 at 2"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(layer, outputs=torch.tensor(outputs).to(torch.uint16))
