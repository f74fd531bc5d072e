"""The benchmark of STDP checks what it times."""

from typing import Any

import pytest
import torch

pytest_plugins = ["tests.speed_modules"]


def test_the_sides_agree_and_a_wrong_one_is_found(speed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stdp = speed("stdp")
    case = stdp.Case(9, 2, steps=5, inputs=70)
    sides = case.ours()
    assert set(sides) == {"change, once a sequence", "change, every step", "pass and change"}
    once, each = (sides[name]().clone() for name in list(sides)[:2])
    torch.testing.assert_close(once, each)  # nothing reaches the bounds here but 0
    stdp.check("same", lambda: once, lambda: each, case.weight)
    with pytest.raises(SystemExit, match=r"other: tbnn and SpikingJelly differ by 0\.25"):
        stdp.check("other", lambda: once, lambda: once + 0.25, case.weight)
    with pytest.raises(SystemExit, match="moved by 0"):
        stdp.check("still", lambda: case.weight, lambda: case.weight, case.weight)


def test_it_runs_without_the_other_library(
    speed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spikingjelly", None)
    assert speed("stdp").measure([(9, 2)], rounds=1, repeats=1, steps=3, inputs=70) == []
    assert "SpikingJelly: left out" in capsys.readouterr().out
