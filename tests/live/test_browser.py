"""The page's server: who gets in, what they are told, and that none of them holds anything up."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from tornado.websocket import websocket_connect

from mnet_det.errors import MnetDetError
from mnet_det.live import browser
from mnet_det.live.browser import BrowserScreen
from mnet_det.live.controls import HELP, KEYS, Command, Settings
from mnet_det.live.lineup import ModelCard
from mnet_det.live.screen import Status
from mnet_det.live.stats import Readings
from mnet_det.structures import Image

CARD = ModelCard("ssd", 0.5, (300, 300), "float32", "openvino", 2, 0.45, ("cat", "dog"))
STATUS = Status("camera 0", (CARD,), 0, Settings(), Readings(None, None, None, 0, 0))


def plain(red: int, green: int = 40, blue: int = 200) -> Image:
    return np.full((36, 64, 3), (red, green, blue), np.uint8)


def red_of(picture: Image) -> int:
    """The red of a plain picture, to the nearest 50; JPEG is not exact."""
    return round(int(picture[18, 32, 0]) / 50) * 50


def with_frames(frames: int) -> Status:
    return replace(STATUS, readings=replace(STATUS.readings, frames=frames))


class Viewer:
    """A page without a browser."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.told: dict[str, Any] = {}
        self.texts: list[dict[str, Any]] = []
        self.pictures: list[Image] = []
        self.hung_up = False

    @classmethod
    async def open(cls, screen: BrowserScreen) -> Viewer:
        return cls(await websocket_connect(screen.url.replace("http", "ws") + "ws"))

    async def send(self, message: object) -> None:
        text = message if isinstance(message, str | bytes) else json.dumps(message)
        await self._connection.write_message(text, binary=isinstance(text, bytes))

    async def until(self, fact: Callable[[], object]) -> None:
        """Read on until something is true."""
        async with asyncio.timeout(10):
            while not fact():
                message = await self._connection.read_message()
                self.hung_up = message is None
                assert message is not None, "hung up"
                if isinstance(message, bytes):
                    bgr = cv2.imdecode(np.frombuffer(message, np.uint8), cv2.IMREAD_COLOR)
                    self.pictures.append(bgr[..., ::-1])
                else:
                    self.texts.append(json.loads(message))
                    self.told |= self.texts[-1]

    async def picture(self) -> Image:
        """The next picture, acknowledged."""
        count = len(self.pictures)
        await self.until(lambda: len(self.pictures) > count)
        await self.send({"ready": True})
        return self.pictures[-1]

    async def catch_up(self) -> None:
        """Read all that was sent so far: what is told after it answers this nonsense."""
        self.told.pop("error", None)
        await self.send("nonsense")
        await self.until(lambda: "error" in self.told)

    async def leave(self) -> None:
        self._connection.close()
        async with asyncio.timeout(10):
            while not self.hung_up:
                self.hung_up = await self._connection.read_message() is None


async def until(fact: Callable[[], Any]) -> Any:
    """Wait for something to be true, and give it."""
    async with asyncio.timeout(10):
        while not (value := fact()):
            await asyncio.sleep(0.005)
    return value


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def screen(said: list[str]) -> Iterator[BrowserScreen]:
    opened = BrowserScreen(port=0, say=said.append)
    yield opened
    opened.close()


Join = Callable[[], Awaitable[Viewer]]


def play(screen: BrowserScreen, story: Callable[[Join], Awaitable[None]]) -> None:
    """Run a story that viewers join; they leave at its end."""

    async def whole() -> None:
        viewers: list[Viewer] = []

        async def join() -> Viewer:
            viewers.append(await Viewer.open(screen))
            return viewers[-1]

        try:
            await story(join)
        finally:
            for viewer in viewers:
                await viewer.leave()

    asyncio.run(whole())


