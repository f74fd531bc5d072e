"""Back from packed bits to modules: the same spikes and readout, and the same packed network again."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_networks import dyadic, rough, shapes, small_input, small_network
from test_everything_packs import Case, conv_networks, flat_networks, residual_networks
from test_late_and_pooled import late_networks, pooled_networks
from test_tbnn_file import assert_same_network
from torch import Tensor, nn

from tbnn.bits import pack_bits
from tbnn.nn import (
    Adaptive,
    AdLIF,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Delay,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
    Residual,
    Synaptic,
    TemporalBatchNorm,
    Voting,
    fold_batch_norms,
    network_from_config,
    network_to_config,
)  # fmt: skip
from tbnn.nn.zoo import spiking_resnet
from tbnn.ops.quantize import Codes
from tbnn.sim import PackedNetwork, check_parity, pack, unpack
from tbnn.sim.layers import EdgeSpec, PackedEdge
from tbnn.sim.pack.unpacked import RestingRecurrent, TwoStateNeuron

EVERYTHING = (flat_networks, conv_networks, residual_networks, late_networks, pooled_networks)


def assert_equal_model(packed: PackedNetwork, model: Network, x: Tensor) -> None:
    """Spikes and readout bit for bit, from frames."""
    x = x.flatten(2)
    parity = check_parity(model, packed, x)
    assert parity.equal, parity.summary()
    result = packed.simulate(x)
    if result.readout is not None:
        assert torch.equal(model(x)[0], result.readout)


def assert_packs_back(packed: PackedNetwork, model: Network) -> None:
    assert_same_network(pack(model, provenance=packed.provenance), packed)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(case=st.one_of(*(kind(exact) for kind in EVERYTHING for exact in (True, False))))
def test_every_network_comes_back(case: Case) -> None:
    packed = pack(case.network)
    model = unpack(packed)
    assert not model.training
    assert_equal_model(packed, model, case.x)
    assert_packs_back(packed, model)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(shape=shapes(), exact=st.booleans())
def test_so_do_those_with_any_ending(shape: object, exact: bool) -> None:
    case = (dyadic if exact else rough)(shape)  # type: ignore[arg-type]
    packed = pack(case.network)
    assert_equal_model(packed, unpack(packed), case.x)
    assert_packs_back(packed, unpack(packed))


def test_ternary_weights_without_a_zero_stay_ternary() -> None:
    layer = BinaryLinear(4, 2, bits=1.58)
    layer.weight.data = torch.tensor([[1.0, -1.0, 1.0, -1.0]] * 2)
    packed = pack(Network([layer]))
    assert packed.linear_layers[0].values().all()
    assert_packs_back(packed, unpack(packed))


def test_it_takes_packed_words_and_goes_step_by_step() -> None:
    model, x = unpack(pack(small_network())), small_input()
    whole, _ = model(x)
    assert torch.equal(model(pack_bits(x))[0], whole)
    state, steps = None, []
    for x_t in x:
        y, state = model.step(x_t, state)
        steps.append(y)
    assert torch.equal(torch.stack(steps), whole)


def test_what_folds_stays_folded() -> None:
    torch.manual_seed(0)
    net = Network([BinaryLinear(9, 12, bias=False), TemporalBatchNorm(12), Leaky(0.5), BinaryLinear(12, 3)])
    x = (torch.rand(8, 4, 9) < 0.4).float()
    net(x)
    packed = pack(net.eval())
    model = unpack(packed)
    assert [type(layer).__name__ for layer in model.layers] == ["BinaryLinear", "Identity", "Leaky", "BinaryLinear"]
    assert torch.equal(model(x)[0], fold_batch_norms(net)(x)[0])
    assert_packs_back(packed, model)


def denoised(net: Network, x: Tensor) -> PackedNetwork:
    net.train()(x)
    return pack(net.eval())


def test_denoised_outputs_become_bits_and_the_first_step_keeps_its_bias() -> None:
    torch.manual_seed(0)
    neurons = [Leaky(0.5, emit="denoised", per_channel=False) for _ in range(2)]
    x = (torch.rand(9, 3, 7) < 0.5).float()
    layers = [BinaryLinear(7, 20), neurons[0], BinaryLinear(20, 20), Recurrent(neurons[1], BinaryLinear(20, 20))]
    packed = denoised(Network([*layers, BinaryLinear(20, 2)]), x)
    model = unpack(packed)
    assert isinstance(model.layers[3], RestingRecurrent)
    rest = model.layers[3].rest_bias
    assert not torch.allclose(rest, model.layers[3].recurrent_layer.bias)  # type: ignore[union-attr, arg-type]
    assert_equal_model(packed, model, x)
    assert_equal_model(packed, model, x[:1])
    assert_packs_back(packed, model)
    mask = torch.arange(9)[:, None] < torch.tensor([9, 4, 1])
    masked = model(x, mask=mask)[0]
    assert torch.equal(masked[:4, 1], model(x)[0][:4, 1])


@pytest.mark.parametrize(
    ("neuron", "kind"),
    [
        (Synaptic(0.3, 0.9), Synaptic),
        (
            Adaptive(0.9, 0.7, torch.rand(6, generator=torch.Generator().manual_seed(0)), torch.arange(1, 7) / 4),
            Adaptive,
        ),
        (AdLIF(0.9, 0.7, 1.0, 2.0), TwoStateNeuron),
    ],
)
def test_neurons_come_back_as_what_they_are(neuron: nn.Module, kind: type) -> None:
    packed = pack(Network([BinaryLinear(4, 6), neuron]))
    model = unpack(packed)
    assert type(model.layers[1]) is kind
    assert_packs_back(packed, model)


def test_frames_flatten_where_they_did() -> None:
    torch.manual_seed(0)
    layers = [
        BinaryConv2d(2, 3, 3),
        Flatten(),
        Recurrent(Leaky(0.5), BinaryLinear(12, 12)),
        nn.Dropout(0.1),
        BinaryLinear(12, 4),
    ]
    net = Network([*layers, Leaky(torch.rand(4)), BinaryLinear(4, 6), Voting(2)][:-2], (2, 4, 4)).eval()
    packed = pack(net)
    model = unpack(packed)
    assert [type(layer) for layer in model.layers[:3]] == [BinaryConv2d, Flatten, Recurrent]
    x = (torch.rand(6, 2, 2, 4, 4) < 0.4).float()
    assert torch.equal(model(x)[0], net(x)[0])
    assert_packs_back(packed, model)


def test_a_network_of_frames_to_its_end_and_delays_before_frames() -> None:
    torch.manual_seed(0)
    net = Network(
        [Delay(2, 3), MaxPool2d(2), BinaryConv2d(2, 3, 2, padding="same"), Leaky(torch.rand(3, 1, 1))], (2, 8, 8)
    )
    x = (torch.rand(6, 2, 2, 8, 8) < 0.4).float()
    packed = pack(net.eval())
    assert_equal_model(packed, unpack(packed), x)
    assert torch.equal(unpack(packed)(x)[0], net(x)[0].flatten(2))
    assert_packs_back(packed, unpack(packed))


def test_one_dimension_comes_back_as_two() -> None:
    torch.manual_seed(0)
    layers = [BinaryConv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bits=2), Leaky(0.5), Flatten()]
    packed = pack(Network([*layers, BinaryLinear(6 * 15, 5), LeakyIntegrator(0.5)], (4, 31)))
    assert_equal_model(packed, unpack(packed), (torch.rand(6, 3, 4 * 31) < 0.3).float())
    assert_packs_back(packed, unpack(packed))


def test_a_residual_network_of_the_zoo_and_voters() -> None:
    torch.manual_seed(0)
    net = spiking_resnet((4, 8), 5, input_shape=(2, 16, 16))
    x = (torch.rand(4, 2, 2, 16, 16) < 0.2).float()
    net(x)
    packed = pack(net.eval())
    assert_equal_model(packed, unpack(packed), x)
    assert_packs_back(packed, unpack(packed))
    votes = pack(Network([BinaryLinear(9, 12), LeakyIntegrator(0.5), Voting(4)]))
    assert_equal_model(votes, unpack(votes), (torch.rand(4, 2, 9) < 0.3).float())
    assert_packs_back(votes, unpack(votes))


def renamed(packed: PackedNetwork, names: list[str]) -> PackedNetwork:
    layers = (replace(a, spec=replace(a.spec, name=name)) for a, name in zip(packed.layers, names, strict=True))
    return replace(packed, layers=tuple(layers))


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["layers.4", "layers.3", "layers.²", "layers.999999999"]])
def test_names_of_ones_own_lose_their_places_only(names: list[str]) -> None:
    packed = pack(Network([BinaryLinear(9, 12), Leaky(0.9), BinaryLinear(12, 4), LeakyIntegrator(0.9)]))
    model = unpack(renamed(packed, names))
    x = (torch.rand(4, 2, 9) < 0.5).float()
    assert len(model.layers) < 10
    assert torch.equal(model(x)[0], packed.simulate(x).readout)  # type: ignore[arg-type]


def test_edges_that_no_residual_block_has_are_named() -> None:
    block = Residual([BinaryLinear(4, 4), Leaky(0.5)], [BinaryLinear(4, 4), Leaky(0.5)], "iand")
    packed = pack(Network([BinaryLinear(9, 4), Leaky(0.5), block]))
    kept = tuple(layer for layer in packed.layers if layer.spec.name != "layers.2.back")
    with pytest.raises(ValueError, match=r"unpack: layers\.2: expected a second swap before the join"):
        unpack(replace(packed, layers=kept))
    more = (*packed.layers[:-1], PackedEdge(EdgeSpec("x", "swap")), packed.layers[-1])
    with pytest.raises(ValueError, match="unpack: x: expected two swaps"):
        unpack(replace(packed, layers=more))


def test_a_file_an_unpacked_model_and_its_own_files(tmp_path: object) -> None:
    """Through .tbnn, a configuration and a state dict."""
    packed = pack(small_network())
    packed.save(f"{tmp_path}/a.tbnn")
    model = unpack(PackedNetwork.load(f"{tmp_path}/a.tbnn"))
    again = network_from_config(network_to_config(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(small_input())[0], packed.simulate(small_input()).readout)  # type: ignore[arg-type]
    assert not any(p.requires_grad for name, p in again.named_parameters() if name.endswith("weight"))
    again.load_state_dict(small_network().state_dict())
    assert all(p.requires_grad for p in again.parameters())
    assert torch.equal(again.eval()(small_input())[0], small_network()(small_input())[0])


def test_random_numbers_go_on_as_if_nothing_had_been_unpacked() -> None:
    packed = pack(small_network())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    unpack(packed)
    assert torch.equal(torch.rand(3), expected)


def test_biases_train_and_weights_do_not() -> None:
    packed = pack(small_network())
    model = unpack(packed).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [layer.codes() for layer in model.modules() if isinstance(layer, BinaryLinear)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(small_input())[0].square().sum().backward()
    optimizer.step()
    after = [layer.codes() for layer in model.modules() if isinstance(layer, BinaryLinear)]
    assert len(trained) == 3
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert all(torch.equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))
    assert "frozen=True" in repr(model)
    model.requires_grad_()
    with pytest.raises(
        ValueError, match=r"BinaryLinear\.weight: the weights are frozen at their codes and do not train"
    ):
        model(small_input())


class TestFreeze:
    """Of a layer alone."""

    @pytest.mark.parametrize(("bits", "sparsity"), [(1, 0.0), (1.58, 0.0), (3, 0.5)])
    @pytest.mark.parametrize("block", [None, 32])
    @pytest.mark.parametrize("form", ["affine", "linear"])
    def test_a_layers_own_codes(self, bits: float, sparsity: float, block: int | None, form: str) -> None:
        torch.manual_seed(0)
        layer = BinaryLinear(70, 5, bits=bits, sparsity=sparsity, block=block, form=form)
        layer.fold(torch.rand(5), torch.rand(5))
        x = (torch.rand(3, 70) < 0.5).float()
        y, codes, weight = layer(x), layer.codes(), layer.quantized_weight()
        layer.freeze()
        assert torch.equal(layer(x), y)
        assert all(torch.equal(a, b) for a, b in zip(layer.codes(), codes, strict=True))
        torch.testing.assert_close(layer.quantized_weight(), weight)
        layer.fold(torch.full((5,), 0.5), torch.zeros(5))
        assert torch.equal(layer.codes().scale, 0.5 * codes.scale)

    def test_what_does_not_fit_is_named(self) -> None:
        layer = BinaryLinear(7, 5)
        values, scale, offset = layer.codes()
        with pytest.raises(
            ValueError, match=r"expected values \(5, 7\), scale and offset \(5, 1\), got \(5, 6\), \(5, 1\)"
        ):
            layer.freeze(Codes(values[:, 1:], scale, offset))
        with pytest.raises(ValueError, match="expected weights of few bits to freeze, got bits=None"):
            BinaryLinear(7, 5, bits=None, sparsity=0.5).freeze()

    def test_gradients_reach_the_input(self) -> None:
        layer = BinaryLinear(7, 5)
        layer.freeze()
        x = torch.ones(2, 7, requires_grad=True)
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, layer.quantized_weight().sum(0).expand(2, 7))
