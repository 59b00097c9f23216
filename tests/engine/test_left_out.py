"""What a run leaves out is said once and listed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from mnet_det.data.faults import Fault
from mnet_det.engine.left_out import LINES, LeftOut
from mnet_det.errors import MnetDetError


def fault(number: int, kind: str = "truncated-image") -> Fault:
    return Fault(kind, "cut off", "train.json", image_id=number, file=f"{number}.jpg")


def listed(folder: Path) -> list[int]:
    return [entry["image_id"] for entry in json.loads((folder / "left_out.json").read_text())["left_out"]]


def test_nothing_left_out_leaves_no_list(tmp_path: Path) -> None:
    text = io.StringIO()
    LeftOut(tmp_path, Console(file=text)).add([])
    assert (list(tmp_path.iterdir()), text.getvalue()) == ([], "")


def test_each_fault_is_listed_once_and_told_in_a_line(tmp_path: Path) -> None:
    text = io.StringIO()
    left_out = LeftOut(tmp_path, Console(file=text, width=80))
    left_out.add([fault(1), fault(2), fault(3, "empty-file")])
    left_out.add([fault(2)])
    assert listed(tmp_path) == [1, 2, 3]
    assert text.getvalue().splitlines() == [
        "left out: image files of zero bytes (1), image files that were cut off (2), such as train.json: image 1, "
        f"1.jpg: cut off; listed in {tmp_path / 'left_out.json'}"
    ]


def test_a_folder_that_cannot_be_is_left_to_the_first_file_in_it(tmp_path: Path) -> None:
    """`--out FILE/run` ended in a NotADirectoryError, before any message could say what was wrong."""
    (tmp_path / "file").touch()
    left_out = LeftOut(tmp_path / "file" / "run", Console(quiet=True))
    with pytest.raises(MnetDetError, match=r"left_out\.json: cannot be written"):
        left_out.add([fault(1)])


def test_a_flood_is_only_listed(tmp_path: Path) -> None:
    text = io.StringIO()
    left_out = LeftOut(tmp_path, Console(file=text, width=80))
    for number in range(3 * LINES):
        left_out.add([fault(number)])
    assert listed(tmp_path) == list(range(3 * LINES))
    assert len(text.getvalue().splitlines()) == LINES + 1
    assert "only listed" in text.getvalue().splitlines()[-1]


def test_a_resumed_run_goes_on_with_its_list_and_a_new_one_begins_anew(tmp_path: Path) -> None:
    """An image that was repaired meanwhile was still not seen in the epochs before."""
    quiet = Console(quiet=True)
    LeftOut(tmp_path, quiet).add([fault(1)])
    resumed = LeftOut(tmp_path, quiet, resumed=True)
    resumed.add([fault(1), fault(2)])
    assert listed(tmp_path) == [1, 2]
    LeftOut(tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "left_out.json").write_text('{"left_out": [{}]}')
    LeftOut(tmp_path, Console(quiet=True), resumed=True).add([fault(2)])
    assert listed(tmp_path) == [2]
