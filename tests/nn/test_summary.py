"""The summary's numbers, by hand on a network small enough to count."""

import pytest
import torch
from torch import Tensor, nn

from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.nn.summary import summary


@pytest.fixture
def x() -> Tensor:
    frames = torch.zeros(4, 2, 8)
    frames[:, :, :3] = 1  # three of eight inputs, always
    return frames


def test_a_small_network_counted_by_hand(x: Tensor) -> None:
    net = Network(
        [BinaryLinear(8, 16), Leaky(0.5), BinaryLinear(16, 3, bias=False, form="linear"), LeakyIntegrator(0.5)]
    )
    result = summary(net, x)
    first, leaky, second, readout = result.layers
    assert [row.name for row in result.layers] == ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert (first.weights, first.macs, first.effective, first.bits_in) == (128, 128, 48, True)
    assert first.bits_per_weight == (128 + 16 * 2 * 32) / 128  # a scale and an offset a row
    assert (first.parameters, first.packed) == (16, 16 + 128 + 64)  # bias
    assert second.bits_per_weight == (48 + 3 * 32) / 48
    assert second.sparsity == 0
    spikes = net.layers[1](net.layers[0](x))[0]
    assert leaky.activity == pytest.approx(spikes.mean().item())
    assert second.effective == pytest.approx(spikes.sum().item() / 8 * 3)
    assert (leaky.parameters, leaky.output, readout.output) == (2, (16,), (3,))
    assert readout.activity is None
    total = result.total
    assert total.weights == 176
    assert total.macs == 176
    assert total.packed == sum(row.packed for row in result.layers)


def test_memory_is_what_a_longer_sequence_adds() -> None:
    """The leaky neuron keeps its membranes: one float a neuron and step, whatever T and B."""
    net = Network([nn.Linear(8, 16, bias=False), Leaky(0.5)])
    for steps, batch in ((4, 2), (50, 3)):
        neuron = summary(net, torch.rand(steps, batch, 8)).layers[1]
        assert 16 * 4 <= neuron.saved < 16 * 4 * 2 + 200 * 64 / (steps * batch)


def test_it_changes_nothing(x: Tensor) -> None:
    net = Network([BinaryLinear(8, 16), Leaky(0.5, emit="denoised")])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    summary(net.train(), x)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_convolution_and_recurrence() -> None:
    conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
    net = Network(
        [conv, Leaky(0.5), nn.Flatten(2), nn.Linear(64, 5), Recurrent(Leaky(0.5), nn.Linear(5, 5))], (2, 4, 4)
    )
    x = torch.ones(3, 2, 2, 4, 4)
    rows = {row.name: row for row in summary(net, x).layers}
    inside = 4 * 9 + 8 * 6 + 4 * 4  # taps of a 3×3 window that lie inside a padded 4×4 picture
    assert rows["layers.0"].macs == rows["layers.0"].effective == 2 * 4 * inside
    assert rows["layers.4.recurrent_layer"].macs == 25
    spikes = net(x)[0]
    assert rows["layers.4.recurrent_layer"].effective == pytest.approx(spikes[:-1].sum().item() * 5 / 6)
    assert rows["layers.4"].activity == pytest.approx(spikes.mean().item())


def test_the_table_says_it_all(x: Tensor) -> None:
    text = str(summary(Network([BinaryLinear(8, 16), Leaky(0.5)]), x))
    assert "4 steps, batch 2" in text
    for word in ("layers.0", "BinaryLinear", "9.00", "48 ACs", "total", "208 B"):
        assert word in text, word
    assert max(map(len, text.splitlines())) <= 180
