"""From a recipe to a packed file."""

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tbnn.data.fetch import dataset_folder, fetch
from tbnn.data.frames import events_to_words
from tbnn.data.recipe import GENERATED, GIVEN, SCHEMA, Recipe, recipe_hash
from tbnn.data.recipe_toml import load_recipe
from tbnn.data.recordings import Recordings
from tbnn.data.split import hold_out
from tbnn.data.store import PackedRecording, PackedSplit, read_info, write_store

log = logging.getLogger(__name__)

_TELL_EVERY = 5  # seconds


def make(
    name: str | Path,
    *,
    source: str | Path | None = None,
    cache: str | Path | None = None,
    force: bool = False,
    download: bool = True,
    compression: str = "none",
    **frames: Any,
) -> Path:
    """Make the packed file of a dataset, unless it is there already, and return its path.

    Several processes may ask for one file at once: one writes it, the others wait and use it.

    Args:
        name: a shipped recipe, or the path of a .toml recipe.
        source: folder of the recordings, in which (or in whose subfolder ``name``) the recipe's files lie or are
            downloaded to; default: ``sources/name`` in the cache folder. Not needed for generated datasets.
        cache: folder of the packed files; default: tbnn's folder in the user's cache.
        force: make the file again even if it is there.
        download: fetch what is missing, where the recipe has an address.
        compression: "none", to be mapped into memory, or "gzip", for small disks and small sets.
        **frames: settings of :class:`tbnn.data.FrameSpec` other than the recipe's: ``bins=20, size=64`` for one.

    Returns:
        ``<cache>/<name>-<first 12 digits of the recipe's hash>.h5``; the hash covers data, frames and split.

    Raises:
        FileNotFoundError: recordings are neither on disk nor can they be downloaded; the message says what to put where.
        ValueError: in the recipe or in the recordings something is wrong; nothing is written.
        OSError: the disk has no room.
    """
    from filelock import FileLock

    recipe = with_frames(load_recipe(name), **frames)
    folder = default_cache() if cache is None else Path(cache)
    recordings = folder / "sources" / recipe.name if source is None else dataset_folder(recipe, Path(source))
    digest = recipe_hash(recipe)
    path = folder / f"{recipe.name}-{digest[:12]}.h5"
    if not force and _is_valid(path, digest) and not _changed(recipe, path, recordings):
        return path
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f".{path.name}.lock"
    before = path.stat().st_ino if path.exists() else None
    try:
        with FileLock(lock):
            made_meanwhile = path.exists() and path.stat().st_ino != before
            if (force and not made_meanwhile) or not _is_valid(path, digest) or _changed(recipe, path, recordings):
                _announce(path, recipe)
                _write(recipe, path, recordings, download, compression)
    finally:
        if not path.exists():
            _leave_nothing(folder, lock, existed)
    return path


def pack_recordings(
    path: str | Path, splits: Mapping[str, Recordings], recipe: Recipe, *, compression: str = "none"
) -> Path:
    """Write recordings that a program has (from :func:`tbnn.data.tonic.tonic_recordings`, say) into a packed file.

    Args:
        path: the file to write.
        splits: "train", and "test" and "validation" unless the recipe's ``split`` draws them.
        recipe: of format "recordings": names, sensor, frames, split; it needs no files and no layout.
        compression: as for :func:`make`.

    Raises:
        ValueError: splits or recordings that do not fit the recipe.
    """
    if recipe.format != GIVEN:
        raise ValueError(f"format: expected {GIVEN!r}, got {recipe.format!r}")
    packed = {name: _packed(recordings, recipe) for name, recordings in _split(dict(splits), recipe).items()}
    write_store(Path(path), recipe, packed, compression=compression)
    return Path(path)


