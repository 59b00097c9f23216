"""Video files and folders give RGB frames with the right numbers and times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnet_det.errors import DataError, SourceError
from mnet_det.images import write_image
from mnet_det.live.recorded import ImageFolder, Recorded, open_video


def take_all(recorded: Recorded) -> list:
    """(index, media time, picture) of each frame."""
    frames = []
    while (time_s := recorded.next_s()) is not None:
        index = recorded.index
        if (image := recorded.take()) is None:
            break
        frames.append((index, time_s, image))
    recorded.close()
    return frames


def test_video_gives_every_frame_as_rgb_with_its_time(make_clip):
    path = make_clip(6, fps=20.0)
    clip = open_video(path)
    frames = take_all(clip)
    assert (clip.name, clip.fps, clip.frames) == (str(path), 20.0, 6)
    assert [index for index, _, _ in frames] == list(range(6))
    np.testing.assert_allclose([time_s for _, time_s, _ in frames], [0, 0.05, 0.10, 0.15, 0.20, 0.25], atol=1e-6)
    # The clip's frame 5 is RGB (50, 0, 200); JPEG is off by a few.
    np.testing.assert_allclose(frames[5][2].mean((0, 1)), (50, 0, 200), atol=6)


def test_skipped_video_frames_are_counted_but_not_given(make_clip):
    clip = open_video(make_clip(5))
    clip.skip()
    clip.skip()
    assert clip.index == 2
    np.testing.assert_allclose(clip.take().mean((0, 1)), (20, 0, 200), atol=6)
    clip.close()


def test_truncated_video_ends_cleanly(make_clip):
    path = make_clip(40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = take_all(open_video(path))
    assert 5 < len(frames) < 40
    np.testing.assert_allclose(frames[5][2].mean((0, 1)), (50, 0, 200), atol=6)


def test_video_without_frames_is_refused(make_clip):
    with pytest.raises(SourceError, match=r"clip0\.avi: "):
        open_video(make_clip(0))


def test_folder_gives_its_pictures_by_name_one_a_second(tmp_path):
    for name, value in (("b.png", 2), ("a.png", 1)):
        write_image(tmp_path / name, np.full((8, 8, 3), value, np.uint8))
    folder = ImageFolder(tmp_path)
    frames = [(index, time_s, int(image[0, 0, 0])) for index, time_s, image in take_all(folder)]
    assert frames == [(0, 0.0, 1), (1, 1.0, 2)]
    assert (folder.name, folder.frames) == (str(tmp_path), 2)


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no image in it"):
        ImageFolder(tmp_path)


def test_broken_image_of_a_folder_is_named(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"torn\.png: not an image"):
        ImageFolder(tmp_path).take()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "fps", "shape"),
    [("bottle-detection.mp4", 29.833, (360, 640, 3)), ("one-by-one-person-detection.mp4", 10.0, (432, 768, 3))],
)
def test_real_clips_keep_their_speed(shared: Path, name, fps, shape):
    clip = open_video(shared / "video" / name)
    assert clip.fps == pytest.approx(fps, abs=1e-3)
    for index in range(10):
        assert clip.next_s() == pytest.approx(index / clip.fps, abs=1e-3)
        assert clip.take().shape == shape
    clip.close()
