"""Files: a video or a folder of images, frame after frame."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import cv2

from mnet_det.errors import DataError, SourceError
from mnet_det.images import list_images, read_image
from mnet_det.live.frame import sane_fps, to_rgb
from mnet_det.structures import Image

FOLDER_FPS = 1.0
"""Pictures of a folder, when somebody watches: one a second."""


class Recorded(ABC):
    """Frames that wait for their reader; `play` and `ReadAhead` make a `Source` of them.

    Attributes:
        name: what messages call it: its path.
        fps: its own speed.
        frames: how many there are, as far as the file says; 0: it does not.
        index: place of the frame that comes next.
    """

    def __init__(self, *, name: str, fps: float, frames: int) -> None:
        self.name = name
        self.fps = fps
        self.frames = frames
        self.index = 0

    @abstractmethod
    def next_s(self) -> float | None:
        """Media time of the frame that comes next, None after the last."""

    def take(self) -> Image | None:
        """The pixels of that frame, None if they are damaged or there is none.

        Raises:
            DataError: an image of a folder cannot be read.
        """
        image = None if self.next_s() is None else self._pixels()
        self.index += image is not None
        return image

    def skip(self) -> None:
        """Pass over that frame."""
        self.index += 1

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    @abstractmethod
    def _pixels(self) -> Image | None: ...


class VideoFile(Recorded):
    """A video that has an end."""

    def __init__(self, video: Any, *, name: str) -> None:
        """Take over an opened `cv2.VideoCapture` and decode its first frame.

        Raises:
            SourceError: no frame can be decoded.
        """
        frames = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        super().__init__(name=name, fps=sane_fps(video.get(cv2.CAP_PROP_FPS)), frames=frames)
        self._video = video
        self._start_s: float | None = None
        self._time_s: float | None = None
        self._decoded = False
        if self.next_s() is None:
            self.close()
            raise SourceError(f"{name}: a video without a single frame that can be decoded")

    def next_s(self) -> float | None:
        """Media time of the frame that comes next, None after the last."""
        if not self._decoded:
            self._decoded = self._video.grab()
            if not self._decoded:
                return None
            self._time_s = self._stamp()
        return self._time_s

    def skip(self) -> None:
        """Pass over that frame; its pixels are not converted."""
        self.next_s()
        self._decoded = False
        super().skip()

    def close(self) -> None:
        """Close the file."""
        self._video.release()

    def _pixels(self) -> Image | None:
        self._decoded = False
        found, bgr = self._video.retrieve()
        return to_rgb(bgr) if found else None

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
        try:
            self._paths = list_images(folder)
        except DataError as error:
            raise SourceError(str(error)) from None
        super().__init__(name=str(folder), fps=FOLDER_FPS, frames=len(self._paths))

    def next_s(self) -> float | None:
        """Media time of the picture that comes next, None after the last."""
        return self.index / self.fps if self.index < self.frames else None

    def close(self) -> None:
        """Nothing to do: no file stays open."""

    def _pixels(self) -> Image:
        return read_image(self._paths[self.index])


def open_video(path: Path) -> VideoFile:
    """Open a video file.

    Raises:
        SourceError: there is no such file, it is no video, or no frame can be decoded.
    """
    if not os.path.isfile(path):
        raise SourceError(
            f"{path}: no such file; expected a camera's number such as 0, a video file, a folder of images or a "
            "stream's address such as rtsp://…"
        )
    video = cv2.VideoCapture(str(path))
    # FFmpeg renders plain text as a film of a terminal.
    if not video.isOpened() or video.get(cv2.CAP_PROP_FOURCC) == cv2.VideoWriter.fourcc(*"ansi"):
        video.release()
        raise SourceError(f"{path}: not a video that can be decoded; is the file whole?")
    return VideoFile(video, name=str(path))
