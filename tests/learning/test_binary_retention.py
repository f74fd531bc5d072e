"""What is kept of earlier tasks: permutations, metrics in closed form, flips."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tbnn.bits import pack_bits, unpack_bits
from tbnn.learning.retention import (
    Retention,
    average_accuracy,
    backward_transfer,
    flips,
    forgetting,
    permutations,
    permute,
    retention,
    signs,
)
from tbnn.nn import BinaryLinear

A = torch.tensor([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.4, 0.85, 0.6]])


def test_the_metrics_by_hand() -> None:
    assert average_accuracy(A) == pytest.approx((0.4 + 0.85 + 0.6) / 3)
    assert forgetting(A) == pytest.approx(((0.9 - 0.4) + (0.8 - 0.85)) / 2)  # the best before the last task
    assert backward_transfer(A) == pytest.approx(((0.4 - 0.9) + (0.85 - 0.8)) / 2)
    late = torch.tensor([[0.5, 0.1, 0.1], [0.9, 0.8, 0.1], [0.6, 0.8, 0.9]])  # task 1 was best after task 2
    assert forgetting(late) == pytest.approx((0.3 + 0.0) / 2)
    assert backward_transfer(late) == pytest.approx((0.1 + 0.0) / 2)
    assert average_accuracy(A[:1, :1]) == pytest.approx(0.9)


@pytest.mark.parametrize("metric", [average_accuracy, forgetting, backward_transfer])
def test_the_metrics_want_a_square(metric: Callable[[Tensor], float]) -> None:
    with pytest.raises(ValueError, match=r"accuracy: expected \(T, T\).*got \(2, 3\)"):
        metric(A[:2])
    if metric is not average_accuracy:
        with pytest.raises(ValueError, match="T >= 2"):
            metric(A[:1, :1])


def test_permutations() -> None:
    orders = permutations(4, 70, seed=3)
    assert orders.shape == (4, 70)
    assert torch.equal(orders[0], torch.arange(70))
    assert torch.equal(orders.sort(1).values, torch.arange(70).expand(4, 70))
    assert torch.equal(orders[:2], permutations(2, 70, seed=3))
    assert not torch.equal(orders[1], permutations(2, 70, seed=4)[1])
    assert len({tuple(row.tolist()) for row in orders}) == 4
    with pytest.raises(ValueError, match="got 0 and 5"):
        permutations(0, 5)


@pytest.mark.parametrize("features", [1, 31, 32, 70])
def test_words_are_permuted_as_their_bits_are(features: int) -> None:
    x, order = torch.randint(0, 2, (3, 4, features)).float(), permutations(2, features)[1]
    moved = permute(x, order)
    assert all(torch.equal(moved[..., i], x[..., j]) for i, j in enumerate(order.tolist()))
    assert torch.equal(unpack_bits(permute(pack_bits(x), order), features), moved)
    assert torch.equal(permute(moved, order.argsort()), x)


def test_permute_refuses() -> None:
    for order in (torch.tensor([0, 0]), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="order: expected a permutation"):
            permute(torch.ones(3, 2), order)
    with pytest.raises(ValueError, match=r"expected \(..., 2\), got \(3, 4\)"):
        permute(torch.ones(3, 4), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="permute"):
        permute(torch.ones(3, 4, dtype=torch.int32), torch.tensor([1, 0]))


def test_flips() -> None:
    first = BinaryLinear(10, 3)
    network = nn.Sequential(first, nn.ReLU(), BinaryLinear(3, 5, bits=1.58, sparsity=0.4))
    before = signs(network)
    assert sorted(before) == ["0", "2"]
    assert (before["2"] == 0).any()
    assert flips(before, before) == 0
    first.weight.data[0] *= -1
    assert flips(before, signs(network)) == 10 / 45
    with pytest.raises(ValueError, match="flips: expected signs of the same layers"):
        flips(before, {"0": before["0"]})
    with pytest.raises(ValueError, match="flips"):
        flips({}, {})


def test_retention_trains_in_order_and_looks_at_all_tasks() -> None:
    layer = BinaryLinear(8, 2)
    learned: list[int] = []

    def train(task: int) -> None:
        learned.append(task)
        layer.weight.data[0, :task] *= -1

    def evaluate(task: int) -> float:
        return A[len(learned) - 1, task - 1].item()

    found = retention(train, evaluate, [1, 2, 3], layer)
    assert learned == [1, 2, 3]
    assert found.flips == (1 / 16, 2 / 16, 3 / 16)
    torch.testing.assert_close(found.accuracy, A.double())
    assert found.summary() == pytest.approx(
        {"average_accuracy": 0.6166667, "learned": 0.7666667, "forgetting": 0.225, "backward_transfer": -0.225}
    )
    assert retention(lambda task: None, lambda task: 0.5, [0]).flips is None
    assert set(Retention(A[:1, :1], None).summary()) == {"average_accuracy", "learned"}
    with pytest.raises(ValueError, match="at least one task"):
        retention(train, evaluate, [])


def test_a_network_without_quantised_weights_has_no_flips() -> None:
    def nothing(task: Tensor) -> None:
        pass

    with pytest.raises(ValueError, match="flips"):
        retention(nothing, lambda task: 0.0, [torch.ones(1)], nn.Linear(2, 2))
