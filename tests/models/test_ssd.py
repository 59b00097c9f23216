"""SSD and SSDLite as `build_detector` makes them: candidates, losses, gradients, and the papers' parameter counts."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd as torchvisions
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from mnet_det.config import ModelConfig
from mnet_det.models import build_detector
from mnet_det.models.layers import ConvBNAct
from mnet_det.models.matching import match_anchors
from mnet_det.models.ssd import SSD
from mnet_det.structures import Target

K = 3
SMALL = {"alpha": 0.25, "base_hw": (96, 128)}
HEADS = ["ssd", "ssdlite"]
CLASS_LOSSES = ["softmax", "focal", "quality_focal"]


def detector(*, num_classes: int = K, **settings: object) -> SSD:
    torch.manual_seed(0)
    ssd = build_detector(ModelConfig.model_validate(SMALL | settings), num_classes=num_classes)
    assert isinstance(ssd, SSD)
    return ssd


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
        logits, _, _ = ssd.predict(pictures())  # the background column exists only in the head
        scores = ssd(pictures()).scores
    background = logits.softmax(dim=-1)[..., 0]
    assert torch.allclose(scores.sum(dim=-1) + background, torch.ones(2, scores.shape[1]), atol=1e-5)
    assert background.min() > 0


@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
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


LOSSES = list(itertools.product(HEADS, CLASS_LOSSES, ["smooth_l1", "giou"]))


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
@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
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


@pytest.mark.parametrize(("head", "class_loss"), [("ssd", "focal"), ("ssdlite", "focal"), ("ssd", "quality_focal")])
def test_sigmoids_start_from_the_prior(head: str, class_loss: str) -> None:
    scores = detector(head=head, class_loss=class_loss, num_classes=20).train()(pictures(8)).scores
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
            for parameter in predictors.parameters():
                parameter += torch.randn_like(parameter) * 0.3
        found = ssd.losses(pictures(), truth)
        logits, deltas, anchors = ssd.predict(pictures())
    theirs = torchvisions.SSD(nn.Identity(), DefaultBoxGenerator([[2]]), (96, 128), K + 1, head=nn.Identity())
    expected = theirs.compute_loss(
        [{"boxes": one.boxes_xyxy, "labels": one.labels + 1} for one in truth],
        {"cls_logits": logits, "bbox_regression": deltas},
        [anchors, anchors],
        list(match_anchors(anchors, truth)),
    )
    assert found["class"].item() == pytest.approx(expected["classification"].item(), rel=1e-4)
    assert found["box"].item() == pytest.approx(expected["bbox_regression"].item(), rel=1e-4)
    assert found["box"] > 0


def test_the_lowest_layer_can_have_six_anchors_a_cell() -> None:
    boxes_xyxy, scores = detector(reduce_boxes_in_lowest_layer=False).eval()(pictures())
    # As above, with 48 × 6 on the first map and not 48 × 3: 258 + 144.
    assert boxes_xyxy.shape == (2, 402, 1, 4)
    assert scores.shape == (2, 402, K)


def gradients(ssd: SSD) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in ssd.named_parameters() if parameter.grad is not None}
    ssd.zero_grad()
    return {name: gradient.clone() for name, gradient in found.items()}


def spread(ssd: SSD) -> SSD:
    """Predictions that differ, so that the choice of hard negatives and every gradient says something."""
    with torch.no_grad():
        for predictors in (ssd.class_predictors, ssd.box_predictors):
            for parameter in predictors.parameters():
                parameter += torch.randn_like(parameter) * 0.05
    return ssd


@pytest.mark.parametrize(
    ("class_loss", "box_loss"), [("softmax", "smooth_l1"), ("focal", "smooth_l1"), ("quality_focal", "giou")]
)
def test_parts_that_share_a_normalizer_learn_what_the_whole_batch_does(class_loss: str, box_loss: str) -> None:
    """Divided by its own matched anchors, a part with few boxes weighed as much as one with many."""
    ssd = spread(detector(class_loss=class_loss, box_loss=box_loss)).eval().double()
    images, truth = pictures(3), [*targets(), target()]
    whole = ssd.losses(images, truth)
    sum(whole.values()).backward()  # type: ignore[union-attr]
    expected = gradients(ssd)
    total = ssd.normalizer(truth, image_hw=(96, 128))
    parts = [slice(0, 1), slice(1, 3)]
    assert total == sum(ssd.normalizer(truth[part], image_hw=(96, 128)) for part in parts)
    sums = dict.fromkeys(whole, 0.0)
    for part in parts:
        losses = ssd.losses(images[part], truth[part], normalizer=total)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        sums = {name: value + losses[name].item() for name, value in sums.items()}
    assert sums == pytest.approx({name: value.item() for name, value in whole.items()}, rel=1e-6)
    for name, gradient in gradients(ssd).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-6, atol=1e-6 * expected[name].abs().max().item()), name


def test_the_normalizer_counts_matched_anchors_and_may_be_0() -> None:
    ssd = detector().eval()
    matched = match_anchors(ssd.anchors_for((96, 128)), targets())
    found = ssd.normalizer(targets(), image_hw=(96, 128))
    assert found.dtype == torch.float32
    assert found.item() == (matched >= 0).sum().item() > 0
    assert ssd.normalizer([target()], image_hw=(96, 128)).item() == 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "ssdlite", "padding": "same", "base_hw": (100, 75)},
        {"backbone": "squeezenet", "alpha": 1.0, "base_hw": (75, 101)},  # pools without padding: 18 cells, not 19
    ],
    ids=["ssd", "same padding", "no padding"],
)
def test_anchors_are_known_before_any_image(settings: dict[str, object]) -> None:
    ssd = detector(**settings).eval()
    height, width = ModelConfig.model_validate(SMALL | settings).input_hw
    anchors = ssd.anchors_for((height, width))
    with torch.inference_mode():
        assert torch.equal(anchors, ssd.predict(torch.zeros(1, 3, height, width, dtype=torch.uint8)).anchors)


def test_asking_for_anchors_leaves_no_trace() -> None:
    """Not in batch norm's statistics, not in the random numbers, and not in a stem that was frozen by itself."""
    ssd = detector().train()
    ssd.backbone.get_submodule("stem").eval()
    modes = {name: module.training for name, module in ssd.named_modules()}
    state, random = copy.deepcopy(ssd.state_dict()), torch.get_rng_state()
    ssd.anchors_for((96, 128))
    assert {name: module.training for name, module in ssd.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert ssd.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ssd.state_dict().items())
    for same in (copy.deepcopy(ssd), pickle.loads(pickle.dumps(ssd))):
        assert torch.equal(same.anchors_for((96, 128)), ssd.anchors_for((96, 128)))


