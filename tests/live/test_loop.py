"""The loop shows, counts, records and ends as it should."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mnet_det.draw import class_colour
from mnet_det.errors import ConfigError
from mnet_det.images import read_image, write_image
from mnet_det.live import loop
from mnet_det.live.controls import Command
from mnet_det.live.frame import Frame
from mnet_det.live.loop import run_demo
from mnet_det.live.screen import NoScreen
from mnet_det.live.source import open_source


def interrupt_at(number: int, error: type[BaseException]):
    def act(call: int) -> None:
        if call == number:
            raise error

    return act


class FakeCamera:
    """Ten frames, every tenth of a second by their stamps, of a camera that claims 20 a second."""

    name = "camera 0"
    live = True
    fps = 20.0
    dropped = 0
    ended = False
    waiting = None
    index = 0

    def read(self, *, timeout_s):
        if self.index == 10:
            self.ended = True
            return None
        now_s = time.perf_counter()
        self.index += 1
        return Frame(np.zeros((64, 96, 3), np.uint8), self.index - 1, (self.index - 1) * 0.1, now_s, now_s)

    def pause(self):
        pass

    def resume(self):
        pass

    def close(self):
        pass


def test_unwatched_file_is_shown_frame_by_frame(make_clip, make_predictor):
    predictor = make_predictor()
    stats = run_demo([predictor], open_source(str(make_clip(8))), NoScreen(), say=print)
    assert (stats.frames, stats.read, stats.dropped, predictor.calls) == (8, 8, 0, 8)
    assert stats.detections == {"b": 8}
    assert stats.network_ms.p50 == 5.0


def test_watched_file_plays_at_its_own_speed(make_clip, make_predictor, make_screen):
    start_s = time.perf_counter()
    stats = run_demo([make_predictor()], open_source(str(make_clip(8, fps=40))), make_screen())
    elapsed_s = time.perf_counter() - start_s
    assert elapsed_s >= 8 / 40  # the last picture stays for its interval too
    assert stats.read == 8


def test_slow_model_drops_late_frames_and_the_clip_keeps_the_source_s_time(
    make_clip, make_predictor, make_screen, slow, tmp_path, read_clip
):
    source = open_source(str(make_clip(12, fps=30)))
    record = tmp_path / "out.mp4"
    stats = run_demo([make_predictor(slow(0.08))], source, make_screen(), record=record)
    assert stats.dropped > 0
    assert stats.frames + stats.dropped == stats.read == 12
    fps, frames = read_clip(record)
    assert fps == pytest.approx(30)
    assert len(frames) == 12


def test_no_drop_shows_every_frame_however_slow(make_clip, make_predictor, make_screen, slow):
    screen = make_screen()
    stats = run_demo([make_predictor(slow(0.05))], open_source(str(make_clip(5, fps=40))), screen, no_drop=True)
    assert (stats.frames, stats.dropped, len(screen.shown)) == (5, 0, 5)


def test_recorded_file_has_one_frame_per_source_frame_and_boxes_on_it(make_clip, make_predictor, tmp_path, read_clip):
    record = tmp_path / "out.avi"
    run_demo([make_predictor()], open_source(str(make_clip(6, fps=12.5))), NoScreen(), record=record)
    fps, frames = read_clip(record)
    assert fps == pytest.approx(12.5)
    assert len(frames) == 6
    # Below the panel and outside the box each frame keeps its own colour: RGB (10 i, 0, 200).
    np.testing.assert_allclose([frame[40:, 40:, 0].mean() for frame in frames], np.arange(6) * 10, atol=6)
    assert np.abs(frames[0][20, 4:20].astype(int) - frames[0][50, 50]).max() > 60  # the box's lower edge


def test_boxes_stand_on_top_of_the_panel_and_the_frame_stays_as_it_is(make_clip, make_predictor, make_screen):
    predictor, screen = make_predictor(), make_screen()
    run_demo([predictor], open_source(str(make_clip(2))), screen, no_drop=True)
    # The box's left edge, at x = 4 and below its label, in the colour of class 1; beside it the panel, darker than 200.
    assert screen.shown[0][17:20, 4].tolist() == [list(class_colour(1))] * 3
    assert screen.shown[0][17:20, 92, 2].max() < 100
    np.testing.assert_allclose(predictor.images[0].reshape(-1, 3), [(0, 0, 200)] * 64 * 96, atol=6)


def test_recorded_camera_keeps_the_clock_s_time(make_predictor, tmp_path, read_clip):
    record = tmp_path / "out.mp4"
    run_demo([make_predictor()], FakeCamera(), NoScreen(), record=record)
    fps, frames = read_clip(record)
    assert fps == pytest.approx(20)
    assert len(frames) == 19  # 0.9 s from the first to the last frame: 18 intervals of 1/20 s


def test_ctrl_c_keeps_the_recording_and_the_stats(make_clip, make_predictor, tmp_path, read_clip):
    record, stats = tmp_path / "out/clip.mp4", tmp_path / "out/stats.json"
    predictor = make_predictor(interrupt_at(4, KeyboardInterrupt))
    run_demo([predictor], open_source(str(make_clip(8))), NoScreen(), record=record, stats=stats)
    assert json.loads(stats.read_text())["frames"] == 3
    assert len(read_clip(record)[1]) == 3
    assert sorted(path.name for path in record.parent.iterdir()) == ["clip.mp4", "stats.json"]


def test_error_keeps_what_was_measured(make_clip, make_predictor, tmp_path):
    predictor = make_predictor(interrupt_at(3, RuntimeError))
    with pytest.raises(RuntimeError):
        run_demo([predictor], open_source(str(make_clip(8))), NoScreen(), stats=tmp_path / "stats.json")
    assert json.loads((tmp_path / "stats.json").read_text())["frames"] == 2


@pytest.mark.parametrize(("number", "frames"), [(1, None), (3, 2)])
def test_error_keeps_what_was_recorded(make_clip, make_predictor, make_screen, tmp_path, read_clip, number, frames):
    record, screen = tmp_path / "out/clip.mp4", make_screen()
    predictor = make_predictor(interrupt_at(number, RuntimeError))
    with pytest.raises(RuntimeError):
        run_demo([predictor], open_source(str(make_clip(8))), screen, no_drop=True, record=record)
    assert screen.closes == 1
    if frames is None:
        assert not record.parent.exists()
    else:
        assert len(read_clip(record)[1]) == frames


def test_frames_limits_what_is_shown(make_clip, make_predictor):
    assert run_demo([make_predictor()], open_source(str(make_clip(8))), NoScreen(), frames=3).frames == 3


@pytest.mark.parametrize("ending", [{"wishes": [None, "quit"]}, {"pictures": 2}])
def test_viewer_can_end_it(make_clip, make_predictor, make_screen, ending):
    screen = make_screen(*ending.get("wishes", []), pictures=ending.get("pictures"))
    stats = run_demo([make_predictor()], open_source(str(make_clip(8))), screen, no_drop=True)
    assert stats.frames == 2
    assert screen.closes == 1


def test_pause_shows_nothing_new_and_drops_nothing(make_clip, make_predictor, make_screen):
    screen = make_screen("pause", *[None] * 20, "pause")  # 21 turns of at least 20 ms
    stats = run_demo([make_predictor()], open_source(str(make_clip(4, fps=20))), screen)
    assert stats.frames + stats.dropped == 4
    assert stats.frames >= 3  # counted in, the 420 ms would make all but the first of these 50 ms frames late
    paused = [status for status in screen.statuses if status.paused]
    assert len(paused) <= 1  # one may have been on its way


def test_settings_act_on_the_picture_of_a_pause_which_counts_once(make_clip, make_predictor, make_screen):
    screen = make_screen("pause", Command("score", 0.9), *[None] * 10, "quit")
    screen.panel = False
    stats = run_demo([make_predictor()], open_source(str(make_clip(8))), screen, no_drop=True, score=0.5)
    before, after = screen.shown[-2:]
    # The box's lower edge, from (4, 20) to (20, 20), is there at 0.5, and not at 0.9; the frame is the same.
    assert np.abs(before[20, 8:16].astype(int) - before[50, 50]).max() > 60
    np.testing.assert_allclose(after[20, 8:16], after[50:51, 50].repeat(8, 0), atol=12)
    np.testing.assert_array_equal(before[50], after[50])
    assert screen.last.paused
    assert stats.frames == len(screen.shown) - 1 == stats.detections["b"]


def test_snapshots_are_the_pictures_shown(make_clip, make_predictor, make_screen, tmp_path, monkeypatch):
    """Two within a second had one name, and the second took the place of the first."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(time, "strftime", lambda form: "mnet-det-now")
    screen = make_screen("snapshot", "snapshot")
    said: list[str] = []
    run_demo([make_predictor()], open_source(str(make_clip(2))), screen, no_drop=True, say=said.append)
    assert said == ["saved mnet-det-now.png", "saved mnet-det-now-2.png"]
    for name, shown in zip(("mnet-det-now.png", "mnet-det-now-2.png"), screen.shown, strict=True):
        np.testing.assert_array_equal(read_image(folder / name), shown)
    assert screen.last.note == "saved mnet-det-now-2.png"


