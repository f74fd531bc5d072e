"""What every test uses: one deterministic hypothesis profile, numeric gradients, poisoned memory, thread counts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

settings.register_profile("tbnn", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("tbnn")


# Test workers share the machine: idle threads of a small matrix product would spin in each other's way.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _numeric_gradient(loss: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    gradient = torch.zeros_like(at)
    with torch.no_grad():
        for i in range(at.numel()):
            sides = []
            for sign in (1, -1):
                moved = at.detach().clone()
                moved.view(-1)[i] += sign * step
                sides.append(loss(moved).item())
            gradient.view(-1)[i] = (sides[0] - sides[1]) / (2 * step)
    return gradient


@pytest.fixture(scope="session")
def numeric_gradient() -> Callable[..., Tensor]:
    """``numeric_gradient(loss, at)``: central differences of a scalar loss at a float64 tensor."""
    return _numeric_gradient


def _filled(empty: Callable[..., Any]) -> Callable[..., Any]:
    def poisoned(*args: Any, **kwargs: Any) -> Any:
        fresh = empty(*args, **kwargs)
        if isinstance(fresh, Tensor):
            return fresh.fill_(torch.nan if fresh.is_floating_point() else 77)
        fresh.fill(np.nan if fresh.dtype.kind == "f" else 77)
        return fresh

    return poisoned


@pytest.fixture(scope="session")
def poisoned_memory() -> Callable[[], Any]:
    """``with poisoned_memory():`` fresh arrays and tensors hold NaN, or 77 where they hold integers."""

    @contextmanager
    def poison() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in (
                (np, "empty"),
                (np, "empty_like"),
                (torch, "empty"),
                (torch, "empty_like"),
                (Tensor, "new_empty"),
            ):
                patch.setattr(owner, name, _filled(getattr(owner, name)))
            yield

    return poison


@pytest.fixture(scope="session")
def with_threads() -> Callable[..., Any]:
    """``with_threads(n, function)``: call it while torch, and so numba, uses n threads."""

    def call(n: int, function: Callable[[], Any]) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        try:
            return function()
        finally:
            torch.set_num_threads(before)

    return call


pytest_plugins = ["tests.halves", "tests.interpreter"]
