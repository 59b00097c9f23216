"""Where this user's caches lie."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path


def cache_folder() -> Path:
    """Where this user's caches lie; `MNET_DET_CACHE` names another folder."""
    chosen = os.environ.get("MNET_DET_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mnet-det"


def keep_newest(files: Iterable[Path], count: int) -> None:
    """Remove all but the newest; what is missed later is made again.

    Raises:
        OSError: one cannot be looked at or removed.
    """
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[count:]:
        file.unlink()
