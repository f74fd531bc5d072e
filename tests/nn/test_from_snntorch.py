"""From snntorch and back: the same spikes, the same gradients, and what is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import surrogate as theirs
from torch import Tensor, nn

import tbnn
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.snntorch import from_snntorch
from tbnn.nn.snntorch_export import to_snntorch
from tests.nn.snntorch_nets import CASES, assert_same_gradients, build, convolutional, dense, exact, in_order, loop


@pytest.mark.parametrize("case", CASES)
def test_same_spikes_and_gradients(case: str) -> None:
    net, x = build(case)
    ours = from_snntorch(net, input_shape=x.shape[2:])
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, (want, _) = ours(leaf)[0], loop(list(net), other)
    assert torch.equal(out, want)
    assert 0.02 < out.mean() < 0.98
    weights, mine, yours = torch.randn_like(out), in_order(ours), in_order(net)
    assert [p.shape for p in mine] == [p.shape for p in yours]
    got = torch.autograd.grad(out, [leaf, *mine], weights)
    assert got[0].abs().sum() > 0
    assert_same_gradients(got, torch.autograd.grad(want, [other, *yours], weights))


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (theirs.straight_through_estimator(), tbnn.surrogate.straight_through_estimator()),
        (theirs.heaviside(), tbnn.surrogate.heaviside()),
        (theirs.triangular(threshold=2), tbnn.surrogate.signed(2.0)),
        (theirs.spike_rate_escape(slope=3, beta=2), tbnn.surrogate.spike_rate_escape(2.0, 3.0)),
        (theirs.SFS(B=0.5, slope=4), tbnn.surrogate.sparse_fast_sigmoid(4.0, 0.5)),
        (theirs.LSO(0.3), tbnn.surrogate.leaky_spike(0.3)),  # it raises in snntorch itself
    ],
    ids=lambda f: str(f) if isinstance(f, tbnn.surrogate.Surrogate) else "",
)
def test_a_surrogate_keeps_its_numbers(made: Any, shape: tbnn.surrogate.Surrogate) -> None:
    ours = from_snntorch([snn.Leaky(0.5, spike_grad=made)])
    for network in (ours, from_snntorch(to_snntorch(ours))):
        gradient = network.layers[0].spike_gradient
        assert (gradient.gradient, gradient.surrogate) == ("surrogate", shape)


def test_a_changed_beta_is_seen() -> None:
    net, x = build("leaky")
    ours = from_snntorch(net)
    net[1].beta.fill_(0.75)
    assert not torch.equal(ours(x)[0], loop(list(net), x)[0])
    assert torch.equal(from_snntorch(net)(x)[0], loop(list(net), x)[0])


def test_weights_are_copies() -> None:
    net, x = build("rleaky")
    ours = from_snntorch(net)
    before = ours(x)[0]
    with torch.no_grad():
        for value in net.parameters():
            value.zero_()
    assert torch.equal(ours(x)[0], before)


class Tutorial(nn.Module):
    """As in snntorch's fifth tutorial, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(7, 6)
        self.lif1 = snn.Leaky(beta=0.5)
        self.fc2 = nn.Linear(6, 3)
        self.lif2 = snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, record = torch.zeros(x.shape[1], 6), torch.zeros(x.shape[1], 3), []
        for x_t in x:
            spikes, mem1 = self.lif1(self.fc1(x_t), mem1)
            spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
            record.append(spikes)
        return torch.stack(record)


def test_a_module_a_list_and_nested_containers() -> None:
    net = exact(Tutorial()).eval()
    x = (torch.rand(12, 3, 7) < 0.5).float()
    want = net(x)
    nested = nn.Sequential(nn.Sequential(net.fc1, net.lif1), nn.ModuleList([net.fc2, net.lif2]))
    for form in (net, [net.fc1, net.lif1, net.fc2, net.lif2], nested):
        ours = from_snntorch(form)
        assert torch.equal(ours(x)[0], want)
    assert not from_snntorch(net).training
    assert torch.equal(from_snntorch(net, input_shape=(7,))(tbnn.pack_bits(x))[0], want)
    assert isinstance(from_snntorch(snn.RLeaky(0.5, linear_features=3)).layers[0], Recurrent)


