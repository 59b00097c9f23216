"""A word means a camera, an address, a file or a folder, and what is none of them is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from mnet_det.errors import SourceError
from mnet_det.images import write_image
from mnet_det.live import source
from mnet_det.live.recorded import ImageFolder, VideoFile
from mnet_det.live.source import open_source


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "no such file; expected a camera's number .* or a stream's address"),
        ("empty.mp4", b"", "not a video"),
        ("noise.mp4", b"hello " * 100, "not a video"),
        ("notes.txt", b"hello " * 100, "not a video"),  # FFmpeg would film it
        ("photo.jpg", b"any", "a picture, not a video"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_a_video_and_a_folder_its_images(make_clip, tmp_path):
    clip = open_source(str(make_clip(3)))
    assert isinstance(clip, VideoFile)
    clip.close()
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert isinstance(open_source(str(tmp_path)), ImageFolder)


def test_word_too_long_for_a_name_is_no_file():
    """The question whether it is one was an error itself, with the whole word, and so its password, in a traceback."""
    with pytest.raises(SourceError, match="no such file"):
        open_source("a" * 300)


def test_empty_word_is_not_the_working_folder():
    """A script's unset variable showed the pictures that happened to be there."""
    with pytest.raises(SourceError, match="got an empty word"):
        open_source("")


@pytest.mark.parametrize(
    ("word", "opened"),
    [("3", "camera"), ("/dev/video3", "camera"), ("rtsp://host/live", "stream"), ("HTTP://host/video.mjpg", "stream")],
)
def test_numbers_are_cameras_and_addresses_streams(monkeypatch, word, opened):
    for kind in ("camera", "stream"):
        monkeypatch.setattr(source, f"open_{kind}", lambda word, kind=kind, **wishes: (kind, word))
    assert open_source(word) == (opened, word)
