"""Pictures of what training sees and what the detector finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mnet_det.config import load_config
from mnet_det.data import open_data
from mnet_det.draw import GRID_GAP, IGNORED_COLOUR, class_colour
from mnet_det.engine.pictures import browse_samples, picture_batch, picture_predictions
from mnet_det.engine.torch_backend import load_torch_predictor
from mnet_det.images import write_image
from mnet_det.structures import Batch, Target

SHOWN = 256
"""Side of a picture of 64 pixels: the least multiple of them that is 240 or more."""


def target(boxes: list[list[float]], crowd: list[list[float]]) -> Target:
    return Target(
        torch.tensor(boxes).reshape(-1, 4),
        torch.arange(len(boxes)),
        torch.tensor(crowd).reshape(-1, 4),
        (64, 64),
    )


def cell(grid: np.ndarray, row: int, column: int, *, height: int = SHOWN, width: int = SHOWN) -> np.ndarray:
    top, left = row * (height + GRID_GAP), column * (width + GRID_GAP)
    return grid[top : top + height, left : left + width]


def test_a_batch_is_shown_with_its_boxes_in_the_colours_of_their_classes() -> None:
    images = torch.full((3, 3, 64, 64), 90, dtype=torch.uint8)
    targets = [target([[10, 30, 40, 60]], []), target([], []), target([], [[10, 30, 40, 60]])]
    grid = picture_batch(Batch(images, targets, [1, 2, 3]), ["cat", "dog"])
    assert grid.shape == (2 * SHOWN + GRID_GAP, 2 * SHOWN + GRID_GAP, 3)  # three cells in two columns
    assert tuple(cell(grid, 0, 0)[50 * 4, 10 * 4]) == class_colour(0)
    assert (cell(grid, 0, 1) == 90).all()  # an image without boxes
    crowd = cell(grid, 1, 0)
    assert tuple(crowd[50 * 4, 10 * 4]) == IGNORED_COLOUR
    assert 0.1 < (crowd[35 * 4 : 58 * 4, 12 * 4 : 38 * 4] != 90).any(axis=2).mean() < 0.3  # hatched, 2 lines in 12
    assert (crowd[61 * 4 + 1 :] == 90).all()
    assert (cell(grid, 1, 1) == 0).all()


def test_small_inputs_are_enlarged_by_whole_pixels_and_large_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    for height, width, times in ((48, 100, 5), (144, 192, 2), (240, 400, 1), (300, 300, 1)):
        images = torch.from_numpy(rng.integers(0, 256, (1, 3, height, width), dtype=np.uint8))
        grid = picture_batch(Batch(images, [target([], [])], [1]), [])
        np.testing.assert_array_equal(grid[::times, ::times], images[0].permute(1, 2, 0).numpy())
        assert grid.shape == (height * times, width * times, 3)


def test_at_most_sixteen_images_are_shown() -> None:
    images = torch.zeros((20, 3, 32, 32), dtype=torch.uint8)
    grid = picture_batch(Batch(images, [target([], [])] * 20, list(range(20))), ["cat"])
    assert grid.shape == (4 * 256 + 3 * GRID_GAP, 4 * 256 + 3 * GRID_GAP, 3)


def test_predictions_are_shown_in_cells_of_one_size(toy_run: Path, toy_words: tuple[str, ...]) -> None:
    data = open_data(load_config(None, toy_words).data, "val")
    grid = picture_predictions(load_torch_predictor(toy_run / "best.pt"), data)
    assert grid.shape == (2 * 320 + GRID_GAP, 2 * 400 + GRID_GAP, 3)
    assert picture_predictions(load_torch_predictor(toy_run / "best.pt"), data, count=1).shape == (320, 400, 3)


@pytest.mark.parametrize(("preset", "changes"), [("none", False), ("ssd", True)])
def test_browsing_shows_each_image_twice_as_augmentation_changes_it(
    preset: str, changes: bool, toy_words: tuple[str, ...]
) -> None:
    grid = browse_samples(load_config(None, [*toy_words, f"data.augment={preset}"]))
    assert grid.shape == (3 * SHOWN + 2 * GRID_GAP, 4 * SHOWN + 3 * GRID_GAP, 3)  # six images, twice, in four columns
    cells = [cell(grid, number // 4, number % 4) for number in range(12)]
    differing = [not np.array_equal(cells[n], cells[n + 1]) for n in range(0, 12, 2)]
    assert any(differing) is changes


def write_set(folder: Path, images: int, *, marked: dict[int, bool], hw: tuple[int, int] = (40, 60)) -> list[str]:
    """Grey images, each of a brightness of its own; those in `marked` have a box, which may be a crowd."""
    boxes = [
        {"id": index + 1, "image_id": index, "category_id": 7, "bbox": [5, 5, 30, 20], "iscrowd": int(crowd)}
        for index, crowd in marked.items()
    ]
    content = {
        "images": [
            {"id": index, "file_name": f"{index}.png", "height": hw[0], "width": hw[1]} for index in range(images)
        ],
        "annotations": boxes,
        "categories": [{"id": 7, "name": "thing"}],
    }
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")
    for index in range(images):
        write_image(folder / f"{index}.png", np.full((*hw, 3), 10 + index, np.uint8))
    return [
        f"data.train_images={folder}",
        f"data.train_annotations={folder / 'train.json'}",
        "data.augment=none",
        "model.base_hw=[240,240]",
    ]


def brightness_of(words: list[str]) -> list[int]:
    """What `write_set` painted the images that are browsed with, each counted once."""
    grid = browse_samples(load_config(None, words))
    columns = (grid.shape[1] + GRID_GAP) // (240 + GRID_GAP)
    rows = (grid.shape[0] + GRID_GAP) // (240 + GRID_GAP)
    shown = [cell(grid, row, column, height=240, width=240) for row in range(rows) for column in range(columns)]
    return [int(picture[230, 230, 0]) for picture in shown][::2]


def test_browsing_goes_through_the_whole_set_and_includes_a_crowd(tmp_path: Path) -> None:
    words = write_set(tmp_path, 100, marked={index: index in (51, 98) for index in range(100)})
    # Every 100 / 8th, rounded down; the last one of the eight makes room for the first crowd.
    assert brightness_of(words) == [10, 10 + 12, 10 + 25, 10 + 37, 10 + 50, 10 + 51, 10 + 62, 10 + 75]


@pytest.mark.parametrize("setting", ["mosaic", "mixup"])
def test_browsing_shows_what_is_mixed_while_training_mixes(tmp_path: Path, setting: str) -> None:
    words = write_set(tmp_path, 3, marked={})
    plain, mixed, again = (
        browse_samples(load_config(None, [*words, *extra]))
        for extra in ([], *[[f"data.{setting}=1", "train.epochs=2", "data.plain_epochs=1"]] * 2)
    )
    assert np.array_equal(mixed, again)
    same = [
        np.array_equal(*(cell(grid, number // 3, number % 3, height=240, width=240) for grid in (plain, mixed)))
        for number in range(6)
    ]
    assert not all(same[0::2])  # images that are mixed with themselves alone stay as they are
    assert all(same[1::2])  # of two epochs, only the first is mixed


def test_browsing_prefers_images_with_boxes(tmp_path: Path) -> None:
    words = write_set(tmp_path, 12, marked={3: False, 7: False})
    assert brightness_of(words) == [13, 17]


@pytest.mark.parametrize("preset", ["none", "flip", "ssd", "ssdlite"])
def test_a_set_without_boxes_can_be_browsed(preset: str, tmp_path: Path) -> None:
    words = write_set(tmp_path, 3, marked={}, hw=(30, 90))
    grid = browse_samples(load_config(None, [*words, f"data.augment={preset}", "model.base_hw=[64,128]"]))
    assert grid.shape == (2 * 256 + GRID_GAP, 3 * 512 + 2 * GRID_GAP, 3)  # three images, twice, in three columns


def test_an_image_that_cannot_be_read_does_not_end_browsing(tmp_path: Path) -> None:
    words = write_set(tmp_path, 3, marked={0: False, 1: False, 2: False})
    (tmp_path / "1.png").write_bytes(b"")
    assert brightness_of(words) == [10, 12, 12]  # the next in its place
