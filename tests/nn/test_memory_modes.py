"""Networks keep for backward what was asked for and predicted; the numbers do not change."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tbnn.nn.network
from tbnn.bits import pack_bits
from tbnn.nn import (
    Adaptive,
    BinaryConv2d,
    BinaryLinear,
    FiringRates,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
    Residual,
    SpikeDropout,
    Synaptic,
    TargetRate,
    TemporalBatchNorm,
    Winners,
    network_from_config,
    network_to_config,
    summary,
)
from tbnn.nn.memory import Predicted, saved_bytes
from tbnn.ops.layer_lif import WeightedSpikes

MODES = ["speed", "balanced", "minimal"]


def dense(memory: str | int = "speed") -> Network:
    layers = [
        BinaryLinear(40, 64), Leaky(0.9), BinaryLinear(64, 33, bits=1.58, sparsity=0.25), Synaptic(0.5, 0.875, learn_beta=True),
        BinaryLinear(33, 64), Adaptive(0.875, 0.5, activity=Winners(9)), BinaryLinear(64, 40),
        Leaky(0.9, refractory=2, target="trace", learn_threshold=True), SpikeDropout(0.1), BinaryLinear(40, 3), LeakyIntegrator(0.9),
    ]  # fmt: skip
    return Network(layers, memory=memory)


def convolutional(memory: str | int = "speed") -> Network:
    body = Network(
        [
            BinaryConv2d(4, 4, 3, padding=1, bias=False),
            TemporalBatchNorm(4),
            Leaky(0.9),
            BinaryConv2d(4, 4, 3, padding=1),
            Leaky(0.75),
        ]
    )
    layers = [
        BinaryConv2d(2, 4, 3, padding=1), Leaky(0.9, activity=TargetRate(0.1)), MaxPool2d(2), Residual(body),
        BinaryConv2d(4, 6, 3, stride=2, groups=2), Leaky(0.9), Flatten(), BinaryLinear(6, 16),
        Recurrent(Leaky(0.9), BinaryLinear(16, 16)), BinaryLinear(16, 3), LeakyIntegrator(0.9),
    ]  # fmt: skip
    return Network(layers, (2, 8, 8), memory)


def unfused(monkeypatch: pytest.MonkeyPatch, run: Callable[[], list[Tensor]]) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(tbnn.nn.network, "group_at", lambda *_: None)
        return run()


def outcome(network: Network, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """The readout, the gradients, and what the layers remember of a training batch."""
    network = copy.deepcopy(network).train()
    torch.manual_seed(3)
    y, state = network(x, None, mask)
    more, _ = network(x, state, mask)
    gradients = torch.autograd.grad((y + more).square().mean(), list(network.parameters()))
    return [y, more, *gradients, *(b for b in network.buffers() if b.numel())]


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("make", [dense, convolutional])
def test_the_same_numbers(
    make: Callable[..., Network], packed: bool, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make(memory)
    shape = network.input_shape or (40,)
    x = (torch.rand(20, 3, *shape) < 0.4).float()
    x = pack_bits(x.flatten(2)) if packed else x
    wanted = unfused(monkeypatch, lambda: outcome(network, x))
    assert wanted[0].std() > 0
    for got, expected in zip(outcome(network, x), wanted, strict=True):
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    torch.testing.assert_close(outcome(network, x)[0], wanted[0], rtol=1e-6, atol=1e-6)  # a norm's rounding


def test_masks_and_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = dense("minimal"), (torch.rand(9, 3, 40) < 0.4).float()
    mask = torch.arange(9).unsqueeze(1) < torch.tensor([9, 4, 1])
    wanted = unfused(monkeypatch, lambda: outcome(network, x, mask))
    for got, expected in zip(outcome(network, x, mask), wanted, strict=True):
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    network.eval()
    state, steps = None, []
    for x_t in x.unbind(0):
        y, state = network.step(x_t, state)
        steps.append(y)
    assert torch.equal(torch.stack(steps), network(x)[0])


def fused_pairs(network: Network, x: Tensor) -> int:
    """How many layers of weights run as one with their neurons."""
    return len(Predicted(network, x).fused)


def test_which_layers_run_as_one() -> None:
    x = (torch.rand(4, 2, 40) < 0.4).float()
    network = dense()
    assert fused_pairs(network, x) == 4
    assert fused_pairs(network, x + 0.5) == 3  # no bits enter
    assert fused_pairs(network, pack_bits(x)) == 4
    assert fused_pairs(Network([nn.Linear(40, 8), Leaky(0.9)]), x) == 0
    assert fused_pairs(Network([BinaryLinear(40, 8), nn.Dropout(0.1), Leaky(0.9)]), x) == 0
    assert fused_pairs(Network([BinaryLinear(40, 8), Leaky(0.9, emit="denoised")]), x) == 0
    assert fused_pairs(Network([BinaryLinear(40, 8, bits=None, sparsity=0.5), Leaky(0.9)]), x) == 0
    assert fused_pairs(Network([BinaryLinear(40, 8, block=16), Leaky(0.9)]), x) == 0


def test_hooks_see_what_they_ask_for() -> None:
    x = (torch.rand(6, 2, 40) < 0.4).float()
    network, seen = dense("minimal"), []
    network.layers[1].register_forward_hook(lambda _, args, out: seen.append((args[0], out[0])))
    network.layers[2].register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    network(x)
    (current, spikes), (same, _) = seen
    assert torch.equal(network.layers[1](current)[0], spikes)
    assert torch.equal(same, spikes)
    with FiringRates(network) as rates:
        network.eval()(x)
    assert len(rates.mean()) == 4


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_kept_was_predicted(make: Callable[..., Network], memory: str, packed: bool) -> None:
    network = make(memory)
    x = (torch.rand(150, 2, *(network.input_shape or (40,))) < 0.4).float()
    x = pack_bits(x.flatten(2)) if packed else x
    predicted = Predicted(network, x)
    for steps in (16, 50, 150):
        assert saved_bytes(network, x[:steps]) == pytest.approx(predicted.bytes(memory, steps), rel=1e-2)
    assert summary(network, x).memory[memory] == predicted.bytes(memory, 150)


def test_a_stack_keeps_one_and_a_half_bits_a_neuron_and_step() -> None:
    width, batch, layers = 256, 8, []
    for _ in range(4):
        layers += [BinaryLinear(width, width), Leaky(0.9)]
    bits = {}
    for memory in MODES:
        network = Network(layers, memory=memory)
        kept = [saved_bytes(network, (torch.rand(steps, batch, width) < 0.2).float()) for steps in (144, 432)]
        bits[memory] = 8 * (kept[1] - kept[0]) / (288 * batch * width * 4)  # Ŵ, which each call keeps, falls out
    assert 1.25 < bits["minimal"] < 1.75
    assert bits["minimal"] - 0.25 * 1 < 1.5  # the words that enter the first layer are no neuron's of this stack
    assert bits["minimal"] < bits["balanced"] < bits["speed"] / 2 < 18


def test_a_budget_is_kept() -> None:
    x = (torch.rand(300, 4, 40) < 0.4).float()
    network = dense()
    modes = Predicted(network, x).modes(300)
    for budget in (modes["minimal"], (modes["minimal"] + modes["speed"]) // 2, modes["speed"], 10 * modes["speed"]):
        network.memory = budget
        kept = saved_bytes(network, x)
        assert kept <= budget
        assert kept >= min(0.7 * budget, modes["speed"])
    network.memory = modes["minimal"] - 1
    with pytest.raises(
        ValueError, match=f"300 steps of 4 sequences do not fit .* expected at least {modes['minimal']}"
    ):
        network(x)
    with torch.no_grad():
        network(x)  # keeps nothing


def test_the_mode_is_part_of_the_configuration() -> None:
    network = network_from_config(network_to_config(dense("minimal")))
    assert network.memory == "minimal"
    network.memory = 1 << 20
    assert network_from_config(network_to_config(network)).memory == 1 << 20
    outer = convolutional()
    outer.memory = "balanced"
    assert outer.layers[3].body.memory == "balanced"  # pyright: ignore
    for wrong in ("least", 0, True):
        with pytest.raises(ValueError, match="memory: expected 'speed', 'balanced', 'minimal' or bytes >= 1, got"):
            network.memory = wrong
    assert "memory='balanced'" in repr(outer)


def test_words_are_handed_from_layer_to_layer() -> None:
    """What one layer emits and the next takes is one memory."""
    network = Network([BinaryLinear(40, 64), Leaky(0.9), BinaryLinear(64, 33), Leaky(0.9)], memory="minimal")
    seen: list[WeightedSpikes] = []
    for neuron in (network.layers[1], network.layers[3]):
        hook = tbnn.nn.fused.sees_no_current(lambda _, args, __: seen.append(args[0]))
        neuron.register_forward_hook(hook)
    network((torch.rand(6, 2, 40) < 0.4).float())
    first, second = seen
    assert first.emitted is second.words
