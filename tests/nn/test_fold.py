"""Norms folded into the weights before them: the same network in evaluation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.nn.config import network_from_config, network_to_config
from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.fold import fold_batch_norms
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.pool import Flatten, MaxPool2d
from tbnn.nn.residual import Residual


def trained(*layers: nn.Module) -> Network:
    """A network whose norms have seen two batches and have weights of both signs."""
    net = Network(layers).double()
    for module in net.modules():
        if isinstance(module, (TemporalBatchNorm, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias)
    for seed in range(2):
        net(frames(seed))
    return net


def frames(seed: int = 5) -> Tensor:
    return (torch.rand(6, 4, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.3).double()


def convolutional(norm: type[nn.Module] = TemporalBatchNorm, **weights: Any) -> Network:
    return trained(
        BinaryConv2d(2, 6, 3, padding=1, bias=False, **weights), norm(6), Leaky(0.8), MaxPool2d(2),
        Residual(
            [BinaryConv2d(6, 5, 3, padding=1, groups=1, **weights), norm(5), Leaky(0.8)],
            [BinaryConv2d(6, 5, 1, **weights), norm(5), Leaky(0.8)],
        ),
        Flatten(), BinaryLinear(80, 7, **weights), TemporalBatchNorm(7), Leaky(0.8), BinaryLinear(7, 3), LeakyIntegrator(0.9),
    )  # fmt: skip


@pytest.mark.parametrize("norm", [TemporalBatchNorm, nn.BatchNorm2d])
@pytest.mark.parametrize("weights", [{}, {"block": 7}, {"form": "linear"}], ids=str)
def test_a_folded_network_is_the_network_in_evaluation(norm: type[nn.Module], weights: dict[str, Any]) -> None:
    net, x = convolutional(norm, **weights), frames()
    folded = fold_batch_norms(net)
    assert net.training
    assert not folded.training
    assert not any(isinstance(m, (TemporalBatchNorm, nn.BatchNorm2d)) for m in folded.modules())
    y, state = net.eval()(x)
    folded_y, folded_state = folded(x)
    torch.testing.assert_close(folded_y, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded_state[2].v, state[2].v, rtol=1e-9, atol=1e-9)
    assert 0.01 < net.layers[2](net.layers[1](net.layers[0](x)))[0].mean() < 0.9 if norm is TemporalBatchNorm else True


def test_the_codes_of_a_folded_layer_rebuild_its_weights_with_the_gain() -> None:
    net = convolutional(block=7)
    plain, folded = net.layers[0], fold_batch_norms(net).layers[0]
    gain, shift = net.layers[1].folded()
    torch.testing.assert_close(folded.gain, gain)
    torch.testing.assert_close(folded.bias, shift)
    torch.testing.assert_close(folded.quantized_weight(), plain.quantized_weight() * gain.reshape(-1, 1, 1, 1))
    values, scale, offset = folded.codes()
    assert torch.equal(values, plain.codes()[0])
    rebuilt = [v.repeat_interleave(7, 1)[:, :18].reshape(6, 2, 3, 3) for v in (scale, offset)]
    torch.testing.assert_close(rebuilt[0] * values + rebuilt[1], folded.quantized_weight())


def test_a_folded_network_is_saved_and_made_again() -> None:
    folded, x = fold_batch_norms(convolutional()), frames()
    again = network_from_config(network_to_config(folded)).double().eval()
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(x)[0], folded(x)[0])
    unfolded = convolutional()
    unfolded.layers[0].gain = torch.ones(6)
    unfolded.layers[0].load_state_dict({"weight": unfolded.layers[0].weight})
    assert unfolded.layers[0].gain is None


def test_folding_twice_multiplies() -> None:
    layer, x = BinaryLinear(6, 3), torch.randn(4, 6)
    y = layer(x)
    layer.fold(torch.tensor([2.0, -1.0, 0.5]), torch.ones(3))
    layer.fold(torch.tensor([3.0, 3.0, 3.0]), torch.zeros(3))
    torch.testing.assert_close(layer(x), (y * torch.tensor([2.0, -1.0, 0.5]) + 1) * 3)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"layers.1: expected a binary layer right before a norm .* TemporalBatchNorm"):
        fold_batch_norms(Network([nn.Linear(3, 3), TemporalBatchNorm(3)]))
    with pytest.raises(ValueError, match=r"layers.1: expected a norm of 4 features, got 3"):
        fold_batch_norms(Network([BinaryLinear(3, 4), TemporalBatchNorm(3)]))
    with pytest.raises(ValueError, match="expected a batch norm with running statistics"):
        fold_batch_norms(Network([BinaryLinear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)]))
