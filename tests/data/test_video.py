"""Videos from files, folders and arrays."""

import re

import numpy as np
import pytest
from PIL import Image

from tbnn.data import EventCamera, video
from tbnn.data.video import read_video

SHADES = np.array([0, 51, 102, 204, 255], np.uint8)


def grey_frames(count=5, height=4, width=6):
    return [Image.fromarray(np.full((height, width), SHADES[k % 5])) for k in range(count)]


def write_gif(path, durations):
    frames = grey_frames(len(durations))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=list(durations), loop=0)
    return path


def test_gif_keeps_its_greys_and_durations(tmp_path):
    frames, times = read_video(write_gif(tmp_path / "a.gif", (20, 50, 30, 100, 70)))
    np.testing.assert_allclose(frames, np.broadcast_to((SHADES / 255.0)[:, None, None], (5, 4, 6)), atol=1e-12)
    assert frames.dtype == np.float64
    assert times.tolist() == [0, 20_000, 70_000, 100_000, 200_000]


def test_gif_without_durations_and_with_fps(tmp_path):
    path = write_gif(tmp_path / "a.GIF", (0, 0, 0))
    assert read_video(path)[1].tolist() == [0, 100_000, 200_000]
    assert read_video(path, fps=40)[1].tolist() == [0, 25_000, 50_000]


def test_gif_frames_build_on_each_other_and_transparency_is_black(tmp_path):
    """Each frame covers a part of the one before."""
    frames = [Image.new("RGBA", (4, 4), (0, 0, 0, 0)) for _ in range(3)]
    for k, frame in enumerate(frames):
        frame.paste((255, 255, 255, 255), (0, 0, k + 1, 4))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=10, disposal=1)
    got, _ = read_video(tmp_path / "a.gif")
    assert got.sum((1, 2)).tolist() == [4, 8, 12]


@pytest.mark.parametrize(
    ("colour", "luma"), [((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114), ((255, 255, 255), 1.0)]
)
def test_colours_become_luma(tmp_path, colour, luma):
    for k in range(2):
        Image.new("RGB", (3, 2), colour).save(tmp_path / f"{k}.png")
    np.testing.assert_allclose(read_video(tmp_path, fps=1)[0], luma, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "pixel", "grey"),
    [("1", 1, 1.0), ("L", 51, 0.2), ("LA", (255, 51), 0.2), ("RGBA", (51, 51, 51, 255), 0.2), ("I;16", 13107, 0.2)],
)
def test_kinds_of_images(tmp_path, mode, pixel, grey):
    for k in range(2):
        Image.new(mode, (3, 2), pixel).save(tmp_path / f"{k}.png")
    np.testing.assert_allclose(read_video(tmp_path, fps=1)[0], grey, atol=1e-12)


