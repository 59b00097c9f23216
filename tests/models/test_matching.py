"""Which anchor answers for which box: by hand, and against a brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from mnet_det.models.matching import BACKGROUND, IGNORED, classes_of, match_anchors, sample_matches
from mnet_det.structures import Target

Box = tuple[float, float, float, float]


def boxes(*rows: Box) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def target(*true: Box, crowd: Sequence[Box] = (), valid_hw: tuple[int, int] = (1000, 1000)) -> Target:
    return Target(boxes(*true), torch.zeros(len(true), dtype=torch.int64), boxes(*crowd), valid_hw)


def random_boxes(rng: np.random.Generator, count: int) -> Tensor:
    top_left = rng.uniform(0, 60, (count, 2))
    return torch.tensor(np.hstack([top_left, top_left + rng.uniform(5, 40, (count, 2))]), dtype=torch.float32)


def brute_force(anchors: Tensor, true: Tensor) -> list[int]:
    """Every pair from best to worst; then the threshold, in plain Python."""
    iou = box_iou(true, anchors).tolist()
    matched = [BACKGROUND] * len(anchors)
    for anchor in range(len(anchors)):
        overlaps = [row[anchor] for row in iou]
        if overlaps and max(overlaps) >= 0.5:
            matched[anchor] = overlaps.index(max(overlaps))
    pairs = sorted(((iou[b][a], b, a) for b in range(len(true)) for a in range(len(anchors))), reverse=True)
    owners: dict[int, int] = {}
    for overlap, box, anchor in pairs:
        if overlap > 0 and box not in owners and anchor not in owners.values():
            owners[box] = anchor
    for box, anchor in owners.items():
        matched[anchor] = box
    return matched


def test_two_boxes_with_the_same_best_anchor_both_keep_one() -> None:
    """Plain forcing, where each box takes its best anchor, wrote both into one slot and lost the first."""
    anchors = boxes((0, 0, 10, 10), (0, 8, 10, 28))
    # Both boxes overlap the first anchor most: 90 / 100 = 0.9 and 100 / 120 = 0.83.
    matched = match_anchors(anchors, target((0, 0, 10, 9), (0, 0, 10, 12)))
    # The better pair goes first; the second box is left the other anchor, at 40 / (120 + 200 - 40) = 0.14.
    assert matched.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_matching_equals_a_brute_force_on_random_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    anchors, true = random_boxes(rng, 40), random_boxes(rng, int(rng.integers(1, 9)))
    placed = Target(true, torch.zeros(len(true), dtype=torch.int64), boxes(), (1000, 1000))
    matched = match_anchors(anchors, placed)
    assert matched.tolist() == brute_force(anchors, true)
    assert set(range(len(true))) <= set(matched.tolist())  # nobody is lost


def test_anchors_above_the_threshold_go_to_the_box_they_overlap_most() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 6), (0, 0, 10, 5), (0, 0, 10, 4.9), (50, 50, 60, 60))
    # IoU with the box: 1, 0.6, 0.5 (enough), 0.49 and 0.
    assert match_anchors(anchors, target((0, 0, 10, 10))).tolist() == [0, 0, 0, BACKGROUND, BACKGROUND]


def test_threshold_can_be_set() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 6))
    assert match_anchors(anchors, target((0, 0, 10, 10)), positive_iou=0.7).tolist() == [0, BACKGROUND]


def test_a_small_box_gets_its_best_anchor_however_poor() -> None:
    anchors = boxes((0, 0, 100, 100), (0, 0, 50, 50))
    assert match_anchors(anchors, target((0, 0, 2, 2))).tolist() == [BACKGROUND, 0]


def test_anchors_in_a_crowd_are_ignored_and_not_background() -> None:
    anchors = boxes((0, 0, 10, 10), (5, 0, 15, 10), (6, 0, 16, 10), (40, 40, 50, 50))
    # Shares of the anchors inside the crowd: 1, 0.5 (enough), 0.4 and 0.
    matched = match_anchors(anchors, target(crowd=[(0, 0, 10, 100)]))
    assert matched.tolist() == [IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_an_object_inside_a_crowd_is_still_learned() -> None:
    anchors = boxes((0, 0, 10, 10), (20, 0, 30, 10))
    matched = match_anchors(anchors, target((0, 0, 10, 10), crowd=[(0, 0, 100, 100)]))
    assert matched.tolist() == [0, IGNORED]


def test_anchors_centred_in_padding_are_ignored() -> None:
    anchors = boxes((0, 40, 20, 58), (0, 40, 20, 60), (70, 0, 90, 20), (0, 0, 20, 20))
    # Centres (10, 49), (10, 50), (80, 10) and (10, 10); what is not padding ends at x 80 and y 50.
    matched = match_anchors(anchors, target(valid_hw=(50, 80)))
    assert matched.tolist() == [BACKGROUND, IGNORED, IGNORED, BACKGROUND]


def test_an_image_without_boxes_is_all_background() -> None:
    assert match_anchors(boxes((0, 0, 10, 10), (5, 5, 9, 9)), target()).tolist() == [BACKGROUND, BACKGROUND]


def test_more_boxes_than_overlapping_anchors_leave_the_worst_pairs_without() -> None:
    anchors = boxes((0, 0, 10, 10), (50, 50, 60, 60))
    # All three overlap only the first anchor; the whole one overlaps it most.
    matched = match_anchors(anchors, target((0, 0, 10, 7), (0, 0, 10, 10), (0, 0, 10, 8)))
    assert matched.tolist() == [1, BACKGROUND]


def test_more_boxes_than_anchors_fill_every_anchor() -> None:
    anchors = boxes((0, 0, 10, 10))
    assert match_anchors(anchors, target((0, 0, 10, 8), (0, 0, 10, 9))).tolist() == [1]


def test_matching_changes_neither_anchors_nor_target() -> None:
    anchors, truth = boxes((0, 0, 10, 10)), target((0, 0, 10, 8), crowd=[(0, 0, 5, 5)])
    before = anchors.clone(), truth.boxes_xyxy.clone(), truth.ignored_xyxy.clone()
    match_anchors(anchors, truth)
    assert all(map(torch.equal, before, (anchors, truth.boxes_xyxy, truth.ignored_xyxy)))


def test_anchors_between_two_thresholds_are_ignored() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 7), (0, 0, 10, 6.9), (0, 0, 10, 3), (0, 0, 10, 2.9), (50, 50, 60, 60))
    # IoU with the box: 1, 0.7 (enough), 0.69, 0.3 (too much for background), 0.29 and 0.
    matched = match_anchors(anchors, target((0, 0, 10, 10)), positive_iou=0.7, negative_iou=0.3)
    assert matched.tolist() == [0, 0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_a_box_s_own_anchor_may_lie_between_two_thresholds_or_below_both() -> None:
    anchors = boxes((0, 0, 10, 10), (50, 50, 60, 60), (50, 50, 60, 64))
    # The first box overlaps its best anchor by 0.5, the second by 20 / 150 = 0.13.
    matched = match_anchors(anchors, target((0, 0, 10, 5), (50, 62, 60, 65)), positive_iou=0.7, negative_iou=0.3)
    assert matched.tolist() == [0, BACKGROUND, 1]


@pytest.mark.parametrize("seed", range(10))
def test_two_thresholds_are_torchvisions_but_for_the_anchors_that_boxes_own(seed: int) -> None:
    rng = np.random.default_rng(seed)
    anchors, true = random_boxes(rng, 300), random_boxes(rng, 6)
    expected = Matcher(0.5, 0.3)(box_iou(true, anchors))
    placed = Target(true, torch.zeros(len(true), dtype=torch.int64), boxes(), (1000, 1000))
    matched = match_anchors(anchors, placed, positive_iou=0.5, negative_iou=0.3)
    assert (BACKGROUND, IGNORED) == (Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS)
    assert set(expected.tolist()) >= {BACKGROUND, IGNORED}
    assert int((matched != expected).sum()) <= len(true)
    assert (matched[matched != expected] >= 0).all()


def test_crowd_and_padding_stay_ignored_below_both_thresholds() -> None:
    anchors = boxes((0, 0, 10, 10), (20, 0, 30, 10), (60, 0, 70, 10), (40, 0, 50, 10))
    truth = target((0, 0, 10, 10), crowd=[(20, 0, 30, 10)], valid_hw=(50, 60))
    matched = match_anchors(anchors, truth, positive_iou=0.7, negative_iou=0.3)
    assert matched.tolist() == [0, IGNORED, IGNORED, BACKGROUND]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        pytest.param(50, 50, (5, 15), id="enough of both"),
        pytest.param(2, 50, (2, 18), id="background fills up"),
        pytest.param(50, 3, (5, 3), id="positives do not"),
        pytest.param(0, 50, (0, 20), id="no boxes"),
        pytest.param(0, 0, (0, 0), id="nothing"),
    ],
)
def test_a_sample_is_a_quarter_positive_at_most(positives: int, negatives: int, expected: tuple[int, int]) -> None:
    matched = torch.tensor([3] * positives + [BACKGROUND] * negatives + [IGNORED] * 30)
    matched = matched[torch.randperm(len(matched), generator=torch.Generator().manual_seed(0))]
    chosen = sample_matches(matched, count=20, positive_share=0.25)
    assert chosen.dtype == torch.bool
    assert (int((matched[chosen] == 3).sum()), int((matched[chosen] == BACKGROUND).sum())) == expected
    assert not (chosen & (matched == IGNORED)).any()


def test_every_anchor_is_drawn_as_often_as_any_other() -> None:
    torch.manual_seed(0)
    matched = torch.tensor([0, 1] * 10 + [BACKGROUND] * 40)
    draws = torch.stack([sample_matches(matched, count=20, positive_share=0.5) for _ in range(400)]).sum(dim=0)
    # Of 20 positives 10 are drawn and of 40 negatives 10, each time: means 200 and 100, five standard deviations 50.
    assert draws[:20].sub(200).abs().max() < 50
    assert draws[20:].sub(100).abs().max() < 50


def test_a_sample_follows_the_seed() -> None:
    matched = torch.full((100,), BACKGROUND)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample_matches(matched, count=20, positive_share=0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_class_is_the_label_after_background() -> None:
    matched = torch.tensor([1, BACKGROUND, 0, IGNORED, 1])
    assert classes_of(matched, torch.tensor([7, 0])).tolist() == [1, 0, 8, 0, 1]
    assert classes_of(torch.tensor([BACKGROUND, IGNORED]), torch.tensor([], dtype=torch.int64)).tolist() == [0, 0]


def test_a_true_box_that_no_anchor_overlaps_is_left_without() -> None:
    """An image with no other box ended training in a traceback of torch's."""
    anchors = torch.tensor([[0.0, 0, 8, 8], [16, 0, 24, 8]])
    target = Target(torch.tensor([[10.0, 10, 13, 13]]), torch.tensor([0]), torch.zeros(0, 4), (32, 32))
    assert match_anchors(anchors, target).tolist() == [BACKGROUND, BACKGROUND]
