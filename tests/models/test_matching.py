"""Which anchor answers for which box: by hand, and against a brute force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from mnet_det.models.matching import (
    BACKGROUND,
    IGNORED,
    classes_of,
    match_anchors,
    sample_matches,
    true_boxes_of,
)
from mnet_det.structures import Batch, Target

Box = tuple[float, float, float, float]


def boxes(*rows: Box) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def target(*true: Box, crowd: Sequence[Box] = (), valid_hw: tuple[int, int] = (1000, 1000)) -> Target:
    return Target(boxes(*true), torch.zeros(len(true), dtype=torch.int64), boxes(*crowd), valid_hw)


def random_boxes(rng: np.random.Generator, count: int) -> Tensor:
    top_left = rng.uniform(0, 60, (count, 2))
    return torch.tensor(np.hstack([top_left, top_left + rng.uniform(5, 40, (count, 2))]), dtype=torch.float32)


def match(anchors: Tensor, truth: Target, **thresholds: float) -> list[int]:
    """One image's matches."""
    return match_anchors(anchors, [truth], **thresholds)[0].tolist()


def cover(region: list[float], anchor: list[float]) -> float:
    width = min(region[2], anchor[2]) - max(region[0], anchor[0])
    height = min(region[3], anchor[3]) - max(region[1], anchor[1])
    return max(width, 0) * max(height, 0) / ((anchor[2] - anchor[0]) * (anchor[3] - anchor[1]))


def brute_force(
    anchors: Tensor, truth: Target, *, positive_iou: float = 0.5, negative_iou: float | None = None
) -> list[int]:
    """One image in plain Python: padding and crowds, thresholds, then every pair from best to worst."""
    iou = box_iou(truth.boxes_xyxy, anchors).tolist()
    matched = []
    for index, anchor in enumerate(anchors.tolist()):
        centre_x, centre_y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
        padding = centre_y >= truth.valid_hw[0] or centre_x >= truth.valid_hw[1]
        crowd = any(cover(region, anchor) >= 0.5 for region in truth.ignored_xyxy.tolist())
        overlaps = [row[index] for row in iou]
        best = max(overlaps, default=0.0)
        between = bool(overlaps) and negative_iou is not None and best >= negative_iou
        ours = overlaps.index(best) if overlaps and best >= positive_iou else BACKGROUND
        matched.append(IGNORED if ours == BACKGROUND and (padding or crowd or between) else ours)
    pairs = [(-overlap, box, anchor) for box, row in enumerate(iou) for anchor, overlap in enumerate(row)]
    owners: dict[int, int] = {}
    for overlap, box, anchor in sorted(pairs):
        if overlap < 0 and box not in owners and anchor not in owners.values():
            owners[box] = anchor
    for box, anchor in owners.items():
        matched[anchor] = box
    return matched


def random_target(rng: np.random.Generator, count: int, *, step: float) -> Target:
    """Sides at multiples of `step`, if it is not 0: then many overlaps are equal."""

    def placed(boxes_xyxy: Tensor) -> Tensor:
        return boxes_xyxy.div(step).round().mul(step) if step else boxes_xyxy

    labels = torch.tensor(rng.integers(0, 80, count))
    crowd = random_boxes(rng, int(rng.integers(0, 3)))
    return Target(placed(random_boxes(rng, count)), labels, placed(crowd), tuple(rng.integers(40, 100, 2).tolist()))


