"""Networks: one file per box of the papers' figures. Here a config becomes a detector, and nowhere else."""

from __future__ import annotations

from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.models.detector import Detector
from mnet_det.models.layers import ConvStyle, PixelNormalization
from mnet_det.models.mobilenet_v1 import MobileNetV1, MobileNetV1Classifier
from mnet_det.models.ssd import SSD


def build_detector(config: ModelConfig, *, num_classes: int, stored_anchors: Tensor | None = None) -> Detector:
    """A detector with random weights for `num_classes` foreground classes; `stored_anchors` as in `SSD`."""
    return SSD(
        _build_backbone(config, taps=config.taps),
        num_classes=num_classes,
        lite=config.head == "ssdlite",
        style=_style(config),
        anchor_scales=config.anchor_scales,
        class_loss=config.class_loss,
        box_loss=config.box_loss,
        box_weight=config.box_weight,
        normalize=PixelNormalization(config.pixel_mean, config.pixel_std),
        stored_anchors=stored_anchors,
    )


def build_classifier(
    config: ModelConfig, *, num_classes: int = 1000, head_channels: int | None = None
) -> MobileNetV1Classifier:
    """The ImageNet classifier on the config's backbone, with random weights; `head_channels` as in the class."""
    return MobileNetV1Classifier(
        _build_backbone(config, taps=(13,)),
        num_classes=num_classes,
        head_channels=head_channels,
        style=_style(config),
        normalize=PixelNormalization(config.pixel_mean, config.pixel_std),
    )


def _build_backbone(config: ModelConfig, *, taps: tuple[int, ...]) -> MobileNetV1:
    return MobileNetV1(
        config.alpha, taps=taps, separable=config.separable, shallow=config.shallow, style=_style(config)
    )


def _style(config: ModelConfig) -> ConvStyle:
    return ConvStyle(
        padding=config.padding,
        activation=config.activation,
        bn_eps=config.bn_eps,
        bn_momentum=config.bn_momentum,
    )