def test_viewer_records_a_part(make_clip, make_predictor, make_screen, tmp_path, monkeypatch, read_clip):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "mnet-det-now")
    screen = make_screen(None, "record", None, None, "record")
    said: list[str] = []
    run_demo([make_predictor()], open_source(str(make_clip(8, fps=12.5))), screen, no_drop=True, say=said.append)
    fps, frames = read_clip(tmp_path / "mnet-det-now.mp4")
    assert (fps, len(frames)) == (12.5, 3)
    # The third to the fifth of frames that are RGB (10 i, 0, 200).
    np.testing.assert_allclose([frame[50:, 50:, 0].mean() for frame in frames], (20, 30, 40), atol=6)
    assert [status.recording for status in screen.statuses[1:6]] == [None, *["mnet-det-now.mp4"] * 3, None]
    assert said == ["recorded mnet-det-now.mp4"]


def test_recording_of_nothing_says_so(make_clip, make_predictor, make_screen, tmp_path, monkeypatch):
    clip = make_clip(4)
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    screen, said = make_screen("pause", None, None, "record", "record", "pause"), []
    run_demo([make_predictor()], open_source(str(clip)), screen, no_drop=True, say=said.append)
    assert said == ["nothing came that could be recorded"]
    assert not list(folder.iterdir())


