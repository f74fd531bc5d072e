"""What the studies share: runs of the tbnn command in processes of one thread, as many at once as there are cores."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tbnn.files import replacing
from tbnn.train.run import environment

J = TypeVar("J")
R = TypeVar("R")


def tbnn(*arguments: str) -> None:
    """One command of tbnn, on one thread."""
    one_thread = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "tbnn.cli", *arguments], check=True, env={**os.environ, **one_thread})


def in_parallel(run: Callable[[J], R], jobs: Sequence[J]) -> list[R]:
    """The results of all jobs, in their order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, jobs))


def read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run."""
    return json.loads((folder / name).read_text())


def save(path: Path, results: dict[str, Any]) -> None:
    """Merge results, with the date and what they depend on, into a JSON file."""
    merged = json.loads(path.read_text()) if path.exists() else {}
    merged |= {"date": datetime.now(UTC).date().isoformat(), "environment": environment(), **results}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(merged, indent=1) + "\n")
