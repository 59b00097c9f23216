"""Detections in image files: pictures, COCO results, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mnet_det.engine.predict import expand, predict_files
from mnet_det.errors import DataError
from mnet_det.images import read_image, write_image
from mnet_det.structures import Detections, Image


class Finder:
    """Finds one "b" (category 18) at 4, 6 with 20 × 30 pixels in every image."""

    class_names = ("a", "b")
    metadata = SimpleNamespace(category_ids=(17, 18))
    viewing_score = (0.3, 0.6)

    def __init__(self) -> None:
        self.asked: list[object] = []

    def __call__(self, image: Image, *, score: object) -> Detections:
        self.asked.append(score)
        return Detections(np.array([[4, 6, 24, 36]], np.float32), np.array([0.75], np.float32), np.array([1]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two grey pictures, one with an umlaut in its name, and a text beside them."""
    folder = tmp_path / "photos"
    for name in ("a.png", "ü.png"):
        write_image(folder / name, np.full((64, 80, 3), 90, np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_results_are_coco_with_file_names_and_the_data_s_ids(folder: Path, tmp_path: Path) -> None:
    results, faults = predict_files(Finder(), [folder], out=tmp_path / "found")
    assert not faults
    expected = {"category_id": 18, "bbox": [4, 6, 20, 30], "score": 0.75}
    assert results == [{"image_id": name, **expected} for name in ("a.png", "ü.png")]


@pytest.mark.parametrize(("given", "asked"), [(None, (0.3, 0.6)), (0.2, 0.2), (0.0, 0.0)])
def test_the_model_s_own_score_to_show_holds_unless_one_is_given(
    given: float | None, asked: object, folder: Path, tmp_path: Path
) -> None:
    finder = Finder()
    predict_files(finder, [folder], out=tmp_path / "found", score=given)
    assert finder.asked == [asked] * 2


def test_each_picture_has_its_boxes_drawn_under_its_own_name(folder: Path, tmp_path: Path) -> None:
    noted: list[tuple[Path, int]] = []
    predict_files(Finder(), [folder], out=tmp_path / "found", note=lambda path, count: noted.append((path, count)))
    assert noted == [(tmp_path / "found" / name, 1) for name in ("a.png", "ü.png")]
    for path, _ in noted:
        changed = (read_image(path) != 90).any(axis=-1)
        assert changed[6:37, 4].all()  # the left side
        assert not changed[45:].any()
    assert (read_image(folder / "a.png") == 90).all()  # the original is as it was


def test_files_and_folders_mix(folder: Path, tmp_path: Path) -> None:
    single = tmp_path / "single.JPG"
    write_image(single, np.zeros((8, 8, 3), np.uint8))
    assert list(expand([single, folder])) == [single, folder / "a.png", folder / "ü.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.png", r"gone\.png: no such file or folder"),
        ("photos/notes.txt", r"notes\.txt: not an image; known suffixes: .*\.png.*\(videos: `demo`\)"),
        ("empty", "empty: no image in it"),
    ],
)
def test_what_is_no_image_is_refused_before_anything_is_written(
    source: str, message: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        predict_files(Finder(), [folder, tmp_path / source], out=tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_two_images_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "a.png"
    write_image(other, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.png and .*a\.png have the same name; give them to two runs"):
        predict_files(Finder(), [folder, other], out=tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_an_image_is_never_replaced_by_its_picture(folder: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: the picture would replace the image itself; choose another --out"):
        predict_files(Finder(), [folder], out=folder)
    assert (read_image(folder / "a.png") == 90).all()


def test_a_damaged_image_is_named_and_costs_only_itself(folder: Path, tmp_path: Path) -> None:
    """It ended the run: the pictures before it were written, their results were not."""
    (folder / "b.png").write_bytes(b"\x89PNG but no more")
    results, faults = predict_files(Finder(), [folder], out=tmp_path / "found")
    assert [result["image_id"] for result in results] == ["a.png", "ü.png"]
    assert len(faults) == 1
    assert "b.png: not an image that can be decoded" in faults[0]
