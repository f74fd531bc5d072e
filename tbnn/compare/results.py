"""What a comparison leaves behind: results.json, from which every table, figure and verdict is made again.

title, claim, command, date, environment, code    what was asked, when, by which versions and sources
processes, cpu_seconds, wall_seconds              of all runs; of this call
config                                            the whole configuration
tasks        by name: axes, classes, chance, recordings of each split
estimators   by name: library, group, settings, what it searches
tuning       a row a trial: task, estimator, trial, settings, validation accuracy and loss, diverged (the step, or null)
chosen       by task and estimator: the settings of the best trial
runs         a row a seed: as tuning's, with test accuracy and loss
stale        how many rows come from other code than the last
complete     whether all runs are in
rechecked    of later code: how many runs it repeated, how many of them came out the same (:mod:`tbnn.compare.recheck`)
"""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tbnn.compare.config import CompareConfig
from tbnn.compare.plan import fingerprint, resolve, tasks_of
from tbnn.compare.runner import Schedule
from tbnn.data import PackedFrames
from tbnn.files import replacing
from tbnn.train.batches import packed_file
from tbnn.train.run import environment, read_json

FORMAT = 1
OBSERVED_SEEDS = 3
WHERE_AND_HOW = ("output", "results", "processes", "stale", "recheck")
SPLITS = ("train", "validation", "test")


def gather(config: CompareConfig, schedule: Schedule, command: str, wall_seconds: float) -> dict[str, Any]:
    """The content of results.json."""
    rows = schedule.rows
    every = [*rows["tuning"], *rows["final"]]
    tasks, names = list(schedule.tasks), list(config.estimators)

    def place(row: dict[str, Any]) -> tuple[int, int, int]:
        return tasks.index(row["task"]), names.index(row["estimator"]), row.get("trial", row["seed"])

    return {
        "format": FORMAT,
        "title": config.title,
        "claim": config.claim,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment() | {"snntorch": _version("snntorch")},
        "code": fingerprint(),
        "quick": config.quick,
        "complete": schedule.finished == schedule.total,
        "stale": sum(row["code"] != fingerprint() for row in every),
        "processes": config.processes,
        "cpu_seconds": round(sum(row["seconds"] for row in every), 1),
        "wall_seconds": round(wall_seconds, 1),
        "config": _plain(config),
        "tasks": {name: _task(config, name) for name in tasks},
        "estimators": {
            name: {
                "library": e.library,
                "group": e.heading,
                "spikes": e.spikes,
                "weights": e.weights,
                "settings": e.settings,
                "search": list(config.tuning.search) if e.search is None else e.search,
            }
            for name, e in config.estimators.items()
        },
        "margin": config.margin,
        "converged": config.converged,
        "reference": config.reference,
        "chosen": {task: dict(found) for task, found in schedule.chosen.items()},
        "tuning": sorted(rows["tuning"], key=place),
        "runs": [_lighter(row) for row in sorted(rows["final"], key=place)],
    }


def _lighter(row: dict[str, Any]) -> dict[str, Any]:
    """Without the mechanism of later seeds, which lies beside the runs: results.json is to be small."""
    return row if row["seed"] < OBSERVED_SEEDS else {key: value for key, value in row.items() if key != "mechanism"}


def _task(config: CompareConfig, name: str) -> dict[str, Any]:
    task = tasks_of(config)[name]
    packed = packed_file(resolve(task.settings).data)
    splits = {split: PackedFrames(packed, split) for split in SPLITS}
    info = splits["train"].info
    largest = int(np.bincount(splits["test"].labels).max())
    return {
        "axes": task.axes,
        "dataset": info.name,
        "steps": info.steps,
        "classes": len(info.classes),
        "chance": largest / len(splits["test"]),
        "recordings": {split: len(frames) for split, frames in splits.items()},
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write results.json, whole or not at all; a row a line, so that changes can be read."""
    head = {key: value for key, value in results.items() if key not in ("tuning", "runs")}
    text = json.dumps(head, indent=1)[:-2]
    for key in ("tuning", "runs"):
        rows = ",\n  ".join(json.dumps(row) for row in results[key])
        text += f',\n "{key}": [\n  {rows}\n ]' if results[key] else f',\n "{key}": []'
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n}\n")


def read_results(path: Path) -> dict[str, Any]:
    """Read results.json back; ``ValueError`` if it is damaged or of another format."""
    results = read_json(path)
    if results.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected results of a comparison, format {FORMAT}, got format {results.get('format')!r}"
        )
    return results


def _plain(config: CompareConfig) -> dict[str, Any]:
    """The configuration without what differs from machine to machine."""
    return {name: value for name, value in asdict(config).items() if name not in WHERE_AND_HOW}


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
