"""Recordings in files of their own, one folder a class: N-MNIST, N-Caltech101, CIFAR10-DVS and others.

A recording's class is the name of the folder it lies in. Recordings are numbered in the natural order of their paths
below the dataset's folder ("img_2" before "img_10"), the same on every file system.

Coordinates stay as recorded, also where recordings differ in size: in N-Caltech101 each counts from its own upper left
corner and must fit the recipe's sensor. (tonic moves each recording so that its smallest x and y become 0, which
shifts a recording whose first columns saw nothing.)
"""

import re
from pathlib import Path

import numpy as np

from tbnn.data.events import Events, check_events
from tbnn.data.formats import read_file
from tbnn.data.recipe import Recipe
from tbnn.data.recordings import Recordings


def open_folders(recipe: Recipe, folder: Path, split: str, pattern: str) -> Recordings:
    """The recordings that match a glob ``pattern``; files whose name starts with a dot are passed over.

    Raises ``FileNotFoundError`` when nothing matches and ``ValueError`` when a folder is none of the recipe's classes,
    or a class has too few recordings (training: two).
    """
    layout = recipe.layout
    if layout is None:
        raise ValueError(f"{recipe.name}: expected a layout, got none")
    paths = {p.relative_to(folder).as_posix(): p for p in folder.glob(pattern) if not p.name.startswith(".")}
    names = sorted((name for name, path in paths.items() if path.is_file()), key=_natural)
    if not names:
        raise FileNotFoundError(f"{folder}: expected the {split} recordings of {recipe.name} at {pattern}, found none")
    classes = {name: label for label, name in enumerate(layout.folders or recipe.classes)}
    for name in names:
        if paths[name].parent.name not in classes:
            expected = f"one of {', '.join(classes)}" if len(classes) <= 30 else f"one of {len(classes)} classes"
            raise ValueError(f"{paths[name]}: expected a folder named after {expected}, got {paths[name].parent.name}")
    labels = np.array([classes[paths[name].parent.name] for name in names], np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    least = 2 if split == "train" else 1
    for name, label in classes.items():
        if counts[label] < least:
            raise ValueError(f"{folder}: expected {least} or more {split} recordings of {name}, got {counts[label]}")

    def read(i: int) -> Events:
        path = paths[names[i]]
        events = read_file(
            path,
            layout.reader,
            sensor=recipe.sensor,
            columns=layout.columns,
            time_scale=layout.time_scale,
            flip_y=layout.flip_y,
        )
        check_events(events, recipe.sensor, str(path))
        return events

    return Recordings(labels, np.arange(len(names)), names, read)


def _natural(name: str) -> tuple[list[tuple[str, int]], str]:
    """A key to sort by: runs of digits count as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [("", int(part)) if i % 2 else (part, 0) for i, part in enumerate(parts)], name
