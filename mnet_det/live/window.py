"""A window of OpenCV's, and whether one can be opened here."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import cv2

from mnet_det.live.controls import HELP, Command, commands_of
from mnet_det.live.overlay import draw_panel
from mnet_det.live.screen import Status, to_bgr
from mnet_det.structures import Image

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


class WindowScreen:
    """A window of OpenCV's. Where there is no display, opening one can abort the process: see `why_no_window`."""

    watched = True
    panel = True
    wants_pictures = True

    def __init__(self) -> None:
        self._picture: Image | None = None
        self._lines: list[str] = []
        self._help = False
        self._full = False
        # GUI_NORMAL: without the toolbar that one of OpenCV's window kits adds.
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)

    @property
    def closed(self) -> bool:
        """Whether the viewer has closed the window."""
        try:
            return bool(cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1)
        except cv2.error:  # what some kits do once the last window is gone
            return True

    def show(self, picture: Image, status: Status) -> None:
        """Show RGB uint8 [H, W, 3], with the help if the viewer asked for it, and what else is to be known now."""
        if self._picture is None:
            height, width = picture.shape[:2]
            shrink = min(1.0, MAX_WINDOW_WH[0] / width, MAX_WINDOW_WH[1] / height)
            cv2.resizeWindow(WINDOW, round(width * shrink), round(height * shrink))
        self._picture = picture
        self._lines = self._extra_lines(status)
        if self._lines:
            picture = picture.copy()
            draw_panel(picture, self._lines, bottom=True)
        cv2.imshow(WINDOW, to_bgr(picture))

    def poll(self, status: Status) -> list[Command]:
        """Let the window redraw; what was asked for by keys since the last call."""
        keys = []
        while (code := cv2.pollKey()) != -1:
            keys.append(chr(code & 0xFF))
        for key in keys:
            self._press(key)
        if self._picture is not None and not self.closed and self._extra_lines(status) != self._lines:
            self.show(self._picture, status)
        return commands_of(keys)

    def close(self) -> None:
        """Close the window."""
        if not self.closed:
            cv2.destroyWindow(WINDOW)
            cv2.pollKey()

    def _press(self, key: str) -> None:
        """What concerns this window alone."""
        if key == "h":
            self._help = not self._help
        elif key == "f":
            self._full = not self._full
            mode = cv2.WINDOW_FULLSCREEN if self._full else cv2.WINDOW_NORMAL
            cv2.setWindowProperty(WINDOW, cv2.WND_PROP_FULLSCREEN, mode)

    def _extra_lines(self, status: Status) -> list[str]:
        states = [
            "paused" if status.paused else "",
            f"recording {status.recording}" if status.recording else "",
            status.note or "",
        ]
        help_lines = [f"{keys}\t{what}" for keys, what in HELP.items()] if self._help else []
        return [line.encode("ascii", "replace").decode() for line in (*help_lines, *filter(None, states))]


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
