"""A small panel of numbers onto a picture."""

from __future__ import annotations

from collections.abc import Sequence

import cv2

from mnet_det.draw import FONT
from mnet_det.live.screen import Status
from mnet_det.runtime.postprocess import VIEWING_SCORE
from mnet_det.structures import Image


def panel_lines(status: Status) -> list[str]:
    """The meters, the settings and the model, a line each; ASCII, which is what OpenCV can draw."""
    readings, settings = status.readings, status.settings
    fps, latency, network = (
        "-" if value is None else f"{value:.1f}" for value in (readings.fps, readings.latency_ms, readings.network_ms)
    )
    card = status.models[status.model]
    nms = card.nms if settings.nms is None else settings.nms
    score = f"{VIEWING_SCORE if settings.score is None else settings.score:.2f}"
    if settings.score is None and card.class_scores is not None:
        score = "best F1"
    number = f"   model {status.model + 1} of {len(status.models)}" if len(status.models) > 1 else ""
    return [
        f"{fps} fps   latency {latency} ms   network {network} ms",
        f"dropped {readings.dropped}   score {score}   nms {nms:.2f}{number}",
        str(card),
    ]


def draw_panel(canvas: Image, lines: Sequence[str], *, bottom: bool = False) -> None:
    """Draw lines onto RGB uint8 [H, W, 3], in place: top left, or bottom left. What follows a tab begins at one column.

    Letters grow with the picture, and shrink where a line would not fit.
    """
    height, width = canvas.shape[:2]
    scale = max(0.4, min(height, width) / 900)
    thickness = max(1, round(scale * 1.5))
    scale *= min(1.0, 0.96 * width / _measure(lines, scale, thickness)[1])
    column, widest, tallest = _measure(lines, scale, thickness)
    step = round(tallest * 1.25)
    margin = step // 3
    right = widest + 2 * margin
    tall = step * len(lines) + margin
    top = max(0, height - tall) if bottom else 0
    canvas[top : top + tall, :right] //= 3  # darker, so that white letters can be read on anything
    for row, line in enumerate(lines):
        base = top + margin // 2 + step * (row + 1) - step // 4
        for text, left in zip(line.split("\t"), (margin, margin + column), strict=False):
            cv2.putText(canvas, text, (left, base), FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)


def _measure(lines: Sequence[str], scale: float, thickness: int) -> tuple[int, int, int]:
    """Where the second column begins, width of the widest line and height of the tallest, pixels."""

    def size(text: str) -> tuple[int, int]:
        (width, height), baseline = cv2.getTextSize(text, FONT, scale, thickness)
        return width, height + baseline

    cells = [line.split("\t") for line in lines]
    column = max((size(f"{cell[0]}MM")[0] for cell in cells if len(cell) > 1), default=0)
    widest = max(column + size(cell[1])[0] if len(cell) > 1 else size(cell[0])[0] for cell in cells)
    return column, widest, max(size(line)[1] for line in lines)
