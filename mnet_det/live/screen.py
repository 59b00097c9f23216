"""Where pictures go. RGB becomes the BGR of OpenCV's windows, recordings and JPEGs here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2

from mnet_det.live.controls import Command, Settings
from mnet_det.live.lineup import ModelCard
from mnet_det.live.stats import Readings
from mnet_det.structures import Image


@dataclass(frozen=True)
class Status:
    """Everything beside the picture that a screen may show.

    Attributes:
        source: what is watched, such as "camera 0".
        models: all that can be switched to.
        model: which of them found what is shown.
        settings: what holds from the next frame on.
        readings: the meters.
        recording: the file that is being written.
        note: something that a viewer should know now.
    """

    source: str
    models: Sequence[ModelCard]
    model: int
    settings: Settings
    readings: Readings
    paused: bool = False
    recording: str | None = None
    note: str | None = None


class Screen(Protocol):
    """Something that shows pictures.

    Attributes:
        watched: somebody may be looking, so that a file plays at its own speed.
        panel: the meters are to be drawn into the picture.
    """

    watched: bool
    panel: bool

    @property
    def wants_pictures(self) -> bool:
        """Whether it makes sense to draw: somebody looks just now."""

    @property
    def closed(self) -> bool:
        """Whether the viewer has closed it."""

    def show(self, picture: Image, status: Status) -> None:
        """Show RGB uint8 [H, W, 3], which nobody changes any more, and what there is to know about it."""

    def poll(self, status: Status) -> list[Command]:
        """Stay responsive, whether or not there is a new picture; what viewers have asked for since the last call."""

    def close(self) -> None:
        """Take the screen away."""


class NoScreen:
    """Nobody looks: measuring, recording, a machine without a desktop."""

    watched = False
    panel = True  # of a recording
    wants_pictures = False
    closed = False

    def show(self, picture: Image, status: Status) -> None:
        """Do nothing."""

    def poll(self, status: Status) -> list[Command]:
        """Nobody asks for anything."""
        return []

    def close(self) -> None:
        """Do nothing."""


def to_bgr(image: Image) -> Image:
    """RGB to the channel order of OpenCV's windows, video files and JPEGs."""
    bgr: Image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bgr
