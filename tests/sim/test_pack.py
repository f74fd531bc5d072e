"""What packs, how large it is, and what is refused."""

import pytest
import torch
from sim_networks import small_network
from torch import Tensor, nn

from tbnn.bits import pack_bits, unpack_bits
from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    TargetRate,
)
from tbnn.nn.dropout import SpikeDropout
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.sim import PackedIntegrator, PackedLeaky, PackedLinear, PackedNetwork, check_parity, pack
from tbnn.sim.layers import IntegratorSpec, LeakySpec, LinearSpec


class Louder(BinaryLinear):
    """A subclass with another forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_weight(value: float) -> BinaryLinear:
    layer = BinaryLinear(7, 5)
    layer.weight.data[2, 3] = value
    return layer


@pytest.mark.parametrize("block", [None, 32, 64])
@pytest.mark.parametrize("form", ["affine", "linear"])
def test_signs_scales_and_offsets_are_the_layers_weights(block: int | None, form: str) -> None:
    layer = BinaryLinear(70, 5, block=block, form=form)
    packed = pack(Network([layer])).layers[0]
    assert isinstance(packed, PackedLinear)
    signs = packed.values()
    assert torch.equal(signs, 2 * unpack_bits(packed.planes[0], 70, torch.int32) - 1)
    per_input = torch.arange(70) // (block or 70)
    offset = torch.zeros_like(packed.scale) if packed.offset is None else packed.offset
    torch.testing.assert_close(signs * packed.scale[:, per_input] + offset[:, per_input], layer.quantized_weight().data)
    assert (packed.offset is None) == (form == "linear")
    assert torch.equal(packed.bias, layer.bias.data)


def test_sizes_of_a_network_counted_by_hand() -> None:
    layers = [BinaryLinear(70, 8), Recurrent(Leaky(0.9), BinaryLinear(8, 8, bias=False, form="linear"))]
    packed = pack(Network([*layers, BinaryLinear(8, 3, block=32), LeakyIntegrator(torch.rand(3))]))
    weights = 70 * 8 + 8 * 8 + 8 * 3
    signs = 4 * (8 * 3 + 8 * 1 + 3 * 1)  # a row of 70 takes 3 words
    scales = 4 * (2 * 8 + 8 + 2 * 3)
    others = 4 * (8 + 2 + 3 + 3)  # biases, a shared beta and threshold, the readout's betas
    assert packed.weights == weights
    assert packed.packed_bytes == signs + scales + others
    assert packed.bits_per_weight == 8 * (signs + scales) / weights
    assert packed.float32_bytes == 4 * weights + others
    assert packed.in_features == 70


def test_names_are_those_of_the_model_and_dropout_vanishes() -> None:
    layers = [BinaryLinear(7, 5), nn.Dropout(0.5), Leaky(0.9), nn.Identity(), BinaryLinear(5, 5)]
    packed = pack(Network([*layers, Recurrent(Leaky(0.9), BinaryLinear(5, 5))]))
    assert [layer.spec.name for layer in packed.layers] == ["layers.0", "layers.2", "layers.4", "layers.5"]
    assert [layer.spec.name for layer in packed.linear_layers] == ["layers.0", "layers.4", "layers.5.recurrent_layer"]
    assert list(packed.spiking_layers) == ["layers.2", "layers.5"]


def test_learned_time_constants_are_clamped_as_the_model_clamps_them() -> None:
    neuron, readout = Leaky(torch.tensor([0.2, 0.5]), learn_beta=True), LeakyIntegrator(0.5, learn_beta=True)
    neuron.beta.data = torch.tensor([-0.25, 1.5])
    readout.beta.data = torch.tensor(1.25)
    packed = pack(Network([BinaryLinear(3, 2), neuron, BinaryLinear(2, 2), readout]))
    assert packed.layers[1].tensors()["beta"].tolist() == [0.0, 1.0]
    assert packed.layers[3].tensors()["beta"].tolist() == [1.0]


def test_packing_copies_and_leaves_the_model_alone() -> None:
    network = small_network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    packed = pack(network)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    kept = packed.layers[0].tensors()["bias"].clone()
    with torch.no_grad():
        network.layers[0].bias.add_(1)
    assert torch.equal(packed.layers[0].tensors()["bias"], kept)


def test_provenance_is_kept_beside_the_version() -> None:
    provenance = pack(small_network(), provenance={"commit": "abc"}).provenance
    assert provenance["commit"] == "abc"
    assert "tbnn" in provenance


NEURON = Leaky(0.9)
LAYERS_REFUSED = [
    ([nn.Linear(7, 5)], r"layers\.0: Linear\(in_features=7.*float weights\) does not pack; what packs: BinaryLinear"),
    ([BinaryLinear(7, 5), nn.ReLU()], r"layers\.1: ReLU\(\) does not pack"),
    ([Louder(7, 5)], r"layers\.0: Louder.* does not pack"),
    (
        [BinaryLinear(7, 5), Recurrent(NEURON, nn.Linear(5, 5))],
        r"layers\.1: expected Recurrent\(neuron, BinaryLinear\)",
    ),
    ([NEURON], r"layers\.0: expected a BinaryLinear first"),
    ([nn.Dropout(0.5)], r"expected a layer that packs"),
    ([BinaryLinear(7, 5, bits=None, sparsity=0.5)], r"layers\.0: expected weights of 1 to 8 bits, got full precision"),
    ([BinaryConv2d(2, 3, 3)], r"layers\.0: expected frames \(2, H, W\), got \(0,\); give Network an input_shape"),
    ([TemporalBatchNorm(7), BinaryLinear(7, 5)], r"layers\.0: expected a binary layer right before a norm"),
    ([BinaryLinear(7, 5), BinaryLinear(5, 5)], r"layers\.1: expected a binary layer, then a neuron"),
    ([BinaryLinear(7, 5), NEURON, NEURON], r"layers\.2: expected a binary layer, then a neuron"),
    ([BinaryLinear(7, 5), LeakyIntegrator(0.9), BinaryLinear(5, 5)], r"layers\.1: a readout's output is no bits"),
    ([BinaryLinear(7, 5), NEURON, BinaryLinear(6, 5)], r"layers\.2: expected 5 inputs, .* got 6"),
    ([BinaryLinear(70, 5, block=24)], r"layers\.0: block: .* multiple of 32, got 24"),
    ([BinaryLinear(7, 5).double()], r"layers\.0\.weight: expected torch.float32 .* got torch.float64"),
    ([BinaryLinear(7, 5), Leaky(0.9).half()], r"layers\.1\.\w+: expected torch.float32"),
    ([BinaryLinear(7, 5), Leaky(torch.rand(4))], r"layers\.1: beta: expected one value or 5, got shape \(4,\)"),
    ([BinaryLinear(7, 5), Leaky(0.9, torch.rand(5, 1))], r"layers\.1: threshold: expected one value or 5, got shape"),
    ([with_weight(torch.nan)], r"layers\.0\.scale: expected finite values, got nan"),
    ([with_weight(torch.inf)], r"layers\.0\.scale: expected finite values"),
]


@pytest.mark.parametrize(("layers", "message"), LAYERS_REFUSED, ids=[str(i) for i in range(len(LAYERS_REFUSED))])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_does_not_pack_is_named(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(Network(layers))


def test_something_else_than_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a tbnn\.nn\.Network, got Sequential"):
        pack(nn.Sequential(BinaryLinear(7, 5)))


def test_denoised_values_of_separate_channels_do_not_fold() -> None:
    network = Network([BinaryLinear(7, 5), Leaky(0.9, emit="denoised"), BinaryLinear(5, 2)])
    network(torch.ones(3, 2, 7))
    with pytest.raises(ValueError, match=r"layers\.1: emit='denoised' with 5 constants.*per_channel=False or stats="):
        pack(network)


def test_a_norm_folds_and_a_homeostatic_threshold_is_the_one_in_force() -> None:
    """Spikes and readout of the packed network are those of the trained one."""
    torch.manual_seed(0)
    net = Network([
        BinaryLinear(40, 30, bias=False), TemporalBatchNorm(30), Leaky(0.5, activity=TargetRate(0.05)), SpikeDropout(0.3),
        BinaryLinear(30, 4), nn.BatchNorm1d(4), LeakyIntegrator(0.5),
    ])  # fmt: skip
    x = (torch.rand(10, 16, 40) < 0.3).float()
    for _ in range(10):
        net(x)
    homeostasis = net.layers[2].homeostasis
    assert homeostasis is not None
    assert homeostasis.offset.abs() > 0.05
    net.eval()
    packed = pack(net)
    assert [layer.spec.kind for layer in packed.layers] == ["linear", "leaky", "linear", "integrator"]
    check = check_parity(net, packed, pack_bits(x))
    assert check.ok
    assert isinstance(net.layers[1], TemporalBatchNorm)


def linear(signs: int = 0, **changes: object) -> PackedLinear:
    values = {"name": "x", "in_features": 7, "out_features": 2, "block": 7, "offset": False, "bias": False, **changes}
    return PackedLinear(LinearSpec(**values), torch.full((1, 2, 1), signs, dtype=torch.int32), torch.ones(2, 1))


def leaky(beta: Tensor, **changes: object) -> PackedLeaky:
    values = {"name": "y", "features": 2, "reset": "zero", "beta_size": 1, "threshold_size": 2, "feedback": None}
    return PackedLeaky(LeakySpec(**{**values, "rest_bias": False, **changes}), beta, torch.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear(1 << 7), "x.planes: a padding bit past the 7 inputs"),
        (
            lambda: linear(out_features=3),
            r"x.planes: expected torch.int32 \(1, 3, 1\) on cpu, got torch.int32 \(1, 2, 1\)",
        ),
        (lambda: linear(bias=True), "expected the tensors planes, scale, bias, got planes, scale"),
        (lambda: linear(in_features=0), "in_features: expected at least 1, got 0"),
        (lambda: linear(in_features=70, block=40), "multiple of 32"),
        (lambda: linear(block=32), "multiple of 32 inputs below in_features"),
        (lambda: leaky(torch.tensor([1.5])), r"y.beta: expected values in \[0, 1\], got 1.5 to 1.5"),
        (lambda: leaky(torch.tensor([torch.nan])), "y.beta: expected finite values, got nan"),
        (
            lambda: leaky(torch.tensor([0.5]), reset="soft"),
            "reset: expected one of 'subtract', 'zero', 'none', got 'soft'",
        ),
        (lambda: leaky(torch.tensor([0.5]), threshold_size=3), "threshold: expected 1 or 2 values, got 3"),
        (lambda: leaky(torch.tensor([0.5]), rest_bias=True), "a rest_bias needs a feedback"),
        (lambda: leaky(torch.tensor([0.5]), feedback=linear().spec), r"expected a feedback 2 -> 2, got \(7, 2\)"),
        (
            lambda: PackedIntegrator(IntegratorSpec("z", 2, 1), torch.tensor([-0.1])),
            r"z.beta: expected values in \[0, 1\]",
        ),
        (lambda: PackedNetwork((), 7), "expected at least one layer"),
        (lambda: PackedNetwork((linear(),), 8), "x: expected 8 inputs"),
        (lambda: PackedNetwork((linear(), leaky(torch.ones(1), name="x")), 7), "layers of different names, got x, x"),
    ],
)
def test_packed_layers_check_what_they_are_made_of(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