def test_hidden_states_are_dropped() -> None:
    """A network that has already run, with its states inside and their graph, converts to one at rest."""
    net = exact(nn.Sequential(nn.Linear(7, 6), snn.Leaky(0.5, init_hidden=True, output=True)))
    x = (torch.rand(5, 3, 7) < 0.5).float()
    first = torch.stack([net(x_t)[0] for x_t in x])
    ours = from_snntorch(net)
    assert torch.equal(ours(x)[0], first)
    assert not torch.equal(net(x[0])[0], first[0])


def test_dtype_mode_and_frozen_parameters_are_kept() -> None:
    net = nn.Sequential(nn.Linear(7, 6), nn.Dropout(0.5), snn.Leaky(torch.rand(6), learn_beta=True)).double()
    net[0].weight.requires_grad_(False)
    net[2].beta.requires_grad_(False)
    net[1].eval()
    net[2].eval()
    ours = from_snntorch(net)
    assert torch.equal(ours.layers[2].beta, net[2].beta)
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float64}
    assert [name for name, value in ours.named_parameters() if value.requires_grad] == ["layers.0.bias"]
    assert (ours.training, *(layer.training for layer in ours.layers)) == (True, True, False, False)


def test_batch_norm_in_evaluation() -> None:
    net = exact(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), snn.Leaky(0.5), nn.Flatten(), nn.Linear(192, 3)))
    x = (torch.rand(6, 4, 2, 10, 10) < 0.4).float()
    net[1](net[0](x[0]))  # running statistics of its own
    net.eval()
    ours, want = from_snntorch(net), loop(list(net), x)[0]
    torch.testing.assert_close(ours(x)[0], want)
    torch.testing.assert_close(to_snntorch(ours)(x)[0], want)


def test_the_membrane_as_readout() -> None:
    net = exact(
        nn.Sequential(nn.Linear(7, 6), snn.Leaky(0.5), nn.Linear(6, 3), snn.Leaky(0.75, reset_mechanism="none"))
    )
    x = (torch.rand(12, 3, 7) < 0.5).float()
    ours = from_snntorch(net, readout="membrane")
    assert isinstance(ours.layers[-1], LeakyIntegrator)
    membranes = loop(list(net), x)[1]
    assert torch.equal(ours(x)[0], membranes)
    assert torch.equal(to_snntorch(ours)(x)[0], membranes)


OVERRIDES: list[dict[str, Any]] = [
    {"gradient": "ddt"},
    {"gradient": "ddt", "target": "trace"},
    {"surrogate": tbnn.surrogate.boxcar(0.5)},
    {"gradient": "surrogate"},
]


@pytest.mark.parametrize("options", OVERRIDES, ids=str)
@pytest.mark.parametrize("spike_grad", [theirs.fast_sigmoid(5), tbnn.surrogate.ddt(tbnn.surrogate.fast_sigmoid(5))])
def test_another_gradient(options: dict[str, Any], spike_grad: Any) -> None:
    net = exact(nn.Sequential(*dense(lambda: snn.Leaky(0.5, spike_grad=spike_grad))))
    x = (torch.rand(12, 3, 7) < 0.5).float()
    if "surrogate" in options or "target" in options:
        shape = options.get("surrogate", tbnn.surrogate.atan())
    else:
        shape = tbnn.surrogate.fast_sigmoid(5)
    gradient = {"gradient": "surrogate", **options, "surrogate": shape}
    if options == {"gradient": "ddt"} and not hasattr(spike_grad, "__qualname__"):
        gradient["stats"] = "step"
    layers = [copy.deepcopy(net[0]), Leaky(0.5, **gradient), copy.deepcopy(net[2]), Leaky(0.5, **gradient)]
    ours = from_snntorch(net, neuron=options)
    out, by_hand = ours(x)[0], Network(layers)
    want = by_hand(x)[0]
    assert torch.equal(out, want)
    weights = torch.randn_like(out)
    got = torch.autograd.grad(out, list(ours.parameters()), weights)
    torch.testing.assert_close(got, torch.autograd.grad(want, list(by_hand.parameters()), weights))
    assert got[0].abs().sum() > 0


