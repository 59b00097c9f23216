"""What a thread reads: the newest frame of a device, a file at its own speed, every frame of a file."""

from __future__ import annotations

import threading
import time
import tracemalloc

import numpy as np
import pytest

from mnet_det.errors import DataError
from mnet_det.images import write_image
from mnet_det.live import capture
from mnet_det.live.capture import Feed, Newest, Player, ReadAhead, Timeline, play
from mnet_det.live.frame import Frame
from mnet_det.live.recorded import ImageFolder, Recorded, open_video

WAIT_S = 5.0


class FlipBook(Recorded):
    """Frames at `fps`; the picture of frame i is filled with i. Decoding may take time, or fail at a frame."""

    def __init__(self, frames: int, *, fps: float = 10.0, decode=lambda: None, fails_at: int | None = None) -> None:
        super().__init__(name="book", fps=fps, frames=frames)
        self.pages = frames
        self.taken: list[int] = []
        self.closed = False
        self._decode = decode
        self._decoded = -1
        self._fails_at = fails_at

    def next_s(self):
        if self._decoded != self.index < self.pages:
            self._decode()
            self._decoded = self.index
        return self.index / self.fps if self.index < self.pages else None

    def close(self):
        self.closed = True

    def _pixels(self):
        if self.index == self._fails_at:
            raise DataError(f"page {self.index}: torn")
        self.taken.append(self.index)
        return np.full((2, 2, 3), self.index, np.uint8)


class HandFeed(Feed):
    """A device that gives a frame for each `give`, stamped by its timeline, unless it is paused."""

    live = True
    silence = "hand: no picture"

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(name="hand", fps=30.0, timeline=timeline)
        self.closed = False
        self._frames = threading.Semaphore(0)
        self._starving = threading.Event()

    def take(self, stop):
        while not stop.is_set():
            if not self._frames.acquire(blocking=False):
                self._starving.set()
                if not self._frames.acquire(timeout=0.01):
                    continue
            if not self.timeline.paused:
                self.index += 1
                now_s = self.timeline.now_s()
                return Frame(np.zeros((2, 2, 3), np.uint8), self.index - 1, now_s - 100.0, now_s, now_s)
        return None

    def close(self):
        self.closed = True

    def give(self, frames: int) -> None:
        """Hand out frames and wait until the thread has taken all of them."""
        self._frames.release(frames)
        self._starving.clear()
        assert self._starving.wait(WAIT_S)


@pytest.fixture
def hand(clock):
    """A feed by hand and its source, which somebody has begun to read."""
    feed = HandFeed(Timeline(clock))
    source = Newest(feed)
    assert source.read(timeout_s=0.0) is None
    yield feed, source
    source.close()
    assert feed.closed


def read_all(source) -> list[Frame]:
    frames = []
    deadline_s = time.monotonic() + WAIT_S
    while not source.ended:
        assert time.monotonic() < deadline_s
        frame = source.read(timeout_s=0.02)
        if frame is not None:
            frames.append(frame)
    source.close()
    return frames


def test_timeline_leaves_pauses_out(clock):
    timeline = Timeline(clock)
    timeline.pause()
    timeline.pause()  # twice is once
    clock.now_s = 107.0
    assert (timeline.paused, timeline.now_s(), timeline.on_clock_s(99.0)) == (True, 100.0, 106.0)
    timeline.resume()
    timeline.resume()
    clock.now_s = 108.0
    assert (timeline.paused, timeline.now_s(), timeline.on_clock_s(99.0)) == (False, 101.0, 106.0)


def test_newest_frame_is_given_and_the_others_are_dropped(hand):
    feed, source = hand
    feed.give(5)
    assert (source.read(timeout_s=WAIT_S).index, source.dropped) == (4, 4)
    assert source.read(timeout_s=0.0) is None  # no frame twice
    feed.give(1)
    assert (source.read(timeout_s=WAIT_S).index, source.dropped) == (5, 4)
    assert (source.name, source.live, source.fps, source.ended) == ("hand", True, 30.0, False)


