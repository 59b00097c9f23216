"""SSD and SSDLite as `build_detector` makes them: candidates, losses, gradients, and the papers' parameter counts."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd as torchvisions
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from mnet_det.config import ModelConfig
from mnet_det.models import build_detector
from mnet_det.models.detector import Detector
from mnet_det.models.layers import ConvBNAct
from mnet_det.models.matching import match_anchors
from mnet_det.structures import Target

K = 3
SMALL = {"alpha": 0.25, "base_hw": (96, 128)}
HEADS = ["ssd", "ssdlite"]


def detector(*, num_classes: int = K, **settings: object) -> Detector:
    torch.manual_seed(0)
    return build_detector(ModelConfig.model_validate(SMALL | settings), num_classes=num_classes)


def pictures(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 96, 128), dtype=torch.uint8, generator=generator)


def target(*boxes_and_labels: tuple[float, float, float, float, int], crowd: tuple[float, ...] = ()) -> Target:
    rows = torch.tensor(boxes_and_labels, dtype=torch.float32).reshape(-1, 5)
    return Target(rows[:, :4], rows[:, 4].long(), torch.tensor(crowd).reshape(-1, 4), (96, 128))


def targets() -> list[Target]:
    return [target((10, 10, 60, 50, 0), (30, 20, 120, 90, K - 1)), target((5, 60, 40, 90, 1))]


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_candidates_have_one_box_and_k_scores_an_anchor(head: str) -> None:
    boxes_xyxy, scores = detector(head=head).eval()(pictures())
    # Maps of 96×128: 6×8 at stride 16, 3×4 at 32, then 2×2 and three of 1×1: 48 × 3 + (12 + 4 + 1 + 1 + 1) × 6 = 258.
    # (2×2 halves to 1×1, and 1×1 stays 1×1.)
    assert boxes_xyxy.shape == (2, 258, 1, 4)
    assert scores.shape == (2, 258, K)
    assert boxes_xyxy.dtype == scores.dtype == torch.float32


def test_300_pixels_give_1917_candidates() -> None:
    boxes_xyxy, _ = detector(base_hw=(300, 300)).eval()(torch.zeros(1, 3, 300, 300, dtype=torch.uint8))
    assert boxes_xyxy.shape[1] == 1917


def test_softmax_scores_and_background_sum_to_1() -> None:
    ssd = detector().eval()
    with torch.inference_mode():
        logits, _, _ = ssd._predict(pictures())  # type: ignore[operator]  # the background column exists only in the head
        scores = ssd(pictures()).scores
    background = logits.softmax(dim=-1)[..., 0]
    assert torch.allclose(scores.sum(dim=-1) + background, torch.ones(2, scores.shape[1]), atol=1e-5)
    assert background.min() > 0


@pytest.mark.parametrize("class_loss", ["softmax", "focal"])
def test_a_score_column_is_its_labels_class(class_loss: str) -> None:
    ssd = detector(class_loss=class_loss).eval()
    label = 1
    for predictor in ssd.class_predictors:  # type: ignore[union-attr]
        predictor.bias.data.view(-1, K + 1)[:, label + 1] += 20
    assert (ssd(pictures()).scores.argmax(dim=-1) == label).all()


@pytest.mark.parametrize("head", HEADS)
def test_a_predictor_output_belongs_to_the_anchor_it_was_trained_for(head: str) -> None:
    """Raising one cell's and one anchor's output in the first map must move that anchor's score, and no other."""
    ssd = detector(head=head).eval()
    row, column, anchor, label = 4, 5, 2, 0
    with torch.inference_mode():
        before = ssd(pictures(1)).scores[0]
        predictor = ssd.class_predictors[0]  # type: ignore[index]

        def raise_one(_: nn.Module, __: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, anchor * (K + 1) + label + 1, row, column] += 5
            return output

        predictor.register_forward_hook(raise_one)
        changed = (ssd(pictures(1)).scores[0] != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [(row * 8 + column) * 3 + anchor]


LOSSES = list(itertools.product(HEADS, ["softmax", "focal"], ["smooth_l1", "giou"]))


@pytest.mark.parametrize(("head", "class_loss", "box_loss"), LOSSES, ids=map("-".join, LOSSES))
def test_every_parameter_gets_a_finite_gradient(head: str, class_loss: str, box_loss: str) -> None:
    ssd = detector(head=head, class_loss=class_loss, box_loss=box_loss).train()
    # Boxes on every map, else a box predictor has nothing to learn: sides of 0.1, 0.35, 0.5, 0.65, 0.8, 0.95 of 96.
    sides = [96 * scale for scale in (0.1, 0.35, 0.5, 0.65, 0.8, 0.95)]
    truth = target(*((64 - side / 2, 48 - side / 2, 64 + side / 2, 48 + side / 2, 0) for side in sides))
    losses = ssd.losses(pictures(), [truth, truth])
    assert list(losses) == ["class", "box"]
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for name, parameter in ssd.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
@pytest.mark.parametrize("class_loss", ["softmax", "focal"])
def test_losses_of_images_without_boxes_are_finite(class_loss: str, box_loss: str) -> None:
    ssd = detector(class_loss=class_loss, box_loss=box_loss).train()
    losses = ssd.losses(pictures(), [target(), target(crowd=(0.0, 0.0, 50.0, 50.0))])
    assert losses["class"] > 0
    assert losses["box"] == 0
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in ssd.parameters() if p.grad is not None)