def test_anchors_that_were_first_asked_for_without_gradients_serve_training() -> None:
    """A tensor that is made in inference mode cannot take part in a backward pass."""
    ssd = detector(box_loss="giou").train()
    with torch.inference_mode():
        ssd.anchors_for((96, 128))
        ssd.losses(pictures(), targets())
    losses = ssd.losses(pictures(), targets(), normalizer=ssd.normalizer(targets(), image_hw=(96, 128)))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert gradients(ssd)


def test_the_quality_of_a_box_is_no_reason_to_move_it() -> None:
    """The score follows the box's IoU; were the IoU not a constant, a box could get worse to suit its score."""
    ssd = detector(class_loss="quality_focal").eval()
    raw = ssd.predict(pictures())
    deltas = raw.deltas.detach().requires_grad_()
    losses = ssd.losses_of(raw._replace(deltas=deltas), targets())
    losses["class"].backward(retain_graph=True)
    assert deltas.grad is None
    losses["box"].backward()
    assert deltas.grad is not None


def test_quality_focal_loss_wants_the_iou_of_each_matched_box_and_nothing_elsewhere() -> None:
    ssd = detector(class_loss="quality_focal").eval()
    truth = targets()
    raw = ssd.predict(pictures())
    matched = match_anchors(raw.anchors, truth)
    deltas = raw.deltas.detach().clone()
    wanted = torch.zeros_like(raw.logits)
    for image, anchor in (matched >= 0).nonzero().tolist():
        box = int(matched[image, anchor])
        deltas[image, anchor] = ssd.box_coder.encode(raw.anchors[anchor], truth[image].boxes_xyxy[box])
        wanted[image, anchor, int(truth[image].labels[box]) + 1] = 1
    # Every box sits on its true one, so that the IoU is 1, and logits of ±20 say just that.
    perfect = raw._replace(deltas=deltas, logits=40 * wanted - 20)
    losses = ssd.losses_of(perfect, truth)
    assert losses["class"].item() == pytest.approx(0, abs=1e-5)
    assert losses["box"].item() == pytest.approx(0, abs=1e-5)
    shifted = deltas + deltas.new_tensor([3.0, 0, 0, 0])  # by 0.3 of the anchor's width
    assert ssd.losses_of(perfect._replace(deltas=shifted), truth)["class"] > 0.1
