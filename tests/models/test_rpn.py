"""Region proposals and their losses: by hand, and against torchvision's network with the same weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import rpn as torchvisions
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from mnet_det.models import rpn
from mnet_det.models.matching import match_anchors
from mnet_det.models.rpn import Proposals, RegionOutputs, RegionProposalNetwork
from mnet_det.structures import Target

CHANNELS = 8
IMAGE_HW = (192, 160)
MAP_HWS = [(12, 10), (6, 5), (3, 3)]
SIZES = (32, 64, 120)
LN2 = math.log(2)


def boxes(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def target(*true: Sequence[float], crowd: Sequence[float] = (), valid_hw: tuple[int, int] = IMAGE_HW) -> Target:
    return Target(boxes(*true), torch.zeros(len(true), dtype=torch.int64), boxes(*([crowd] if crowd else [])), valid_hw)


def network() -> RegionProposalNetwork:
    return RegionProposalNetwork(CHANNELS, anchors_per_cell=3)


def outputs_of(*maps: Sequence[float]) -> RegionOutputs:
    """One image's logits, map by map, with anchors that stay where they are."""
    logits = [torch.tensor([row], dtype=torch.float32) for row in maps]
    return RegionOutputs(logits, [torch.zeros(1, row.shape[1], 4) for row in logits])


def propose(anchors: Tensor, outputs: RegionOutputs, *, count: int) -> Proposals:
    return network().propose(outputs, anchors, image_hw=(100, 100), count=count)


# ---- torchvision's network with the same weights ----


def torchvisions_network(*, pre_nms: int, count: int) -> torchvisions.RegionProposalNetwork:
    """Random weights, scaled up so that scores spread and boxes leave their anchors, some for outside the image."""
    head = torchvisions.RPNHead(CHANNELS, 3 * len(SIZES))
    nn.init.normal_(head.conv[0][0].weight, std=0.2)
    nn.init.normal_(head.cls_logits.weight, std=0.8)
    nn.init.normal_(head.cls_logits.bias, mean=-4, std=0.5)  # near 1, float32 has so few numbers that scores tie
    nn.init.normal_(head.bbox_pred.weight, std=0.2)
    nn.init.normal_(head.bbox_pred.bias, std=0.1)
    anchors = AnchorGenerator((SIZES,) * 3, ((0.5, 1.0, 2.0),) * 3)
    both = {"training": pre_nms, "testing": pre_nms}, {"training": count, "testing": count}
    return torchvisions.RegionProposalNetwork(anchors, head, 0.7, 0.3, 10**6, 0.5, *both, 0.7)


def with_weights_of(theirs: torchvisions.RegionProposalNetwork) -> RegionProposalNetwork:
    ours = RegionProposalNetwork(CHANNELS, anchors_per_cell=3 * len(SIZES))
    ours.conv.load_state_dict(theirs.head.conv[0][0].state_dict())
    ours.objectness.load_state_dict(theirs.head.cls_logits.state_dict())
    ours.deltas.load_state_dict(theirs.head.bbox_pred.state_dict())
    return ours


def random_maps(images: int = 2) -> list[Tensor]:
    return [torch.randn(images, CHANNELS, *hw) for hw in MAP_HWS]


def torchvisions_images(images: int = 2) -> ImageList:
    return ImageList(torch.zeros(images, 3, *IMAGE_HW), [IMAGE_HW] * images)


