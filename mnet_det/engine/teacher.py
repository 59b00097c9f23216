"""The detector that a training learns from beside the truth (`train.teacher`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from mnet_det.catalogue import find_model
from mnet_det.config import Config, ModelConfig
from mnet_det.engine.checkpoint import Checkpoint, open_detector
from mnet_det.engine.start import plain
from mnet_det.errors import ConfigError
from mnet_det.models import build_detector, tap_names
from mnet_det.models.losses import SIGMOID_LOSSES
from mnet_det.models.ssd import SSD


def open_teacher(
    config: Config, class_names: Sequence[str], device: torch.device, *, console: Console | None = None
) -> SSD | None:
    """What `train.teacher` names, if anything: a checkpoint, a file of published weights, or their name.

    It is to see the student's batches, at the student's input size; its own first layer normalises the pixels.

    Args:
        config: the student's.
        class_names: the student's.
        device: where it is to run.
        console: where the progress of a download is shown.

    Returns:
        The teacher, ready for `distillation_losses`: in eval mode, without gradients, channels last.

    Raises:
        ConfigError: its answers do not stand for the student's, anchor by anchor and class by class.
        CheckpointError: see `find_model` and `open_detector`.
        DownloadError: see `pull`.
    """
    source = config.train.teacher
    if source is None:
        return None
    if config.model.head == "faster_rcnn":
        raise ConfigError(
            "train.teacher teaches ssd and ssdlite, anchor by anchor, and model.head is faster_rcnn; set "
            "train.teacher=null"
        )
    checkpoint = open_detector(find_model(source, console=console))
    _require_same_columns(checkpoint, config.model, class_names, source=source)
    teacher = checkpoint.build()
    assert isinstance(teacher, SSD)
    _require_same_anchors(teacher, checkpoint.config.model, config.model, source=source)
    return teacher.requires_grad_(False).to(memory_format=torch.channels_last).to(device)


def _require_same_columns(
    checkpoint: Checkpoint, ours: ModelConfig, class_names: Sequence[str], *, source: Path
) -> None:
    theirs = checkpoint.config.model
    if theirs.head == "faster_rcnn":
        raise ConfigError(
            f"train.teacher={source}: is a faster_rcnn, whose boxes belong to no anchor; expected an ssd or ssdlite"
        )
    if checkpoint.class_names != tuple(class_names):
        raise ConfigError(
            f"train.teacher={source}: expected the classes of the data in the same order, but "
            f"{_first_difference(checkpoint.class_names, class_names)}; train the teacher on these data first"
        )
    if (theirs.class_loss in SIGMOID_LOSSES) != (ours.class_loss in SIGMOID_LOSSES):
        alike = " or ".join(SIGMOID_LOSSES) if theirs.class_loss in SIGMOID_LOSSES else theirs.class_loss
        raise ConfigError(
            f"train.teacher={source}: was trained with class_loss {theirs.class_loss}, and the student has "
            f"{ours.class_loss}, whose scores mean something else; set model.class_loss={alike}"
        )


def _require_same_anchors(teacher: SSD, theirs: ModelConfig, ours: ModelConfig, *, source: Path) -> None:
    with torch.device("meta"):
        student = build_detector(ours, num_classes=1)  # maps have their sizes whatever the weights
    assert isinstance(student, SSD)
    here, there = (ssd.anchors_for(ours.input_hw) for ssd in (student.to_empty(device="cpu"), teacher))
    if torch.equal(here, there):
        return
    settings = {
        "taps": (tap_names(theirs), tap_names(ours)),
        "anchor_scales": (theirs.anchor_scales, ours.anchor_scales),
        "reduce_boxes_in_lowest_layer": (theirs.reduce_boxes_in_lowest_layer, ours.reduce_boxes_in_lowest_layer),
        "backbone": (theirs.backbone, ours.backbone),
    }
    differ = ", ".join(f"{key} {plain(a)} (the student's {plain(b)})" for key, (a, b) in settings.items() if a != b)
    height, width = ours.input_hw
    raise ConfigError(
        f"train.teacher={source}: its {len(there)} anchors at {width}x{height} are not the student's {len(here)}; it "
        f"has {differ or 'maps of other sizes'}"
    )


def _first_difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} and the data {len(ours)}"
    number = next(label for label, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    return f"class {number} is {theirs[number]} there and {ours[number]} here"
