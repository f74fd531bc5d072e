"""Events become packed bit frames: the settings, the kernels' entry and the loop that defines both."""

from tbnn.data.frames.pack import events_to_words
from tbnn.data.frames.reference import words_reference
from tbnn.data.frames.spec import FrameSpec

__all__ = ["FrameSpec", "events_to_words", "words_reference"]