def source_maps(proposals: Proposals, outputs: RegionOutputs, anchors: Tensor) -> set[int]:
    """The maps that a batch's proposals come from."""
    decoded = clip_boxes_to_image(network().box_coder.decode(anchors, torch.cat(outputs.deltas, dim=1)), IMAGE_HW)
    anchor = torch.cdist(proposals.boxes_xyxy, decoded, p=1).argmin(dim=2)[proposals.valid]
    ends = torch.tensor([deltas.shape[1] for deltas in outputs.deltas]).cumsum(0)
    return set(torch.bucketize(anchor, ends, right=True).tolist())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("pre_nms", "count"), [(60, 60), (1000, 100), (60, 500)], ids=["filled", "filled, all anchors", "not filled"]
)
def test_proposals_are_torchvisions(seed: int, pre_nms: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    monkeypatch.setattr(rpn, "PRE_NMS", pre_nms)
    theirs = torchvisions_network(pre_nms=pre_nms, count=count).eval()
    ours, maps = with_weights_of(theirs), random_maps()
    anchors = theirs.anchor_generator(torchvisions_images(), maps)[0]
    with torch.inference_mode():
        expected, _ = theirs(torchvisions_images(), {str(number): features for number, features in enumerate(maps)})
        outputs = ours(maps)
        found = ours.propose(outputs, anchors, image_hw=IMAGE_HW, count=count)
    slots = min(count, sum(min(pre_nms, logits.shape[1]) for logits in outputs.logits))
    assert found.boxes_xyxy.shape == (2, slots, 4)
    for image_boxes, valid, image_expected in zip(*found, expected, strict=True):
        assert (len(image_expected) == slots) == (count < 500)  # as the case says
        assert valid.tolist() == [True] * len(image_expected) + [False] * (slots - len(image_expected))
        assert torch.allclose(image_boxes[valid], image_expected, rtol=0, atol=1e-4)
    assert source_maps(found, outputs, anchors) == {0, 1, 2}


def jittered(anchors: Tensor, count: int) -> Tensor:
    """True boxes near some anchors inside the image, apart from one another, none of them symmetrical to two."""
    inside = (clip_boxes_to_image(anchors, IMAGE_HW) == anchors).all(dim=1).nonzero()[:, 0]
    near = anchors[inside[torch.randperm(len(inside))[:count]]]
    return near + torch.empty_like(near).uniform_(-4, 4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)], ids=["boxes", "one image without", "no boxes at all"])
