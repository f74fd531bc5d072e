"""Training whose weights are one bit while they learn, from the configuration to the packed network."""

from dataclasses import replace
from pathlib import Path

import pytest

from tbnn.learning import LearningConfig
from tbnn.learning.binary import is_binary
from tbnn.train import TrainConfig, load_run, train
from tbnn.train.log import read_metrics
from tbnn.train.parse import config_from_file
from tbnn.train.work import evaluate_run, pack_run, simulate_run

OPTIONS = {
    "bop": {"gamma": 0.05, "threshold": 1e-3},
    "metaplastic": {"rate": 0.02},
    "states": {"depth": 3.0, "rate": 0.05},
}


@pytest.mark.parametrize("rule", ["bptt", "eprop"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_it_learns_to_tell_the_halves_and_packs(config: TrainConfig, kind: str, rule: str) -> None:
    optim = replace(config.optim, epochs=12, optimizer=kind, options=OPTIONS[kind])  # pyright: ignore[reportArgumentType]
    model = replace(config.model, estimator="ste", form="linear", target="trace")
    learning = LearningConfig(rule=rule)  # pyright: ignore[reportArgumentType]
    folder = train(replace(config, model=model, optim=optim, learning=learning), quiet=True)
    run = load_run(folder)
    assert is_binary(run.network)
    assert run.config.optim.options == OPTIONS[kind]
    assert evaluate_run(run, "test").accuracy > 0.85
    pack_run(run)
    assert simulate_run(folder, "test")["parity"]["equal"]


def test_a_resumed_run_goes_on(config: TrainConfig, tmp_path: Path) -> None:
    optim = replace(config.optim, optimizer="bop", options=OPTIONS["bop"], schedule="constant")
    model = replace(config.model, estimator="ste", form="linear")
    config = replace(config, model=model, optim=optim)
    whole = read_metrics(train(replace(config, output=str(tmp_path / "whole")), quiet=True))
    short = replace(config, optim=replace(optim, epochs=2), output=str(tmp_path / "cut"))
    folder = train(short, quiet=True)
    from tbnn.train.run import write_config

    longer = replace(short, optim=optim, resume=True)
    write_config(folder, replace(longer, resume=False))
    resumed = read_metrics(train(longer, quiet=True))
    assert [row["train_loss"] for row in resumed] == [row["train_loss"] for row in whole]


def test_what_makes_no_sense_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    for optim, match in (
        ({"optimizer": "bop", "options": {"rate": 0.1}}, "bop: expected options gamma, threshold, got rate"),
        ({"optimizer": "bop", "options": {"gamma": 1.5}}, "gamma"),
    ):
        with pytest.raises(ValueError, match=match):
            train(replace(config, optim=replace(config.optim, **optim)), quiet=True)
    with pytest.raises(ValueError, match=r"optim\.options: expected none for 'adamw', got \['gamma'\]"):
        replace(config.optim, options={"gamma": 0.1})
    learning = LearningConfig(rule="eprop", feedback="adaptive")
    with pytest.raises(
        ValueError, match=r"optim\.optimizer: expected 'adamw' for a rule that learns its feedback, got 'bop'"
    ):
        train(replace(config, optim=replace(config.optim, optimizer="bop"), learning=learning), quiet=True)
    file = tmp_path / "c.yaml"
    file.write_text("optim: {optimizer: bop, options: {threshold: 1e-4}}\n")
    assert config_from_file(file).optim.options == {"threshold": 1e-4}
