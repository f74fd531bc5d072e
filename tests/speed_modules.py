"""Modules of experiments/speed for the tests of the benchmarks."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SPEED = Path(__file__).parents[1] / "experiments" / "speed"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``speed("timing")``: a module of experiments/speed."""
    monkeypatch.syspath_prepend(SPEED)

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module
