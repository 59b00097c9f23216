"""Where frames come from: a camera, a video file or a folder of images.

Every source gives RGB; a camera's and a video's BGR ends in this file.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2

from mnet_det.errors import DataError, SourceError
from mnet_det.images import SUFFIXES, list_images, read_image
from mnet_det.structures import Image

FALLBACK_FPS = 30.0
"""For cameras and files that do not say, or say something absurd (some containers give their time base, 90000)."""

FOLDER_FPS = 1.0
"""Pictures of a folder, when somebody watches: one a second."""

SILENCE_S = 10.0
"""A camera without a picture for so long has stopped; Linux's own driver waits as long for a slow one."""

CAMERA_ADVICE = {
    "linux": "your user may need the group 'video' (sudo usermod -aG video $USER, then log in again), a container "
    "--device /dev/video0",
    "darwin": "allow your terminal under System Settings > Privacy & Security > Camera, then start it again",
    "win32": "allow desktop apps under Settings > Privacy & security > Camera, or try --api dshow",
}


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: RGB uint8 [H, W, 3].
        index: its place in the source, dropped frames counted.
        time_s: media time: seconds since the first frame, pauses left out.
        read_s: when its pixels were in memory; like `due_s` a stamp of `time.perf_counter`.
        due_s: when it should be seen: its turn when a file plays at its own speed, the moment of capture for a
            camera, else `read_s`.
    """

    image: Image
    index: int
    time_s: float
    read_s: float
    due_s: float


class Source(Protocol):
    """A stream of frames.

    Attributes:
        live: it goes on whether or not anybody reads, and drops what nobody took.
        fps: its own speed.
        dropped: frames passed over so far.
        ended: no frame will come any more.
    """

    live: bool
    fps: float
    dropped: int
    ended: bool

    def read(self, *, timeout_s: float) -> Frame | None:
        """The next frame, or None if there is none within `timeout_s` or at the end."""

    def leave_out(self, pause_s: float) -> None:
        """Leave a pause of so many seconds out of the schedule and out of media time."""

    def close(self) -> None:
        """Let go of the device or file."""


def open_source(
    word: str,
    *,
    width: int | None = None,
    height: int | None = None,
    fps: float | None = None,
    fourcc: str | None = None,
    api: str | None = None,
    say: Callable[[str], None] = print,
) -> Source:
    """Open what a SOURCE word means.

    Args:
        word: a camera's number or path ("0", "/dev/video0"), a video file, or a folder of images.
        width: a wish about a camera, as are the next four; files have no use for them.
        height: a wish.
        fps: a wish.
        fourcc: the pixel format a camera sends, such as MJPG.
        api: the system's camera interface, such as v4l2, dshow, msmf or avfoundation.
        say: told in a line where a camera does not grant a wish.

    Raises:
        SourceError: it cannot be opened, or there is no frame in it.
    """
    # FFmpeg's own lines about a damaged file; the SourceError says it once.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    index = _camera_index(word)
    if index is not None:
        wishes = _camera_wishes(width=width, height=height, fps=fps, fourcc=fourcc)
        return Camera(_open_camera(index, wishes=wishes, api=api, say=say), name=f"camera {index}")
    path = Path(word)
    if path.is_dir():
        return ImageFolder(path)
    if path.suffix.lower() in SUFFIXES:
        raise SourceError(f"{path}: a picture, not a video; give its folder, or use mnet-det predict")
    return VideoFile(path)


class Recorded(ABC):
    """A source that waits for its reader: frame after frame, none dropped."""

    live = False
    dropped = 0

    def __init__(self, *, fps: float) -> None:
        self.fps = fps
        self.ended = False
        self._index = 0

    @abstractmethod
    def next_s(self) -> float | None:
        """Media time of the frame that comes next, None after the last."""

    @abstractmethod
    def _take(self) -> Image | None:
        """The pixels of that frame, None if they are damaged."""

    def read(self, *, timeout_s: float = 0.0) -> Frame | None:
        """The next frame; it never waits, whatever `timeout_s`."""
        time_s = self.next_s()
        image = None if time_s is None else self._take()
        if time_s is None or image is None:
            self.ended = True
            return None
        now_s = time.perf_counter()
        self._index += 1
        return Frame(image, self._index - 1, time_s, now_s, now_s)

    def skip(self) -> None:
        """Pass over the next frame."""
        self._index += 1

    def leave_out(self, pause_s: float) -> None:  # noqa: B027 (meant: files have no schedule, only `Paced` has)
        """Nothing to do: it waits for its reader anyway."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""


