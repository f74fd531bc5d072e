"""Events become packed bit frames."""

from tbnn.data.frames.spec import FrameSpec

__all__ = ["FrameSpec"]
