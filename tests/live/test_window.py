"""A window shows, listens to keys, and notices when it is closed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mnet_det.images import read_image
from mnet_det.live.controls import HELP, Command, Settings
from mnet_det.live.lineup import ModelCard
from mnet_det.live.screen import Status
from mnet_det.live.stats import Readings
from mnet_det.live.window import WindowScreen

CARD = ModelCard("ssd", 0.5, (300, 300), "float32", "openvino", 2, nms=0.6, class_names=("cat",))
STATUS = Status("camera 0", [CARD], 0, Settings(), Readings(24.0, 41.0, 10.0, 0, 7))


class FakeWindow:
    """OpenCV's window calls; `codes` are what its keys give, one a call, then -1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *codes: int) -> None:
        self.codes = list(codes)
        self.shown: list[np.ndarray] = []
        self.sizes: list[tuple[int, int]] = []
        self.properties: list[tuple[int, float]] = []
        monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
        monkeypatch.setattr(cv2, "pollKey", lambda: self.codes.pop(0) if self.codes else -1)
        monkeypatch.setattr(cv2, "imshow", lambda name, picture: self.shown.append(picture))
        monkeypatch.setattr(cv2, "resizeWindow", lambda name, width, height: self.sizes.append((width, height)))
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *args: 1.0)
        monkeypatch.setattr(cv2, "setWindowProperty", lambda name, *args: self.properties.append(args))


@pytest.mark.parametrize(
    ("codes", "actions"),
    [
        ([ord("q")], ["quit"]),
        ([27], ["quit"]),
        ([ord(" "), ord("s")], ["pause", "snapshot"]),  # two between two turns, where the window kit keeps both
        ([ord("]"), ord("["), ord("r"), ord("m")], ["next_model", "previous_model", "record", "mirror"]),
        ([0x100000 | ord("q")], ["quit"]),  # some kits add the state of Num Lock
        ([ord("x"), ord("+")], ["raise_score"]),
        ([], []),
    ],
)
def test_keys_become_commands(monkeypatch, codes, actions):
    FakeWindow(monkeypatch, *codes)
    assert WindowScreen().poll(STATUS) == [Command(action) for action in actions]


def test_picture_is_shown_in_bgr_in_a_window_that_fits_on_a_laptop(monkeypatch):
    window = FakeWindow(monkeypatch)
    WindowScreen().show(np.full((1080, 1920, 3), (1, 2, 3), np.uint8), STATUS)
    assert window.sizes == [(1280, 720)]
    assert window.shown[0][0, 0].tolist() == [3, 2, 1]


def test_help_is_put_onto_the_shown_picture_alone_also_in_a_pause(monkeypatch):
    window = FakeWindow(monkeypatch)
    screen, picture = WindowScreen(), np.full((480, 640, 3), 120, np.uint8)
    screen.show(picture, STATUS)
    window.codes = [ord("h")]
    assert screen.poll(STATUS) == []
    assert (picture == 120).all()
    assert (window.shown[1] != 120).any()
    screen.poll(STATUS)
    assert len(window.shown) == 2  # nothing new to show
    window.codes = [ord("h")]
    screen.poll(STATUS)
    assert (window.shown[2] == 120).all()


def test_every_key_of_the_help_does_something(monkeypatch):
    for line in HELP:
        for word in line.split():
            code = {"Esc": 27, "space": 32}.get(word) or ord(word)
            window = FakeWindow(monkeypatch, code)
            screen = WindowScreen()
            screen.show(np.zeros((64, 96, 3), np.uint8), STATUS)
            assert screen.poll(STATUS) or window.properties or len(window.shown) == 2, line


def test_full_screen_comes_and_goes(monkeypatch):
    window = FakeWindow(monkeypatch, ord("f"))
    screen = WindowScreen()
    screen.poll(STATUS)
    window.codes = [ord("f")]
    screen.poll(STATUS)
    assert window.properties == [
        (cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN),
        (cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_NORMAL),
    ]


