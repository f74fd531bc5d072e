"""What weights hand to neurons: currents that are worked out piece by piece, when the neurons get to them."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from tbnn.ops.packed_lif.cpu import Drive, Neurons, drive_of, drive_values
from tbnn.sim.run.state import Floats, Words

PIECE = 1 << 19  # integer products worked out at a time: 2 MB, which the caches hold until the neurons have read them


class Room:
    """Memory that is used again and again: fresh pages would cost more than what is written to them."""

    def __init__(self) -> None:
        self._flat = np.empty(0, np.int32)

    def take(self, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
        """An int32 array of any content; the one that was taken before is void."""
        size = int(np.prod(shape))
        if self._flat.size < size:
            self._flat = np.empty(size, np.int32)
        return self._flat[:size].reshape(shape)


class Currents:
    """The currents of a chunk of time, (t, B, N).

    Args:
        shape: t, B, N.
        drive: what drives the neurons in some steps of some samples; it holds until the next call.
        scan: weights and plain neurons in one pass, where the weights know one: constants of the neurons, membranes (B, N)
            changed in place -> packed spikes (t, B, words).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        drive: Callable[[slice, slice], Drive],
        scan: Callable[[Neurons, Floats], Words] | None = None,
    ) -> None:
        self.shape, self.drive, self.scan = shape, drive, scan

    def pieces(self, *, split: bool = True) -> Iterator[tuple[slice, slice, Drive]]:
        """Steps, samples and their drive: all of it, each sample's steps in order; all samples at once unless ``split``."""
        steps, batch, features = self.shape
        samples = min(batch, max(1, PIECE // features)) if split else batch
        together = max(1, PIECE // (samples * features))
        for b in range(0, batch, samples):
            for t in range(0, steps, together):
                part = slice(t, min(t + together, steps)), slice(b, min(b + samples, batch))
                yield *part, self.drive(*part)

    def values(self) -> Floats:
        """The currents themselves."""
        out = np.empty(self.shape, np.float32)
        for steps, samples, drive in self.pieces():
            out[steps, samples] = currents_of(drive)
        return out


def currents_of(drive: Drive) -> Floats:
    """A drive's currents (t, B, N)."""
    if drive.product.size == 0:
        return drive.added
    out = np.empty(drive.product.shape, np.float32)
    drive_values(drive, out, work=out.size)
    return out


def ready(current: Floats) -> Currents:
    """Currents (t, B, N) that are there already."""
    return Currents(current.shape, lambda steps, samples: drive_of(np.ascontiguousarray(current[steps, samples])))  # pyright: ignore[reportArgumentType]
