"""Residual blocks: truth tables, gradients of products, the state of both paths."""

import pytest
import torch
from torch import Tensor, nn

from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.leaky import Leaky
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.residual import JOINS, Residual


class Fixed(nn.Module):
    """A path whose output is given."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Tensor) -> Tensor:
        return self.y


BODY, SHORTCUT = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])


@pytest.mark.parametrize(
    ("join", "table", "dbody", "dshortcut"),
    [
        ("or", [0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0]),
        ("and", [0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]),
        ("iand", [0, 1, 0, 0], [0, -1, 0, -1], [1, 1, 0, 0]),
        ("current", [0, 1, 1, 2], [1, 1, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_truth_tables_and_gradients(join: str, table: list[int], dbody: list[int], dshortcut: list[int]) -> None:
    body, shortcut = (t.reshape(1, 1, 4).clone().requires_grad_() for t in (BODY, SHORTCUT))
    y, _ = Residual(Fixed(body), Fixed(shortcut), join)(torch.zeros(1, 1, 4))
    assert y.flatten().tolist() == table
    y.sum().backward()
    assert body.grad.flatten().tolist() == dbody
    assert shortcut.grad.flatten().tolist() == dshortcut


def test_the_identity_shortcut_is_the_input() -> None:
    y, state = Residual(Fixed(BODY.reshape(1, 1, 4)), join="iand")(SHORTCUT.reshape(1, 1, 4))
    assert y.flatten().tolist() == [0, 1, 0, 0]
    assert state.shortcut is None


def block(join: str) -> Residual:
    last = [] if join == "current" else [Leaky(0.75)]
    body = [
        BinaryConv2d(2, 4, 3, padding=1),
        TemporalBatchNorm(4),
        Leaky(0.75),
        BinaryConv2d(4, 4, 3, padding=1),
        *last,
    ]
    shortcut = [BinaryConv2d(2, 4, 1), *([] if join == "current" else [Leaky(0.75)])]
    return Residual(body, shortcut, join).double().eval()


def spikes(*shape: int) -> Tensor:
    return (torch.rand(*shape) < 0.4).double()


@pytest.mark.parametrize("join", JOINS)
def test_steps_and_halves_equal_the_sequence(join: str) -> None:
    layer, x = block(join), spikes(9, 3, 2, 5, 5)
    y, last = layer(x)
    if join != "current":
        assert set(y.unique().tolist()) <= {0.0, 1.0}
    first, middle = layer(x[:4])
    second, end = layer(x[4:], middle)
    state, steps = None, []
    for x_t in x:
        y_t, state = layer.step(x_t, state)
        steps.append(y_t)
    for other, other_state in ((torch.cat([first, second]), end), (torch.stack(steps), state)):
        torch.testing.assert_close(other, y)
        torch.testing.assert_close(other_state.body[2].v, last.body[2].v)


def test_is_its_paths_run_apart_then_joined() -> None:
    layer, x = block("or"), spikes(6, 2, 2, 5, 5)
    body, shortcut = Network(layer.body.layers)(x)[0], Network(layer.shortcut.layers)(x)[0]
    assert torch.equal(layer(x)[0], torch.logical_or(body > 0, shortcut > 0).double())


def test_every_path_gets_the_mask() -> None:
    """Norms in training see only the steps that count: padding after an end changes nothing before it."""
    layer, x = block("or").train(), spikes(7, 2, 2, 5, 5)
    mask = torch.arange(7)[:, None] < torch.tensor([7, 3])
    padded = x.masked_fill(~mask[..., None, None, None], 1.0)
    silent = x.masked_fill(~mask[..., None, None, None], 0.0)
    (y, state), (expected, expected_state) = layer(padded, None, mask), layer(silent, None, mask)
    torch.testing.assert_close(y[mask], expected[mask])
    torch.testing.assert_close(state.body[2].v, expected_state.body[2].v)
    assert not y[~mask].any()


def test_in_a_network_it_learns_through_both_paths() -> None:
    net = Network([Residual([BinaryLinear(6, 6), Leaky(0.5)], [BinaryLinear(6, 6), Leaky(0.5)]), BinaryLinear(6, 2)])
    y, state = net(spikes(5, 3, 6).float())
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert net.step(torch.ones(3, 6), state)[0].shape == (3, 2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="join: expected one of 'or', 'and', 'iand', 'current', got 'add'"):
        Residual([Leaky(0.5)], join="add")
    with pytest.raises(ValueError, match=r"end in one shape, got \(2, 1, 4\) and \(2, 1, 3\)"):
        Residual([BinaryLinear(3, 4), Leaky(0.5)])(torch.zeros(2, 1, 3))
