"""DVS Gesture as IBM released it (A. Amir et al., CVPR 2017, and the README of the release).

``trials_to_train.txt`` and ``trials_to_test.txt`` name files such as ``user01_led.aedat`` (AEDAT 3.1), beside which
lies ``user01_led_labels.csv`` with the columns ``class,startTime_usec,endTime_usec``: each row is one recording, the
events with start <= t < end. Rows may overlap by their ends: ``user22_led_labels.csv`` of the release does.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from tbnn.data.events import Events, check_events
from tbnn.data.formats.aedat import read_aedat3
from tbnn.data.recipe import Recipe
from tbnn.data.recordings import Recordings
from tbnn.data.sources.common import check_labels

_HEADER = ["class", "startTime_usec", "endTime_usec"]
_TRIAL = re.compile(r"user([0-9]{1,6})_[A-Za-z0-9_]+\.aedat")


def open_dvsgesture(recipe: Recipe, folder: Path, split: str, name: str) -> Recordings:
    """The recordings of the trials listed in the file ``name``; users are the groups, times count from a row's start.

    The last trial read is kept, so that reading in order decodes each file once. Raises ``FileNotFoundError`` for a
    missing list, table or trial and ``ValueError``, naming file and row, for what they hold wrong; reading a recording
    raises it for a damaged trial and a row without events.
    """
    listing = folder / name
    rows: list[tuple[Path, int, int, int]] = []  # file, number of the row, start and end in microseconds
    labels: list[int] = []
    groups: list[int] = []
    for line, trial in enumerate(_lines(listing), 1):
        match = _TRIAL.fullmatch(trial)
        if not match:
            raise ValueError(f"{listing}: line {line}: expected a name such as user01_led.aedat, got {trial!r}")
        path = listing.parent / trial
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected this trial, which {listing.name} lists, found no such file")
        for row, (label, start, end) in enumerate(_read_table(path, len(recipe.classes)), 1):
            rows.append((path, row, start, end))
            labels.append(label)
            groups.append(int(match[1]))

    @lru_cache(maxsize=1)
    def decode(path: Path) -> Events:
        events = read_aedat3(path, from_zero=False)  # the tables tell times of the camera's clock
        check_events(events, recipe.sensor, str(path))
        return events

    def read(i: int) -> Events:
        path, row, start, end = rows[i]
        trial = decode(path)
        part = slice(*np.searchsorted(trial.t, (start, end)))
        if part.start == part.stop:
            raise ValueError(f"{path}: row {row}: expected events from {start} to {end} us, got none")
        return Events(trial.x[part], trial.y[part], trial.t[part].astype(np.int64) - start, trial.p[part])

    checked = check_labels(np.array(labels, np.int64), len(recipe.classes), str(listing))
    names = [f"{path.relative_to(folder).as_posix()}: row {row}" for path, row, _, _ in rows]
    return Recordings(checked, np.arange(len(rows)), names, read, np.array(groups, np.int64))


def _read_table(trial: Path, classes: int) -> list[tuple[int, int, int]]:
    """Label (from 0), start and end of each row of a trial's table."""
    path = trial.with_name(f"{trial.stem}_labels.csv")
    header, *lines = _lines(path) or [""]
    if header.split(",") != _HEADER:
        raise ValueError(f"{path}: expected the columns {','.join(_HEADER)}, got {header!r}")
    rows: list[tuple[int, int, int]] = []
    for row, line in enumerate(lines, 1):
        fields = line.split(",")
        if len(fields) != 3 or not all(re.fullmatch(r" *[0-9]{1,15} *", field) for field in fields):
            raise ValueError(f"{path}: row {row}: expected three whole numbers, got {line!r}")
        label, start, end = (int(field) for field in fields)
        if not 1 <= label <= classes:
            raise ValueError(f"{path}: row {row}: expected a class of 1..{classes}, got {label}")
        if start >= end:
            raise ValueError(f"{path}: row {row}: expected a start before the end {end}, got {start}")
        if rows and start < rows[-1][1]:
            raise ValueError(f"{path}: row {row}: expected rows in time order, got {start} after {rows[-1][1]}")
        rows.append((label - 1, start, end))
    return rows


def _lines(path: Path) -> list[str]:
    """The lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text, got bytes that are not UTF-8 ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
