"""Streams over the loopback: frames come, a stream that stops and returns goes on, and no password is ever told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from mnet_det.errors import SourceError
from mnet_det.live import device, stream
from mnet_det.live.capture import ReadAhead
from mnet_det.live.recorded import Recorded
from mnet_det.live.stream import open_stream, without_secrets

WAIT_S = 10.0
RED_JPEG = cv2.imencode(".jpg", np.full((48, 64, 3), (0, 0, 200), np.uint8))[1].tobytes()  # BGR


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


class CameraPage(Quiet):
    """What network cameras serve: JPEG after JPEG, 50 a second."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(RED_JPEG)}\r\n\r\n".encode()
        while not self.server.ending.is_set():
            try:
                self.wfile.write(head + RED_JPEG + b"\r\n")
            except OSError:
                break
            time.sleep(0.02)


class Server(ThreadingHTTPServer):
    """Serves in threads until it is closed; its port can be used again at once."""

    daemon_threads = False

    def __init__(self, handler, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.ending = threading.Event()
        self.port = self.server_address[1]
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.ending.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(handler, *, port: int = 0) -> Server:
        servers.append(Server(handler, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def read_until(source, done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        source.read(timeout_s=0.02)


def test_camera_on_the_network_gives_frames(serve):
    said: list[str] = []
    address = f"http://127.0.0.1:{serve(CameraPage).port}/video"
    source = open_stream(address, say=said.append)
    frames = [source.read(timeout_s=WAIT_S) for _ in range(5)]
    source.close()
    assert (source.live, source.ended, source.waiting, source.name) == (True, False, None, address)
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})
    np.testing.assert_allclose(frames[0].image.mean((0, 1)), (200, 0, 0), atol=6)
    assert said == [f"opening {address}"]


def test_stream_that_stops_and_returns_goes_on(serve, monkeypatch):
    monkeypatch.setattr(device, "BACK_OFF_S", 0.05)
    monkeypatch.setattr("mnet_det.live.capture.SILENCE_S", 0.2)
    said: list[str] = []
    server = serve(CameraPage)
    address = f"http://user:pass@127.0.0.1:{server.port}/video"
    name = f"http://***@127.0.0.1:{server.port}/video"
    source = open_stream(address, say=said.append)
    assert source.read(timeout_s=WAIT_S) is not None
    server.close()
    read_until(source, lambda: source.waiting is not None)
    assert source.waiting == f"{name}: no picture; waiting for it to come back"
    serve(CameraPage, port=server.port)
    read_until(source, lambda: source.waiting is None)
    frames = [source.read(timeout_s=WAIT_S) for _ in range(3)]
    source.close()
    assert None not in frames
    assert said == [f"opening {name}"]


@pytest.mark.parametrize("scheme", ["http", "rtsp", "tcp"])
def test_address_where_nobody_answers_is_one_line_without_the_password(scheme):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    said: list[str] = []
    with pytest.raises(SourceError, match="check the address, the network") as caught:
        open_stream(f"{scheme}://admin:s3cret@127.0.0.1:{port}/live", say=said.append)
    assert str(caught.value).startswith(f"{scheme}://***@127.0.0.1:{port}/live: ")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value) + said[0]


def test_address_that_never_answers_is_given_up(monkeypatch):
    """A camera that has hung itself up accepts connections; OpenCV alone would wait for half a minute."""
    monkeypatch.setattr(stream, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start_s = time.monotonic()
        with pytest.raises(SourceError, match="no video comes from there"):
            open_stream(f"rtsp://127.0.0.1:{mute.getsockname()[1]}/live", say=lambda line: None)
    assert time.monotonic() - start_s < 3.0


def test_video_at_an_address_ends_like_a_file(serve, make_clip):
    """And is whole, from its first frame on."""

    class Files(Quiet, SimpleHTTPRequestHandler):
        pass

    path = make_clip(12)
    address = f"http://127.0.0.1:{serve(partial(Files, directory=str(path.parent))).port}/{path.name}"
    video = open_stream(address, say=lambda line: None)
    assert isinstance(video, Recorded)
    assert (video.name, video.fps) == (address, 20.0)
    source = ReadAhead(video)
    frames = []
    while not source.ended:
        if (frame := source.read(timeout_s=WAIT_S)) is not None:
            frames.append(frame)
    source.close()
    assert [frame.index for frame in frames] == list(range(12))
    np.testing.assert_allclose(frames[3].image.mean((0, 1)), (30, 0, 200), atol=6)


def test_unknown_kind_of_address_is_refused():
    with pytest.raises(SourceError, match=r"ftp://\*\*\*@host/a.mp4: expected an address that begins with rtsp://, "):
        open_stream("ftp://user:pass@host/a.mp4")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://10.0.0.5:554/live", "rtsp://10.0.0.5:554/live"),
        ("rtsp://admin:s3cret@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("rtsp://admin:s3c@r/et@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("rtsp://admin:s3?cr#et@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("http://cam/video.cgi?user=admin&pwd=s3cret", "http://cam/video.cgi?…"),
        ("http://cam/video.cgi?pwd=s3@cret", "http://***@cret"),  # rather too little than too much
    ],
)
def test_names_hold_no_secrets(address, shown):
    assert without_secrets(address) == shown
