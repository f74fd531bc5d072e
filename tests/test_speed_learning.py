"""The benchmark of online rules, in tiny; its gate finds a rule that runs another network."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest_plugins = ["tests.speed_modules"]
BRAILLE = "Braille net 48-128r-7, B=32"


@pytest.fixture
def learning(speed: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = speed("learning")
    monkeypatch.setattr(module, "SHAPES", {BRAILLE: (6, 8, 3, 2)})
    return module


def test_a_row_for_each_rule_as_a_stream_and_of_whole_sequences(learning: Any) -> None:
    rows = learning.speed(rounds=1, steps=3)
    assert [row["shape"].split(",")[0] for row in rows[::2]] == ["bptt", *learning.RULES]
    assert all(0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in rows)
    assert [row["theirs"] for row in rows[:2]] == [learning.STREAM, learning.WHOLE]
    assert sum("aim" in row for row in rows) == 2 * len(learning.RULES)


def test_a_rule_of_another_network_is_found(learning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = learning.network_of(6, 8, 3)
    with torch.no_grad():
        other.layers[-2].weight.neg_()
    named = learning.rule_named
    monkeypatch.setattr(learning, "rule_named", lambda name, network: named(name, other))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        learning.speed(rounds=1, steps=3)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("whole", [False, True])
def test_bytes_held_are_measured(learning: Any, whole: bool) -> None:
    assert learning.held("ottt", 10, whole) >= 0
