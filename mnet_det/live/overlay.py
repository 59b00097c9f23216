"""What a viewer sees: boxes, and a small panel of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2

from mnet_det.draw import FONT, draw_detections
from mnet_det.structures import Detections, Image


@dataclass(frozen=True)
class Readings:
    """What the panel says about the latest frames; None before it can be known.

    Attributes:
        fps: frames shown in a second.
        end_to_end_ms: from a frame in memory to that frame shown.
        network_ms: the network alone.
        dropped: frames of the source that were not shown, since the start.
    """

    fps: float | None
    end_to_end_ms: float | None
    network_ms: float | None
    dropped: int


def panel_lines(model: str, readings: Readings, *, score: float) -> list[str]:
    """The panel's lines; `model` says in a line what is running."""
    fps, end_to_end, network = (
        "-" if value is None else f"{value:.1f}"
        for value in (readings.fps, readings.end_to_end_ms, readings.network_ms)
    )
    return [
        f"{fps} fps   latency {end_to_end} ms   network {network} ms",
        f"dropped {readings.dropped}   score {score:.2f}",
        model,
    ]


def draw_overlay(image: Image, detections: Detections, class_names: Sequence[str], lines: Sequence[str]) -> Image:
    """A copy of RGB uint8 [H, W, 3] with boxes and, top left, a panel of ASCII lines."""
    canvas = draw_detections(image, detections, class_names)
    _draw_panel(canvas, lines)
    return canvas


def _draw_panel(canvas: Image, lines: Sequence[str]) -> None:
    """Draw in place; letters grow with the picture, and shrink where a line would not fit."""
    height, width = canvas.shape[:2]
    scale = max(0.4, min(height, width) / 900)
    thickness = max(1, round(scale * 1.5))
    widest = max(cv2.getTextSize(line, FONT, scale, thickness)[0][0] for line in lines)
    scale *= min(1.0, 0.96 * width / widest)
    sizes = [cv2.getTextSize(line, FONT, scale, thickness) for line in lines]
    step = round(max(text_h + baseline for (_, text_h), baseline in sizes) * 1.25)
    margin = step // 3
    right = max(text_w for (text_w, _), _ in sizes) + 2 * margin
    bottom = step * len(lines) + margin
    canvas[:bottom, :right] //= 3  # darker, so that white letters can be read on anything
    for row, line in enumerate(lines):
        base = margin // 2 + step * (row + 1) - step // 4
        cv2.putText(canvas, line, (margin, base), FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)
