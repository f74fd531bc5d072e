"""From a recipe to a packed file."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tbnn.bits import pack_bits_numpy, words_for
from tbnn.data.digits import digit_images, record_digits
from tbnn.data.events import events_to_frames
from tbnn.data.recipe import Recipe, load_recipe, recipe_hash
from tbnn.data.sources import read_bits, read_events
from tbnn.data.store import PackedSplit, read_info, write_store


def make(
    name: str | Path, *, source: str | Path | None = None, cache: str | Path | None = None, force: bool = False
) -> Path:
    """Make the packed file of a dataset, unless it is there already, and return its path.

    Args:
        name: a shipped recipe, or the path of a .toml recipe.
        source: folder of the recordings, below which the recipe's ``file`` lies; not needed for a generated dataset
            nor when the packed file exists.
        cache: folder of the packed files; default: tbnn's folder in the user's cache.
        force: make the file again even if it is there.

    Returns:
        ``<cache>/<name>-<first 12 digits of the recipe's hash>.h5``.

    Raises:
        FileNotFoundError: the recordings are not in ``source``.
        ValueError: in the recipe or in the recordings something is wrong; nothing is written.
    """
    recipe = load_recipe(name)
    digest = recipe_hash(recipe)
    path = (_default_cache() if cache is None else Path(cache)) / f"{recipe.name}-{digest[:12]}.h5"
    if force or not _is_valid(path, digest):
        write_store(path, recipe, _pack(recipe, None if source is None else Path(source)))
    return path


def _default_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("tbnn"))


def _is_valid(path: Path, digest: str) -> bool:
    """Whether ``path`` is a whole packed file of that recipe; a damaged one in the cache is simply made again."""
    try:
        return read_info(path).recipe_hash == digest
    except (FileNotFoundError, ValueError):
        return False


def _pack(recipe: Recipe, source: Path | None) -> dict[str, PackedSplit]:
    """The three splits of a recipe."""
    rng = np.random.default_rng(recipe.split.seed)
    if recipe.format == "digits-camera":
        everything = _record_digits(recipe)
        in_test = hold_out(everything.labels, recipe.split.test, rng)
        train, test = everything.take(~in_test), everything.take(in_test)
    else:
        file = _source_file(recipe, source)
        read = read_events if recipe.format == "events-hdf5" else read_bits
        train, test = read(file, "train", recipe), read(file, "test", recipe)
    in_validation = hold_out(train.labels, recipe.split.validation, rng)
    return {"train": train.take(~in_validation), "validation": train.take(in_validation), "test": test}


def hold_out(labels: npt.NDArray[np.int64], fraction: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw ``fraction`` of the recordings class by class: labels (N,) -> bool (N,), ``round(fraction * N)`` times True.

    Each class gives its share rounded down; the classes with the largest remainders give one more.
    Raises ``ValueError`` when that takes none or all of the recordings.
    """
    total = round(fraction * len(labels))
    if not 0 < total < len(labels):
        raise ValueError(f"split: expected some of {len(labels)} recordings held out, some left, got {total} held out")
    counts = np.bincount(labels)
    shares = fraction * counts
    quota = np.floor(shares).astype(np.int64)
    for label in np.argsort(quota - shares, kind="stable")[: max(0, total - quota.sum())]:
        quota[label] += 1
    held = np.zeros(len(labels), np.bool_)
    for label, count in enumerate(quota):
        held[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return held


def _record_digits(recipe: Recipe) -> PackedSplit:
    if recipe.camera is None or recipe.scene is None:
        raise ValueError(f"{recipe.name}: expected the tables camera and scene")
    images, labels = digit_images()
    if labels.max() >= len(recipe.classes):
        raise ValueError(f"{recipe.name}: classes: expected {labels.max() + 1} of them, got {len(recipe.classes)}")
    frames = np.empty((len(images), recipe.steps, words_for(recipe.sensor.bits)), np.int32)
    recordings = record_digits(images, recipe.camera, recipe.scene, recipe.sensor, recipe.split.seed)
    for i, events in enumerate(recordings):
        where = f"{recipe.name}: digit {i}"
        bits = events_to_frames(events, recipe.sensor, recipe.bin_width, recipe.steps, where)
        frames[i] = pack_bits_numpy(bits.reshape(recipe.steps, -1))
    return PackedSplit(frames, labels, np.arange(len(labels)))


def _source_file(recipe: Recipe, source: Path | None) -> Path:
    """The file of the recordings, looked for and compared with the recipe's checksum."""
    hint = (
        f"give the folder that holds {recipe.file} with --source FOLDER (of `tbnn train`: --data.source FOLDER, in Python: source=FOLDER);"
        f" the recordings come from {recipe.source}"
    )
    if source is None:
        raise FileNotFoundError(f"{recipe.name}: expected the recordings {recipe.file}, got no source folder; {hint}")
    path = source / recipe.file
    if not path.is_file():
        raise FileNotFoundError(f"{recipe.name}: looked for {recipe.file} in {source}, found no such file; {hint}")
    if recipe.sha256:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
        if got != recipe.sha256:
            raise ValueError(f"{path}: expected the SHA-256 {recipe.sha256} of the recipe {recipe.name}, got {got}")
    return path