def test_recording_that_cannot_begin_does_not_end_the_demo(
    make_clip, make_predictor, make_screen, tmp_path, monkeypatch
):
    clip = make_clip(4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "VideoWriter", ClosedWriter)
    screen, said = make_screen("record"), []
    stats = run_demo([make_predictor()], open_source(str(clip)), screen, no_drop=True, say=said.append)
    assert stats.frames == 4
    assert len(said) == 1
    assert "cannot be written" in said[0]


class ClosedWriter:
    """OpenCV where it has no codec, or no right to write."""

    fourcc = staticmethod(cv2.VideoWriter.fourcc)

    def __init__(self, *args):
        pass

    def isOpened(self):  # noqa: N802 (OpenCV's name)
        return False

    def release(self):
        pass


def test_viewer_changes_the_score_and_only_what_is_drawn_counts(make_clip, make_predictor, make_screen):
    predictor = make_predictor()
    screen = make_screen("raise_score", "raise_score", "lower_score")
    stats = run_demo([predictor], open_source(str(make_clip(5))), screen, no_drop=True, score=0.65)
    # One frame is looked at while the one before is shown.
    assert predictor.scores == [0.65, 0.65, 0.7, 0.75, 0.7]
    assert stats.detections == {"b": 4}  # its 0.7 is not enough for 0.75
    assert screen.last.settings.score == 0.7


def test_each_model_s_own_scores_hold_until_one_is_set_and_again_when_that_is_taken_back(
    make_clip, make_predictor, make_screen
):
    scored, plain = make_predictor(class_scores=(0.3, 0.75)), make_predictor()
    screen = make_screen("lower_score", "own_score", "next_model")
    stats = run_demo([scored, plain], open_source(str(make_clip(6))), screen, no_drop=True)
    # One frame is looked at while the one before is shown. + and - begin at 0.5.
    assert scored.scores == [(0.3, 0.75), (0.3, 0.75), 0.45, (0.3, 0.75)]
    assert plain.scores == [0.5, 0.5]
    assert stats.detections == {"b": 3}  # its 0.7 is not enough for the 0.75 of class "b"


