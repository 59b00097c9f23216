"""Network streams, and videos at an address."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2

from mnet_det.errors import SourceError
from mnet_det.live.capture import Newest
from mnet_det.live.device import Device
from mnet_det.live.frame import Source
from mnet_det.live.recorded import Recorded, VideoFile

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp")

TIMEOUT_S = 5.0
"""For opening and for each frame; OpenCV's own is 30 s."""

LONGEST_BACK_OFF_S = 10.0


def is_address(word: str) -> bool:
    """Whether a word looks like an address rather than a file."""
    return re.match(r"[a-z][a-z0-9+.-]*://", word, re.IGNORECASE) is not None


def without_secrets(address: str) -> str:
    """An address for the eye: user and password, and what follows a question mark (cameras take passwords there)."""
    hidden = re.sub(r"://.*@", "://***@", address)  # up to the last @, for a password may hold one, or a slash
    return re.sub(r"\?.*", "?…", hidden)


def open_stream(address: str, *, say: Callable[[str], None] = print) -> Recorded | Source:
    """Open an address: a stream, read from now on, or a video that has an end.

    FFmpeg's options are OpenCV's defaults (RTSP over TCP) or those of OPENCV_FFMPEG_CAPTURE_OPTIONS. The popular
    "fflags;nobuffer|flags;low_delay" are not among them: the first throws away all before the second key frame, up to
    seconds, and shortens nothing for a thread that reads whatever has come; the second does not reach the decoder.

    Raises:
        SourceError: it cannot be opened. Neither this nor any other message holds what `without_secrets` hides.
    """
    name = without_secrets(address)
    scheme = address.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise SourceError(f"{name}: expected an address that begins with {', '.join(f'{s}://' for s in SCHEMES)}")
    say(f"opening {name}")
    device = _connect(address)
    if device is None:
        raise SourceError(
            f"{name}: no video comes from there; check the address, the network, and the user and password if it asks "
            "for them"
        )
    if scheme in ("http", "https") and device.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        return VideoFile(device, name=name)
    return Newest(
        Device(
            device,
            name=name,
            silence=f"{name}: no picture; waiting for it to come back",
            connect=partial(_connect, address),
            patience_s=0.0,  # FFmpeg passes over damage by itself: a failed grab is the end of a connection
            longest_back_off_s=LONGEST_BACK_OFF_S,
        )
    )


def _connect(address: str) -> Any | None:
    limit_ms = int(1000 * TIMEOUT_S)
    settings = {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: limit_ms,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: limit_ms,
        cv2.CAP_PROP_N_THREADS: 1,  # each thread of the decoder holds back one frame
    }
    device = cv2.VideoCapture(address, cv2.CAP_FFMPEG, [number for pair in settings.items() for number in pair])
    if device.isOpened():
        return device
    device.release()
    return None