class VideoFile(Recorded):
    """A video file, frame by frame."""

    def __init__(self, path: Path) -> None:
        """Open a file and decode its first frame.

        Raises:
            SourceError: there is no such file, it is no video, or no frame can be decoded.
        """
        if not path.is_file():
            raise SourceError(
                f"{path}: no such file; expected a camera's number such as 0, a video file or a folder of images"
            )
        with _quiet_opencv():
            self._video = cv2.VideoCapture(str(path))
        # FFmpeg renders plain text as a film of a terminal.
        if not self._video.isOpened() or self._video.get(cv2.CAP_PROP_FOURCC) == cv2.VideoWriter.fourcc(*"ansi"):
            raise SourceError(f"{path}: not a video that can be decoded; is the file whole?")
        super().__init__(fps=_sane_fps(self._video.get(cv2.CAP_PROP_FPS)))
        self._start_s: float | None = None
        self._time_s: float | None = None
        self._decoded = False
        if self.next_s() is None:
            self.close()
            raise SourceError(f"{path}: a video without a single frame that can be decoded")

    def next_s(self) -> float | None:
        """Media time of the frame that comes next, None after the last."""
        if not self._decoded:
            self._decoded = self._video.grab()
            if not self._decoded:
                return None
            self._time_s = self._stamp()
        return self._time_s

    def skip(self) -> None:
        """Pass over the next frame."""
        self.next_s()
        self._decoded = False
        super().skip()

    def close(self) -> None:
        """Close the file."""
        self._video.release()

    def _take(self) -> Image | None:
        self._decoded = False
        found, bgr = self._video.retrieve()
        return _to_rgb(bgr) if found else None

    def _stamp(self) -> float:
        """The file's own stamp (frame rates vary in phone clips), or one interval on where it has no use for one."""
        stamp_s: float = self._video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._time_s is None:
            self._start_s = stamp_s
            return 0.0
        if self._start_s is None or not stamp_s - self._start_s > self._time_s:
            return self._time_s + 1 / self.fps
        return stamp_s - self._start_s


class ImageFolder(Recorded):
    """The images directly in a folder, by name."""

    def __init__(self, folder: Path) -> None:
        """List a folder.

        Raises:
            SourceError: there is no image in it.
        """
        super().__init__(fps=FOLDER_FPS)
        try:
            self._paths = list_images(folder)
        except DataError as error:
            raise SourceError(str(error)) from None

    def next_s(self) -> float | None:
        """Media time of the picture that comes next, None after the last."""
        return self._index / self.fps if self._index < len(self._paths) else None

    def close(self) -> None:
        """Nothing to do: no file stays open."""

    def _take(self) -> Image:
        return read_image(self._paths[self._index])


