"""Ready-made networks: what they read out, that all of their weights learn, in bits, and in floats for baselines."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.nn import zoo
from tbnn.nn.config import network_from_config, network_to_config
from tbnn.nn.leaky import Leaky
from tbnn.nn.network import Network
from tbnn.nn.pool import MaxPool2d
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.residual import Residual
from tbnn.nn.weights import BinaryWeight

TINY: dict[str, Callable[..., Network]] = {
    "mlp": lambda **o: zoo.mlp(20, (24, 16), 3, **o),
    "nmnist_conv": lambda **o: zoo.nmnist_conv((6, 8), 3, input_shape=(2, 10, 11), **o),
    "dvsgesture_conv": lambda **o: zoo.dvsgesture_conv(
        12, 3, input_shape=(2, 32, 32), hidden=24, voters=4, **({"dropout": 0.1} | o)
    ),
    "vgg11": lambda **o: zoo.vgg11(3, input_shape=(2, 32, 32), width=1 / 16, **o),
    "spiking_resnet": lambda **o: zoo.spiking_resnet((6, 8), 3, input_shape=(2, 11, 12), **o),
    "spiking_resnet, currents": lambda **o: zoo.spiking_resnet((6, 8), 3, input_shape=(2, 11, 12), join="current", **o),
    "shd_recurrent": lambda **o: zoo.shd_recurrent((16,), 3, in_features=20, **o),
    "ssc_recurrent": lambda **o: zoo.ssc_recurrent((16, 12), 3, in_features=20, **o),
    "braille_recurrent": lambda **o: zoo.braille_recurrent((16,), 3, **o),
    "recurrent_conv": lambda **o: zoo.nmnist_conv((4, 8), 3, input_shape=(2, 8, 8), stride=2, recurrent=True, **o),
}  # fmt: skip


def batch(net: Network) -> tuple[Tensor, Tensor]:
    """Twelve sequences of three kinds, which differ in where their spikes are."""
    labels = torch.arange(12) % 3
    pattern = torch.rand(3, *net.input_shape) < 0.3
    x = (torch.rand(6, 12, *net.input_shape) < 0.7) & pattern[labels]
    return x.float(), labels


@pytest.mark.parametrize("weights", [None, {"form": "linear", "estimator": "ste"}, "float"], ids=str)
@pytest.mark.parametrize("name", TINY)
def test_all_weights_learn_and_the_loss_falls(name: str, weights: Any) -> None:
    net = TINY[name](weights=weights)
    x, labels = batch(net)
    binary = [m for m in net.modules() if isinstance(m, BinaryWeight)]
    plain = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert (len(binary) > 0, len(plain) > 0) == (weights != "float", weights == "float")
    assert all(m.form == (weights or {"form": "affine"})["form"] for m in binary)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for step in range(30 if name == "dvsgesture_conv" else 12):
        y, _ = net(x)
        assert y.shape == (6, 12, 3)
        sharp = 8 if name == "dvsgesture_conv" else 1  # votes are rates in [0, 1], too close for a softmax
        loss = torch.nn.functional.cross_entropy(sharp * y.mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
            assert still == []
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.9 * losses[0], losses


@pytest.mark.parametrize("name", TINY)
def test_every_edge_between_layers_of_weights_carries_bits(name: str) -> None:
    net = TINY[name]()
    x, _ = batch(net)
    seen: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, BinaryWeight):
            module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    net(x)
    fed = [m for m in net.modules() if isinstance(m, BinaryWeight)]
    recurrent = sum(isinstance(m, Recurrent) for m in net.modules())  # fed by spikes inside the loop over time
    assert len(seen) == len(fed) - recurrent
    for edge in seen:
        assert set(edge.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", TINY)
def test_steps_equal_the_sequence_and_the_configuration_is_complete(name: str) -> None:
    net = TINY[name]()
    x, _ = batch(net)
    net(x)  # the norms' statistics
    again = network_from_config(network_to_config(net))
    again.load_state_dict(net.state_dict())
    y, _ = net.double().eval()(x.double())
    state, steps = None, []
    for x_t in x.double():
        y_t, state = again.double().eval().step(x_t, state)
        steps.append(y_t)
    torch.testing.assert_close(torch.stack(steps), y)


@pytest.mark.parametrize(
    ("network", "shape", "weights"),
    [
        (lambda: zoo.nmnist_conv(), (2, 34, 34), 2 * 16 * 25 + 16 * 32 * 25 + 2048 * 10),
        (lambda: zoo.dvsgesture_conv(32), (2, 128, 128), 9 * 32 * (2 + 4 * 32) + 512 * 512 + 512 * 110),
        (lambda: zoo.vgg11(width=0.125), (2, 48, 48), 9 * (2 * 8 + 8 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 3 * 64 * 64) + 640),
        (lambda: zoo.shd_recurrent(), (700,), 700 * 256 + 256 * 256 + 256 * 20),
        (lambda: zoo.ssc_recurrent(), (700,), 700 * 512 + 3 * 512 * 512 + 512 * 35),
        (lambda: zoo.braille_recurrent(), (12,), 12 * 128 + 128 * 128 + 128 * 7),
    ],
)  # fmt: skip
def test_the_published_sizes(network: Callable[[], Network], shape: tuple[int, ...], weights: int) -> None:
    net = network()
    assert net.input_shape == shape
    assert sum(m.weight.numel() for m in net.modules() if isinstance(m, BinaryWeight)) == weights


def test_the_gesture_network_is_the_published_one() -> None:
    """{128C3-BN-LIF-MP2}×5 - DP-FC512-LIF - DP-FC110-LIF - voting."""
    kinds = [type(layer).__name__ for layer in zoo.dvsgesture_conv(8).layers]
    block = ["BinaryConv2d", "TemporalBatchNorm", "Leaky", "MaxPool2d"]
    head = ["SpikeDropout", "BinaryLinear", "Leaky"]
    assert kinds == [*block * 5, "Flatten", *head, *head, "Voting"]


def test_the_input_may_be_flat_or_packed() -> None:
    from tbnn import pack_bits

    net = TINY["nmnist_conv"]().eval()
    x, _ = batch(net)
    y = net(x)[0]
    assert torch.equal(net(x.flatten(2))[0], y)
    assert torch.equal(net(pack_bits(x.flatten(2)))[0], y)


def test_neurons_by_options_or_by_a_function() -> None:
    options = zoo.mlp(5, (4, 4), 2, neuron={"threshold": 0.5})
    assert all((m.beta, m.threshold) == (0.9, 0.5) for m in options.modules() if isinstance(m, Leaky))
    made = zoo.braille_recurrent(neuron=lambda: Leaky(0.25))
    assert [m.beta.item() for m in made.modules() if isinstance(m, Leaky)] == [0.25]


@pytest.mark.parametrize("join", ["or", "and", "iand"])
def test_the_residual_network_joins_as_asked(join: str) -> None:
    net = zoo.spiking_resnet((4, 6), input_shape=(2, 8, 8), blocks=2, join=join)
    blocks = [m for m in net.modules() if isinstance(m, Residual)]
    assert [b.join for b in blocks] == [join] * 6
    assert [b.shortcut is None for b in blocks] == [False, True, True] * 2
    assert sum(isinstance(m, MaxPool2d) for m in net.modules()) == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="weights: expected a dict of options or 'float', got 'binary'"):
        zoo.mlp(3, (4,), 2, weights="binary")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"input_shape: expected \(C, H, W\) with sides of at least 32, got \(2, 34, 30\)"
    ):
        zoo.dvsgesture_conv(input_shape=(2, 34, 30))
    with pytest.raises(ValueError, match=r"form: .* got 'cubic'"):
        zoo.nmnist_conv(weights={"form": "cubic"})
