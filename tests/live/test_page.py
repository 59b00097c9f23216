"""The page in a real browser: it moves, its controls act, and it asks for nothing from elsewhere."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tornado.websocket import websocket_connect

from mnet_det.live.browser import BrowserScreen
from mnet_det.live.controls import Command, Controls
from mnet_det.live.lineup import ModelCard
from mnet_det.live.screen import Status
from mnet_det.live.stats import Readings

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome on the PATH to open the page in")

NAMES = tuple(f"class {index}" for index in range(20))
CARDS = tuple(ModelCard("ssd", alpha, (300, 300), "float32", "openvino", 2, 0.45, NAMES) for alpha in (1.0, 0.5))


class Demo:
    """A pipeline of one colour a frame, which obeys its viewers as the real one does."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.asked: list[Command] = []
        self.cards = CARDS
        self.controls = Controls(models=len(CARDS))
        self.note: str | None = None
        self.recording: str | None = None
        self.screen = BrowserScreen(port=0, say=self.said.append)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for frame in range(1 << 30):
            settings = self.controls.settings
            readings = Readings(fps=50.0, latency_ms=20.0 + frame % 7, network_ms=12.3, dropped=4, frames=frame)
            status = Status(
                *("camera 0", self.cards, settings.model, settings, readings),
                *(self.controls.paused, self.recording, self.note),
            )
            if not self.controls.paused:
                self.screen.show(np.full((36, 64, 3), (frame * 5 % 250, 40, 200), np.uint8), status)
            commands = self.screen.poll(status)
            for command in commands:
                self.controls.obey(command)
            self.asked += commands
            if self._over.wait(0.02):
                return

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.screen.close()  # a second time changes nothing


