"""Configurations from files and command lines, by jsonargparse: unknown keys and wrong types are errors."""

from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from tbnn.train.config import TrainConfig


class Parser(ArgumentParser):
    """A parser whose every complaint is a ``ValueError`` of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing a screenful of usage."""
        raise ValueError(" ".join(str(message).split())) from None


def add_train_arguments(parser: ArgumentParser) -> None:
    """Give a parser --config and every field of :class:`TrainConfig` as a dotted option."""
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(TrainConfig)


def train_config(parser: ArgumentParser, arguments: Namespace) -> TrainConfig:
    """The configuration that a parsed command line says."""
    fields: Any = parser.instantiate(arguments)
    return TrainConfig(**{name: fields[name] for name in TrainConfig.__dataclass_fields__})


def config_from_file(path: Path) -> TrainConfig:
    """Read a configuration. Raises ``ValueError`` naming the file and the key that is wrong."""
    parser = Parser()
    add_train_arguments(parser)
    try:
        return train_config(parser, parser.parse_args([f"--config={path}"]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