def test_before_the_first_read_nothing_is_dropped(clock):
    feed = HandFeed(Timeline(clock))
    source = Newest(feed)
    feed.give(5)
    assert source.read(timeout_s=0.0) is None
    feed.give(1)
    assert (source.read(timeout_s=WAIT_S).index, source.dropped) == (0, 0)
    source.close()


def test_pause_drops_nothing_and_takes_no_media_time(hand, clock):
    feed, source = hand
    feed.give(1)
    assert source.read(timeout_s=WAIT_S).due_s == 100.0
    clock.now_s = 103.0
    source.pause()
    feed.give(9)
    clock.now_s = 110.0
    source.resume()
    clock.now_s = 111.0
    feed.give(1)
    frame = source.read(timeout_s=WAIT_S)
    assert (frame.index, source.dropped) == (1, 0)
    assert (frame.time_s, frame.read_s, frame.due_s) == (4.0, 111.0, 111.0)  # 11 s, 7 of them paused


def test_device_s_frame_of_before_a_pause_is_not_given_after_it(hand, clock):
    """A viewer who went on after a minute saw a picture a minute old, with a latency of nothing."""
    feed, source = hand
    feed.give(1)
    source.pause()
    clock.now_s = 160.0
    source.resume()
    assert source.read(timeout_s=0.0) is None
    feed.give(1)
    assert source.read(timeout_s=WAIT_S).index == 1
    assert source.dropped == 1


def test_file_s_frame_that_waits_through_a_pause_does_not_age(hand, clock):
    feed, source = hand
    source.live = False
    feed.give(1)
    source.pause()
    clock.now_s = 160.0
    source.resume()
    clock.now_s = 160.5
    frame = source.read(timeout_s=WAIT_S)
    assert (frame.time_s, frame.read_s, frame.due_s) == (0.0, 160.0, 160.0)  # half a second old


def test_silence_is_told_while_it_lasts_even_if_the_device_blocks(hand, clock):
    feed, source = hand
    clock.now_s += capture.SILENCE_S
    assert source.read(timeout_s=0.0) is None
    assert source.waiting is None
    clock.now_s += 0.1
    assert source.read(timeout_s=0.0) is None
    assert source.waiting == "hand: no picture"
    feed.give(1)
    assert source.read(timeout_s=WAIT_S) is not None
    assert source.waiting is None


def test_paused_time_is_no_silence(hand, clock):
    _, source = hand
    source.pause()
    clock.now_s += 60.0
    source.resume()
    assert source.read(timeout_s=0.0) is None
    assert source.waiting is None


def test_slow_reader_gets_fresh_frames_of_a_fast_device_and_memory_does_not_grow():
    """60 frames a second, 100 ms for each: what is taken is at most a frame old, and only one is held."""

    class Fast(Feed):
        live = True

        def take(self, stop):
            stop.wait(1 / 60)
            now_s = self.timeline.now_s()
            self.index += 1
            return None if stop.is_set() else Frame(np.zeros((480, 640, 3), np.uint8), self.index - 1, 0, now_s, now_s)

        def close(self):
            pass

    source = Newest(Fast(name="fast", fps=60.0, timeline=Timeline()))
    assert source.read(timeout_s=WAIT_S) is not None
    ages_s = []
    tracemalloc.start()
    for _ in range(8):
        time.sleep(0.1)
        frame = source.read(timeout_s=WAIT_S)
        ages_s.append(time.perf_counter() - frame.due_s)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    source.close()
    assert np.median(ages_s) < 1 / 60 + 0.005
    assert source.dropped >= 20  # of 48
    assert held < 2.5 * 640 * 480 * 3
    assert peak < 4 * 640 * 480 * 3  # the reader's, the one that waits, the one that comes


def test_what_goes_wrong_in_the_thread_reaches_the_reader():
    book = FlipBook(5, fps=100.0, fails_at=1)
    source = play(book)
    with pytest.raises(DataError, match="page 1: torn"):
        read_all(source)
    source.close()
    assert book.closed


def test_hanging_device_is_left_alone(monkeypatch):
    """Releasing a device while another thread reads it can crash."""
    monkeypatch.setattr(capture, "CLOSING_S", 0.05)
    hang = threading.Event()
    book = FlipBook(5, decode=hang.wait)
    source = play(book)
    source.close()
    assert not book.closed
    hang.set()
    source._thread.join(WAIT_S)
    assert book.closed  # by its own thread


