"""The second stage (Girshick 2015, Fast R-CNN; Ren et al. 2015): what is in each proposed region, and where exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_area, clip_boxes_to_image, roi_align

from mnet_det.models.box_coder import BoxCoder
from mnet_det.models.matching import (
    IGNORED,
    classes_of,
    match_anchors,
    pad_boxes,
    sample_matches,
    true_boxes_of,
)
from mnet_det.models.rpn import MIN_SIDE_PX, SMOOTH_L1_BETA, Proposals
from mnet_det.structures import Candidates, Target

POINTS_PER_SIDE = 14
"""Points along each side of a region that RoIAlign reads: two a cell of a 7×7 region, as in torchvision, and one of a
14×14 region, as in TensorFlow's crop."""
POSITIVE_SHARE = 0.25  # Girshick 2015, section 2.3
POSITIVE_IOU = 0.5


def pool_regions(
    maps: Sequence[Tensor],
    boxes_xyxy: Tensor,
    image_index: Tensor,
    *,
    image_hw: tuple[int, int],
    side: int,
    strides: Sequence[int],
    canonical_px: float,
) -> Tensor:
    """RoIAlign (He et al. 2017): each box from the map that suits its size.

    Lin et al. 2017, FPN, equation 1: a box of `canonical_px` belongs on the map of stride 16, one twice as large on
    that of stride 32. One RoIAlign takes from all maps, as if each were another image: so shapes are static.

    Args:
        maps: [B, C, h, w] each, in the order of their strides: the largest first.
        boxes_xyxy: float32 [N, 4] network pixels, inside the input.
        image_index: int64 [N], the image that each box lies in.
        image_hw: the input's size, which the cells of a map share evenly, as anchors do.
        side: cells a side of a region.
        strides: one a map, rising.
        canonical_px: see above.

    Returns:
        [N, C, side, side].
    """
    height, width = maps[0].shape[2:]
    images = len(maps[0])
    # Between a map's last cell and its end, RoIAlign repeats that cell; so does the padding of the smaller maps.
    same_size = [
        F.pad(
            F.pad(features, (0, min(1, width - w), 0, min(1, height - h)), mode="replicate"),
            (0, max(0, width - w - 1), 0, max(0, height - h - 1)),
        )
        for features in maps
        for h, w in [features.shape[2:]]
    ]
    cells_per_pixel = [
        [features.shape[3] / image_hw[1], features.shape[2] / image_hw[0]] * 2 for features in maps
    ]  # [L, 4]
    level = _levels(boxes_xyxy, strides=strides, canonical_px=canonical_px)  # [N]
    cells_xyxy = boxes_xyxy * boxes_xyxy.new_tensor(cells_per_pixel)[level]
    which = (level * images + image_index).to(cells_xyxy.dtype)
    # Without `aligned`, half a cell's shift: a box starts where its first cell does, as in torchvision's detectors.
    pooled: Tensor = roi_align(
        torch.cat(same_size),
        torch.cat([which[:, None], cells_xyxy], dim=1),
        side,
        sampling_ratio=POINTS_PER_SIDE // side,
    )
    return pooled


def _levels(boxes_xyxy: Tensor, *, strides: Sequence[int], canonical_px: float) -> Tensor:
    """Index of the map of each box [N, 4], int64 [N]: the coarsest one that it is large enough for."""
    sides = box_area(boxes_xyxy).sqrt()
    level = torch.zeros_like(sides, dtype=torch.int64)
    for stride in strides[1:]:
        level = level + (sides >= canonical_px * stride / 16 * (1 - 1e-6)).long()  # rounding, as in torchvision
    return level


class Regions(NamedTuple):
    """The regions of a batch that the second stage learns from.

    Attributes:
        boxes_xyxy: float32 [S, 4].
        image_index: int64 [S], whose they are.
        classes: int64 [S], 0 for background.
        true_boxes_xyxy: float32 [P, 4], of those that are not background, in their order.
    """

    boxes_xyxy: Tensor
    image_index: Tensor
    classes: Tensor
    true_boxes_xyxy: Tensor


@torch.no_grad()
def sample_regions(proposals: Proposals, targets: Sequence[Target], *, count: int) -> Regions:
    """Up to `count` regions of each image at random, at most a quarter of them on objects.

    The true boxes stand among the proposals, so that the second stage sees objects before the first has learned to
    find any. Proposals in padding and in crowd regions are left out.
    """
    true_boxes_xyxy, present = pad_boxes([target.boxes_xyxy for target in targets])  # [B, M, 4], [B, M]
    usable = torch.cat([present, proposals.valid], dim=1)  # [B, M + N]
    regions = torch.cat([true_boxes_xyxy, proposals.boxes_xyxy], dim=1)
    regions = regions.masked_fill(~usable[..., None], 0)  # of no size, so that they match none
    matched = match_anchors(regions, targets, positive_iou=POSITIVE_IOU).masked_fill(~usable, IGNORED)
    sampled = sample_matches(matched, count=count, positive_share=POSITIVE_SHARE)
    image_index, region = sampled.nonzero(as_tuple=True)
    return Regions(
        regions[image_index, region],
        image_index,
        classes_of(matched, targets)[image_index, region],
        true_boxes_of(torch.where(sampled, matched, IGNORED), targets),
    )


class RoIHead(nn.Module):
    """Class logits, background first, and box deltas, shared by the classes or four for each."""

    def __init__(self, channels: int, *, num_classes: int, shared_boxes: bool = False) -> None:
        super().__init__()
        self.class_predictor = nn.Linear(channels, num_classes + 1)
        self.box_predictor = nn.Linear(channels, 4 if shared_boxes else 4 * num_classes)
        self.box_coder = BoxCoder()
        for layer, std in ((self.class_predictor, 0.01), (self.box_predictor, 0.001)):  # Girshick 2015, section 2.3
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [N, channels] to logits [N, K + 1] and deltas [N, R, 4], in float32 whatever autocast did."""
        return self.class_predictor(features).float(), self.box_predictor(features).float().unflatten(1, (-1, 4))

    def candidates(
        self, logits: Tensor, deltas: Tensor, proposals: Proposals, *, image_hw: tuple[int, int]
    ) -> Candidates:
        """Boxes inside the input, and probabilities.

        Slots without a proposal score 0, and so do boxes of which nothing lies inside the input: clipped, they are
        lines at its edge.
        """
        slots = tuple(proposals.valid.shape)  # [B, N]
        boxes_xyxy = self.box_coder.decode(proposals.boxes_xyxy[:, :, None], deltas.unflatten(0, slots))  # [B, N, R, 4]
        scores = logits.softmax(dim=-1)[:, 1:].unflatten(0, slots)  # [B, N, K]
        boxes_xyxy = clip_boxes_to_image(boxes_xyxy, image_hw)
        visible = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2] >= MIN_SIDE_PX).all(dim=-1)  # [B, N, R]
        return Candidates(boxes_xyxy, scores * (visible & proposals.valid[..., None]))

    def losses(self, logits: Tensor, deltas: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Cross-entropy and smooth L1 over sampled regions, divided by their number."""
        positive = regions.classes.nonzero()[:, 0]
        column = regions.classes[positive] - 1 if deltas.shape[1] > 1 else torch.zeros_like(positive)
        true_deltas = self.box_coder.encode(regions.boxes_xyxy[positive], regions.true_boxes_xyxy)
        box = F.smooth_l1_loss(deltas[positive, column], true_deltas, reduction="sum", beta=SMOOTH_L1_BETA)
        total = max(1, len(regions.classes))
        return {"class": F.cross_entropy(logits, regions.classes, reduction="sum") / total, "box": box / total}
