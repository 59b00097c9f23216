"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from mnet_det import files
from mnet_det.errors import MnetDetError
from mnet_det.files import free_folder, remove_unfinished, used_folders, whole_file, write_json, write_text


def write_half(path: Path, error: Exception) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_appears_when_the_block_ends_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.onnx"
    with whole_file(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".onnx"  # by which libraries choose the format
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path, KeyError())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_explained_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(MnetDetError, match=r"a\.json: cannot be written \(No space left on device\)$"):
        write_half(path, OSError(errno.ENOSPC, "No space left on device"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MnetDetError, match=r"a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_two_processes_write_to_different_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two demos started at once with a new checkpoint both convert it into the cache.

    They wrote to one temporary name, and the first to finish put the other's half-written file in place.
    """
    path = tmp_path / "model.onnx"
    with whole_file(path) as ours:
        ours.write_text("ours, not finished")
        with monkeypatch.context() as other:
            other.setattr(files.os, "getpid", lambda: os.getppid())
            with whole_file(path) as theirs:
                theirs.write_text("theirs")
        assert path.read_text() == "theirs"
        ours.write_text("ours")
    assert path.read_text() == "ours"


def test_only_what_was_begun_in_the_place_of_a_file_is_removed(tmp_path: Path) -> None:
    """A run that went on removed all hidden `.tmp` files of its folder: a user's, and an export's that was going on."""
    kept = [".last.12.tmp.onnx", ".best.12.tmp.pt", ".settings.tmpl", "last.pt", ".last.tmp.pt"]
    (tmp_path / ".last.9.tmp.pt").mkdir()  # what cannot be removed does no harm
    for name in (*kept, ".last.12.tmp.pt", ".last.13.tmp.pt"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path / "last.pt")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".last.9.tmp.pt"}


def test_text_is_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "naïve ×")
    assert (tmp_path / "a.txt").read_bytes().decode("utf-8") == "naïve ×"


def test_json_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"AP": None, "list": [1, 0.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"AP": None, "list": [1, 0.5]}


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"AP": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_a_free_folder_is_new_or_empty(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert free_folder(folder) == folder
    folder.mkdir()
    assert free_folder(folder) == folder
    (folder / "last.pt").touch()
    assert free_folder(folder) == tmp_path / "run-2"
    (tmp_path / "run-2").touch()  # a file is in the way too
    assert free_folder(folder) == tmp_path / "run-3"


def test_used_folders_are_those_that_free_folder_named(tmp_path: Path) -> None:
    """`--resume auto` of `ssd` once went on with `ssd-300`, another config's run."""
    for name in ("ssd", "ssd-2", "ssd-300"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pt").touch()
    assert used_folders(tmp_path / "ssd") == [tmp_path / "ssd", tmp_path / "ssd-2"]
    assert free_folder(tmp_path / "ssd") == tmp_path / "ssd-3"
    assert used_folders(tmp_path / "other") == []
