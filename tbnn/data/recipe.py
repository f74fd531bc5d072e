"""Recipes: what a dataset is, where it comes from and how its recordings become bit frames."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tbnn.data.adding import Adding
from tbnn.data.camera import EventCamera
from tbnn.data.delayed_xor import DelayedXor
from tbnn.data.digits import Scene
from tbnn.data.digits_rows import DigitsRows
from tbnn.data.events import Sensor
from tbnn.data.evidence import Evidence
from tbnn.data.frames.spec import FrameSpec
from tbnn.data.randman import Randman
from tbnn.data.shapes import MovingShapes

SCHEMA = 2  # of the packed file; raise it too when the same recipe comes to give other frames
SPLITS = ("train", "validation", "test")
GENERATED = {  # the tables that each needs
    "digits-camera": ("camera", "scene"),
    "digits-rows": ("digits_rows",),
    "moving-shapes": ("camera", "shapes"),
    "randman": ("randman",),
    "delayed-xor": ("delayed_xor",),
    "adding": ("adding",),
    "evidence": ("evidence",),
}
_TABLES = ("camera", "scene", "shapes", "randman", "delayed_xor", "adding", "digits_rows", "evidence")
_LATER = _TABLES[4:]  # left out of the hash where there is none: recipes from before keep their packed files
GIVEN = "recordings"  # handed to pack_recordings() by a program
FILES = ("events-hdf5", "bits-hdf5", "spikes-hdf5", "ntidigits-hdf5", "folders", "dvsgesture", "smnist")
READERS = ("bin", "aedat2", "aedat3", "aedat4", "dat", "evt2", "evt3", "npy", "mat")


@dataclass(frozen=True)
class Split:
    """How recordings are held out, class by class.

    Attributes:
        validation: fraction of the training recordings, in (0, 1); 0 where the source has its own validation set.
        seed: of the draw.
        test: fraction of all recordings, drawn first; 0 where the source has its own test set.
        rule: "random", drawn with ``seed``; or "hash": in each class the recordings whose SHA-256 of
            "seed/name of the recording" is lowest, the same on every machine for ever.
        by_group: hold out whole groups (people, speakers) of the source instead of single recordings.
    """

    validation: float
    seed: int
    test: float = 0.0
    rule: str = "random"
    by_group: bool = False

    def __post_init__(self) -> None:
        for key in ("validation", "test"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key}: expected a fraction in [0, 1), got {getattr(self, key)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if self.rule not in ("random", "hash"):
            raise ValueError(f"rule: expected random or hash, got {self.rule!r}")


@dataclass(frozen=True)
class SourceFile:
    """One file to have: where it lies below the dataset's folder, where it comes from, and how to know it is whole.

    Attributes:
        path: below the dataset's folder.
        urls: the source and its mirrors, tried in order; none: to be fetched by hand.
        sha256, md5: in hex; the stronger that is known.
        bytes: its size, 0 if not known.
        unpacks: what unpacking the archive gives, a path below the dataset's folder; empty: not an archive.
    """

    path: str
    urls: tuple[str, ...] = ()
    sha256: str = ""
    md5: str = ""
    bytes: int = 0
    unpacks: str = ""

    def __post_init__(self) -> None:
        for key in ("path", "unpacks"):
            _check_relative(key, getattr(self, key), empty=key == "unpacks")
        for key, digits in (("sha256", 64), ("md5", 32)):
            value = getattr(self, key)
            if value and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
                raise ValueError(f"{key}: expected {digits} lower-case hexadecimal digits, got {value!r}")
        if self.bytes < 0:
            raise ValueError(f"bytes: expected 0 or more, got {self.bytes}")
        for url in self.urls:
            if not re.match(r"(https?|ftp)://\S+$", url):
                raise ValueError(f"urls: expected http, https or ftp addresses, got {url!r}")


@dataclass(frozen=True)
class Layout:
    """Where the recordings lie below the dataset's folder, and how they are read.

    Attributes:
        train, validation, test: a file or a glob pattern; empty: the source has no such split.
        reader: of format "folders": the format of one recording's file, one of ``READERS``.
        folders: of format "folders": the names of the folders that hold the classes, in their order; default: ``classes``.
        columns: "npy" arrays without field names: what each column is, such as "xypt".
        time_scale: microseconds in a unit of the source's times.
        flip_y: rows are counted from below.
    """

    train: str
    test: str = ""
    validation: str = ""
    reader: str = ""
    folders: tuple[str, ...] = ()
    columns: str = ""
    time_scale: float = 1.0
    flip_y: bool = False

    def __post_init__(self) -> None:
        for key in SPLITS:
            _check_relative(key, getattr(self, key), empty=key != "train")
        if self.reader and self.reader not in READERS:
            raise ValueError(f"reader: expected one of {', '.join(READERS)}, got {self.reader!r}")
        if self.columns and sorted(self.columns) not in (list("ptxy"), list("ptx"), list("tx")):
            raise ValueError(f"columns: expected the letters x, y, p and t in some order, got {self.columns!r}")
        if not 0 < self.time_scale < float("inf"):
            raise ValueError(f"time_scale: expected a positive number, got {self.time_scale}")


@dataclass(frozen=True)
class Recipe:
    """A dataset, from its source to bit frames.

    Attributes:
        name: short, also the stem of the packed file.
        title, description, source, licence, citation: for people.
        format: what the source is, one of ``FILES`` (see :mod:`tbnn.data.sources`) or of ``GENERATED``.
        classes: their names, in order of the label.
        sensor: (channels, height, width) of the recordings.
        frames: how events become frames.
        split: what is held out.
        files: what to have; none for a generated dataset.
        layout: where the recordings lie in them.
        manual: what to do by hand where no download works.
        stack: "bits-hdf5" only: this many steps of the source become the channels of one frame, earliest first.
        source_step: "bits-hdf5" only: duration of a step of the source in microseconds.
        camera, scene, shapes, randman, delayed_xor, adding, digits_rows, evidence: of generated datasets.

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
    frames: FrameSpec
    split: Split
    files: tuple[SourceFile, ...] = ()
    layout: Layout | None = None
    manual: str = ""
    stack: int = 1
    source_step: int = 0
    camera: EventCamera | None = None
    scene: Scene | None = None
    shapes: MovingShapes | None = None
    randman: Randman | None = None
    delayed_xor: DelayedXor | None = None
    adding: Adding | None = None
    digits_rows: DigitsRows | None = None
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name):
            raise ValueError(f"name: expected letters, digits, '_' and '-', got {self.name!r}")
        for key in ("title", "source", "licence"):
            if not getattr(self, key).strip():
                raise ValueError(f"{key}: expected some text, got {getattr(self, key)!r}")
        if self.format not in (*FILES, *GENERATED, GIVEN):
            raise ValueError(f"format: expected one of {', '.join((*FILES, *GENERATED))}, got {self.format!r}")
        for key, value in {"stack": self.stack, **{f"sensor.{k}": v for k, v in self.sensor._asdict().items()}}.items():
            if value < 1:
                raise ValueError(f"{key}: expected at least 1, got {value}")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: expected two or more different names, got {list(self.classes)}")
        self.frames.shape(self.sensor)  # raises where they do not fit
        self._check_source()
        self._check_bits()
        for made in (self.scene, self.delayed_xor, self.adding, self.digits_rows, self.evidence):
            if made is not None and self.frames.bin_width and made.duration > self.duration:
                raise ValueError(f"frames.steps: expected frames for {made.duration} us, got {self.duration} us")

    @property
    def frame_sensor(self) -> Sensor:
        """The shape (C, H, W) of one frame."""
        channels, height, width = self.frames.shape(self.sensor)
        return Sensor(channels * self.stack, height, width)

    @property
    def duration(self) -> int:
        """Microseconds that the frames span; 0 where a recording's own length decides."""
        return self.frames.stride * (self.frames.frames - 1) + self.frames.bin_width if self.frames.bin_width else 0

    def _check_source(self) -> None:
        """The rules that hold between the format and where the recordings come from."""
        if self.format == GIVEN:
            return
        generated = self.format in GENERATED
        if generated != (self.layout is None) or (generated and self.files):
            raise ValueError(f"layout, files: expected {'none' if generated else 'a layout'} for {self.format}")
        if (self.format == "folders") != bool(self.layout and self.layout.reader):
            raise ValueError(f"layout.reader: expected it with format folders only, got format {self.format}")
        if self.layout and self.layout.folders and len(self.layout.folders) != len(self.classes):
            raise ValueError(f"layout.folders: expected {len(self.classes)} names, one a class")
        for split in ("test", "validation"):
            own = bool(self.layout and getattr(self.layout, split))
            if own != (getattr(self.split, split) == 0):
                expected = "0, the source has its own set" if own else "a fraction above 0"
                raise ValueError(f"split.{split}: expected {expected}, got {getattr(self.split, split)}")
        for key in _TABLES:
            needed = key in GENERATED.get(self.format, ())
            if needed != (getattr(self, key) is not None):
                raise ValueError(f"{key}: expected {'a' if needed else 'no'} table for {self.format}")

    def _check_bits(self) -> None:
        """Recordings that are 0/1 arrays already: only stacked."""
        if self.format != "bits-hdf5":
            if self.stack != 1 or self.source_step != 0:
                raise ValueError(f"stack, source_step: expected none for {self.format}")
            return
        plain = FrameSpec(bin_width=self.source_step * self.stack or None, steps=self.frames.steps)
        if self.frames != plain:
            raise ValueError(f"frames: expected bin_width = source_step * stack and steps alone, got {self.frames}")


def _check_relative(key: str, value: str, *, empty: bool) -> None:
    path = PurePosixPath(value)
    if (not value and not empty) or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError(f"{key}: expected a relative path below the dataset's folder, got {value!r}")


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256, in hex, over the version of the packed file and all fields of the recipe: data, frames, split."""
    return json_hash(recipe_json(recipe))


def json_hash(text: str) -> str:
    """:func:`recipe_hash` of a recipe given as its :func:`recipe_json`."""
    return hashlib.sha256(f"{SCHEMA} {text}".encode()).hexdigest()


def recipe_json(recipe: Recipe) -> str:
    """All fields as JSON with sorted keys: equal recipes give equal text."""
    fields: dict[str, Any] = dataclasses.asdict(recipe)
    fields = {key: value for key, value in fields.items() if value is not None or key not in _LATER}
    fields["sensor"] = recipe.sensor._asdict()
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
