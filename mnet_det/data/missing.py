"""Why an image file is not where annotations say, as far as a look at the folder tells."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path, PurePosixPath

FOLDERS_REMEMBERED = 64
"""Names with folders in them lead to several; those of neighbouring entries are mostly the same ones."""


def hint(folder: Path, file_name: str) -> str:
    r"""What is there in place of the missing file `folder / file_name`; "" where there is nothing to say.

    Thousands of missing files cost one listing of each folder concerned. It only reads, and never raises.

    Args:
        folder: of the images.
        file_name: as the annotations write it.
    """
    foreign = "\\" in file_name and os.sep == "/"
    remarks = [r"the name has Windows' \ for /"] if foreign else []
    path = PurePosixPath(file_name.replace("\\", "/"))
    found = _found(folder, path)
    return "; ".join([*remarks, found] if found else remarks)


def _found(folder: Path, path: PurePosixPath) -> str:
    """Where a file of that name, or nearly, is."""
    if _has(folder / path):
        return f"{folder} has {path}"  # so the slashes were all that is wrong
    if alike := _alike(folder / path):
        return f"{path.name} is there as {alike}"
    parent = _parent(folder)
    if not path.is_absolute() and _has(parent / path):
        return f"it is there if the folder of images is {parent}"
    if len(path.parts) > 1 and _has(folder / path.name):
        return f"the name holds folders: {folder} has {path.name} itself"
    return ""


def _parent(folder: Path) -> Path:
    """As short as the folder was written; `.` and `..` do not tell theirs."""
    return folder.parent if folder.name not in ("", "..") else Path(os.path.abspath(folder)).parent


def _has(path: Path) -> bool:
    return path.name in _names(path.parent)[0]


def _alike(path: Path) -> str:
    """The file in the same folder whose name differs in upper and lower case alone; "" if none does."""
    return _names(path.parent)[1].get(path.name.casefold(), "")


def _names(folder: Path) -> tuple[frozenset[str], dict[str, str]]:
    """The files in a folder, and their names by those without case; nothing where it cannot be read."""
    try:
        return _listed(folder, os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):  # a NUL is a ValueError
        return frozenset(), {}


@lru_cache(maxsize=FOLDERS_REMEMBERED)
def _listed(folder: Path, changed_ns: int) -> tuple[frozenset[str], dict[str, str]]:
    """The listing of a folder as it was when it last changed.

    Raises:
        OSError: it is no folder, or must not be read.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    return frozenset(names), {name.casefold(): name for name in names}
