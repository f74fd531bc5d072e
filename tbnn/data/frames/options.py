"""What a command line may change in a recipe's frames."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class FrameOptions:
    """Frames other than the recipe's; what is not given stays as it is there. See :class:`tbnn.data.FrameSpec`.

    Attributes:
        bin_width: fixed time bins of this many microseconds.
        bins: this number of frames over each recording's own duration.
        count: fixed number of events in a frame.
        steps: number of frames, with bin_width or count.
        hop: from one frame's start to the next one's, microseconds or events.
        start: time bins count from the recording's start ("zero") or from its "first" event.
        late: events past the last frame are an "error", or "cut".
        polarity: ON and OFF as "channels", or "merge" them into one.
        size: height and width of a frame, one number or two; events of pixels that fall together are joined by OR.
        at_least: a bit is set by this many events or more.
        planes: counts of events as this many bit planes.
        tau, level: a time surface of this time constant (microseconds), thresholded at this level in (0, 1).
    """

    bin_width: int | None = None
    bins: int | None = None
    count: int | None = None
    steps: int | None = None
    hop: int | None = None
    start: Literal["zero", "first"] | None = None
    late: Literal["error", "cut"] | None = None
    polarity: Literal["channels", "merge"] | None = None
    size: int | tuple[int, int] | None = None
    at_least: int | None = None
    planes: int | None = None
    tau: float | None = None
    level: float | None = None

    def changes(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}
