"""A page that shows the demo in any browser: the live picture, the meters, and controls that act at once.

A thread serves it. To a viewer go JSON texts with those fields of `Status` that changed, and pictures as JPEG; the next
picture goes out only when the page has painted the last one, so that a slow viewer sees fewer of them, never old ones,
and holds up nobody. From a viewer come commands, and {"ready": true} when a picture is painted.
"""

from __future__ import annotations

import asyncio
import errno
import json
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from http import HTTPStatus
from importlib import resources
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import cv2
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from mnet_det.errors import MnetDetError
from mnet_det.live.controls import HELP, KEYS, Command
from mnet_det.live.screen import Status, to_bgr
from mnet_det.structures import Image

PORT = 8765
"""Tried first where none is given."""

JPEG_QUALITY = 85

STATUS_S = 0.1
"""Least time between two texts without a picture."""

FAREWELL_S = 1.0
"""How long viewers have to take in that the demo has ended."""

PING_S = 20.0
"""How often a silent viewer is asked for a sign of life; a phone that went out of reach does not say so."""

MOST_BYTES = 1 << 16
"""Of a message from a viewer: the names of a thousand classes."""

REFUSAL = "Refused: open the page by its address, or start the demo with --host NAME to give it a name."


class BrowserScreen:
    """Shows pictures to whoever opens the page, any number of viewers at once.

    Attributes:
        url: where the page is.
    """

    watched = True
    panel = False

    def __init__(self, *, host: str = "127.0.0.1", port: int | None = None, say: Callable[[str], None] = print) -> None:
        """Serve from now on.

        Args:
            host: address or name to listen on; 0.0.0.0 (IPv4) or :: (IPv6) for every network of this machine.
            port: the port; 0 for any free one. None: 8765, or any free one if that is taken.
            say: told in a line where the page is, and whether others can reach it.

        Raises:
            MnetDetError: nothing can listen there.
        """
        listener = _listen(host, port)
        self.url = _url(listener, host)
        self.closed = False
        self._server = _Server(listener, host)
        say(f"watch at {self.url}")
        if not ip_address(listener.getsockname()[0]).is_loopback:
            say("everybody on the network can watch and control it; --host 127.0.0.1 keeps it to this machine")

    @property
    def wants_pictures(self) -> bool:
        """Whether anybody watches, or nothing was shown yet that a later viewer could see at once."""
        return bool(self._server.viewers) or self._server.picture is None

    def show(self, picture: Image, status: Status) -> None:
        """Let viewers have RGB uint8 [H, W, 3] as soon as each is ready; does not wait for them."""
        self._server.tell(status, picture)

    def poll(self, status: Status) -> list[Command]:
        """Let viewers know what changed; what they have asked for since the last call."""
        self._server.tell(status)
        commands = self._server.commands
        return [commands.popleft() for _ in range(len(commands))]

    def close(self) -> None:
        """Tell viewers that it is over, and free the port."""
        self.closed = True
        self._server.stop()


