"""Configurations: what is wrong is said in one line."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tbnn.surrogate import SHAPES
from tbnn.train import DataConfig, ModelConfig, OptimConfig, TrainConfig
from tbnn.train.build import build_network
from tbnn.train.config import SURROGATES, WITHOUT_WIDTH
from tbnn.train.parse import Parser, add_arguments, config_from_file, configured


def parsed(*arguments: str) -> TrainConfig:
    parser = Parser()
    add_arguments(parser, TrainConfig)
    return configured(parser, parser.parse_args(list(arguments)), TrainConfig)


def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model:\n  hidden: [3, 5]\n  beta: 0.5\noptim:\n  epochs: 7\nseed: 2\n")
    config = parsed(f"--config={path}", "--model.beta", "0.25", "--seed", "9")
    assert config.model == ModelConfig(hidden=(3, 5), beta=0.25)
    assert config.optim == OptimConfig(epochs=7)
    assert config.seed == 9


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model:\n  hiden: [3]\n", "hiden"),
        ("optim:\n  epochs: many\n", "epochs"),
        ("model:\n  hidden: []\n", "model.hidden: expected at least one layer"),
        ("model:\n  target: hard\n", "target"),
        ("optim:\n  learning_rate: -1\n", "optim.learning_rate: expected a number > 0, got -1"),
        ("data:\n  augment: {drop: 1.5}\n", r"drop: expected .*got 1.5"),
        ("optim: [1, 2\n", "c.yaml"),
        ("resume: true\noverwrite: true\n", "at most one"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as error:
        config_from_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"beta": 1.5}, r"beta: expected values in \[0, 1\]"),
        ({"target": "trace", "reset_mechanism": "zero"}, "target='trace' holds for reset 'subtract' only"),
        ({"emit": "denoised", "gradient": "surrogate"}, "emit='denoised' needs gradient='ddt'"),
        ({"lam": 0.0}, "lam"),
        ({"surrogate_width": -1.0}, "alpha: expected a finite number > 0"),
        ({"block": 0}, "block"),
        ({"surrogate": "signed"}, r"surrogate: .* expected one with a soft spike, got Signed\(threshold=1\)"),
        (
            {"surrogate": "heaviside", "gradient": "surrogate", "surrogate_width": 2.0},
            "model.surrogate_width: expected none for 'heaviside', got 2",
        ),
    ],
)
def test_impossible_networks_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_network(ModelConfig(**settings), (1, 1, 8), 2)  # pyright: ignore[reportArgumentType]


def test_every_surrogate_is_a_choice_and_its_width_the_parameter() -> None:
    assert get_args(get_type_hints(ModelConfig)["surrogate"]) == tuple(SURROGATES)
    assert {type(make()) for make in SURROGATES.values()} == set(SHAPES)
    for name in SURROGATES:
        plain = parsed("--model.surrogate", name, "--model.gradient", "surrogate").model
        assert plain.spike_surrogate() == SURROGATES[name]()
        if name not in WITHOUT_WIDTH:
            wide = parsed("--model.surrogate", name, "--model.surrogate_width", "3.5").model.spike_surrogate()
            assert (type(wide), wide.parameter) == (type(SURROGATES[name]()), 3.5)
            assert wide.numbers[1:] == SURROGATES[name]().numbers[1:]


def test_defaults_are_valid() -> None:
    assert parsed() == TrainConfig(data=DataConfig(), model=ModelConfig(), optim=OptimConfig())
