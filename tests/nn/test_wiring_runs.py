"""Networks with wirings: trained, packed, saved, written down and counted like any other."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tbnn
from tbnn.bits import pack_bits
from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    Dale,
    DeepR,
    DelayedLinear,
    Distance,
    FixedWiring,
    Flatten,
    GivenWiring,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    network_from_config,
    network_to_config,
    summary,
)
from tbnn.sim import check_parity
from tbnn.sim.layers import PackedLinear, PackedSparse
from tbnn.sim.pack import unpack

LAW = Dale(0.25, seed=2)
GIVEN = GivenWiring(torch.rand(33, 70, generator=torch.Generator().manual_seed(0)) < 0.4)
WIRINGS: dict[str, Any] = {
    "dale": LAW,
    "fixed": FixedWiring(0.3),
    "far sparser": FixedWiring(0.02),
    "deep r": DeepR(0.1),
    "law and place": (LAW, FixedWiring(0.4, seed=3)),
    "law and deep r": (LAW, DeepR(0.2, l1=0.1)),
    "distance": Distance(0.5, inputs=torch.rand(70, 3), outputs=(33, 1, 1)),
    "given": GIVEN,
}


def dense(wiring: Any, bits: float = 1, block: int | None = None) -> Network:
    options: dict[str, Any] = {"form": "linear", "bits": bits, "block": block}
    return Network([
        BinaryLinear(70, 33, wiring=wiring, **options), Leaky(0.5, 0.5),
        BinaryLinear(33, 40, wiring=LAW, **options),
        Recurrent(Leaky(0.75, 0.5), BinaryLinear(40, 40, wiring=(LAW, FixedWiring(0.2)), **options)),
        BinaryLinear(40, 5, wiring=LAW, **options), LeakyIntegrator(0.75),
    ])  # fmt: skip


def pictures() -> Network:
    return Network([
        BinaryConv2d(2, 6, 3, padding=1, form="linear", wiring=(LAW, FixedWiring(0.5))), Leaky(0.5, 0.5),
        BinaryConv2d(6, 4, 3, groups=2, bits=2, form="linear", wiring=DeepR(0.5)), Leaky(0.5, 0.5), Flatten(),
        DelayedLinear(64, 7, 3, form="linear", learn=False, wiring=(LAW, FixedWiring(0.5))), Leaky(0.5, 0.5),
        BinaryLinear(7, 3), LeakyIntegrator(0.75),
    ], (2, 6, 6))  # fmt: skip


def spikes(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.3).float()


def assert_same(got: Tensor | None, want: Tensor) -> None:
    assert got is not None
    assert torch.equal(got, want)


def a_step(net: Network, x: Tensor) -> list[float]:
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.05), []
    labels = torch.arange(x.shape[1]) % 3
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x)[0].mean(0), labels)
        loss.backward()
        optimizer.step()
        tbnn.nn.rewire(net, optimizer)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "bits", "block"),
    [*((name, 1, None) for name in WIRINGS), ("law and place", 1, 32), ("deep r", 1, 32), ("law and place", 3, None)],
)
def test_it_trains_and_packs_bit_for_bit(name: str, bits: float, block: int | None) -> None:
    net, x = dense(WIRINGS[name], bits, block), spikes(9, 6, 70)
    losses = a_step(net, x)
    assert losses[-1] < losses[0]
    packed = tbnn.pack(net.eval())
    assert_same(packed.simulate(pack_bits(x)).readout, net(x)[0])
    assert check_parity(net, packed, x).ok
    again = unpack(packed)
    assert torch.equal(again(x)[0], net(x)[0])
    first, layer = packed.layers[0], net.layers[0]
    assert isinstance(first, PackedSparse if name == "far sparser" and block is None else PackedLinear)
    assert isinstance(layer, BinaryLinear)
    assert torch.equal(first.values().float(), layer.codes().values)


def test_convolutions_and_delays_pack_too() -> None:
    net, x = pictures(), spikes(10, 3, 2, 6, 6)
    a_step(net, x)
    net.eval()
    packed = tbnn.pack(net)
    assert_same(packed.simulate(x).readout, net(x)[0])
    assert check_parity(net, packed, x).ok


@pytest.mark.parametrize("make", [*(lambda w=w: dense(w) for w in WIRINGS.values()), pictures])
def test_through_a_configuration_and_a_state_dict(make: Any) -> None:
    net = make()
    x = spikes(8, 6, *(net.input_shape or (70,)))
    a_step(net, x)
    config = network_to_config(net)
    again = network_from_config(json.loads(json.dumps(config)))
    assert network_to_config(again) == config
    assert str(again) == str(net)
    for (name, a), (_, b) in zip(again.named_buffers(), net.named_buffers(), strict=True):
        if name.endswith("signs") or (name.endswith("mask") and "DeepR" not in str(net)):
            assert torch.equal(a, b), name
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x)[0], net.eval()(x)[0])


def test_a_configuration_that_is_wrong_says_where() -> None:
    config = network_to_config(Network([BinaryLinear(4, 3, form="linear", wiring=Dale(0.5))]))
    config["layers"][0]["wiring"]["inhibitory"] = 2.0
    with pytest.raises(ValueError, match=r"layers\[0\].wiring: Dale: .*expected a share in \[0, 1\], got 2.0"):
        network_from_config(config)


def test_layers_that_run_as_one_give_what_they_give_one_by_one() -> None:
    """The fused group and the fused recurrence, values and gradients."""
    net, x = dense(WIRINGS["law and place"]), spikes(12, 6, 70)
    first, leaky, second, recurrent, third, readout = net.layers
    assert recurrent.fusible
    got = net(x)[0]
    loose: Any = recurrent
    y = second(leaky(first(x))[0])
    want = readout(third(loose._run(y, None, None)[0]))[0]
    assert torch.equal(got, want)
    weights = torch.randn_like(got)
    pairs = [torch.autograd.grad(out, list(net.parameters()), weights, allow_unused=True) for out in (got, want)]
    for (name, parameter), one, other in zip(net.named_parameters(), *pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)
        if name.endswith("weight"):
            layer: Any = net.get_submodule(name.removesuffix(".weight"))
            assert one is not None
            assert not one[~layer.mask].any()
            assert parameter.requires_grad


def test_a_summary_counts_the_synapses() -> None:
    wiring = GivenWiring(torch.eye(8)[:4] + torch.eye(8)[1:5] > 0)
    layer = BinaryLinear(8, 4, bias=False, form="linear", wiring=wiring)
    x = torch.zeros(3, 2, 8)
    x[:, :, 0] = 1
    (row, _) = summary(Network([layer, Leaky(0.5)]), x).layers
    assert (row.weights, row.macs, row.effective, row.sparsity) == (8, 8, 1, 0)
    assert row.bits_per_weight == (min(2 * 32, 8 * (1 + 3) + 4 * 32) + 4 * 32) / 8
    silent = BinaryLinear(8, 4, bias=False, form="linear", wiring=GivenWiring(wiring.mask, torch.ones(4, 8)))
    with torch.no_grad():
        silent.weight[0] *= -1
    (row, _) = summary(Network([silent, Leaky(0.5)]), x).layers
    assert (row.weights, row.macs, row.sparsity) == (8, 8, 0.25)


def test_a_wired_layer_freezes_at_its_codes_and_takes_a_norm_in() -> None:
    layer, x = BinaryLinear(20, 6, form="linear", wiring=(LAW, FixedWiring(0.5))), spikes(30, 20)
    want = layer(x)
    layer.freeze()
    assert torch.equal(layer(x), want)
    assert torch.equal(layer.quantized_weight() != 0, layer.codes().values != 0)
    other = BinaryLinear(20, 6, form="linear", wiring=(LAW, FixedWiring(0.5)))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), want)
