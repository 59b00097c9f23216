"""What a SOURCE word means."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mnet_det.errors import SourceError
from mnet_det.images import SUFFIXES
from mnet_det.live.camera import camera_index, open_camera
from mnet_det.live.frame import Source, silence_opencv
from mnet_det.live.recorded import ImageFolder, Recorded, open_video
from mnet_det.live.stream import is_address, open_stream


def open_source(
    word: str,
    *,
    width: int | None = None,
    height: int | None = None,
    fps: float | None = None,
    fourcc: str | None = None,
    api: str | None = None,
    say: Callable[[str], None] = print,
) -> Recorded | Source:
    """Open what a word means; `capture.play` or `capture.ReadAhead` makes a source of what is recorded.

    Args:
        word: a camera's number or path ("0", "/dev/video0"), a stream's address, a video file, or a folder of images.
        width: a wish about a camera, as are the next four; nothing else has a use for them.
        height: a wish.
        fps: a wish.
        fourcc: the pixel format a camera sends, such as MJPG.
        api: the system's camera interface, such as v4l2, dshow, msmf or avfoundation.
        say: told in a line what is being opened, and where a camera does not grant a wish.

    Raises:
        SourceError: it cannot be opened, or there is no frame in it.
    """
    if not word:
        raise SourceError("source: got an empty word, expected a camera's number, a file, a folder or an address")
    silence_opencv()  # what is wrong is said once, by ours
    if camera_index(word) is not None:
        return open_camera(word, width=width, height=height, fps=fps, fourcc=fourcc, api=api, say=say)
    if is_address(word):
        return open_stream(word, say=say)
    path = Path(word)
    if os.path.isdir(path):  # unlike pathlib's, never an error, such as for a word that is too long to be a name
        return ImageFolder(path)
    if path.suffix.lower() in SUFFIXES:
        raise SourceError(f"{path}: a picture, not a video; give its folder, or use mnet-det predict")
    return open_video(path)
