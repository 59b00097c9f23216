"""Which anchor answers for which true box."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from mnet_det.structures import Target

BACKGROUND = -1
IGNORED = -2
IGNORED_COVER = 0.5
"""An anchor with this share of its area inside a crowd region is neither object nor background."""


def match_anchors(
    anchors_xyxy: Tensor, target: Target, *, positive_iou: float = 0.5, negative_iou: float | None = None
) -> Tensor:
    """Give each anchor a true box, BACKGROUND or IGNORED.

    First each true box gets an anchor of its own: greedy, best pair first. Plain forcing (each box takes its best
    anchor) lets two boxes share one, and loses one of them. Then every other anchor goes to the box it overlaps most,
    if by `positive_iou`. What is left is background, unless it lies in a crowd region or is centred in padding.

    Args:
        anchors_xyxy: [A, 4] network pixels.
        target: the truth of one image.
        positive_iou: least overlap of an anchor that answers for a box it does not own.
        negative_iou: anchors that overlap a box by this much, but by less than `positive_iou`, are IGNORED; where it
            is None, they are background.

    Returns:
        int64 [A]: an index into `target.boxes_xyxy`, BACKGROUND or IGNORED.
    """
    matched = torch.full((len(anchors_xyxy),), BACKGROUND, dtype=torch.int64, device=anchors_xyxy.device)
    matched[_ignorable(anchors_xyxy, target)] = IGNORED
    if len(target.boxes_xyxy):
        iou = box_iou(target.boxes_xyxy, anchors_xyxy)  # [M, A]
        best_iou, best_box = iou.max(dim=0)
        if negative_iou is not None:
            matched[best_iou >= negative_iou] = IGNORED
        matched = torch.where(best_iou >= positive_iou, best_box, matched)
        boxes, anchors = _own_anchors(iou)
        matched[anchors] = torch.tensor(boxes, dtype=torch.int64, device=matched.device)  # of none, float32 else
    return matched


def sample_matches(matched: Tensor, *, count: int, positive_share: float) -> Tensor:
    """Choose anchors at random, the true boxes' first.

    Args:
        matched: int64 [A], as `match_anchors` gives it.
        count: how many to choose; fewer where there are fewer that are not IGNORED.
        positive_share: the largest part of `count` that have a true box.

    Returns:
        Bool [A].
    """
    positive = _draw(matched >= 0, int(count * positive_share))
    return positive | _draw(matched == BACKGROUND, count - int(positive.sum()))


def _draw(eligible: Tensor, count: int) -> Tensor:
    """Bool [A]: `count` of those that are eligible, or all where they are fewer."""
    indices = eligible.nonzero()[:, 0]
    drawn = indices[torch.randperm(len(indices), device=indices.device)[:count]]
    return torch.zeros_like(eligible).index_fill(0, drawn, True)


def classes_of(matched: Tensor, labels: Tensor) -> Tensor:
    """Class column of each anchor [A]: label + 1 where it has a true box, 0 elsewhere."""
    columns = torch.cat([labels + 1, labels.new_zeros(1)])  # the last entry answers for BACKGROUND and IGNORED
    return columns[matched.clamp(min=-1)]


def _own_anchors(iou: Tensor) -> tuple[list[int], list[int]]:
    """Boxes and the anchor that each gets for itself, from `iou` [M, A]; a box that overlaps no free anchor gets none.

    At most M - 1 anchors are gone when a box's turn comes, so its own is among its M best: the search needs M × M
    pairs, not M × A.
    """
    best_iou, best_anchor = iou.topk(min(iou.shape), dim=1)  # [M, M]
    pairs_iou, pairs_anchor = best_iou.flatten(), best_anchor.flatten().tolist()
    best_first = pairs_iou.argsort(descending=True, stable=True)[: int((pairs_iou > 0).sum())]
    taken: dict[int, int] = {}  # anchor: box
    served: set[int] = set()
    for pair in best_first.tolist():
        box, anchor = pair // best_iou.shape[1], pairs_anchor[pair]
        if box not in served and anchor not in taken:
            taken[anchor] = box
            served.add(box)
            if len(served) == len(iou):
                break
    return list(taken.values()), list(taken)


def _ignorable(anchors_xyxy: Tensor, target: Target) -> Tensor:
    """Bool [A]: centred in padding, or covered by a crowd region."""
    valid_h, valid_w = target.valid_hw
    centres_xy = (anchors_xyxy[:, :2] + anchors_xyxy[:, 2:]) / 2
    ignorable = (centres_xy[:, 0] >= valid_w) | (centres_xy[:, 1] >= valid_h)
    if len(target.ignored_xyxy):
        top_left = torch.maximum(anchors_xyxy[:, None, :2], target.ignored_xyxy[None, :, :2])  # [A, I, 2]
        bottom_right = torch.minimum(anchors_xyxy[:, None, 2:], target.ignored_xyxy[None, :, 2:])
        covered = (bottom_right - top_left).clamp(min=0).prod(dim=-1) / box_area(anchors_xyxy)[:, None]  # [A, I]
        ignorable |= (covered >= IGNORED_COVER).any(dim=1)
    return ignorable