def test_losses_are_torchvisions(seed: int, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With all anchors in the sample. The two matchers differ only in what a box gets whose best anchor is below 0.7,
    and where boxes share their best anchor; that neither happens is checked first."""
    torch.manual_seed(seed)
    monkeypatch.setattr(rpn, "SAMPLES", 10**6)
    theirs = torchvisions_network(pre_nms=50, count=50).train()
    ours, maps = with_weights_of(theirs), random_maps()
    anchors = theirs.anchor_generator(torchvisions_images(), maps)[0]
    targets = [target(*jittered(anchors, count).tolist()) for count in counts]
    named = [{"boxes": truth.boxes_xyxy} for truth in targets]
    labels, _ = theirs.assign_targets_to_anchors([anchors, anchors], named)
    for truth, image_labels in zip(targets, labels, strict=True):
        (matched,) = match_anchors(anchors, [truth], positive_iou=0.7, negative_iou=0.3)
        assert torch.equal(matched.clamp(max=0) + 1, torch.where(image_labels < 0, -1.0, image_labels).long())
        assert set(range(len(truth.boxes_xyxy))) <= set(matched.tolist())
    _, expected = theirs(torchvisions_images(), {str(number): features for number, features in enumerate(maps)}, named)
    found = ours.losses(ours(maps), anchors, targets)
    assert found["rpn_class"].item() == pytest.approx(expected["loss_objectness"].item(), rel=1e-4)
    assert found["rpn_box"].item() == pytest.approx(expected["loss_rpn_box_reg"].item(), rel=1e-4)
    assert (found["rpn_box"] > 0) == any(counts)


# ---- outputs ----


@pytest.mark.parametrize("branch", ["objectness", "deltas"])
def test_outputs_are_row_major_and_anchor_fastest(branch: str) -> None:
    torch.manual_seed(0)
    net, maps, (row, column, anchor) = network(), random_maps(1), (4, 7, 2)
    before = net(maps)

    def raise_one(_: nn.Module, __: object, output: Tensor) -> Tensor:
        output = output.clone()
        if output.shape[2:] == MAP_HWS[0]:
            output[0, anchor if branch == "objectness" else slice(anchor * 4, anchor * 4 + 4), row, column] += 1
        return output

    net.get_submodule(branch).register_forward_hook(raise_one)
    moved = [
        (new != old).reshape(new.shape[1], -1).all(dim=1).nonzero().flatten().tolist()
        for kind in (0, 1)
        for new, old in zip(net(maps)[kind], before[kind], strict=True)
    ]
    here = [(row * 10 + column) * 3 + anchor]
    assert moved == ([here, [], [], [], [], []] if branch == "objectness" else [[], [], [], here, [], []])


def test_outputs_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network()(random_maps())
    assert {part.dtype for kind in outputs for part in kind} == {torch.float32}


# ---- proposals ----


def test_best_boxes_come_first_and_suppressed_ones_leave_their_slot() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60), (20, 0, 30, 10))
    # The second overlaps the first by 0.9. Its score is above those of the two others, and yet it is no proposal.
    found = propose(anchors, outputs_of([3, 2, -1, 1]), count=4)
    assert found.boxes_xyxy[0, :3].tolist() == anchors[[0, 3, 2]].tolist()
    assert found.valid.tolist() == [[True, True, True, False]]


def test_an_overlap_of_07_is_not_suppressed() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 6.9), (0, 0, 10, 4.5), (0, 50, 10, 60), (0, 50, 10, 57.1))
    # IoU with the better boxes: 0.69; 0.45 and 4.5 / 6.9 = 0.65; 0; 0.71.
    assert propose(anchors, outputs_of([5, 4, 3, 2, 1]), count=5).valid.tolist() == [[True] * 4 + [False]]


def test_boxes_of_different_maps_do_not_suppress_one_another() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10))
    assert propose(anchors, outputs_of([2, 1], [0]), count=3).valid.tolist() == [[True, True, False]]


def test_only_the_best_of_each_map_enter_suppression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpn, "PRE_NMS", 2)
    anchors = boxes(*((10 * i, 0, 10 * i + 8, 8) for i in range(6)))
    found = propose(anchors, outputs_of([1, 5, 4, 3], [0, -9]), count=6)
    assert found.boxes_xyxy[0].tolist() == anchors[[1, 2, 4, 5]].tolist()
    assert found.valid.all()


@pytest.mark.parametrize(
    "thin",
    [(-20.0, 0.0, -10.0, 10.0), (99.9995, 0.0, 120.0, 10.0), (0.0, 50.0, 10.0, 50.0009)],
    ids=["outside", "cut down to nothing", "thin"],
)
def test_thin_boxes_take_no_slot_and_suppress_nobody(thin: tuple[float, ...]) -> None:
    # The second overlaps the last of the thin ones by 9 / 11 = 0.82, and any other by nothing.
    anchors = boxes(thin, (0, 50, 10, 50.0011))
    assert propose(anchors, outputs_of([9, 0]), count=1).boxes_xyxy[0].tolist() == anchors[1:].tolist()
    assert propose(anchors, outputs_of([9, 0]), count=2).valid.tolist() == [[True, False]]


def test_boxes_are_cut_at_the_input_s_edge() -> None:
    found = propose(boxes((-5, -6, 20, 30), (90, 80, 130, 140)), outputs_of([1, 0]), count=2)
    assert found.boxes_xyxy[0].tolist() == [[0, 0, 20, 30], [90, 80, 100, 100]]


def test_where_anchors_are_few_there_are_as_many_slots() -> None:
    assert propose(boxes((0, 0, 10, 10), (0, 0, 9, 10)), outputs_of([1], [0]), count=300).valid.shape == (1, 2)


def test_a_hopeless_score_is_a_proposal_all_the_same() -> None:
    """A sigmoid of 0 must not look like an unused slot."""
    assert propose(boxes((0, 0, 10, 10)), outputs_of([-200]), count=1).valid.all()


def test_proposals_carry_no_gradient() -> None:
    net = network()
    maps = random_maps()
    anchors = boxes((0, 0, 10, 10)).expand(3 * sum(h * w for h, w in MAP_HWS), 4)
    found = net.propose(net(maps), anchors, image_hw=IMAGE_HW, count=5)
    assert not found.boxes_xyxy.requires_grad


# ---- losses ----


def learnable(anchors: int, images: int = 1) -> RegionOutputs:
    return RegionOutputs([torch.zeros(images, anchors, requires_grad=True)], [torch.zeros(images, anchors, 4)])


def sampled(anchors: Tensor, *targets: Target) -> Tensor:
    """Which anchors' logits get a gradient: +1 pushed up, -1 pushed down, 0 not looked at. int64 [B, A]"""
    outputs = learnable(len(anchors), len(targets))
    network().losses(outputs, anchors, targets)["rpn_class"].backward()
    assert outputs.logits[0].grad is not None
    return -outputs.logits[0].grad.sign().long()


def test_losses_by_hand() -> None:
    anchors = boxes((0, 0, 10, 10), (50, 50, 60, 60), (70, 70, 90, 90))
    outputs = learnable(3)
    losses = network().losses(outputs, anchors, [target((2, 0, 12, 10))])
    # One object and two of background at logit 0 cost ln 2 each. The first anchor's true x delta is 2 / 10, which is
    # above 1/9 and so costs 0.2 - 1/18; its other deltas are right. Three anchors share either sum.
    assert losses["rpn_class"].item() == pytest.approx(LN2)
    assert losses["rpn_box"].item() == pytest.approx((0.2 - 1 / 18) / 3)


def test_anchors_that_overlap_a_little_are_left_out() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 7.1), (0, 0, 10, 6.9), (0, 0, 10, 3), (0, 0, 10, 2.9), (50, 0, 60, 10))
    # IoU with the box: 1, 0.71, 0.69, 0.3 (still too much for background), 0.29 and 0.
    assert sampled(anchors, target((0, 0, 10, 10))).tolist() == [[1, 1, 0, 0, -1, -1]]


