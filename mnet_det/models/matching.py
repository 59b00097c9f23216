"""Which anchor answers for which true box, in all images of a batch at once.

Nothing here waits for a GPU but `true_boxes_of`, once: how many boxes and crowd regions an image has is known from
shapes, and images with fewer than others are filled up with boxes of no size, which overlap nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_area

from mnet_det.structures import Target

BACKGROUND = -1
IGNORED = -2
IGNORED_COVER = 0.5
"""An anchor with this share of its area inside a crowd region is neither object nor background."""
SMALLEST = torch.finfo(torch.float32).tiny


def match_anchors(
    anchors_xyxy: Tensor, targets: Sequence[Target], *, positive_iou: float = 0.5, negative_iou: float | None = None
) -> Tensor:
    """Give each anchor a true box of its image, BACKGROUND or IGNORED.

    First each true box gets an anchor of its own: greedy, best pair first. Plain forcing (each box takes its best
    anchor) lets two boxes share one, and loses one of them. Then every other anchor goes to the box it overlaps most,
    if by `positive_iou`. What is left is background, unless it lies in a crowd region or is centred in padding. Of
    equals the first is taken, be it box or anchor.

    Args:
        anchors_xyxy: [A, 4] network pixels, the same for all images, or [B, A, 4].
        targets: the truth of B images.
        positive_iou: least overlap of an anchor that answers for a box it does not own.
        negative_iou: anchors that overlap a box by this much, but by less than `positive_iou`, are IGNORED; where it
            is None, they are background.

    Returns:
        int64 [B, A]: an index into `boxes_xyxy` of the image's target, BACKGROUND or IGNORED.
    """
    anchors = anchors_xyxy if anchors_xyxy.ndim == 3 else anchors_xyxy[None]  # [B or 1, A, 4]
    matched = torch.where(_ignorable(anchors, targets), IGNORED, BACKGROUND)  # [B, A]
    true_boxes, _ = pad_boxes([target.boxes_xyxy for target in targets])  # [B, M, 4]
    if true_boxes.shape[1]:
        iou = _iou(true_boxes, anchors)  # [B, M, A]
        best_iou, best_box = iou.max(dim=1)
        if negative_iou is not None:
            matched = matched.masked_fill(best_iou >= negative_iou, IGNORED)
        matched = torch.where(best_iou >= positive_iou, best_box, matched)
        owner = _owners(iou)
        matched = torch.where(owner >= 0, owner, matched)
    return matched


def classes_of(matched: Tensor, targets: Sequence[Target]) -> Tensor:
    """Class column of each anchor, int64 [B, A]: label + 1 where it has a true box, 0 elsewhere."""
    columns = F.pad(torch.cat([target.labels for target in targets]) + 1, (0, 1))
    return columns[_rows_of(matched, targets)]


def true_boxes_of(matched: Tensor, targets: Sequence[Target]) -> Tensor:
    """The true boxes, float32 [P, 4], of the anchors that have one: `matched >= 0`, in row-major order."""
    return torch.cat([target.boxes_xyxy for target in targets])[_rows_of(matched, targets)[matched >= 0]]


def pad_boxes(boxes_xyxy: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """B times [n, 4] as one [B, N, 4], filled up with boxes of no size, and which are none of these, bool [B, N]."""
    padded = pad_sequence(list(boxes_xyxy), batch_first=True)
    counts = _on(padded.device, [len(boxes) for boxes in boxes_xyxy])
    return padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None]


def sample_matches(matched: Tensor, *, count: int, positive_share: float) -> Tensor:
    """Choose anchors of each image at random, the true boxes' first.

    Args:
        matched: int64 [B, A], as `match_anchors` gives it.
        count: how many to choose; fewer where there are fewer that are not IGNORED.
        positive_share: the largest part of `count` that have a true box.

    Returns:
        Bool [B, A].
    """
    most_positive = int(count * positive_share)
    positive = _draw(matched >= 0, most_positive, most=most_positive)
    return positive | _draw(matched == BACKGROUND, count - positive.sum(dim=1, keepdim=True), most=count)


def _draw(eligible: Tensor, count: Tensor | int, *, most: int) -> Tensor:
    """Bool [B, A]: `count` ([B, 1], `most` at most) of those that are eligible, or all where they are fewer."""
    lots = torch.rand(eligible.shape, device=eligible.device).masked_fill(~eligible, -1)
    best, drawn = lots.topk(min(most, lots.shape[1]), dim=1)
    places = torch.arange(best.shape[1], device=eligible.device)
    return torch.zeros_like(eligible).scatter(1, drawn, (best >= 0) & (places < count))


def _rows_of(matched: Tensor, targets: Sequence[Target]) -> Tensor:
    """Where each anchor's box stands among those of all images [B, A]; one beyond the last where it has none."""
    *starts, total = accumulate((len(target.labels) for target in targets), initial=0)
    return torch.where(matched >= 0, matched + _on(matched.device, starts)[:, None], total)