def take_all(player: Player, clock) -> list[tuple[int, float, float]]:
    """(index, turn, time when it was given) of each frame."""
    given = []
    while (frame := player.take(threading.Event())) is not None:
        given.append((frame.index, round(frame.due_s, 6), round(clock.now_s, 6)))
    return given


def test_player_gives_each_frame_at_its_turn(clock):
    player = Player(FlipBook(3), timeline=Timeline(clock), sleep=clock.sleep)
    assert take_all(player, clock) == [(0, 100.0, 100.0), (1, 100.1, 100.1), (2, 100.2, 100.2)]
    assert clock.now_s == pytest.approx(100.3)  # the last picture stays for its interval too


def test_player_decodes_before_the_turn(clock):
    """The first frame, decoded at 100.07, starts the schedule; 70 ms of decoding fit into the 100 ms of each frame."""
    player = Player(FlipBook(3, decode=lambda: clock.sleep(0.07)), timeline=Timeline(clock), sleep=clock.sleep)
    assert take_all(player, clock) == [(0, 100.07, 100.07), (1, 100.17, 100.17), (2, 100.27, 100.27)]


def test_player_passes_over_frames_that_come_too_late_without_converting_them(clock):
    book = FlipBook(10)
    player = Player(book, timeline=Timeline(clock), sleep=clock.sleep)
    player.take(threading.Event())
    clock.now_s = 100.35  # frames 1 and 2 were to be seen until 100.2 and 100.3; frame 3 is on until 100.4
    frame = player.take(threading.Event())
    assert (frame.index, frame.due_s, player.index) == (3, pytest.approx(100.3), 4)
    assert book.taken == [0, 3]


@pytest.mark.parametrize(("said", "given"), [(10, [0, 9]), (0, [0]), (7, [0, 6]), (12, [0])])
def test_last_frame_is_shown_however_late_if_the_file_says_which_it_is(clock, said, given):
    book = FlipBook(10)
    player = Player(book, timeline=Timeline(clock), sleep=clock.sleep)
    player.take(threading.Event())
    book.frames = said
    clock.now_s = 200.0
    take_all(player, clock)
    assert book.taken == given
    assert player.index == 10


def test_file_that_decodes_slower_than_it_plays_still_gives_frames(clock):
    """Twice as slow: to pass over frames never catches up, so that one of each 0.2 s is shown, to the end."""
    player = Player(FlipBook(60, decode=lambda: clock.sleep(0.2)), timeline=Timeline(clock), sleep=clock.sleep)
    given = take_all(player, clock)
    assert np.diff([given_s for _, _, given_s in given]).max() <= 0.6 + 1e-6
    assert len(given) >= 20
    assert clock.now_s == pytest.approx(112.0, abs=0.3)  # 60 × 0.2 s


def test_player_stands_still_in_a_pause(clock):
    timeline = Timeline(clock)
    naps_s: list[float] = []

    def sleep(seconds: float) -> None:
        """The viewer pauses at 100.04 for a minute."""
        naps_s.append(seconds)
        clock.sleep(max(seconds, 1e-6))  # more than the rounding of the clock
        if len(naps_s) == 2:
            timeline.pause()
        if clock.now_s > 160.0:
            timeline.resume()

    player = Player(FlipBook(3), timeline=timeline, sleep=sleep)
    assert [index for index, _, _ in take_all(player, clock)] == [0, 1, 2]
    assert clock.now_s == pytest.approx(160.3, abs=0.05)
    assert max(naps_s) <= capture.TURN_S


def test_played_file_gives_all_frames_to_a_quick_reader_and_ends():
    book = FlipBook(12, fps=60.0)
    start_s = time.perf_counter()
    source = play(book)
    frames = read_all(source)
    # 12 intervals of 1/60 s; a machine under load may drop a frame, but never the last one.
    assert 0.19 < time.perf_counter() - start_s < 2.0
    assert (source.live, source.name, source.waiting) == (False, "book", None)
    assert frames[-1].index == 11
    assert len(frames) + source.dropped == 12
    turns_s = [frame.due_s - frame.time_s for frame in frames]
    np.testing.assert_allclose(turns_s, turns_s[0], atol=1e-6)
    assert all(frame.read_s >= frame.due_s for frame in frames)
    assert book.closed


