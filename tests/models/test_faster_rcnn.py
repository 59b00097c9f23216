"""Faster R-CNN as `build_detector` makes it: torchvision's answers with torchvision's weights, and the contract."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn as torchvisions
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from mnet_det.config import ModelConfig
from mnet_det.models import build_detector, faster_rcnn, rpn
from mnet_det.models.faster_rcnn import CANONICAL_PX, FasterRCNN
from mnet_det.models.layers import ConvBNAct
from mnet_det.models.matching import match_anchors
from mnet_det.models.rpn import Proposals
from mnet_det.runtime.postprocess import Thresholds, postprocess_batch
from mnet_det.structures import Candidates, Target

K = 3
SMALL = {"head": "faster_rcnn", "alpha": 0.1, "base_hw": (64, 96), "anchor_sizes": (16, 32, 64)}
SMALL |= {"proposals": 12, "train_proposals": 40, "roi_samples": 16}
FORMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "shared boxes": {"shared_boxes": True},
    "fpn": {"fpn": True},
    "fpn, shared boxes": {"fpn": True, "shared_boxes": True},
}
all_forms = pytest.mark.parametrize("form", FORMS)
both_forms = pytest.mark.parametrize("form", ["paper", "fpn"])


@pytest.fixture(autouse=True)
def _slim_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, the pyramid's first fully connected layer alone has 13 million weights."""
    monkeypatch.setattr(faster_rcnn, "PYRAMID_CHANNELS", 16)
    monkeypatch.setattr(faster_rcnn, "HIDDEN_CHANNELS", 32)


def detector(form: str = "paper", **settings: object) -> FasterRCNN:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(SMALL | FORMS[form] | settings)
    built = build_detector(config, num_classes=K)
    assert isinstance(built, FasterRCNN)
    return built


def pictures(count: int = 2, hw: tuple[int, int] = (64, 96)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *hw), dtype=torch.uint8, generator=generator)


def target(
    *boxes_and_labels: tuple[float, float, float, float, int],
    crowd: tuple[float, ...] = (),
    valid_hw: tuple[int, int] = (64, 96),
) -> Target:
    rows = torch.tensor(boxes_and_labels, dtype=torch.float32).reshape(-1, 5)
    return Target(rows[:, :4], rows[:, 4].long(), torch.tensor(crowd).reshape(-1, 4), valid_hw)


def targets() -> list[Target]:
    return [target((10, 10, 40, 40, 0), (30, 20, 90, 60, K - 1)), target((5, 30, 25, 62, 1))]


def without_batch_norm(model: FasterRCNN) -> FasterRCNN:
    for module in model.modules():
        if isinstance(module, ConvBNAct):  # batch norm is the one layer that may look at `training`
            module.bn = nn.Identity()  # type: ignore[assignment]
    return model


def seeded_losses(model: FasterRCNN, *arguments: Any, seed: int = 3, **named: Any) -> dict[str, float]:
    torch.manual_seed(seed)
    return {name: loss.item() for name, loss in model.losses(*arguments, **named).items()}


# ---- torchvision's detector with the same weights ----

TWIN_HW = (288, 320)
SIZES = (48, 128, 320)


