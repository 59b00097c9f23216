"""Boxes and labels onto pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mnet_det.draw import (
    FONT,
    GRID_GAP,
    HATCH_SPACING,
    IGNORED_COLOUR,
    class_colour,
    draw_boxes,
    draw_detections,
    draw_ignored,
    make_grid,
)
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


def test_a_label_at_the_right_edge_is_whole() -> None:
    """The same plate and letters as further to the left, up to the picture's last column."""
    text_w = cv2.getTextSize("category", FONT, 0.35, 1)[0][0]
    right, left = (draw_boxes(BLACK, np.array([[x, 40, x + 5, 80]]), ["category"], [0]) for x in (154, 60))
    np.testing.assert_array_equal(right[25:40, 159 - text_w :], left[25:40, 59 : 60 + text_w])


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_ignored_region_is_hatched_and_what_is_below_it_can_be_seen(grey: int) -> None:
    image = np.full((100, 160, 3), grey, np.uint8)
    drawn = draw_ignored(image, np.array([[40, 10, 136, 94]]), text="")
    inside = drawn[11:94, 41:136, 0].astype(int)
    kept = float((inside == grey).mean())
    # One line in twelve is white and one is black, and one of them may be the picture's own colour.
    assert kept == pytest.approx(1 - (2 if grey == 128 else 1) / HATCH_SPACING, abs=0.01)
    assert (inside != grey).any(axis=0).all()  # in each column and row
    assert (inside != grey).any(axis=1).all()
    outside = drawn.copy()
    outside[10:95, 40:137] = grey
    np.testing.assert_array_equal(outside, image)  # cut off at the box
    assert all(tuple(drawn[row, column]) == IGNORED_COLOUR for row, column in ((10, 90), (94, 90), (50, 40), (50, 136)))
    assert (image == grey).all()


def test_hatchings_that_overlap_share_their_lines() -> None:
    boxes = np.array([[10, 10, 90, 90], [50, 20, 150, 80]])
    both = draw_ignored(BLACK, boxes, text="")[25:75, 55:85]  # inside of both
    np.testing.assert_array_equal(both, draw_ignored(BLACK, boxes[:1], text="")[25:75, 55:85])


@pytest.mark.parametrize("box_xyxy", [(-50, -50, 500, 500), (150, 90, 400, 300), (-90, 200, -20, 300), (5, 5, 5, 5)])
def test_a_hatched_box_may_leave_the_picture(box_xyxy: tuple[float, ...]) -> None:
    assert draw_ignored(BLACK, np.array([box_xyxy])).shape == BLACK.shape


def test_nothing_ignored_is_nothing_drawn() -> None:
    assert not draw_ignored(BLACK, np.zeros((0, 4), np.float32)).any()


def test_lines_grow_with_the_picture() -> None:
    large = np.zeros((900, 900, 3), np.uint8)
    drawn = draw_boxes(large, np.array([[300, 300, 600, 600]]), [""], [0])
    assert drawn[290:310, 450].any(axis=1).sum() >= 3  # 900 / 300


def test_a_text_per_box_is_required() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        draw_boxes(BLACK, np.zeros((2, 4)), ["one"], [0, 0])


def test_a_grid_goes_row_by_row_on_black() -> None:
    images = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    grid = make_grid(images, columns=2)
    assert grid.shape == (2 + GRID_GAP + 2, 3 + GRID_GAP + 3, 3)
    assert (grid[:2, :3] == 10).all()
    assert (grid[:2, -3:] == 20).all()
    assert (grid[-2:, :3] == 30).all()
    assert grid.sum() == (10 + 20 + 30) * 2 * 3 * 3  # and nothing else
