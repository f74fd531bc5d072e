"""Folders of studies with made-up results, in the form that ``tbnn compare`` leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tbnn.compare.plan import fingerprint

ESTIMATORS = {
    "atan": ("surrogate", False), "atan, scale": ("surrogate", True), "soft": ("ddt", False), "soft, scale": ("ddt", True),
    "float": ("float", False),
}  # fmt: skip
LEVELS = {"atan": 0.5, "atan, scale": 0.7, "soft": 0.6, "soft, scale": 0.65, "float": 0.9}
SCALE, RATE = "model.scale", "optim.learning_rate"


def results(seeds: int = 9, tasks: dict[str, dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """Of two tasks; every estimator lies at its level, +0.2 for the ridge in the second task, with a little noise."""
    tasks = tasks or {"one": {}, "two": {}}
    rng = np.random.default_rng(0)
    runs, trials = [], []
    for number, task in enumerate(tasks):
        for name, (group, scaled) in ESTIMATORS.items():
            level = LEVELS[name] + 0.2 * (number == 1 and group == "ddt")
            for i, rate in enumerate((1e-3, 1e-2)):
                trials.append({
                    "task": task, "estimator": name, "trial": i, "seed": 1000, "diverged": None, "validation_accuracy": level - 0.1 * i,
                    "settings": {RATE: rate, **({SCALE: 2.0} if scaled else {})}, "code": "0", "seconds": 1.0,
                })  # fmt: skip
            for seed in range(seeds):
                accuracy = round(level + float(rng.normal(0, 0.01)), 4)
                runs.append({
                    "task": task, "estimator": name, "seed": seed, "settings": {RATE: 1e-3}, "test_accuracy": accuracy,
                    "validation_accuracy": accuracy, "diverged": None, "code": "0", "seconds": 60.0,
                })  # fmt: skip
    made = {
        "format": 1, "title": "Made up", "claim": "That it works.", "command": "tbnn compare --config x.yaml", "date": "2026-01-02",
        "environment": {"tbnn": "0.1.0", "commit": "abcdef123456", "torch": "2.13.0", "python": "3.11.7", "machine": "a machine"},
        "code": fingerprint(), "quick": False, "complete": True, "stale": 0, "processes": 1,
        "cpu_seconds": 60.0 * len(runs), "wall_seconds": 1.0, "config": {"tasks": {name: {} for name in tasks}},
        "tasks": {name: {"axes": axes, "classes": 10, "chance": 0.1, "recordings": {"train": 5, "validation": 5, "test": 77}} for name, axes in tasks.items()},
        "estimators": {
            name: {"library": "tbnn", "group": group, "settings": {}, "search": [RATE, SCALE] if scaled else [RATE]}
            for name, (group, scaled) in ESTIMATORS.items()
        },
        "margin": 0.02, "converged": 0.5, "reference": None, "tuning": trials, "runs": runs,
        "chosen": {task: {name: {RATE: 1e-3} for name in ESTIMATORS} for task in tasks},
    }  # fmt: skip
    return made | changes


def write(folder: Path, content: dict[str, Any] | str) -> Path:
    """A study's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "compare.yaml").write_text("title: made up\n")
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time."""
    return {
        p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }
