"""Folders and files in the hands of one process: no two train the same run, and no dead one keeps it locked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from mnet_det.errors import MnetDetError

LOCK_FILE = ".lock"
BUSY_STATUS = 75
"""Exit status of a process that finds its run in the hands of another one (EX_TEMPFAIL of sysexits.h)."""


class TakenError(Exception):
    """Another process has the folder."""


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Make a folder one's own; the system lets go of it when the process ends, however it does.

    Raises:
        TakenError: another process has it.
        MnetDetError: the folder cannot be written.
    """
    lock = filelock.FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise TakenError(folder) from None
    except OSError as error:
        raise MnetDetError(f"{folder}: cannot be written ({error.strerror or error})") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def turn(lock_file: Path) -> Iterator[None]:
    """Wait until no other process holds this file, and hold it meanwhile.

    Raises:
        MnetDetError: its folder cannot be written.
    """
    lock = filelock.FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise MnetDetError(f"{lock_file.parent}: cannot be written ({error.strerror or error})") from None
    try:
        yield
    finally:
        lock.release()


def is_taken(folder: Path) -> bool:
    """Whether a process has a folder.

    Raises:
        MnetDetError: the folder cannot be written.
    """
    if not (folder / LOCK_FILE).exists():
        return False
    try:
        with claim(folder):
            return False
    except TakenError:
        return True
