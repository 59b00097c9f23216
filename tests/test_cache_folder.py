"""Where the user's caches lie on each system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mnet_det.cache import cache_folder


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, Path("/x/mnet-det")),
        ("linux", {}, Path.home() / ".cache" / "mnet-det"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, Path.home() / "Library" / "Caches" / "mnet-det"),
        ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/mnet-det")),
        ("win32", {}, Path.home() / "AppData" / "Local" / "mnet-det"),
        ("win32", {"LOCALAPPDATA": "/local", "MNET_DET_CACHE": "/mine"}, Path("/mine")),
    ],
)
def test_the_cache_lies_where_the_system_keeps_caches(
    platform: str, variables: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MNET_DET_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == expected
