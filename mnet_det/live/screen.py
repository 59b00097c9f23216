"""Where pictures go: a window, or nowhere. RGB becomes the BGR of OpenCV's windows and recordings here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Literal, Protocol

import cv2

from mnet_det.errors import MnetDetError
from mnet_det.structures import Image

Key = Literal["quit", "pause", "snapshot", "raise_score", "lower_score"]
"""What a viewer can ask for, whatever the screen."""

KEYS: dict[int, Key] = {
    ord("q"): "quit",
    27: "quit",  # Escape
    ord(" "): "pause",
    ord("s"): "snapshot",
    ord("+"): "raise_score",
    ord("="): "raise_score",  # + without shift on most keyboards
    ord("-"): "lower_score",
}

WINDOW = "mnet-det"

MAX_WINDOW_WH = (1280, 720)
"""A larger picture opens a window of this size, which fits on a laptop's screen; the viewer can enlarge it."""

PROBE_S = 30.0
"""A window that takes longer to open will not."""

REINSTALL = (
    "pip uninstall -y opencv-python opencv-python-headless, then pip install --force-reinstall opencv-python "
    "(the two share a folder, and the one without windows may have won)"
)

_PROBE = """
import sys, cv2
try:
    cv2.namedWindow("mnet-det", cv2.WINDOW_NORMAL)
    cv2.pollKey()
    cv2.destroyAllWindows()
except cv2.error as error:
    sys.exit(error.err)
"""


class Screen(Protocol):
    """Something that shows pictures.

    Attributes:
        watched: somebody may be looking, so that a file plays at its own speed.
        closed: the viewer has closed it.
    """

    watched: bool

    @property
    def closed(self) -> bool: ...

    def show(self, image: Image) -> Key | None:
        """Show RGB uint8 [H, W, 3]; what the viewer asks for, if anything."""

    def poll(self) -> Key | None:
        """Stay responsive while there is nothing new to show; what the viewer asks for, if anything."""

    def close(self) -> None:
        """Take the screen away."""


class NoScreen:
    """Nobody looks: measuring, recording, a machine without a desktop."""

    watched = False
    closed = False

    def show(self, image: Image) -> None:
        """Do nothing."""

    def poll(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class WindowScreen:
    """A window of OpenCV's. Where there is no display, opening one can abort the process: see `pick_screen`."""

    watched = True

    def __init__(self) -> None:
        self._sized = False
        # GUI_NORMAL: without the toolbar that one of OpenCV's window kits adds.
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)

    @property
    def closed(self) -> bool:
        """Whether the viewer has closed the window."""
        try:
            return bool(cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1)
        except cv2.error:  # what some kits do once the last window is gone
            return True

    def show(self, image: Image) -> Key | None:
        """Show RGB uint8 [H, W, 3]; the key that was pressed, if it means anything."""
        if not self._sized:
            height, width = image.shape[:2]
            shrink = min(1.0, MAX_WINDOW_WH[0] / width, MAX_WINDOW_WH[1] / height)
            cv2.resizeWindow(WINDOW, round(width * shrink), round(height * shrink))
            self._sized = True
        cv2.imshow(WINDOW, to_bgr(image))
        return self.poll()

    def poll(self) -> Key | None:
        """Let the window redraw; the key that was pressed, if it means anything."""
        return KEYS.get(cv2.pollKey() & 0xFF)

    def close(self) -> None:
        """Close the window."""
        if not self.closed:
            cv2.destroyWindow(WINDOW)
            cv2.pollKey()


def pick_screen(word: str, *, say: Callable[[str], None] = print) -> Screen:
    """The screen that a word asks for.

    Args:
        word: "window", "none", or "auto": a window where one can be opened, else none.
        say: told in a line why "auto" found no window, or which keys the window knows.

    Raises:
        MnetDetError: no such screen, or a window that cannot be opened.
    """
    if word not in ("auto", "window", "none"):
        raise MnetDetError(f"screen: got {word!r}, expected auto, window or none")
    if word == "none":
        return NoScreen()
    reason = why_no_window()
    if reason is None:
        say("keys: q quit, space pause, s snapshot, + and - score")
        return WindowScreen()
    if word == "window":
        raise MnetDetError(f"a window cannot be opened: {reason}; or go without: --screen none")
    say(f"no window: {reason}")
    return NoScreen()


def why_no_window() -> str | None:
    """Why OpenCV cannot open a window here, and what to do; None if it can.

    The attempt is made in a child process, because without a display Qt aborts the one that makes it.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        return f"the OpenCV installed here has no windows; {REINSTALL}"
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, errors="replace", timeout=PROBE_S
        )
    except subprocess.TimeoutExpired:
        return f"opening one took more than {PROBE_S:.0f} s"
    if child.returncode == 0:
        return None
    complaint = (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[0]
    return f"a trial in another process failed ({complaint}); is the display right, and can this user reach it?"


def to_bgr(image: Image) -> Image:
    """RGB to the channel order of OpenCV's windows and video files."""
    bgr: Image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bgr