def test_binary_weights() -> None:
    net = nn.Sequential(*convolutional(lambda: snn.Leaky(0.5)), nn.Linear(3, 3), snn.RLeaky(0.5, linear_features=3))
    binary = {"form": "linear", "estimator": "ste", "lam": 0.0}
    ours = from_snntorch(net, weights="binary", binary=binary, input_shape=(2, 10, 10))
    assert [type(layer) for layer in ours.layers][:4:3] == [BinaryConv2d, BinaryConv2d]
    feedback = ours.layers[-1]
    assert isinstance(feedback, Recurrent)
    assert isinstance(feedback.recurrent_layer, BinaryLinear)
    assert feedback.recurrent_layer.estimator == "ste"
    signs = copy.deepcopy(net)
    with torch.no_grad():
        for layer in signs.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                row = layer.weight.flatten(1).abs().mean(1).reshape(-1, *[1] * (layer.weight.ndim - 1))
                layer.weight.copy_(torch.where(layer.weight > 0, row, -row))
    x = (torch.rand(12, 3, 2, 10, 10) < 0.4).float()
    want = loop(list(signs), x)[0]
    assert torch.equal(ours(x)[0], want)
    assert 0.02 < want.mean() < 0.98
    assert torch.equal(ours.layers[0].weight, net[0].weight)
    there = to_snntorch(ours)
    assert torch.equal(there(x)[0], want)
    torch.testing.assert_close(there.layers[0].weight, signs[0].weight)
    assert type(there.layers[0]) is nn.Conv2d
    assert type(there.layers[-1].recurrent) is nn.Linear


def late_reset() -> nn.Module:
    neuron = snn.Leaky(0.5)
    neuron.reset_mechanism = "zero"
    return neuron


def custom(x: Tensor) -> Tensor:
    return (x > 0).float()