class Twins:
    """Our detector with a pyramid, and torchvision's on the same maps, with the same weights and anchors.

    The weights are random, and scaled so that scores spread over 0…1 and boxes leave their anchors.
    """

    def __init__(self, seed: int, *, pre_nms: int, proposals: int) -> None:
        torch.manual_seed(seed)
        config = ModelConfig.model_validate(
            SMALL | {"fpn": True, "base_hw": TWIN_HW, "proposals": proposals, "train_proposals": proposals}
        )
        ours = build_detector(config, num_classes=K).eval()
        assert isinstance(ours, FasterRCNN)
        self.ours = ours
        self.images = torch.randint(0, 256, (2, 3, *TWIN_HW), dtype=torch.uint8)
        self.image_list = ImageList(self.images, [TWIN_HW] * 2)
        with torch.no_grad():
            maps = ours._maps(self.images)
        self.features = {str(number): features for number, features in enumerate(maps)}
        backbone = nn.Identity()  # the maps are given
        channels, hidden = faster_rcnn.PYRAMID_CHANNELS, faster_rcnn.HIDDEN_CHANNELS
        backbone.out_channels = channels  # type: ignore[assignment]
        self.theirs = torchvisions.FasterRCNN(
            backbone,
            rpn_anchor_generator=AnchorGenerator((SIZES,) * 3, ((0.5, 1.0, 2.0),) * 3),
            rpn_pre_nms_top_n_train=pre_nms,
            rpn_pre_nms_top_n_test=pre_nms,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            rpn_batch_size_per_image=10**6,
            box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2, canonical_scale=int(CANONICAL_PX)),
            box_head=torchvisions.TwoMLPHead(channels * 49, hidden),
            box_predictor=torchvisions.FastRCNNPredictor(hidden, K + 1),
            box_batch_size_per_image=10**6,
        ).eval()
        self.anchors = self.theirs.rpn.anchor_generator(self.image_list, maps)[0]
        self._spread(maps)
        self._copy()

    @torch.no_grad()
    def _spread(self, maps: list[Tensor]) -> None:
        """Scale torchvision's random weights by what comes out of them."""
        region_head, hidden, predictor = (
            self.theirs.rpn.head,
            self.theirs.roi_heads.box_head,
            self.theirs.roi_heads.box_predictor,
        )
        features = region_head.conv(maps[0])
        scale(region_head.cls_logits, features, std=2)
        region_head.cls_logits.bias -= 4  # near 1, float32 has so few numbers that scores tie
        region_head.cls_logits.bias[2::3] += 1.5  # the largest anchors, whose regions come from the coarser map
        scale(region_head.bbox_pred, features, std=0.3)
        vectors = hidden(torch.randn(50, faster_rcnn.PYRAMID_CHANNELS, 7, 7) * maps[0].std())
        scale(predictor.cls_score, vectors, std=3)
        scale(predictor.bbox_pred, vectors, std=1.5)

    def _copy(self) -> None:
        theirs, ours = self.theirs, self.ours
        predictor = theirs.roi_heads.box_predictor
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (theirs.rpn.head.conv[0][0], ours.rpn.conv),
            (theirs.rpn.head.cls_logits, ours.rpn.objectness),
            (theirs.rpn.head.bbox_pred, ours.rpn.deltas),
            (theirs.roi_heads.box_head.fc6, ours.roi_hidden[1]),  # type: ignore[index]
            (theirs.roi_heads.box_head.fc7, ours.roi_hidden[3]),  # type: ignore[index]
            (predictor.cls_score, ours.roi_head.class_predictor),
        ]
        for source, copy in pairs:
            copy.load_state_dict(source.state_dict())
        # The background has a box there, which nobody reads.
        rows = {name: weights[4:] for name, weights in predictor.bbox_pred.state_dict().items()}
        ours.roi_head.box_predictor.load_state_dict(rows)
        ours.anchors = lambda map_hws, image_hw: self.anchors.numpy()  # type: ignore[assignment]


def scale(layer: nn.Conv2d | nn.Linear, features: Tensor, *, std: float) -> None:
    """Give what comes out a standard deviation."""
    layer.weight *= std / layer(features).std()


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Twins]:
    def build(seed: int, *, pre_nms: int, proposals: int) -> Twins:
        monkeypatch.setattr(rpn, "PRE_NMS", pre_nms)
        monkeypatch.setattr(rpn, "SAMPLES", 10**6)
        return Twins(seed, pre_nms=pre_nms, proposals=proposals)

    return build


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("pre_nms", "proposals"),
    [(1000, 100), (100, 60), (60, 1000)],
    ids=["filled", "filled, few to choose", "not filled"],
)
def test_proposals_and_detections_are_torchvisions(
    twins: Callable[..., Twins], seed: int, pre_nms: int, proposals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = twins(seed, pre_nms=pre_nms, proposals=proposals)
    seen: list[Proposals] = []
    propose = pair.ours.rpn.propose

    def watch(*arguments: Any, **named: Any) -> Proposals:
        seen.append(propose(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr(pair.ours.rpn, "propose", watch)
    with torch.inference_mode():
        candidates = pair.ours(pair.images)
        their_proposals, _ = pair.theirs.rpn(pair.image_list, pair.features)
        expected, _ = pair.theirs.roi_heads(pair.features, their_proposals, [TWIN_HW] * 2)
    slots = candidates.scores.shape[1]
    for boxes, valid, scores, image_expected in zip(*seen[0], candidates.scores, their_proposals, strict=True):
        assert (len(image_expected) == slots) == (proposals < 1000)  # as the case says
        assert valid.tolist() == [True] * len(image_expected) + [False] * (slots - len(image_expected))
        assert torch.allclose(boxes[valid], image_expected, rtol=0, atol=1e-4)
        assert (scores[~valid] == 0).all()
        areas = (image_expected[:, 2:] - image_expected[:, :2]).prod(dim=1)
        assert areas.min() < (2 * CANONICAL_PX) ** 2 < areas.max()  # both maps are asked for regions
    thresholds = Thresholds(score=0.05, nms=0.5, pre_nms=10**6, max_detections=100)
    detections = postprocess_batch(Candidates(*(part.numpy() for part in candidates)), thresholds)
    for found, image in zip(detections, expected, strict=True):
        assert len(found) > 5
        assert (found.labels + 1).tolist() == image["labels"].tolist()
        assert found.boxes_xyxy == pytest.approx(image["boxes"].numpy(), abs=1e-4)
        assert found.scores == pytest.approx(image["scores"].numpy(), abs=1e-4)
        assert len(set(found.labels.tolist())) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)], ids=["boxes", "one image without", "no boxes at all"])