def test_slow_reader_of_a_played_file_drops_frames_but_not_the_last():
    source = play(FlipBook(30, fps=100.0))
    frames = []
    while not source.ended:
        frame = source.read(timeout_s=0.02)
        if frame is not None:
            frames.append(frame.index)
            time.sleep(0.08)
    source.close()
    assert frames[0] == 0
    assert frames[-1] == 29
    assert len(frames) + source.dropped == 30
    assert source.dropped >= 15


def test_frames_of_a_played_file_that_nobody_took_are_still_there_at_the_end():
    source = play(FlipBook(3, fps=100.0))
    assert source.read(timeout_s=WAIT_S).index == 0
    time.sleep(0.1)
    assert not source.ended
    assert source.read(timeout_s=0.0).index == 2
    assert source.read(timeout_s=0.0) is None
    assert source.ended
    assert source.dropped == 1
    source.close()


def test_pause_of_a_played_file_drops_nothing():
    source = play(FlipBook(4, fps=40.0))
    first = source.read(timeout_s=WAIT_S)
    source.pause()
    paused_s = time.perf_counter()
    time.sleep(0.15)
    source.resume()
    pause_s = time.perf_counter() - paused_s
    rest = read_all(source)
    assert source.dropped == 0
    assert [frame.index for frame in rest] == [1, 2, 3]
    assert rest[-1].due_s - first.due_s == pytest.approx(0.075 + pause_s, abs=0.02)
    assert rest[-1].time_s == 0.075


def test_closing_a_played_file_counts_nothing_as_dropped():
    source = play(FlipBook(100))
    source.read(timeout_s=WAIT_S)
    source.close()
    assert source.dropped == 0


def test_read_ahead_gives_every_frame_to_any_reader():
    book = FlipBook(6, fps=1.0)
    source = ReadAhead(book)
    frames = []
    while not source.ended:
        before_s = time.perf_counter()
        frame = source.read(timeout_s=WAIT_S)
        if frame is not None:
            assert frame.due_s == frame.read_s >= before_s  # when it was taken, however early it was decoded
            frames.append((frame.index, frame.time_s, int(frame.image[0, 0, 0])))
            time.sleep(0.01)
    source.close()
    assert frames == [(i, float(i), i) for i in range(6)]
    assert (source.dropped, source.live, source.name, source.waiting) == (0, False, "book", None)
    assert book.closed


def test_read_ahead_decodes_one_frame_while_the_reader_is_busy():
    book = FlipBook(6)
    source = ReadAhead(book)
    source.read(timeout_s=WAIT_S)
    time.sleep(0.05)
    assert book.taken == [0, 1]
    source.close()


def test_read_ahead_waits_no_longer_than_asked():
    ready = threading.Event()
    source = ReadAhead(FlipBook(1, decode=ready.wait))
    assert source.read(timeout_s=0.01) is None
    assert not source.ended
    ready.set()
    assert source.read(timeout_s=WAIT_S).index == 0
    source.close()


@pytest.mark.parametrize("start", [play, ReadAhead])
def test_broken_image_of_a_folder_reaches_the_reader(tmp_path, monkeypatch, start):
    monkeypatch.setattr("mnet_det.live.recorded.FOLDER_FPS", 50.0)
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"no picture")
    source = start(ImageFolder(tmp_path))
    assert source.read(timeout_s=WAIT_S).index == 0
    with pytest.raises(DataError, match=r"b\.png: not an image"):
        read_all(source)
    source.close()


@pytest.mark.parametrize("start", [play, ReadAhead])
def test_video_is_given_whole(make_clip, start):
    source = start(open_video(make_clip(8, fps=50.0)))
    frames = read_all(source)
    assert len(frames) + source.dropped == 8
    np.testing.assert_allclose(frames[-1].image.mean((0, 1)), (70, 0, 200), atol=6)
