"""Cameras: opening them with their settings, and what to say when that fails."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2

from mnet_det.errors import SourceError
from mnet_det.live.capture import SILENCE_S, Newest
from mnet_det.live.device import Device
from mnet_det.live.frame import Source

LONGEST_BACK_OFF_S = 5.0

CAMERA_ADVICE = {
    "linux": "your user may need the group 'video' (sudo usermod -aG video $USER, then log in again), a container "
    "--device /dev/video0",
    "darwin": "allow your terminal under System Settings > Privacy & Security > Camera, then start it again",
    "win32": "allow desktop apps under Settings > Privacy & security > Camera, or try --api dshow",
}

Wishes = dict[str, tuple[int, float]]
"""Name of each wish to OpenCV's property and value."""


def camera_index(word: str) -> int | None:
    """The number of a camera named by number, path or link (/dev/v4l/by-id/…); None for anything else."""
    if re.fullmatch(r"[0-9]{1,4}", word):  # OpenCV's numbers end with what an int can hold
        return int(word)
    match = re.fullmatch(r"/dev/video(\d+)", os.path.realpath(word))
    return int(match[1]) if match else None


def open_camera(
    word: str,
    *,
    width: int | None = None,
    height: int | None = None,
    fps: float | None = None,
    fourcc: str | None = None,
    api: str | None = None,
    say: Callable[[str], None] = print,
) -> Source:
    """Open the camera that `camera_index` has found in a word, and start to read it.

    Raises:
        SourceError: it cannot be opened; the message names those that can. Or a setting makes no sense.
    """
    wishes = _camera_wishes(width=width, height=height, fps=fps, fourcc=fourcc)
    backend = _camera_backend(api)
    name = f"camera {camera_index(word)}"
    say(f"opening {name}")
    device = _connect(word, backend)
    if device is None:
        raise SourceError(_no_camera(word, backend))
    for refusal in _ask(device, wishes):
        say(f"{name}: {refusal}")
    return Newest(
        Device(
            device,
            name=name,
            silence=f"{name}: no picture; is it still plugged in? waiting for it",
            connect=partial(_connect_again, word, backend=backend, wishes=wishes),
            patience_s=SILENCE_S,
            longest_back_off_s=LONGEST_BACK_OFF_S,
        )
    )


def _connect(word: str, backend: int) -> Any | None:
    index = camera_index(word)  # each time: a link may lead to another number after the cable was out
    if index is None:
        return None
    device = cv2.VideoCapture(index, backend)
    if device.isOpened():
        return device
    device.release()
    return None


def _connect_again(word: str, *, backend: int, wishes: Wishes) -> Any | None:
    device = _connect(word, backend)
    if device is not None:
        _ask(device, wishes)
    return device


def _camera_wishes(*, width: int | None, height: int | None, fps: float | None, fourcc: str | None) -> Wishes:
    """What to ask a camera for; the format comes first, for it decides what sizes there are."""
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


def _ask(device: Any, wishes: Wishes) -> list[str]:
    """Ask a camera for what was wished; a line for each wish that it did not grant."""
    refusals = []
    for name, (key, value) in wishes.items():
        device.set(key, value)
        granted = device.get(key)
        if granted != value:
            refusals.append(f"asked for {name} {_spell(name, value)}, got {_spell(name, granted)}")
    device.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return refusals


def _spell(name: str, value: float) -> str:
    """A setting's value as users write it."""
    if name == "fourcc" and value > 0:
        return int(value).to_bytes(4, "little").decode("latin-1")
    return f"{value:g}"


def _camera_backend(api: str | None) -> int:
    if api is None:
        return int(cv2.CAP_ANY)
    registry = cv2.videoio_registry
    known = {registry.getBackendName(backend).lower(): int(backend) for backend in registry.getCameraBackends()}
    if api.lower() not in known:
        raise SourceError(f"api: got {api!r}, this OpenCV knows {', '.join(sorted(known))}")
    return known[api.lower()]


def _no_camera(word: str, backend: int) -> str:
    index = camera_index(word)
    others = [str(other) for other in range(10) if other != index and _answers(other, backend)]
    found = f"those that can: {', '.join(others)}" if others else "nor can any other from 0 to 9"
    advice = CAMERA_ADVICE.get(sys.platform, "")
    return (
        f"camera {index}: cannot be opened, {found}; is it plugged in, and does no other program use it?"
        f"{' On this system: ' + advice if advice else ''}"
    )


def _answers(index: int, backend: int) -> bool:
    device = _connect(str(index), backend)
    if device is not None:
        device.release()
    return device is not None
