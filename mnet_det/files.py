"""Files that are there whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mnet_det.errors import DataError, MnetDetError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends well, else removed.

    It keeps the suffix, by which some libraries choose the format. Missing folders are made.

    Raises:
        MnetDetError: the file cannot be written; what was at `path` before is still there.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")  # two processes may write one file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise MnetDetError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Delete what processes that were killed had begun to write in the place of a file."""
    for temporary in path.parent.glob(f".{glob.escape(path.stem)}.*.tmp{glob.escape(path.suffix)}"):
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text.

    Raises:
        MnetDetError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON; a number that JSON does not know (NaN) is a fault of ours.

    Raises:
        MnetDetError: the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def free_folder(folder: Path) -> Path:
    """The folder itself if nothing is there yet, else the first of `NAME-2`, `NAME-3` … that is free."""
    return next(candidate for candidate in _numbered(folder) if not _is_used(candidate))


def used_folders(folder: Path) -> list[Path]:
    """The folder, `NAME-2`, `NAME-3` … up to the first that is free."""
    return list(itertools.takewhile(_is_used, _numbered(folder)))


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def _is_used(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
