"""Boxes and labels onto pixels."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from mnet_det.structures import Detections, Image

FONT = cv2.FONT_HERSHEY_SIMPLEX
GRID_GAP = 4
"""Black pixels between the images of a grid, or neighbours that are mirrored run into one."""
IGNORED_COLOUR = (255, 255, 255)
"""No class's: those have a hue."""
HATCH_SPACING = 12
"""From one line of a hatching to the next, in line widths; with each line's dark edge, five sixths stay as they are."""


@cache
def class_colour(label: int) -> tuple[int, int, int]:
    """A bright RGB colour; neighbouring labels differ most (the hue turns by the golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1.0, 0.75, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw_detections(image: Image, detections: Detections, class_names: Sequence[str]) -> Image:
    """A copy of RGB uint8 [H, W, 3] with boxes, class names and scores; the best one is drawn last, on top."""
    canvas = image.copy()
    for index in reversed(range(len(detections))):
        label = int(detections.labels[index])
        text = f"{class_names[label]} {detections.scores[index]:.2f}"
        _draw_box(canvas, detections.boxes_xyxy[index], text, class_colour(label))
    return canvas


def draw_boxes(image: Image, boxes_xyxy: np.ndarray, texts: Sequence[str], labels: Sequence[int]) -> Image:
    """A copy of RGB uint8 [H, W, 3] with boxes float [N, 4], each with its text in its label's colour."""
    canvas = image.copy()
    for box_xyxy, text, label in zip(boxes_xyxy, texts, labels, strict=True):
        _draw_box(canvas, box_xyxy, text, class_colour(int(label)))
    return canvas


def draw_ignored(image: Image, boxes_xyxy: np.ndarray, text: str = "ignored") -> Image:
    """A copy of RGB uint8 [H, W, 3] with boxes float [N, 4] hatched, so that what is below them can still be seen."""
    canvas = image.copy()
    thickness = _thickness(canvas)
    rows, columns = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    line = (rows + columns) // thickness % HATCH_SPACING  # of the whole picture: boxes that overlap share their lines
    for box_xyxy in boxes_xyxy:
        left, top, right, bottom = (max(0, round(float(side))) for side in box_xyxy)  # below 0, a slice counts back
        inside = canvas[top:bottom, left:right]
        inside[line[top:bottom, left:right] == 0] = IGNORED_COLOUR
        inside[line[top:bottom, left:right] == 1] = 0  # a dark edge, to be seen on white
    for box_xyxy in boxes_xyxy:
        _draw_box(canvas, box_xyxy, text, IGNORED_COLOUR)
    return canvas


def make_grid(images: Sequence[Image], *, columns: int) -> Image:
    """Images of one size side by side, row after row, on black."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    grid = np.zeros((rows * (height + GRID_GAP) - GRID_GAP, columns * (width + GRID_GAP) - GRID_GAP, 3), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GRID_GAP), index % columns * (width + GRID_GAP)
        grid[top : top + height, left : left + width] = image
    return grid


def _thickness(image: Image) -> int:
    """Width of a line in pixels; lines and letters grow with the picture so that they can be read at any size."""
    return max(1, round(min(image.shape[:2]) / 300))


def _draw_box(canvas: Image, box_xyxy: np.ndarray, text: str, colour: tuple[int, int, int]) -> None:
    """Draw in place."""
    thickness = _thickness(canvas)
    scale = max(0.35, min(canvas.shape[:2]) / 1000)
    left, top, right, bottom = (round(float(side)) for side in box_xyxy)
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, thickness)
    if not text:
        return
    (text_w, text_h), baseline = cv2.getTextSize(text, FONT, scale, thickness)
    base = max(top, text_h + baseline)  # stays inside the picture, and so does the text's start
    start = max(0, min(left, canvas.shape[1] - text_w))
    cv2.rectangle(canvas, (start, base - text_h - baseline), (start + text_w, base), colour, cv2.FILLED)
    cv2.putText(canvas, text, (start, base - baseline // 2 - 1), FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
