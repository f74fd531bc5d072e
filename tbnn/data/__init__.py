"""Data: recordings of event sensors become packed bit frames.

recipe (TOML) + recordings  --make-->  one packed HDF5 file  --PackedFrames, collate-->  words (T, B, words)
"""

from tbnn.data.camera import EventCamera
from tbnn.data.events import Events, check_events, events_to_frames
from tbnn.data.make import make
from tbnn.data.picture import contact_sheet
from tbnn.data.recipe import Recipe, available, load_recipe
from tbnn.data.store import PackedFrames, StoreInfo, collate, read_info

__all__ = [
    "EventCamera",
    "Events",
    "PackedFrames",
    "Recipe",
    "StoreInfo",
    "available",
    "check_events",
    "collate",
    "contact_sheet",
    "events_to_frames",
    "load_recipe",
    "make",
    "read_info",
]