def test_two_boxes_with_the_same_best_anchor_both_keep_one() -> None:
    """Plain forcing, where each box takes its best anchor, wrote both into one slot and lost the first."""
    anchors = boxes((0, 0, 10, 10), (0, 8, 10, 28))
    # Both boxes overlap the first anchor most: 90 / 100 = 0.9 and 100 / 120 = 0.83.
    matched = match(anchors, target((0, 0, 10, 9), (0, 0, 10, 12)))
    # The better pair goes first; the second box is left the other anchor, at 40 / (120 + 200 - 40) = 0.14.
    assert matched == [0, 1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("thresholds", [{}, {"positive_iou": 0.7, "negative_iou": 0.3}], ids=["one", "two thresholds"])
@pytest.mark.parametrize("step", [0.0, 4.0], ids=["any", "ties"])
@pytest.mark.parametrize("shared", [True, False], ids=["anchors of all", "anchors of each"])
def test_a_batch_s_matches_equal_a_brute_force(
    seed: int, thresholds: dict[str, float], step: float, shared: bool
) -> None:
    rng = np.random.default_rng(seed)
    truths = [random_target(rng, count, step=step) for count in (3, 0, 9, 1, 40)]  # the last has more than anchors
    anchors = torch.stack([random_boxes(rng, 30) for _ in truths])
    anchors = anchors.div(step).round().mul(step) if step else anchors
    anchors = anchors[0] if shared else anchors
    found = match_anchors(anchors, truths, **thresholds)
    assert found.dtype == torch.int64
    for image, truth in enumerate(truths):
        expected = brute_force(anchors if shared else anchors[image], truth, **thresholds)
        assert found[image].tolist() == expected
    if step == 0:
        assert set(range(9)) <= set(found[2].tolist())  # nobody is lost


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_equals_its_images_whatever_the_others_are(seed: int) -> None:
    """Else the gradient of a batch would not be the sum of its parts'."""
    rng = np.random.default_rng(seed)
    truths = [random_target(rng, count, step=4.0) for count in (2, 0, 7, 30)]
    anchors = random_boxes(rng, 50).div(4).round().mul(4)
    whole = match_anchors(anchors, truths)
    parts = torch.cat([match_anchors(anchors, truths[:1]), match_anchors(anchors, truths[1:3]), whole[3:]])
    assert torch.equal(whole, parts)


def test_of_equal_pairs_the_first_box_and_its_first_anchor_are_taken() -> None:
    anchors = boxes((20, 0, 30, 10), (0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10))
    # Both boxes overlap each of the last three anchors by 4 / 10; the first box goes first.
    assert match(anchors, target((0, 0, 10, 4), (0, 6, 10, 10))) == [BACKGROUND, 0, 1, BACKGROUND]


def test_a_box_that_is_driven_off_drives_others_off_in_turn() -> None:
    """As many rounds as there are boxes: each learns from the one before that it must go on."""
    anchors = boxes(*((0, 10 * t, 10, 10 * t + 10) for t in range(6)))
    # But for the first, which is the first anchor, each lies 6 px in the anchor before its own and 5 px in its own, and
    # they are ever narrower: overlaps of 6 w / (100 + 5 w) and 5 w / (100 + 6 w) are 0.37 and 0.29, 0.28 and 0.22,
    # 0.20 and 0.16, 0.157 and 0.127, 0.11 and 0.09. So each prefers the anchor before, and is not the best there.
    truth = target((0, 0, 10, 10), *((0, 10 * t - 6, w, 10 * t + 5) for t, w in enumerate((9, 6, 4, 3, 2), start=1)))
    assert match(anchors, truth) == [0, 1, 2, 3, 4, 5]


class Copies(TorchDispatchMode):
    """Whether each copy to another device is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.waited_for.append(not kwargs.get("non_blocking"))
        return func(*args, **(kwargs or {}))


def test_copies_are_waited_for_on_devices_other_than_cuda() -> None:
    """MPS read what had been given to other tensors by then, and the guard's CPU what had not arrived yet."""
    batch = Batch(torch.zeros(2, 3, 8, 8), [target((0, 0, 5, 5)), target(crowd=[(0, 0, 9, 9)])])
    with Copies() as copies:
        truths = batch.to("meta").targets
        classes_of(match_anchors(torch.zeros(10, 4, device="meta"), truths), truths)
    assert len(copies.waited_for) > 4
    assert all(copies.waited_for)


def test_nothing_of_matching_and_sampling_looks_at_a_value() -> None:
    """What looks, waits for a GPU. Tensors without values show that nobody does."""
    anchors = torch.zeros(10, 4, device="meta")
    truths = Batch(torch.zeros(2, 3, 8, 8), [target((0, 0, 5, 5)), target(crowd=[(0, 0, 9, 9)])]).to("meta").targets
    matched = match_anchors(anchors, truths, negative_iou=0.3)
    assert matched.shape == classes_of(matched, truths).shape == (2, 10)
    assert sample_matches(matched, count=4, positive_share=0.5).shape == (2, 10)


def test_anchors_above_the_threshold_go_to_the_box_they_overlap_most() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 6), (0, 0, 10, 5), (0, 0, 10, 4.9), (50, 50, 60, 60))
    # IoU with the box: 1, 0.6, 0.5 (enough), 0.49 and 0.
    assert match(anchors, target((0, 0, 10, 10))) == [0, 0, 0, BACKGROUND, BACKGROUND]


