"""Run what a comparison takes: several processes at once, finished runs kept on disk, progress and time left shown."""

import json
import logging
import multiprocessing
import os
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tbnn.compare.config import CompareConfig
from tbnn.compare.plan import Job, Settings, chosen_of, final_jobs, fingerprint, tasks_of, tuning_jobs
from tbnn.files import replacing
from tbnn.train.run import read_json

Row = dict[str, Any]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Store:
    """The finished runs in ``folder``, one JSON file each, by what they did.

    A run of other code (another fingerprint) is stale: with ``stale="refuse"`` it stops the comparison, with "keep" it
    counts and stays marked by its ``code``, with "repeat" it does not count.
    """

    def __init__(self, folder: Path, stale: str) -> None:
        self.folder, self.stale = folder, stale
        self.found = {path.stem.rpartition("-")[2]: path for path in sorted(folder.glob("*.json"))}

    def path(self, job: Job) -> Path:
        """Where a run's row lies."""
        name = re.sub(r"[^A-Za-z0-9.=-]+", "_", f"{job.task}-{job.estimator}-{job.phase}{job.number}")
        return self.folder / f"{name[:100]}-{job.digest}.json"

    def read(self, job: Job) -> Row | None:
        """A finished run's row, under the names it has now; None if it is still to be done.

        Raises ``ValueError`` for a damaged file, and for a run of other code where these are refused.
        """
        path = self.found.get(job.digest)
        if path is None:
            return None
        row = read_json(path)
        if row.get("code") != fingerprint():
            if self.stale == "refuse":
                raise ValueError(
                    f"{path}: a run of other code ({row.get('code')}, this is {fingerprint()}); expected --stale keep, "
                    "which marks it, or --stale repeat"
                )
            if self.stale == "repeat":
                return None
        return row | {"task": job.task, "estimator": job.estimator}

    def write(self, job: Job, row: Row) -> None:
        """Keep a row, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.path(job)) as temporary:
            temporary.write_text(json.dumps(row) + "\n")


class Schedule:
    """Which run comes next: tasks in their order; an estimator's seeds as soon as its settings are chosen."""

    def __init__(self, config: CompareConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.rows: dict[str, list[Row]] = {"tuning": [], "final": []}
        self.chosen: dict[str, dict[str, Settings]] = defaultdict(dict)
        self.waiting: list[Job] = []
        self.pending: dict[tuple[str, str], int] = {}
        self.tasks = list(tasks_of(config))
        one = config.tuning.task
        if one != "each" and one not in self.tasks:
            raise ValueError(f"tuning.task: expected 'each' or one of the tasks {', '.join(self.tasks)}, got {one!r}")
        self.tuned = self.tasks if one == "each" else [one]
        self.total = 0
        for task in self.tasks:  # a bad setting shows here, before anything runs
            for estimator in config.estimators:
                self.total += len(final_jobs(config, task, estimator, self._any_point(task, estimator)))
        for task in self.tuned:
            for estimator in config.estimators:
                self._tune(task, estimator)

    def _any_point(self, task: str, estimator: str) -> Settings:
        jobs = tuning_jobs(self.config, task, estimator)
        return jobs[0].settings if jobs else {}

    def _tune(self, task: str, estimator: str) -> None:
        jobs = tuning_jobs(self.config, task, estimator)
        self.total += len(jobs)
        self.pending[task, estimator] = len(jobs)
        self._add(jobs)
        if not jobs:
            self._choose(task, estimator)

    def _add(self, jobs: list[Job]) -> None:
        for job in jobs:
            row = self.store.read(job)
            if row is None:
                self.waiting.append(job)
            else:
                self.done(job, row)
        self.waiting.sort(key=lambda job: (self.tasks.index(job.task), job.phase == "final", job.number))

    def done(self, job: Job, row: Row) -> None:
        """Take a finished run's row; the last trial of an estimator makes its seeds due."""
        self.rows[job.phase].append(row | ({"trial": job.number} if job.phase == "tuning" else {}))
        if job.phase == "tuning":
            self.pending[job.task, job.estimator] -= 1
            if not self.pending[job.task, job.estimator]:
                self._choose(job.task, job.estimator)

    def _choose(self, task: str, estimator: str) -> None:
        trials = [r for r in self.rows["tuning"] if (r["task"], r["estimator"]) == (task, estimator)]
        settings = chosen_of(sorted(trials, key=lambda row: row["trial"]))
        for other in self.tasks if self.config.tuning.task != "each" else [task]:
            self.chosen[other][estimator] = settings
            self._add(final_jobs(self.config, other, estimator, settings))

    @property
    def finished(self) -> int:
        """Runs done."""
        return sum(map(len, self.rows.values()))


def run_all(schedule: Schedule, finished: Callable[[Job, Row], None]) -> None:
    """Run everything that is still to be done; finished runs survive an interruption.

    Raises:
        ValueError: a run was refused by the layers; the message names it.
        ChildProcessError: a process died.
    """
    processes = schedule.config.processes or os.cpu_count() or 1
    flying: dict[Future[Row], Job] = {}
    with _pool(processes) as pool:
        while schedule.waiting or flying:
            while schedule.waiting and len(flying) < processes:
                job = schedule.waiting.pop(0)
                flying[pool.submit(_run, job, schedule.store)] = job
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                job = flying.pop(future)
                row = _row_of(future, job)
                schedule.done(job, row)
                finished(job, row)


def _row_of(future: "Future[Row]", job: Job) -> Row:
    try:
        return future.result()
    except BrokenProcessPool:
        raise ChildProcessError(
            f"a process died (killed, or out of memory), perhaps in {job.title}; finished runs are kept, the same command goes on"
        ) from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{job.title}: {error}") from None


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each, started anew: a fork would not copy the threads of compiled kernels."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start)
    try:
        yield pool
        pool.shutdown()
    except BaseException:  # whoever interrupts does not want to wait for runs that are not finished
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start() -> None:
    """In a new process: an interruption is the parent's business, and a layer that missed its rate shows in the row."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("tbnn").setLevel(logging.ERROR)


def _run(job: Job, store: Store) -> Row:
    """In a process of the pool: the row is on disk before anybody hears of it."""
    from tbnn.compare.trial import run_job

    row = run_job(job)
    store.write(job, row)
    return row
