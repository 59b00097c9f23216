"""What every source gives: frames in RGB. A camera's and a video's BGR ends in this file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import cv2

from mnet_det.errors import SourceError
from mnet_det.structures import Image

FALLBACK_FPS = 30.0
"""For cameras and files that do not say, or say something absurd (some containers give their time base, 90000)."""


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: RGB uint8 [H, W, 3].
        index: its place in the source, dropped frames counted.
        time_s: media time: seconds since the first frame, pauses left out.
        read_s: when its pixels were in memory, or, of a file, when it was given; like `due_s` a stamp of
            `time.perf_counter`.
        due_s: when it should be seen: its turn when a file plays at its own speed, the moment of capture for a
            camera or a stream, else `read_s`.
    """

    image: Image
    index: int
    time_s: float
    read_s: float
    due_s: float


class Source(Protocol):
    """A stream of frames. One thread reads; the others may be called from another one meanwhile.

    Attributes:
        name: what messages call it, such as "camera 0".
        live: it goes on whether or not anybody reads, and drops what nobody took.
        fps: its own speed.
        dropped: frames passed over so far, pauses left out.
        ended: no frame will come any more.
        waiting: why there is no picture, in a line for the viewer; None while they come.
    """

    name: str
    live: bool
    fps: float
    dropped: int
    ended: bool
    waiting: str | None

    def read(self, *, timeout_s: float) -> Frame | None:
        """The next frame, or None if there is none within `timeout_s` or at the end."""

    def pause(self) -> None:
        """Stop media time: what passes from now on is neither due nor dropped."""

    def resume(self) -> None:
        """Let media time go on from where it stopped."""

    def close(self) -> None:
        """Let go of the device or file."""


def sane_fps(fps: float) -> float:
    """What a camera or a file says of its speed, if that can be true."""
    return fps if 0 < fps <= 240 else FALLBACK_FPS


def to_rgb(bgr: Any) -> Image:
    """A copy of BGR uint8 [H, W, 3] in RGB.

    Raises:
        SourceError: something else.
    """
    if bgr.ndim != 3 or bgr.shape[2] != 3:
        raise SourceError(f"got pictures of {list(bgr.shape)}, expected BGR [H, W, 3]; try another --fourcc, or none")
    image: Image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return image


def silence_opencv() -> None:
    """Keep OpenCV and FFmpeg, in this process, from telling of each interface tried in vain and each picture missed."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # OpenCV 5 moved it.
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel
    set_level(0)
