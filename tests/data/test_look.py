"""Pictures of a packed file: animations follow the frames, statistics read the columns."""

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from tbnn.bits import pack_bits_numpy
from tbnn.data import show
from tbnn.data.store import PackedSplit, write_store


def shown(folder, recipe, frames, labels):
    """The paths of all pictures of recordings ``frames`` (N, T, bits), by name."""
    split = PackedSplit.of(pack_bits_numpy(frames), np.array(labels))
    write_store(folder / "a.h5", recipe, dict.fromkeys(("train", "validation", "test"), split))
    return {path.name: path for path in show(folder / "a.h5", folder / "look")}


def pictures(path):
    """RGB pictures (T, h, w, 3) and how long each is shown, ms."""
    with Image.open(path) as gif:
        images, durations = [], []
        for k in range(gif.n_frames):
            gif.seek(k)
            images.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
    return np.stack(images), durations


def test_an_animation_shows_each_frame_of_its_class(tmp_path, make_recipe):
    """A pixel that runs through the frame, ON in class 0, OFF in class 1."""
    recipe = make_recipe((2, 4, 4), 8, ("on", "off side"))
    frames = np.zeros((2, 8, 2, 4, 4), np.uint8)
    for k in range(8):
        frames[0, k, 1, k // 4, k % 4] = 1
        frames[1, k, 0, k // 4, k % 4] = 1
    paths = shown(tmp_path, recipe, frames.reshape(2, 8, -1), [0, 1])
    assert list(paths) == ["contact_sheet.png", "statistics.png", "0_on.gif", "1_off_side.gif"]
    for name, colour in (("0_on.gif", (255, 51, 0)), ("1_off_side.gif", (0, 51, 255))):
        images, durations = pictures(paths[name])
        assert images.shape[0] == 8
        assert set(durations) == {40}
        side = images.shape[1] // 4
        for k, image in enumerate(images):
            small = image[side // 2 :: side, side // 2 :: side].astype(int)
            marked = np.argwhere(np.abs(small - colour).max(-1) < 16)
            assert marked.tolist() == [[k // 4, k % 4]]
            assert (np.abs(small - 255).max(-1) < 16).sum() == 15


def test_slow_frames_are_shown_as_long_as_they_last(tmp_path, make_recipe):
    import dataclasses

    from tbnn.data import FrameSpec

    recipe = dataclasses.replace(make_recipe((2, 4, 4), 8), frames=FrameSpec(bin_width=70_000, steps=3))
    paths = shown(tmp_path, recipe, np.random.default_rng(0).integers(0, 2, (2, 3, 32), np.uint8), [0, 1])
    assert set(pictures(paths["0_left.gif"])[1]) == {70}


def test_four_recordings_at_most_stand_side_by_side(tmp_path, make_recipe):
    recipe = make_recipe((2, 5, 5), 3, ("few", "many"))
    frames = np.random.default_rng(0).integers(0, 2, (7, 3, 50), np.uint8)
    paths = shown(tmp_path, recipe, frames, [0, 1, 1, 1, 1, 1, 1])
    one, four = (pictures(paths[name])[0] for name in ("0_few.gif", "1_many.gif"))
    side = one.shape[2]
    assert 4 * side < four.shape[2] < 4.3 * side


def test_sensors_without_image_grow_from_left_to_right(tmp_path, make_recipe):
    recipe = make_recipe((6, 1, 1), 10, ("a", "b"))
    frames = np.ones((2, 10, 6), np.uint8)
    images, _ = pictures(shown(tmp_path, recipe, frames, [0, 1])["0_a.gif"])
    column = images.shape[2] // 10
    black = [(image[0, column // 2 :: column].max(-1) < 20).sum() for image in images]
    assert black == list(range(1, 11))


def test_long_recordings_make_small_animations(tmp_path, make_recipe):
    recipe = make_recipe((6, 1, 1), 2000, ("a", "b"))
    frames = np.random.default_rng(0).integers(0, 2, (2, 2000, 6), np.uint8)
    path = shown(tmp_path, recipe, frames, [0, 1])["0_a.gif"]
    assert pictures(path)[0].shape[0] <= 64
    assert path.stat().st_size < 3_000_000


def test_a_class_without_recordings_has_no_animation(tmp_path, make_recipe):
    recipe = make_recipe((2, 4, 4), 3, ("a", "absent"))
    assert "1_absent.gif" not in shown(tmp_path, recipe, np.ones((1, 3, 32), np.uint8), [0])


def test_statistics_show_more_where_there_is_more(tmp_path, make_recipe):
    """Twice as many classes make as many bars: the picture is not an empty frame."""
    coloured = []
    for labels in ([0] * 6, [0, 0, 0, 1, 1, 1]):
        folder = tmp_path / str(len(coloured))
        folder.mkdir()
        frames = np.random.default_rng(0).integers(0, 2, (6, 3, 32), np.uint8)
        picture = imread(shown(folder, make_recipe((2, 4, 4), 3), frames, labels)["statistics.png"])[..., :3]
        lower_left = picture[picture.shape[0] // 2 :, : picture.shape[1] // 2]
        coloured.append((np.ptp(lower_left, axis=-1) > 0.3).any(0).mean())
    assert coloured[1] > 1.5 * coloured[0] > 0


def test_a_file_where_the_folder_should_be(tmp_path, recipe):
    split = PackedSplit.of(np.zeros((2, 5, 2), np.int32), np.array([0, 1]))
    write_store(tmp_path / "a.h5", recipe, dict.fromkeys(("train", "validation", "test"), split))
    (tmp_path / "look").write_text("mine")
    with pytest.raises(ValueError, match=r"output: expected a folder, got the file .*look"):
        show(tmp_path / "a.h5", tmp_path / "look")
    assert (tmp_path / "look").read_text() == "mine"
