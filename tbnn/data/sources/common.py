"""What the kinds of sources share."""

import numpy as np
import numpy.typing as npt


def check_labels(labels: npt.NDArray[np.integer], classes: int, where: str) -> npt.NDArray[np.int64]:
    """The labels (N,) as int64; ``ValueError`` when there is none or one lies outside 0 .. classes - 1."""
    labels = labels.astype(np.int64)
    if len(labels) == 0:
        raise ValueError(f"{where}: expected at least one recording, got none")
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise ValueError(f"{where}: expected 0..{classes - 1}, got {labels[bad[0]]} for record {bad[0]}")
    return labels