def ask(screen: BrowserScreen, path: str = "/", *, method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
    address = urlsplit(screen.url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read().decode()
    finally:
        connection.close()


def test_page_is_served_and_allows_itself_nothing_from_elsewhere(screen, said):
    answer, page = ask(screen)
    assert answer.status == 200
    assert "<title>mnet-det</title>" in page
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    nonce = policy["script-src"].removeprefix("'nonce-").removesuffix("'")
    assert page.count(f'nonce="{nonce}"') == 2  # its script and its style
    assert nonce not in ask(screen)[1]  # good for once
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert said == [f"watch at {screen.url}"]
    assert screen.url.startswith("http://127.0.0.1:")


def test_nothing_else_is_served_and_nothing_is_logged(screen, caplog):
    with caplog.at_level(logging.WARNING):
        assert [ask(screen, path)[0].status for path in ("/page.html", "/../pyproject.toml", "/favicon.ico")] == [
            404
        ] * 3
        assert ask(screen, "/nowhere")[1] == "Not Found\n"
        assert ask(screen, method="POST")[0].status == 405
        assert ask(screen, "/ws")[0].status == 400
    assert caplog.records == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9000", 200),  # a forwarded port has another number here
        ("127.0.0.1", 200),
        ("192.168.1.7:8765", 200),
        ("[::1]:8765", 200),
        (socket.gethostname().upper(), 200),
        ("evil.example", 403),
        ("evil.example:8765", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("[::1", 403),
    ],
)
def test_page_goes_by_its_own_names_only(screen, host, status):
    """A site that points a name of its own at this machine would otherwise read this page as its own."""
    for path in ("/", "/nowhere"):
        answer, text = ask(screen, path, Host=host)
        assert answer.status == (404 if (status, path) == (200, "/nowhere") else status)
        if status == 403:
            assert text == f"{browser.REFUSAL}\n"


def test_viewers_come_from_the_page_itself_only(screen):
    own = screen.url.rstrip("/")
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    assert ask(screen, "/ws", **upgrade)[0].status == 101  # no browser
    assert ask(screen, "/ws", **upgrade, Origin=own)[0].status == 101
    for origin in ("http://evil.example", own.replace("http", "https"), own + "1", "http://localhost", "null"):
        assert ask(screen, "/ws", **upgrade, Origin=origin)[0].status == 403, origin
    assert ask(screen, "/ws", **upgrade, Origin="http://evil.example", Host="evil.example")[0].status == 403


def test_every_viewer_gets_the_picture_in_its_colours_and_what_there_is_to_know(screen):
    async def story(join: Join) -> None:
        viewers = [await join() for _ in range(2)]
        picture = plain(250, 120, 10)
        picture[:, 32:] = (10, 60, 200)
        screen.show(picture, replace(STATUS, note="hello"))
        for viewer in viewers:
            seen = await viewer.picture()
            assert seen.shape == (36, 64, 3)
            assert np.abs(seen[18, 8].astype(int) - (250, 120, 10)).max() < 9
            assert np.abs(seen[18, 56].astype(int) - (10, 60, 200)).max() < 9
            assert viewer.texts[0] == {"keys": dict(KEYS), "help": HELP}
            assert viewer.told["source"] == "camera 0"
            assert viewer.told["note"] == "hello"
            assert viewer.told["models"][0]["input_hw"] == [300, 300]
            assert viewer.told["models"][0]["class_names"] == ["cat", "dog"]
            assert viewer.told["settings"] == {"model": 0, "score": None, "nms": None, "classes": [], "mirror": False}
            assert viewer.told["readings"]["fps"] is None

    play(screen, story)


def test_a_viewer_who_does_not_paint_gets_one_picture_and_holds_up_nobody(screen):
    async def story(join: Join) -> None:
        stuck, quick = await join(), await join()
        for red in range(0, 250, 50):
            screen.show(plain(red), STATUS)
            assert red_of(await quick.picture()) == red
        await stuck.catch_up()
        assert len(stuck.pictures) == 1
        await stuck.send({"ready": True})  # at last: the newest, not the next
        assert red_of(await stuck.picture()) == 200

    play(screen, story)


def test_show_does_not_wait_and_what_came_meanwhile_is_skipped(screen, monkeypatch):
    """The encoder is held up; all pictures are handed over before it goes on."""
    encode, go_on, calls = cv2.imencode, threading.Event(), []

    def held_up(*arguments: Any) -> Any:
        calls.append(threading.current_thread())
        go_on.wait(10)
        return encode(*arguments)

    async def story(join: Join) -> None:
        viewers = [await join() for _ in range(2)]
        screen.show(plain(0), STATUS)
        await until(lambda: calls)
        for red in (50, 100, 150):
            screen.show(plain(red), STATUS)
        go_on.set()
        for viewer in viewers:
            while not viewer.pictures or red_of(viewer.pictures[-1]) != 150:
                await viewer.picture()
            assert len(viewer.pictures) <= 2  # of four
        seen = {red_of(picture) for viewer in viewers for picture in viewer.pictures}
        assert len(calls) == len(seen)  # each encoded once for both
        assert threading.main_thread() not in calls

    monkeypatch.setattr(cv2, "imencode", held_up)
    play(screen, story)


def test_nothing_is_encoded_for_nobody(screen, monkeypatch):
    assert screen.wants_pictures  # one, that a later viewer can see at once
    monkeypatch.setattr(cv2, "imencode", None)
    for red in (0, 50, 100):
        screen.show(plain(red), STATUS)
    assert not screen.wants_pictures
    monkeypatch.undo()

    async def story(join: Join) -> None:
        viewer = await join()
        await until(lambda: screen.wants_pictures)
        assert red_of(await viewer.picture()) == 100  # the last, though nothing moves
        await viewer.leave()
        await until(lambda: not screen.wants_pictures)

    play(screen, story)


def test_changes_are_told_while_paused_and_nothing_twice(screen):
    async def story(join: Join) -> None:
        viewer = await join()
        screen.show(plain(0), STATUS)
        await viewer.picture()
        paused = replace(STATUS, paused=True, settings=Settings(score=0.3))
        screen.poll(paused)
        await viewer.until(lambda: viewer.told["paused"])
        assert set(viewer.texts[-1]) == {"paused", "settings"}
        texts = len(viewer.texts)
        for _ in range(20):
            screen.poll(paused)
        await viewer.catch_up()
        assert len(viewer.texts) == texts + 1  # that answer
        assert len(viewer.pictures) == 1

    play(screen, story)


def test_many_changes_become_few_texts(screen):
    async def story(join: Join) -> None:
        viewer = await join()
        start_s = time.perf_counter()
        for frames in range(1, 151):
            screen.poll(with_frames(frames))
            await asyncio.sleep(0.001)
        await viewer.until(lambda: viewer.told.get("readings", {}).get("frames") == 150)
        assert len(viewer.texts) <= 3 + (time.perf_counter() - start_s) / browser.STATUS_S

    play(screen, story)


def test_wishes_arrive_in_order_and_nonsense_is_answered(screen, monkeypatch):
    monkeypatch.setattr(browser, "STATUS_S", 0.0)
    nonsense = [
        "",
        "[1, 2]",
        "null",
        '{"action": "fly"}',
        '{"action": []}',
        '{"action": "score", "value": "high"}',
        '{"action": "score", "value": 1e999}',
        f'{{"action": "score", "value": 1{"0" * 400}}}',
        '{"action": "model", "value": NaN}',
        "[" * 60000,
        b"\xff\x00",
    ]

    async def story(join: Join) -> None:
        viewer = await join()
        for message in nonsense:
            viewer.told.pop("error", None)
            await viewer.send(message)
            await viewer.until(lambda: viewer.told.get("error"))
        await viewer.send({"action": "score", "value": 0.3})
        await viewer.send({"action": "classes", "value": ["dog"]})
        await viewer.send({"action": "next_model"})
        asked: list[Command] = []
        await until(lambda: asked.extend(screen.poll(STATUS)) or len(asked) == 3)
        assert asked == [Command("score", 0.3), Command("classes", ("dog",)), Command("next_model")]
        assert screen.poll(STATUS) == []

    play(screen, story)


def test_a_viewer_who_sends_too_much_is_dropped_alone(screen):
    async def story(join: Join) -> None:
        loud, other = await join(), await join()
        await loud.send("x" * (browser.MOST_BYTES + 1))
        with pytest.raises(AssertionError, match="hung up"):
            await loud.until(lambda: False)
        screen.show(plain(0), STATUS)
        await other.picture()

    play(screen, story)


def knock(screen: BrowserScreen) -> socket.socket:
    """A viewer who shakes hands and then neither reads nor answers."""
    address = urlsplit(screen.url)
    viewer = socket.create_connection((address.hostname, address.port), timeout=10)
    viewer.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert viewer.recv(12) == b"HTTP/1.1 101"
    return viewer


def test_a_viewer_who_leaves_in_the_middle_of_a_picture_does_nothing_to_the_others(screen):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)  # does not fit a socket's memory

    async def story(join: Join) -> None:
        stays = await join()
        leaves = await asyncio.to_thread(knock, screen)
        screen.show(noise, STATUS)
        await stays.picture()
        leaves.close()
        for red in (50, 100):
            screen.show(plain(red), STATUS)
            assert red_of(await stays.picture()) == red

    play(screen, story)


