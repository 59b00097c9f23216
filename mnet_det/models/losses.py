"""The losses of SSD, each a sum over anchors; the head divides by the number of matched ones."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_area, generalized_box_iou_loss

ClassLoss = Literal["softmax", "focal", "quality_focal"]
SIGMOID_LOSSES = ("focal", "quality_focal")
"""Those that train one sigmoid a class, so that weights of one are of use to the other."""

NEGATIVES_PER_POSITIVE = 3  # Liu et al. 2016, section 2.2
MIN_NEGATIVES = 3
"""An image without boxes still teaches what background is (TensorFlow's `min_negatives_per_image`)."""
FOCAL_ALPHA = 0.75  # TensorFlow's ssd_mobilenet_v1 with focal loss
FOCAL_GAMMA = 2.0  # Lin et al. 2017
QUALITY_BETA = 2.0  # Li et al. 2020


def softmax_multibox_loss(logits: Tensor, classes: Tensor, ignored: Tensor) -> Tensor:
    """Cross-entropy over all positives and each image's hardest negatives, 3 for each positive.

    Args:
        logits: [B, A, K + 1], background first.
        classes: int64 [B, A], 0 for background.
        ignored: bool [B, A], anchors that count for nothing.

    Returns:
        A scalar, the sum over the chosen anchors.
    """
    positive = (classes > 0) & ~ignored
    negative = (classes == 0) & ~ignored
    with torch.no_grad():  # most anchors are ranked only, and need no gradient
        loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)  # [B, A]
        hardest_first = loss.masked_fill(~negative, -torch.inf).argsort(dim=1, descending=True)
        wanted = (NEGATIVES_PER_POSITIVE * positive.sum(dim=1, keepdim=True)).clamp(min=MIN_NEGATIVES)  # [B, 1]
        among_first = torch.arange(classes.shape[1], device=classes.device) < wanted  # [B, A], by rank
        chosen = positive | (negative & torch.zeros_like(negative).scatter(1, hardest_first, among_first))
    return F.cross_entropy(logits[chosen], classes[chosen], reduction="sum")


def focal_loss(logits: Tensor, classes: Tensor, ignored: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017) over all anchors; background is the absence of every class.

    Its own column learns to stay low and is never read: it is there so that both losses have the same network.

    Args and returns: as `softmax_multibox_loss`.
    """
    image, anchor = ((classes > 0) & ~ignored).nonzero(as_tuple=True)  # [P] each
    true = logits[image, anchor, classes[image, anchor]]  # [P]
    present = _cost_if_absent(-true, power=FOCAL_GAMMA).sum()  # the sigmoid of -logit is 1 - p
    absent = _all_absent(logits, true, ignored, power=FOCAL_GAMMA)
    return FOCAL_ALPHA * present + (1 - FOCAL_ALPHA) * absent


def quality_focal_loss(logits: Tensor, classes: Tensor, qualities: Tensor, ignored: Tensor) -> Tensor:
    """Quality focal loss (Li et al. 2020, Generalized Focal Loss) over all anchors.

    The true class's score is to be the IoU of the box that comes with it, so that the best placed box wins in NMS;
    every other score is to be 0. The background's column is treated as in `focal_loss`.

    Args:
        logits: [B, A, K + 1], background first.
        classes: int64 [B, A], 0 for background.
        qualities: float32 [B, A], 0…1, what the score of the true class is to be; read only where there is one.
        ignored: bool [B, A], anchors that count for nothing.

    Returns:
        A scalar, the sum over all anchors.
    """
    image, anchor = ((classes > 0) & ~ignored).nonzero(as_tuple=True)  # [P] each
    true = logits[image, anchor, classes[image, anchor]]  # [P]
    present = quality_focal(true, qualities[image, anchor]).sum()
    return present + _all_absent(logits, true, ignored, power=QUALITY_BETA)


def quality_focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of each sigmoid with its truth in 0…1, times their distance to the power of `QUALITY_BETA`."""
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return loss * (truth - logits.sigmoid()).abs().pow(QUALITY_BETA)


def _all_absent(logits: Tensor, true: Tensor, ignored: Tensor, *, power: float) -> Tensor:
    """What all columns cost but the `true` ones [P].

    Those are so few that it is cheaper to take their part back than to spread them over a truth as large as the logits:
    torchvision's focal loss, to which ours is equal, takes twice the time.
    """
    every = _cost_if_absent(logits, power=power).sum(dim=-1) * ~ignored  # [B, A]
    return every.sum() - _cost_if_absent(true, power=power).sum()


def _cost_if_absent(logits: Tensor, *, power: float) -> Tensor:
    """p^power · -ln(1 - p) of each sigmoid p: what it costs where its class is not there."""
    return logits.sigmoid().pow(power) * F.softplus(logits)


def smooth_l1_loss(deltas: Tensor, true_deltas: Tensor) -> Tensor:
    """Sum of smooth L1 over the matched anchors' deltas [P, 4]."""
    return F.smooth_l1_loss(deltas, true_deltas, reduction="sum")


def giou_loss(boxes_xyxy: Tensor, true_boxes_xyxy: Tensor) -> Tensor:
    """Sum of 1 - GIoU (Rezatofighi et al. 2019) over the matched anchors' boxes [P, 4]."""
    loss: Tensor = generalized_box_iou_loss(boxes_xyxy, true_boxes_xyxy, reduction="sum")
    return loss


def paired_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """IoU [P] of each box [P, 4] with the one in its place; torchvision's is of each with every other."""
    inner_wh = torch.minimum(boxes_xyxy[:, 2:], others_xyxy[:, 2:]) - torch.maximum(
        boxes_xyxy[:, :2], others_xyxy[:, :2]
    )
    inner = inner_wh.clamp(min=0).prod(dim=1)
    return inner / (box_area(boxes_xyxy) + box_area(others_xyxy) - inner)
