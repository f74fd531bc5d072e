"""Quantisation against straight-through estimators written in plain torch: time and peak memory, forward and backward.

    python experiments/speed/quantize.py

Each case meets two others: the plain sign·mean|w| with the identity as its gradient, the least any quantiser does, and
the same grid and mask with that gradient, ``w + (wq − w).detach()``. Correctness first (kernels against the reference),
then times: all sides in one process, in turn, one thread. Memory is the peak above what was held before, on the CPU.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import alternate, row, save
from torch import Tensor

import tbnn
from tbnn.ops.quantize.select import LONG

SHAPE = (2048, 2048)  # time
LARGE = (4096, 4096)  # memory
SMALL = (64, 64)  # the cost of a call
CASES: dict[str, dict[str, Any]] = {
    "1 bit": {},
    "ternary": {"bits": 1.58},
    "4 bits": {"bits": 4},
    "1 bit, 90 % sparse": {"sparsity": 0.9},
    "1 bit, 2:4": {"sparsity": "2:4"},
}


def statistic(dim: int | None) -> dict[str, Any]:
    return {"dim": dim, "keepdim": True}


def signs(w: Tensor, dim: int | None) -> Tensor:
    return w.sign() * w.abs().mean(**statistic(dim))


def ternary(w: Tensor, dim: int | None) -> Tensor:
    mean, step = w.mean(**statistic(dim)), 1.224 * w.std(**statistic(dim))
    return ((w - mean) / step).round().clamp(-1, 1) * step + mean


def four_bits(w: Tensor, dim: int | None) -> Tensor:
    mean, reach = w.mean(**statistic(dim)), 0.3352 * 7.5 * w.std(**statistic(dim))
    low = mean - reach
    step = reach / 7.5
    return ((w - low) / step).round().clamp(0, 15) * step + low


def sparse(w: Tensor, dim: int | None) -> Tensor:
    size = w.abs()
    rows = size if dim == 1 else size.view(1, -1)
    cut = rows.kthvalue(round(0.9 * rows.shape[1]), dim=1, keepdim=True).values
    kept = size > cut
    return w.sign() * kept * ((size * kept).sum(**statistic(dim)) / kept.sum(**statistic(dim)))


def two_of_four(w: Tensor, dim: int | None) -> Tensor:
    size = w.abs()
    kept = torch.zeros_like(size).view(-1, 4)
    kept = kept.scatter_(1, size.view(-1, 4).topk(2, dim=1).indices, 1.0).view_as(w)
    return w.sign() * kept * ((size * kept).sum(**statistic(dim)) / kept.sum(**statistic(dim)))


GRIDS = dict(zip(CASES, (signs, ternary, four_bits, sparse, two_of_four), strict=True))


def straight_through(grid: Callable[[Tensor, int | None], Tensor], dim: int | None, w: Tensor) -> Tensor:
    return w + (grid(w.detach(), dim) - w).detach()


def step_of(quantise: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> Callable[[], None]:
    """Forward and backward of one quantiser on its own weight."""
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(2, *shape, generator=generator)
    w.requires_grad_()

    def step() -> None:
        quantise(w).backward(g)
        w.grad = None

    return step


def check(how: dict[str, Any], dim: int | None) -> None:
    """The kernels give what the reference gives."""
    w, g = torch.randn(2, 65, 130, generator=torch.Generator().manual_seed(1))
    got = []
    for backend in ("cpu", "reference"):
        leaf = w.clone().requires_grad_()
        y = tbnn.quantize(leaf, dim=dim, backend=backend, **how)
        y.backward(g)
        got.append((y.detach(), leaf.grad))
    torch.testing.assert_close(got[0], got[1], rtol=1e-4, atol=1e-5)


def peak(name: str, dim: int | None, side: str) -> float:
    """MiB that one forward and backward pass adds at most to what a process holds, in a process of its own."""
    command = [sys.executable, __file__, name, str(dim), side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_here(name: str, dim: int | None, side: str) -> float:
    """:func:`peak` of this process, once kernels are loaded."""
    quantise = quantisers_of(name, dim)[side]
    step_of(quantise, (2, LONG + 8))()
    step_of(quantise, SMALL)()
    step = step_of(quantise, LARGE)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def quantisers_of(name: str, dim: int | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """The three sides of a case."""
    return {
        "tbnn": partial(tbnn.quantize, dim=dim, **CASES[name]),
        "plain sign STE": partial(straight_through, signs, dim),
        "STE of the same grid": partial(straight_through, GRIDS[name], dim),
    }


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(name: str, dim: int | None) -> list[dict[str, Any]]:
    """One case against both others."""
    how, where = CASES[name], "row" if dim == 1 else "tensor"
    check(how, dim)
    quantisers = quantisers_of(name, dim)
    times = alternate({k: step_of(q, SHAPE) for k, q in quantisers.items()}, rounds=5, repeats=5)
    peaks = {side: peak(name, dim, side) for side in quantisers}
    rows = []
    for other in list(quantisers)[1:]:
        memory = {"ours_peak_mib": peaks["tbnn"], "theirs_peak_mib": peaks[other]}
        share = {"memory_of_theirs": peaks["tbnn"] / peaks[other]}
        rows.append(
            {"shape": f"{name}, per {where}, fwd+bwd, 1 thread", **row(times, "tbnn", other), **memory, **share}
        )
    return rows


def measure_call() -> list[dict[str, Any]]:
    """What a call costs where there is little to do."""
    sides = {"tbnn": partial(tbnn.quantize, dim=1), "plain sign STE": partial(straight_through, signs, 1)}
    times = alternate({k: step_of(q, SMALL) for k, q in sides.items()}, rounds=5, repeats=200)
    return [{"shape": "1 bit, 64x64, per row, fwd+bwd, 1 thread", **row(times, "tbnn", "plain sign STE")}]


def main() -> None:
    """Measure every case and write results/quantize.cpu.json; given a case and a side, print that side's peak memory."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        name, dim, side = sys.argv[1:]
        print(peak_here(name, None if dim == "None" else int(dim), side))
        return
    rows = [r for name in CASES for dim in (1, None) for r in measure(name, dim)]
    for r in rows:
        print(f"{r['shape']:44} {r['memory_of_theirs']:7.2f} of the memory of {r['theirs']}")
    print(save("quantize.cpu", rows + measure_call()))


if __name__ == "__main__":
    main()
