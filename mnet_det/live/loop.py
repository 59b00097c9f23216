"""The live loop: a detector thread looks at one frame while the main thread draws and shows the one before."""

from __future__ import annotations

import difflib
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mnet_det.draw import draw_detections
from mnet_det.errors import ConfigError, MnetDetError
from mnet_det.images import write_image
from mnet_det.live.capture import ReadAhead, play
from mnet_det.live.controls import Command, Controls, Settings
from mnet_det.live.frame import Frame, Source
from mnet_det.live.lineup import ModelCard, cards_of
from mnet_det.live.overlay import draw_panel, panel_lines
from mnet_det.live.recorded import Recorded
from mnet_det.live.recorder import Recorder
from mnet_det.live.screen import Screen, Status
from mnet_det.live.stats import Stats, Tally
from mnet_det.structures import Detections, Image

if TYPE_CHECKING:
    from mnet_det.runtime.predictor import Predictor

POLL_S = 0.02
"""Longest wait for a frame before the screen gets a turn; a window feels sticky beyond a few of these."""

NOTE_S = 3.0
"""How long a screen shows what was said."""


def run_demo(
    models: Sequence[Predictor],
    source: Recorded | Source,
    screen: Screen,
    *,
    score: float | None = None,
    nms: float | None = None,
    classes: Sequence[str] = (),
    mirror: bool = False,
    record: Path | None = None,
    frames: int | None = None,
    no_drop: bool = False,
    stats: Path | None = None,
    started: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Stats:
    """Detect and show until the source ends, a viewer quits, enough frames were shown, `stop` says so, or Ctrl-C.

    A file plays at its own speed and drops late frames if somebody watches; else, and with `no_drop`, every frame is
    shown, as fast as that goes. A camera cannot wait: it always gives its newest frame.

    Args:
        models: what a viewer can switch between; the first runs first.
        source: where frames come from; closed at the end.
        screen: where they go; closed at the end.
        score: least probability of what is drawn and counted, each model's own unless given; like the next three, a
            viewer can change it.
        nms: IoU above which the lesser of two boxes of a class goes; the model's own unless given.
        classes: names of those that are drawn and counted; all unless given.
        mirror: left and right change places, as in a mirror.
        record: video file for the annotated frames.
        frames: how many to show at most.
        no_drop: show every frame of a file, whoever watches.
        stats: JSON file for what is returned.
        started: the stamp of `time.perf_counter` from which `first_frame_s` counts; now, unless given.
        stop: asked at each turn whether to end; a handler of signals can answer, which must not interrupt a frame.
        say: told in a line what a viewer should know.

    Raises:
        ConfigError: a class that no model knows.
        SourceError: the recording cannot be written. What was recorded and measured before is kept, as with the next.
        DataError: an image of a folder cannot be read.
        MnetDetError: the statistics cannot be written.
    """
    with ExitStack() as stack:
        if isinstance(source, Recorded):
            source = play(source) if screen.watched and not no_drop else ReadAhead(source)
        stack.callback(source.close)
        stack.callback(screen.close)
        cards = cards_of(models)
        _require_known(classes, cards)
        detector = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="detector"))
        settings = Settings(score=score, nms=nms, classes=tuple(classes), mirror=mirror)
        demo = _Demo(
            models, cards, source, screen, detector, settings=settings, started=started, frames=frames, say=say
        )
        stack.callback(demo.stop_recording)
        if record is not None:
            demo.start_recording(record, required=True)
        try:
            while not demo.over:
                if stop():
                    say("stopped")
                    break
                demo.turn()
        except KeyboardInterrupt:
            say("stopped")
        finally:
            result = demo.stats()
            if stats is not None:
                result.write(stats)
        demo.fill_recording(result.read)  # frames dropped after the last one shown
    return result


@dataclass(frozen=True)
class _Look:
    """What the detector thread found in a frame, and how it was asked to look; `again`: at a frame shown before."""

    frame: Frame
    image: Image
    detections: Detections
    network_ms: float
    settings: Settings
    again: bool


