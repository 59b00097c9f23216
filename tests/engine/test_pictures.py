"""Pictures of what training sees and what the detector finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mnet_det.config import load_config
from mnet_det.data import open_data
from mnet_det.draw import class_colour
from mnet_det.engine.pictures import browse_samples, picture_batch, picture_predictions
from mnet_det.engine.torch_backend import load_torch_predictor
from mnet_det.structures import Batch, Target


def target(boxes: list[list[float]], crowd: list[list[float]]) -> Target:
    return Target(
        torch.tensor(boxes).reshape(-1, 4),
        torch.arange(len(boxes)),
        torch.tensor(crowd).reshape(-1, 4),
        (64, 64),
    )


def test_a_batch_is_shown_with_its_boxes_in_the_colours_of_their_classes() -> None:
    images = torch.full((3, 3, 64, 64), 90, dtype=torch.uint8)
    targets = [target([[10, 30, 40, 60]], []), target([], []), target([], [[10, 30, 40, 60]])]
    grid = picture_batch(Batch(images, targets, [1, 2, 3]), ["cat", "dog"])
    assert grid.shape == (128, 128, 3)  # three cells in two columns
    assert tuple(grid[50, 10]) == class_colour(0)
    assert (grid[:64, 64:] == 90).all()  # an image without boxes
    assert tuple(grid[64 + 50, 10]) == class_colour(2)  # a crowd region: no class's colour
    assert (grid[64:, 64:] == 0).all()


def test_at_most_sixteen_images_are_shown() -> None:
    images = torch.zeros((20, 3, 32, 32), dtype=torch.uint8)
    grid = picture_batch(Batch(images, [target([], [])] * 20, list(range(20))), ["cat"])
    assert grid.shape == (4 * 32, 4 * 32, 3)


def test_predictions_are_shown_in_cells_of_one_size(toy_run: Path, toy_words: tuple[str, ...]) -> None:
    data = open_data(load_config(None, toy_words).data, "val")
    grid = picture_predictions(load_torch_predictor(toy_run / "best.pt"), data)
    assert grid.shape == (2 * 320, 2 * 400, 3)
    assert picture_predictions(load_torch_predictor(toy_run / "best.pt"), data, count=1).shape == (320, 400, 3)


@pytest.mark.parametrize(("preset", "changes"), [("none", False), ("ssd", True)])
def test_browsing_shows_each_image_twice_as_augmentation_changes_it(
    preset: str, changes: bool, toy_words: tuple[str, ...]
) -> None:
    grid = browse_samples(load_config(None, [*toy_words, f"data.augment={preset}"]))
    assert grid.shape == (3 * 64, 4 * 64, 3)  # six images, twice, in four columns
    cells = [grid[64 * (n // 4) :, 64 * (n % 4) :][:64, :64] for n in range(12)]
    differing = [not np.array_equal(cells[n], cells[n + 1]) for n in range(0, 12, 2)]
    assert any(differing) is changes
