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

    def __init__(self, *, weight_xy: float = 10.0, weight_wh: float = 5.0) -> None:
        self.weight_xy = weight_xy
        self.weight_wh = weight_wh

    def encode(self, anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
        """Deltas [..., 4] that lead from anchors [..., 4] to boxes [..., 4]; sizes must be above 0."""
        anchor_xy, anchor_wh = _centre_and_size(anchors_xyxy)
        box_xy, box_wh = _centre_and_size(boxes_xyxy)
        offsets, log_scales = (box_xy - anchor_xy) / anchor_wh, torch.log(box_wh / anchor_wh)
        return torch.cat([offsets * self.weight_xy, log_scales * self.weight_wh], dim=-1)

    def decode(self, anchors_xyxy: Tensor, deltas: Tensor) -> Tensor:
        """Boxes [..., 4] xyxy pixels from anchors and deltas, in float32 whatever the deltas' type; not clipped."""
        anchor_xy, anchor_wh = _centre_and_size(anchors_xyxy)
        deltas = deltas.float()
        offsets, log_scales = deltas[..., :2] / self.weight_xy, deltas[..., 2:] / self.weight_wh
        centre_xy = anchor_xy + offsets * anchor_wh
        half_wh = anchor_wh * torch.exp(log_scales.clamp(max=MAX_LOG_SCALE)) / 2
        return torch.cat([centre_xy - half_wh, centre_xy + half_wh], dim=-1)


def _centre_and_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return (top_left + bottom_right) / 2, bottom_right - top_left
