"""Batch norm over time and batch: torch's over T·B, masked steps left out, two processes as one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.nn.norm import TemporalBatchNorm


def twins(features: int, shape: tuple[int, ...], **arguments: Any) -> tuple[TemporalBatchNorm, nn.Module]:
    ours = TemporalBatchNorm(features, **arguments).double()
    theirs = (nn.BatchNorm1d if len(shape) == 3 else nn.BatchNorm2d)(features, **arguments).double()
    if isinstance(ours.weight, nn.Parameter):
        nn.init.uniform_(ours.weight, 0.5, 2)
        nn.init.normal_(ours.bias)
        theirs.load_state_dict({**theirs.state_dict(), **ours.state_dict()})
    return ours, theirs


@pytest.mark.parametrize("shape", [(7, 3, 5), (4, 2, 5, 3, 6), (1, 2, 5)], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"eps": 0.1, "momentum": 0.4}, {"affine": False}], ids=str)
def test_is_torch_s_over_time_and_batch(shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    ours, theirs = twins(5, shape, **arguments)
    x = (3 * torch.randn(2, *shape, dtype=torch.float64) + 2).requires_grad_()
    for batch in x:
        y, expected = ours(batch), theirs(batch.flatten(0, 1)).view(shape)
        torch.testing.assert_close(y, expected)
        weights = torch.randn_like(y)
        got = torch.autograd.grad(y, [x, *ours.parameters()], weights)
        want = torch.autograd.grad(expected, [x, *theirs.parameters()], weights)
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x[0]), theirs(x[0].flatten(0, 1)).view(shape))


def test_masked_steps_do_not_count() -> None:
    ours, plain = twins(3, (1, 1, 3))
    lengths = torch.tensor([5, 2, 3])
    mask = torch.arange(5)[:, None] < lengths
    x = torch.randn(5, 3, 3, 2, 2, dtype=torch.float64)
    poisoned = x.masked_fill(~mask[..., None, None, None], 1e3).requires_grad_()
    y = ours(poisoned, mask)
    valid = x[mask]  # (steps that count, 3, 2, 2)
    expected = plain(valid.flatten(2).transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(y[mask], expected.unflatten(0, (10, 4)).transpose(1, 2).reshape(10, 3, 2, 2))
    torch.testing.assert_close(ours.running_var, plain.running_var)
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    (grad,) = torch.autograd.grad((y[mask] ** 3).sum(), poisoned)
    assert not grad[~mask].any()
    assert grad[mask].all()


def test_evaluation_of_one_sequence_and_one_step_is_the_batch_s() -> None:
    norm = TemporalBatchNorm(4)
    x = torch.randn(6, 3, 4, 2) * 3 + 1
    norm(x)
    norm.eval()
    before, y = {k: v.clone() for k, v in norm.state_dict().items()}, norm(x)
    for t in range(6):
        for b in range(3):
            assert torch.equal(norm(x[t : t + 1, b : b + 1]), y[t : t + 1, b : b + 1])
    assert all(torch.equal(norm.state_dict()[k], v) for k, v in before.items())
    scale, shift = norm.folded()
    torch.testing.assert_close(y, x * scale[:, None] + shift[:, None])


def test_a_large_mean_does_not_cancel() -> None:
    x = torch.randn(50, 4, 2) + 1e4
    y = TemporalBatchNorm(2)(x)
    expected = (x - x.double().mean((0, 1))) / x.double().std((0, 1), correction=0)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-2)  # x itself is a multiple of 1e-3


def test_the_threshold_sets_the_start() -> None:
    norm = TemporalBatchNorm(3, threshold=0.5, alpha=0.8)
    assert norm.weight.tolist() == pytest.approx([0.4] * 3)
    assert norm(5 * torch.randn(100, 50, 3)).std().item() == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features: expected an integer >= 1, got 0"),
        ({"eps": 0.0}, "eps: expected a number > 0, got 0.0"),
        ({"momentum": 1.5}, r"momentum: expected a number in \(0, 1\], got 1.5"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemporalBatchNorm(**({"features": 3} | arguments))


def test_refused_inputs() -> None:
    with pytest.raises(ValueError, match=r"TemporalBatchNorm: expected \(T, B, 3, ...\), got \(4, 2, 5\)"):
        TemporalBatchNorm(3)(torch.zeros(4, 2, 5))
    with pytest.raises(ValueError, match=r"expected more than one value a channel in training, got 1 from \(1, 1, 3\)"):
        TemporalBatchNorm(3)(torch.zeros(1, 1, 3))


WORKER = """
import sys
import torch
import torch.distributed as dist
from tbnn.nn.norm import TemporalBatchNorm

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
data = torch.load(f"{folder}/data.pt", weights_only=True)
columns = slice(0, 3) if rank == 0 else slice(3, 5)  # halves of unequal size
norm = TemporalBatchNorm(3).double()
norm.load_state_dict(data["norm"])
x = data["x"][:, columns].clone().requires_grad_()
mask = data["mask"][:, columns] if data["masked"] else None
y = norm(x, mask)
(y * data["weights"][:, columns]).sum().backward()
torch.save({"y": y.detach(), "dx": x.grad, "dweight": norm.weight.grad, "state": norm.state_dict()}, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("masked", [False, True])
def test_two_processes_are_one_with_the_joined_batch(masked: bool, tmp_path: Path) -> None:
    norm, _ = twins(3, (1, 1, 3))
    x, weights = torch.randn(2, 4, 5, 3, 2, dtype=torch.float64)
    mask = torch.arange(4)[:, None] < torch.tensor([4, 1, 2, 3, 1])
    data = {"norm": norm.state_dict(), "x": x, "weights": weights, "mask": mask, "masked": masked}
    torch.save(data, tmp_path / "data.pt")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(rank), str(tmp_path)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    halves: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    leaf = x.clone().requires_grad_()
    y = norm(leaf, mask if masked else None)
    (y * weights).sum().backward()

    def joined(name: str) -> Tensor:
        return torch.cat([half[name] for half in halves], 1)

    torch.testing.assert_close(joined("y"), y.detach())
    torch.testing.assert_close(joined("dx"), leaf.grad)
    torch.testing.assert_close(halves[0]["dweight"] + halves[1]["dweight"], norm.weight.grad)
    for half in halves:
        torch.testing.assert_close(half["state"], dict(norm.state_dict()))
