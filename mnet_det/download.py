"""Files from the network, there whole and verified or not at all.

What has arrived of a file lies beside it as `NAME.part`, and what it belongs to as `NAME.part.json`: the next try goes
on where the last one stopped, unless the file changed at the server in between.
"""

from __future__ import annotations

import errno
import gzip
import http.client
import json
import os
import posixpath
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import filelock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mnet_det import __version__
from mnet_det.errors import DataError, DownloadError
from mnet_det.files import sha256_of, whole_file, write_json

TRIES = 5
"""How often in a row a connection may break without a new byte arriving."""
TIMEOUT_S = 30
"""For connecting and for each read; a line that is silent so long is dead."""
CHUNK_BYTES = 1 << 18
BUSY = {408, 429, 500, 502, 503, 504}
"""Answers that are different a moment later."""
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows knows no quota by that name


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None,
    size: int | None = None,
    hint: str = "",
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Fetch a file to `path`; one that is there and fits `sha256` and `size` is kept, and nothing is asked.

    Proxies are taken from the environment. A second process that asks for the same file waits for the first.

    Args:
        url: http or https.
        path: where the file is to lie; missing folders are made.
        sha256: of the file, in hexadecimal; None where it is not known.
        size: bytes of the file, where they are known.
        hint: what else the user can do, for messages about the network.
        console: shows the progress where it is a terminal.
        sleep: waits the given seconds between two tries.

    Returns:
        The sha256 of what is at `path` now.

    Raises:
        DownloadError: no network, the server has no such file, another file than expected (nothing is kept of it), or
            no room (what has arrived is kept).
    """
    check_address(url)
    with one_at_a_time(path, console=console):
        if path.is_file() and size in (None, path.stat().st_size):
            digest = sha256_of(path)
            if sha256 in (None, digest):
                return digest
        return _Transfer(url, path, sha256=sha256, size=size, hint=hint).run(console, sleep)


@contextmanager
def one_at_a_time(path: Path, *, console: Console | None = None) -> Iterator[None]:
    """Only one process at a time is in such a block for the same `path`; the lock `.NAME.lock` beside it stays.

    Raises:
        DownloadError: the folder cannot be written.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if console is not None:
                console.print(f"waiting for another process that makes {path.name}", markup=False, highlight=False)
            lock.acquire()
    except OSError as error:
        raise _not_written(path, error) from None
    try:
        yield
    finally:
        lock.release()


def extract_member(archive: Path, member: str, path: Path) -> None:
    """Write one regular file of a .zip, .tgz or .tar.gz archive to `path`; nothing else is unpacked.

    Raises:
        DataError: the archive is damaged, or has no such file.
        MnetDetError: `path` cannot be written.
    """
    try:
        with _members(archive) as members:
            open_member = members.get(posixpath.normpath(member))
            if open_member is None:
                raise DataError(f"{archive}: holds no file {member}; it holds {_some(sorted(members))}")
            with open_member() as source, whole_file(path) as temporary, temporary.open("wb") as target:
                shutil.copyfileobj(source, target)
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{archive}: no whole archive ({reason}); delete it and fetch it again") from None


