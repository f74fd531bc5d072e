"""The recordings of a source: one module for each kind of source that a recipe may name.

- :mod:`~tbnn.data.sources.hdf5`: "events-hdf5" and "bits-hdf5", tbnn's own files of events and of 0/1 frames.
- :mod:`~tbnn.data.sources.folders`: "folders", one file a recording, in one folder a class.
- :mod:`~tbnn.data.sources.cochlea`: "spikes-hdf5" (SHD, SSC) and "ntidigits-hdf5" (N-TIDIGITS18).
- :mod:`~tbnn.data.sources.dvsgesture`: "dvsgesture", the release of IBM.
- :mod:`~tbnn.data.sources.smnist`: "smnist", MNIST images read pixel by pixel.
"""

from collections.abc import Callable
from pathlib import Path

from tbnn.data.recipe import SPLITS, Recipe
from tbnn.data.recordings import Recordings
from tbnn.data.sources.cochlea import open_ntidigits, open_spikes
from tbnn.data.sources.dvsgesture import open_dvsgesture
from tbnn.data.sources.folders import open_folders
from tbnn.data.sources.hdf5 import open_bits, open_events
from tbnn.data.sources.smnist import open_smnist

_OPEN: dict[str, Callable[[Recipe, Path, str, str], Recordings]] = {
    "events-hdf5": open_events,
    "bits-hdf5": open_bits,
    "spikes-hdf5": open_spikes,
    "ntidigits-hdf5": open_ntidigits,
    "folders": open_folders,
    "dvsgesture": open_dvsgesture,
    "smnist": open_smnist,
}


def open_source(recipe: Recipe, folder: Path) -> dict[str, Recordings]:
    """The recordings below ``folder``: "train", and "validation" and "test" where the recipe's layout names them.

    Only labels and tables are read here; a recording is read when asked for.

    Raises:
        FileNotFoundError: a file or folder that the layout names is not there.
        ValueError: a damaged source, or one that does not fit the recipe; the message starts with the file.
    """
    if recipe.format not in _OPEN or recipe.layout is None:
        raise ValueError(f"{recipe.name}: expected a recipe whose recordings lie in files, got {recipe.format}")
    patterns = {split: getattr(recipe.layout, split) for split in SPLITS}
    return {split: _OPEN[recipe.format](recipe, folder, split, at) for split, at in patterns.items() if at}
