"""Readouts, losses and counts by hand, and against snntorch's."""

import doctest
import math
from collections.abc import Callable

import pytest
import snntorch.functional as theirs
import torch
from torch import Tensor

import tbnn.losses
from tbnn.losses import READOUTS, count_mse, cross_entropy, logits, temporal_efficient_training
from tbnn.metrics import confusion_matrix

READOUT = torch.tensor([[[1.0, 4.0]], [[3.0, 0.0]], [[2.0, 2.0]]])  # (T=3, B=1, C=2)
TWO = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).bool()  # lengths 2 and 1


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [2.0, 2.0]), ("max", [3.0, 4.0]), ("last", [2.0, 2.0]), ("count", [6.0, 6.0])]
)
def test_logits(how: str, expected: list[float]) -> None:
    assert logits(READOUT, how).tolist() == [expected]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [[2.0, -3.0], [-5.0, 6.0]]),
        ("max", [[3.0, -2.0], [-5.0, 6.0]]),
        ("last", [[3.0, -4.0], [-5.0, 6.0]]),
        ("count", [[4.0, -6.0], [-5.0, 6.0]]),
    ],
)
def test_logits_of_two_lengths(how: str, expected: list[list[float]]) -> None:
    x = torch.tensor([[[1.0, -2.0], [-5.0, 6.0]], [[3.0, -4.0], [9.0, 9.0]], [[9.0, 9.0], [9.0, 9.0]]])
    assert logits(x, how, TWO).tolist() == expected


def bits(*trains: str) -> Tensor:
    """Trains like "0010" as (T, 1, C)."""
    return torch.tensor([[float(c) for c in train] for train in trains]).t().unsqueeze(1)


def test_first_spike_by_hand() -> None:
    got = logits(bits("10000", "01000", "00001", "00000", "01111"), "first")
    assert torch.equal(got, torch.tensor([[1.0, 4 / 5, 1 / 5, 0.0, 4 / 5]]))
    soft = torch.tensor([0.5, 0.25, 1.0]).reshape(3, 1, 1)  # first at 0: 1/2, at 1: 1/8, at 2: 3/8
    assert logits(soft, "first").item() == pytest.approx(0.5 * 1 + 0.125 * 2 / 3 + 0.375 / 3)


@pytest.mark.parametrize("steps", [1, 3, 63, 500])
def test_first_spike_is_exact_on_bits(steps: int) -> None:
    x = (torch.rand(steps, 4, 5) < 2 / steps).float()
    first = torch.where(x.any(0), x.argmax(0), steps)
    assert torch.equal(logits(x, "first"), (steps - first) / steps)


def test_first_spike_gradient_is_what_flipping_the_bit_would_change() -> None:
    x = bits("0010100", "1000000", "0000000", "1111111").requires_grad_()
    logits(x, "first").sum().backward()
    assert x.grad is not None
    for t in range(7):
        on, off = x.detach().clone(), x.detach().clone()
        on[t], off[t] = 1, 0
        torch.testing.assert_close(x.grad[t], logits(on, "first") - logits(off, "first"))
    assert x.grad[:, 0, 0].tolist() == pytest.approx([2 / 7, 1 / 7, 2 / 7, 0, 0, 0, 0])


def test_cross_entropy_by_hand() -> None:
    expected = torch.log(1 + torch.exp(torch.tensor(1.0)))  # scores 3 and 4, label 0
    assert cross_entropy(READOUT, torch.tensor([0]), "max").item() == pytest.approx(expected.item())


def test_label_smoothing_by_hand() -> None:
    right, wrong = math.log1p(math.exp(1.0)), math.log1p(math.exp(-1.0))  # scores 3 and 4
    got = cross_entropy(READOUT, torch.tensor([0]), "max", label_smoothing=0.2)
    assert got.item() == pytest.approx(0.9 * right + 0.1 * wrong)


def test_temporal_efficient_training_by_hand() -> None:
    ce = (math.log1p(math.exp(3)) + math.log1p(math.exp(-3)) + math.log(2)) / 3  # label 0
    mse = (0 + 9 + 4 + 1 + 1 + 1) / 6
    got = temporal_efficient_training(READOUT, torch.tensor([0]), lam=0.25)
    assert got.item() == pytest.approx(0.75 * ce + 0.25 * mse)
    assert temporal_efficient_training(READOUT, torch.tensor([0]), lam=1, phi=2.0).item() == pytest.approx(10 / 6)


