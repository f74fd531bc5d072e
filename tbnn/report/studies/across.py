"""Several studies as one comparison: the estimators that most of them share, over the tasks of all of them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tbnn.compare.statistics import OUTSIDE, Results
from tbnn.report.studies.collect import Study

SHARE = 0.8
LEAST = 2  # studies, and one estimator more than that


def across(studies: Iterable[Study]) -> Results | None:
    """One comparison over the tasks of all studies that share estimators; None where too few do.

    An estimator is the same where name, group, library, settings and search are. Starting with the one that most studies have,
    estimators join, the commonest first, as long as at least four fifths of its studies have them all: many tasks, not
    many names. Tasks are called "study: task". Float weights and controls stay out, as of all ranks.
    """
    studies = list(studies)
    held = [
        {
            _signature(name, entry)
            for name, entry in study.results["estimators"].items()
            if entry["group"] not in OUTSIDE
        }
        for study in studies
    ]
    counts = Counter(one for signatures in held for one in sorted(signatures))
    chosen: set[str] = set()
    members: list[int] = list(range(len(studies)))
    for one, count in counts.most_common():
        left = [i for i in members if one in held[i]]
        if chosen and len(left) < SHARE * counts.most_common(1)[0][1]:
            continue
        if count >= LEAST:
            chosen.add(one)
            members = left
    if len(members) < LEAST or len(chosen) < LEAST + 1:
        return None
    return _joined([studies[i] for i in members], [json.loads(one)[0] for one in sorted(chosen)])


def _signature(name: str, entry: dict[str, Any]) -> str:
    parts = (entry["group"], entry.get("library"), entry["settings"], sorted(entry["search"] or []))
    return json.dumps([name, *parts], sort_keys=True)


def _joined(studies: Sequence[Study], names: Sequence[str]) -> Results:
    first = studies[0].results
    tasks: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    for study in studies:
        tasks |= {f"{study.id}: {task}": {**entry, "axes": {}} for task, entry in study.results["tasks"].items()}
        rows = (row for row in study.results["runs"] if row["estimator"] in names)
        runs += [{**row, "task": f"{study.id}: {row['task']}"} for row in rows]
    order = [name for name in first["estimators"] if name in names]
    estimators = {name: first["estimators"][name] for name in order}
    return {
        **first, "title": "All studies", "tasks": tasks, "estimators": estimators, "runs": runs, "tuning": [], "reference": None,
    }  # fmt: skip