def refuse_of(make: Callable[[], Any]) -> Any:
    with pytest.warns(UserWarning, match="Inhibition"):
        return make()


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: snn.Leaky(0.5, reset_delay=False), r"0 \(Leaky\): reset_delay=False"),
    (lambda: refuse_of(lambda: snn.Leaky(0.5, inhibition=True)), r"\(Leaky\): inhibition=True"),
    (lambda: snn.Synaptic(0.5, 0.5, state_quant=custom), r"\(Synaptic\): state_quant"),
    (lambda: snn.Leaky(0.5, graded_spikes_factor=2.0), r"graded_spikes_factor: expected 1, .* got 2"),
    (lambda: snn.Leaky(0.5, learn_graded_spikes_factor=True), r"graded_spikes_factor: expected 1, not learned"),
    (lambda: snn.Synaptic(0.5, 0.5, reset_mechanism="zero"), r"\(Synaptic\): reset_mechanism='zero': snntorch then"),
    (lambda: snn.RLeaky(0.5, linear_features=3, reset_mechanism="zero"), r"\(RLeaky\): reset_mechanism='zero'"),
    (lambda: snn.RSynaptic(0.5, 0.5, linear_features=3, reset_mechanism="zero"), r"\(RSynaptic\): reset_mechanism"),
    (late_reset, r"reset_mechanism='zero': set after the neuron was made, which goes on with 'subtract'"),
    (lambda: snn.Leaky(0.5, surrogate_disable=True), r"surrogate_disable=True.*pass neuron=dict\(surrogate="),
    (lambda: snn.Leaky(0.5, spike_grad=theirs.SSO()), r"got SSO; pass neuron=dict\(surrogate="),
    (lambda: snn.Leaky(0.5, spike_grad=custom), r"spike_grad: expected snntorch's atan, .* got custom; pass neuron"),
    (lambda: snn.Leaky(0.5, threshold=torch.inf), r"0 \(Leaky\): threshold: expected finite values"),
    (lambda: snn.Leaky(0.5, spike_grad=theirs.atan(-1.0)), r"0 \(Leaky\): alpha: expected a finite number > 0"),
    (lambda: snn.Lapicque(beta=0.5), r"0 \(Lapicque\): no counterpart in tbnn; expected one of snntorch.Leaky"),
    (lambda: nn.LSTM(3, 3), r"0 \(LSTM\): no counterpart"),
    (lambda: nn.Flatten(0), r"0 \(Flatten\): start_dim: expected an axis after the batch, got 0"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_would_not_be_equal_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_snntorch(nn.Sequential(make()))


def test_an_override_lifts_its_refusal() -> None:
    unknown = snn.Leaky(0.5, spike_grad=custom)
    for options in ({"surrogate": tbnn.surrogate.atan()}, {"gradient": "ddt", "target": "trace"}):
        assert isinstance(from_snntorch([unknown], neuron=options).layers[0], Leaky)
    zero = from_snntorch([snn.Synaptic(0.5, 0.5, reset_mechanism="zero")], neuron={"reset_mechanism": "zero"})
    assert zero.layers[0].reset_mechanism == "zero"


def test_refused_networks_and_options() -> None:
    linear, hidden = nn.Linear(3, 3), snn.Leaky(0.5, init_hidden=True)
    plain = snn.Leaky(0.5)
    for net in ([linear, plain, linear], nn.Sequential(hidden, nn.Identity(), hidden)):
        with pytest.raises(ValueError, match=r"2 \((Linear|Leaky)\): stands twice in the network"):
            from_snntorch(net)
    assert len(from_snntorch([plain, linear, plain]).layers) == 3
    early = [snn.Leaky(0.5, init_hidden=True, output=True), linear]
    for given, options, message in (
        (early, {}, r"layers.0 \(Leaky\): output=True"),
        ([], {}, "expected at least one layer, got none"),
        (nn.Sequential(), {}, "expected at least one layer, got none"),
        ([3], {}, "layers.0: expected a torch.nn.Module, got 3"),
        ([linear], {"weights": "ternary"}, "weights: expected 'float' or 'binary', got 'ternary'"),
        ([linear], {"binary": {"bits": 1}}, "binary: options of binary layers need weights='binary'"),
        ([linear], {"weights": "binary", "binary": {"bit": 1}}, r"layers.0 \(Linear\): .*unexpected .* 'bit'"),
        ([linear], {"weights": "binary", "binary": {"bits": 9}}, r"layers.0 \(Linear\): bits"),
        ([plain], {"neuron": {"beta": 0.5}}, "neuron: expected some of gradient, .* got 'beta'"),
        ([plain], {"neuron": {"target": "trace"}}, "neuron: 'target' needs gradient='ddt', got gradient='surrogate'"),
        ([plain], {"readout": "mem"}, "readout: expected 'spikes' or 'membrane', got 'mem'"),
        ([plain], {"readout": "membrane"}, r"layers.0 \(Leaky\): .* reset_mechanism: expected 'none', got 'subtract'"),
        ([linear], {"readout": "membrane"}, r"layers.0 \(Linear\): readout='membrane': expected a snntorch.Leaky"),
        (
            [linear, plain],
            {"input_shape": (2, 4)},
            r"layers.0 \(Linear\): does not take steps of \(2, 4\) .* pass the layers",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            from_snntorch(given, **options)
