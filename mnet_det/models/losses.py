"""The losses of SSD, each a sum over anchors; the head divides by the number of matched ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

NEGATIVES_PER_POSITIVE = 3  # Liu et al. 2016, section 2.2
MIN_NEGATIVES = 3
"""An image without boxes still teaches what background is (TensorFlow's `min_negatives_per_image`)."""
FOCAL_ALPHA = 0.75  # TensorFlow's ssd_mobilenet_v1 with focal loss
FOCAL_GAMMA = 2.0  # Lin et al. 2017


def softmax_multibox_loss(logits: Tensor, classes: Tensor, ignored: Tensor) -> Tensor:
    """Cross-entropy over all positives and each image's hardest negatives, 3 for each positive.

    Args:
        logits: [B, A, K + 1], background first.
        classes: int64 [B, A], 0 for background.
        ignored: bool [B, A], anchors that count for nothing.

    Returns:
        A scalar, the sum over the chosen anchors.
    """
    loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)  # [B, A]
    positive = (classes > 0) & ~ignored
    negative = (classes == 0) & ~ignored
    with torch.no_grad():
        hardness = loss.masked_fill(~negative, -torch.inf)
        rank = hardness.argsort(dim=1, descending=True).argsort(dim=1)
        wanted = (NEGATIVES_PER_POSITIVE * positive.sum(dim=1, keepdim=True)).clamp(min=MIN_NEGATIVES)
        hard = negative & (rank < wanted)
    return (loss * (positive | hard)).sum()


def focal_loss(logits: Tensor, classes: Tensor, ignored: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017) over all anchors; background is the absence of every class.

    Its own column learns to stay low and is never read: it is there so that both losses have the same network.

    Args and returns: as `softmax_multibox_loss`.
    """
    truth = F.one_hot(classes, logits.shape[-1]).to(logits.dtype)
    truth[..., 0] = 0  # TensorFlow's `encode_background_as_zeros`
    loss: Tensor = sigmoid_focal_loss(logits, truth, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="none")
    return (loss.sum(dim=-1) * ~ignored).sum()


def smooth_l1_loss(deltas: Tensor, true_deltas: Tensor) -> Tensor:
    """Sum of smooth L1 over the matched anchors' deltas [P, 4]."""
    return F.smooth_l1_loss(deltas, true_deltas, reduction="sum")


def giou_loss(boxes_xyxy: Tensor, true_boxes_xyxy: Tensor) -> Tensor:
    """Sum of 1 - GIoU (Rezatofighi et al. 2019) over the matched anchors' boxes [P, 4]."""
    loss: Tensor = generalized_box_iou_loss(boxes_xyxy, true_boxes_xyxy, reduction="sum")
    return loss
