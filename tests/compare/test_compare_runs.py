"""A comparison as a whole, on an embedded dataset of three epochs: pairs, resumption, divergence, stale runs."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn.cli import main
from tbnn.compare import CompareConfig, EstimatorConfig, Space, TuningConfig, compare, read_results, runner, trial
from tbnn.compare.plan import Job, final_jobs, tuning_jobs
from tbnn.compare.runner import Schedule, Store
from tbnn.data import PackedFrames
from tbnn.learning import Outcome, Rule
from tbnn.train import step

RATE = TuningConfig(2, {"optim.learning_rate": Space(low=1e-3, high=1e-2)})
BASE = {"data.dataset": "digits_rows", "model.hidden": [12], "optim": {"epochs": 1, "batch_size": 256}}


@pytest.fixture
def config(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> CompareConfig:
    cache = str(tmp_path_factory.getbasetemp() / "compare-cache")
    estimators = {
        "atan": EstimatorConfig("atan"),
        "trace": EstimatorConfig("trace_slope", "ddt"),
        "float": EstimatorConfig("fast_sigmoid", "float"),
    }
    base = BASE | {"data.cache": cache}
    return CompareConfig(
        base=base, estimators=estimators, tuning=RATE, seeds=2, output=str(tmp_path / "out"), processes=1
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Run jobs in this process; the jobs that were run."""
    jobs: list[Job] = []

    def run_all(schedule: Schedule, finished: Callable[[Job, dict[str, Any]], None]) -> None:
        while schedule.waiting:
            job = schedule.waiting.pop(0)
            row = runner._run(job, schedule.store)
            jobs.append(job)
            schedule.done(job, row)
            finished(job, row)

    monkeypatch.setattr("tbnn.compare.run_all", run_all)
    return jobs


def test_a_comparison_in_processes_resumes_and_repeats_nothing(config: CompareConfig, here: list[Job]) -> None:
    first = read_results(compare(config, quiet=True))
    assert len(here) == 3 * (2 + 2)
    assert first["complete"]
    assert first["stale"] == 0
    assert [(r["estimator"], r["seed"]) for r in first["runs"]] == [(e, s) for e in config.estimators for s in (0, 1)]
    assert all(math.isfinite(r["test_loss"]) and 0 <= r["test_accuracy"] <= 1 for r in first["runs"])
    assert all("test_accuracy" not in r for r in first["tuning"])
    files = sorted((Path(config.output) / "runs").iterdir())
    assert len(files) == 12
    files[3].unlink()
    again = read_results(compare(config, quiet=True))
    assert len(here) == 13
    same = ("runs", "tuning", "chosen", "tasks", "estimators", "config")
    assert [{k: v for k, v in row.items() if k != "seconds"} for part in same[:2] for row in first[part]] == [
        {k: v for k, v in row.items() if k != "seconds"} for part in same[:2] for row in again[part]
    ]
    assert all(first[part] == again[part] for part in same[2:])


