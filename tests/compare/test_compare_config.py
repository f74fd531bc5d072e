"""What a comparison may be told: unequal budgets and tuning on test are refused, everything else becomes runs."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbnn.compare import CompareConfig, EstimatorConfig, Space, TuningConfig
from tbnn.compare.config import ESTIMATOR_SETTINGS, SPIKES, WEIGHTS
from tbnn.compare.plan import chosen_of, final_jobs, flat, points_of, resolve, tasks_of, tuning_jobs
from tbnn.train.config import SURROGATES, ModelConfig

TWO = TuningConfig(
    4, {"optim.learning_rate": Space(low=1e-3, high=1e-1), "model.scale": Space(values=[0.25, 1.0, 4.0])}
)


def config(**options: Any) -> CompareConfig:
    return CompareConfig(**{"estimators": {"atan": EstimatorConfig("atan")}, "tuning": TWO, **options})


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: TuningConfig(split="test"), "tuning.split: expected 'validation', got 'test': what is chosen on test"),
        (lambda: config(estimators={"a": EstimatorConfig("atan", trials=9)}), "'a' asks for 9 trials .* unequal budgets"),
        (lambda: config(estimators={"a": EstimatorConfig("atan", search=[])}), "'a' searches nothing .* unequal budgets"),
        (lambda: config(estimators={"a": EstimatorConfig("atan", search=["model.lam"])}), "expected one of tuning.search"),
        (lambda: config(estimators={"a": EstimatorConfig("atan", settings={"model.scale": 2})}), "fixes model.scale"),
        (lambda: EstimatorConfig("atan", settings={"optim.epochs": 50}), "optim.epochs belongs to the task, equal for all"),
        (lambda: EstimatorConfig("atan", settings={"model.hidden": [9]}), "model.hidden belongs to the task"),
        (lambda: EstimatorConfig("atan", settings={"data.dataset": "digits"}), "data.dataset belongs to the task"),
        (lambda: EstimatorConfig("cosine"), "spikes: expected one of .*atan.*got 'cosine'"),
        (lambda: EstimatorConfig("atan", "best"), "weights: expected one of .*ste.*got 'best'"),
        (lambda: EstimatorConfig("sso"), "spikes: expected one of .*got 'sso'"),
        (lambda: config(smoothed=100), "smoothed: expected an even number >= 0, with mechanism true, got 100"),
        (lambda: EstimatorConfig("trace", library="snntorch"), "snntorch's neurons take a bare surrogate"),
        (lambda: Space(), "expected either values or low and high"),
        (lambda: Space(values=[1], low=1, high=2), "expected either values or low and high"),
        (lambda: Space(values=[]), "expected at least one value"),
        (lambda: Space(low=2, high=1), "expected 0 < low < high, got 2 and 1"),
        (lambda: TuningConfig(trials=-1), "tuning.trials: expected a number >= 0, got -1"),
        (lambda: TuningConfig(search={}), "tuning.search: expected at least one"),
        (lambda: TuningConfig(search={"optim.epochs": Space(values=[1])}), "tuning.search: expected one of .* 'optim.epochs'"),
        (lambda: config(seeds=0), "seeds: expected a number >= 1"),
        (lambda: config(seeds=2000), "tuning.seed: expected none of the final seeds 0 to 1999, got 1000"),
        (lambda: config(reference="b"), "reference: expected one of atan, got 'b'"),
        (lambda: config(tasks={}), "expected at least one task"),
        (lambda: config(converged=1.0), "expected shares"),
        (lambda: config(processes=-1), "processes: expected a number >= 0"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


def test_every_estimator_tries_the_same_points() -> None:
    both = {
        "atan": EstimatorConfig("atan"),
        "rate alone": EstimatorConfig("soft", "ddt", search=["optim.learning_rate"]),
    }
    whole = config(estimators=both)
    a, b = (tuning_jobs(whole, "base", name) for name in both)
    assert len(a) == len(b) == 4
    assert [j.settings["optim.learning_rate"] for j in a] == [j.settings["optim.learning_rate"] for j in b]
    assert all(set(j.settings) == {"optim.learning_rate"} for j in b)
    assert all(j.train.optim.learning_rate == j.settings["optim.learning_rate"] for j in a + b)
    assert {j.train.seed for j in a + b} == {1000}


@given(st.integers(1, 30), st.integers(0, 5))
def test_points_lie_in_their_space(trials: int, seed: int) -> None:
    points = points_of(config(tuning=replace(TWO, trials=trials, seed=2000 + seed)))
    assert len(points) == trials
    assert all(1e-3 <= p["optim.learning_rate"] <= 1e-1 and p["model.scale"] in (0.25, 1.0, 4.0) for p in points)
    if trials >= 9:
        assert {p["model.scale"] for p in points} == {0.25, 1.0, 4.0}


def test_a_grid_makes_a_task_of_every_point() -> None:
    grid = {"model.hidden": [[8], [8, 8]], "optim.batch_size": [1, 16]}
    tasks = tasks_of(config(grid=grid, base={"optim": {"epochs": 3}}))
    assert list(tasks) == [
        "hidden=8, batch_size=1", "hidden=8, batch_size=16", "hidden=8x8, batch_size=1", "hidden=8x8, batch_size=16"
    ]  # fmt: skip
    job = final_jobs(config(grid=grid), "hidden=8x8, batch_size=16", "atan", {})[3]
    assert job.train.model.hidden == (8, 8)
    assert job.train.optim.batch_size == 16
    assert job.train.seed == job.number == 3
    named = tasks_of(config(grid={"model.lam": [0.1]}, tasks={"a": {}, "b": {"model.lam": 3}}))
    assert list(named) == ["a, lam=0.1", "b, lam=0.1"]
    assert named["b, lam=0.1"].settings["model.lam"] == 0.1


def test_an_estimator_does_not_override_an_axis() -> None:
    clash = config(estimators={"a": EstimatorConfig("atan", settings={"model.lam": 1.0})}, grid={"model.lam": [0.1]})
    with pytest.raises(ValueError, match=r"'a' sets model.lam, which is an axis of the grid"):
        final_jobs(clash, "lam=0.1", "a", {})


def test_a_wrong_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"task 'base', estimator 'atan': .*epoch"):
        final_jobs(config(base={"optim.epoch": 3}), "base", "atan", {})


@pytest.mark.parametrize("spikes", [*SPIKES, *SURROGATES])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_estimator_is_settings_of_the_gradient(spikes: str, weights: str) -> None:
    how = EstimatorConfig(spikes, weights)
    assert how.model.keys() <= ESTIMATOR_SETTINGS
    assert isinstance(resolve(how.model).model, ModelConfig)
    assert how.heading in ("ddt", "surrogate", "float", "other")


@pytest.mark.parametrize(
    ("how", "heading"),
    [
        (EstimatorConfig("atan"), "surrogate"),
        (EstimatorConfig("atan", "ste_linear"), "surrogate"),
        (EstimatorConfig("atan", "ddt"), "ddt"),
        (EstimatorConfig("atan", "ddt_slope"), "ddt"),
        (EstimatorConfig("trace", "ste"), "ddt"),
        (EstimatorConfig("atan", "ewgs"), "other"),
        (EstimatorConfig("trace", "float"), "float"),
        (EstimatorConfig("atan", control="readout"), "control"),
        (EstimatorConfig("atan", group="other"), "other"),
    ],
)
def test_headings(how: EstimatorConfig, heading: str) -> None:
    assert how.heading == heading


def test_digests_follow_what_a_run_does() -> None:
    def digest(**options: Any) -> str:
        return final_jobs(config(**options), "base", "atan", {})[0].digest

    assert digest() == digest(
        title="another", output="elsewhere", results="there", seeds=3, base={"data": {"source": "there"}}
    )
    others = [
        digest(base={"model.lam": 0.1}),
        digest(quick=True),
        digest(mechanism=True),
        digest(estimators={"atan": EstimatorConfig("atan", library="snntorch")}),
        final_jobs(config(), "base", "atan", {})[1].digest,
        final_jobs(config(), "base", "atan", {"model.scale": 4.0})[0].digest,
        tuning_jobs(config(tuning=replace(TWO, seed=1001)), "base", "atan")[0].digest,
    ]
    assert len({digest(), *others}) == len(others) + 1


def test_the_best_trial_is_chosen_on_validation() -> None:
    def row(accuracy: float, loss: float | None, rate: float) -> dict[str, Any]:
        return {"validation_accuracy": accuracy, "validation_loss": loss, "settings": {"rate": rate}}

    assert chosen_of([row(0.5, 1.0, 1), row(0.7, 2.0, 2), row(0.7, 0.9, 3), row(0.6, 0.1, 4)]) == {"rate": 3}
    assert chosen_of([row(0.7, None, 1), row(0.7, 5.0, 2)]) == {"rate": 2}
    assert chosen_of([]) == {}


def test_flat_settings() -> None:
    assert flat({"model": {"hidden": [3]}, "model.lam": 1, "seed": 2}) == {
        "model.hidden": [3],
        "model.lam": 1,
        "seed": 2,
    }


@pytest.mark.parametrize("part", ["tasks", "grid"])
def test_names_that_yaml_reads_as_numbers_are_refused(part: str) -> None:
    with pytest.raises(ValueError, match=f"{part}: expected a name, got 128; put quotes around it"):
        CompareConfig(**{part: {128: {}}})  # pyright: ignore[reportArgumentType]
