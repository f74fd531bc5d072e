"""The network: packed words are frames, the state is a value, detaching cuts the graph."""

import pytest
import torch
from torch import Tensor, nn

from tbnn import pack_bits
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, LifState, Network, Recurrent, RecurrentState, detach


def network(features: int = 40, **arguments: str) -> Network:
    torch.manual_seed(0)
    return Network([
        BinaryLinear(features, 12),
        Leaky(0.8, stats="step", **arguments),
        BinaryLinear(12, 9),
        Recurrent(Leaky(0.8, stats="step", **arguments), BinaryLinear(9, 9)),
        BinaryLinear(9, 3),
        LeakyIntegrator(0.9),
    ]).double()  # fmt: skip


def frames(steps: int = 10, batch: int = 4, features: int = 40) -> Tensor:
    return (torch.rand(steps, batch, features) < 0.3).double()


def flat(state: object) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [t for part in state for t in flat(part)] if isinstance(state, tuple) else []


@pytest.mark.parametrize("features", [1, 32, 33, 70])
def test_packed_words_are_the_frames(features: int) -> None:
    net, x = network(features), frames(features=features)
    words = pack_bits(x)
    assert words.shape[-1] == -(-features // 32)
    y, state = net(x)
    packed_y, packed_state = net(words)
    assert torch.equal(packed_y, y)
    assert all(torch.equal(a, b) for a, b in zip(flat(packed_state), flat(state), strict=True))
    assert torch.equal(net.step(words[0])[0], net.step(x[0])[0])


def test_layers_run_in_order_and_the_state_has_one_entry_a_layer() -> None:
    net, x = network(), frames()
    y, state = net(x)
    value, expected = x, []
    for layer in net.layers:
        result = layer(value)
        value, own = result if isinstance(result, tuple) else (result, None)
        expected.append(own)
    assert torch.equal(y, value)
    assert [type(s) for s in state] == [type(None), LifState, type(None), RecurrentState, type(None), LifState]
    assert all(torch.equal(a, b) for a, b in zip(flat(state), flat(tuple(expected)), strict=True))


def test_steps_and_halves_equal_the_whole() -> None:
    net, x = network(), frames()
    y, last = net(x)
    state, steps = None, []
    for x_t in x:
        y_t, state = net.step(x_t, state)
        steps.append(y_t)
    first, middle = net(x[:3])
    second, end = net(x[3:], middle)
    for other, other_state in ((torch.stack(steps), state), (torch.cat([first, second]), end)):
        torch.testing.assert_close(other, y, rtol=1e-12, atol=1e-12)
        for a, b in zip(flat(other_state), flat(last), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not torch.equal(net(x[3:])[0], second)


def test_two_networks_share_nothing_and_a_call_leaves_nothing_behind() -> None:
    one, two, x = network(), network(), frames()
    assert torch.equal(one(x)[0], two(x)[0])
    before = {name: value.clone() for name, value in one.state_dict().items()}
    two(1 - x)
    one(1 - x)
    assert torch.equal(one(x)[0], two(x)[0])
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_detach_keeps_values_and_types_and_cuts_the_graph() -> None:
    net, x = network(target="trace"), frames()
    _, state = net(x)
    cut = detach(state)
    assert any(t.requires_grad for t in flat(state))
    assert not any(t.requires_grad for t in flat(cut))
    assert [type(s) for s in cut] == [type(s) for s in state]
    assert all(torch.equal(a, b) for a, b in zip(flat(cut), flat(state), strict=True))
    assert isinstance(cut[3], RecurrentState)
    assert isinstance(cut[3].neuron, LifState)


def test_truncated_back_propagation() -> None:
    """A detached state lets every window be differentiated by itself; an attached one drags its graph along."""
    net, x = network(), frames(12)
    state, total = None, [torch.zeros_like(p) for p in net.parameters()]
    for window in x.split(4):
        y, state = net(window, detach(state))
        for sum_, grad in zip(total, torch.autograd.grad(y.sum(), list(net.parameters())), strict=True):
            sum_ += grad
    whole = torch.autograd.grad(net(x)[0].sum(), list(net.parameters()))
    assert not torch.allclose(total[0], whole[0])
    _, attached = net(x[:4])
    torch.autograd.grad(net(x[4:8], attached)[0].sum(), list(net.parameters()))
    with pytest.raises(RuntimeError, match=r"the state layers.\d\S* carries the graph of an earlier sequence.*detach"):
        torch.autograd.grad(net(x[4:8], attached)[0].sum(), list(net.parameters()))


def test_any_torch_layer_may_stand_between() -> None:
    net = Network([nn.Flatten(2), BinaryLinear(18, 5), Leaky(0.5)])
    x = (torch.rand(6, 2, 2, 3, 3) < 0.5).float()
    y, state = net(x)
    expected, last = net.layers[2](net.layers[1](x.reshape(6, 2, 18)))
    assert torch.equal(y, expected)
    assert state[:2] == (None, None)
    assert torch.equal(state[2].v, last.v)


def test_refusals() -> None:
    net = network()
    with pytest.raises(ValueError, match="Network: expected at least one layer, got none"):
        Network([])
    with pytest.raises(ValueError, match="40 bits take 2 words, got a last axis of 1"):
        net(torch.zeros(3, 2, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match="state: expected one entry for each of 6 layers, got 2"):
        net(frames(), (None, None))
    with pytest.raises(ValueError, match="packed words need input_shape, or a first layer with in_features"):
        Network([Leaky(0.5)])(torch.zeros(3, 2, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"BinaryLinear: expected \(..., 40\), got \(10, 4, 39\)"):
        net(frames(features=39))


def test_input_shape_gives_flat_and_packed_frames_their_shape() -> None:
    torch.manual_seed(0)
    net = Network([torch.nn.Conv2d(2, 3, 3), Leaky(0.5), torch.nn.Flatten(2)], input_shape=(2, 5, 5))
    x = (torch.rand(6, 3, 2, 5, 5) < 0.4).float()
    y, _ = net(x)
    assert y.shape == (6, 3, 27)
    assert torch.equal(net(x.flatten(2))[0], y)
    assert torch.equal(net(pack_bits(x.flatten(2)))[0], y)
    state, steps = None, []
    for x_t in x.unbind(0):
        y_t, state = net.step(x_t, state)
        steps.append(y_t)
    assert torch.equal(torch.stack(steps), y)
    with pytest.raises(ValueError, match=r"expected \(T, B, 2, 5, 5\) or the same features flat, got \(6, 3, 49\)"):
        net(x.flatten(2)[:, :, :49])
    with pytest.raises(ValueError, match="input_shape: expected sizes >= 1"):
        Network([Leaky(0.5)], input_shape=(0, 3))


def test_torchs_layers_of_one_batch_axis_see_time_and_batch_as_one() -> None:
    norm, x = torch.nn.BatchNorm2d(3), torch.randn(4, 5, 3, 2, 2)
    assert torch.allclose(Network([norm])(x)[0], torch.nn.BatchNorm2d(3)(x.flatten(0, 1)).reshape(x.shape))


def test_a_padded_batch_is_each_sequence_alone() -> None:
    net = Network([torch.nn.Linear(4, 6, bias=False), Leaky(0.5), torch.nn.Linear(6, 2), LeakyIntegrator(0.9)])
    x, lengths = torch.randn(7, 3, 4), [7, 3, 1]
    mask = torch.arange(7).unsqueeze(1) < torch.tensor(lengths)
    y, state = net(torch.where(mask.unsqueeze(2), x, 9.0), mask=mask)
    for b, n in enumerate(lengths):
        alone, last = net(x[:n, b : b + 1])
        torch.testing.assert_close(y[:n, b : b + 1], alone)
        torch.testing.assert_close(state[3].v[b : b + 1], last[3].v)
    assert y[~mask].abs().sum() == 0
    # a stream goes on after the end of one of its sequences
    more = torch.tensor([[True, False, False]])
    net(x[:1], state, more)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(7, 2, dtype=torch.bool), r"mask: expected torch.bool \(7, 3\), got torch.bool \(7, 2\)"),
        (torch.ones(7, 3), r"mask: expected torch.bool \(7, 3\), got torch.float32"),
        (torch.tensor([[True, False, True]] * 7), r"at least one step in every sequence, got none in sequences \[1\]"),
        (torch.tensor([[True, False, True]] + [[True] * 3] * 6), r"before its padding, got gaps in sequences \[1\]"),
    ],
    ids=["shape", "dtype", "empty", "gap"],
)
def test_refused_masks(mask: torch.Tensor, message: str) -> None:
    layers = [Leaky(0.5), LeakyIntegrator(0.5), Recurrent(Leaky(0.5), torch.nn.Linear(4, 4))]
    for module in (*layers, Network(layers)):
        with pytest.raises(ValueError, match=message):
            module(torch.zeros(7, 3, 4), mask=mask)


def test_a_state_from_a_used_up_graph_is_named() -> None:
    """The most frequent error of recurrent training names the state, for networks, layers and steps alike."""
    net = Network([torch.nn.Linear(4, 4), Recurrent(Leaky(0.5), torch.nn.Linear(4, 4)), Leaky(0.5)])
    x = torch.randn(5, 2, 4)
    y, state = net(x)
    y.sum().backward()
    y, _ = net(x, state)
    with pytest.raises(RuntimeError, match=r"the state layers.[12]\.\S+ carries the graph of an earlier sequence"):
        y.sum().backward()
    net(x, detach(state))[0].sum().backward()
    kept, state = net(x)
    kept.sum().backward(retain_graph=True)  # whoever keeps the graph may go on through it
    net(x, state)[0].sum().backward()
