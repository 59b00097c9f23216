"""SSD's losses by hand, term by term."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, sigmoid_focal_loss

from mnet_det.models.losses import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    MIN_NEGATIVES,
    QUALITY_BETA,
    focal_loss,
    giou_loss,
    paired_iou,
    quality_focal_loss,
    smooth_l1_loss,
    softmax_multibox_loss,
)

LN2 = math.log(2)


def logits_of(*losses_as_background: float) -> Tensor:
    """Two-column logits [1, A, 2] whose cross-entropy for background is as given: ln(1 + e^z) = loss."""
    return torch.tensor([[[0.0, math.log(math.expm1(loss))] for loss in losses_as_background]])


def classes(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def none_ignored(of: Tensor) -> Tensor:
    return torch.zeros_like(of, dtype=torch.bool)


def test_one_positive_is_joined_by_the_three_hardest_negatives() -> None:
    truth = classes([1, 0, 0, 0, 0, 0])
    # The positive has logits (0, 0) and so costs ln 2, as a negative would; the hardest of 5, 1, 4, 2, 3 are 5, 4, 3.
    loss = softmax_multibox_loss(logits_of(LN2, 5, 1, 4, 2, 3), truth, none_ignored(truth))
    assert loss.item() == pytest.approx(LN2 + 5 + 4 + 3, rel=1e-5)


def test_negatives_are_ranked_within_each_image() -> None:
    logits = torch.cat([logits_of(LN2, 9, 8, 7, 6, 5), logits_of(LN2, 0.5, 0.4, 0.3, 0.2, 0.1)])
    truth = classes([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])
    # Ranked over the whole batch, the second image would teach no background at all.
    expected = (LN2 + 9 + 8 + 7) + (LN2 + 0.5 + 0.4 + 0.3)
    assert softmax_multibox_loss(logits, truth, none_ignored(truth)).item() == pytest.approx(expected, rel=1e-5)


def test_an_image_without_boxes_teaches_its_hardest_negatives() -> None:
    truth = classes([0, 0, 0, 0, 0])
    loss = softmax_multibox_loss(logits_of(1, 5, 2, 4, 3), truth, none_ignored(truth))
    assert MIN_NEGATIVES == 3
    assert loss.item() == pytest.approx(5 + 4 + 3, rel=1e-5)


def test_where_negatives_are_few_all_count() -> None:
    truth = classes([1, 1, 0])
    loss = softmax_multibox_loss(logits_of(LN2, LN2, 2), truth, none_ignored(truth))
    assert loss.item() == pytest.approx(LN2 + LN2 + 2, rel=1e-5)


def test_chosen_negatives_alone_get_a_gradient() -> None:
    logits = logits_of(LN2, 5, 1, 4, 2, 3).requires_grad_()
    truth = classes([1, 0, 0, 0, 0, 0])
    softmax_multibox_loss(logits, truth, none_ignored(truth)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(dim=-1)[0].gt(0).tolist() == [True, True, False, True, False, True]


@pytest.mark.parametrize("class_loss", [softmax_multibox_loss, focal_loss])
def test_ignored_anchors_count_for_nothing(class_loss: type[softmax_multibox_loss]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 8, 4)
    truth = classes([1, 3, 0, 0, 0, 0, 0, 0])
    ignored = torch.tensor([[False, False, False, True, False, False, True, True]])
    alone = class_loss(logits[~ignored][None], truth[~ignored][None], none_ignored(truth[~ignored][None]))
    logits[ignored] = 1e4
    assert class_loss(logits, truth, ignored).item() == pytest.approx(alone.item(), rel=1e-5)


def test_an_image_of_ignored_anchors_alone_costs_nothing() -> None:
    truth = classes([0, 0, 0])
    for class_loss in (softmax_multibox_loss, focal_loss):
        assert class_loss(logits_of(1, 2, 3), truth, torch.ones_like(truth, dtype=torch.bool)).item() == 0


def test_focal_loss_by_hand() -> None:
    # Columns background and one class; the truth is the class. Probabilities 0.2 and 0.9.
    logits = torch.logit(torch.tensor([[[0.2, 0.9]]]))
    truth = classes([1])
    # A true column costs α (1 - p)² · -ln p, a false one (1 - α) p² · -ln(1 - p), with α 0.75 and γ 2.
    expected = 0.75 * 0.1**2 * -math.log(0.9) + 0.25 * 0.2**2 * -math.log(0.8)
    assert (FOCAL_ALPHA, FOCAL_GAMMA) == (0.75, 2.0)
    assert focal_loss(logits, truth, none_ignored(truth)).item() == pytest.approx(expected, rel=1e-4)


def ground_truth(classes: Tensor, qualities: Tensor, columns: int) -> Tensor:
    """What each sigmoid is to be, as large as the logits."""
    truth = F.one_hot(classes, columns) * qualities.unsqueeze(-1)
    truth[..., 0] = 0
    return truth


@pytest.mark.parametrize("loss_name", ["focal", "quality_focal"])
def test_focal_losses_are_those_of_a_truth_for_every_column(loss_name: str) -> None:
    """Ours looks at the true columns apart; torchvision's, and the paper's as it stands, at all of them alike."""
    torch.manual_seed(0)
    found = (torch.randn(3, 50, 6) * 3).requires_grad_()
    expected = found.detach().clone().requires_grad_()
    truth = torch.where(torch.rand(3, 50) < 0.2, torch.randint(1, 6, (3, 50)), 0)
    truth[1] = 0  # an image without boxes
    qualities = torch.rand(3, 50)
    ignored = torch.rand(3, 50) < 0.1
    if loss_name == "focal":
        loss = focal_loss(found, truth, ignored)
        whole = ground_truth(truth, torch.ones(3, 50), 6)
        every = sigmoid_focal_loss(expected, whole, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA)
    else:
        loss = quality_focal_loss(found, truth, qualities, ignored)
        whole = ground_truth(truth, qualities, 6)
        score = expected.sigmoid()
        every = -((whole - score) ** 2) * (whole * score.log() + (1 - whole) * (1 - score).log())
    reference = every[~ignored].sum()
    (loss + reference).backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert found.grad is not None
    assert expected.grad is not None
    assert torch.allclose(found.grad, expected.grad, atol=1e-5)


def test_background_is_the_absence_of_every_class_to_focal_loss() -> None:
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    truth = classes([0])
    focal_loss(logits, truth, none_ignored(truth)).backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0] > 0).tolist() == [True, True, True]  # all fall, background's own unread column too


def test_smooth_l1_by_hand() -> None:
    deltas = torch.tensor([[0.5, -2.0, 0.0, 1.0]])
    # Below 1 half the square, above it |d| - 1/2: 0.125 + 1.5 + 0 + 0.5.
    assert smooth_l1_loss(deltas, torch.zeros(1, 4)).item() == pytest.approx(2.125)


def test_giou_by_hand() -> None:
    true = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    found = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10]])
    # Equal: 1 - 1. Half over: IoU 50 / 150, hull 150 all covered: 1 - 1/3. Apart: IoU 0, hull 300 with 100 uncovered.
    expected = [0, 2 / 3, 1 + 100 / 300]
    assert [giou_loss(f[None], t[None]).item() for f, t in zip(found, true, strict=True)] == pytest.approx(
        expected, abs=1e-5
    )
    assert giou_loss(found, true).item() == pytest.approx(sum(expected), abs=1e-5)


@pytest.mark.parametrize("box_loss", [smooth_l1_loss, giou_loss])
def test_no_matched_anchor_is_a_box_loss_of_0_with_a_gradient(box_loss: type[smooth_l1_loss]) -> None:
    found = torch.zeros(0, 4, requires_grad=True)
    loss = box_loss(found, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0


def ranked_twice(logits: Tensor, classes: Tensor, ignored: Tensor) -> Tensor:
    """Multibox loss as it was first written: the rank of each anchor from a sort of a sort, and all in the graph."""
    loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    positive, negative = (classes > 0) & ~ignored, (classes == 0) & ~ignored
    hardness = loss.detach().masked_fill(~negative, -torch.inf)
    rank = hardness.argsort(dim=1, descending=True).argsort(dim=1)
    hard = negative & (rank < (3 * positive.sum(dim=1, keepdim=True)).clamp(min=MIN_NEGATIVES))
    return (loss * (positive | hard)).sum()


@pytest.mark.parametrize("ties", [False, True])
def test_multibox_loss_chooses_as_a_double_sort_does(ties: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(4, 200, 5)
    values = values.round() if ties else values
    truth = torch.where(torch.rand(4, 200) < 0.05, torch.randint(1, 5, (4, 200)), 0)
    truth[0] = 0  # an image without boxes
    ignored = torch.rand(4, 200) < 0.1
    ignored[1, 3:] = True  # and one with less negatives than it may have
    found, expected = values.clone().requires_grad_(), values.clone().requires_grad_()
    loss, reference = softmax_multibox_loss(found, truth, ignored), ranked_twice(expected, truth, ignored)
    (loss + reference).backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    assert found.grad is not None
    assert expected.grad is not None
    assert torch.equal(found.grad, expected.grad)


def test_quality_focal_loss_by_hand() -> None:
    # Background and two classes with probabilities 0.2, 0.9, 0.3; the truth is the first class with an IoU of 0.6.
    logits = torch.logit(torch.tensor([[[0.2, 0.9, 0.3]]]))
    truth = classes([1])
    # A column costs |y - p|² · -(y ln p + (1 - y) ln(1 - p)); where y is 0, that is p² · -ln(1 - p).
    expected = (
        (0.9 - 0.6) ** 2 * -(0.6 * math.log(0.9) + 0.4 * math.log(0.1))
        + 0.3**2 * -math.log(0.7)
        + 0.2**2 * -math.log(0.8)
    )
    assert QUALITY_BETA == 2.0
    loss = quality_focal_loss(logits, truth, torch.tensor([[0.6]]), none_ignored(truth))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_score_that_is_its_boxs_iou_costs_nothing() -> None:
    logits = torch.tensor([[[-30.0, math.log(0.6 / 0.4)]]], requires_grad=True)
    truth = classes([1])
    loss = quality_focal_loss(logits, truth, torch.tensor([[0.6]]), none_ignored(truth))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_ignored_anchors_count_for_nothing_in_quality_focal_loss() -> None:
    truth = classes([1, 0])
    ignored = torch.ones_like(truth, dtype=torch.bool)
    assert quality_focal_loss(torch.randn(1, 2, 3), truth, torch.tensor([[0.6, 0.0]]), ignored).item() == 0


def test_paired_iou_is_the_diagonal_of_torchvisions() -> None:
    torch.manual_seed(0)
    corners = torch.rand(2, 50, 2) * 50
    boxes, others = torch.cat([corners, corners + torch.rand(2, 50, 2) * 60 + 1], dim=2)
    assert torch.allclose(paired_iou(boxes, others), box_iou(boxes, others).diagonal())
    # Half over: 50 / 150. Apart: 0.
    found = paired_iou(torch.tensor([[0.0, 0, 10, 10]] * 2), torch.tensor([[5.0, 0, 15, 10], [20, 0, 30, 10]]))
    assert found.tolist() == pytest.approx([1 / 3, 0])
