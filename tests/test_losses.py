"""Readouts, losses and counts by hand."""

import pytest
import torch

from tbnn.losses import cross_entropy, logits
from tbnn.metrics import confusion_matrix

READOUT = torch.tensor([[[1.0, 4.0]], [[3.0, 0.0]], [[2.0, 2.0]]])  # (T=3, B=1, C=2)


@pytest.mark.parametrize(("how", "expected"), [("mean", [2.0, 2.0]), ("max", [3.0, 4.0]), ("last", [2.0, 2.0])])
def test_logits(how: str, expected: list[float]) -> None:
    assert logits(READOUT, how).tolist() == [expected]


def test_cross_entropy_by_hand() -> None:
    expected = torch.log(1 + torch.exp(torch.tensor(1.0)))  # scores 3 and 4, label 0
    assert cross_entropy(READOUT, torch.tensor([0]), "max").item() == pytest.approx(expected.item())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="readout: expected one of 'mean', 'max', 'last', got 'sum'"):
        logits(READOUT, "sum")
    with pytest.raises(ValueError, match=r"expected a readout \(T, B, C\), got shape \(3, 2\)"):
        logits(READOUT[:, 0])


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    counts = confusion_matrix(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 0]), 3)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