class Paced:
    """A recorded source at its own speed: waits for each frame's turn, drops those whose turn has passed."""

    live = False

    def __init__(
        self,
        source: Recorded,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.fps = source.fps
        self.dropped = 0
        self.ended = False
        self._source = source
        self._clock = clock
        self._sleep = sleep
        self._start_s: float | None = None
        self._end_s = 0.0

    def read(self, *, timeout_s: float) -> Frame | None:
        """The frame whose turn it is, or None if that is more than `timeout_s` away or the last one's time is over."""
        now_s = self._clock()
        if self._start_s is None:
            self._start_s = now_s
        # Against the time of the call: a file that decodes slower than it plays would else never give a frame.
        while (time_s := self._source.next_s()) is not None and self._start_s + time_s + 1 / self.fps <= now_s:
            self._source.skip()
            self.dropped += 1
        due_s = self._start_s + (self._end_s if time_s is None else time_s)
        self._sleep(max(0.0, min(timeout_s, due_s - now_s)))
        if due_s - now_s > timeout_s:
            return None
        frame = self._source.read()
        if frame is None:
            self.ended = True
            return None
        self._end_s = frame.time_s + 1 / self.fps
        return replace(frame, due_s=due_s)

    def leave_out(self, pause_s: float) -> None:
        """Move the schedule by the pause."""
        if self._start_s is not None:
            self._start_s += pause_s

    def close(self) -> None:
        """Close the file."""
        self._source.close()


@dataclass(frozen=True)
class _Capture:
    bgr: Any
    index: int
    captured_s: float
    read_s: float


class Camera:
    """A camera, read in a thread that keeps the newest frame only, so that a slow reader never lags behind."""

    live = True

    def __init__(self, device: Any, *, name: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start reading an opened `cv2.VideoCapture`."""
        self.fps = _sane_fps(device.get(cv2.CAP_PROP_FPS))
        self.dropped = 0
        self.ended = False
        self._device = device
        self._name = name
        self._clock = clock
        self._heard_s = clock()
        self._start_s: float | None = None
        self._newest: _Capture | None = None
        self._arrival = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_newest, name=name, daemon=True)
        self._thread.start()

    def read(self, *, timeout_s: float) -> Frame | None:
        """The newest frame that was not given yet, or None if none came within `timeout_s`.

        Raises:
            SourceError: the camera has stopped giving pictures.
        """
        with self._arrival:
            self._arrival.wait_for(lambda: self._newest is not None, timeout_s)
            newest, self._newest = self._newest, None
        if newest is None:
            if self._clock() - self._heard_s > SILENCE_S:
                raise SourceError(
                    f"{self._name}: no picture for {SILENCE_S:.0f} s; is it still plugged in, and does no other "
                    "program use it?"
                )
            return None
        self._heard_s = newest.captured_s
        if self._start_s is None:
            self._start_s = newest.captured_s
        time_s = newest.captured_s - self._start_s
        return Frame(_to_rgb(newest.bgr), newest.index, time_s, newest.read_s, newest.captured_s)

    def leave_out(self, pause_s: float) -> None:
        """Take the pause out of media time."""
        if self._start_s is not None:
            self._start_s += pause_s
        self._heard_s += pause_s

    def close(self) -> None:
        """Stop reading. A device that hangs is left to the end of the process: releasing it mid-read can crash."""
        self._closing.set()
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():
            self._device.release()

    def _keep_newest(self) -> None:
        index = 0
        while not self._closing.is_set():
            grabbed = self._device.grab()
            captured_s = self._clock()
            found, bgr = self._device.retrieve() if grabbed else (False, None)
            if not found:
                self._closing.wait(0.01)  # one damaged picture is no reason to stop; `read` notices a silence
                continue
            with self._arrival:
                self.dropped += self._newest is not None
                self._newest = _Capture(bgr, index, captured_s, self._clock())
                self._arrival.notify()
            index += 1


def _camera_index(word: str) -> int | None:
    """The number of a camera named by number, path or link (/dev/v4l/by-id/…); None for anything else."""
    if word.isdecimal():
        return int(word)
    match = re.fullmatch(r"/dev/video(\d+)", os.path.realpath(word))
    return int(match[1]) if match else None


def _camera_wishes(
    *, width: int | None, height: int | None, fps: float | None, fourcc: str | None
) -> dict[str, tuple[int, float]]:
    """Name of each wish to OpenCV's property and value; the format comes first, for it decides what sizes there are."""
    if fourcc is not None and (len(fourcc) != 4 or not fourcc.isascii()):
        raise SourceError(f"fourcc: got {fourcc!r}, expected four letters such as MJPG or YUYV")
    code = None if fourcc is None else cv2.VideoWriter.fourcc(*fourcc)
    wishes = {
        "fourcc": (cv2.CAP_PROP_FOURCC, code),
        "width": (cv2.CAP_PROP_FRAME_WIDTH, width),
        "height": (cv2.CAP_PROP_FRAME_HEIGHT, height),
        "fps": (cv2.CAP_PROP_FPS, fps),
    }
    return {name: (key, value) for name, (key, value) in wishes.items() if value is not None}


def _open_camera(
    index: int, *, wishes: dict[str, tuple[int, float]], api: str | None, say: Callable[[str], None]
) -> Any:
    if sys.platform == "win32":
        # Without it Windows' default interface takes up to minutes to open some cameras (opencv #17687).
        os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")
    backend = _camera_backend(api)
    with _quiet_opencv():
        device = cv2.VideoCapture(index, backend)
    if not device.isOpened():
        raise SourceError(_no_camera(index, backend))
    for name, (key, value) in wishes.items():
        device.set(key, value)
        granted = device.get(key)
        if granted != value:
            say(f"camera {index}: asked for {name} {value:g}, got {granted:g}")
    device.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return device


def _camera_backend(api: str | None) -> int:
    if api is None:
        return int(cv2.CAP_ANY)
    registry = cv2.videoio_registry
    known = {registry.getBackendName(backend).lower(): int(backend) for backend in registry.getCameraBackends()}
    if api.lower() not in known:
        raise SourceError(f"api: got {api!r}, this OpenCV knows {', '.join(sorted(known))}")
    return known[api.lower()]


def _no_camera(index: int, backend: int) -> str:
    others = [other for other in range(10) if other != index and _answers(other, backend)]
    found = f"those that can: {', '.join(map(str, others))}" if others else "nor can any other from 0 to 9"
    advice = CAMERA_ADVICE.get(sys.platform, "")
    return (
        f"camera {index}: cannot be opened, {found}; is it plugged in, and does no other program use it?"
        f"{' On this system: ' + advice if advice else ''}"
    )


def _answers(index: int, backend: int) -> bool:
    with _quiet_opencv():
        device = cv2.VideoCapture(index, backend)
    opened: bool = device.isOpened()
    device.release()
    return opened


def _sane_fps(fps: float) -> float:
    return fps if 0 < fps <= 240 else FALLBACK_FPS


def _to_rgb(bgr: Any) -> Image:
    image: Image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return image


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from telling about each interface that it tries in vain."""
    # OpenCV 5 moved it.
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel
    level = set_level(0)
    try:
        yield
    finally:
        set_level(level)
