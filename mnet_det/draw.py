"""Boxes and labels onto pixels."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from mnet_det.structures import Detections, Image

FONT = cv2.FONT_HERSHEY_SIMPLEX


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


def make_grid(images: Sequence[Image], *, columns: int) -> Image:
    """Images of one size side by side, row after row; the last row is filled with black."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    grid = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        grid[top : top + height, left : left + width] = image
    return grid


def _draw_box(canvas: Image, box_xyxy: np.ndarray, text: str, colour: tuple[int, int, int]) -> None:
    """Draw in place; line and letters grow with the picture so that they can be read at any size."""
    size = min(canvas.shape[:2])
    thickness = max(1, round(size / 300))
    scale = max(0.35, size / 1000)
    left, top, right, bottom = (round(float(side)) for side in box_xyxy)
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, thickness)
    if not text:
        return
    (text_w, text_h), baseline = cv2.getTextSize(text, FONT, scale, thickness)
    base = max(top, text_h + baseline)  # stays inside the picture
    cv2.rectangle(canvas, (left, base - text_h - baseline), (left + text_w, base), colour, cv2.FILLED)
    cv2.putText(canvas, text, (left, base - baseline // 2 - 1), FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
