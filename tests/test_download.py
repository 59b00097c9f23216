"""Downloads from a server in this process that cuts, lies and refuses on demand."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mnet_det import __version__
from mnet_det.download import TRIES, download, extract_member, one_at_a_time
from mnet_det.errors import DataError, DownloadError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What is served at any path, and how.

    Attributes:
        cuts: how many bytes of each of the next answers arrive.
        statuses: of the next answers, instead of the file.
        requests: the headers of each request, and how many bytes were sent for it.
    """

    url: str
    content: bytes = CONTENT
    etag: str = '"one"'
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    checks_if_range: bool = True
    redirect: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(dict(self.headers))
            state.sent.append(0)
            if state.redirect or state.statuses:
                self.send_response(302 if state.redirect else state.statuses.pop(0))
                if state.redirect:
                    self.send_header("Location", state.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, total = 0, len(state.content)
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            unchanged = not state.checks_if_range or self.headers.get("If-Range") == state.etag
            if wanted and state.ranges and unchanged:
                start = int(wanted[1])
                self.send_response(206 if start < total else 416)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(max(0, total - start)))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            body = state.content[start:]
            body = body[: state.cuts.pop(0)] if state.cuts else body
            state.sent[-1] = len(body)
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state = Server(f"http://127.0.0.1:{listening.server_port}/some/file.bin")
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


