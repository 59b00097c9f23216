"""What is said of a missing image: where it, or a file of nearly its name, lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnet_det.data.missing import hint

posix = pytest.mark.skipif(os.sep != "/", reason="there, a backslash parts folders")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with images of its own, and one within a folder."""
    for name in ("train/a.jpg", "train/0.jpg", "train/sub/b.jpg", "val/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/a.jpg", "it is there if the folder of images is {parent}"),
        ("val/c.jpg", "it is there if the folder of images is {parent}"),
        ("old/set/a.jpg", "the name holds folders: {folder} has a.jpg itself"),
        ("/home/somebody/a.jpg", "the name holds folders: {folder} has a.jpg itself"),
        ("0.JPG", "0.JPG is there as 0.jpg"),
        ("sub/B.JPG", "B.JPG is there as b.jpg"),
        ("nowhere.jpg", ""),
        ("old/nowhere.jpg", ""),
        pytest.param(r"sub\b.jpg", r"the name has Windows' \ for /; {folder} has sub/b.jpg", marks=posix),
        pytest.param(
            r"train\a.jpg",
            r"the name has Windows' \ for /; it is there if the folder of images is {parent}",
            marks=posix,
        ),
        pytest.param(
            r"C:\old\a.jpg",
            r"the name has Windows' \ for /; the name holds folders: {folder} has a.jpg itself",
            marks=posix,
        ),
        pytest.param(r"old\nowhere.jpg", r"the name has Windows' \ for /", marks=posix),
    ],
)
def test_what_lies_there_instead_is_named(data: Path, name: str, expected: str) -> None:
    assert hint(data / "train", name) == expected.format(folder=data / "train", parent=data)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a\0b.jpg", "x" * 5000, "\udcff.jpg", "a.jpg/b.jpg", "sub"])
def test_odd_names_have_no_hint_and_no_error(data: Path, name: str) -> None:
    assert hint(data / "train", name) == ""


def test_a_folder_that_is_not_there_has_no_hint(tmp_path: Path) -> None:
    assert hint(tmp_path / "absent", "a.jpg") == ""


def test_the_parent_is_named_as_short_as_the_folder_was(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    assert hint(Path("train"), "val/c.jpg") == "it is there if the folder of images is ."
    monkeypatch.chdir(data / "train")
    assert hint(Path(), "val/c.jpg") == f"it is there if the folder of images is {Path.cwd().parent}"


def test_many_missing_files_cost_few_listings(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Any] = []
    scandir = os.scandir

    def counted(folder: Any) -> Iterator[Any]:
        listed.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)
    for number in range(500):
        hint(data / "train", f"{number + 1}.png")
    assert sorted(listed) == [data, data / "train"]
