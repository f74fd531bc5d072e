"""Recipes: what a dataset is and how its recordings become bit frames, one TOML file each."""

import dataclasses
import hashlib
import json
import re
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tbnn.data.camera import EventCamera
from tbnn.data.digits import Scene
from tbnn.data.events import Sensor

SCHEMA = 1  # of the packed file; raise it too when the same recipe comes to give other frames
FORMATS = ("events-hdf5", "bits-hdf5", "digits-camera")
SPLITS = ("train", "validation", "test")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Split:
    """How recordings are held out, class by class.

    Attributes:
        validation: fraction of the training recordings, in (0, 1).
        seed: of the draw.
        test: fraction of all recordings, drawn first; 0 where the source has its own test set.
    """

    validation: float
    seed: int
    test: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise ValueError(f"validation: expected a fraction in (0, 1), got {self.validation}")
        if not 0 <= self.test < 1:
            raise ValueError(f"test: expected a fraction in [0, 1), got {self.test}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class Recipe:
    """A dataset, from its source to bit frames.

    Attributes:
        name: short, also the stem of the packed file.
        title, description, source, licence, citation: for people.
        format: what the source is: "events-hdf5" (events one after another with offsets), "bits-hdf5" (0/1 arrays
            recording x step x channel) or "digits-camera" (made here: digits through the simulated event camera).
        classes: their names, in order of the label.
        sensor: (channels, height, width) of one frame.
        bin_width: duration of a frame in time units.
        steps: frames in a recording, T.
        split: what is held out.
        time_unit: "us".
        file: the source, a path below the source folder; empty when made here.
        sha256: of that file in hex; empty: not checked.
        stack: bits sources only: this many steps of the source become the channels of one frame, earliest first.
        source_step: bits sources only: duration of a step of the source in time units.
        camera, scene: digits only.

    Raises:
        ValueError: on a value outside its range or that does not fit the others.
    """

    name: str
    title: str
    description: str
    format: str
    source: str
    licence: str
    citation: str
    classes: tuple[str, ...]
    sensor: Sensor
    bin_width: int
    steps: int
    split: Split
    time_unit: str = "us"
    file: str = ""
    sha256: str = ""
    stack: int = 1
    source_step: int = 0
    camera: EventCamera | None = None
    scene: Scene | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name):
            raise ValueError(f"name: expected letters, digits, '_' and '-', got {self.name!r}")
        for key in ("title", "source", "licence"):
            if not getattr(self, key).strip():
                raise ValueError(f"{key}: expected some text, got {getattr(self, key)!r}")
        if self.format not in FORMATS:
            raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.time_unit != "us":
            raise ValueError(f"time_unit: expected 'us', got {self.time_unit!r}")
        numbers = {"bin_width": self.bin_width, "steps": self.steps, "stack": self.stack}
        for key, value in {**numbers, **{f"sensor.{k}": v for k, v in self.sensor._asdict().items()}}.items():
            if value < 1:
                raise ValueError(f"{key}: expected at least 1, got {value}")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: expected two or more different names, got {list(self.classes)}")
        if self.sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256: expected 64 lower-case hexadecimal digits, got {self.sha256!r}")
        self._check_format()

    def _check_format(self) -> None:
        """The rules that hold between the keys of one format."""
        made_here = self.format == "digits-camera"
        path = PurePosixPath(self.file)
        if made_here and (self.file or self.sha256):
            raise ValueError(f"file: expected none for {self.format}, got {self.file!r}")
        if not made_here and (not self.file or path.is_absolute() or ".." in path.parts or "\\" in self.file):
            raise ValueError(f"file: expected a relative path below the source folder, got {self.file!r}")
        if made_here != (self.split.test > 0):
            expected = "a fraction above 0" if made_here else "0, the source has a test set"
            raise ValueError(f"split.test: expected {expected}, got {self.split.test}")
        for key, table in (("camera", self.camera), ("scene", self.scene)):
            if made_here != (table is not None):
                raise ValueError(f"{key}: expected {'a' if made_here else 'no'} table for {self.format}")
        if self.format == "bits-hdf5":
            if self.sensor.channels % self.stack:
                raise ValueError(f"stack: expected a divisor of {self.sensor.channels} channels, got {self.stack}")
            if self.bin_width != self.source_step * self.stack:
                raise ValueError(
                    f"bin_width: expected source_step * stack = {self.source_step * self.stack}, got {self.bin_width}"
                )
        elif self.stack != 1 or self.source_step != 0:
            raise ValueError(f"stack, source_step: expected none for {self.format}")
        if self.scene is not None and self.scene.duration > self.steps * self.bin_width:
            raise ValueError(
                f"steps: expected frames for {self.scene.duration} us, got {self.steps} of {self.bin_width} us"
            )


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256, in hex, over the version of the packed file and all fields of the recipe."""
    return json_hash(recipe_json(recipe))


def json_hash(text: str) -> str:
    """:func:`recipe_hash` of a recipe given as its :func:`recipe_json`."""
    return hashlib.sha256(f"{SCHEMA} {text}".encode()).hexdigest()


def recipe_json(recipe: Recipe) -> str:
    """All fields as JSON with sorted keys: equal recipes give equal text."""
    fields = dataclasses.asdict(recipe)
    fields["sensor"] = recipe.sensor._asdict()
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def recipes_folder() -> Path:
    """Where the shipped recipes are: inside the package, or beside it in a checkout of the repository."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "_recipes", package.parent / "datasets")
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"expected the dataset recipes in {folders[0]} or {folders[1]}, found neither folder")


def available() -> dict[str, Recipe]:
    """The shipped recipes by name, in alphabetical order."""
    recipes = [_read(path) for path in sorted(recipes_folder().glob("*.toml"))]
    return {recipe.name: recipe for recipe in recipes}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a shipped recipe by its name, or any other by the path of its .toml file.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), an unknown or missing key, a wrong type or
            an impossible value; the message names file and key, what was got and what was expected.
        FileNotFoundError: for a path that leads nowhere.

    >>> load_recipe("digits").steps
    20
    """
    if str(name_or_path).endswith(".toml"):
        return _read(Path(name_or_path))
    known = sorted(path.stem for path in recipes_folder().glob("*.toml"))
    if str(name_or_path) not in known:
        raise ValueError(
            f"unknown dataset {str(name_or_path)!r}: expected one of {', '.join(known)}, or the path of a .toml recipe"
        )
    return _read(recipes_folder() / f"{name_or_path}.toml")


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


def _value(hint: Any, value: object, key: str) -> object:
    """``value`` as the type that the annotation ``hint`` asks for; integers pass as floats, nothing else is changed."""
    nested = [kind for kind in (hint, *typing.get_args(hint)) if kind in (Sensor, Split, EventCamera, Scene)]
    if nested and isinstance(value, dict):
        return _build(nested[0], value, f"{key}.")
    if hint == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if hint in (int, float, str) and type(value) is hint:
        return value
    if hint is float and type(value) is int:
        return float(value)
    expected = "a table" if nested else {int: "an integer", float: "a number", str: "text"}.get(hint, "a list of text")
    raise ValueError(f"{key}: expected {expected}, got {value!r}")
