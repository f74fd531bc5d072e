"""Two gloo processes with half a batch each compute what one process computes on the joined batch."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from tbnn.ops.lif import Second, SpikeGradient, lif

SPLIT = 3  # samples of the first process, of five
CASES: dict[str, dict[str, Any]] = {
    "soft": {},
    "soft, constants": {"differentiate_stats": False, "per_channel": False},
    "soft, a step each": {"stats": "step"},
    "trace": {"target": "trace"},
    "denoised": {"emit": "denoised"},
    "denoised, a step each": {"emit": "denoised", "stats": "step"},
    "surrogate": {"gradient": "surrogate"},
}
SECOND = Second(*(torch.tensor(c, dtype=torch.float64) for c in (0.5, 0.1, 0.25, 0.25, 1.0, -0.25, 0.1)))


def case(estimator: dict[str, Any], part: slice, backend: str | None, joined: bool) -> list[Tensor]:
    """Output, moments and the gradients of the current (the part's) and of β and ``to_v`` (to be added up)."""
    generator = torch.Generator().manual_seed(1)
    current, weights = torch.randn(2, 6, 5, 4, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([6, 2, 5, 0, 4])
    leaf = (current[:, part] + 0.5).requires_grad_()
    beta, to_v = (torch.full((4,), v, dtype=torch.float64).requires_grad_() for v in (0.75, -0.25))
    run = lif(
        leaf, beta, second=SECOND._replace(to_v=to_v), gradient=SpikeGradient(**estimator), lengths=lengths[part],
        joined=joined, backend=backend,
    )  # fmt: skip
    grads = torch.autograd.grad((run.out * weights[:, part]).sum(), (leaf, beta, to_v))
    moments = run.moments if run.moments is not None else torch.zeros(0)
    return [run.out.detach(), moments, *grads]


def half(rank: int, folder: str) -> None:
    """What one of the processes does."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(minutes=5)
    )
    part = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    results = {
        f"{name}/{backend}": case(estimator, part, backend, joined=True)
        for name, estimator in CASES.items()
        for backend in ("cpu", "reference")
    }
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    for estimator in CASES.values():  # compiled here, so that neither process waits for the other's compiler
        case(estimator, slice(None), "cpu", joined=False)
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(half, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_two_halves_are_the_whole(name: str, backend: str, halves: list[dict[str, list[Tensor]]]) -> None:
    whole = case(CASES[name], slice(None), "reference", joined=False)
    first, second = (half[f"{name}/{backend}"] for half in halves)
    got = [torch.cat([first[0], second[0]], 1), first[1], torch.cat([first[2], second[2]], 1)]
    got += [a + b for a, b in zip(first[3:], second[3:], strict=True)]
    for a, b in zip(got, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=0)
    if name != "surrogate":  # halves that keep their statistics to themselves give something else
        apart = case(CASES[name], slice(0, SPLIT), backend, joined=False)
        assert not torch.allclose(apart[2], whole[2][:, :SPLIT], rtol=1e-3)