@contextmanager
def _members(archive: Path) -> Iterator[dict[str, Callable[[], IO[bytes]]]]:
    """How to open each regular file of an archive, by name; links and folders are not among them."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            infos = [info for info in zipped.infolist() if not info.is_dir()]
            yield {posixpath.normpath(info.filename): partial(zipped.open, info) for info in infos}
    else:
        with gzip.open(archive) as stream:  # to its end, where the checksum is: tarfile stops before it
            while stream.read(CHUNK_BYTES):
                pass
        with tarfile.open(archive) as tar:
            files = [info for info in tar.getmembers() if info.isreg()]
            yield {posixpath.normpath(info.name): partial(_open_in_tar, tar, info) for info in files}


def _open_in_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None, "only folders and devices have no content"
    return file


def _some(names: list[str], *, most: int = 20) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "nothing"


class _CutError(Exception):
    """The connection broke, or the server is busy: another try may go on from here."""


class _UnreachableError(_CutError):
    """There was no connection at all."""


@dataclass(frozen=True)
class _Origin:
    """What a partial file is part of.

    Attributes:
        url: where it came from.
        validator: the strong ETag or the date by which the server tells this version from another.
        total: bytes of the whole file, where the server says so.
    """

    url: str
    validator: str
    total: int | None


class _Transfer:
    """One file on its way from `url` to `path`."""

    def __init__(self, url: str, path: Path, *, sha256: str | None, size: int | None, hint: str) -> None:
        self.url, self.path, self.sha256, self.size = url, path, sha256, size
        self.hint = f"; {hint}" if hint else ""
        self.part = path.with_name(f"{path.name}.part")
        self.origin_file = path.with_name(f"{path.name}.part.json")

    def run(self, console: Console | None, sleep: Callable[[float], None]) -> str:
        """Fetch, verify, rename; the sha256 of the file."""
        with byte_progress(console) as progress:
            task = progress.add_task(self.path.name, total=self.size)
            self._fetch_in_tries(sleep, lambda done, total: progress.update(task, completed=done, total=total))
            progress.update(task, description=f"verifying {self.path.name}")  # it takes a while where it is large
            digest = sha256_of(self.part)
        if self.sha256 not in (None, digest):
            self._discard()
            raise DownloadError(
                f"{self.url}: the file has sha256 {digest}, expected {self.sha256}: it was damaged on the way or is "
                f"another file; nothing was kept{self.hint}"
            )
        try:
            os.replace(self.part, self.path)
            self.origin_file.unlink(missing_ok=True)
        except OSError as error:
            raise _not_written(self.path, error) from None
        return digest

    def _fetch_in_tries(self, sleep: Callable[[float], None], show: Callable[[int, int | None], None]) -> None:
        """Try until all bytes are in the partial file; a try that brought new ones starts the count again."""
        failures, most, connected = 0, 0, False
        while True:
            try:
                return self._fetch(show)
            except _CutError as cut:
                connected = connected or not isinstance(cut, _UnreachableError)
                arrived = self._arrived()
                failures = 1 if arrived > most else failures + 1
                most = max(most, arrived)
                if failures == TRIES or not connected:  # without any network waiting is no help
                    kept = f"; the {arrived:,} bytes that arrived are kept for the next try" if arrived else ""
                    raise DownloadError(f"{cut}{kept}{self.hint}") from None
                sleep(2.0 ** (failures - 1))

    def _fetch(self, show: Callable[[int, int | None], None]) -> None:
        """One try: ask for what is missing, and write it to the partial file."""
        origin, start = self._origin(), self._arrived()
        if origin is None:
            start = 0
        elif start and start == origin.total:
            return  # only the renaming was missing
        with self._ask(origin, start) as response:
            found = _origin_of(response, self.url)
            if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                if origin is None or found != origin or _first_byte(response) != start:
                    self._discard()
                    raise _CutError(f"{self.url}: the server went on with another file")
            else:
                start = 0
            if self.size is not None and found.total not in (None, self.size):
                raise DownloadError(
                    f"{self.url}: the server has a file of {found.total:,} bytes, expected {self.size:,}{self.hint}"
                )
            total = found.total if found.total is not None else self.size
            self._check_room((total or 0) - start)
            self._write(response, found, start=start, total=total, show=show)
        if total is not None and self._arrived() != total:
            raise _CutError(f"{self.url}: the connection broke after {self._arrived():,} of {total:,} bytes")

    def _ask(self, origin: _Origin | None, start: int) -> Any:
        """The server's answer, from byte `start` on if the file is still the one of `origin`."""
        headers = {"User-Agent": f"mnet-det/{__version__}", "Accept-Encoding": "identity"}
        if origin is not None and start:
            headers |= {"Range": f"bytes={start}-", "If-Range": origin.validator}
        opener = urllib.request.build_opener(_Redirects)
        try:
            return opener.open(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            message = f"{self.url}: the server answers {error.code} ({error.reason})"
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._discard()
            elif error.code not in BUSY:
                raise DownloadError(f"{message}{self.hint}") from None
            raise _CutError(message) from None
        except urllib.error.URLError as error:
            parts = urlsplit(self.url)
            raise _UnreachableError(
                f"{parts.hostname}: cannot be reached ({error.reason}); check the network, and "
                f"{parts.scheme.upper()}_PROXY if it has a proxy"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise _CutError(f"{self.url}: no answer ({_reason(error)})") from None

    def _write(
        self, response: Any, found: _Origin, *, start: int, total: int | None, show: Callable[[int, int | None], None]
    ) -> None:
        """Append to the partial file, or begin it anew where `start` is 0."""
        done = start
        try:
            if not start:
                self.origin_file.unlink(missing_ok=True)  # before the old bytes go: they are never taken for new ones
            with self.part.open("ab" if start else "wb") as file:
                if not start and found.validator:
                    write_json(self.origin_file, asdict(found))
                for chunk in self._chunks(response):
                    file.write(chunk)
                    done += len(chunk)
                    show(done, total)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise self._no_room((total or done) - start) from None
            raise _not_written(self.part, error) from None

    def _chunks(self, response: Any) -> Iterator[bytes]:
        """The body; an `OSError` of the network leaves as another kind than one of the disk."""
        while True:
            try:
                chunk = response.read(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _CutError(f"{self.url}: the connection broke ({_reason(error)})") from None
            if not chunk:
                return
            yield chunk

    def _check_room(self, needed: int) -> None:
        if needed > shutil.disk_usage(self.path.parent).free:
            raise self._no_room(needed)

    def _no_room(self, needed: int) -> DownloadError:
        free = shutil.disk_usage(self.path.parent).free
        return DownloadError(
            f"{self.path.parent}: no room for {self.path.name}: {megabytes(needed)} to come, {megabytes(free)} free; "
            "make room and try again, what has arrived is kept"
        )

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _origin(self) -> _Origin | None:
        """What the partial file is part of; None where that is not known, or it came from elsewhere."""
        try:
            origin = _Origin(**json.loads(self.origin_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return origin if origin.url == self.url else None

    def _discard(self) -> None:
        self.origin_file.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib would also follow to ftp."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_address(url: str) -> None:
    """Refuse what is no http or https address.

    Raises:
        DownloadError: it is not.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is no number
        sound = False
    if not sound or not url.isascii() or any(letter.isspace() for letter in url):
        raise DownloadError(f"{url}: not an address to fetch from; expected http://… or https://…")


def _origin_of(response: Any, url: str) -> _Origin:
    headers = response.headers
    etag = headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag  # a weak one does not vouch for every byte
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
    length = whole[1] if whole else headers.get("Content-Length")
    return _Origin(
        url, strong or headers.get("Last-Modified", ""), int(length) if length and length.isdigit() else None
    )


def _first_byte(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def byte_progress(console: Console | None) -> Progress:
    """A bar that counts bytes, on a terminal only."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        # Quiet and not only disabled: rich 14.0 would still end the bar that it did not draw with an empty line.
        console=console if console is not None and console.is_terminal else Console(quiet=True),
    )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _not_written(path: Path, error: OSError) -> DownloadError:
    return DownloadError(f"{path}: cannot be written ({error.strerror or error})")


def megabytes(count: int) -> str:
    """A number of bytes, for a message."""
    return f"{count / 1e6:,.1f} MB"