class Waits(list[float]):
    """A sleep that only remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def fetch(server: Server, path: Path, *, sha256: str | None = SHA256, waits: Waits | None = None) -> str:
    return download(server.url, path, sha256=sha256, sleep=waits if waits is not None else Waits())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_file_arrives_whole_with_nothing_beside_it(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    assert fetch(server, path) == SHA256
    assert path.read_bytes() == CONTENT
    assert visible(path.parent) == ["file.bin"]
    assert server.requests[0]["User-Agent"] == f"mnet-det/{__version__}"


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    fetch(server, path)
    assert fetch(server, path) == fetch(server, path, sha256=None) == SHA256
    assert len(server.requests) == 1


def test_a_file_of_another_content_is_replaced(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_text("old")
    assert fetch(server, path) == SHA256
    path.write_text("old")
    assert download(server.url, path, sha256=None, size=len(CONTENT)) == SHA256


def test_a_cut_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts, waits = [300_000, 500_000], Waits()
    assert fetch(server, tmp_path / "file.bin", waits=waits) == SHA256
    assert [request.get("Range") for request in server.requests] == [None, "bytes=300000-", "bytes=800000-"]
    assert server.requests[1]["If-Range"] == '"one"'
    assert sum(server.sent) == len(CONTENT)  # no byte was sent twice
    assert waits == [1, 1]  # each try brought new bytes


def test_a_connection_that_brings_nothing_is_given_up_and_what_came_is_kept(server: Server, tmp_path: Path) -> None:
    path, waits = tmp_path / "file.bin", Waits()
    server.cuts = [1000] + [0] * TRIES
    with pytest.raises(DownloadError, match="after 1,000 of 1,048,576 bytes; the 1,000 bytes that arrived are kept"):
        fetch(server, path, waits=waits)
    assert waits == [1, 2, 4, 8]
    assert visible(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    server.cuts = []
    fetch(server, path)
    assert server.requests[-1]["Range"] == "bytes=1000-"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("checks_if_range", [True, False])
def test_a_file_that_changed_at_the_server_starts_over(server: Server, tmp_path: Path, checks_if_range: bool) -> None:
    """A server that does not know If-Range sends the rest of the new file; its ETag tells."""
    path = tmp_path / "file.bin"
    server.cuts = [1000] + [0] * TRIES
    with pytest.raises(DownloadError):
        fetch(server, path)
    server.cuts, server.content, server.etag = [], CONTENT[::-1], '"two"'
    server.checks_if_range = checks_if_range
    fetch(server, path, sha256=None)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_server_that_ignores_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [1000]
    assert fetch(server, tmp_path / "file.bin") == SHA256
    assert server.sent == [1000, len(CONTENT)]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_validator_nothing_is_resumed(server: Server, tmp_path: Path, etag: str) -> None:
    server.etag, server.cuts = etag, [1000]
    assert fetch(server, tmp_path / "file.bin") == SHA256
    assert "Range" not in server.requests[1]


def test_a_part_that_is_longer_than_the_file_starts_over(server: Server, tmp_path: Path) -> None:
    """The server answers 416."""
    path = tmp_path / "file.bin"
    (tmp_path / "file.bin.part").write_bytes(b"x" * (len(CONTENT) + 1))
    origin = {"url": server.url, "validator": '"one"', "total": len(CONTENT)}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(origin))
    assert fetch(server, path) == SHA256
    assert [request.get("Range") for request in server.requests] == [f"bytes={len(CONTENT) + 1}-", None]


@pytest.mark.parametrize("origin", ["", "not JSON", '{"url": "http://elsewhere/", "validator": "1", "total": 5}'])
def test_a_part_of_unknown_origin_is_not_used(server: Server, tmp_path: Path, origin: str) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"wrong")
    (tmp_path / "file.bin.part.json").write_text(origin)
    assert fetch(server, tmp_path / "file.bin") == SHA256
    assert "Range" not in server.requests[0]


def test_a_whole_part_is_only_renamed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    origin = {"url": server.url, "validator": '"one"', "total": len(CONTENT)}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(origin))
    assert fetch(server, tmp_path / "file.bin") == SHA256
    assert server.requests == []
    assert visible(tmp_path) == ["file.bin"]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses, waits = [500, 503], Waits()
    assert fetch(server, tmp_path / "file.bin", waits=waits) == SHA256
    assert waits == [1, 2]


@pytest.mark.parametrize("status", [403, 404])
def test_a_missing_file_is_asked_for_once(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(DownloadError, match=f"{re.escape(server.url)}: the server answers {status}"):
        fetch(server, tmp_path / "file.bin")
    assert len(server.requests) == 1
    assert visible(tmp_path) == []


def test_a_file_of_another_hash_is_removed_and_both_hashes_are_named(server: Server, tmp_path: Path) -> None:
    other = "0" * 64
    with pytest.raises(DownloadError, match=f"sha256 {SHA256}, expected {other}"):
        fetch(server, tmp_path / "file.bin", sha256=other)
    assert visible(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has a file of 1,048,576 bytes, expected 5"):
        download(server.url, tmp_path / "file.bin", sha256=None, size=5)
    assert visible(tmp_path) == []


def test_a_disk_without_room_is_found_before_a_byte_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(DownloadError, match=r"no room for file\.bin: 1\.0 MB to come, 0\.1 MB free") as error:
        fetch(server, tmp_path / "file.bin")
    assert str(tmp_path) in str(error.value)
    assert visible(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: the disk that is always full")
def test_a_disk_that_fills_up_gives_the_same_message(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"no room for file\.bin: 1\.0 MB to come, .* MB free; make room"):
        fetch(server, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()


def test_without_a_network_the_host_the_reason_and_the_way_out_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    waits = Waits()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/file.bin"
        with pytest.raises(
            DownloadError, match=r"^127\.0\.0\.1: cannot be reached \(.*\); .* HTTP_PROXY .*; or use FILE$"
        ):
            download(url, tmp_path / "file.bin", sha256=None, hint="or use FILE", sleep=waits)
    assert waits == []


def test_a_proxy_of_the_environment_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/some/file.bin"))
    assert download("http://weights.invalid/file.bin", tmp_path / "file.bin", sha256=SHA256) == SHA256
    assert server.requests[0]["Host"] == "weights.invalid"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "http://[half/x.bin",
        "http://localhost:port/x.bin",
        "http://localhost/ä.bin",
        "http://localhost/a b.bin",
        "localhost/x.bin",
        "http:///x.bin",
    ],
)
def test_what_is_no_address_is_refused_at_once(tmp_path: Path, url: str) -> None:
    """Half of them were tracebacks, the others were tried five times."""
    with pytest.raises(DownloadError, match="not an address to fetch from"):
        download(url, tmp_path / "x.bin", sha256=None, sleep=lambda _: pytest.fail("it waited"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/file.bin"])
def test_other_schemes_are_refused_also_after_a_redirect(server: Server, tmp_path: Path, target: str) -> None:
    with pytest.raises(DownloadError, match="expected http://"):
        download(target, tmp_path / "file.bin", sha256=None)
    server.redirect = target
    with pytest.raises(DownloadError, match=re.escape(target)):
        fetch(server, tmp_path / "file.bin")
    assert visible(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written"):
        download("http://127.0.0.1/", tmp_path / "file" / "a.bin", sha256=None)


def test_two_at_once_fetch_one_file_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(lambda _: fetch(server, tmp_path / "file.bin"), range(2)))
    assert digests == [SHA256, SHA256]
    assert len(server.requests) == 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_who_waits_for_another_is_told(tmp_path: Path) -> None:
    shown = Console(file=io.StringIO(), width=200)
    path, held, release = tmp_path / "file.bin", threading.Event(), threading.Event()

    def hold() -> None:
        with one_at_a_time(path):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.05, release.set).start()
    with one_at_a_time(path, console=shown):
        assert release.is_set()
    thread.join()
    assert isinstance(shown.file, io.StringIO)
    assert shown.file.getvalue() == "waiting for another process that makes file.bin\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_shows_progress(server: Server, tmp_path: Path, is_terminal: bool) -> None:
    shown = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    download(server.url, tmp_path / "file.bin", sha256=SHA256, console=shown)
    assert isinstance(shown.file, io.StringIO)
    assert ("1.0/1.0 MB" in shown.file.getvalue()) == is_terminal
    assert bool(shown.file.getvalue()) == is_terminal


def make_archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tgz", "a.tar.gz"])
def test_one_member_comes_out_of_an_archive(tmp_path: Path, name: str) -> None:
    files = {"./net.tflite": b"network", "../outside": b"no", "info.txt": b"text"}
    archive = make_archive(tmp_path / name, files)
    target = tmp_path / "out" / "mine.tflite"
    extract_member(archive, "net.tflite", target)
    assert target.read_bytes() == b"network"
    assert visible(target.parent) == ["mine.tflite"]
    assert visible(tmp_path) == [name, "out"]


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_a_missing_member_is_answered_with_those_there_are(tmp_path: Path, name: str) -> None:
    archive = make_archive(tmp_path / name, {f"{index:02}.txt": b"" for index in range(30)})
    with pytest.raises(DataError, match=r"holds no file net\.tflite; it holds 00\.txt, .*19\.txt, and 10 more"):
        extract_member(archive, "net.tflite", tmp_path / "net.tflite")


def test_a_link_in_an_archive_is_no_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("net.tflite")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match="it holds nothing"):
        extract_member(tmp_path / "a.tgz", "net.tflite", tmp_path / "net.tflite")


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_half_an_archive_is_a_fault_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    archive = make_archive(tmp_path / name, {"net.tflite": CONTENT})
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(DataError, match="no whole archive"):
        extract_member(archive, "net.tflite", tmp_path / "net.tflite")
    assert visible(tmp_path) == [name]