def test_run_of_a_sweep_has_its_short_name_on_the_screen_and_its_own_in_the_statistics(
    make_clip, make_predictor, make_screen
):
    name = "ssd-mobilenet_v1-alpha0.5-rho1-seed0-1f3a9c"
    screen = make_screen()
    stats = run_demo([make_predictor(name=name)], open_source(str(make_clip(2))), screen, no_drop=True)
    assert screen.last.models[0].name == "ssd-mobilenet_v1"
    assert [model.model for model in stats.models] == [name]


def test_nms_goes_to_the_predictor(make_clip, make_predictor, make_screen):
    predictor = make_predictor()
    run_demo([predictor], open_source(str(make_clip(3))), make_screen(Command("nms", 0.3)), no_drop=True)
    assert predictor.nms == [None, None, 0.3]


def test_only_classes_asked_for_are_drawn_and_counted(make_clip, make_predictor, make_screen):
    screen = make_screen(None, Command("classes", ("b",)), None, Command("classes", ()))
    source = open_source(str(make_clip(8)))
    stats = run_demo([make_predictor()], source, screen, no_drop=True, classes=["a"])
    # The wishes act from the second frame after them: frames 3 to 7 show the one object, which is of class "b".
    assert stats.detections == {"b": 5}


@pytest.mark.parametrize(("name", "hint"), [("c", "known: a, b"), ("bb", "did you mean 'b'")])
def test_class_that_no_model_knows_is_refused(make_clip, make_predictor, make_screen, name, hint):
    screen = make_screen()
    with pytest.raises(ConfigError, match=f"classes: no model knows '{name}'; {hint}"):
        run_demo([make_predictor()], open_source(str(make_clip(2))), screen, classes=["a", name])
    assert screen.closes == 1


def test_models_are_switched_live_and_counted_each(make_clip, make_predictor, make_screen):
    wide, narrow = make_predictor(alpha=1.0), make_predictor(alpha=0.5)
    screen = make_screen(None, "next_model", None, "next_model", None, Command("model", 1))
    stats = run_demo([wide, narrow], open_source(str(make_clip(10))), screen, no_drop=True)
    # The wishes come after pictures 1, 3 and 5 (from 0), and act from the second picture on.
    ran = [0, 0, 0, 1, 1, 0, 0, 1, 1, 1]
    assert (wide.calls, narrow.calls) == (ran.count(0), ran.count(1))
    assert [status.model for status in screen.statuses] == ran
    assert [(model.alpha, model.frames) for model in stats.models] == [(1.0, 5), (0.5, 5)]
    assert [card.alpha for card in screen.last.models] == [1.0, 0.5]
    # The first picture of a model is shown before it is measured, and never with the other one's numbers.
    first = [
        now for before, now in zip(screen.statuses, screen.statuses[1:], strict=False) if before.model != now.model
    ]
    assert [status.readings.network_ms for status in first] == [None] * 3


def test_meters_of_a_model_seen_in_a_pause_alone_are_not_the_other_one_s(make_clip, make_predictor, make_screen):
    screen = make_screen(None, "pause", "next_model", *[None] * 10, "quit")
    run_demo([make_predictor(), make_predictor()], open_source(str(make_clip(8))), screen, no_drop=True)
    assert (screen.last.model, screen.last.readings.network_ms) == (1, None)


def test_viewer_who_comes_late_sees_the_latest_picture(make_clip, make_predictor, make_screen):
    """While nothing came from the source, a new viewer saw a picture of long ago."""
    screen = make_screen("pause", *[None] * 10, "quit")
    screen.wants_pictures = False
    poll = screen.poll

    def poll_as_if_seen(status):
        if status.readings.frames == 3 and not status.paused:
            return [Command("pause")]
        if status.paused and not screen.shown:
            screen.wants_pictures = True
            return []
        return [Command("quit")] if screen.shown else poll(status)

    screen.poll = poll_as_if_seen
    run_demo([make_predictor()], open_source(str(make_clip(8))), screen, no_drop=True)
    assert screen.shown[0][50, 50, 0] == pytest.approx(30, abs=6)  # frame 3, which was on its way; RGB (10 i, 0, 200)
    assert len(screen.shown) == 1


def test_mirror_turns_the_picture_before_the_network_looks(make_predictor, make_screen, tmp_path):
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48] = 250  # the left half
    for number in range(4):
        write_image(tmp_path / "pictures" / f"{number}.png", image)
    predictor, screen = make_predictor(), make_screen("mirror")
    run_demo([predictor], open_source(str(tmp_path / "pictures")), screen, no_drop=True)
    assert [bool(seen[0, 0, 0]) for seen in predictor.images] == [True, True, False, False]
    assert screen.shown[-1][60, 80].tolist() == [250] * 3


