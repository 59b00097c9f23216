"""A word picks a screen, and `auto` never makes a window call where none can be opened."""

from __future__ import annotations

import subprocess
import sys

import cv2
import pytest

from mnet_det.errors import MnetDetError
from mnet_det.live.pick import pick_screen
from mnet_det.live.screen import NoScreen


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
def test_auto_without_a_display_makes_no_window_call_and_lets_a_file_run_through():
    said: list[str] = []
    assert isinstance(pick_screen("auto", say=said.append), NoScreen)
    assert said == [
        "no window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set); to watch on a page: "
        "--screen browser"
    ]


@pytest.mark.usefixtures("no_display")
def test_auto_without_a_display_serves_the_page_for_a_camera():
    """A camera has no end: without a screen it would run unseen until somebody stops it."""
    said: list[str] = []
    screen = pick_screen("auto", live=True, port=0, say=said.append)
    try:
        assert screen.watched
        assert said[0] == "no window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
        assert "http://127.0.0.1:" in said[1]
    finally:
        screen.close()


@pytest.mark.usefixtures("no_display")
def test_window_without_a_display_is_an_error_that_says_what_to_do():
    with pytest.raises(MnetDetError, match=r"neither DISPLAY nor WAYLAND_DISPLAY is set.*--screen browser"):
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
    with pytest.raises(MnetDetError, match="got 'tv', expected auto, window, browser or none"):
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