def test_losses_are_torchvisions(
    twins: Callable[..., Twins], seed: int, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all anchors and all proposals in the samples, where both match alike, which is checked first."""
    pair = twins(seed, pre_nms=100, proposals=100)
    monkeypatch.setattr(pair.ours, "roi_samples", 10**6)
    inside = pair.anchors[(clip_boxes_to_image(pair.anchors, TWIN_HW) == pair.anchors).all(dim=1)]
    truth, named = [], []
    for count in counts:
        near = inside[torch.randperm(len(inside))[:count]]
        boxes = clip_boxes_to_image(near + torch.empty_like(near).uniform_(-5, 5), TWIN_HW)
        labels = torch.randint(0, K, (count,))
        truth.append(Target(boxes, labels, torch.zeros(0, 4), TWIN_HW))
        named.append({"boxes": boxes, "labels": labels + 1})
    matched = match_anchors(pair.anchors, truth, positive_iou=0.7, negative_iou=0.3)
    their_labels, _ = pair.theirs.rpn.assign_targets_to_anchors([pair.anchors] * 2, named)
    assert torch.equal(matched >= 0, torch.stack(their_labels) == 1)
    assert torch.equal(matched == -1, torch.stack(their_labels) == 0)
    pair.theirs.rpn.train()
    pair.theirs.roi_heads.train()
    their_proposals, first = pair.theirs.rpn(pair.image_list, pair.features, named)
    _, second = pair.theirs.roi_heads(
        pair.features, [boxes.detach() for boxes in their_proposals], [TWIN_HW] * 2, named
    )
    found = pair.ours.losses(pair.images, truth)
    for ours, theirs in [
        ("rpn_class", first["loss_objectness"]),
        ("rpn_box", first["loss_rpn_box_reg"]),
        ("class", second["loss_classifier"]),
        ("box", second["loss_box_reg"]),
    ]:
        assert found[ours].item() == pytest.approx(theirs.item(), rel=1e-3, abs=1e-6), ours
    assert (found["box"] > 0) == any(counts)


# ---- the contract ----


@all_forms
def test_candidates_are_as_many_as_proposals(form: str) -> None:
    boxes_xyxy, scores = detector(form).eval()(pictures())
    assert boxes_xyxy.shape == (2, 12, 1 if "shared" in form else K, 4)
    assert scores.shape == (2, 12, K)
    assert boxes_xyxy.dtype == scores.dtype == torch.float32
    assert (boxes_xyxy >= 0).all()
    assert (boxes_xyxy <= torch.tensor([96, 64, 96, 64])).all()


@both_forms
def test_leftover_slots_score_0(form: str) -> None:
    """Anchors of a cell overlap, so that not all survive."""
    model = detector(form, proposals=1000).eval()
    anchors = 4 * 6 * 9 + (form == "fpn") * (2 * 3 + 1 * 2) * 9  # maps of 64×96 at strides 16, 32 and 64
    scores = model(pictures()).scores
    used = (scores > 0).all(dim=2)
    assert scores.shape[1] == anchors
    assert (used | (scores == 0).all(dim=2)).all()
    assert (used.sum(dim=1) < anchors).all()
    for row in used:
        assert row.tolist() == sorted(row.tolist(), reverse=True)  # the used ones first


@both_forms
def test_a_batch_equals_its_singles(form: str) -> None:
    model = detector(form).eval()
    with torch.inference_mode():
        together = model(pictures(3))
        singles = [model(picture[None]) for picture in pictures(3)]
    for index, single in enumerate(singles):
        assert torch.allclose(together.boxes_xyxy[index], single.boxes_xyxy[0], atol=1e-3)
        assert torch.allclose(together.scores[index], single.scores[0], atol=1e-5)


@both_forms
def test_what_comes_back_depends_on_the_verb_and_not_on_training(form: str) -> None:
    model = without_batch_norm(detector(form))
    results = [
        (model(pictures()), seeded_losses(model, pictures(), targets()))
        for training in (True, False)
        if model.train(training)
    ]
    (train_candidates, train_losses), (eval_candidates, eval_losses) = results
    assert all(map(torch.equal, train_candidates, eval_candidates))
    assert train_losses == eval_losses


@pytest.mark.parametrize("hw", [(64, 64), (90, 75), (33, 100)], ids=str)
@both_forms
def test_any_input_size_works(form: str, hw: tuple[int, int]) -> None:
    model = detector(form).eval()
    boxes_xyxy, _ = model(pictures(1, hw))
    assert torch.isfinite(boxes_xyxy).all()
    assert (boxes_xyxy <= torch.tensor([hw[1], hw[0], hw[1], hw[0]])).all()
    losses = model.losses(pictures(1, hw), [target((2, 3, 30, 28, 0), valid_hw=hw)])
    assert all(torch.isfinite(loss) for loss in losses.values())


@both_forms
def test_a_score_column_is_its_labels_class(form: str) -> None:
    model = detector(form).eval()
    label = 1
    model.roi_head.class_predictor.bias.data[label + 1] += 20
    assert (model(pictures()).scores.argmax(dim=-1) == label).all()


def test_a_box_row_is_its_labels_box() -> None:
    model = detector(form="fpn").eval()
    before = model(pictures()).boxes_xyxy
    model.roi_head.box_predictor.bias.data[4 * 1 + 3] += 1
    changed = (model(pictures()).boxes_xyxy != before).any(dim=3).any(dim=1).any(dim=0)
    assert changed.tolist() == [False, True, False]


def test_a_detector_can_be_pickled() -> None:
    model = detector().eval()
    same = pickle.loads(pickle.dumps(model))
    assert torch.equal(same(pictures()).scores, model(pictures()).scores)


# ---- losses ----


@all_forms
def test_every_parameter_gets_a_finite_gradient(form: str) -> None:
    model = detector(form).train()
    losses = model.losses(pictures(), [targets()[0], target()])
    assert list(losses) == ["rpn_class", "rpn_box", "class", "box"]
    assert all(loss > 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("crowd", [(), (0.0, 0.0, 50.0, 50.0)], ids=["background", "a crowd"])
@all_forms
def test_losses_without_boxes_are_finite(form: str, crowd: tuple[float, ...]) -> None:
    model = detector(form).train()
    losses = model.losses(pictures(), [target(crowd=crowd)] * 2)
    assert losses["rpn_class"] > 0
    assert losses["class"] > 0
    assert losses["rpn_box"] == losses["box"] == 0
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@both_forms
def test_losses_follow_the_seed(form: str) -> None:
    model = detector(form).eval()
    first, again, other = (seeded_losses(model, pictures(), targets(), seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@both_forms
def test_what_lies_in_padding_is_not_learned(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_rpn` says the same of anchors; here are the regions of the second stage."""
    model = detector(form, roi_samples=10**6).eval()
    padded, whole = [target((10, 10, 40, 30, 0), valid_hw=(40, 70))], [target((10, 10, 40, 30, 0))]
    sampled = []
    pool = faster_rcnn.pool_regions

    def watch(maps: Any, boxes_xyxy: Tensor, *arguments: Any, **named: Any) -> Tensor:
        sampled.append((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2)
        return pool(maps, boxes_xyxy, *arguments, **named)

    monkeypatch.setattr(faster_rcnn, "pool_regions", watch)
    for truth in (padded, whole):
        model.losses(pictures(1), truth)
    in_padding = [((centres[:, 0] >= 70) | (centres[:, 1] >= 40)).sum() for centres in sampled]
    assert in_padding[0] == 0
    assert in_padding[1] > 0


@both_forms
def test_an_image_of_crowd_alone_costs_nothing_and_spoils_nothing(form: str) -> None:
    """No region is left for the second stage, and batch norm must bear it."""
    model = detector(form).train()
    losses = model.losses(pictures(1), [target(crowd=(-1000.0, -1000.0, 1000.0, 1000.0))])
    assert all(loss == 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None and (parameter.grad == 0).all() for parameter in model.parameters())
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


@both_forms
def test_proposals_are_not_learned_through_the_second_stage(form: str) -> None:
    model = detector(form).train()
    losses = model.losses(pictures(), targets())
    (losses["class"] + losses["box"]).backward()
    assert all(parameter.grad is None for parameter in model.rpn.parameters())


@both_forms
def test_box_weight_scales_the_box_losses_alone(form: str) -> None:
    plain, heavy = (
        seeded_losses(detector(form, box_weight=weight).eval(), pictures(), targets()) for weight in (1.0, 3.0)
    )
    assert heavy["rpn_box"] == pytest.approx(3 * plain["rpn_box"], rel=1e-5)
    assert heavy["box"] == pytest.approx(3 * plain["box"], rel=1e-5)
    assert (heavy["rpn_class"], heavy["class"]) == (plain["rpn_class"], plain["class"])


@both_forms
def test_the_normalizer_counts_images_and_is_what_losses_divide_by_unless_given_another(form: str) -> None:
    model = detector(form).eval()
    own = model.normalizer(targets(), image_hw=(64, 96))
    assert (own.dtype, own.shape, own.item()) == (torch.float32, (), 2)
    plain = seeded_losses(model, pictures(), targets())
    assert seeded_losses(model, pictures(), targets(), normalizer=own) == plain
    thirds = seeded_losses(model, pictures(), targets(), normalizer=torch.tensor(6.0))
    assert thirds == pytest.approx({name: loss / 3 for name, loss in plain.items()})


@both_forms
def test_parts_of_a_batch_add_up_to_the_whole_where_images_have_equal_samples(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here because the samples take in all: four images of one truth, and of each image as many proposals."""
    monkeypatch.setattr(rpn, "SAMPLES", 10**6)
    model = without_batch_norm(detector(form, roi_samples=10**6, train_proposals=10)).train()
    images, truths = pictures(4), targets()[:1] * 4
    total = model.normalizer(truths, image_hw=(64, 96))
    sums, gradients = [], []
    for sizes in ([4], [1, 3]):
        model.zero_grad()
        losses = [model.losses(part, truths[: len(part)], normalizer=total) for part in images.split(sizes)]
        torch.stack([loss for terms in losses for loss in terms.values()]).sum().backward()
        sums.append({name: sum(terms[name].item() for terms in losses) for name in losses[0]})
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(loss > 0 for loss in sums[0].values())
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    for name, gradient in gradients[0].items():
        assert torch.allclose(
            gradients[1][name], gradient, rtol=1e-3, atol=1e-6 + 1e-5 * float(gradient.abs().max())
        ), name


@both_forms
def test_each_image_has_a_sample_of_its_own(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = detector(form, roi_samples=8).eval()
    sampled = []
    sample = faster_rcnn.sample_regions

    def watch(*arguments: Any, **named: Any) -> Any:
        sampled.append(sample(*arguments, **named))
        return sampled[-1]

    monkeypatch.setattr(faster_rcnn, "sample_regions", watch)
    model.losses(pictures(), targets())
    (regions,) = sampled
    assert regions.image_index.bincount().tolist() == [8, 8]
    assert not regions.boxes_xyxy.requires_grad
    for image, truth in enumerate(targets()):
        classes = regions.classes[regions.image_index == image]
        assert 1 <= int((classes > 0).sum()) <= 2  # a quarter at most
        assert set(classes.tolist()) <= {0, *(truth.labels + 1).tolist()}
