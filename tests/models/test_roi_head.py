"""The second stage: pooled regions, sampled regions, candidates and losses, by hand and against torchvision's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, box_iou

from mnet_det.models.roi_head import Regions, RoIHead, pool_regions, sample_regions
from mnet_det.models.rpn import Proposals
from mnet_det.runtime.postprocess import Thresholds, postprocess
from mnet_det.structures import Target

CHANNELS = 16
K = 4
IMAGE_HW = (256, 320)
ALL = 10**6
"""A sample so large that nothing is left to chance."""


def boxes(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def random_boxes(count: int, image_hw: tuple[int, int] = IMAGE_HW) -> Tensor:
    """Of all sizes, inside the image: all of it, one in each corner, the others anywhere."""
    height, width = image_hw
    corners_xy = torch.rand(count, 2, 2) * torch.tensor([width - 40.0, height - 40.0])
    anywhere = torch.cat([corners_xy.amin(dim=1), corners_xy.amax(dim=1) + torch.rand(count, 2) * 35 + 5], dim=1)
    placed = [[0, 0, width, height]]
    for (left, top), (w, h) in zip(product([0, 1], [0, 1]), torch.rand(4, 2).mul(100).add(5).tolist(), strict=True):
        placed.append([left * (width - w), top * (height - h), left * (width - w) + w, top * (height - h) + h])
    return torch.cat([boxes(*placed), anywhere])[:count]


def target(
    *true: Sequence[float],
    labels: Sequence[int] | None = None,
    crowd: Sequence[float] = (),
    valid_hw: tuple[int, int] = IMAGE_HW,
) -> Target:
    columns = torch.tensor([0] * len(true) if labels is None else labels, dtype=torch.int64)
    return Target(boxes(*true), columns, boxes(*([crowd] if crowd else [])), valid_hw)


# ---- pool_regions ----


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("strides", "canonical_px", "side"),
    [((16,), 224, 14), ((16, 32), 112, 7), ((16, 32), 64, 14), ((8, 16, 32), 96, 7), ((8, 16, 32), 60, 7)],
    ids=str,
)
def test_pooled_regions_are_torchvisions(strides: tuple[int, ...], canonical_px: int, side: int, seed: int) -> None:
    torch.manual_seed(seed)
    height, width = IMAGE_HW
    maps = [torch.randn(2, 3, height // stride, width // stride) for stride in strides]
    of_images = [random_boxes(30), random_boxes(20)]
    names = [str(stride) for stride in strides]
    theirs = MultiScaleRoIAlign(names, side, 14 // side, canonical_scale=canonical_px)
    expected = theirs(dict(zip(names, maps, strict=True)), of_images, [IMAGE_HW] * 2)
    assert theirs.map_levels is not None
    assert set(theirs.map_levels(of_images).tolist()) == set(range(len(strides)))  # every map is asked
    found = pool_regions(
        maps,
        torch.cat(of_images),
        torch.tensor([0] * 30 + [1] * 20),
        image_hw=IMAGE_HW,
        side=side,
        strides=strides,
        canonical_px=canonical_px,
    )
    assert torch.allclose(found, expected, atol=1e-5)


def levels_of(*rows: Sequence[float], strides: tuple[int, ...], canonical_px: float) -> list[float]:
    """Which map each box is pooled from: each holds its own number everywhere, up to its last cell."""
    maps = [torch.full((1, 1, 640 // stride, 640 // stride), float(number)) for number, stride in enumerate(strides)]
    index = torch.zeros(len(rows), dtype=torch.int64)
    pooled = pool_regions(
        maps, boxes(*rows), index, image_hw=(640, 640), side=2, strides=strides, canonical_px=canonical_px
    )
    assert torch.equal(pooled, pooled[:, :, :1, :1].expand_as(pooled))
    return pooled[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("strides", "canonical_px", "expected"),
    [
        # Sides 224 and 448 begin the maps of stride 16 and 32; those of 112 (and less) and 896 there are no maps for.
        ((8, 16, 32), 224, [0, 0, 0, 1, 1, 2]),
        ((16, 32), 224, [0, 0, 0, 0, 0, 1]),
        # Half as large, half the sides: 112 and 224.
        ((16, 32), 112, [0, 0, 0, 1, 1, 1]),
        ((16,), 112, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_box_belongs_on_the_map_of_its_size(
    strides: tuple[int, ...], canonical_px: float, expected: list[float]
) -> None:
    sides = (30, 112, 223, 224, 447, 448)
    squares = [(0, 0, side, side) for side in sides]
    oblongs = [(640 - side * 5 / 4, 640 - side * 4 / 5, 640, 640) for side in sides]  # of the same areas, in the corner
    assert levels_of(*squares, strides=strides, canonical_px=canonical_px) == expected
    assert levels_of(*oblongs, strides=strides, canonical_px=canonical_px) == expected


def test_a_box_without_area_belongs_on_the_first_map() -> None:
    assert levels_of((10, 10, 10, 10), (0, 20, 640, 20), strides=(8, 16), canonical_px=224) == [0, 0]


def test_each_region_comes_from_its_own_image() -> None:
    maps = [torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, side, side) for side in (8, 4)]
    small_and_large = boxes((0, 0, 20, 20), (0, 0, 128, 128)).repeat(3, 1)
    index = torch.tensor([2, 0, 1, 1, 0, 2])
    pooled = pool_regions(maps, small_and_large, index, image_hw=(128, 128), side=2, strides=(16, 32), canonical_px=56)
    assert pooled.mean(dim=(1, 2, 3)).tolist() == index.tolist()


@pytest.mark.parametrize(
    ("side", "expected"),
    # Seven points a cell of two: their mean is the cell's middle. One point a cell of fourteen: its middle.
    [(2, [1.5, 2.5]), (14, [1 + (i + 0.5) / 7 for i in range(14)])],
)
def test_cells_share_an_input_that_strides_do_not_divide(side: int, expected: list[float]) -> None:
    """100 pixels have 7 cells of stride 16, each 100 / 7 wide and not 16, as anchors take it."""
    columns = torch.arange(7.0).expand(1, 1, 7, 7)
    one = boxes((100 / 7, 0, 300 / 7, 50))  # from cell 1 to cell 3, where a cell's number stands at its left
    for features, axis in ((columns, 1), (columns.mT, 0)):
        at = one if axis else one[:, [1, 0, 3, 2]]
        pooled = pool_regions(
            [features], at, torch.zeros(1).long(), image_hw=(100, 100), side=side, strides=(16,), canonical_px=112
        )
        assert pooled[0, 0].mean(dim=1 - axis).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("small", [7, 6, 5])
def test_smaller_maps_end_where_their_last_cell_does(small: int) -> None:
    """They stand in one tensor with the largest, and nothing of the filling may be seen. Maps of 13 and 7 cells are
    those of 200 pixels; networks without padding give smaller ones."""
    maps = [torch.zeros(1, 1, 13, 13), torch.full((1, 1, small, small), 5.0)]
    large = boxes((0, 0, 200, 200), (40, 60, 200, 200), (0, 90, 200, 200))
    pooled = pool_regions(
        maps, large, torch.zeros(3).long(), image_hw=(200, 200), side=7, strides=(16, 32), canonical_px=60
    )
    assert (pooled == 5).all()


def test_no_boxes_pool_to_no_regions() -> None:
    pooled = pool_regions(
        [torch.zeros(2, 3, 4, 4)],
        boxes(),
        torch.zeros(0).long(),
        image_hw=(64, 64),
        side=7,
        strides=(16,),
        canonical_px=112,
    )
    assert pooled.shape == (0, 3, 7, 7)


# ---- sample_regions ----


def proposals_of(*images: Tensor, valid: Tensor | None = None) -> Proposals:
    stacked = torch.stack(images)
    return Proposals(stacked, torch.ones(stacked.shape[:2], dtype=torch.bool) if valid is None else valid)


def test_sampled_regions_by_hand() -> None:
    first = boxes((0, 0, 10, 10), (0, 0, 10, 4), (50, 50, 90, 90))
    second = boxes((0, 0, 9, 9), (0, 0, 8, 8), (0, 0, 7, 7))
    truth = [target((0, 0, 10, 9), (50, 50, 90, 95), labels=[3, 1]), target()]
    regions = sample_regions(proposals_of(first, second), truth, count=ALL)
    # The true boxes; then IoU 0.9, 4 / 9 and 40 / 45 = 0.89 with them.
    assert regions.boxes_xyxy.tolist() == torch.cat([truth[0].boxes_xyxy, first, second]).tolist()
    assert regions.image_index.tolist() == [0] * 5 + [1] * 3
    assert regions.classes.tolist() == [4, 2, 4, 0, 2, 0, 0, 0]
    assert regions.true_boxes_xyxy.tolist() == truth[0].boxes_xyxy[[0, 1, 0, 1]].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_classes_and_true_boxes_line_up(seed: int) -> None:
    torch.manual_seed(seed)
    truth = [
        target(*random_boxes(count).tolist(), labels=torch.randint(0, K, (count,)).tolist()) for count in (5, 8, 6)
    ]
    found = [
        torch.cat([(t.boxes_xyxy.repeat(40, 1) + torch.randn(len(t.labels) * 40, 4) * 4)[:150], random_boxes(100)])
        for t in truth
    ]
    regions = sample_regions(proposals_of(*found), truth, count=64)
    positive = regions.classes > 0
    assert regions.image_index.bincount().tolist() == [64] * 3
    assert regions.image_index[positive].bincount().tolist() == [16] * 3  # a quarter
    assert len(regions.true_boxes_xyxy) == 48
    rows = zip(regions.boxes_xyxy[positive], regions.image_index[positive], regions.classes[positive], strict=True)
    for (box, image, column), true in zip(rows, regions.true_boxes_xyxy, strict=True):
        best, index = box_iou(box[None], truth[image].boxes_xyxy)[0].max(dim=0)
        assert best >= 0.5
        assert torch.equal(true, truth[image].boxes_xyxy[index])
        assert column == truth[image].labels[index] + 1
    for box, image in zip(regions.boxes_xyxy[~positive], regions.image_index[~positive], strict=True):
        assert box_iou(box[None], truth[image].boxes_xyxy).max() < 0.5


@pytest.mark.parametrize("objects", [0, 1, 15, 16, 30])
def test_a_quarter_at_most_are_objects(objects: int) -> None:
    true = [(0, 10 * i, 10, 10 * i + 10) for i in range(objects)]
    regions = sample_regions(proposals_of(boxes((100, 0, 120, 20)).repeat(200, 1)), [target(*true)], count=64)
    assert int((regions.classes > 0).sum()) == min(objects, 16)
    assert len(regions.classes) == 64


def test_without_a_useful_proposal_the_true_boxes_are_learned() -> None:
    regions = sample_regions(proposals_of(boxes((90, 90, 99, 99))), [target((0, 0, 10, 10), labels=[2])], count=64)
    assert regions.boxes_xyxy.tolist() == [[0, 0, 10, 10], [90, 90, 99, 99]]
    assert regions.classes.tolist() == [3, 0]


def test_unused_slots_are_not_learned_from() -> None:
    found = boxes((0, 0, 10, 10), (20, 20, 30, 30), (40, 40, 50, 50))
    regions = sample_regions(proposals_of(found, valid=torch.tensor([[True, False, True]])), [target()], count=ALL)
    assert regions.boxes_xyxy.tolist() == found[[0, 2]].tolist()


def test_unused_slots_take_no_box_from_those_in_use_whatever_other_images_have() -> None:
    found = torch.stack([boxes((0, 0, 10, 10), (0, 0, 10, 4)), boxes((0, 0, 10, 10), (30, 30, 40, 40))])
    truth = [target((0, 0, 10, 10), labels=[3]), target((30, 30, 40, 38), (70, 70, 90, 90), (5, 80, 9, 99))]
    regions = sample_regions(Proposals(found, torch.tensor([[False, True], [False, True]])), truth, count=ALL)
    # The first image's true box and a part of it, 0.4; the second's three true boxes, and 0.8 of one.
    expected = [[0, 0, 10, 10], [0, 0, 10, 4], *truth[1].boxes_xyxy.tolist(), [30, 30, 40, 40]]
    assert regions.boxes_xyxy.tolist() == expected
    assert regions.image_index.tolist() == [0, 0, 1, 1, 1, 1]
    assert regions.classes.tolist() == [4, 0, 1, 1, 1, 1]
    assert regions.true_boxes_xyxy.tolist() == [
        *truth[0].boxes_xyxy.tolist(),
        *truth[1].boxes_xyxy[[0, 1, 2, 0]].tolist(),
    ]


def test_padding_and_crowds_are_not_learned_from() -> None:
    found = boxes((0, 40, 20, 58), (0, 40, 20, 60), (70, 0, 90, 20), (40, 0, 60, 20))
    # Centres (10, 49), (10, 50), (80, 10) and (50, 10); the image ends at x 80 and y 50, and half of the last is crowd.
    padded = target(valid_hw=(50, 80))
    crowded = target(valid_hw=(50, 80), crowd=(50, 0, 100, 100))
    assert sample_regions(proposals_of(found), [padded], count=ALL).boxes_xyxy.tolist() == found[[0, 3]].tolist()
    assert sample_regions(proposals_of(found), [crowded], count=ALL).boxes_xyxy.tolist() == found[:1].tolist()


def test_the_sample_is_random_and_follows_the_seed() -> None:
    found = proposals_of(random_boxes(200))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample_regions(found, [target()], count=64).boxes_xyxy)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# ---- candidates ----


def random_outputs(count: int, columns: int = K) -> tuple[Tensor, Tensor]:
    """Logits [N, K + 1] that spread scores, and deltas [N, R, 4] that move boxes by a quarter of their size."""
    return torch.randn(count, K + 1) * 3, torch.randn(count, columns, 4) * torch.tensor([2.5, 2.5, 1, 1])


def torchvisions_head() -> RoIHeads:
    return RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "capped"), [(200, True), (20, False)])
def test_detections_are_torchvisions(seed: int, count: int, capped: bool) -> None:
    torch.manual_seed(seed)
    of_images = [random_boxes(count) for _ in range(2)]
    logits, deltas = random_outputs(2 * count)
    with_background = torch.cat([torch.randn(2 * count, 1, 4), deltas], dim=1).flatten(1)
    expected = torchvisions_head().postprocess_detections(logits, with_background, of_images, [IMAGE_HW] * 2)
    head = RoIHead(CHANNELS, num_classes=K)
    candidates = head.candidates(logits, deltas, proposals_of(*of_images), image_hw=IMAGE_HW)
    thresholds = Thresholds(score=0.05, nms=0.5, pre_nms=ALL, max_detections=100)
    for boxes_xyxy, scores, their_boxes, their_scores, their_labels in zip(*candidates, *expected, strict=True):
        found = postprocess(boxes_xyxy.numpy(), scores.numpy(), thresholds)
        assert (len(found) == 100) == capped
        assert found.boxes_xyxy == pytest.approx(their_boxes.numpy(), abs=1e-4)
        assert found.scores == pytest.approx(their_scores.numpy(), abs=1e-4)
        assert (found.labels + 1).tolist() == their_labels.tolist()


@pytest.mark.parametrize("columns", [1, K])
def test_unused_slots_score_0_and_boxes_stay_inside(columns: int) -> None:
    torch.manual_seed(0)
    valid = torch.rand(2, 50) < 0.5
    head = RoIHead(CHANNELS, num_classes=K, shared_boxes=columns == 1)
    boxes_xyxy, scores = head.candidates(
        *random_outputs(100, columns),
        proposals_of(random_boxes(50), random_boxes(50), valid=valid),
        image_hw=IMAGE_HW,
    )
    assert boxes_xyxy.shape == (2, 50, columns, 4)
    assert scores.shape == (2, 50, K)
    assert (scores[~valid] == 0).all()
    assert (scores[valid] > 0).any(dim=1).all()
    height, width = IMAGE_HW
    assert (boxes_xyxy >= 0).all()
    assert (boxes_xyxy <= torch.tensor([width, height, width, height])).all()
    assert (boxes_xyxy[..., 2:] >= boxes_xyxy[..., :2]).all()


def test_candidates_by_hand() -> None:
    logits = torch.tensor([[0.0, LN3, 0.0], [0.0, 0.0, LN3]])  # e^0 : e^ln 3 : e^0 is 1 : 3 : 1
    deltas = torch.zeros(2, 2, 4)
    deltas[0, 1] = torch.tensor([10.0, 0, 0, 5 * math.log(2)])  # one width to the right, twice as high
    found = RoIHead(CHANNELS, num_classes=2).candidates(
        logits, deltas, proposals_of(boxes((10, 10, 20, 20)), boxes((0, 0, 40, 40))), image_hw=IMAGE_HW
    )
    assert found.scores.flatten().tolist() == pytest.approx([0.6, 0.2, 0.2, 0.6])
    expected = [[[[10, 10, 20, 20], [20, 5, 30, 25]]], [[[0, 0, 40, 40]] * 2]]
    assert torch.allclose(found.boxes_xyxy, torch.tensor(expected, dtype=torch.float32), atol=1e-4)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_box_that_left_the_input_scores_0(columns: int) -> None:
    """Cut at the edge, nothing is left of it; it came out as a detection without area."""
    deltas = torch.zeros(1, columns, 4)
    deltas[0, 0, 0] = -15  # one width and a half to the left
    found = RoIHead(CHANNELS, num_classes=2).candidates(
        torch.zeros(1, 3), deltas, proposals_of(boxes((5, 5, 15, 15))), image_hw=IMAGE_HW
    )
    assert found.scores[0, 0].tolist() == pytest.approx([0, 0] if columns == 1 else [0, 1 / 3])


@pytest.mark.parametrize(("shared_boxes", "columns"), [(True, 1), (False, K)])
def test_outputs_are_float32_and_have_a_row_of_deltas_for_each_box(shared_boxes: bool, columns: int) -> None:
    head = RoIHead(CHANNELS, num_classes=K, shared_boxes=shared_boxes)
    with torch.autocast("cpu", torch.bfloat16):
        logits, deltas = head(torch.randn(6, CHANNELS))
    assert (logits.shape, deltas.shape) == ((6, K + 1), (6, columns, 4))
    assert logits.dtype == deltas.dtype == torch.float32


# ---- losses ----

LN2, LN3 = math.log(2), math.log(3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", [(5, 3), (4, 0), (0, 0)], ids=["boxes", "one image without", "no boxes at all"])
def test_losses_are_torchvisions(seed: int, counts: tuple[int, int]) -> None:
    torch.manual_seed(seed)
    truth = [
        target(*random_boxes(5)[:count].tolist(), labels=torch.randint(0, K, (count,)).tolist()) for count in counts
    ]
    found = [
        torch.cat([t.boxes_xyxy.repeat(4, 1) + torch.randn(4 * len(t.labels), 4), random_boxes(40)])[:40] for t in truth
    ]
    named = [{"boxes": t.boxes_xyxy, "labels": t.labels + 1} for t in truth]
    theirs = torchvisions_head()
    theirs.fg_bg_sampler.batch_size_per_image = ALL
    their_boxes, _, their_classes, true_deltas = theirs.select_training_samples(list(found), named)
    regions = sample_regions(proposals_of(*found), truth, count=ALL)
    logits, deltas = random_outputs(len(regions.classes))
    with_background = torch.cat([torch.randn(len(deltas), 1, 4), deltas], dim=1).flatten(1)
    # Theirs has the true boxes after the proposals, ours before.
    order = torch.cat([(regions.image_index == i).nonzero()[:, 0].roll(-count) for i, count in enumerate(counts)])
    assert torch.equal(regions.boxes_xyxy[order], torch.cat(their_boxes))
    assert torch.equal(regions.classes[order], torch.cat(their_classes))
    expected = fastrcnn_loss(logits[order], with_background[order], their_classes, true_deltas)
    losses = RoIHead(CHANNELS, num_classes=K).losses(logits, deltas, regions)
    assert [losses["class"].item(), losses["box"].item()] == pytest.approx([e.item() for e in expected], rel=1e-4)
    assert (losses["box"] > 0) == any(counts)


def test_losses_by_hand() -> None:
    regions = Regions(
        boxes((0, 0, 10, 10), (0, 0, 20, 20), (5, 5, 9, 9)),
        torch.tensor([0, 1, 1]),
        torch.tensor([2, 0, 1]),
        boxes((0.3, 0, 10.3, 10), (5, 5, 9, 9)),
    )
    logits = torch.tensor([[0.0, 0.0, math.log(2)], [LN2, 0.0, 0.0], [0.0, 0.0, 0.0]])
    losses = RoIHead(CHANNELS, num_classes=2).losses(logits, torch.zeros(3, 2, 4), regions)
    # Half for the right class of three, twice, and a third.
    assert losses["class"].item() == pytest.approx((2 * LN2 + LN3) / 3)
    # The first's true x delta is 10 × 0.3 / 10, above 1/9; the third's box is right.
    assert losses["box"].item() == pytest.approx((0.3 - 1 / 18) / 3)


@pytest.mark.parametrize(("columns", "expected"), [(2, [[False, True], [False, False], [True, False]]), (1, None)])
def test_a_region_teaches_its_own_class_s_box(columns: int, expected: list[list[bool]] | None) -> None:
    regions = Regions(
        boxes((0, 0, 10, 10), (0, 0, 20, 20), (0, 0, 9, 9)),
        torch.zeros(3).long(),
        torch.tensor([2, 0, 1]),
        boxes((1, 1, 11, 11), (1, 1, 8, 8)),
    )
    deltas = torch.zeros(3, columns, 4, requires_grad=True)
    RoIHead(CHANNELS, num_classes=2).losses(torch.zeros(3, 3), deltas, regions)["box"].backward()
    assert deltas.grad is not None
    assert (deltas.grad != 0).any(dim=2).tolist() == (expected or [[True], [False], [True]])


def test_no_regions_cost_nothing_and_have_a_gradient() -> None:
    head = RoIHead(CHANNELS, num_classes=K)
    regions = Regions(boxes(), torch.zeros(0).long(), torch.zeros(0).long(), boxes())
    losses = head.losses(*head(torch.zeros(0, CHANNELS)), regions)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None and (parameter.grad == 0).all() for parameter in head.parameters())
