"""Made-up results of comparisons, in the form of results.json."""

from typing import Any

import numpy as np


def results(
    values: dict[str, dict[str, list[float]]],
    groups: dict[str, str] | None = None,
    *,
    axes: dict[str, dict[str, Any]] | None = None,
    validation: dict[str, dict[str, list[float]]] | None = None,
    chance: float = 0.1,
    margin: float = 0.02,
) -> dict[str, Any]:
    """Results with these test accuracies: task to estimator to one value a seed; validation is the same if not given."""
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    groups = groups or {}
    runs = [
        {"task": task, "estimator": name, "seed": seed, "settings": {}, "test_accuracy": accuracy, "test_loss": None,
         "validation_accuracy": (validation or values)[task][name][seed], "diverged": None}
        for task, row in values.items() for name, column in row.items() for seed, accuracy in enumerate(column)
    ]  # fmt: skip
    return {
        "format": 1, "title": "made up", "config": {"model": {"scale": 1.0}}, "tuning": [], "chosen": {}, "runs": runs,
        "tasks": {task: {"axes": (axes or {}).get(task, {}), "classes": 10, "chance": chance} for task in values},
        "estimators": {n: {"library": "tbnn", "group": groups.get(n, "surrogate" if n == "ste" else "ddt"),
                           "settings": {}, "search": ["optim.learning_rate"]} for n in names},
        "margin": margin, "converged": 0.5,
    }  # fmt: skip


ESTIMATORS = {
    "snntorch atan": "surrogate", "snntorch fast sigmoid": "surrogate", "atan": "surrogate", "fast sigmoid": "surrogate",
    "triangular": "surrogate", "ddt soft step": "ddt", "ddt soft sequence": "ddt", "ddt trace": "ddt",
    "ddt trace denoised": "ddt", "ddt soft, statistics held constant, λ = 0": "ddt", "ddt soft λ = 0.1": "ddt",
    "float weights, atan": "float", "zero gradient": "control", "no learning in hidden layers": "control",
}  # fmt: skip


def wide(tasks: int = 12, estimators: int = 14, seeds: int = 10) -> dict[str, Any]:
    """A grid of tasks (batch size × learning rate) as large as a real study's, with trials and diverged runs."""
    rng = np.random.default_rng(0)
    names = ["atan", "ddt trace", "float weights, atan"] if estimators == 3 else list(ESTIMATORS)[:estimators]
    sizes, rates = (1, 4, 32, 256)[: max(1, tasks // 3)], (1e-4, 1e-3, 1e-2)
    axes = {
        f"batch {size}, rate {rate:g}": {"optim.batch_size": size, "optim.learning_rate": rate}
        for size in sizes for rate in rates
    }  # fmt: skip
    axes = dict(list(axes.items())[:tasks])
    values: dict[str, dict[str, list[float]]] = {}
    for task, place in axes.items():
        common = rng.normal(0, 0.01, seeds)
        level = (
            0.92
            - 0.05 * np.log10(256 / place["optim.batch_size"])
            - 0.04 * abs(np.log10(place["optim.learning_rate"]) + 3)
        )
        values[task] = {}
        for i, name in enumerate(names):
            top = (
                0.1
                if ESTIMATORS[name] == "control"
                else level + 0.012 * np.sin(i) + 0.03 * (ESTIMATORS[name] == "float")
            )
            values[task][name] = np.clip(top + common + rng.normal(0, 0.008, seeds), 0, 1).round(4).tolist()
    made = results(values, ESTIMATORS, axes=axes)
    made["estimators"] = {name: {**made["estimators"][name], "group": ESTIMATORS[name]} for name in names}
    for run in made["runs"]:
        if run["estimator"] == "triangular" and "rate 0.01" in run["task"] and run["seed"] < 4:
            run.update(diverged=17, test_accuracy=0.1, validation_accuracy=0.1)
        if run["estimator"] == "ddt trace" and "batch 1," in run["task"] and run["seed"] < 3:
            run.update(test_accuracy=0.3, validation_accuracy=0.3)
    for task in axes:
        made["chosen"][task] = {}
        for name in names:
            trials = [
                {"task": task, "estimator": name, "trial": i, "seed": 1000, "diverged": 3 if rate > 0.05 else None,
                 "settings": {"optim.learning_rate": float(rate), "model.scale": scale},
                 "validation_accuracy": float(np.clip(0.9 - 0.15 * (np.log10(rate) + 2.5) ** 2 + rng.normal(0, 0.02) - 0.02 * scale, 0.1, 1))}
                for i, (rate, scale) in enumerate((r, s) for r in (3e-4, 1e-3, 3e-3, 1e-2, 1e-1) for s in (1.0, 4.0))
            ]  # fmt: skip
            made["tuning"] += trials
            made["chosen"][task][name] = max(trials, key=lambda trial: trial["validation_accuracy"])["settings"]
    return made