def with_frames(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other frames: settings of :class:`FrameSpec`; ``size`` may be one number. None changes nothing."""
    changes = {key: value for key, value in changes.items() if value is not None}
    if not changes:
        return recipe
    if isinstance(changes.get("size"), int):
        changes["size"] = (changes["size"], changes["size"])
    known = {field.name for field in dataclasses.fields(recipe.frames)}
    for key in changes.keys() - known:
        raise TypeError(f"{key}: unknown setting; expected one of {', '.join(sorted(known))}")
    try:
        return dataclasses.replace(recipe, frames=recipe.frames.replace(**changes))
    except ValueError as error:
        raise ValueError(f"{recipe.name}: {error}") from error


def default_cache() -> Path:
    """tbnn's folder in the user's cache."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("tbnn"))


def _is_valid(path: Path, digest: str) -> bool:
    """Whether ``path`` is a whole packed file of that recipe; a damaged one in the cache is simply made again."""
    try:
        return read_info(path).recipe_hash == digest
    except (FileNotFoundError, ValueError):
        return False


def _changed(recipe: Recipe, path: Path, recordings: Path) -> bool:
    """Whether recordings that no checksum pins are other ones than those the file was made of."""
    if recipe.format in GENERATED or _is_pinned(recipe):
        return False
    now = _fingerprint(recipe, recordings)
    changed = now not in ("", read_info(path).fingerprint)
    if changed:
        log.info("%s: the recordings have changed; it is made again", path)
    return changed


def _is_pinned(recipe: Recipe) -> bool:
    """Whether checksums in the recipe say what the recordings are."""
    return bool(recipe.files) and all(file.sha256 or file.md5 for file in recipe.files)


def _fingerprint(recipe: Recipe, folder: Path) -> str:
    """SHA-256 over name, size and time of every file that the layout names; "" where there is none."""
    layout = recipe.layout
    if layout is None or _is_pinned(recipe):
        return ""
    patterns = {pattern for pattern in (layout.train, layout.validation, layout.test) if pattern}
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    facts = [f"{p.relative_to(folder).as_posix()} {p.stat().st_size} {p.stat().st_mtime_ns}\n" for p in paths]
    return hashlib.sha256("".join(facts).encode()).hexdigest() if facts else ""


def _announce(path: Path, recipe: Recipe) -> None:
    """Say why a file is made, where one would expect it to be there; clear away what killed writers left."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)
    for other in sorted(path.parent.glob(f"{recipe.name}-*.h5")):
        try:
            read_info(other)
        except (FileNotFoundError, ValueError) as error:
            what = "is damaged or of an older schema" if other == path else f"cannot be used with schema {SCHEMA}"
            log.info("%s %s; %s is made (%s)", other, what, path.name, str(error).split(": ", 1)[-1])


def _leave_nothing(folder: Path, lock: Path, existed: bool) -> None:
    """After a failure: no lock, and no folder that was made for nothing."""
    lock.unlink(missing_ok=True)
    if not existed and not any(folder.iterdir()):
        folder.rmdir()


def _write(recipe: Recipe, path: Path, recordings: Path, download: bool, compression: str) -> None:
    """Write the packed file of a recipe."""
    if recipe.format in GENERATED:
        splits, fingerprint = {"train": _generate(recipe)}, ""
    else:
        splits, fingerprint = _open(recipe, recordings, download)
    packed = {name: _packed(split, recipe) for name, split in _split(splits, recipe).items()}
    progress = _Progress(path.name, sum(len(split.labels) for split in packed.values()))
    write_store(path, recipe, packed, compression=compression, fingerprint=fingerprint, progress=progress)


class _Progress:
    """Tells at the start, and then every few seconds, how many recordings are packed."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.begun = self.told = time.monotonic()
        log.info("%s: packing %s recordings", name, f"{total:,}")

    def __call__(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.told > _TELL_EVERY:
            self.told = now
            left = (now - self.begun) / self.done * (self.total - self.done)
            log.info("%s: %s of %s, %.0f s left", self.name, f"{self.done:,}", f"{self.total:,}", left)


def _split(splits: dict[str, Recordings], recipe: Recipe) -> dict[str, Recordings]:
    """With the test and validation recordings that the recipe draws."""
    rng = np.random.default_rng(recipe.split.seed)
    for name, fraction in (("test", recipe.split.test), ("validation", recipe.split.validation)):
        if fraction:
            everything = splits["train"]
            held = hold_out(everything, fraction, recipe.split, rng, recipe.name)
            splits[name] = everything.take(np.flatnonzero(held))
            splits["train"] = everything.take(np.flatnonzero(~held))
    return splits


def _open(recipe: Recipe, folder: Path, download: bool) -> tuple[dict[str, Recordings], str]:
    """The recordings in a folder, fetched if need be, and their fingerprint."""
    from filelock import FileLock

    from tbnn.data.sources import open_source

    if all((folder / (file.unpacks or file.path)).exists() for file in recipe.files):
        fetch(recipe, folder, download=False)  # writes nothing: the folder may be read-only
    else:
        archives = all((folder / file.path).exists() for file in recipe.files)
        can_download = download and any(file.urls for file in recipe.files)
        if can_download and not archives and folder.name != recipe.name:
            folder = folder / recipe.name  # one folder for many datasets: each downloads into its own
        if can_download:
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetch.lock") if folder.is_dir() else contextlib.nullcontext():
            fetch(recipe, folder, download=download)
    return open_source(recipe, folder), _fingerprint(recipe, folder)


def _generate(recipe: Recipe) -> Recordings:
    """The recordings of a dataset that is made here."""
    seed, sensor = recipe.split.seed, recipe.sensor
    if recipe.camera is not None and recipe.scene is not None:
        from tbnn.data.digits import digit_recordings

        recordings = digit_recordings(recipe.camera, recipe.scene, sensor, seed)
    elif recipe.camera is not None and recipe.shapes is not None:
        from tbnn.data.shapes import CLASSES, shape_recordings

        if recipe.classes != CLASSES:
            raise ValueError(f"{recipe.name}: classes: expected {', '.join(CLASSES)}, got {', '.join(recipe.classes)}")
        recordings = shape_recordings(recipe.shapes, recipe.camera, sensor, seed)
    elif recipe.randman is not None:
        from tbnn.data.randman import randman_recordings

        recordings = randman_recordings(recipe.randman, sensor, seed)
    elif recipe.delayed_xor is not None:
        from tbnn.data.delayed_xor import delayed_xor_recordings

        recordings = delayed_xor_recordings(recipe.delayed_xor, sensor, seed)
    elif recipe.adding is not None:
        from tbnn.data.adding import adding_recordings

        recordings = adding_recordings(recipe.adding, sensor, seed)
    elif recipe.digits_rows is not None:
        from tbnn.data.digits_rows import digits_rows_recordings

        recordings = digits_rows_recordings(recipe.digits_rows, sensor)
    elif recipe.evidence is not None:
        from tbnn.data.evidence import evidence_recordings

        recordings = evidence_recordings(recipe.evidence, sensor, seed)
    else:
        raise ValueError(f"{recipe.name}: expected the tables that {recipe.format} needs")
    if recordings.labels.max() >= len(recipe.classes):
        got = recordings.labels.max() + 1
        raise ValueError(f"{recipe.name}: classes: expected {got} of them, got {len(recipe.classes)}")
    return recordings


def _packed(recordings: Recordings, recipe: Recipe) -> PackedSplit:
    pack = _pack_words if recordings.words is not None else _pack_events
    return PackedSplit(recordings.labels, recordings.index, partial(pack, recordings, recipe))


def _pack_events(recordings: Recordings, recipe: Recipe, i: int) -> PackedRecording:
    events = recordings.read(i)
    words = events_to_words(events, recipe.sensor, recipe.frames, recordings.names[i])
    duration = int(events.t[-1]) - int(events.t[0])
    return PackedRecording(words, recipe.frames.covered(events.t), len(events), duration)


def _pack_words(recordings: Recordings, recipe: Recipe, i: int) -> PackedRecording:
    words = recordings.words(i)  # pyright: ignore[reportOptionalCall]
    events = int(np.bitwise_count(words.view(np.uint32)).sum())
    return PackedRecording(words, recipe.frames.frames, events, recipe.duration)
