"""Whether finished results are those of the code at hand: a few of their runs once more, figure for figure."""

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tbnn.compare.config import CompareConfig
from tbnn.compare.plan import Job, final_jobs, fingerprint, resolve, tasks_of
from tbnn.compare.progress import Display
from tbnn.compare.results import read_results, write_results
from tbnn.compare.trial import run_job
from tbnn.train.batches import packed_file
from tbnn.train.run import environment

SAME = (
    "initial",
    "losses",
    "diverged",
    "steps",
    "validation_accuracy",
    "validation_loss",
    "test_accuracy",
    "test_loss",
)
"""What a run measured, but for its time and, where it has one, its mechanism."""


def recheck(config: CompareConfig, *, quiet: bool = False) -> Path:
    """Repeat ``config.recheck`` final runs of a finished comparison and note in its results whether they came out the same.

    Every estimator has its turn before one has a second; task and seed are drawn by a fixed seed. Results of other code whose
    runs are then repeated figure for figure are as good as new, as far as so many runs can tell; the note says how many.

    Returns the path of the results. Raises:
        FileNotFoundError: no results to repeat, or the recordings are missing.
        ValueError: results of another configuration; fewer runs than asked for.
    """
    path = Path(config.results or Path(config.output) / "results.json")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: recheck: no results to repeat")
    results = read_results(path)
    jobs = _drawn(config, results, path)
    for task in {job.task for job, _ in jobs}:
        packed_file(resolve(tasks_of(config)[task].settings).data)
    equal, apart = 0, 0.0
    with Display(len(jobs), 0, quiet) as display:
        for number, (job, row) in enumerate(jobs, 1):
            again = run_job(job)
            equal += all(again.get(name) == row.get(name) for name in SAME)
            apart = max(apart, abs(again["test_accuracy"] - row["test_accuracy"]))
            display.finished(job, again, number)
    results["rechecked"] = {
        "code": fingerprint(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": environment()["commit"],
        "runs": len(jobs),
        "equal": equal,
        "largest_difference": apart,
    }
    write_results(path, results)
    return path


def _drawn(config: CompareConfig, results: dict[str, Any], path: Path) -> list[tuple[Job, dict[str, Any]]]:
    """The runs to repeat, each with its row."""
    order = random.Random(0)
    of: dict[str, list[dict[str, Any]]] = {}
    for row in results["runs"]:
        of.setdefault(row["estimator"], []).append(row)
    for rows in of.values():
        order.shuffle(rows)
    turns = [
        rows[turn] for turn in range(max(map(len, of.values()), default=0)) for rows in of.values() if turn < len(rows)
    ]
    if config.recheck > len(turns):
        raise ValueError(f"recheck: expected at most {len(turns)} runs, as {path} holds, got {config.recheck}")
    jobs = []
    for row in turns[: config.recheck]:
        task, estimator = row["task"], row["estimator"]
        if task not in tasks_of(config) or estimator not in config.estimators:
            raise ValueError(
                f"{path}: recheck: expected the results of this configuration, got {estimator!r} in {task!r}"
            )
        for job in final_jobs(config, task, estimator, results["chosen"][task][estimator]):
            if job.number == row["seed"]:
                jobs.append((job, row))
    return jobs