def test_processes_give_what_this_process_gives(config: CompareConfig, here: list[Job], tmp_path: Path) -> None:
    small = replace(config, estimators={"atan": EstimatorConfig("atan")}, tuning=replace(RATE, trials=0))
    one = read_results(compare(small, quiet=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tbnn.compare.run_all", runner.run_all)
        two = read_results(compare(replace(small, output=str(tmp_path / "pool"), processes=2), quiet=True))
    assert [r["losses"] for r in one["runs"]] == [r["losses"] for r in two["runs"]]


@pytest.mark.slow
def test_a_killed_comparison_goes_on(config: CompareConfig, tmp_path: Path) -> None:
    file, runs = tmp_path / "c.yaml", Path(config.output) / "runs"
    content = {"base": config.base, "tuning": {"trials": 2}, "seeds": 2, "output": config.output, "processes": 1}
    file.write_text(json.dumps(content))
    command = [sys.executable, "-m", "tbnn.cli", "compare", f"--config={file}"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(done := list(runs.glob("*.json"))) < 2:
        time.sleep(0.05)
    first.kill()
    first.wait()
    written = {path: path.stat().st_mtime_ns for path in done}
    subprocess.run(command, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())
    assert read_results(Path(config.output) / "results.json")["complete"]


def test_pairs_start_alike_and_see_the_same_batches(config: CompareConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}

    def spy(*given: Any) -> Rule:
        rule = step.learner(*given)
        sequence = rule.sequence

        def seeing(x: Tensor, labels: Tensor, *more: Any, **options: Any) -> Outcome:
            seen.setdefault(name, []).append(labels.clone())
            return sequence(x, labels, *more, **options)

        rule.sequence = seeing
        return rule

    monkeypatch.setattr(trial, "learner", spy)
    rows = {}
    for name in config.estimators:
        rows[name] = trial.run_job(final_jobs(config, "base", name, {})[1])
    assert torch.equal(torch.cat(seen["atan"]), torch.cat(seen["trace"]))
    assert torch.equal(torch.cat(seen["atan"]), torch.cat(seen["float"]))
    assert rows["atan"]["initial"] == rows["trace"]["initial"] == rows["float"]["initial"]
    assert rows["atan"]["initial"] != trial.run_job(final_jobs(config, "base", "atan", {})[0])["initial"]


def test_tuning_does_not_look_at_test_recordings(config: CompareConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str] = []

    class Watched(PackedFrames):
        def __init__(self, path: Any, split: str) -> None:
            splits.append(split)
            super().__init__(path, split)

    monkeypatch.setattr(trial, "PackedFrames", Watched)
    trial.run_job(tuning_jobs(config, "base", "atan")[0])
    assert splits == ["train", "validation"]
    trial.run_job(final_jobs(config, "base", "atan", {})[0])
    assert splits == ["train", "validation", "train", "validation", "test"]


def test_a_run_that_diverges_is_recorded_and_the_rest_go_on(
    config: CompareConfig, here: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = step.cross_entropy, []

    def spoilt(readout: Tensor, *args: Any) -> Tensor:
        steps.append(1)
        return real(readout, *args) * (torch.nan if len(steps) == 3 else 1.0)

    monkeypatch.setattr(step, "cross_entropy", spoilt)
    results = read_results(compare(replace(config, tuning=replace(RATE, trials=0)), quiet=True))
    assert [r["diverged"] for r in results["runs"]] == [3, None, None, None, None, None]
    assert results["runs"][0]["steps"] == 2
    assert results["runs"][0]["train_loss"] is None
    assert results["runs"][0]["test_accuracy"] >= 0
    assert results["complete"]


def test_runs_of_other_code(config: CompareConfig, here: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    compare(config, quiet=True)
    for module in (runner, trial):
        monkeypatch.setattr(module, "fingerprint", lambda: "another-code")
    monkeypatch.setattr("tbnn.compare.results.fingerprint", lambda: "another-code")
    with pytest.raises(
        ValueError, match=r"runs/.*: a run of other code \(\w{12}, this is another-code\); expected --stale keep"
    ):
        compare(config, quiet=True)
    kept = read_results(compare(replace(config, stale="keep"), quiet=True))
    assert (len(here), kept["stale"], kept["complete"]) == (12, 12, True)
    repeated = read_results(compare(replace(config, stale="repeat"), quiet=True))
    assert (len(here), repeated["stale"]) == (24, 0)


def test_results_of_other_code_are_repeated(
    config: CompareConfig, here: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compare(config, quiet=True)
    results = read_results(path)
    first = results["runs"][0]
    config = replace(config, recheck=len(results["runs"]))
    assert compare(config, quiet=True) == path
    again = read_results(path)
    assert again["rechecked"]["equal"] == again["rechecked"]["runs"] == len(results["runs"])
    assert again["rechecked"]["largest_difference"] == 0
    assert {**again, "rechecked": None} == {**results, "rechecked": None}

    def other(job: Job) -> dict[str, Any]:
        row = trial.run_job(job)
        mine = (row["task"], row["estimator"], row["seed"]) == (first["task"], first["estimator"], first["seed"])
        return row | ({"test_accuracy": row["test_accuracy"] + 0.125} if mine else {})

    monkeypatch.setattr(sys.modules["tbnn.compare.recheck"], "run_job", other)
    compare(config, quiet=True)
    found = read_results(path)["rechecked"]
    assert (found["equal"], found["largest_difference"]) == (found["runs"] - 1, 0.125)
    with pytest.raises(ValueError, match=r"recheck: expected at most 6 runs, as .*results\.json holds, got 7"):
        compare(replace(config, recheck=7), quiet=True)
    with pytest.raises(ValueError, match="expected the results of this configuration, got 'atan' in 'base'"):
        compare(replace(config, tasks={"other": {}}, recheck=1), quiet=True)
    with pytest.raises(FileNotFoundError, match="recheck: no results to repeat"):
        compare(replace(config, output=config.output + "-none", recheck=1), quiet=True)


def test_one_choice_for_all_tasks(config: CompareConfig, here: list[Job]) -> None:
    tuning = replace(RATE, task="b")
    tasks = {"a": {}, "b": {"model.hidden": [8]}}
    results = read_results(compare(replace(config, tasks=tasks, tuning=tuning, seeds=1), quiet=True))
    assert {r["task"] for r in results["tuning"]} == {"b"}
    assert results["chosen"]["a"] == results["chosen"]["b"]
    assert len(results["runs"]) == 6
    with pytest.raises(ValueError, match=r"tuning.task: expected 'each' or one of the tasks a, b, got 'c'"):
        compare(replace(config, tasks=tasks, tuning=replace(RATE, task="c")), quiet=True)


def test_only_the_readout_learns_in_the_control(config: CompareConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[dict[str, Tensor]] = []
    real = trial._train

    def spy(model: Any, *args: Any) -> Any:
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        history = real(model, *args)
        trained.append({n: (p != before[n]).any() for n, p in model.named_parameters()})
        return history

    monkeypatch.setattr(trial, "_train", spy)
    control = {"c": EstimatorConfig("atan", control="readout")}
    trial.run_job(final_jobs(replace(config, estimators=control), "base", "c", {})[0])
    assert {n: bool(moved) for n, moved in trained[0].items()} == {
        "layers.0.weight": False, "layers.0.bias": False, "layers.2.weight": True, "layers.2.bias": True
    }  # fmt: skip


def test_a_damaged_run_is_named(config: CompareConfig, here: list[Job]) -> None:
    compare(config, quiet=True)
    path = min((Path(config.output) / "runs").iterdir())
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"{path}: not valid JSON"):
        compare(config, quiet=True)


def test_a_refused_setting_is_named_before_anything_runs(config: CompareConfig, here: list[Job]) -> None:
    bad = {"ok": EstimatorConfig("atan"), "bad": EstimatorConfig("soft", settings={"model.floor": "low"})}
    with pytest.raises(ValueError, match=r"task 'base', estimator 'bad': .*floor"):
        compare(replace(config, estimators=bad), quiet=True)
    assert not here


def test_the_command(config: CompareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"tuning": {"split": "test"}}))
    assert main(["compare", f"--config={file}"]) == 2
    assert "tuning.split: expected 'validation', got 'test'" in capsys.readouterr().err
    taken = tmp_path / "taken"
    taken.write_text("")
    assert main(["compare", f"--output={taken}"]) == 2
    assert f"expected a folder, got the file {taken}" in capsys.readouterr().err
    assert main(["compare", "--estimators", "{a: {spike: atan}}"]) == 2
    assert "spike" in capsys.readouterr().err


def test_a_store_gives_a_row_its_present_names(config: CompareConfig, tmp_path: Path) -> None:
    job = final_jobs(config, "base", "atan", {})[0]
    Store(tmp_path, "keep").write(job, {"task": "base", "estimator": "atan", "code": "old"})
    store = Store(tmp_path, "keep")
    renamed = replace(job, task="another", estimator="name")
    assert store.read(renamed) == {"task": "another", "estimator": "name", "code": "old"}
    assert store.read(replace(job, mechanism=True)) is None


def test_the_mechanism_of_a_run(config: CompareConfig) -> None:
    watched = replace(config, mechanism=True, smoothed=4)
    plain, seen = (trial.run_job(final_jobs(c, "base", "trace", {})[0]) for c in (config, watched))
    assert seen["losses"] == plain["losses"]  # who watches changes nothing
    assert seen["test_loss"] == plain["test_loss"]
    found = seen["mechanism"]
    assert found["layer_norms"].keys() == {"layers.0", "layers.2"}
    assert len(found["flips"]) == 1
    assert 0 < found["end"]["rates"]["layers.1"] < 1
    assert len(found["start"]["over_time"]["layers.1"]) == 32
    assert -1 <= found["end"]["cosine"]["all"] <= 1
    json.dumps(found, allow_nan=False)


def test_a_process_that_dies_is_one_clear_error(config: CompareConfig, here: list[Job]) -> None:
    job = final_jobs(config, "base", "atan", {})[0]
    dead: Future[dict[str, Any]] = Future()
    dead.set_exception(BrokenProcessPool("gone"))
    with pytest.raises(
        ChildProcessError, match=r"a process died \(killed, or out of memory\), perhaps in base, atan, seed 0"
    ):
        runner._row_of(dead, job)
    refused: Future[dict[str, Any]] = Future()
    refused.set_exception(ValueError("lam: no"))
    with pytest.raises(ValueError, match=r"base, atan, seed 0: lam: no"):
        runner._row_of(refused, job)
