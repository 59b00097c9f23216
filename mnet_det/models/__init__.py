"""Networks: one file per box of the papers' figures. Here a config becomes a detector, and nowhere else."""

from __future__ import annotations

from mnet_det.config import ModelConfig
from mnet_det.models.detector import Detector
from mnet_det.models.layers import ConvStyle
from mnet_det.models.mobilenet_v1 import MobileNetV1, MobileNetV1Classifier
from mnet_det.models.ssd import SSD


def build_detector(config: ModelConfig, *, num_classes: int) -> Detector:
    """A detector with random weights for `num_classes` foreground classes."""
    return SSD(
        _build_backbone(config, taps=config.taps),
        num_classes=num_classes,
        lite=config.head == "ssdlite",
        style=_style(config),
        anchor_scales=config.anchor_scales,
        class_loss=config.class_loss,
        box_loss=config.box_loss,
        box_weight=config.box_weight,
    )


def build_classifier(config: ModelConfig, *, num_classes: int = 1000) -> MobileNetV1Classifier:
    """The ImageNet classifier on the config's backbone, with random weights."""
    return MobileNetV1Classifier(_build_backbone(config, taps=(13,)), num_classes=num_classes)


def _build_backbone(config: ModelConfig, *, taps: tuple[int, ...]) -> MobileNetV1:
    return MobileNetV1(
        config.alpha, taps=taps, separable=config.separable, shallow=config.shallow, style=_style(config)
    )


def _style(config: ModelConfig) -> ConvStyle:
    return ConvStyle(padding=config.padding, bn_eps=config.bn_eps, bn_momentum=config.bn_momentum)
