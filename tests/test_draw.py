"""Boxes and labels onto pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mnet_det.draw import FONT, class_colour, draw_boxes, draw_detections, make_grid
from mnet_det.structures import Detections

BLACK = np.zeros((100, 160, 3), np.uint8)


def at(*boxes_xyxy: tuple[float, float, float, float], labels: list[int]) -> Detections:
    count = len(boxes_xyxy)
    return Detections(
        np.array(boxes_xyxy, np.float32), np.linspace(0.9, 0.5, count, dtype=np.float32), np.array(labels, np.int64)
    )


def test_colours_are_bright_stay_the_same_and_differ() -> None:
    colours = [class_colour(label) for label in range(91)]
    assert colours == [class_colour(label) for label in range(91)]
    assert len(set(colours)) == 91
    assert all(max(colour) == 255 for colour in colours)
    assert class_colour(0) == (255, 63, 63)  # hue 0 at saturation 0.75: 255 × (1, 0.25, 0.25)


def test_drawing_leaves_the_picture_it_was_given() -> None:
    image = BLACK.copy()
    drawn = draw_detections(image, at((40, 40, 100, 80), labels=[0]), ["cat"])
    assert drawn.shape == image.shape
    assert drawn.any()
    assert not image.any()


def test_no_detections_draw_nothing() -> None:
    assert not draw_detections(BLACK, Detections.empty(), []).any()


def test_the_outline_lies_on_the_box_in_its_class_s_colour() -> None:
    drawn = draw_boxes(BLACK, np.array([[40, 40, 100, 80]]), [""], [3])
    colour = class_colour(3)
    for row, column in ((40, 70), (80, 70), (60, 40), (60, 100)):  # top, bottom, left, right
        assert tuple(drawn[row, column]) == colour
    assert not drawn[45:75, 45:95].any()
    assert not drawn[:39].any()


def test_the_best_detection_is_drawn_last() -> None:
    box = (40.0, 40.0, 100.0, 80.0)
    drawn = draw_detections(BLACK, at(box, box, labels=[1, 2]), ["a", "b", "c"])
    assert tuple(drawn[80, 70]) == class_colour(1)


def test_a_label_at_the_upper_edge_stays_inside_the_picture() -> None:
    """The same plate and letters as further down, from the picture's first row on."""
    upper, lower = (draw_boxes(BLACK, np.array([[40, top, 100, 80]]), ["category"], [0]) for top in (0, 30))
    (text_w, text_h), baseline = cv2.getTextSize("category", FONT, 0.35, 1)
    plate_h = text_h + baseline
    np.testing.assert_array_equal(upper[:plate_h, 40 : 40 + text_w], lower[30 - plate_h : 30, 40 : 40 + text_w])
    assert not lower[: 30 - plate_h].any()


@pytest.mark.parametrize(
    "box_xyxy",
    [(-500, -500, 500, 500), (150, 90, 400, 300), (50, 50, 50, 50)],
    ids=["around", "corner", "point"],
)
def test_a_box_that_leaves_the_picture_is_drawn_as_far_as_it_goes(box_xyxy: tuple[float, ...]) -> None:
    assert draw_boxes(BLACK, np.array([box_xyxy]), ["name"], [0]).shape == BLACK.shape


def test_lines_grow_with_the_picture() -> None:
    large = np.zeros((900, 900, 3), np.uint8)
    drawn = draw_boxes(large, np.array([[300, 300, 600, 600]]), [""], [0])
    assert drawn[290:310, 450].any(axis=1).sum() >= 3  # 900 / 300


def test_a_text_per_box_is_required() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        draw_boxes(BLACK, np.zeros((2, 4)), ["one"], [0, 0])


def test_a_grid_goes_row_by_row_and_ends_in_black() -> None:
    images = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    grid = make_grid(images, columns=2)
    assert grid[:, :, 0].tolist() == [
        [10, 10, 10, 20, 20, 20],
        [10, 10, 10, 20, 20, 20],
        [30, 30, 30, 0, 0, 0],
        [30, 30, 30, 0, 0, 0],
    ]