def test_folder_is_in_natural_order_and_other_files_are_ignored(tmp_path):
    for k, image in enumerate(grey_frames(12)):
        image.save(tmp_path / f"shot{k}.png")
    (tmp_path / "notes.txt").write_text("nothing")
    frames, times = read_video(tmp_path, fps=50)
    assert np.rint(frames[:, 0, 0] * 255).astype(int).tolist() == [int(SHADES[k % 5]) for k in range(12)]
    assert times.tolist() == [20_000.0 * k for k in range(12)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npy_files_and_arrays(tmp_path, dtype):
    array = np.random.default_rng(0).random((3, 4, 5))
    array = (array * 255).astype(dtype) if dtype == np.uint8 else array.astype(dtype)
    np.save(tmp_path / "a.npy", array)
    expected = array / 255.0 if dtype == np.uint8 else array
    for source in (array, tmp_path / "a.npy", str(tmp_path / "a.npy")):
        frames, times = read_video(source, fps=1000)
        np.testing.assert_allclose(frames, expected, atol=1e-12)
        assert times.tolist() == [0, 1000, 2000]


def test_resizing_keeps_flat_images_and_averages_when_it_shrinks():
    flat = np.full((2, 9, 12), 0.3)
    np.testing.assert_allclose(read_video(flat, fps=1, size=(4, 5))[0], 0.3, atol=1e-6)
    noise = np.random.default_rng(1).random((2, 64, 64))
    small, _ = read_video(noise, fps=1, size=(8, 8))
    assert small.shape == (2, 8, 8)
    np.testing.assert_allclose(small.mean((1, 2)), noise.mean((1, 2)), atol=0.02)
    assert small.std() < 0.15 * noise.std()


def test_camera_watches_a_gif(tmp_path):
    """Dark to bright in steps: ON events only, and none in a still one."""
    events = EventCamera(mismatch=0).watch(write_gif(tmp_path / "a.gif", (20, 50, 30, 100, 70)))
    assert set(events.p.tolist()) == {1}
    assert len(events) == 24 * int((np.log(20) + 1) / 0.2)
    assert events.t.max() < 200_000


def test_damaged_gifs_are_refused_or_read_as_far_as_they_go(tmp_path):
    """Cut anywhere, or with any byte changed, a GIF gives a video or a ``ValueError`` that names the file."""
    whole = write_gif(tmp_path / "a.gif", (20, 50, 30)).read_bytes()
    draw = np.random.default_rng(0)
    broken = [whole[:n] for n in range(len(whole))]
    for _ in range(150):
        changed = bytearray(whole)
        changed[draw.integers(len(whole))] = draw.integers(256)
        broken.append(bytes(changed))
    path, refused, messages = tmp_path / "b.gif", 0, set()
    for data in broken:
        path.write_bytes(data)
        try:
            frames, times = read_video(path)
        except ValueError as error:
            refused += 1
            messages.add(str(error))
        else:
            assert frames.ndim == 3
            assert len(frames) == len(times) >= 2
            assert 0 <= frames.min() <= frames.max() <= 1
    assert len(broken) // 3 < refused < len(broken)
    assert all(message.startswith(str(path)) for message in messages)


def folder_of_two_sizes(path):
    Image.new("L", (3, 2)).save(path / "1.png")
    Image.new("L", (3, 4)).save(path / "2.png")
    return path


def folder_with_damage(path):
    grey_frames(1)[0].save(path / "1.png")
    (path / "2.png").write_bytes((path / "1.png").read_bytes()[:40])
    return path


def saved(array):
    def make(path):
        np.save(path / "a.npy", array)
        return path / "a.npy"

    return make


def text(name):
    def make(path):
        (path / name).write_text("not an image")
        return path / name

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "expected images (.bmp, .jpeg,"),
        (folder_of_two_sizes, "2.png: expected the (2, 3) pixels of 1.png, got (4, 3)"),
        (folder_with_damage, "2.png: expected an image, got"),
        (saved(np.zeros((1, 2, 3))), "a.npy: expected two frames or more, got 1"),
        (saved(np.zeros((4, 2, 3, 3), np.uint8)), "expected uint8 or floats (T, H, W), got uint8 (4, 2, 3, 3)"),
        (saved(np.zeros((4, 2, 3), int)), "a.npy: expected uint8 or floats (T, H, W), got int64"),
        (saved(np.full((4, 2, 3), 2.0)), "a.npy: expected intensities in [0, 1], got 2.0 to 2.0"),
        (saved(np.full((4, 2, 3), -0.5)), "a.npy: expected intensities in [0, 1], got -0.5 to -0.5"),
        (saved(np.full((4, 2, 3), np.nan)), "a.npy: expected intensities in [0, 1], got nan to nan"),
        (saved(np.array([object()])), "a.npy: expected a .npy file of numbers"),
        (text("a.npy"), "a.npy: expected a .npy file of numbers"),
        (text("a.gif"), "a.gif: expected an image, got"),
        (text("a.mp4"), "a.mp4: expected a GIF, a .npy file or a folder of images; other videos become one by ffmpeg"),
        (lambda path: write_gif(path / "a.gif", (20,)), "a.gif: expected two frames or more, got 1"),
    ],
)
def test_impossible_sources(tmp_path, make, message):
    source = make(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_video(source, fps=10)
    assert str(error.value).startswith(str(source))


def test_impossible_arguments(tmp_path):
    frames = np.zeros((3, 2, 2))
    for arguments, message in (
        ({}, "video: expected fps, the frames a second; only a GIF knows its own"),
        ({"fps": 0}, "fps: expected a positive number of frames a second, got 0"),
        ({"fps": float("nan")}, "got nan"),
        ({"fps": 10, "size": (0, 4)}, "size: expected a height and a width of at least 1, got (0, 4)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            read_video(frames, **arguments)
    with pytest.raises(FileNotFoundError, match="nowhere: expected a GIF"):
        read_video(tmp_path / "nowhere")


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = write_gif(tmp_path / "a.gif", (20, 50, 30))
    monkeypatch.setattr(video, "_MOST_PIXELS", 71)
    with pytest.raises(ValueError, match=re.escape("a.gif: expected at most 71 pixels in all, got 72")):
        read_video(path)
    assert read_video(path, size=(2, 2))[0].shape == (3, 2, 2)
    for most in (23, 11):  # Pillow warns above its limit and raises above twice of it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ValueError, match=re.escape("a.gif: expected an image, got: Image size (24 pixels)")):
            read_video(path, size=(2, 2))
