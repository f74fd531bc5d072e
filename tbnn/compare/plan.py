"""From a configuration to the runs it takes: every task, estimator, trial and seed, each with settings of its own."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tbnn.compare.config import CompareConfig, EstimatorConfig
from tbnn.learning import LearningConfig
from tbnn.train.config import TrainConfig
from tbnn.train.parse import Parser, add_arguments, configured

Settings = dict[str, Any]
"""Dotted: ``{"model.scale": 4}``."""

MEASURED = (
    "compare/trial.py",
    "compare/observer.py",
    "compare/mechanism.py",
    "compare/gradients.py",
    "compare/in_snntorch.py",
)
NOT_MEASURED = ("report", "sim", "cli.py", "compare")
"""Parts of tbnn that no figure of a run depends on, but for those measured: what they ask for is in the run's settings."""


@dataclass(frozen=True)
class Job:
    """One run: a network trained and evaluated once."""

    task: str
    estimator: str
    phase: Literal["tuning", "final"]
    number: int
    """Of the trial; of a final run its seed."""
    settings: Settings
    """What was searched, as it is in this run."""
    train: TrainConfig
    how: EstimatorConfig
    mechanism: bool
    smoothed: int
    quick: bool

    @property
    def digest(self) -> str:
        """Fixed by all that this run does, not by names, nor by where its data lie."""
        train = asdict(self.train)
        train["data"] = {**train["data"], "source": None, "cache": None}
        default = self.train.learning == LearningConfig()
        train = {part: train[part] for part in ("data", "model", "optim", *([] if default else ["learning"]), "seed")}
        how = (self.how.library, self.how.control, self.phase, self.mechanism, self.smoothed, self.quick)
        return hashlib.sha256(json.dumps([train, how], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.task}, {self.estimator}, {'trial' if self.phase == 'tuning' else 'seed'} {self.number}"


@dataclass(frozen=True)
class Task:
    """One task: its settings, and where it stands on the axes of the grid."""

    settings: Settings
    axes: Settings


def tasks_of(config: CompareConfig) -> dict[str, Task]:
    """Every task at every point of the grid, by name."""
    base = flat(config.base)
    tasks = {}
    for name, own in config.tasks.items():
        for point in itertools.product(*config.grid.values()):
            axes = dict(zip(config.grid, point, strict=True))
            parts = ([] if len(config.tasks) == 1 and axes else [name]) + [
                f"{key.rpartition('.')[2]}={_short(value)}" for key, value in axes.items()
            ]
            tasks[", ".join(parts)] = Task({**base, **flat(own), **axes}, axes)
    return tasks


def points_of(config: CompareConfig) -> list[Settings]:
    """The points of the search space that every estimator tries: a scrambled Halton sequence, fixed by the seed."""
    from scipy.stats import qmc

    tuning = config.tuning
    trials = min(tuning.trials, 1) if config.quick else tuning.trials
    if not trials:
        return []
    points = []
    for row in qmc.Halton(len(tuning.search), rng=tuning.seed).random(trials):
        point = {}
        for u, (name, space) in zip(row, tuning.search.items(), strict=True):
            if space.values is not None:
                point[name] = space.values[int(u * len(space.values))]
            elif space.low is not None and space.high is not None:
                point[name] = float(f"{space.low * (space.high / space.low) ** u:.3g}")
        points.append(point)
    return points


def tuning_jobs(config: CompareConfig, task: str, estimator: str) -> list[Job]:
    """The trials of an estimator in a task."""
    searched = config.estimators[estimator].search
    points = [{k: v for k, v in p.items() if searched is None or k in searched} for p in points_of(config)]
    return [_job(config, task, estimator, "tuning", n, point, config.tuning.seed) for n, point in enumerate(points)]


def final_jobs(config: CompareConfig, task: str, estimator: str, chosen: Settings) -> list[Job]:
    """The runs that count, at the chosen settings."""
    seeds = min(config.seeds, 2) if config.quick else config.seeds
    return [_job(config, task, estimator, "final", seed, chosen, seed) for seed in range(seeds)]


def _job(
    config: CompareConfig, task: str, estimator: str, phase: Literal["tuning", "final"], number: int, point: Settings, seed: int
) -> Job:  # fmt: skip
    how = config.estimators[estimator]
    settings = tasks_of(config)[task].settings
    clash = [key for key in {**how.model, **point} if key in tasks_of(config)[task].axes]
    if clash:
        raise ValueError(f"estimators: {estimator!r} sets {sorted(clash)[0]}, which is an axis of the grid")
    try:
        train = resolve({**settings, **how.model, **point})
    except ValueError as error:
        raise ValueError(f"task {task!r}, estimator {estimator!r}: {error}") from None
    if config.quick:
        train = replace(train, optim=replace(train.optim, epochs=1))
    train = replace(train, seed=seed)
    mechanism = config.mechanism and phase == "final"
    return Job(task, estimator, phase, number, point, train, how, mechanism, config.smoothed, config.quick)


def chosen_of(results: list[Mapping[str, Any]]) -> Settings:
    """The settings of the trial with the best validation accuracy; of equals, the lowest validation loss."""

    def merit(result: Mapping[str, Any]) -> tuple[float, float]:
        loss = result["validation_loss"]
        return result["validation_accuracy"], -float("inf") if loss is None else -loss

    return dict(max(results, key=merit)["settings"]) if results else {}


def flat(nested: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested settings as dotted ones; dotted keys stay."""
    settings: Settings = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f"{prefix}{key}.")
        else:
            settings[prefix + key] = value
    return settings


def resolve(settings: Settings) -> TrainConfig:
    """Dotted settings as a configuration; unknown names and wrong types are errors."""
    return _resolved(json.dumps(settings, sort_keys=True))


@lru_cache(maxsize=4096)
def _resolved(settings: str) -> TrainConfig:
    nested: dict[str, Any] = {}
    for key, value in json.loads(settings).items():
        *parts, last = key.split(".")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    parser = _parser()
    return configured(parser, parser.parse_object(nested), TrainConfig)


@lru_cache(maxsize=1)
def _parser() -> Parser:
    parser = Parser()
    add_arguments(parser, TrainConfig)
    return parser


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Twelve hex digits of the sources that a run's figures depend on."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name in MEASURED or not name.startswith(NOT_MEASURED):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _short(value: Any) -> str:
    return (
        "x".join(map(_short, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