class _Server:
    """The thread, and what it shares with the pipeline's: references that one side sets and the other reads."""

    def __init__(self, listener: socket.socket, host: str) -> None:
        own_name = socket.gethostname().lower()
        self.names = {"localhost", own_name, f"{own_name}.local", host.lower()}
        self.page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        self.status: Status | None = None
        self.picture: Image | None = None
        self.commands: deque[Command] = deque()
        self.viewers: set[_Viewer] = set()
        self._listener = listener
        self._encoded: tuple[Image, asyncio.Future[bytes]] | None = None
        self._woken = False
        self._over = asyncio.Event()
        # Windows' own kind of loop cannot wait for sockets as Tornado does.
        self._runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, name="mnet-det page", daemon=True)
        self._thread.start()

    def tell(self, status: Status, picture: Image | None = None) -> None:
        """Hand over what is new. Called by the pipeline: a few assignments, and no more than one call left waiting."""
        if picture is None and status == self.status:
            return
        self.status = status
        self.picture = self.picture if picture is None else picture
        if self.viewers and not self._woken and self._thread.is_alive():
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake)

    def stop(self) -> None:
        """End the thread. Called by the pipeline; a second time changes nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    async def jpeg(self, picture: Image) -> bytes:
        """The newest picture as JPEG; encoded once, off this thread, for all viewers who ask."""
        if self._encoded is None or self._encoded[0] is not picture:
            self._encoded = picture, self._loop.run_in_executor(None, _to_jpeg, picture)
        return await asyncio.shield(self._encoded[1])  # a viewer who leaves takes nothing from the others

    def _wake(self) -> None:
        self._woken = False  # first: what is set from here on needs another call
        for viewer in self.viewers:
            viewer.news.set()

    def _run(self) -> None:
        with self._runner:
            self._runner.run(self._serve())

    async def _serve(self) -> None:
        shared = {"server": self}
        application = Application(
            [("/", _Page, shared), ("/ws", _Viewer, shared)],
            default_handler_class=_Missing,
            default_handler_args=shared,
            log_function=lambda handler: None,  # a line on the terminal for each request helps nobody
            websocket_max_message_size=MOST_BYTES,
            websocket_ping_interval=PING_S,
        )
        server = HTTPServer(application, max_body_size=MOST_BYTES)
        server.add_socket(self._listener)
        await self._over.wait()
        server.stop()
        await asyncio.gather(*(viewer.farewell() for viewer in self.viewers))
        await server.close_all_connections()


class _Handler(RequestHandler):
    """Answers only who asked for this page by a name of its own, and allows a browser nothing that it does not need."""

    def initialize(self, server: _Server) -> None:
        self.server = server

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        # Another site can point a name of its own at this machine and so become the "same origin" of this page.
        if not _is_own(self.request.host, self.server.names):
            raise HTTPError(403)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{REFUSAL if status_code == 403 else HTTPStatus(status_code).phrase}\n")


class _Page(_Handler):
    def get(self) -> None:
        nonce = secrets.token_urlsafe()
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        self.finish(self.server.page.replace("{{nonce}}", nonce))


class _Missing(_Handler):
    def prepare(self) -> None:
        super().prepare()
        raise HTTPError(404)


class _Viewer(_Handler, WebSocketHandler):
    """One open page."""

    def prepare(self) -> None:
        super().prepare()
        # A browser says whose script wants to connect; only this page's may. What is no browser says nothing.
        own = f"http://{self.request.host}"
        if self.request.headers.get("Origin", own).lower() != own.lower():
            raise HTTPError(403)

    def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        self.news = asyncio.Event()
        self.news.set()
        self._painted = True
        self._complaint: str | None = None
        self._gone = asyncio.Event()
        self.server.viewers.add(self)
        self._feeding = asyncio.create_task(self._feed())

    def on_message(self, message: str | bytes) -> None:
        try:
            wish = json.loads(message)
            if wish == {"ready": True}:
                self._painted = True
            else:
                self.server.commands.append(Command.parse(wish))
        except (ValueError, RecursionError) as error:
            self._complaint = str(error)
        self.news.set()

    def on_close(self) -> None:
        self.server.viewers.discard(self)
        self._feeding.cancel()
        self._gone.set()

    async def farewell(self) -> None:
        """Say that it is over, and hang up."""
        self._feeding.cancel()
        with suppress(WebSocketClosedError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self.write_message({"ended": True})
                self.close()
                await self._gone.wait()
        if self.ws_connection is not None and self.ws_connection.stream is not None:  # it took in nothing at all
            self.ws_connection.stream.close()

    async def _feed(self) -> None:
        """Tell what changed and show the newest picture, for as long as the viewer stays."""
        told: dict[str, object] = {}
        told_s = 0.0
        seen: Image | None = None
        loop = asyncio.get_running_loop()
        with suppress(WebSocketClosedError, StreamClosedError):
            await self.write_message({"keys": dict(KEYS), "help": HELP})
            while True:
                await self.news.wait()
                self.news.clear()
                picture = self.server.picture
                jpeg = None
                if self._painted and picture is not None and picture is not seen:
                    jpeg = await self.server.jpeg(picture)
                elif (early_s := told_s + STATUS_S - loop.time()) > 0:
                    loop.call_later(early_s, self.news.set)
                    continue
                changes = self._changes(told)
                told |= changes
                if self._complaint:
                    changes["error"], self._complaint = self._complaint, None
                if changes:
                    told_s = loop.time()
                    await self.write_message(json.dumps(changes, default=asdict))
                if jpeg is not None:
                    seen, self._painted = picture, False
                    await self.write_message(jpeg, binary=True)

    def _changes(self, told: dict[str, object]) -> dict[str, object]:
        """The fields of the status that the viewer does not know, or knows otherwise."""
        status = self.server.status
        now = {field.name: getattr(status, field.name) for field in fields(status)} if status else {}
        return {name: value for name, value in now.items() if name not in told or told[name] != value}


def _to_jpeg(picture: Image) -> bytes:
    _, data = cv2.imencode(".jpg", to_bgr(picture), (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    return data.tobytes()


def _is_own(host: str, names: set[str]) -> bool:
    """Whether the Host of a request is an address, which no site can claim, or one of these names; any port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ip_address(name)
    except ValueError:
        return name in names
    return True


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens at a port, or without one at the usual port or else any free one."""
    if port is not None and not 0 <= port <= 65535:
        raise MnetDetError(f"port: got {port}, expected 0 (any free one) to 65535")
    reason = ""
    for candidate in (PORT, 0) if port is None else (port,):
        try:
            found = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            listener = socket.create_server(address, family=family)
        except (OSError, UnicodeError) as error:  # the latter from names that cannot be one
            reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]  # Python adds the address
            if port is not None and getattr(error, "errno", None) == errno.EADDRINUSE:
                raise MnetDetError(
                    f"port {port} on {host} is taken by another program; "
                    "choose another with --port, or leave that away for one that is free"
                ) from None
        else:
            listener.setblocking(False)
            return listener
    raise MnetDetError(
        f"cannot listen on host {host!r} ({reason}); "
        "expected 127.0.0.1, an address of this machine, or 0.0.0.0 for all of them, and a port that you may use"
    )


def _url(listener: socket.socket, host: str) -> str:
    """What to type into a browser, on this machine or, if it can be reached, on another."""
    address, port = listener.getsockname()[:2]
    name = _outward_address(listener.family) if ip_address(address).is_unspecified else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def _outward_address(family: socket.AddressFamily) -> str:
    """Where others reach this machine, or loopback. Connecting a UDP socket sends nothing."""
    six = family == socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("2001:db8::1" if six else "192.0.2.1", 9))  # addresses that are for documentation only
        except OSError:
            return "::1" if six else "127.0.0.1"
        return str(probe.getsockname()[0])
