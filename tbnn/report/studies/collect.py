"""Find the studies in a folder and read their results: each is whole, of this format and no rehearsal, or an error."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tbnn.compare.plan import fingerprint
from tbnn.compare.results import FORMAT, read_results
from tbnn.compare.statistics import Results, Statistics, statistics
from tbnn.report.studies.answers import Answer, answers
from tbnn.train.run import read_json

RESULTS, CONFIG, SCRIPT, TEXT, PAGE = "results.json", "compare.yaml", "run.py", "README.md", "report.html"
ENTRIES: dict[str, tuple[type, ...]] = {
    "title": (str,), "claim": (str,), "command": (str,), "date": (str,), "environment": (dict,), "code": (str,),
    "quick": (bool,), "complete": (bool,), "stale": (int,), "cpu_seconds": (int, float), "wall_seconds": (int, float),
    "config": (dict,), "tasks": (dict,), "estimators": (dict,), "margin": (int, float), "converged": (int, float),
    "reference": (str, type(None)), "chosen": (dict,), "tuning": (list,), "runs": (list,),
}  # fmt: skip
INNER = {
    "tasks": ("axes", "chance"), "estimators": ("group", "settings", "search"),
    "tuning": ("task", "estimator", "settings"), "runs": ("task", "estimator", "seed", "code"),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A comparison's folder, its results, and what follows from them."""

    folder: Path
    results: Results

    @property
    def id(self) -> str:
        """Its folder's name."""
        return self.folder.name

    @cached_property
    def found(self) -> Statistics:
        """Against the reference that the study named, or the best surrogate of each task."""
        return statistics(self.results, self.results["reference"])

    @cached_property
    def answers(self) -> list[Answer]:
        """Of all tasks and questions."""
        return answers(self.results)

    @property
    def command(self) -> str:
        """That makes its results again."""
        if self.results["command"]:
            return self.results["command"]
        script = (self.folder / SCRIPT).is_file()
        return f"python {self.id}/{SCRIPT}" if script else f"tbnn compare --config {self.id}/{CONFIG}"

    @property
    def doubts(self) -> list[str]:
        """What speaks against reading its figures as those of the code at hand; nothing if they are."""
        return [*self.lasting_doubts, *self._other_code()]

    @property
    def lasting_doubts(self) -> list[str]:
        """Of these, what the results say by themselves, whatever code reads them."""
        results, found = self.results, []
        if not results["complete"]:
            found.append("incomplete: runs are missing")
        if results["stale"]:
            rows = len(results["runs"]) + len(results["tuning"])
            found.append(f"{results['stale']} of {rows} runs come from other code than the rest")
        return found

    @property
    def standing(self) -> str:
        """Where its figures stand, in words."""
        if self.doubts:
            return "; ".join(self.doubts)
        if self.results["code"] == fingerprint():
            return "nothing: complete, and measured with this code"
        return (
            f"nothing: complete, and {self.results['rechecked']['runs']} runs repeated with this code came out the same"
        )

    def _other_code(self) -> list[str]:
        if self.results["code"] == fingerprint():
            return []
        other = f"measured with other code, commit {self.results['environment'].get('commit', 'unknown')}"
        again = self.results.get("rechecked")
        if again is None or again["code"] != fingerprint():
            return [other]
        if again["equal"] == again["runs"]:
            return []
        apart = f"{100 * again['largest_difference']:.1f} points apart at most"
        return [
            f"{other}; {again['runs'] - again['equal']} of {again['runs']} runs repeated with this one differ, {apart}"
        ]


@dataclass(frozen=True)
class Collection:
    """A folder of studies, or one study's folder (``single``)."""

    folder: Path
    single: bool
    studies: list[Study] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    """Folders with a configuration or a script and no results."""
    elsewhere: list[str] = field(default_factory=list)
    """Folders whose results are no comparison's; the ledger tells of them."""
    ledger: str = ""
    """README.md of a folder of studies."""


def holds_studies(folder: str | Path) -> bool:
    """Whether a folder is a study's or holds studies, and is not a training run's."""
    folder = Path(folder)
    if (folder / "run.json").exists() or not folder.is_dir():
        return False
    return (folder / RESULTS).is_file() or any(_is_study(path) for path in _folders(folder))


def collect(folder: str | Path) -> Collection:
    """Read a folder of studies, in the order of their names, or one study's folder.

    Raises ValueError, with the file's name, for results that are damaged, of another format, or a rehearsal's (--quick).
    """
    folder = Path(folder)
    if (folder / RESULTS).is_file():
        return Collection(folder, True, [read_study(folder)])
    ledger = folder / TEXT
    made = Collection(folder, False, ledger=ledger.read_text(encoding="utf-8") if ledger.is_file() else "")
    for path in filter(_is_study, _folders(folder)):
        if not (path / RESULTS).is_file():
            made.not_run.append(path.name)
        elif "format" not in read_json(path / RESULTS):
            made.elsewhere.append(path.name)
        else:
            made.studies.append(read_study(path))
    return made


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_study(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RESULTS, CONFIG, SCRIPT)) and not (folder / "run.json").exists()


def read_study(folder: Path) -> Study:
    """Read one study; errors as in ``collect``."""
    path = folder / RESULTS
    results = read_results(path)
    for name, types in ENTRIES.items():
        if not isinstance(results.get(name, ...), types):
            expected = " or ".join("null" if one is type(None) else one.__name__ for one in types)
            got = type(results[name]).__name__ if name in results else "none"
            raise ValueError(f"{path}: expected the entry {name!r} of type {expected} (format {FORMAT}), got {got}")
    for name, needed in INNER.items():
        rows: Any = results[name].items() if isinstance(results[name], dict) else enumerate(results[name])
        for key, row in rows:
            missing = [one for one in needed if not isinstance(row, dict) or one not in row]
            if missing:
                raise ValueError(f"{path}: expected {', '.join(map(repr, missing))} in {name}[{key!r}], got none")
    if results["quick"]:
        raise ValueError(f"{path}: results of a rehearsal (--quick), which mean nothing; expected those of a full run")
    if results["reference"] is not None and results["reference"] not in results["estimators"]:
        raise ValueError(f"{path}: expected a reference among the estimators, got {results['reference']!r}")
    study = Study(folder.resolve(), results)
    try:
        _ = study.found, study.answers
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged results ({type(error).__name__}: {error})") from error
    return study