class Chromium:
    """A headless browser, driven through its DevTools protocol."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        self._process = subprocess.Popen(
            [
                PROGRAM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--window-size=1280,900",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._runner = asyncio.Runner()
        told = folder / "DevToolsActivePort"
        port, path = until(lambda: told.exists() and len(lines := told.read_text().split()) == 2 and lines, seconds=30)
        self._socket = self._runner.run(self._connect(f"ws://127.0.0.1:{port}{path}"))
        self._number = 0
        self.events: list[dict[str, Any]] = []

    @staticmethod
    async def _connect(url: str) -> Any:
        return await websocket_connect(url, max_message_size=1 << 26)

    def call(self, method: str, *, session: str | None = None, **params: object) -> Any:
        """The answer to one call; what happens meanwhile goes to `events`."""
        return self._runner.run(self._call(method, session, params))

    async def _call(self, method: str, session: str | None, params: dict[str, object]) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        await self._socket.write_message(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            text = await self._socket.read_message()
            assert text is not None, "the browser is gone"
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._runner.run(self._hang_up())
        self._runner.close()

    async def _hang_up(self) -> None:
        self._socket.close()
        while await self._socket.read_message() is not None:  # to the end: only that closes what lies below
            pass


class Tab:
    """A page, in a window of its own: one behind another asks for no pictures."""

    def __init__(self, browser: Chromium) -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Open the page anew, and wait for its first picture."""
        self._browser.events.clear()
        self.call("Page.navigate", url=url)
        until(lambda: self("typeof painted !== 'undefined' && painted.length > 0"))

    def call(self, method: str, **params: object) -> Any:
        return self._browser.call(method, session=self.session, **params)

    def __call__(self, expression: str) -> Any:
        """The value of some JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, *, code: str = "") -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=code)

    def click(self, selector: str) -> None:
        """A click of the mouse on the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        self(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        x, y = self(f"(() => {{ const b = {box}; return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def pixel(self) -> list[int]:
        """RGB in the middle of the picture."""
        return self("[...$('picture').getContext('2d').getImageData(32, 18, 1, 1).data.slice(0, 3)]")

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)


def until(fact: Callable[[], Any], *, seconds: float = 10.0) -> Any:
    """Wait for something to be true, and give it."""
    deadline_s = time.perf_counter() + seconds
    while not (value := fact()):
        assert time.perf_counter() < deadline_s, "did not come true in time"
        time.sleep(0.01)
    return value


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def window(chromium: Chromium) -> Tab:
    return Tab(chromium)


@pytest.fixture
def demo() -> Iterator[Demo]:
    running = Demo()
    yield running
    running.close()


@pytest.fixture
def tab(window: Tab, demo: Demo) -> Tab:
    window.open(demo.screen.url)
    return window


def test_picture_moves_in_its_own_colours(tab: Tab):
    red, green, blue = tab.pixel()
    assert abs(green - 40) < 9
    assert abs(blue - 200) < 9
    until(lambda: abs(tab.pixel()[0] - red) > 20)
    assert tab("[$('picture').width, $('picture').height]") == [64, 36]


def test_meters_and_the_model_are_told_in_numbers(tab: Tab):
    until(lambda: tab("$('fps').textContent") == "50.0")
    assert 20 <= float(tab("$('latency').textContent")) <= 26
    assert tab("$('network').textContent + ' ' + $('dropped').textContent") == "12.3 4"
    frames = int(tab("$('frames').textContent"))
    until(lambda: int(tab("$('frames').textContent")) > frames)
    assert tab("$('model-line').textContent") == "ssd · float32\nalpha 1 · 300×300 · openvino, 2 threads"
    assert tab("[$('source').textContent, $('state').textContent, document.title]") == [
        "camera 0",
        "live",
        "camera 0 · mnet-det",
    ]


def test_plot_remembers_where_the_model_was_switched(demo: Demo, tab: Tab):
    until(lambda: tab("points.length"))
    tab.press("]")
    until(lambda: tab("points.some((point) => point.model === 1)"))
    assert tab("[...new Set(points.map((point) => point.label))]") == ["alpha 1", "alpha 0.5"]
    inked = "new Set(new Uint32Array($('plot-fps').getContext('2d').getImageData(0, 0, 300, 100).data.buffer)).size"
    assert tab(inked) > 3  # grid, letters, line


def test_sliders_act_and_follow(demo: Demo, tab: Tab):
    tab("$('score').focus()")
    until(lambda: tab("$('score').value") == "0.5")
    tab.press("ArrowRight")
    until(lambda: demo.asked)
    assert demo.asked == [Command("score", 0.51)]
    assert tab("$('score-value').textContent") == "0.51"
    tab.press("-")  # the slider has the focus, and the key still acts
    until(lambda: tab("$('score').value") == "0.46")
    assert tab("$('nms').value + ' ' + $('nms-value').textContent") == "0.45 0.45"  # the model's own
    tab("$('nms').value = 0.7; $('nms').dispatchEvent(new Event('input'))")
    until(lambda: demo.asked[-1] == Command("nms", 0.7))


def test_models_without_scores_of_their_own_start_at_a_half(tab: Tab):
    until(lambda: tab("$('score-value').textContent") == "0.50")
    assert tab("[$('score').value, $('own-score').hidden, $('own-score').offsetWidth]") == ["0.5", True, 0]
    assert tab("[$('score').getAttribute('aria-valuetext'), $('score-value').title]") == ["0.50", ""]


def test_each_model_s_own_score_is_told_and_can_be_gone_back_to(demo: Demo, tab: Tab):
    scored = (*[0.3] * len(NAMES),)
    demo.cards = (replace(CARDS[0], class_scores=scored), CARDS[1])
    until(lambda: tab("$('score-value').textContent") == "best F1 of each class")
    assert tab("[$('score').value, $('own-score').hidden, $('own-score').disabled]") == ["0.5", False, True]
    assert tab("$('score').getAttribute('aria-valuetext')") == "best F1 of each class"  # not 0.5, where it stands
    assert tab("$('score-value').title").splitlines() == [f"{name} 0.30" for name in NAMES]
    tab("$('score').focus()")
    tab.press("ArrowLeft")
    until(lambda: tab("!$('own-score').disabled"))
    assert tab("[$('score-value').textContent, $('score').getAttribute('aria-valuetext')]") == ["0.49"] * 2
    assert tab("$('score-value').title") == ""
    tab.click("#own-score")
    until(lambda: tab("$('score-value').textContent") == "best F1 of each class")
    assert tab("$('score').value") == "0.5"
    tab.press("+")
    until(lambda: tab("$('score-value').textContent") == "0.55")
    tab.press("o")
    until(lambda: tab("$('score-value').textContent") == "best F1 of each class")
    tab.press("]")  # to the one that has none
    until(lambda: tab("$('score-value').textContent") == "0.50")
    actions = [command.action for command in demo.asked]
    assert actions == ["score", "own_score", "raise_score", "own_score", "next_model"]


def test_models_switch_by_key_and_by_mouse(demo: Demo, tab: Tab):
    tab.press("]")
    until(lambda: tab("document.querySelector('#model-list input:checked').value") == "1")
    assert tab("$('model-line').textContent").startswith("ssd · float32\nalpha 0.5 ")
    tab.click("#model-list label:first-child")
    until(lambda: tab("$('model-line').textContent").startswith("ssd · float32\nalpha 1 "))
    assert demo.asked == [Command("next_model"), Command("model", 0)]


def test_class_filter_is_searched_ticked_and_reset(demo: Demo, tab: Tab):
    tab.click("#find")
    for key in "s 17":  # of which the first two mean something elsewhere on the page
        tab.press(key)
    shown = "[...$('class-list').children].filter((label) => !label.hidden).map((label) => label.textContent)"
    assert tab(shown) == ["class 17"]
    tab.click("#class-list label:not([hidden])")
    until(lambda: tab("$('class-count').textContent") == "1 of 20")
    tab.click("#find")
    tab.press("Escape")  # leaves the box, not the demo
    assert len(tab(shown)) == 20
    tab.click("#all")
    until(lambda: tab("$('class-count').textContent") == "all 20")
    assert demo.asked == [Command("classes", ("class 17",)), Command("classes", ())]


def test_space_pauses_after_a_click_elsewhere(demo: Demo, tab: Tab):
    """A button that the mouse has pressed would take the space bar for itself."""
    tab.click("#snapshot")
    tab.press(" ", code="Space")
    until(lambda: tab("$('state').textContent") == "paused")
    assert demo.asked == [Command("snapshot"), Command("pause")]
    assert tab("[$('paused').hidden, $('pause').innerText.split(/\\s/)[0]]") == [False, "Play"]


def test_recording_and_notes_are_seen_and_help_knows_the_keys(demo: Demo, tab: Tab):
    demo.recording, demo.note = "a.mp4", "saved b.png"
    until(lambda: tab("$('toast').textContent") == "saved b.png")
    assert tab("[$('recording').textContent, $('record').ariaPressed]") == ["recording a.mp4", "true"]
    tab("command('fly')")
    until(lambda: "expected an action" in tab("$('toast').textContent"))
    tab.press("h")
    assert tab("$('key-list').innerText").split("\n")[:2] == ["q Esc", "quit"]
    tab.press("q")  # help is open: nothing quits by accident
    tab.press("h")
    tab.press("m")
    until(lambda: demo.asked)
    assert demo.asked == [Command("mirror")]


def test_two_viewers_see_the_same(chromium: Chromium, demo: Demo, tab: Tab):
    other = Tab(chromium)
    other.open(demo.screen.url)
    for each in (tab, other):
        red = each.pixel()[0]
        until(lambda each=each, red=red: abs(each.pixel()[0] - red) > 20)
    other.press("+")
    until(lambda: tab("$('score').value") == "0.55")
    other.close()
    red = tab.pixel()[0]
    until(lambda: abs(tab.pixel()[0] - red) > 20)


def test_lost_connection_is_found_again_and_the_end_is_told(demo: Demo, tab: Tab):
    tab("socket.close()")
    until(lambda: tab("$('why').textContent") == "Connection lost, trying again")
    until(lambda: tab("document.body.dataset.state === 'live' && $('veil').hidden"))
    demo.close()
    until(lambda: tab("$('why').textContent") == "The demo has ended")


def test_page_asks_nothing_from_elsewhere_and_complains_of_nothing(chromium: Chromium, demo: Demo, tab: Tab):
    for key in ("]", "h", "h", "s"):
        tab.press(key)
    until(lambda: len(demo.asked) == 2)
    events = [event for event in chromium.events if event.get("sessionId") == tab.session]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked += [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
    own = demo.screen.url
    assert {url for url in asked if not url.startswith("data:")} == {own, own.replace("http", "ws") + "ws"}
    bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in events if event["method"] in bad] == []


def test_everything_fits_on_a_laptop_and_nothing_sticks_out_on_a_phone(tab: Tab):
    for width, height in ((1280, 800), (390, 844)):
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        assert tab("document.documentElement.scrollWidth") == width
        if width > 1000:
            assert tab("document.documentElement.scrollHeight") == height
    tab.call("Emulation.clearDeviceMetricsOverride")