def test_count_mse_by_hand() -> None:
    spikes = bits("1110", "0100")  # counts 3 and 1; targets 4·0.75 = 3 and ⌊4·0.3⌋ = 1
    assert count_mse(spikes, torch.tensor([0]), 0.75, 0.3).item() == 0
    assert count_mse(spikes, torch.tensor([1]), 0.75, 0.3).item() == pytest.approx((4 + 4) / 2 / 4)


OURS_AND_THEIRS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "ce_rate": (lambda x, y: temporal_efficient_training(x, y, lam=0), theirs.ce_rate_loss()),
    "ce_count": (lambda x, y: cross_entropy(x, y, "count"), theirs.ce_count_loss()),
    "ce_max_membrane": (lambda x, y: cross_entropy(x, y, "max"), theirs.ce_max_membrane_loss()),
    "mse_count": (lambda x, y: count_mse(x, y), theirs.mse_count_loss()),
    "mse_count 0.77 0.29": (lambda x, y: count_mse(x, y, 0.77, 0.29), theirs.mse_count_loss(0.77, 0.29)),
}


@pytest.mark.parametrize("name", OURS_AND_THEIRS)
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_equals_snntorch_with_gradient(name: str, steps: int) -> None:
    spikes = torch.randn(steps, 5, 3) if name == "ce_max_membrane" else (torch.rand(steps, 5, 3) < 0.4).float()
    labels = torch.tensor([0, 2, 1, 1, 2])
    values, gradients = [], []
    for loss in OURS_AND_THEIRS[name]:
        x = spikes.clone().requires_grad_()
        values.append(loss(x, labels).reshape(()))
        values[-1].backward()
        gradients.append(x.grad)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_comparison_can_fail() -> None:
    x, labels = (torch.rand(7, 5, 3) < 0.4).float(), torch.tensor([0, 2, 1, 1, 2])
    results = [ours(x, labels).item() for ours, _ in OURS_AND_THEIRS.values()]
    assert len({round(result, 3) for result in results}) == len(results)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="readout: expected one of 'mean', 'max', 'last', 'count', 'first', got 'sum'"):
        logits(READOUT, "sum")
    with pytest.raises(ValueError, match=r"expected a readout \(T, B, C\), got shape \(3, 2\)"):
        logits(READOUT[:, 0])
    with pytest.raises(ValueError, match=r"readout='first' expected spikes in \[0, 1\], got values in \[0, 4\]"):
        logits(READOUT, "first")
    with pytest.raises(ValueError, match=r"got values in \[nan, nan\]"):
        logits(READOUT * math.nan, "first")
    with pytest.raises(ValueError, match=r"lam: expected a number in \[0, 1\], got 1.5"):
        temporal_efficient_training(READOUT, torch.tensor([0]), lam=1.5)
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\], got -0.1"):
        cross_entropy(READOUT, torch.tensor([0]), label_smoothing=-0.1)
    with pytest.raises(ValueError, match=r"incorrect_rate: expected a number in \[0, 1\], got 2"):
        count_mse(READOUT, torch.tensor([0]), 1.0, 2.0)
    for loss in (temporal_efficient_training, count_mse):
        with pytest.raises(ValueError, match=r"\(T, B, C\), got shape \(3, 2\)"):
            loss(READOUT[:, 0], torch.tensor([0]))


@pytest.mark.parametrize("how", READOUTS)
@pytest.mark.parametrize("x", [READOUT[:0], READOUT.bool(), READOUT[..., :0]], ids=["no steps", "bool", "no classes"])
def test_empty_readouts_and_integers_are_refused(how: str, x: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"logits: expected floats \(T, B, features...\) with at least one of each, got"
    ):
        logits(x, how)


@pytest.mark.parametrize("loss", [cross_entropy, temporal_efficient_training, count_mse])
@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (torch.tensor([0, 1]), r"labels: expected torch.int64 \(1,\), got torch.int64 \(2,\)"),
        (torch.tensor([0.0]), r"got torch.float32 \(1,\)"),
        (torch.tensor([2]), r"labels: expected classes in \[0, 2\), got values in \[2, 2\]"),
        (torch.tensor([-100]), r"got values in \[-100, -100\]"),
    ],
)
def test_labels_that_are_refused(loss: Callable[..., Tensor], labels: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        loss(READOUT, labels)


def test_examples_run() -> None:
    names = {"torch": torch, **vars(tbnn.losses)}
    result = doctest.testmod(tbnn.losses, extraglobs=names)
    assert result.failed == 0
    assert result.attempted >= 10


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    counts = confusion_matrix(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 0]), 3)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
