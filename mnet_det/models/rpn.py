"""Region proposals (Ren et al. 2015, Faster R-CNN, section 3.1): where something may be, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms

from mnet_det.models.box_coder import BoxCoder
from mnet_det.models.matching import IGNORED, match_anchors, sample_matches, true_boxes_of
from mnet_det.structures import Target

PRE_NMS = 1000
"""Boxes of each map that enter suppression (torchvision's number when detecting)."""
NMS_IOU = 0.7  # Ren et al. 2015, section 3.3, as are the four below
SAMPLES = 256
POSITIVE_SHARE = 0.5
POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3
MIN_SIDE_PX = 1e-3
"""A box that clipping leaves thinner than this is no proposal."""
LOWEST = torch.finfo(torch.float32).min
"""In the place of the logit of a box that is no proposal. Logits rank, not scores, of which few differ near 1."""
SMOOTH_L1_BETA = 1 / 9
"""Where the box loss turns from square to straight; of the original code, with sigma 3."""


class RegionOutputs(NamedTuple):
    """What the network says about each map's anchors.

    Attributes:
        logits: of being an object, float32 [B, A] for each map.
        deltas: float32 [B, A, 4] for each map.
    """

    logits: list[Tensor]
    deltas: list[Tensor]


class Proposals(NamedTuple):
    """The best regions of each image, in as many slots for all.

    Attributes:
        boxes_xyxy: float32 [B, N, 4] network pixels, inside the input.
        valid: bool [B, N], False for slots that are left over.
    """

    boxes_xyxy: Tensor
    valid: Tensor


class RegionProposalNetwork(nn.Module):
    """A 3×3 convolution, and on it two 1×1 ones: is there an object, and how far is the anchor from it.

    All maps share them. It differs from the paper in one logit an anchor, not two, as everywhere today.
    """

    def __init__(self, channels: int, *, anchors_per_cell: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors_per_cell, 1)
        self.deltas = nn.Conv2d(channels, anchors_per_cell * 4, 1)
        self.box_coder = BoxCoder(weight_xy=1.0, weight_wh=1.0)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)  # Ren et al. 2015, section 3.1.3
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> RegionOutputs:
        """Maps [B, channels, h, w] to what is said of their anchors: row-major, anchor fastest."""
        outputs = RegionOutputs([], [])
        for features in maps:
            hidden = F.relu(self.conv(features))
            outputs.logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float())  # [B, h * w * S]
            raw = self.deltas(hidden).permute(0, 2, 3, 1)  # [B, h, w, S * 4]
            outputs.deltas.append(raw.reshape(len(raw), -1, 4).float())  # [B, h * w * S, 4]
        return outputs

    @torch.no_grad()
    def propose(self, outputs: RegionOutputs, anchors: Tensor, *, image_hw: tuple[int, int], count: int) -> Proposals:
        """The best boxes after suppression within each map, in slots of which there are the same number for any image.

        Args:
            outputs: of `forward`.
            anchors: float32 [A, 4], those of all maps.
            image_hw: the input's size, to which boxes are clipped.
            count: how many an image; fewer where the maps have not so many anchors, of which `PRE_NMS` a map count.
        """
        ranked, boxes_xyxy = [], []
        sizes = [logits.shape[1] for logits in outputs.logits]
        for logits, deltas, here in zip(*outputs, anchors.split(sizes), strict=True):
            best, index = logits.topk(min(PRE_NMS, logits.shape[1]), dim=1)  # [B, P]
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))  # [B, P, 4]
            boxes = clip_boxes_to_image(self.box_coder.decode(here[index], chosen), image_hw)
            usable = (boxes[..., 2:] - boxes[..., :2] >= MIN_SIDE_PX).all(dim=-1)
            scores = best.sigmoid() * usable  # above 0 where usable: engines may pass over boxes that score less
            kept = torch.stack([_survivors(boxes[image], scores[image]) for image in range(len(boxes))]) & usable
            ranked.append(torch.where(kept, best, LOWEST))
            boxes_xyxy.append(boxes)
        logits = torch.cat(ranked, dim=1)
        best, index = logits.topk(min(count, logits.shape[1]), dim=1)  # [B, N]
        boxes = torch.cat(boxes_xyxy, dim=1).gather(1, index[..., None].expand(-1, -1, 4))
        return Proposals(boxes, best > LOWEST)

    def losses(self, outputs: RegionOutputs, anchors: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Objectness and box loss over a random sample of each image's anchors, divided by its size.

        Anchors in padding and in crowd regions are left out, as are those that overlap a true box a little.
        """
        logits, deltas = (torch.cat(parts, dim=1) for parts in outputs)  # [B, A], [B, A, 4]
        matched = match_anchors(anchors, targets, positive_iou=POSITIVE_IOU, negative_iou=NEGATIVE_IOU)  # [B, A]
        sampled = sample_matches(matched, count=SAMPLES, positive_share=POSITIVE_SHARE)
        matched = torch.where(sampled, matched, IGNORED)
        positive = matched >= 0
        true_deltas = self.box_coder.encode(
            anchors.expand(len(targets), -1, -1)[positive], true_boxes_of(matched, targets)
        )  # [P, 4]
        total = sampled.sum().clamp(min=1)
        truth = positive.to(logits.dtype)
        class_loss = F.binary_cross_entropy_with_logits(logits, truth, sampled.to(logits.dtype), reduction="sum")
        box_loss = F.smooth_l1_loss(deltas[positive], true_deltas, reduction="sum", beta=SMOOTH_L1_BETA)
        return {"rpn_class": class_loss / total, "rpn_box": box_loss / total}


def _survivors(boxes_xyxy: Tensor, scores: Tensor) -> Tensor:
    """Bool [N]: the boxes that suppression leaves."""
    kept = nms(boxes_xyxy, scores, NMS_IOU)
    return torch.zeros_like(scores).scatter(0, kept, 1.0) > 0
