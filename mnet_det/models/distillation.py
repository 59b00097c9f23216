"""Learning from a larger detector beside the truth: what a teacher adds to an SSD's losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from mnet_det.models.losses import SIGMOID_LOSSES, quality_focal
from mnet_det.models.ssd import SSD
from mnet_det.structures import Target

MIN_FOREGROUND = 0.1
"""Where the teacher sees less, its boxes are not taught. Each weighs little, but they are so many: of the published
SSD's foreground, half is spread over anchors with less than this."""


def distillation_losses(
    student: SSD,
    teacher: SSD,
    images: Tensor,
    targets: Sequence[Target],
    *,
    normalizer: Tensor | None = None,
    class_weight: float = 1.0,
    box_weight: float = 1.0,
) -> dict[str, Tensor]:
    """The student's own losses, and how far it is from its teacher.

    The teacher gets no gradient. It teaches every anchor, those in crowds too: of them it knows more than the truth.

    Args:
        student: the one that learns.
        teacher: in eval mode, with the same classes, anchors and kind of class loss.
        images: uint8 [B, 3, H, W].
        targets: one per image.
        normalizer: as in `SSD.losses`; all terms are divided by it.
        class_weight: of `distill_class`.
        box_weight: of `distill_box`.

    Returns:
        `class` and `box` of `SSD.losses`, `distill_class` and `distill_box`; float32 scalars.
    """
    with torch.no_grad():
        taught = teacher.predict(images)
        foreground = _foreground(taught.logits, teacher.class_loss)  # [B, A]
        if normalizer is None:
            normalizer = student.normalizer(targets, image_hw=(images.shape[2], images.shape[3])).clamp(min=1)
    found = student.predict(images)
    class_loss = sigmoid_distillation if student.class_loss in SIGMOID_LOSSES else softmax_distillation
    image, anchor = (foreground >= MIN_FOREGROUND).nonzero(as_tuple=True)  # [P] each
    boxes_xyxy, taught_xyxy = (
        student.box_coder.decode(found.anchors[anchor], raw.deltas[image, anchor]) for raw in (found, taught)
    )
    box_loss = box_distillation(boxes_xyxy, taught_xyxy, foreground[image, anchor])
    return student.losses_of(found, targets, normalizer=normalizer) | {
        "distill_class": class_weight * class_loss(found.logits, taught.logits) / normalizer,
        "distill_box": box_weight * box_loss / normalizer,
    }


def softmax_distillation(logits: Tensor, taught_logits: Tensor) -> Tensor:
    """Sum of the divergences from the teacher's softmax to the student's, each weighted by the teacher's foreground.

    Soft labels for detection are Chen et al.'s (2017, Learning efficient object detection models with knowledge
    distillation, section 3.2). They weigh the background's term more than those of the classes, in regions that were
    sampled; we take every anchor, of which nearly all are background, and weigh each by the teacher's probability that
    it is not.

    Args:
        logits: the student's [B, A, K + 1], background first.
        taught_logits: the teacher's, without gradient.
    """
    taught = taught_logits.log_softmax(dim=-1)
    divergence = F.kl_div(logits.log_softmax(dim=-1), taught, reduction="none", log_target=True).sum(dim=-1)  # [B, A]
    return (divergence * _foreground(taught_logits, "softmax")).sum()


def sigmoid_distillation(logits: Tensor, taught_logits: Tensor) -> Tensor:
    """Sum of the cross-entropies with the teacher's scores, each weighted by the squared distance from them.

    Quality focal loss (Li et al. 2020) with the teacher's score as the quality of every class: where both agree, as on
    nearly all background, its gradient is 0. The background's column, which nobody reads, is left out.

    Args and returns: as `softmax_distillation`.
    """
    logits, taught = logits[..., 1:], taught_logits[..., 1:].sigmoid()
    return quality_focal(logits, taught).sum()


def box_distillation(boxes_xyxy: Tensor, taught_xyxy: Tensor, foreground: Tensor) -> Tensor:
    """Sum of 1 - GIoU from the teacher's boxes, each weighted by what foreground it sees there.

    The weights are those of Mehta and Ozturk (2018, Object detection at 200 frames per second): a one-stage teacher's
    boxes of nothing would teach noise. That boxes are worth teaching beyond the anchors that the truth matched is from
    Zheng et al. (2022, Localization distillation for dense object detection), who distil distributions of the edges;
    SSD has none, and its boxes are compared as in its box loss.

    Args:
        boxes_xyxy: the student's [P, 4].
        taught_xyxy: the teacher's [P, 4], without gradient.
        foreground: 0…1 [P].
    """
    loss: Tensor = generalized_box_iou_loss(boxes_xyxy, taught_xyxy)
    return (loss * foreground).sum()


def _foreground(logits: Tensor, class_loss: str) -> Tensor:
    """Probability [B, A] that an anchor holds an object; of sigmoids, the largest."""
    if class_loss in SIGMOID_LOSSES:
        return logits[..., 1:].amax(dim=-1).sigmoid()
    return 1 - logits.softmax(dim=-1)[..., 0]
