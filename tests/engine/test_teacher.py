"""Which detectors may teach, and in what state they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mnet_det.config import Config, load_config
from mnet_det.engine.checkpoint import Checkpoint, save_checkpoint
from mnet_det.engine.teacher import open_teacher
from mnet_det.errors import CheckpointError, ConfigError
from mnet_det.models import build_classifier, build_detector

CPU = torch.device("cpu")


def config(*words: str) -> Config:
    return load_config(None, ["model.alpha=0.1", "model.base_hw=[64,64]", *words])


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return saved(tmp_path, "model.alpha=0.25")


def saved(folder: Path, *words: str, names: str = "abc") -> Path:
    torch.manual_seed(0)
    theirs = config(*words)
    weights = build_detector(theirs.model, num_classes=len(names)).state_dict()
    path = folder / "teacher.pt"
    save_checkpoint(path, Checkpoint(theirs, tuple(names), tuple(range(len(names))), weights))
    return path


def test_no_teacher_is_none() -> None:
    assert open_teacher(config(), "abc", CPU) is None


def test_a_teacher_comes_frozen_in_eval_mode_and_channels_last(teacher: Path) -> None:
    found = open_teacher(config(f"train.teacher={teacher}"), "abc", CPU)
    assert found is not None
    assert not any(module.training for module in found.modules())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    stem = found.get_parameter("backbone.stem.conv.weight")
    assert stem.is_contiguous(memory_format=torch.channels_last)
    assert found.backbone.alpha == 0.25


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("model.class_loss=focal",), ("model.class_loss=quality_focal",)),
        (("model.head=ssdlite", "model.backbone=mobilenet_v2", "model.alpha=0.35", "model.box_loss=giou"), ()),
        (("model.base_hw=[96,96]", "model.pixel_mean=[0,0,0]", "model.padding=same"), ("model.base_hw=[64,80]",)),
    ],
    ids=["another focal loss", "another network", "another input"],
)
def test_a_teacher_may_differ_in_all_but_its_answers(
    theirs: tuple[str, ...], ours: tuple[str, ...], tmp_path: Path
) -> None:
    path = saved(tmp_path, *theirs)
    assert open_teacher(config(f"train.teacher={path}", *ours), "abc", CPU) is not None


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (("model.head=faster_rcnn",), (), r"teacher\.pt: is a faster_rcnn, whose boxes belong to no anchor"),
        ((), ("model.head=faster_rcnn",), r"^train\.teacher teaches ssd .* model\.head is faster_rcnn; set train"),
        (
            ("model.class_loss=focal",),
            (),
            r"with class_loss focal, and the student has softmax, .* set model\.class_loss=focal or quality_focal$",
        ),
        (
            (),
            ("model.class_loss=quality_focal",),
            r"class_loss softmax, and the student has quality_focal, .* set model\.class_loss=softmax$",
        ),
        (
            ("model.anchor_scales=[0.1,0.9]",),
            (),
            # 4×4 × 3, then 2×2 and four of 1×1 with 6 each: 48 + 24 + 24 = 96.
            r"its 96 anchors at 64x64 are not the student's 96; it has anchor_scales \[0\.1,0\.9\] \(the student's "
            r"\[0\.2,0\.95\]\)$",
        ),
        (
            ("model.taps=[5,11]",),
            (),
            # 8×8 × 3, then 4×4, 2×2 and three of 1×1 with 6 each: 192 + 96 + 24 + 18 = 330.
            r"its 330 anchors .* student's 96; it has taps \[5,11\] \(the student's \[11,13\]\)$",
        ),
    ],
    ids=["their head", "our head", "sigmoids", "softmax", "scales", "taps"],
)
def test_a_teacher_whose_answers_mean_something_else_is_refused(
    theirs: tuple[str, ...], ours: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, *theirs)
    with pytest.raises(ConfigError, match=message):
        open_teacher(config(f"train.teacher={path}", *ours), "abc", CPU)


@pytest.mark.parametrize(
    ("names", "message"),
    [("abd", "class 2 is c there and d here; train the teacher"), ("ab", "it has 3 and the data 2;")],
)
def test_other_classes_are_refused(names: str, message: str, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        open_teacher(config(f"train.teacher={teacher}"), names, CPU)


def test_a_classifier_is_no_teacher(tmp_path: Path) -> None:
    path = tmp_path / "classifier.pt"
    weights = build_classifier(config().model, num_classes=3).state_dict()
    save_checkpoint(path, Checkpoint(config(), (), (), weights, kind="classifier"))
    with pytest.raises(CheckpointError, match="is an ImageNet classifier, not a detector"):
        open_teacher(config(f"train.teacher={path}"), "abc", CPU)


def test_a_teacher_that_is_not_there_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"^large\.pt: no such file"):
        open_teacher(config("train.teacher=large.pt"), "abc", CPU)


@pytest.mark.shared
def test_the_published_detector_teaches_cocos_classes(shared: Path) -> None:
    from mnet_det.weights.coco_labels import COCO_LABELS

    path = shared / "weights" / "ssd_mobilenet_v1_coco_quant.tflite"
    names = [name for name in COCO_LABELS[1:] if name not in ("", "???")]
    ours = config(f"train.teacher={path}", "model.class_loss=quality_focal")
    found = open_teacher(ours, names, CPU)
    assert found is not None
    assert found.anchors_for((64, 64)).shape == (96, 4)
