"""COCO 2017 from its public address, in the layout that `data.root` expects: train2017/, val2017/, annotations/.

What was unpacked is recorded beside it, by name, in `.train2017.json` and its like: with the archive gone, that is how
a later run knows that nothing is left to do, or what was deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rich.console import Console

from mnet_det.download import DISK_FULL, byte_progress, check_address, download, megabytes, one_at_a_time
from mnet_det.errors import ConfigError, DataError, DownloadError
from mnet_det.files import whole_file, write_json

ADDRESS = "http://images.cocodataset.org"
"""Plain http, as COCO itself gives it: the sha256 vouches for what comes."""

BLOCK_BYTES = 4096
"""What a file takes on a disk is a multiple of this, nearly everywhere."""


@dataclass(frozen=True)
class Part:
    """One archive, and what is unpacked of it.

    Attributes:
        name: the word for `--only`.
        address: of the archive, below `ADDRESS` or that of a mirror.
        size: bytes of the archive.
        sha256: of the archive, in hexadecimal.
        folder: the one folder that is unpacked, whose name stays.
        pattern: which files of it.
        unpacked: about how many bytes they take on the disk.
    """

    name: str
    address: str
    size: int
    sha256: str
    folder: str
    pattern: str
    unpacked: int

    def archive(self, out: Path) -> Path:
        """Where the archive lies, as long as it does."""
        return out / PurePosixPath(self.address).name

    def record(self, out: Path) -> Path:
        """Where the names of the unpacked files are kept."""
        return out / f".{self.folder}.json"


# Sizes and sums: tensorflow/datasets, tensorflow_datasets/url_checksums/coco.txt; the sums also in pytorch/vision,
# torchvision/prototype/datasets/_builtin/coco.py, as are the numbers of images. JPEGs do not shrink in an archive; how
# long the two JSON files are, scripts check that others published. `unpacked` decides nothing but the room asked for.
PARTS: tuple[Part, ...] = (
    Part(
        name="annotations",
        address="annotations/annotations_trainval2017.zip",
        size=252_907_541,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        folder="annotations",
        pattern="instances_*.json",
        unpacked=469_785_474 + 19_987_840,
    ),
    Part(
        name="val",
        address="zips/val2017.zip",
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        folder="val2017",
        pattern="*.jpg",
        unpacked=815_585_330 + 5_000 * BLOCK_BYTES,
    ),
    Part(
        name="train",
        address="zips/train2017.zip",
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        folder="train2017",
        pattern="*.jpg",
        unpacked=19_336_861_798 + 118_287 * BLOCK_BYTES,
    ),
)
"""In the order in which they are fetched: what goes wrong at all goes wrong early, with the small ones."""


def download_coco(
    out: Path,
    *,
    only: Sequence[str] | None = None,
    address: str = ADDRESS,
    keep_archives: bool = False,
    console: Console | None = None,
) -> None:
    """Fetch, verify and unpack COCO 2017; what is there already stays, and where all is there nothing is asked.

    A run that was interrupted, in the middle of a file or of unpacking, is gone on with by the next. Of the annotations
    the boxes alone are unpacked (`instances_*.json`); captions and keypoints are left in the archive.

    Args:
        out: the folder for `data.root`. An archive that lies in it already is used, if it is the right one.
        only: names of parts; all unless given.
        address: of a server that has the same files below it.
        keep_archives: do not delete each archive once it is unpacked.
        console: says what happens, and shows the progress where it is a terminal.

    Raises:
        ConfigError: there is no part of that name.
        DownloadError: no network, no room, another file than was published, or an address that is none.
        DataError: an archive that cannot be unpacked.
        MnetDetError: a file cannot be written.
    """
    console = console or Console(quiet=True)
    chosen = _chosen(only)
    check_address(address)
    left = [part for part in chosen if not _is_complete(out, part, console)]
    _require_room(out, left, keep_archives=keep_archives)
    for part in left:
        with one_at_a_time(out / part.folder, console=console):
            if _gone(out, part) == []:
                continue  # another process made it in the meantime
            _fetch(out, part, address=address, console=console)
            names = _unpack(out, part, console=console)
            write_json(part.record(out), {"sha256": part.sha256, "files": names})
            if not keep_archives:
                with suppress(OSError):  # Windows keeps a file that a virus scanner reads; all else is done
                    part.archive(out).unlink(missing_ok=True)
            _say(console, f"{part.name}: unpacked {len(names):,} files into {out / part.folder}")


def _chosen(only: Sequence[str] | None) -> list[Part]:
    names = [part.name for part in PARTS]
    unknown = [word for word in only or [] if word not in names]
    if unknown or (only is not None and not only):
        raise ConfigError(f"{', '.join(unknown) or 'nothing'}: no part of COCO; expected some of {', '.join(names)}")
    return [part for part in PARTS if only is None or part.name in only]


def _is_complete(out: Path, part: Part, console: Console) -> bool:
    """Whether a part is there with all its files, which is said, as is what was deleted since."""
    gone, folder = _gone(out, part), out / part.folder
    if gone:
        _say(
            console, f"{part.name}: {len(gone):,} of its files missing from {folder}, such as {gone[0]}; fetched again"
        )
    elif gone is not None:
        _say(console, f"{part.name}: all files are in {folder}")
    return gone == []


def _gone(out: Path, part: Part) -> list[str] | None:
    """Which of the files that were unpacked are no longer there; None where they never all were."""
    try:
        record = json.loads(part.record(out).read_text(encoding="utf-8"))
        names, sha256 = record["files"], record["sha256"]
        return sorted({*names} - {*os.listdir(out / part.folder)}) if sha256 == part.sha256 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _require_room(out: Path, parts: list[Part], *, keep_archives: bool) -> None:
    """Refuse what cannot end well, before the first byte."""
    taken = most = 0
    for part in parts:
        archive, half = part.archive(out), part.archive(out).with_name(f"{part.archive(out).name}.part")
        arrived = next((path.stat().st_size for path in (archive, half) if path.is_file()), 0)
        taken += max(0, part.size - arrived) + max(0, part.unpacked - _bytes_in(out / part.folder))
        most = max(most, taken)
        taken -= 0 if keep_archives else part.size
    _check_room(out, most, what=f"{', '.join(part.name for part in parts)} with the archives")


def _bytes_in(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    except OSError:
        return 0


def _check_room(folder: Path, needed: int, *, what: str) -> None:
    """Raise DownloadError if so many more bytes do not fit."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DownloadError(
            f"{folder}: no room for {what}: {_size(needed)} to come, {_size(free)} free; make room and run the "
            "command again, what is there already is kept"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else megabytes(count)


