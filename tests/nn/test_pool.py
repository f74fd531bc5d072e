"""Pools of spikes: the OR and where its gradient goes, means, flattening, votes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tbnn.nn.pool import AvgPool2d, Flatten, MaxPool2d, Voting

windows = st.sampled_from([
    {"kernel_size": 2}, {"kernel_size": (2, 3)}, {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": (1, 2), "padding": 1}, {"kernel_size": 2, "stride": 3}, {"kernel_size": 1},
])  # fmt: skip


def tied(kernel_size: Any, stride: Any = None, padding: Any = 0) -> Any:
    """The maximum as ``amax`` over explicit windows, whose autograd shares a gradient among ties."""
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    stride = kernel if stride is None else (stride, stride) if isinstance(stride, int) else stride

    def pool(x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, [padding] * 4, value=float("-inf"))
        return x.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1]).amax((-2, -1))

    return pool


@given(window=windows, density=st.sampled_from([0.0, 0.05, 0.5, 1.0]), seed=st.integers(0, 99))
def test_of_bits_it_is_their_or_and_ties_share_the_gradient(window: dict[str, Any], density: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = (torch.rand(3, 2, 4, 7, 8, dtype=torch.float64) < density).double().requires_grad_()
    pool = MaxPool2d(**window)
    y, expected = pool(x), tied(**window)(x)
    assert torch.equal(y, expected)
    assert set(y.detach().unique().tolist()) <= {0.0, 1.0}
    sums = F.avg_pool2d(x.detach().flatten(0, 1), pool.kernel_size, pool.stride, pool.padding)
    assert torch.equal(y.detach(), (sums.unflatten(0, (3, 2)) > 0).double())
    weights = torch.randn_like(y)
    got, want = (torch.autograd.grad(out, x, weights)[0] for out in (y, expected))
    torch.testing.assert_close(got, want)
    assert got.sum().item() == pytest.approx(weights.sum().item())


@given(window=windows)
def test_without_ties_it_is_torch_s(window: dict[str, Any]) -> None:
    x = torch.randn(6, 4, 7, 8, requires_grad=True)
    pool = MaxPool2d(**window)
    expected = F.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding)
    weights = torch.randn_like(expected)
    assert torch.equal(pool(x), expected)
    got, want = (torch.autograd.grad(out, x, weights)[0] for out in (pool(x), expected))
    torch.testing.assert_close(got, want)


def test_a_gradient_by_hand() -> None:
    x = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0]])[None, None, None].requires_grad_()
    (MaxPool2d(2)(x) * torch.tensor([6.0, 8.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.squeeze().tolist() == [[3, 0, 2, 2], [3, 0, 2, 2]]


@given(window=windows)
def test_means_are_torch_s(window: dict[str, Any]) -> None:
    x, pool = (torch.rand(3, 2, 4, 7, 8) < 0.3).float(), AvgPool2d(**window)
    expected = F.avg_pool2d(x.flatten(0, 1), pool.kernel_size, pool.stride, pool.padding).unflatten(0, (3, 2))
    assert torch.equal(pool(x), expected)


def test_flatten_keeps_time_and_batch_apart() -> None:
    x = torch.arange(3 * 2 * 2 * 3 * 4).reshape(3, 2, 2, 3, 4)
    assert torch.equal(Flatten()(x), x.reshape(3, 2, 24))
    with pytest.raises(ValueError, match=r"Flatten: expected \(T, B, features...\), got \(3, 2\)"):
        Flatten()(x[:, :, 0, 0, 0])


def test_votes_by_hand() -> None:
    votes = torch.tensor([1.0, 1, 0, 0, 0, 1]).reshape(1, 1, 6)
    torch.testing.assert_close(Voting(3)(votes), torch.tensor([[[2 / 3, 1 / 3]]]))
    with pytest.raises(ValueError, match=r"Voting: expected features that 4 voters divide, got \(1, 1, 6\)"):
        Voting(4)(votes)
    with pytest.raises(ValueError, match="voters: expected an integer >= 1, got 0"):
        Voting(0)


@pytest.mark.parametrize("kind", [MaxPool2d, AvgPool2d])
def test_refusals(kind: Any) -> None:
    with pytest.raises(ValueError, match="kernel_size: expected an integer >= 1 or 2 of them, got 0"):
        kind(0)
    with pytest.raises(ValueError, match=r"padding: expected at most half of the window \(2, 2\), got \(2, 2\)"):
        kind(2, padding=2)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: expected .* window \(3, 3\), got \(1, 1, 1, 2, 5\)"):
        kind(3)(torch.zeros(1, 1, 1, 2, 5))
