"""Boxes as offsets from anchors (deltas), and back (Faster R-CNN's coding, with SSD's variances)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""A box grows to at most 62.5 times its anchor, so that an untrained network cannot overflow."""


class BoxCoder:
    """`decode(anchors, encode(anchors, boxes)) == boxes`.

    Deltas are (x, y, w, h), centre offsets in anchor sizes and logarithms of size ratios, times 10, 10, 5, 5: the
    inverse of SSD's variances 0.1, 0.1, 0.2, 0.2, which brings all four to about unit spread.
    """

    def __init__(self, weights_xywh: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)) -> None:
        self.weights_xywh = weights_xywh

    def encode(self, anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
        """Deltas [..., 4] that lead from anchors [..., 4] to boxes [..., 4]; sizes must be above 0."""
        anchor_xy, anchor_wh = _centre_and_size(anchors_xyxy)
        box_xy, box_wh = _centre_and_size(boxes_xyxy)
        deltas = torch.cat([(box_xy - anchor_xy) / anchor_wh, torch.log(box_wh / anchor_wh)], dim=-1)
        return deltas * deltas.new_tensor(self.weights_xywh)

    def decode(self, anchors_xyxy: Tensor, deltas: Tensor) -> Tensor:
        """Boxes [..., 4] xyxy pixels from anchors and deltas, in float32 whatever the deltas' type; not clipped."""
        anchor_xy, anchor_wh = _centre_and_size(anchors_xyxy)
        offsets = deltas.float() / anchors_xyxy.new_tensor(self.weights_xywh)
        centre_xy = anchor_xy + offsets[..., :2] * anchor_wh
        half_wh = anchor_wh * torch.exp(offsets[..., 2:].clamp(max=MAX_LOG_SCALE)) / 2
        return torch.cat([centre_xy - half_wh, centre_xy + half_wh], dim=-1)


def _centre_and_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return (top_left + bottom_right) / 2, bottom_right - top_left
