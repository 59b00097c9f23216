"""SSD's losses by hand, term by term."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mnet_det.models.losses import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    MIN_NEGATIVES,
    focal_loss,
    giou_loss,
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