@pytest.mark.parametrize(
    "status",
    [replace(STATUS, note="saved a.png"), replace(STATUS, paused=True), replace(STATUS, recording="a.mp4")],
    ids=["note", "paused", "recording"],
)
def test_what_a_viewer_should_know_appears_without_a_new_picture_and_goes_again(monkeypatch, status):
    window = FakeWindow(monkeypatch)
    screen = WindowScreen()
    screen.show(np.full((480, 640, 3), 120, np.uint8), STATUS)
    screen.poll(status)
    assert (window.shown[1][-20:] != 120).any()  # at the bottom
    assert (window.shown[1][:240] == 120).all()
    screen.poll(STATUS)
    assert (window.shown[2] == 120).all()


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
from mnet_det.live import controls, pick, screen, stats, window
status = screen.Status("camera 0", [], 0, controls.Settings(), stats.Readings(None, None, None, 0, 0))
picked = pick.pick_screen("auto", say=print)
assert isinstance(picked, window.WindowScreen), picked
assert not picked.closed
for _ in range(3):
    picked.show(np.zeros((120, 160, 3), np.uint8), status)
    assert picked.poll(status) == []
    assert not picked.closed
cv2.destroyWindow(window.WINDOW)
assert picked.closed
picked.close()
print("closed")
"""


def test_window_opens_shows_and_notices_that_it_was_closed(display):
    environment = {**os.environ, "DISPLAY": display}
    child = subprocess.run(
        [sys.executable, "-c", WINDOW_LIFE], capture_output=True, text=True, timeout=60, env=environment
    )
    assert child.returncode == 0, child.stderr
    keys, closed = child.stdout.splitlines()
    assert re.match("keys: q quit, space pause", keys)
    assert closed == "closed"


class Viewer:
    """Somebody before the display who sees a window of that name and presses keys."""

    def __init__(self, display: str) -> None:
        self._environment = {**os.environ, "DISPLAY": display}
        self._window = self._xdotool("search", "--sync", "--onlyvisible", "--name", "mnet-det").split()[0]
        self._xdotool("windowfocus", "--sync", self._window)

    def press(self, *keys: str) -> None:
        self._xdotool("key", "--delay", "50", *keys)

    def _xdotool(self, *words: str) -> str:
        command = ["xdotool", *words]
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout


def wait_for(condition, *, what: str) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.mark.skipif(shutil.which("xdotool") is None, reason="no xdotool (Debian: apt-get install xdotool)")
def test_real_keys_drive_the_demo(display: str, toy: Path, toy_model: Path, tmp_path: Path):
    """The whole command in a window: switch the model, record, take a snapshot, pause, go on, quit."""
    second = tmp_path / "second.onnx"
    shutil.copyfile(toy_model, second)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(60):  # a minute: one a second
        shutil.copyfile(sorted((toy / "val2017").iterdir())[0], pictures / f"{number:02}.jpg")
    words = ["--model", str(toy_model), "--model", str(second), "--runtime", "openvino", "--stats", "stats.json"]
    said = tmp_path / "out.txt"
    with said.open("w") as out:
        demo = subprocess.Popen(
            [sys.executable, "-m", "mnet_det", "demo", str(pictures), "--screen", "window", *words],
            env={**os.environ, "DISPLAY": display},
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        viewer = Viewer(display)
        viewer.press("bracketright", "r")
        wait_for(lambda: list(tmp_path.glob(".mnet-det-*.mp4")), what="a recording")
        viewer.press("s")
        wait_for(lambda: "saved mnet-det-" in said.read_text(), what="a snapshot")
        viewer.press("r")
        wait_for(lambda: "recorded mnet-det-" in said.read_text(), what="the end of the recording")
        viewer.press("space", "h", "f", "f", "h", "space", "q")
        assert demo.wait(timeout=30) == 0, said.read_text()
    finally:
        demo.kill()
        demo.wait()
    assert [ran["frames"] > 0 for ran in json.loads((tmp_path / "stats.json").read_text())["models"]] == [True, True]
    (snapshot,) = tmp_path.glob("mnet-det-*.png")
    assert read_image(snapshot).shape == read_image(pictures / "00.jpg").shape
    (clip,) = tmp_path.glob("mnet-det-*.mp4")
    assert cv2.VideoCapture(str(clip)).read()[0]