def test_nothing_is_drawn_that_nobody_sees(make_clip, make_predictor, monkeypatch):
    def forbidden(*args):
        raise AssertionError("drawn")

    monkeypatch.setattr(loop, "draw_detections", forbidden)
    assert run_demo([make_predictor()], open_source(str(make_clip(3))), NoScreen()).frames == 3


def test_network_looks_on_while_the_picture_is_shown(make_clip, make_predictor, make_screen):
    """The second look begins before the first picture is on the screen, and waits there for its end."""
    second_look, first_shown = threading.Event(), threading.Event()

    def act(call: int) -> None:
        if call == 2:
            second_look.set()
            assert first_shown.wait(5)

    screen = make_screen()
    show = screen.show

    def show_late(picture, status):
        assert second_look.wait(5)
        first_shown.set()
        show(picture, status)

    screen.show = show_late
    assert run_demo([make_predictor(act)], open_source(str(make_clip(3))), screen, no_drop=True).frames == 3


class SilentCamera(FakeCamera):
    """Gives two frames, then nothing for so long, then one more."""

    silence_s = 0.5

    def read(self, *, timeout_s):
        now_s = time.perf_counter()
        if self.index == 0:
            self.start_s = now_s
        elif self.index == 2 and now_s - self.start_s < self.silence_s:
            self.waiting = "camera 0: no picture"
            time.sleep(0.01)
            return None
        elif self.index == 3:
            self.ended = True
            return None
        self.waiting = None
        self.index += 1
        return Frame(np.zeros((64, 96, 3), np.uint8), self.index - 1, now_s - self.start_s, now_s, now_s)


def test_silence_of_a_camera_is_told_and_the_clip_goes_on(make_predictor, make_screen, tmp_path, read_clip):
    camera, screen = SilentCamera(), make_screen()
    seen: dict[str | None, float | None] = {}
    poll = screen.poll
    screen.poll = lambda status: seen.update({status.note: status.readings.network_ms}) or poll(status)
    said: list[str] = []
    run_demo([make_predictor()], camera, screen, record=tmp_path / "out.avi", say=said.append)
    assert seen["camera 0: no picture"] is None  # old numbers are no numbers
    assert said == ["camera 0: no picture", "camera 0 is back", f"recorded {tmp_path / 'out.avi'}"]
    frames = read_clip(tmp_path / "out.avi")[1]
    assert len(frames) == pytest.approx(0.5 * 20, abs=4)  # the time that passed, at 20 a second


def test_first_frame_counts_from_the_program_s_start(make_clip, make_predictor):
    started = time.perf_counter() - 5
    stats = run_demo([make_predictor()], open_source(str(make_clip(2))), NoScreen(), started=started)
    assert stats.first_frame_s is not None
    assert 5 < stats.first_frame_s < 8


def test_folder_of_mixed_sizes_is_shown_and_recorded(make_predictor, tmp_path, read_clip):
    for name, hw in (("a.png", (64, 96)), ("b.png", (50, 40))):
        write_image(tmp_path / "pictures" / name, np.zeros((*hw, 3), np.uint8))
    record = tmp_path / "out.mp4"
    stats = run_demo([make_predictor()], open_source(str(tmp_path / "pictures")), NoScreen(), record=record)
    assert (stats.frames, stats.dropped) == (2, 0)
    fps, frames = read_clip(record)
    assert (fps, len(frames)) == (1.0, 2)


def test_live_needs_neither_torch_nor_the_engine():
    code = "import sys, mnet_det.live.loop; print([m for m in ('torch', 'mnet_det.engine') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.shared
def test_real_clip_is_recorded_at_its_own_rate(shared: Path, make_predictor, tmp_path, read_clip):
    source = open_source(str(shared / "video" / "bottle-detection.mp4"))
    stats = run_demo([make_predictor()], source, NoScreen(), frames=40, record=tmp_path / "out.mp4")
    fps, frames = read_clip(tmp_path / "out.mp4")
    assert fps == pytest.approx(29.833, abs=1e-2)
    assert len(frames) == stats.frames == 40
