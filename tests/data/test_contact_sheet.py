"""Contact sheets: colours stand where the events were."""

import numpy as np
import pytest
from matplotlib.image import imread

from tbnn.bits import pack_bits_numpy
from tbnn.data import contact_sheet
from tbnn.data.store import PackedSplit, write_store


def sheet(folder, recipe, frames, labels):
    """The RGB picture (0..1) of recordings ``frames`` (N, T, bits)."""
    split = PackedSplit.of(pack_bits_numpy(frames), np.array(labels))
    write_store(folder / "a.h5", recipe, dict.fromkeys(("train", "validation", "test"), split))
    contact_sheet(folder / "a.h5", folder / "a.png")
    return imread(folder / "a.png")[..., :3]


def share(picture, colour):
    return (np.abs(picture - colour).max(-1) < 0.02).mean()


@pytest.mark.parametrize("events", ["both", "on", "off", "none"])
def test_on_is_red_and_off_is_blue(tmp_path, make_recipe, events):
    recipe = make_recipe((2, 4, 4), 8)
    frames = np.zeros((2, 8, 2, 4, 4), np.uint8)
    frames[0, :, 0, :2] = events in ("both", "off")
    frames[0, :, 1, 2:] = events in ("both", "on")
    picture = sheet(tmp_path, recipe, frames.reshape(2, 8, -1), [0, 1])
    red, blue = share(picture, [1, 0.2, 0]), share(picture, [0, 0.2, 1])
    assert (red > 0.05) == (events in ("both", "on"))
    assert (blue > 0.05) == (events in ("both", "off"))
    if events == "both":
        assert red == pytest.approx(blue, rel=0.05)
        first_red = np.argwhere(np.abs(picture - [1, 0.2, 0]).max(-1) < 0.02).min(0)
        first_blue = np.argwhere(np.abs(picture - [0, 0.2, 1]).max(-1) < 0.02).min(0)
        assert first_red[0] > first_blue[0] + 10  # ON was drawn below OFF
        assert abs(first_red[1] - first_blue[1]) <= 1


def test_raster_shows_the_share_of_spikes(tmp_path, make_recipe):
    recipe = make_recipe((16, 1, 1), 40)
    black = []
    for period in (2, 4):
        frames = np.zeros((2, 40, 16), np.uint8)
        frames[:, ::period] = 1
        picture = sheet(tmp_path, recipe, frames, [0, 1])
        black.append(share(picture, 0))
    assert black[0] > 0.15
    assert black[0] / black[1] == pytest.approx(2, rel=0.1)


def test_first_recording_of_each_class_is_shown(tmp_path, make_recipe):
    """Class 1 appears in the second and third recording; only the second is drawn."""
    recipe = make_recipe((2, 4, 4), 8, ("a", "b", "absent"))
    frames = np.zeros((3, 8, 32), np.uint8)
    frames[2] = 1
    assert share(sheet(tmp_path, recipe, frames, [0, 1, 1]), 0) < 0.02
    assert share(sheet(tmp_path, recipe, frames[[0, 2, 1]], [0, 1, 1]), 0) > 0.2