def test_crowds_take_their_anchors_out_of_the_loss() -> None:
    ssd = detector(class_loss="focal").eval()
    everywhere = (-1000.0, -1000.0, 1000.0, 1000.0)
    assert ssd.losses(pictures(1), [target(crowd=everywhere)])["class"] == 0


def test_losses_are_divided_by_the_matched_anchors() -> None:
    ssd = detector().eval()
    once = ssd.losses(pictures(1), targets()[:1])
    twice = ssd.losses(pictures(1).repeat(2, 1, 1, 1), targets()[:1] * 2)
    for name, value in once.items():
        assert twice[name].item() == pytest.approx(value.item(), rel=1e-4)


def test_box_weight_scales_the_box_loss_alone() -> None:
    plain, heavy = (detector(box_weight=weight).eval().losses(pictures(), targets()) for weight in (1.0, 3.0))
    assert heavy["box"].item() == pytest.approx(3 * plain["box"].item(), rel=1e-5)
    assert heavy["class"].item() == plain["class"].item()


def test_what_comes_back_depends_on_the_verb_and_not_on_training() -> None:
    ssd = detector()
    for module in ssd.modules():
        if isinstance(module, ConvBNAct):  # batch norm is the one layer that may look at the flag
            module.bn = nn.Identity()  # type: ignore[assignment]
    results = []
    for training in (True, False):
        ssd.train(training)
        results.append((ssd(pictures()), ssd.losses(pictures(), targets())))
    (train_candidates, train_losses), (eval_candidates, eval_losses) = results
    assert all(map(torch.equal, train_candidates, eval_candidates))
    assert train_losses == eval_losses


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_equals_its_singles(head: str) -> None:
    ssd = detector(head=head).eval()
    with torch.inference_mode():
        together = ssd(pictures(3))
        singles = [ssd(picture[None]) for picture in pictures(3)]
    for index, single in enumerate(singles):
        assert torch.allclose(together.boxes_xyxy[index], single.boxes_xyxy[0], atol=1e-3)
        assert torch.allclose(together.scores[index], single.scores[0], atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_focal_loss_starts_from_the_prior(head: str) -> None:
    scores = detector(head=head, class_loss="focal", num_classes=20).train()(pictures(8)).scores
    assert scores.mean().item() == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize(
    ("settings", "num_classes", "millions"),
    [
        # Sandler et al. 2018, Table 6: "MNet V1 + SSDLite 5.1M".
        ({"head": "ssdlite"}, 80, 5.1),
        # Howard et al. 2017, Table 13: 6.8 M, which fits the 90 ids of TensorFlow's label map; COCO has 80 classes.
        ({"head": "ssd"}, 90, 6.82),
        ({"head": "ssd"}, 80, 6.67),
    ],
    ids=["ssdlite", "ssd with 90 ids", "ssd"],
)
def test_parameters_are_those_of_the_papers(settings: dict[str, str], num_classes: int, millions: float) -> None:
    with torch.device("meta"):
        ssd = detector(alpha=1.0, num_classes=num_classes, **settings)
    assert count_params(ssd) / 1e6 == pytest.approx(millions, abs=0.005 if millions > 6 else 0.05)


@pytest.mark.parametrize("head", HEADS)
def test_extra_maps_keep_16_channels_at_any_width(head: str) -> None:
    ssd = detector(head=head, alpha=0.1).eval()
    convolutions = [module for module in ssd.extras.modules() if isinstance(module, nn.Conv2d)]  # type: ignore[union-attr]
    # At 0.1 the maps want 51, 25, 25, 12 channels and the convolutions before them 25, 12, 12, 6.
    assert min(convolution.out_channels for convolution in convolutions) == 16
    assert convolutions[0].out_channels == 25


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("head", HEADS)
def test_smallest_input_works(head: str, padding: str) -> None:
    ssd = detector(head=head, padding=padding, base_hw=(32, 32)).eval()
    boxes_xyxy, _ = ssd(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    # Maps of 2×2 and five of 1×1: 4 × 3 + 5 × 6 = 42.
    assert boxes_xyxy.shape[1] == 42


def test_ssdlite_has_no_full_3x3_convolution_but_the_stem() -> None:
    full = [
        name
        for name, module in detector(head="ssdlite").named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.groups == 1
    ]
    assert full == ["backbone.stem.conv"]


def test_a_detector_can_be_pickled() -> None:
    """The anchors' cache could not be, so no detector could go to a spawned process."""
    ssd = detector().eval()
    same = pickle.loads(pickle.dumps(ssd))
    assert torch.equal(same(pictures()).scores, ssd(pictures()).scores)


@pytest.mark.parametrize("images", ["all with boxes", "one without"])
@pytest.mark.parametrize("head", HEADS)
def test_losses_are_torchvisions_on_the_same_matches(head: str, images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision takes no negatives from an image without boxes, and we take MIN_NEGATIVES: those are set to 0."""
    ssd = detector(head=head).eval()
    truth = targets()
    if images == "one without":
        monkeypatch.setattr("mnet_det.models.losses.MIN_NEGATIVES", 0)
        truth[1] = target()
    with torch.no_grad():
        for predictors in (ssd.class_predictors, ssd.box_predictors):  # so that no two negatives cost the same
            for parameter in predictors.parameters():  # type: ignore[union-attr]
                parameter += torch.randn_like(parameter) * 0.3
        found = ssd.losses(pictures(), truth)
        logits, deltas, anchors = ssd._predict(pictures())  # type: ignore[operator]
    theirs = torchvisions.SSD(nn.Identity(), DefaultBoxGenerator([[2]]), (96, 128), K + 1, head=nn.Identity())
    expected = theirs.compute_loss(
        [{"boxes": one.boxes_xyxy, "labels": one.labels + 1} for one in truth],
        {"cls_logits": logits, "bbox_regression": deltas},
        [anchors, anchors],
        [match_anchors(anchors, one) for one in truth],
    )
    assert found["class"].item() == pytest.approx(expected["classification"].item(), rel=1e-4)
    assert found["box"].item() == pytest.approx(expected["bbox_regression"].item(), rel=1e-4)
    assert found["box"] > 0


def test_the_lowest_layer_can_have_six_anchors_a_cell() -> None:
    boxes_xyxy, scores = detector(reduce_boxes_in_lowest_layer=False).eval()(pictures())
    # As above, with 48 × 6 on the first map and not 48 × 3: 258 + 144.
    assert boxes_xyxy.shape == (2, 402, 1, 4)
    assert scores.shape == (2, 402, K)
