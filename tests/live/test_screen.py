"""A window opens only where it can, and trying never takes the program down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from mnet_det.errors import MnetDetError
from mnet_det.live.screen import NoScreen, WindowScreen, pick_screen


def forbidden(*args, **kwargs):
    raise AssertionError("a window call was made")


@pytest.fixture
def no_display(monkeypatch) -> None:
    """Linux without a display, where any window call aborts the process."""
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("namedWindow", "imshow", "pollKey", "waitKey"):
        monkeypatch.setattr(cv2, name, forbidden, raising=False)
    monkeypatch.setattr(subprocess, "run", forbidden)


@pytest.mark.usefixtures("no_display")
def test_auto_without_a_display_makes_no_window_call_and_shows_nothing():
    said: list[str] = []
    picked = pick_screen("auto", say=said.append)
    assert isinstance(picked, NoScreen)
    assert picked.show(np.zeros((4, 4, 3), np.uint8)) is None
    assert said == ["no window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"]


@pytest.mark.usefixtures("no_display")
def test_window_without_a_display_is_an_error_that_says_what_to_do():
    with pytest.raises(MnetDetError, match=r"neither DISPLAY nor WAYLAND_DISPLAY is set.*--screen none"):
        pick_screen("window")


@pytest.mark.usefixtures("no_display")
def test_none_asks_nobody():
    said: list[str] = []
    assert isinstance(pick_screen("none", say=said.append), NoScreen)
    assert said == []


def test_opencv_without_windows_gets_the_lines_that_mend_it(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n")
    monkeypatch.setattr(subprocess, "run", forbidden)
    with pytest.raises(MnetDetError, match=r"pip uninstall -y opencv-python opencv-python-headless.*--force-reinstall"):
        pick_screen("window")


def test_unknown_screen_is_refused():
    with pytest.raises(MnetDetError, match="got 'tv', expected auto, window or none"):
        pick_screen("tv")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a display has no name to get wrong")
def test_display_that_cannot_be_reached_is_survived(monkeypatch):
    """OpenCV's Qt aborts the process that tries; here that is a child."""
    monkeypatch.setenv("DISPLAY", ":4711")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    said: list[str] = []
    assert isinstance(pick_screen("auto", say=said.append), NoScreen)
    assert len(said) == 1
    assert said[0].startswith("no window: ")


@pytest.mark.parametrize(
    ("code", "key"),
    [
        (ord("q"), "quit"),
        (27, "quit"),
        (ord(" "), "pause"),
        (ord("s"), "snapshot"),
        (ord("+"), "raise_score"),
        (ord("-"), "lower_score"),
        (0x100000 | ord("q"), "quit"),  # some kits add the state of Num Lock
        (ord("x"), None),
        (-1, None),
    ],
)
def test_keys_of_the_window(monkeypatch, code, key):
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "pollKey", lambda: code)
    assert WindowScreen().poll() == key


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A display that nobody sees."""
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb: install it (Debian: apt-get install xvfb) to test a real window")
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    with server:
        yield f":{server.stdout.readline().strip()}"
        server.terminate()


WINDOW_LIFE = """
import cv2, numpy as np
from mnet_det.live import screen
window = screen.pick_screen("auto", say=print)
assert isinstance(window, screen.WindowScreen), window
assert not window.closed
for _ in range(3):
    window.show(np.zeros((120, 160, 3), np.uint8))
    assert not window.closed
cv2.destroyWindow(screen.WINDOW)
assert window.closed
window.close()
print("closed")
"""


def test_window_opens_shows_and_notices_that_it_was_closed(display):
    environment = {**os.environ, "DISPLAY": display}
    child = subprocess.run(
        [sys.executable, "-c", WINDOW_LIFE], capture_output=True, text=True, timeout=60, env=environment
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines() == ["keys: q quit, space pause, s snapshot, + and - score", "closed"]


def test_window_gets_bgr(monkeypatch):
    shown = []
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "resizeWindow", lambda *args: shown.append(args[1:]))
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: shown.append(picture[0, 0].tolist()))
    monkeypatch.setattr(cv2, "pollKey", lambda: -1)
    WindowScreen().show(np.full((1080, 1920, 3), (1, 2, 3), np.uint8))
    assert shown == [(1280, 720), [3, 2, 1]]
