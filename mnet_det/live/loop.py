"""The live loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mnet_det.errors import MnetDetError
from mnet_det.images import write_image
from mnet_det.live.overlay import draw_overlay, panel_lines
from mnet_det.live.recorder import Recorder
from mnet_det.live.screen import Key, Screen
from mnet_det.live.source import Frame, Paced, Recorded, Source
from mnet_det.live.stats import Stats, Tally
from mnet_det.structures import Image

if TYPE_CHECKING:
    from mnet_det.runtime.predictor import Predictor

POLL_S = 0.02
"""Longest wait for a frame before the screen gets a turn; a window feels sticky beyond a few of these."""

SCORE_STEP = 0.05


def run_demo(
    predictor: Predictor,
    source: Source,
    screen: Screen,
    *,
    score: float = 0.5,
    record: Path | None = None,
    frames: int | None = None,
    no_drop: bool = False,
    stats: Path | None = None,
    started: float | None = None,
    say: Callable[[str], None] = print,
) -> Stats:
    """Detect and show until the source ends, the viewer quits, enough frames were shown, or Ctrl-C.

    A file plays at its own speed and drops late frames if somebody watches; else, and with `no_drop`, every frame is
    shown, as fast as that goes. A camera cannot wait: it always gives its newest frame.

    Args:
        predictor: the model.
        source: where frames come from; closed at the end.
        screen: where they go; closed at the end.
        score: least probability of what is drawn and counted; the viewer can change it.
        record: video file for the annotated frames.
        frames: how many to show at most.
        no_drop: show every frame of a file, whoever watches.
        stats: JSON file for what is returned.
        started: the stamp of `time.perf_counter` from which `first_frame_s` counts; now, unless given.
        say: told in a line what a viewer should know.

    Raises:
        SourceError: a camera stopped, or the recording cannot be written. What was recorded before is kept.
    """
    tally = Tally(started_s=time.perf_counter() if started is None else started)
    controls = Controls(score)
    if isinstance(source, Recorded) and screen.watched and not no_drop:
        source = Paced(source)
    model = model_line(predictor)
    picture: Image | None = None
    with ExitStack() as stack:
        stack.callback(source.close)
        stack.callback(screen.close)
        recorder = stack.enter_context(Recorder(record, fps=source.fps, say=say)) if record else None
        try:
            while not (controls.quit or source.ended or screen.closed or tally.frames == frames):
                if controls.paused:
                    key, pause_s = _idle(screen)
                    source.leave_out(pause_s)
                    tally.leave_out(pause_s)
                elif (frame := source.read(timeout_s=POLL_S)) is None:
                    key = screen.poll()
                else:
                    detections, times = predictor.timed(frame.image, score=controls.score)
                    lines = panel_lines(model, tally.readings(dropped=source.dropped), score=controls.score)
                    picture = draw_overlay(frame.image, detections, predictor.class_names, lines)
                    key = screen.show(picture)
                    tally.add(frame, detections, shown_s=time.perf_counter(), network_ms=times.network_ms)
                    if recorder is not None:
                        recorder.write(picture, index=_clip_index(frame, source))
                controls.press(key)
                if key == "snapshot" and picture is not None:
                    _save_snapshot(picture, say)
        except KeyboardInterrupt:
            say("stopped")
        result = tally.stats(predictor.class_names, dropped=source.dropped)
        if recorder is not None and not source.live:
            recorder.fill(result.read)  # frames dropped after the last one shown
    if recorder is not None and recorder.frames:
        say(f"recorded {recorder.path}")
    if stats is not None:
        result.write(stats)
    return result


@dataclass
class Controls:
    """What the viewer has asked for so far."""

    score: float
    paused: bool = False
    quit: bool = False

    def press(self, key: Key | None) -> None:
        """Follow a key; those that ask for no lasting change do nothing here."""
        match key:
            case "quit":
                self.quit = True
            case "pause":
                self.paused = not self.paused
            case "raise_score":
                self.score = min(0.95, round(self.score + SCORE_STEP, 2))
            case "lower_score":
                self.score = max(0.05, round(self.score - SCORE_STEP, 2))


def model_line(predictor: Predictor) -> str:
    """What is running, for the panel."""
    metadata = predictor.metadata
    height, width = metadata.input_hw
    threads = f"{predictor.threads} thread{'' if predictor.threads == 1 else 's'}"
    return f"{metadata.name}   alpha {metadata.alpha:g}   {width}x{height}   {predictor.runtime}, {threads}"


def _clip_index(frame: Frame, source: Source) -> int:
    """Which frame of the clip it is: a camera's clip keeps its time, a file's keeps its frames."""
    return round(frame.time_s * source.fps) if source.live else frame.index


def _idle(screen: Screen) -> tuple[Key | None, float]:
    """Let a paused screen have a turn; the key, and how many seconds went by."""
    start_s = time.perf_counter()
    key = screen.poll()
    time.sleep(POLL_S)
    return key, time.perf_counter() - start_s


def _save_snapshot(picture: Image, say: Callable[[str], None]) -> None:
    path = Path(time.strftime("mnet-det-%Y%m%d-%H%M%S.png"))
    try:
        write_image(path, picture)
    except MnetDetError as error:
        say(str(error))  # no reason to stop watching
    else:
        say(f"saved {path}")
