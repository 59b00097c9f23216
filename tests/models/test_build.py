"""Config to network: every head on every backbone learns, and what cannot be built is refused with what to do."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from mnet_det.config import BACKBONES, load_config
from mnet_det.errors import ConfigError, MissingPackageError
from mnet_det.models import build_classifier, build_detector
from mnet_det.models.detector import Detector
from mnet_det.structures import Candidates, Target

SMALL = (
    "model.base_hw=[96,96]",
    "model.anchor_sizes=[16,48]",
    "model.proposals=8",
    "model.train_proposals=16",
    "model.roi_samples=4",
)
WIDTHS = {
    "mobilenet_v1": 0.25,
    "mobilenet_v2": 0.35,
    "mobilenet_v3_large": 0.35,
    "mobilenet_v3_small": 0.5,
    "inception_v2": 0.25,
}
TIMM = ("timm:mobilenetv4_conv_small", "timm:resnet18")


def build(backbone: str, *words: str) -> Detector:
    alpha = f"model.alpha={WIDTHS.get(backbone, 1)}"
    config = load_config(None, [*SMALL, f"model.backbone={backbone}", alpha, *words])
    torch.manual_seed(0)
    return build_detector(config.model, num_classes=3)


def one_object_and_none() -> tuple[torch.Tensor, list[Target]]:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    boxes = [torch.tensor([[10.0, 10, 50, 60], [60, 5, 90, 40]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)]
    return images, [Target(b, n, torch.zeros(0, 4), (96, 96)) for b, n in zip(boxes, labels, strict=True)]


HEADS = {
    "ssd": ("model.head=ssd",),
    "ssdlite": ("model.head=ssdlite",),
    "paper": ("model.head=faster_rcnn",),
    "pyramid": ("model.head=faster_rcnn", "model.fpn=true"),
}


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        *((backbone, head) for backbone in (*BACKBONES, TIMM[0]) for head in ("ssd", "paper")),
        *((backbone, "ssdlite") for backbone in ("mobilenet_v2", "mobilenet_v3_large", "squeezenet", TIMM[1])),
        *((backbone, "pyramid") for backbone in ("mobilenet_v2", "mobilenet_v3_small", "vgg16", TIMM[1])),
    ],
)
def test_one_step_is_finite_and_reaches_every_parameter(backbone: str, head: str) -> None:
    detector = build(backbone, *HEADS[head]).train()
    losses = detector.losses(*one_object_and_none())
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    assert all(loss > 0 for loss in losses.values())
    total.backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("backbone", [*BACKBONES, *TIMM])
def test_both_kinds_of_head_detect_on_every_backbone(backbone: str) -> None:
    images, _ = one_object_and_none()
    for head, candidates in (("ssdlite", None), ("pyramid", 8)):
        detector = build(backbone, *HEADS[head]).eval()
        with torch.inference_mode():
            found = detector(images)
        assert isinstance(found, Candidates)
        assert found.scores.shape[::2] == (2, 3)
        assert candidates in (None, found.scores.shape[1])
        assert torch.isfinite(found.boxes_xyxy).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.taps=[14]"], r"model.taps: mobilenet_v1 has no 14; it has 1 \(stride 2\), 2 \(stride 4\)"),
        (["model.taps=[13,11]"], r"model.taps: got \['13', '11'\], expected places in the order of mobilenet_v1"),
        (["model.taps=[11]"], "11 of mobilenet_v1 are maps of stride 16; the head ssd needs two or more"),
        (["model.taps=[7,11]"], "7, 11 of mobilenet_v1 are maps of stride 16, 16"),
        (["model.head=faster_rcnn", "model.taps=[5,11]"], "without model.fpn looks at one map, not 2"),
        (
            ["model.head=faster_rcnn", "model.taps=[13]"],
            "13 is the last .* leaves none for the second stage; unless set, it is 11",
        ),
        (
            ["model.backbone=inception_v2", "model.head=faster_rcnn", "model.taps=[Mixed_5c]"],
            "Mixed_5c is the last .* leaves none for the second stage; unless set, it is Mixed_4e",
        ),
        (["model.backbone=vgg16", "model.alpha=0.5"], "model.alpha: vgg16 comes in one width, set 1"),
        (["model.backbone=inception_v3", "model.rho=0.2"], "at least 75 pixels a side here, got 60x60"),
        (["model.backbone=timm:resnet81"], "timm has no 'resnet81'; did you mean resnet"),
        (["model.backbone=timm:hrnet_w18_small"], "cannot take an input of 300x300 .* need multiples of 32"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_to_do(words: list[str], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_detector(load_config(None, words).model, num_classes=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.backbone=mobilenet_v4"], "no such backbone; did you mean 'mobilenet_v2'"),
        (["model.backbone='timm:'"], "no such backbone; expected timm:NAME or one of mobilenet_v1"),
        (["model.fpn=true"], "fpn goes with head faster_rcnn, not with ssd"),
        (["model.head=faster_rcnn", "model.class_loss=focal"], "class_loss softmax and box_loss smooth_l1, got focal"),
        (["model.head=faster_rcnn", "model.class_loss=quality_focal"], "class_loss softmax .*, got quality_focal"),
        (["model.head=faster_rcnn", "model.anchor_sizes=[]"], "anchor_sizes"),
        (["model.backbone=vgg16", "model.shallow=true"], "shallow is for mobilenet_v1, vgg16 has no such choice"),
        (["model.reduced_tail=true"], "reduced_tail is for mobilenet_v3, mobilenet_v1 has no such choice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, words)


def test_without_timm_the_message_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"install.*timm"):
        build_detector(load_config(None, ["model.backbone=timm:resnet18"]).model, num_classes=3)


def test_a_classifier_stands_on_torchvisions_backbones_too() -> None:
    config = load_config(None, ["model.backbone=squeezenet"]).model
    with torch.device("meta"):
        classifier = build_classifier(config, num_classes=7)
        assert classifier(torch.zeros((1, 3, 64, 64), dtype=torch.uint8)).shape == (1, 7)
    with pytest.raises(ConfigError, match="info counts detectors on it"):
        build_classifier(load_config(None, ["model.backbone=timm:resnet18"]).model)


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v3_small", "timm:mobilenetv4_conv_small"])
def test_batch_norm_has_the_config_s_momentum_in_every_backbone(backbone: str) -> None:
    detector = build(backbone, "model.bn_momentum=0.125")
    assert {module.momentum for module in detector.modules() if isinstance(module, nn.BatchNorm2d)} == {0.125}