def test_close_tells_viewers_and_frees_the_port(screen):
    port = urlsplit(screen.url).port

    async def story(join: Join) -> None:
        viewer = await join()
        assert not screen.closed
        closing = asyncio.create_task(asyncio.to_thread(screen.close))
        await viewer.until(lambda: viewer.told.get("ended"))
        with pytest.raises(AssertionError, match="hung up"):
            await viewer.until(lambda: False)
        await closing

    play(screen, story)
    assert screen.closed
    assert not any(thread.name == "mnet-det page" for thread in threading.enumerate())
    screen.close()
    screen.show(plain(0), STATUS)  # in vain, but no fault
    assert screen.poll(STATUS) == []
    BrowserScreen(port=port, say=lambda line: None).close()


def test_close_does_not_wait_for_a_viewer_who_does_not_answer(screen, monkeypatch):
    monkeypatch.setattr(browser, "FAREWELL_S", 0.05)
    with knock(screen) as deaf:
        screen.close()
        while deaf.recv(4096):
            pass


def test_a_taken_port_is_an_error_where_it_was_asked_for_and_else_another_is_found(screen, monkeypatch):
    port = urlsplit(screen.url).port
    with pytest.raises(MnetDetError, match=rf"^port {port} on 127.0.0.1 is taken .* choose another with --port"):
        BrowserScreen(port=port)
    monkeypatch.setattr(browser, "PORT", port)
    other = BrowserScreen(say=lambda line: None)
    assert urlsplit(other.url).port != port
    assert ask(other)[0].status == 200
    other.close()


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("192.0.2.1", 0, "cannot listen on host '192.0.2.1'.*expected 127.0.0.1"),  # some other machine's
        ("192.0.2.1", None, "cannot listen on host '192.0.2.1'"),
        ("a..b", 0, "cannot listen on host 'a..b'"),
        ("127.0.0.1", 70000, "port: got 70000, expected 0 .* to 65535"),
        ("127.0.0.1", -1, "port: got -1"),
    ],
)
def test_a_host_or_port_that_cannot_be_is_an_error(host, port, message):
    with pytest.raises(MnetDetError, match=message):
        BrowserScreen(host=host, port=port)


def test_who_serves_every_network_is_told_what_that_means(said):
    screen = BrowserScreen(host="0.0.0.0", port=0, say=said.append)
    try:
        assert said[0] == f"watch at {screen.url}"
        assert "everybody on the network can watch and control it" in said[1]
        assert "0.0.0.0" not in screen.url
        assert ask(screen)[0].status == 200  # the address is one to open
    finally:
        screen.close()


def test_addresses_with_colons_get_brackets(said):
    try:
        screen = BrowserScreen(host="::1", port=0, say=said.append)
    except MnetDetError as error:
        pytest.skip(f"no IPv6 here: {error}")
    try:
        assert screen.url == f"http://[::1]:{urlsplit(screen.url).port}/"
        assert ask(screen)[0].status == 200
        assert len(said) == 1
    finally:
        screen.close()
