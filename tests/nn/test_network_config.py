"""Networks as plain values: the same architecture again, and clear words about what is not known."""

import json
from typing import Any, Unpack

import pytest
import torch
from torch import nn

from tbnn import surrogate
from tbnn.nn.activity import Winners
from tbnn.nn.adaptive import Adaptive, AdLIF
from tbnn.nn.config import network_from_config, network_to_config
from tbnn.nn.conv import BinaryConv1d, BinaryConv2d
from tbnn.nn.delay import Delay, DelayedLinear
from tbnn.nn.dropout import SpikeDropout
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron, SpikeOptions
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.pool import AvgPool2d, Flatten, MaxPool2d, Voting
from tbnn.nn.recorded import LAYERS, Recorded, arguments_of, record
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.residual import Residual
from tbnn.nn.stateful import Stateful
from tbnn.nn.synaptic import Synaptic
from tbnn.ops.quantize import Ddt

NETWORKS: dict[str, Any] = {
    "images": lambda: Network(
        [
            BinaryConv2d(2, 4, 3, padding="same", form="linear", bias=False), TemporalBatchNorm(4, threshold=0.5),
            Leaky(0.75, 0.5, surrogate=surrogate.fast_sigmoid(10), target="soft", stats="step"), MaxPool2d(2),
            Residual([BinaryConv2d(4, 4, 3, padding=1, block=12), Leaky(0.5)], [nn.Identity()], join="iand"),
            AvgPool2d((1, 2)), Flatten(), SpikeDropout(0.25, "sequence"), BinaryLinear(16, 6, sparsity=0.5, estimator=Ddt(pruned="ridge")), Synaptic(0.5, 0.75),
            Voting(3),
        ],
        input_shape=(2, 4, 8),
    ),
    "sequences": lambda: Network([
        DelayedLinear(7, 6, 3, delay=torch.arange(7.0) / 4, lam=0.5), Adaptive(0.75, threshold=0.25, learn_beta=True),
        Delay(6, 4, learn=False), BinaryLinear(6, 5, estimator="ste"),
        Recurrent(AdLIF(torch.linspace(0.25, 0.75, 5), threshold=0.25, activity=Winners(2)), BinaryLinear(5, 5, bias=False)),
        nn.Linear(5, 3, bias=False), nn.LayerNorm(3), nn.Dropout(0.25), LeakyIntegrator(0.5, learn_beta=True),
    ]),
    "one axis": lambda: Network([BinaryConv1d(2, 3, 3, dilation=2), Leaky(0.5), nn.Flatten(2)]),
}  # fmt: skip
INPUTS = {"images": (2, 4, 8), "sequences": (7,), "one axis": (2, 9)}


@pytest.mark.parametrize("name", NETWORKS)
def test_through_json_and_back_it_is_the_same_network(name: str) -> None:
    net = NETWORKS[name]()
    config = network_to_config(net)
    again = network_from_config(json.loads(json.dumps(config)))
    assert str(again) == str(net)
    assert network_to_config(again) == config
    assert again.state_dict().keys() == net.state_dict().keys()
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in net.named_parameters()}
    again.load_state_dict(net.state_dict())
    x = (torch.rand(6, 3, *INPUTS[name]) < 0.5).float()
    assert torch.equal(again.eval()(x)[0], net.eval()(x)[0])
    assert net(x)[0].any()


def test_every_argument_is_written_down() -> None:
    config = network_to_config(Network([BinaryLinear(3, 2), Leaky(0.5, surrogate=surrogate.atan(4.0))]))
    linear, leaky = config["layers"]
    assert linear == {
        "layer": "BinaryLinear", "in_features": 3, "out_features": 2, "bias": True, "bits": 1, "sparsity": 0.0,
        "scope": "row", "estimator": "ddt", "form": "affine", "lam": 0.01, "block": None, "wiring": None,
    }  # fmt: skip
    assert leaky["surrogate"] == {"value": "ATan", "parameter": 4.0}
    assert leaky["beta"] == 0.5


