"""Data: recordings of event sensors become packed bit frames.

recipe (TOML) + recordings  --make-->  one packed HDF5 file  --PackedFrames, AugmentedFrames, collate-->  words (T, B, words)
"""

from tbnn.data.augment import Augment, augment_words
from tbnn.data.augmented import AugmentedFrames
from tbnn.data.camera import EventCamera
from tbnn.data.events import Events, Sensor, check_events, events_to_frames
from tbnn.data.frames import FrameSpec, events_to_words
from tbnn.data.live import send_udp, tail_events, udp_events
from tbnn.data.look import show
from tbnn.data.make import make, pack_recordings
from tbnn.data.packed import PackedFrames, collate
from tbnn.data.picture import contact_sheet
from tbnn.data.recipe import Recipe
from tbnn.data.recipe_toml import available, load_recipe
from tbnn.data.recordings import Recordings
from tbnn.data.store import StoreInfo, read_info
from tbnn.data.streaming import FrameStream, stream_frames
from tbnn.data.video import read_video

__all__ = [
    "Augment",
    "AugmentedFrames",
    "EventCamera",
    "Events",
    "FrameSpec",
    "FrameStream",
    "PackedFrames",
    "Recipe",
    "Recordings",
    "Sensor",
    "StoreInfo",
    "augment_words",
    "available",
    "check_events",
    "collate",
    "contact_sheet",
    "events_to_frames",
    "events_to_words",
    "load_recipe",
    "make",
    "pack_recordings",
    "read_info",
    "read_video",
    "send_udp",
    "show",
    "stream_frames",
    "tail_events",
    "udp_events",
]
