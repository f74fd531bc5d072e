"""Configurations from files and command lines, by jsonargparse: unknown keys and wrong types are errors."""

from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser, Namespace

from tbnn.train.config import TrainConfig

C = TypeVar("C")


class Parser(ArgumentParser):
    """A parser whose every complaint is a ``ValueError`` of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing a screenful of usage."""
        raise ValueError(" ".join(str(message).split())) from None


def add_arguments(parser: ArgumentParser, kind: type) -> None:
    """Give a parser --config and every field of a configuration, a dataclass, as a dotted option."""
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(kind)


def configured(parser: ArgumentParser, arguments: Namespace, kind: type[C]) -> C:
    """The configuration that a parsed command line says."""
    fields: Any = parser.instantiate(arguments)
    names: Any = kind.__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
    return kind(**{name: fields[name] for name in names})


def config_from_file(path: Path) -> TrainConfig:
    """Read a configuration. Raises ``ValueError`` naming the file and the key that is wrong."""
    parser = Parser()
    add_arguments(parser, TrainConfig)
    try:
        return configured(parser, parser.parse_args([f"--config={path}"]), TrainConfig)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