def _fetch(out: Path, part: Part, *, address: str, console: Console) -> None:
    url, archive = f"{address.rstrip('/')}/{part.address}", part.archive(out)
    if archive.is_file():
        _say(console, f"{part.name}: verifying {archive}")
    else:
        _say(console, f"{part.name}: fetching {_size(part.size)} from {urlsplit(url).hostname}")
    download(
        url,
        archive,
        sha256=part.sha256,
        size=part.size,
        hint=f"{url} can also be fetched elsewhere and put at {archive}, or name another server with --from",
        console=console,
    )


def _unpack(out: Path, part: Part, *, console: Console) -> list[str]:
    """Unpack what is not there yet, each file whole or not at all; the names of all.

    Raises:
        DataError: the archive is damaged, or none that can be trusted.
        DownloadError: no room.
    """
    archive, folder = part.archive(out), out / part.folder
    try:
        with zipfile.ZipFile(archive) as zipped:
            files = dict(_files(zipped, part))
            if not files:
                raise DataError(f"{archive}: holds no {part.folder}/{part.pattern}")
            left = {name: info for name, info in files.items() if not _has_size(folder / name, info.file_size)}
            total = sum(info.file_size for info in left.values())
            _check_room(folder, total + len(left) * BLOCK_BYTES, what=f"the files of {archive.name}")
            with byte_progress(console) as progress:
                task = progress.add_task(f"unpacking {archive.name}", total=total)
                for name, info in left.items():
                    _unpack_file(zipped, info, folder / name)
                    progress.advance(task, info.file_size)
    # RuntimeError is an encrypted file, or a compression that Python does not know.
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, UnicodeDecodeError) as error:
        raise DataError(f"{archive}: no sound archive ({error}); delete it and run the command again") from None
    return sorted(files)


def _files(zipped: zipfile.ZipFile, part: Part) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """The part's files, by their names inside its folder; other files stay in the archive.

    Raises:
        DataError: a member leads out of the folder that it is unpacked into, or is a link.
    """
    for info in zipped.infolist():
        path = PurePosixPath(info.filename)
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if is_link or path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
            raise DataError(
                f"{zipped.filename}: holds {info.filename!r}, which is a link or leads elsewhere; nothing was unpacked"
            )
        if path.parent == PurePosixPath(part.folder) and fnmatchcase(path.name, part.pattern) and not info.is_dir():
            yield path.name, info


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _unpack_file(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    with whole_file(path) as temporary:
        try:
            with zipped.open(info) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target)  # which compares the checksum at its end
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise DownloadError(
                f"{path.parent}: the disk is full; make room and run the command again, it goes on with {path.name}"
            ) from None


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