class _Demo:
    """One run. All but the looking happens in the main thread, which is the one that windows need."""

    def __init__(
        self,
        models: Sequence[Predictor],
        cards: Sequence[ModelCard],
        source: Source,
        screen: Screen,
        detector: ThreadPoolExecutor,
        *,
        settings: Settings,
        started: float | None,
        frames: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._models = models
        self._cards = cards
        self._source = source
        self._screen = screen
        self._detector = detector
        self._frames = frames
        self._say = say
        self._controls = Controls(models=len(models), settings=settings)
        self._tally = Tally(started_s=time.perf_counter() if started is None else started)
        self._pending: Future[_Look | None] | None = None
        self._look: _Look | None = None
        self._picture: Image | None = None
        self._unseen = False
        self._paused_s = 0.0
        self._heard_s = 0.0
        self._recorder: Recorder | None = None
        self._must_record = False
        self._waiting: str | None = None
        self._recording_from = 0
        self._note, self._note_until_s = "", 0.0

    @property
    def over(self) -> bool:
        """Whether there is nothing more to show, or nobody wants to see it."""
        ended = self._source.ended and self._pending is None
        return self._controls.quit or self._screen.closed or self._tally.frames == self._frames or ended

    def turn(self) -> None:
        """Wait a moment for what the detector found, show it while the detector looks on, and listen to the viewers."""
        if self._pending is None:
            self._start_looking()
        look = self._found()
        if look is not None:
            self._look, self._picture = look, None
        if self._pending is None:
            self._start_looking()
        if look is not None:
            self._show(look)
        elif self._look is not None and self._unseen and self._screen.wants_pictures:
            self._show_picture(self._look)  # to a viewer who came while nothing does
        self._keep_clip_going()
        self._tell_silence()
        for command in self._screen.poll(self._status()):
            self._obey(command)

    def stats(self) -> Stats:
        """What was measured so far."""
        # By the models' own names, which are what the other files of a sweep call its runs.
        return self._tally.stats([ModelCard.of(model) for model in self._models], dropped=self._source.dropped)

    def start_recording(self, path: Path, *, required: bool = False) -> None:
        """Record what comes from now on; where that is `required`, the demo ends if it cannot be done.

        Raises:
            SourceError: not a kind of video.
        """
        self._must_record = required
        self._recorder = Recorder(path, fps=self._source.fps, say=self._tell)
        self._recording_from = 0 if self._look is None else self._clip_index(self._look.frame) + 1

    def fill_recording(self, frames: int) -> None:
        """Repeat the last picture of a file's recording until it has one for each of so many frames of the file."""
        if self._recorder is not None and not self._source.live:
            self._recorder.fill(frames - self._recording_from)

    def stop_recording(self) -> bool:
        """Give the recording its name, if there is one; whether there is.

        Raises:
            SourceError: it could not be written.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return False
        recorder.close()
        if recorder.frames:
            self._tell(f"recorded {recorder.path}")
        return recorder.frames > 0

    def _start_looking(self) -> None:
        """Let the detector look at the next frame, or, in a pause, once more at the last one if that was asked for."""
        settings = self._controls.settings
        model = self._models[settings.model]
        if self._controls.paused:
            if self._look is not None and self._look.settings != settings:
                self._pending = self._detector.submit(_look_at, model, self._look.frame, settings, again=True)
        elif not self._source.ended:
            self._pending = self._detector.submit(_look_at_next, model, self._source, settings)

    def _found(self) -> _Look | None:
        if self._pending is None:
            time.sleep(POLL_S)  # paused
            return None
        if not wait([self._pending], POLL_S).done:
            return None
        done, self._pending = self._pending, None
        return done.result()

    def _show(self, look: _Look) -> None:
        self._unseen = True
        if self._screen.wants_pictures:
            self._show_picture(look)
        if not look.again:
            self._count(look, shown_s=time.perf_counter())

    def _show_picture(self, look: _Look) -> None:
        self._screen.show(self._draw(look), self._status())
        self._unseen = False

    def _count(self, look: _Look, *, shown_s: float) -> None:
        names = self._cards[look.settings.model].class_names
        classes = [names[label] for label in look.detections.labels]
        self._tally.add(look.frame, classes, shown_s=shown_s, network_ms=look.network_ms, model=look.settings.model)
        self._heard_s = look.frame.read_s
        if self._controls.paused:  # it was on its way when the pause began
            self._paused_s = shown_s
        if self._recorder is not None:
            self._record(self._recorder, look)

    def _record(self, recorder: Recorder, look: _Look) -> None:
        try:
            recorder.write(self._draw(look), index=self._clip_index(look.frame) - self._recording_from)
        except MnetDetError as error:
            if self._must_record:
                raise
            self._recorder = None
            self._tell(str(error))

    def _keep_clip_going(self) -> None:
        """While nothing comes from a live source, go on with the last picture: the clip keeps the clock's time."""
        if self._recorder is None or self._look is None or self._controls.paused or self._source.waiting is None:
            return
        time_s = self._look.frame.time_s + time.perf_counter() - self._heard_s
        self._recorder.fill(int(time_s * self._source.fps) - self._recording_from)

    def _draw(self, look: _Look) -> Image:
        """The picture of a look, drawn once."""
        if self._picture is None:
            below = look.image
            if self._screen.panel:
                below = below.copy()
                draw_panel(below, panel_lines(self._status()))
            # On top: what is in the picture matters more than the meters where both meet.
            self._picture = draw_detections(below, look.detections, self._cards[look.settings.model].class_names)
        return self._picture

    def _status(self) -> Status:
        settings, waiting = self._controls.settings, self._source.waiting
        noted = self._note if time.perf_counter() < self._note_until_s else None
        model = settings.model if self._look is None else self._look.settings.model
        readings = self._tally.readings(dropped=self._source.dropped, model=model)
        if waiting is not None:
            readings = replace(readings, fps=None, latency_ms=None, network_ms=None)
        return Status(
            source=self._source.name,
            models=self._cards,
            model=model,
            settings=settings,
            readings=readings,
            paused=self._controls.paused,
            recording=None if self._recorder is None else self._recorder.path.name,
            note=waiting or noted,
        )

    def _obey(self, command: Command) -> None:
        was_paused = self._controls.paused
        self._controls.obey(command)
        if self._controls.paused and not was_paused:
            self._pause()
        elif was_paused and not self._controls.paused:
            self._resume()
        elif command.action == "snapshot":
            self._save_snapshot()
        elif command.action == "record":
            self._toggle_recording()

    def _pause(self) -> None:
        self._source.pause()
        self._paused_s = time.perf_counter()

    def _resume(self) -> None:
        self._source.resume()
        pause_s = time.perf_counter() - self._paused_s
        self._tally.leave_out(pause_s)
        self._heard_s += pause_s

    def _save_snapshot(self) -> None:
        if self._look is None:
            return
        path = _free_name(".png")
        try:
            write_image(path, self._draw(self._look))
        except MnetDetError as error:
            self._tell(str(error))  # no reason to stop watching
        else:
            self._tell(f"saved {path}")

    def _toggle_recording(self) -> None:
        try:
            if self._recorder is None:
                self.start_recording(_free_name(".mp4"))
            elif not self.stop_recording():
                self._tell("nothing came that could be recorded")
        except MnetDetError as error:
            self._recorder = None
            self._tell(str(error))

    def _clip_index(self, frame: Frame) -> int:
        """Which frame of the source's clip it is: a camera's clip keeps its time, a file's keeps its frames."""
        return round(frame.time_s * self._source.fps) if self._source.live else frame.index

    def _tell_silence(self) -> None:
        """Say it once when the pictures stay away, and once when they are back."""
        waiting = self._source.waiting
        if waiting != self._waiting:
            self._tell(waiting or f"{self._source.name} is back")
        self._waiting = waiting

    def _tell(self, text: str) -> None:
        self._say(text)
        self._note, self._note_until_s = text, time.perf_counter() + NOTE_S


def _look_at_next(model: Predictor, source: Source, settings: Settings) -> _Look | None:
    """What is in the source's next frame, or None if none comes within `POLL_S`."""
    frame = source.read(timeout_s=POLL_S)
    return None if frame is None else _look_at(model, frame, settings)


def _look_at(model: Predictor, frame: Frame, settings: Settings, *, again: bool = False) -> _Look:
    image = cv2.flip(frame.image, 1) if settings.mirror else frame.image
    score = model.viewing_score if settings.score is None else settings.score
    detections, times = model.timed(image, score=score, nms=settings.nms)
    if settings.classes:
        labels = [label for label, name in enumerate(model.class_names) if name in settings.classes]
        detections = detections[np.isin(detections.labels, labels)]
    return _Look(frame, image, detections, times.network_ms, settings, again)


def _require_known(classes: Sequence[str], cards: Sequence[ModelCard]) -> None:
    known = sorted({name for card in cards for name in card.class_names})
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"classes: no model knows {name!r}; {hint}")


def _free_name(suffix: str) -> Path:
    """A name with the time in it, in the working folder, that nothing there has."""
    stem = time.strftime("mnet-det-%Y%m%d-%H%M%S")
    names = (f"{stem}{number}{suffix}" for number in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
    return next(path for path in map(Path, names) if not path.exists())
