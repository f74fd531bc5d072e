"""What every run on a device has."""

from typing import Any, ClassVar

from tbnn.sim.counts import LayerCounts


class GpuRun:
    """A layer at work on a device.

    What it carries is replaced, never written to: a snapshot holds the old values and costs nothing.
    """

    carried: ClassVar[tuple[str, ...]] = ()
    layer: Any

    def advance(self, x: Any, /) -> Any:
        """What enters in some steps, (t, B, ...), to what leaves."""
        raise NotImplementedError

    def snapshot(self) -> dict[str, Any]:
        """All that advancing changes."""
        return {name: getattr(self, name) for name in self.carried}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go back to a snapshot."""
        for name, value in kept.items():
            setattr(self, name, value)

    def state(self) -> Any:
        """What is carried to the next step, on the CPU; None where nothing is."""
        return

    def counts(self) -> list[LayerCounts]:
        """The rows of this layer; those of the network's sizes alone are left to :func:`tbnn.sim.counts.completed`."""
        return []
