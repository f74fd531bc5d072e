"""Estimators that change in training, in layers and networks."""

from typing import Any

import pytest
import torch
from torch import nn

from tbnn import pack
from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    network_from_config,
    network_to_config,
    progress,
)
from tbnn.ops.quantize import Pege, Qgait, Reste


def spikes(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def test_progress_moves_every_layer() -> None:
    inner = BinaryLinear(6, 6, estimator=Reste(power=3.0))
    net = Network(
        [
            BinaryLinear(5, 6, estimator="pege"),
            Recurrent(Leaky(0.9), inner),
            BinaryLinear(6, 3, estimator="ste"),
            Leaky(0.9),
        ]
    )
    first, last = net.layers[0], net.layers[2]
    progress(net, 0.5)
    assert first.estimator == Pege(progress=0.5)
    assert inner.estimator == Reste(power=3.0, progress=0.5)
    assert last.estimator == "ste"  # a name that says all stays a name
    progress(net, 0.9)
    assert first.estimator == Pege(progress=0.9)
    progress(net, 1)
    assert (first.estimator, inner.estimator) == (Pege(), Reste(power=3.0))
    with pytest.raises(ValueError, match=r"progress: expected a progress in \[0, 1\], got 1.2"):
        progress(net, 1.2)


@pytest.mark.parametrize("form", ["affine", "linear"])
@pytest.mark.parametrize("block", [None, 16])
def test_a_mixing_layer_multiplies_by_the_mixture(form: str, block: int | None) -> None:
    torch.manual_seed(0)
    layer = BinaryLinear(64, 48, bias=False, estimator=Pege(weight=0.0, progress=0.5), form=form, block=block)
    x = spikes(80, 64).requires_grad_()
    torch.manual_seed(3)
    weight = layer.quantized_weight().detach()
    torch.manual_seed(3)
    y = layer(x)
    torch.testing.assert_close(y, x.detach() @ weight.T, rtol=1e-5, atol=1e-5)
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(layer.weight.grad, g.T @ x.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, g @ weight, rtol=1e-4, atol=1e-4)
    kept = weight == layer.weight
    assert 0.2 < kept.float().mean() < 0.6  # 1 − ln(1 + (e − 1)/2) = 0.38

    progress(layer, 0)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight), rtol=1e-5, atol=1e-5)


def test_evaluation_and_codes_are_quantised_throughout() -> None:
    torch.manual_seed(0)
    x = spikes(10, 40)
    plain = BinaryLinear(40, 8)
    mixing = BinaryLinear(40, 8, estimator=Pege(progress=0.2))
    mixing.load_state_dict(plain.state_dict())
    assert mixing.mixes
    assert (mixing.bits, mixing.takes_words) == (None, False)
    for ours, expected in zip(mixing.codes(), plain.codes(), strict=True):
        assert torch.equal(ours, expected)
    assert not torch.equal(mixing(x), plain(x))
    mixing.eval()
    assert (mixing.bits, mixing.takes_words, mixing.mixes) == (1, True, False)
    assert torch.equal(mixing(x), plain(x))
    net, expected = Network([mixing, Leaky(0.9)]).eval(), Network([plain, Leaky(0.9)]).eval()
    packed, wanted = (pack(network).simulate(x[:, None], record=("spikes",)).spikes for network in (net, expected))
    assert all(torch.equal(packed[layer], wanted[layer]) for layer in wanted)
    mixing.train()
    mixing.freeze()
    assert not mixing.mixes
    assert torch.equal(mixing(x), plain(x))


NETWORKS: dict[str, Any] = {
    "dense": lambda how: (
        [BinaryLinear(96, 64, estimator=how), Leaky(0.9), BinaryLinear(64, 8, estimator=how), LeakyIntegrator(0.9)],
        (20, 4, 96),
    ),
    "recurrent": lambda how: (
        [BinaryLinear(40, 48, estimator=how), Recurrent(Leaky(0.9), BinaryLinear(48, 48, estimator=how))],
        (12, 4, 40),
    ),
    "conv": lambda how: (
        [BinaryConv2d(2, 8, 3, estimator=how), Leaky(0.9), Flatten(), BinaryLinear(8 * 36, 4, estimator=how)],
        (6, 3, 2, 8, 8),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_do_not_run_mixtures_by_bits(name: str) -> None:
    """At progress 0 a network is that of the latent weights; layers of bits would round them."""
    torch.manual_seed(0)
    layers, shape = NETWORKS[name](Pege(weight=0.0))
    net = Network(layers)
    x = spikes(*shape)
    settled = net(x)[0]
    progress(net, 0)
    out = net(x)[0]
    assert not torch.equal(out, settled)
    full, _ = NETWORKS[name]("ste")
    expected = Network(full)
    expected.load_state_dict(net.state_dict())
    for layer in expected.modules():
        if isinstance(layer, (BinaryLinear, BinaryConv2d)):
            layer._bits, layer.form, layer.lam = (
                None,
                "linear",
                1e-30,
            )  # sparsity alone, of nothing: the weights as they are
    wanted = expected(x)[0]
    assert (out != wanted).float().mean() < 0.02 or torch.allclose(out, wanted, rtol=1e-3, atol=1e-3)
    out.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("estimator", ["qgait", "pege"])
def test_they_train(estimator: str) -> None:
    torch.manual_seed(0)
    x, labels = spikes(8, 60, 20, seed=3), torch.arange(60) % 2
    x[:, labels == 1, :10] = (x[:, labels == 1, :10] + spikes(8, 30, 10, seed=4)).clamp(max=1)
    net = Network(
        [
            BinaryLinear(20, 32, estimator=estimator),
            Leaky(0.8),
            BinaryLinear(32, 2, estimator=estimator),
            LeakyIntegrator(0.9),
        ]
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(net(x)[0].mean(0), labels)

    net.eval()
    before = loss().item()
    net.train()
    for epoch in range(30):
        progress(net, epoch / 29)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    net.eval()
    assert loss().item() < 0.5 * before


def test_configurations_know_the_names() -> None:
    net = Network([BinaryLinear(8, 4, estimator="pege"), Leaky(0.9), BinaryConv2d(1, 2, 3, estimator="qgait")])
    again = network_from_config(network_to_config(net))
    assert [layer.estimator for layer in again.layers if hasattr(layer, "estimator")] == ["pege", "qgait"]
    assert "estimator=Qgait(" in repr(BinaryLinear(8, 4, estimator=Qgait(1.0)))
    assert "bits=1" in repr(BinaryLinear(8, 4, estimator=Pege(progress=0.1)))
