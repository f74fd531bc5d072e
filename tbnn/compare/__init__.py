"""Gradient estimators against each other, as a referee would want it: ``tbnn compare``."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tbnn.compare.config import CompareConfig, EstimatorConfig, Space, TuningConfig
from tbnn.compare.plan import Job, resolve, tasks_of
from tbnn.compare.progress import Display
from tbnn.compare.recheck import recheck
from tbnn.compare.results import gather, read_results, write_results
from tbnn.compare.runner import Schedule, Store, run_all

__all__ = ["CompareConfig", "EstimatorConfig", "Space", "TuningConfig", "compare", "read_results"]


def compare(config: CompareConfig, *, command: str = "", quiet: bool = False) -> Path:
    """Run a comparison, or what is left of it, and return the path of its results.json (:mod:`tbnn.compare.results`).

    Runs lie in ``output/runs``, one file each: after an interruption the same call goes on. A run that diverges is
    recorded with its step, and the others go on.

    Raises:
        FileNotFoundError: the recordings are missing.
        ValueError: unequal budgets, tuning on test, a setting the layers refuse, finished runs of other code.
        ChildProcessError: a process died.
    """
    from tbnn.train.batches import packed_file

    if config.recheck:
        return recheck(config, quiet=quiet)
    if config.quick:
        config = replace(config, output=f"{config.output.rstrip('/')}-quick", results=None, stale="repeat")
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: expected a folder, got the file {folder}")
    for name, task in tasks_of(config).items():
        try:
            packed_file(resolve(task.settings).data)  # made once, before processes ask for it
        except ValueError as error:
            raise ValueError(f"task {name!r}: {error}") from None
    start = time.monotonic()
    schedule = Schedule(config, Store(folder / "runs", config.stale))
    path = Path(config.results or folder / "results.json")

    def save() -> None:
        write_results(path, gather(config, schedule, command, time.monotonic() - start))

    with Display(schedule.total, schedule.finished, quiet) as display:

        def finished(job: Job, row: dict[str, Any]) -> None:
            display.finished(job, row, schedule.finished)

        try:
            run_all(schedule, finished)
        finally:
            if schedule.finished:
                save()
    return path
