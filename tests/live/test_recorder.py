"""A recording plays at the source's speed and never stays half-written."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from mnet_det.errors import SourceError
from mnet_det.live import recorder
from mnet_det.live.recorder import Recorder


def grey(value: int, hw: tuple[int, int] = (64, 96)) -> np.ndarray:
    return np.full((*hw, 3), value, np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
def test_clip_has_the_frames_and_the_rate_it_was_given(tmp_path, read_clip, suffix):
    path = tmp_path / f"clip{suffix}"
    with closing(Recorder(path, fps=12.5)) as recording:
        for index in range(7):
            recording.write(grey(20 * index), index=index)
        assert not path.exists()  # only under its temporary name so far
    fps, frames = read_clip(path)
    assert fps == pytest.approx(12.5)
    assert len(frames) == 7
    np.testing.assert_allclose([frame.mean() for frame in frames], np.arange(7) * 20, atol=4)
    assert list(tmp_path.iterdir()) == [path]


def test_gap_repeats_the_last_picture_and_a_taken_number_is_passed_over(tmp_path, read_clip):
    with closing(Recorder(tmp_path / "clip.avi", fps=10)) as recording:
        recording.write(grey(50), index=1)  # frame 0 never came: it looks like the first that did
        recording.write(grey(99), index=1)  # a camera faster than the clip
        recording.write(grey(200), index=4)
        recording.fill(6)
    _, frames = read_clip(tmp_path / "clip.avi")
    np.testing.assert_allclose([frame.mean() for frame in frames], [50, 50, 99, 99, 200, 200], atol=3)


def test_colours_survive(tmp_path, read_clip):
    with closing(Recorder(tmp_path / "clip.avi", fps=10)) as recording:
        recording.write(np.full((64, 96, 3), (200, 40, 0), np.uint8), index=0)
    np.testing.assert_allclose(read_clip(tmp_path / "clip.avi")[1][0].mean((0, 1)), (200, 40, 0), atol=6)


def test_picture_of_another_size_is_fitted_into_the_first(tmp_path, read_clip):
    with closing(Recorder(tmp_path / "clip.avi", fps=10)) as recording:
        recording.write(grey(0), index=0)
        recording.write(grey(255, (128, 64)), index=1)
    frames = read_clip(tmp_path / "clip.avi")[1]
    assert frames[1].shape == (64, 96, 3)
    # 128×64 fits into 64×96 at scale 1/2: 32 columns of picture, the rest is padding.
    np.testing.assert_allclose(frames[1][:, :24].mean(), 255, atol=3)
    np.testing.assert_allclose(frames[1][:, 40:].mean(), 127, atol=3)


def test_recording_is_kept_when_the_run_fails(tmp_path, read_clip):
    def record() -> None:
        with closing(Recorder(tmp_path / "clip.mp4", fps=10)) as recording:
            recording.write(grey(9), index=0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record()
    assert len(read_clip(tmp_path / "clip.mp4")[1]) == 1


def test_nothing_is_written_without_a_picture(tmp_path):
    with closing(Recorder(tmp_path / "clip.mp4", fps=10)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_missing_codec_falls_back_to_avi_and_says_so(tmp_path, monkeypatch, read_clip):
    monkeypatch.setitem(recorder.CODECS, ".mp4", "zzzz")
    said: list[str] = []
    with closing(Recorder(tmp_path / "clip.mp4", fps=10, say=said.append)) as recording:
        recording.write(grey(9), index=0)
    assert recording.path == tmp_path / "clip.avi"
    assert said == [
        f"{tmp_path / 'clip.mp4'}: this OpenCV cannot write such a file; recording {recording.path} instead"
    ]
    assert len(read_clip(recording.path)[1]) == 1
    assert list(tmp_path.iterdir()) == [recording.path]


def test_fallback_replaces_no_file_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(recorder.CODECS, ".mp4", "zzzz")
    (tmp_path / "clip.avi").write_text("another film")
    with (
        pytest.raises(SourceError, match=r"clip\.mp4: cannot be written"),
        closing(Recorder(tmp_path / "clip.mp4", fps=10)) as recording,
    ):
        recording.write(grey(9), index=0)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another film"]


def test_unknown_kind_of_file_is_refused_at_once(tmp_path):
    with pytest.raises(SourceError, match=r"clip\.gif: not a kind of video that can be written; known: \.mp4"):
        Recorder(tmp_path / "clip.gif", fps=10)


def test_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(SourceError, match="cannot be written"),
        closing(Recorder(tmp_path / "file/clip.mp4", fps=10)) as clip,
    ):
        clip.write(grey(0), index=0)
