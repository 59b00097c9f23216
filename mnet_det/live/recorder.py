"""Annotated frames into a video file that plays at the source's speed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from mnet_det.errors import SourceError
from mnet_det.live.screen import to_bgr
from mnet_det.preprocess import plan_resize, resize_pixels
from mnet_det.structures import Image

CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
"""What each kind of file is coded with; the last one is OpenCV's own and works where nothing else does."""


def require_video(path: Path) -> None:
    """Refuse a name that does not end like a kind of video that can be written.

    Raises:
        SourceError: it does not.
    """
    if path.suffix.lower() not in CODECS:
        raise SourceError(f"{path}: not a kind of video that can be written; known: {', '.join(CODECS)}")


class Recorder:
    """A clip of constant frame rate, written under a temporary name and renamed by `close`.

    Pictures come with the number of the frame they are to be, so that the clip keeps the source's time: a gap repeats
    the last picture, a number that is taken already is passed over.
    """

    def __init__(self, path: Path, *, fps: float, say: Callable[[str], None] = print) -> None:
        """Prepare a recording; nothing is written before the first picture, which gives the size.

        Args:
            path: the file; its suffix names its kind.
            fps: frames per second of the clip.
            say: told in a line if another kind of file has to be written.

        Raises:
            SourceError: the suffix is not that of a known kind of video.
        """
        require_video(path)
        self.path = path
        self.frames = 0
        self._fps = fps
        self._say = say
        self._video: Any = None
        self._size_hw = (0, 0)
        self._last_bgr: Image | None = None

    def write(self, image: Image, *, index: int) -> None:
        """Make RGB uint8 [H, W, 3] frame number `index`; one of another size than the first is fitted into it.

        Raises:
            SourceError: the file cannot be written.
        """
        height, width = image.shape[:2]
        if self._video is None:
            self._size_hw = (height, width)
            self._video = self._open()
        if (height, width) != self._size_hw:
            image = resize_pixels(image, plan_resize((height, width), self._size_hw, "letterbox"))
        bgr = to_bgr(image)
        if self._last_bgr is None:
            self._last_bgr = bgr  # what came before the first picture looks like it
        self.fill(index)
        self._last_bgr = bgr
        self.fill(index + 1)

    def fill(self, frames: int) -> None:
        """Repeat the last picture until the clip has so many frames."""
        while self._last_bgr is not None and self.frames < frames:
            self._video.write(self._last_bgr)
            self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; without a picture there is no file.

        Raises:
            SourceError: the disk is full, or the name is taken by a file in use.
        """
        if self._video is None:
            return
        self._video.release()
        self._video = None
        self._last_bgr = None
        temporary = self._temporary
        if not self.frames:
            temporary.unlink(missing_ok=True)
            return
        try:
            if not _plays(temporary):
                raise SourceError(f"{self.path}: what was written does not play; is the disk full? See {temporary}")
            os.replace(temporary, self.path)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be written ({error.strerror}); see {temporary}") from None

    @property
    def _temporary(self) -> Path:
        """Hidden, beside the file, this process's own, and with its suffix, from which OpenCV picks the container."""
        return self.path.with_name(f".{self.path.stem}.{os.getpid()}.tmp{self.path.suffix}")

    def _open(self) -> Any:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be written ({error.strerror})") from None
        asked, instead = self.path, self.path.with_suffix(".avi")
        # Nobody has asked to replace a file of that other name.
        for path in (asked,) if instead == asked or instead.exists() else (asked, instead):
            self.path = path
            code = cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()])
            video = cv2.VideoWriter(str(self._temporary), code, self._fps, self._size_hw[::-1])
            if video.isOpened():
                if path != asked:
                    self._say(f"{asked}: this OpenCV cannot write such a file; recording {path} instead")
                return video
            video.release()
            self._temporary.unlink(missing_ok=True)
        raise SourceError(f"{asked}: cannot be written; may this user write to {asked.parent}?")


def _plays(path: Path) -> bool:
    """Whether a frame can be read; OpenCV does not tell of a disk that was full."""
    video = cv2.VideoCapture(str(path))
    plays: bool = video.grab()
    video.release()
    return plays
