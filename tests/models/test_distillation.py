"""What a teacher adds to the losses: by hand, term by term, and nothing where the student knows it all."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.models import build_detector
from mnet_det.models.distillation import (
    MIN_FOREGROUND,
    box_distillation,
    distillation_losses,
    sigmoid_distillation,
    softmax_distillation,
)
from mnet_det.models.ssd import SSD
from mnet_det.structures import Target

HW = (64, 96)
TERMS = ["distill_class", "distill_box"]


def detector(class_loss: str, *, seed: int, alpha: float = 0.1) -> SSD:
    torch.manual_seed(seed)
    ssd = build_detector(ModelConfig(alpha=alpha, base_hw=HW, class_loss=class_loss), num_classes=3)  # type: ignore[arg-type]
    assert isinstance(ssd, SSD)
    with torch.no_grad():  # scores on both sides of MIN_FOREGROUND, and boxes of their own
        for predictors in (ssd.class_predictors, ssd.box_predictors):
            for parameter in predictors.parameters():
                parameter += torch.randn_like(parameter) * 0.3
        for predictor in ssd.class_predictors:
            if class_loss == "softmax":
                predictor.bias.view(-1, 4)[:, 0] += 3  # type: ignore[operator, union-attr]
            else:
                predictor.bias.view(-1, 4)[:, 1:] += 2  # type: ignore[operator, union-attr]
    return ssd.eval()


def pictures(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, *HW), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def targets() -> list[Target]:
    boxes = [torch.tensor([[4.0, 4, 40, 50], [30, 20, 90, 60]]), torch.tensor([[10.0, 30, 30, 60]])]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    return [Target(b, n, torch.zeros(0, 4), HW) for b, n in zip(boxes, labels, strict=True)]


def test_softmax_distillation_by_hand() -> None:
    taught = torch.tensor([[[0.5, 0.25, 0.25], [0.9, 0.1, 0.0]]])
    found = torch.tensor([[[0.25, 0.5, 0.25], [0.9, 0.1, 0.0]]])
    # KL is 1/2 ln 2 + 1/4 ln 1/2 = 1/4 ln 2, of which the teacher's foreground is a half; the second anchors agree.
    loss = softmax_distillation(found.clamp(min=1e-9).log(), taught.clamp(min=1e-9).log())
    assert loss.item() == pytest.approx(0.5 * 0.25 * math.log(2), rel=1e-5)


def test_sigmoid_distillation_by_hand() -> None:
    taught, found = torch.tensor([[[0.7, 0.8, 0.1]]]), torch.tensor([[[0.1, 0.6, 0.1]]])
    # (0.8 - 0.6)² · -(0.8 ln 0.6 + 0.2 ln 0.4); the last column agrees, and the first is the background's.
    expected = 0.2**2 * -(0.8 * math.log(0.6) + 0.2 * math.log(0.4))
    assert sigmoid_distillation(found.logit(), taught.logit()).item() == pytest.approx(expected, rel=1e-4)


def test_box_distillation_by_hand() -> None:
    taught = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    found = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10]])
    # 1 - GIoU is 0, 2/3 and 4/3 (see test_giou_by_hand), of which the teacher sees so much.
    loss = box_distillation(found, taught, torch.tensor([1.0, 0.5, 0.25]))
    assert loss.item() == pytest.approx(0.5 * 2 / 3 + 0.25 * 4 / 3, rel=1e-5)


@pytest.mark.parametrize("class_loss", ["softmax", "focal", "quality_focal"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(class_loss: str) -> None:
    teacher = detector(class_loss, seed=0)
    student = copy.deepcopy(teacher)
    losses = distillation_losses(student, teacher, pictures(), targets())
    for name in TERMS:
        assert losses[name].item() == pytest.approx(0, abs=1e-4)
        student.zero_grad()
        losses[name].backward(retain_graph=True)
        for parameter in student.parameters():
            assert parameter.grad is None or parameter.grad.abs().max() < 1e-4


@pytest.mark.parametrize("class_loss", ["softmax", "focal"])
def test_a_teacher_gets_no_gradient_and_the_student_its_own_losses_too(class_loss: str) -> None:
    teacher, student = detector(class_loss, seed=0, alpha=0.25), detector(class_loss, seed=1)
    losses = distillation_losses(student, teacher, pictures(), targets())
    own = student.losses(pictures(), targets())
    assert list(losses) == [*own, *TERMS]
    for name, value in own.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5)
    for name in TERMS:
        assert losses[name] > 0, name
        losses[name].backward(retain_graph=True)
        layer = student.class_predictors if name == "distill_class" else student.box_predictors
        assert all(parameter.grad is not None for parameter in layer.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_every_term_is_divided_by_the_normalizer_and_times_its_weight() -> None:
    teacher, student = detector("softmax", seed=0), detector("softmax", seed=1)
    once = distillation_losses(student, teacher, pictures(), targets(), normalizer=torch.tensor(10.0))
    twice = distillation_losses(
        student, teacher, pictures(), targets(), normalizer=torch.tensor(20.0), class_weight=6.0, box_weight=0.0
    )
    # Halves, times the weights.
    expected = {"class": 0.5, "box": 0.5, "distill_class": 3.0, "distill_box": 0.0}
    for name, factor in expected.items():
        assert twice[name].item() == pytest.approx(factor * once[name].item(), rel=1e-5)


def test_parts_that_share_a_normalizer_add_up_to_the_whole_batch() -> None:
    teacher, student = detector("quality_focal", seed=0), detector("quality_focal", seed=1)
    whole = distillation_losses(student, teacher, pictures(), targets())
    total = student.normalizer(targets(), image_hw=HW)
    parts = [
        distillation_losses(student, teacher, pictures()[one], targets()[one], normalizer=total)
        for one in (slice(0, 1), slice(1, 2))
    ]
    for name, value in whole.items():
        assert sum(part[name].item() for part in parts) == pytest.approx(value.item(), rel=1e-5)


def test_boxes_are_taught_where_the_teacher_sees_something_and_nowhere_else() -> None:
    teacher, student = detector("softmax", seed=0), detector("softmax", seed=1)
    foreground = 1 - teacher.predict(pictures()).logits.softmax(dim=-1)[..., 0]
    seen = foreground >= MIN_FOREGROUND
    assert seen.any()
    assert not seen.all()
    raw = student.predict(pictures())
    deltas = raw.deltas.detach().requires_grad_()
    student.predict = lambda images: raw._replace(deltas=deltas)  # type: ignore[method-assign]
    distillation_losses(student, teacher, pictures(), targets())["distill_box"].backward()
    assert deltas.grad is not None
    assert torch.equal(deltas.grad.abs().sum(dim=-1) > 0, seen)


def test_a_teacher_that_sees_nothing_teaches_no_box() -> None:
    teacher, student = detector("focal", seed=0), detector("focal", seed=1)
    with torch.no_grad():
        for predictor in teacher.class_predictors:
            predictor.bias -= 30  # type: ignore[operator, union-attr]
    losses = distillation_losses(student, teacher, pictures(), targets())
    losses["distill_box"].backward()
    assert losses["distill_box"].item() == 0