def test_padding_gives_no_negatives() -> None:
    anchors = boxes((0, 40, 20, 58), (0, 40, 20, 60), (70, 0, 90, 20), (0, 0, 20, 20))
    # Centres (10, 49), (10, 50), (80, 10) and (10, 10); the image ends at x 80 and y 50.
    assert sampled(anchors, target(valid_hw=(50, 80))).tolist() == [[-1, 0, 0, -1]]


def test_crowds_give_no_negatives() -> None:
    anchors = boxes((0, 0, 10, 10), (5, 0, 15, 10), (6, 0, 16, 10), (40, 40, 50, 50))
    # Shares of the anchors inside the crowd: 1, 0.5 (enough), 0.4 and 0.
    assert sampled(anchors, target(crowd=(0, 0, 10, 100))).tolist() == [[0, 0, -1, -1]]


def test_half_the_sample_at_most_are_objects() -> None:
    anchors = torch.cat([boxes((0, 0, 10, 10)).expand(200, 4), boxes((50, 50, 60, 60)).expand(800, 4)])
    objects, few, none = target((0, 0, 10, 10)), target((0, 0, 10, 4)), target()
    signs = sampled(anchors, objects, few, none)
    # 128 of 200, and 128 of 800; the one anchor that the small box owns (the others overlap it by 0.4), and 255;
    # background alone.
    assert [(int((row > 0).sum()), int((row < 0).sum())) for row in signs] == [(128, 128), (1, 255), (0, 256)]


def test_the_sample_is_random_and_follows_the_seed() -> None:
    anchors = boxes((50, 50, 60, 60)).expand(1000, 4)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sampled(anchors, target()))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_an_image_of_crowd_alone_costs_nothing() -> None:
    outputs = learnable(2)
    losses = network().losses(outputs, boxes((0, 0, 9, 9), (5, 5, 9, 9)), [target(crowd=(-1, -1, 100, 100))])
    assert [loss.item() for loss in losses.values()] == [0, 0]


def test_an_untrained_network_is_undecided() -> None:
    """Standard deviation 0.01: scores near one half and boxes near their anchors, whatever comes in."""
    torch.manual_seed(0)
    outputs = network()(random_maps())
    assert all(logits.sigmoid().sub(0.5).abs().max() < 0.05 for logits in outputs.logits)
    assert all(deltas.abs().max() < 0.2 for deltas in outputs.deltas)