def _owners(iou: Tensor) -> Tensor:
    """The box that each anchor belongs to, int64 [B, A], or -1, from `iou` [B, M, A]; greedy, best pair first.

    It is the stable matching of Gale and Shapley 1962, in which all boxes act at once: each asks for its best anchor,
    and whoever asks drives every worse box off that anchor, for good. The t-th best of the greedy pairs stands in round
    t, and mostly long before. A box that overlaps no free anchor gets none.
    """
    images, boxes, anchors = iou.shape
    numbers = torch.arange(boxes, device=iou.device)
    later = numbers[:, None] > numbers  # [M, M]: of equals the first goes first
    free = F.pad(iou, (0, 1))  # the last column, of zeros, stands for no anchor
    for _ in range(boxes):
        best_iou, asked = free.max(dim=2)  # [B, M]
        at = asked[:, None].expand(-1, boxes, -1)  # [B, M, M]: for each box, the anchors that any box asks for
        there = free.gather(2, at)
        driven_off = (there < best_iou[:, None]) | (there == best_iou[:, None]) & later
        free.scatter_(2, torch.where(driven_off, at, anchors), 0.0)
        # That all stay where they are ends it. On a GPU, to look would be to wait.
        if iou.is_cpu and torch.equal(free.gather(2, asked[..., None])[..., 0], best_iou):
            break
    owner = torch.full((images, anchors + 1), -1, device=iou.device)
    owned = torch.where(best_iou > 0, asked, anchors)
    return owner.scatter_(1, owned, numbers.expand(images, -1))[:, :anchors]


def _iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """[B, N, O] of boxes [B, N, 4] and [B or 1, O, 4], to the bit torchvision's `box_iou`; 0 for two of no size."""
    shared = _intersection(boxes_xyxy, others_xyxy)
    union = (box_area(boxes_xyxy)[:, :, None] + box_area(others_xyxy)[:, None]).sub_(shared)
    return shared.div_(union.clamp_(min=SMALLEST))


def _intersection(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Area that boxes [B, N, 4] share with others [B or 1, O, 4], [B, N, O]."""
    left, top, right, bottom = boxes_xyxy[:, :, None].unbind(dim=-1)  # [B, N, 1]
    others_left, others_top, others_right, others_bottom = others_xyxy[:, None].movedim(-1, 0).contiguous()
    width = torch.minimum(right, others_right).sub_(torch.maximum(left, others_left)).clamp_(min=0)
    height = torch.minimum(bottom, others_bottom).sub_(torch.maximum(top, others_top)).clamp_(min=0)
    return width.mul_(height)


def _ignorable(anchors_xyxy: Tensor, targets: Sequence[Target]) -> Tensor:
    """Bool [B, A]: centred in padding, or covered by a crowd region."""
    valid_wh = _on(anchors_xyxy.device, [target.valid_hw[::-1] for target in targets])  # [B, 2]
    centres_xy = (anchors_xyxy[..., :2] + anchors_xyxy[..., 2:]) / 2
    ignorable = (centres_xy >= valid_wh[:, None]).any(dim=-1)
    crowds, _ = pad_boxes([target.ignored_xyxy for target in targets])  # [B, I, 4]
    if crowds.shape[1]:
        cover = _intersection(crowds, anchors_xyxy).amax(dim=1) / box_area(anchors_xyxy)
        ignorable |= cover >= IGNORED_COVER
    return ignorable


def _on(device: torch.device, rows: Sequence[int] | Sequence[tuple[int, ...]]) -> Tensor:
    """A small tensor that is made without waiting for the GPU."""
    on_cuda = device.type == "cuda"
    return torch.tensor(rows, pin_memory=on_cuda).to(device, non_blocking=on_cuda)  # see Batch.to
