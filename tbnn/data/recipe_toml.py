"""Reading recipes: strict TOML, the shipped ones by name, any other by its path."""

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any, TypeVar

from tbnn.data.recipe import Recipe

_T = TypeVar("_T")
_SCALARS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def recipes_folder() -> Path:
    """Where the shipped recipes are: inside the package, or beside it in a checkout of the repository."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "_recipes", package.parent / "datasets")
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"expected the dataset recipes in {folders[0]} or {folders[1]}, found neither folder")


def available(folder: Path | None = None) -> dict[str, Recipe]:
    """The recipes of a folder (default: the shipped ones) by name, in alphabetical order.

    Raises ``ValueError`` when two files hold recipes of one name.
    """
    recipes: dict[str, Recipe] = {}
    paths: dict[str, Path] = {}
    for path in sorted((folder or recipes_folder()).glob("*.toml")):
        recipe = _read(path)
        if recipe.name in recipes:
            raise ValueError(f"{path}: name: expected one of its own, got {recipe.name!r} as in {paths[recipe.name]}")
        recipes[recipe.name], paths[recipe.name] = recipe, path
    return dict(sorted(recipes.items()))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a shipped recipe by its name, or any other by the path of its .toml file.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), an unknown or missing key, a wrong type or
            an impossible value, or a recipe of your own that bears the name of a different shipped one; the message
            names file and key, what was got and what was expected.
        FileNotFoundError: for a path that leads nowhere.

    >>> load_recipe("digits").frames.steps
    20
    """
    shipped = {path.stem: path for path in sorted(recipes_folder().glob("*.toml"))}
    if not str(name_or_path).endswith(".toml"):
        if str(name_or_path) not in shipped:
            raise ValueError(
                f"unknown dataset {str(name_or_path)!r}: expected one of {', '.join(shipped)}, or the path of a .toml recipe"
            )
        return _read(shipped[str(name_or_path)])
    path = Path(name_or_path)
    recipe = _read(path)
    if recipe.name in shipped and _read(shipped[recipe.name]) != recipe:
        raise ValueError(f"{path}: name: expected one of its own, got {recipe.name!r}, the name of a shipped recipe")
    return recipe


def _read(path: Path) -> Recipe:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a recipe, found no such file")
    try:
        return _build(Recipe, tomllib.loads(path.read_text(encoding="utf-8")), "")
    except ValueError as error:  # not UTF-8, not TOML or not a recipe
        raise ValueError(f"{path}: {error}") from error


def _build(kind: type[_T], table: dict[str, Any], prefix: str) -> _T:
    """Make a ``kind`` (dataclass or NamedTuple) of a TOML table; ``prefix`` is where the table stands ("camera.")."""
    hints = typing.get_type_hints(kind)
    unknown = [key for key in table if key not in hints]
    if unknown:
        raise ValueError(f"{prefix}{unknown[0]}: unknown key; expected one of {', '.join(hints)}")
    if dataclasses.is_dataclass(kind):
        optional = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    else:
        optional = set[str]()
    missing = [key for key in hints if key not in table and key not in optional]
    if missing:
        raise ValueError(f"{prefix}{missing[0]}: expected this key, found it missing")
    values = {key: _value(hints[key], value, prefix + key) for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def _is_table(hint: Any) -> bool:
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hasattr(hint, "_fields"))


def _value(hint: Any, value: object, key: str) -> Any:
    """``value`` as the type that the annotation ``hint`` asks for; integers pass as floats, nothing else is changed."""
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    if typing.get_origin(hint) is tuple:
        return _tuple(typing.get_args(hint), value, key)
    (kind,) = kinds  # "X" or "X | None"
    if typing.get_origin(kind) is tuple:
        return _tuple(typing.get_args(kind), value, key)
    if _is_table(kind):
        if isinstance(value, dict):
            return _build(kind, value, f"{key}.")
        raise ValueError(f"{key}: expected a table, got {value!r}")
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise ValueError(f"{key}: expected {_SCALARS[kind]}, got {value!r}")


def _tuple(items: tuple[Any, ...], value: object, key: str) -> tuple[Any, ...]:
    """A list as ``tuple[X, ...]`` or as ``tuple[X, Y]``."""
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list, got {value!r}")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    elif len(items) != len(value):
        raise ValueError(f"{key}: expected a list of {len(items)}, got {value!r}")
    return tuple(_value(item, v, f"{key}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))
