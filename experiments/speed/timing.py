"""Timing shared by the benchmarks: both sides in one process, warm, in turn; median and spread."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import tbnn
from tbnn.files import replacing

RESULTS = Path(__file__).parent / "results"


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Time the sides in turn, A B C A B C …: each turn one run to warm up, then the median of ``repeats``; seconds.

    A turn of several runs, because what one side leaves behind (caches, the allocator) slows the other's next run.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            run()
            times[name].append(statistics.median(_timed(run) for _ in range(repeats)))
    return times


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(times: dict[str, list[float]], ours: str, theirs: str, aim: float | None = None) -> dict[str, Any]:
    """The ratio theirs/ours, round by round, as median, minimum and maximum, and each side's median in ms.

    ``aim`` is the ratio that was set out for, where there is one.
    """
    ratios = [b / a for a, b in zip(times[ours], times[theirs], strict=True)]
    return {
        "ours": ours,
        "theirs": theirs,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ours_ms": 1e3 * statistics.median(times[ours]),
        "theirs_ms": 1e3 * statistics.median(times[theirs]),
        "rounds": len(ratios),
        **({} if aim is None else {"aim": aim}),
    }


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Print the rows and write them with date, machine and versions to results/NAME.json."""
    for r in rows:
        print(line(r))
    return write(RESULTS / f"{name}.json", {"rows": rows})


def write(path: Path, found: dict[str, Any]) -> Path:
    """What was found, after date, machine and versions, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**machine(), **found}, indent=1) + "\n")
    return path


def line(r: dict[str, Any]) -> str:
    """A row as text: shape, ratio, spread, the aim where there is one."""
    spread = f"({r['ratio_min']:.1f}-{r['ratio_max']:.1f})"
    text = f"{r.get('shape', ''):52} {r['ratio']:7.1f} times {spread:15} as fast as {r['theirs']}, {r['rounds']} rounds"
    if "aim" not in r:
        return text
    return f"{text}; aim {r['aim']:g}: {'met' if r['ratio'] >= r['aim'] else 'missed'}"


def machine() -> dict[str, str]:
    """Date, machine and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_name(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU: not measured",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tbnn": tbnn.__version__,
    }


def _cpu_name() -> str:
    from llvmlite import binding

    return f"{binding.get_host_cpu_name()}, {sys.platform}"