def test_a_user_s_layers_are_known_by_inheritance_or_decoration() -> None:
    class Twice(Recorded, nn.Module):
        def __init__(self, gain: float = 2.0) -> None:
            super().__init__()
            self.gain = gain

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gain * x

    class Thrice(Twice):
        def __init__(self) -> None:
            super().__init__(3.0)

    @record
    class Counter(Stateful):
        def __init__(self, start: int, *, step: int = 1) -> None:
            super().__init__()

    class Own(Neuron):
        def __init__(self, beta: float, **options: Unpack[SpikeOptions]) -> None:
            super().__init__(1.0, **options)

    try:
        config = network_to_config(Network([Twice(), Twice(gain=5.0), Thrice(), Counter(2)]))
        assert config["layers"] == [
            {"layer": "Twice", "gain": 2.0}, {"layer": "Twice", "gain": 5.0}, {"layer": "Thrice"},
            {"layer": "Counter", "start": 2, "step": 1},
        ]  # fmt: skip
        assert [type(layer) for layer in network_from_config(config).layers] == [Twice, Twice, Thrice, Counter]
        assert arguments_of(Counter(4)) == {"start": 4, "step": 1}
        assert arguments_of(Own(0.5, lam=0.1)) == {"beta": 0.5, "lam": 0.1}
        with pytest.raises(ValueError, match="Own has no argument 'gamma', expected some of beta, gradient"):
            network_from_config({"layers": [{"layer": "Own", "beta": 0.5, "gamma": 1}]})
    finally:
        for name in ("Twice", "Thrice", "Counter", "Own"):
            del LAYERS[name]


def test_replaced_submodules_are_written_as_they_are() -> None:
    net = Network([Recurrent(Leaky(0.5), BinaryLinear(4, 4))])
    net.layers[0].neuron = Leaky(0.25)
    assert network_to_config(net)["layers"][0]["neuron"]["beta"] == 0.25


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"layer": "BinaryLiner"}, r"network.layers\[0\]: expected a layer of .*BinaryLinear.*torch.nn.Linear.*, got 'BinaryLiner'"),
        (
            {"layer": "BinaryLinear", "in_features": 3, "out_features": 2, "size": 1},
            "BinaryLinear has no argument 'size', expected some of in_features, out_features, bias, bits",
        ),
        ({"layer": "Leaky", "beta": 0.5, "gradent": "ddt"}, "Leaky has no argument 'gradent', .*learn_beta.*gradient"),
        ({"layer": "BinaryLinear", "in_features": 3}, r"layers\[0\]: BinaryLinear: .*missing.*'out_features'"),
        ({"layer": "Leaky", "beta": 2.0}, r"layers\[0\]: Leaky: beta: expected values in \[0, 1\], got 2.0"),
        ({"layer": "Leaky", "beta": 0.5, "surrogate": {"value": "Step"}}, r"surrogate: expected a value of ATan.* got 'Step'"),
        ({"layer": "torch.nn.Linear", "in_features": 3, "out": 2}, "torch.nn.Linear has no argument 'out', .* in_features"),
        ({"layer": "Flatten", "start": 2}, "Flatten has no argument 'start', expected some of none"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_named(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_from_config({"layers": [layer]})


def test_what_cannot_be_written_is_named() -> None:
    with pytest.raises(ValueError, match=r"network.layers\[1\]: Bilinear: expected a layer that configurations know"):
        network_to_config(Network([BinaryLinear(3, 3), nn.Bilinear(3, 3, 3)]))
    with pytest.raises(ValueError, match=r"expected a tbnn\.nn\.Network, got Linear"):
        network_to_config(nn.Linear(3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a dict, got list"):
        network_from_config([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected the layer 'Network', got 'Flatten'"):
        network_from_config({"layer": "Flatten"})