def test_threshold_can_be_set() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 6))
    assert match(anchors, target((0, 0, 10, 10)), positive_iou=0.7) == [0, BACKGROUND]


def test_a_small_box_gets_its_best_anchor_however_poor() -> None:
    anchors = boxes((0, 0, 100, 100), (0, 0, 50, 50))
    assert match(anchors, target((0, 0, 2, 2))) == [BACKGROUND, 0]


def test_anchors_in_a_crowd_are_ignored_and_not_background() -> None:
    anchors = boxes((0, 0, 10, 10), (5, 0, 15, 10), (6, 0, 16, 10), (40, 40, 50, 50))
    # Shares of the anchors inside the crowd: 1, 0.5 (enough), 0.4 and 0.
    matched = match(anchors, target(crowd=[(0, 0, 10, 100)]))
    assert matched == [IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_an_object_inside_a_crowd_is_still_learned() -> None:
    anchors = boxes((0, 0, 10, 10), (20, 0, 30, 10))
    matched = match(anchors, target((0, 0, 10, 10), crowd=[(0, 0, 100, 100)]))
    assert matched == [0, IGNORED]


def test_anchors_centred_in_padding_are_ignored() -> None:
    anchors = boxes((0, 40, 20, 58), (0, 40, 20, 60), (70, 0, 90, 20), (0, 0, 20, 20))
    # Centres (10, 49), (10, 50), (80, 10) and (10, 10); what is not padding ends at x 80 and y 50.
    matched = match(anchors, target(valid_hw=(50, 80)))
    assert matched == [BACKGROUND, IGNORED, IGNORED, BACKGROUND]


def test_an_image_without_boxes_is_all_background() -> None:
    assert match(boxes((0, 0, 10, 10), (5, 5, 9, 9)), target()) == [BACKGROUND, BACKGROUND]


def test_more_boxes_than_overlapping_anchors_leave_the_worst_pairs_without() -> None:
    anchors = boxes((0, 0, 10, 10), (50, 50, 60, 60))
    # All three overlap only the first anchor; the whole one overlaps it most.
    matched = match(anchors, target((0, 0, 10, 7), (0, 0, 10, 10), (0, 0, 10, 8)))
    assert matched == [1, BACKGROUND]


def test_more_boxes_than_anchors_fill_every_anchor() -> None:
    anchors = boxes((0, 0, 10, 10))
    assert match(anchors, target((0, 0, 10, 8), (0, 0, 10, 9))) == [1]


def test_matching_changes_neither_anchors_nor_target() -> None:
    anchors, truth = boxes((0, 0, 10, 10)), target((0, 0, 10, 8), crowd=[(0, 0, 5, 5)])
    before = anchors.clone(), truth.boxes_xyxy.clone(), truth.ignored_xyxy.clone()
    match_anchors(anchors, [truth, target((1, 1, 9, 9), (2, 2, 8, 8))])
    assert all(map(torch.equal, before, (anchors, truth.boxes_xyxy, truth.ignored_xyxy)))


def test_anchors_between_two_thresholds_are_ignored() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 7), (0, 0, 10, 6.9), (0, 0, 10, 3), (0, 0, 10, 2.9), (50, 50, 60, 60))
    # IoU with the box: 1, 0.7 (enough), 0.69, 0.3 (too much for background), 0.29 and 0.
    matched = match(anchors, target((0, 0, 10, 10)), positive_iou=0.7, negative_iou=0.3)
    assert matched == [0, 0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_a_box_s_own_anchor_may_lie_between_two_thresholds_or_below_both() -> None:
    anchors = boxes((0, 0, 10, 10), (50, 50, 60, 60), (50, 50, 60, 64))
    # The first box overlaps its best anchor by 0.5, the second by 20 / 150 = 0.13.
    matched = match(anchors, target((0, 0, 10, 5), (50, 62, 60, 65)), positive_iou=0.7, negative_iou=0.3)
    assert matched == [0, BACKGROUND, 1]


@pytest.mark.parametrize("seed", range(10))
def test_two_thresholds_are_torchvisions_but_for_the_anchors_that_boxes_own(seed: int) -> None:
    rng = np.random.default_rng(seed)
    anchors, true = random_boxes(rng, 300), random_boxes(rng, 6)
    expected = Matcher(0.5, 0.3)(box_iou(true, anchors))
    placed = Target(true, torch.zeros(len(true), dtype=torch.int64), boxes(), (1000, 1000))
    matched = match_anchors(anchors, [placed], positive_iou=0.5, negative_iou=0.3)[0]
    assert (BACKGROUND, IGNORED) == (Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS)
    assert set(expected.tolist()) >= {BACKGROUND, IGNORED}
    assert int((matched != expected).sum()) <= len(true)
    assert (matched[matched != expected] >= 0).all()


def test_crowd_and_padding_stay_ignored_below_both_thresholds() -> None:
    anchors = boxes((0, 0, 10, 10), (20, 0, 30, 10), (60, 0, 70, 10), (40, 0, 50, 10))
    truth = target((0, 0, 10, 10), crowd=[(20, 0, 30, 10)], valid_hw=(50, 60))
    matched = match(anchors, truth, positive_iou=0.7, negative_iou=0.3)
    assert matched == [0, IGNORED, IGNORED, BACKGROUND]


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
    chosen = sample_matches(matched[None], count=20, positive_share=0.25)[0]
    assert chosen.dtype == torch.bool
    assert (int((matched[chosen] == 3).sum()), int((matched[chosen] == BACKGROUND).sum())) == expected
    assert not (chosen & (matched == IGNORED)).any()


def test_each_image_has_a_sample_of_its_own() -> None:
    few, many = [0] * 3 + [BACKGROUND] * 40 + [IGNORED] * 7, [1] * 30 + [BACKGROUND] * 20
    matched = torch.tensor([few, many, [IGNORED] * 50])
    chosen = sample_matches(matched, count=16, positive_share=0.5)
    # Half of 16 may be positive: the first image has 3, and takes 13 of background; the second has 8 and 8.
    assert (chosen & (matched >= 0)).sum(dim=1).tolist() == [3, 8, 0]
    assert (chosen & (matched == BACKGROUND)).sum(dim=1).tolist() == [13, 8, 0]
    assert not (chosen & (matched == IGNORED)).any()


def test_every_anchor_is_drawn_as_often_as_any_other() -> None:
    torch.manual_seed(0)
    matched = torch.tensor([0, 1] * 10 + [BACKGROUND] * 40)
    draws = torch.stack([sample_matches(matched[None], count=20, positive_share=0.5)[0] for _ in range(400)]).sum(dim=0)
    # Of 20 positives 10 are drawn and of 40 negatives 10, each time: means 200 and 100, five standard deviations 50.
    assert draws[:20].sub(200).abs().max() < 50
    assert draws[20:].sub(100).abs().max() < 50


def test_a_sample_follows_the_seed() -> None:
    matched = torch.full((100,), BACKGROUND)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample_matches(matched[None], count=20, positive_share=0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def labelled(*labels: int) -> Target:
    rows = [(float(label), 0.0, label + 9.0, 9.0) for label in labels]
    return Target(boxes(*rows), torch.tensor(labels, dtype=torch.int64), boxes(), (1000, 1000))


def test_a_class_is_the_label_after_background() -> None:
    matched = torch.tensor([[1, BACKGROUND, 0, IGNORED, 1], [BACKGROUND, IGNORED] * 2 + [BACKGROUND], [0, 2, 1, 2, 0]])
    found = classes_of(matched, [labelled(7, 0), labelled(), labelled(4, 5, 6)])
    assert found.tolist() == [[1, 0, 8, 0, 1], [0] * 5, [5, 7, 6, 7, 5]]
    assert classes_of(matched[1:2], [labelled()]).tolist() == [[0] * 5]


def test_true_boxes_come_image_by_image_in_the_order_of_anchors() -> None:
    matched = torch.tensor([[1, BACKGROUND, 0], [IGNORED, BACKGROUND, BACKGROUND], [BACKGROUND, 0, 0]])
    found = true_boxes_of(matched, [labelled(7, 3), labelled(), labelled(4)])
    assert found[:, 0].tolist() == [3, 7, 4, 4]
    assert true_boxes_of(matched[1:2], [labelled()]).shape == (0, 4)


def test_a_true_box_that_no_anchor_overlaps_is_left_without() -> None:
    """An image with no other box ended training in a traceback of torch's."""
    anchors = torch.tensor([[0.0, 0, 8, 8], [16, 0, 24, 8]])
    target = Target(torch.tensor([[10.0, 10, 13, 13]]), torch.tensor([0]), torch.zeros(0, 4), (32, 32))
    assert match(anchors, target) == [BACKGROUND, BACKGROUND]
