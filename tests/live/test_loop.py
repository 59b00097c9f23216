"""The loop shows, counts, records and ends as it should."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mnet_det.images import read_image, write_image
from mnet_det.live.loop import Controls, run_demo
from mnet_det.live.screen import NoScreen
from mnet_det.live.source import Frame, open_source


def interrupt_at(number: int, error: type[BaseException]):
    def act(call: int) -> None:
        if call == number:
            raise error

    return act


class FakeCamera:
    """Ten frames, every tenth of a second by their stamps, of a camera that claims 20 a second."""

    live = True
    fps = 20.0
    dropped = 0
    ended = False
    index = 0

    def read(self, *, timeout_s):
        if self.index == 10:
            self.ended = True
            return None
        now_s = time.perf_counter()
        self.index += 1
        return Frame(np.zeros((64, 96, 3), np.uint8), self.index - 1, (self.index - 1) * 0.1, now_s, now_s)

    def leave_out(self, pause_s):
        pass

    def close(self):
        pass


def test_unwatched_file_is_shown_frame_by_frame(make_clip, make_predictor):
    predictor = make_predictor()
    stats = run_demo(predictor, open_source(str(make_clip(8))), NoScreen(), say=print)
    assert (stats.frames, stats.read, stats.dropped, predictor.calls) == (8, 8, 0, 8)
    assert stats.detections == {"b": 8}
    assert stats.network_ms.p50 == 5.0


def test_watched_file_plays_at_its_own_speed(make_clip, make_predictor, make_screen):
    start_s = time.perf_counter()
    stats = run_demo(make_predictor(), open_source(str(make_clip(8, fps=40))), make_screen())
    elapsed_s = time.perf_counter() - start_s
    assert elapsed_s >= 8 / 40  # the last picture stays for its interval too
    assert stats.read == 8


def test_slow_model_drops_late_frames_and_the_clip_keeps_the_source_s_time(
    make_clip, make_predictor, make_screen, slow, tmp_path, read_clip
):
    source = open_source(str(make_clip(12, fps=30)))
    record = tmp_path / "out.mp4"
    stats = run_demo(make_predictor(slow(0.08)), source, make_screen(), record=record)
    assert stats.dropped > 0
    assert stats.frames + stats.dropped == stats.read == 12
    fps, frames = read_clip(record)
    assert fps == pytest.approx(30)
    assert len(frames) == 12


def test_no_drop_shows_every_frame_however_slow(make_clip, make_predictor, make_screen, slow):
    screen = make_screen()
    stats = run_demo(make_predictor(slow(0.05)), open_source(str(make_clip(5, fps=40))), screen, no_drop=True)
    assert (stats.frames, stats.dropped, len(screen.shown)) == (5, 0, 5)


def test_recorded_file_has_one_frame_per_source_frame_and_boxes_on_it(make_clip, make_predictor, tmp_path, read_clip):
    record = tmp_path / "out.avi"
    run_demo(make_predictor(), open_source(str(make_clip(6, fps=12.5))), NoScreen(), record=record)
    fps, frames = read_clip(record)
    assert fps == pytest.approx(12.5)
    assert len(frames) == 6
    # Below the panel and outside the box each frame keeps its own colour: RGB (10 i, 0, 200).
    np.testing.assert_allclose([frame[40:, 40:, 0].mean() for frame in frames], np.arange(6) * 10, atol=6)
    assert np.abs(frames[0][20, 4:20].astype(int) - frames[0][50, 50]).max() > 60  # the box's lower edge


def test_recorded_camera_keeps_the_clock_s_time(make_predictor, tmp_path, read_clip):
    record = tmp_path / "out.mp4"
    run_demo(make_predictor(), FakeCamera(), NoScreen(), record=record)
    fps, frames = read_clip(record)
    assert fps == pytest.approx(20)
    assert len(frames) == 19  # 0.9 s from the first to the last frame: 18 intervals of 1/20 s


def test_ctrl_c_keeps_the_recording_and_the_stats(make_clip, make_predictor, tmp_path, read_clip):
    record, stats = tmp_path / "out/clip.mp4", tmp_path / "out/stats.json"
    predictor = make_predictor(interrupt_at(4, KeyboardInterrupt))
    run_demo(predictor, open_source(str(make_clip(8))), NoScreen(), record=record, stats=stats)
    assert json.loads(stats.read_text())["frames"] == 3
    assert len(read_clip(record)[1]) == 3
    assert sorted(path.name for path in record.parent.iterdir()) == ["clip.mp4", "stats.json"]


@pytest.mark.parametrize(("number", "frames"), [(1, None), (3, 2)])
def test_error_keeps_what_was_recorded(make_clip, make_predictor, make_screen, tmp_path, read_clip, number, frames):
    record, screen = tmp_path / "out/clip.mp4", make_screen()
    predictor = make_predictor(interrupt_at(number, RuntimeError))
    with pytest.raises(RuntimeError):
        run_demo(predictor, open_source(str(make_clip(8))), screen, no_drop=True, record=record)
    assert screen.closes == 1
    if frames is None:
        assert not record.parent.exists()
    else:
        assert len(read_clip(record)[1]) == frames


def test_frames_limits_what_is_shown(make_clip, make_predictor):
    assert run_demo(make_predictor(), open_source(str(make_clip(8))), NoScreen(), frames=3).frames == 3


@pytest.mark.parametrize("ending", [{"keys": [None, "quit"]}, {"pictures": 2}])
def test_viewer_can_end_it(make_clip, make_predictor, make_screen, ending):
    screen = make_screen(*ending.get("keys", []), pictures=ending.get("pictures"))
    stats = run_demo(make_predictor(), open_source(str(make_clip(8))), screen, no_drop=True)
    assert stats.frames == 2
    assert screen.closes == 1


def test_pause_shows_nothing_new_and_drops_nothing(make_clip, make_predictor, make_screen):
    screen = make_screen("pause", None, None, None, None, None, "pause")  # six turns of at least 20 ms
    stats = run_demo(make_predictor(), open_source(str(make_clip(4, fps=20))), screen)
    assert stats.frames + stats.dropped == 4
    assert stats.frames >= 3  # counted in, the 120 ms would make two of these 50 ms frames late


def test_snapshot_is_the_picture_shown(make_clip, make_predictor, make_screen, tmp_path, monkeypatch):
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    screen = make_screen("snapshot")
    said: list[str] = []
    run_demo(make_predictor(), open_source(str(make_clip(2))), screen, no_drop=True, say=said.append)
    (saved,) = folder.iterdir()
    np.testing.assert_array_equal(read_image(saved), screen.shown[0])
    assert said == [f"saved {saved.name}"]


def test_viewer_changes_the_score_and_only_what_is_drawn_counts(make_clip, make_predictor, make_screen):
    predictor = make_predictor()
    screen = make_screen("raise_score", "raise_score", "lower_score")
    stats = run_demo(predictor, open_source(str(make_clip(4))), screen, no_drop=True, score=0.65)
    assert predictor.scores == [0.65, 0.7, 0.75, 0.7]
    assert stats.detections == {"b": 3}  # its 0.7 is not enough for 0.75


def test_score_stays_a_probability():
    controls = Controls(0.9)
    for _ in range(5):
        controls.press("raise_score")
    assert controls.score == 0.95
    for _ in range(50):
        controls.press("lower_score")
    assert controls.score == 0.05


def test_first_frame_counts_from_the_program_s_start(make_clip, make_predictor):
    started = time.perf_counter() - 5
    stats = run_demo(make_predictor(), open_source(str(make_clip(2))), NoScreen(), started=started)
    assert stats.first_frame_s is not None
    assert 5 < stats.first_frame_s < 8


def test_folder_of_mixed_sizes_is_shown_and_recorded(make_predictor, tmp_path, read_clip):
    for name, hw in (("a.png", (64, 96)), ("b.png", (50, 40))):
        write_image(tmp_path / "pictures" / name, np.zeros((*hw, 3), np.uint8))
    record = tmp_path / "out.mp4"
    stats = run_demo(make_predictor(), open_source(str(tmp_path / "pictures")), NoScreen(), record=record)
    assert (stats.frames, stats.dropped) == (2, 0)
    fps, frames = read_clip(record)
    assert (fps, len(frames)) == (1.0, 2)


def test_live_needs_neither_torch_nor_the_engine():
    code = "import sys, mnet_det.live.loop; print([m for m in ('torch', 'mnet_det.engine') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.shared
def test_real_clip_is_recorded_at_its_own_rate(shared: Path, make_predictor, tmp_path, read_clip):
    source = open_source(str(shared / "video" / "bottle-detection.mp4"))
    stats = run_demo(make_predictor(), source, NoScreen(), frames=40, record=tmp_path / "out.mp4")
    fps, frames = read_clip(tmp_path / "out.mp4")
    assert fps == pytest.approx(29.833, abs=1e-2)
    assert len(frames) == stats.frames == 40
