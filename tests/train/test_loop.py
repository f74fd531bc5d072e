"""The training loop: it learns, repeats itself, resumes, and keeps its files whole."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tbnn.data import Augment
from tbnn.learning import LearningConfig
from tbnn.train import Diverged, ModelConfig, TrainConfig, load_run, loop, step, train
from tbnn.train.log import read_metrics
from tbnn.train.work import evaluate_run, pack_run, simulate_run


def weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{which}.safetensors")


def without_times(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "waited")}
        for row in read_metrics(folder)
    ]


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(hidden=(16,)),
        ModelConfig(hidden=(16, 12), target="trace", differentiate_stats=False, form="linear"),
        ModelConfig(hidden=(16,), recurrent=True, stats="step", estimator="ste"),
        ModelConfig(hidden=(16,), emit="denoised", per_channel=False),
        ModelConfig(hidden=(16,), weights="float", gradient="surrogate", dropout=0.1),
    ],
    ids=["soft", "trace", "recurrent", "denoised", "float"],
)
def test_learns_to_tell_the_halves(config: TrainConfig, model: ModelConfig) -> None:
    optim = replace(config.optim, epochs=12)
    run = load_run(train(replace(config, model=model, optim=optim), quiet=True))
    assert evaluate_run(run, "test").accuracy > 0.9
    history = read_metrics(run.folder)
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]


@pytest.mark.parametrize("rule", ["ottt", "eprop", "decolle"])
def test_online_rules_learn_to_tell_the_halves(config: TrainConfig, rule: str) -> None:
    learning = LearningConfig(rule=rule)  # pyright: ignore[reportArgumentType]
    model = replace(config.model, target="trace")
    run = load_run(
        train(replace(config, learning=learning, model=model, optim=replace(config.optim, epochs=12)), quiet=True)
    )
    assert evaluate_run(run, "test").accuracy > 0.9
    assert run.config.learning == learning


def test_same_seed_same_numbers_other_seed_other_numbers(config: TrainConfig, tmp_path: Path) -> None:
    data = replace(config.data, augment=Augment(shift=1, drop=0.1, cut_mix=0.5))
    folders = [
        train(replace(config, data=data, seed=seed, output=str(tmp_path / name)), quiet=True)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    first, second, other = (weights(folder) for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert without_times(folders[0]) == without_times(folders[1])
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_workers_change_nothing_but_who_reads(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, optim=replace(config.optim, epochs=2))
    data = replace(config.data, augment=Augment(shift=1, drop=0.2))
    folders = [
        train(replace(config, data=replace(data, workers=n), output=str(tmp_path / f"w{n}")), quiet=True)
        for n in (0, 2)
    ]
    assert without_times(folders[0]) == without_times(folders[1])


@pytest.mark.parametrize(
    "learning",
    [
        LearningConfig(),
        LearningConfig(rule="ottt", update_every=4),
        LearningConfig(rule="eprop", feedback="adaptive"),
        LearningConfig(rule="fa"),
        LearningConfig(rule="reward"),
        LearningConfig(rule="stdp", options={"theta_plus": 0.01, "theta_tau": 50}),
    ],
    ids=lambda learning: learning.rule,
)
def test_resumed_run_equals_uninterrupted_one(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learning: LearningConfig
) -> None:
    config = replace(config, learning=learning, model=replace(config.model, target="trace"))
    whole = train(replace(config, output=str(tmp_path / "whole")), quiet=True)
    cut = replace(config, output=str(tmp_path / "cut"))
    epoch = loop._Trainer._epoch

    def stops_in_the_third(self: loop._Trainer, number: int, display: object) -> dict[str, float]:
        if number == 3:
            raise KeyboardInterrupt
        return epoch(self, number, display)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(loop._Trainer, "_epoch", stops_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(cut, quiet=True)
    monkeypatch.undo()
    resumed = train(replace(cut, resume=True), quiet=True)
    for which in ("last", "best"):
        expected, got = weights(whole, which), weights(resumed, which)
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert without_times(whole) == without_times(resumed)
    assert [row["epoch"] for row in read_metrics(resumed)] == [1, 2, 3, 4]


def test_best_is_the_last_epoch_of_highest_validation_accuracy(config: TrainConfig) -> None:
    folder = train(config, quiet=True)
    history = read_metrics(folder)
    highest = max(row["validation_accuracy"] for row in history)
    expected = max(row["epoch"] for row in history if row["validation_accuracy"] == highest)
    run = load_run(folder)
    assert run.checkpoint["epoch"] == run.checkpoint["best_epoch"] == expected
    assert run.checkpoint["metrics"]["validation_accuracy"] == highest
    assert evaluate_run(run, "validation").accuracy == pytest.approx(highest)


def test_logs_agree_with_each_other(config: TrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(config, quiet=True)
    rows = read_metrics(folder)
    with (folder / "metrics.csv").open() as file:
        assert [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)] == rows
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    for name in ("train_loss", "rate/layers.1"):
        assert [(e.step, pytest.approx(e.value)) for e in board.Scalars(name)] == [(r["epoch"], r[name]) for r in rows]


def test_saved_configuration_reads_back_equal(config: TrainConfig) -> None:
    assert load_run(train(config, quiet=True)).config == config


def test_existing_run_is_not_touched(config: TrainConfig) -> None:
    folder = train(config, quiet=True)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="holds a run already"):
        train(config, quiet=True)
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_resume_without_checkpoint_is_refused(config: TrainConfig) -> None:
    with pytest.raises(FileNotFoundError, match=r"last\.json is missing"):
        train(replace(config, resume=True), quiet=True)


@pytest.mark.parametrize("name", ["best.safetensors", "best.json", "run.json", "config.yaml"])
def test_damaged_run_is_refused_by_name(config: TrainConfig, name: str) -> None:
    folder = train(replace(config, optim=replace(config.optim, epochs=1)), quiet=True)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_run(folder)


def test_optimizer_state_is_not_unpickled(config: TrainConfig) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(config.output) / "sprung",)  # pyright: ignore[reportReturnType]

    config = replace(config, optim=replace(config.optim, epochs=1))
    folder = train(config, quiet=True)
    torch.save(Trap(), folder / "last.optimizer.pt")
    with pytest.raises(ValueError, match="not the optimizer state"):
        train(replace(config, resume=True), quiet=True)
    assert not (folder / "sprung").exists()


def test_divergence_is_named(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "cross_entropy", lambda *a: torch.tensor(torch.nan, requires_grad=True))
    with pytest.raises(Diverged, match="the loss is nan in epoch 1"):
        train(config, quiet=True)


def test_every_layer_starts_at_the_asked_rate(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: dict[str, float] = {}
    calibrate = loop.calibrate

    def watched(*args: object, **kwargs: object) -> dict[str, float]:
        reached.update(calibrate(*args, **kwargs))  # pyright: ignore[reportArgumentType]
        return reached

    monkeypatch.setattr(loop, "calibrate", watched)
    model = ModelConfig(hidden=(64, 64))
    train(replace(config, model=model, optim=replace(config.optim, epochs=1)), quiet=True)
    assert set(reached) == {"layers.1", "layers.3"}
    assert all(0.05 < rate < 0.2 for rate in reached.values())


def test_run_facts_hold_what_a_result_depends_on(config: TrainConfig) -> None:
    facts = json.loads((train(config, quiet=True) / "run.json").read_text())
    assert facts["torch"] == torch.__version__
    assert math.prod(facts["sensor"]) == 24
    assert facts["classes"] == ["left", "right"]
    assert {"commit", "python", "device", "seed", "recipe_hash"} <= set(facts)


def test_overwriting_with_a_bad_setting_loses_nothing(config: TrainConfig) -> None:
    folder = train(config, quiet=True)
    evaluate_run(load_run(folder), "test")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for bad in (replace(config.model, block=0), replace(config.model, beta=2.0)):
        with pytest.raises(ValueError, match="expected"):
            train(replace(config, model=bad, overwrite=True), quiet=True)
        assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_overwriting_leaves_nothing_of_the_old_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(config, quiet=True)
    evaluate_run(load_run(folder), "test")
    (folder / "report.html").write_text("old")

    def stops(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Trainer, "_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, overwrite=True, seed=1), quiet=True)
    left = {path.name for path in folder.iterdir()}
    assert left == {"config.yaml", "run.json", "metrics.csv", "metrics.jsonl", "tensorboard"}
    assert len(list((folder / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("part", ["optim", "model", "seed"])
def test_resuming_with_other_settings_is_refused(config: TrainConfig, part: str) -> None:
    train(config, quiet=True)
    other = {
        "optim": replace(config.optim, epochs=9),
        "model": replace(config.model, beta=0.5),
        "seed": 7,
    }[part]
    with pytest.raises(ValueError, match=f"resume goes on with the settings of the run; {part}: expected"):
        train(replace(config, resume=True, **{part: other}), quiet=True)  # pyright: ignore[reportArgumentType]


def test_settings_that_only_back_propagation_has_are_refused(config: TrainConfig) -> None:
    optim = replace(config.optim, rate_weight=0.1)
    with pytest.raises(
        ValueError, match=r"optim\.rate_weight: belongs to back-propagation, expected none with 'ottt', got 0.1"
    ):
        train(replace(config, optim=optim, learning=LearningConfig(rule="ottt")), quiet=True)


def test_an_equilibrium_network_trains_is_read_back_and_is_no_packed_one(config: TrainConfig) -> None:
    model = replace(config.model, network="equilibrium")
    config = replace(
        config, model=model, learning=LearningConfig(rule="equilibrium"), optim=replace(config.optim, epochs=12)
    )
    run = load_run(train(config, quiet=True))
    assert evaluate_run(run, "test").accuracy > 0.9
    with pytest.raises(ValueError, match="EquilibriumNetwork"):
        pack_run(run)
    with pytest.raises(ValueError, match="EquilibriumNetwork"):
        train(replace(config, model=replace(model, network="dense"), output=config.output + "2"), quiet=True)


def test_stdp_learns_features_without_targets_and_is_read_back(config: TrainConfig) -> None:
    learning = LearningConfig(rule="stdp", options={"winners": 2, "theta_plus": 0.05, "p_plus": 0.05, "p_minus": 0.01})
    config = replace(config, learning=learning, optim=replace(config.optim, epochs=12))
    run = load_run(train(config, quiet=True))
    assert evaluate_run(run, "test").accuracy > 0.8
    assert run.network.layers[1].threshold.numel() == 16  # each neuron's own by now
    pack_run(run)
    assert simulate_run(run.folder, "test")["parity"]["equal"]
    with pytest.raises(ValueError, match=r"learning\.options: expected .*, got p_none"):
        train(replace(config, learning=LearningConfig(rule="stdp", options={"p_none": 1}), overwrite=True), quiet=True)
