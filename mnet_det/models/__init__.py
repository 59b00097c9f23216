"""Networks: one file per box of the papers' figures. Here a config becomes a detector, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mnet_det.config import ModelConfig
from mnet_det.errors import ConfigError
from mnet_det.models import inception_v2, mobilenet_v1
from mnet_det.models.backbone import Backbone, Need, pick_taps
from mnet_det.models.detector import Detector
from mnet_det.models.faster_rcnn import FasterRCNN
from mnet_det.models.inception_v2 import InceptionV2, InceptionV2Classifier
from mnet_det.models.layers import ConvStyle, PixelNormalization
from mnet_det.models.mobilenet_v1 import MobileNetV1, MobileNetV1Classifier
from mnet_det.models.ssd import SSD
from mnet_det.models.timm_backbone import timm_backbone
from mnet_det.models.torchvision_backbones import default_taps, torchvision_backbone, torchvision_classifier


def build_detector(config: ModelConfig, *, num_classes: int, stored_anchors: Tensor | None = None) -> Detector:
    """A detector with random weights for `num_classes` foreground classes; `stored_anchors` as in `SSD`.

    Raises:
        ConfigError: the backbone cannot do what the config asks of it.
        MissingPackageError: it is timm's, and timm is not installed.
    """
    backbone = build_backbone(config)
    normalize = PixelNormalization(config.pixel_mean, config.pixel_std)
    if config.head == "faster_rcnn":
        return FasterRCNN(
            backbone,
            num_classes=num_classes,
            fpn=config.fpn,
            anchor_sizes=config.anchor_sizes,
            proposals=config.proposals,
            train_proposals=config.train_proposals,
            roi_samples=config.roi_samples,
            shared_boxes=config.shared_boxes,
            box_weight=config.box_weight,
            normalize=normalize,
        )
    return SSD(
        backbone,
        num_classes=num_classes,
        lite=config.head == "ssdlite",
        style=_style(config),
        anchor_scales=config.anchor_scales,
        reduce_boxes_in_lowest_layer=config.reduce_boxes_in_lowest_layer,
        predictor_kernel=config.predictor_kernel,
        class_loss=config.class_loss,
        box_loss=config.box_loss,
        box_weight=config.box_weight,
        normalize=normalize,
        stored_anchors=stored_anchors,
    )


def build_backbone(config: ModelConfig) -> Backbone:
    """The backbone alone, with the maps that the config's head needs.

    Raises:
        ConfigError: see `build_detector`.
        MissingPackageError: see there.
    """
    need = _need(config)
    backbone = _build(config, need)
    for module in backbone.modules():  # torchvision's and timm's networks come with momenta of their own
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = config.bn_momentum
    strides = backbone.strides
    if need == "c4" and len(strides) > 1:
        raise ConfigError(
            f"model.taps: Faster R-CNN without model.fpn looks at one map, not {len(strides)} (the paper's: stride 16)"
        )
    if need != "c4" and (len(strides) < 2 or list(strides) != sorted(set(strides))):
        raise ConfigError(
            f"model.taps: {', '.join(tap_names(config))} of {config.backbone} are maps of stride "
            f"{', '.join(map(str, strides))}; the head {config.head} needs two or more, each coarser than the last"
        )
    if min(config.input_hw) < backbone.least_side:
        height, width = config.input_hw
        raise ConfigError(
            f"{config.backbone} needs an input of at least {backbone.least_side} pixels a side here, got "
            f"{width}x{height}; raise model.base_hw or model.rho"
        )
    if config.backbone.startswith("timm:"):
        _rehearse(backbone, config)
    return backbone


def tap_names(config: ModelConfig) -> tuple[str, ...]:
    """The maps that a detector of this config starts from: `model.taps`, or the backbone's own choice.

    Of timm's networks, only timm knows that choice: it is given as nothing.
    """
    if config.taps is not None:
        return tuple(map(str, config.taps))
    if config.backbone.startswith("timm:"):
        return ()
    need = _need(config)
    if config.backbone == "mobilenet_v1":
        return tuple(map(str, mobilenet_v1.DEFAULT_TAPS[need]))
    return inception_v2.DEFAULT_TAPS[need] if config.backbone == "inception_v2" else default_taps(config.backbone, need)


def build_classifier(config: ModelConfig, *, num_classes: int = 1000, head_channels: int | None = None) -> nn.Module:
    """The ImageNet classifier on the config's backbone, with random weights; `head_channels` as in MobileNetV1's."""
    normalize = PixelNormalization(config.pixel_mean, config.pixel_std)
    if config.backbone == "mobilenet_v1":
        return MobileNetV1Classifier(
            _mobilenet_v1(config, taps=(13,), second_stage=False),
            num_classes=num_classes,
            head_channels=head_channels,
            style=_style(config),
            normalize=normalize,
        )
    if config.backbone == "inception_v2":
        backbone = InceptionV2(config.alpha, taps=(inception_v2.LAST,), style=_style(config))
        return InceptionV2Classifier(backbone, num_classes=num_classes, normalize=normalize)
    if config.backbone.startswith("timm:"):
        raise ConfigError("the classifier of a timm network is timm's own; info counts detectors on it")
    return torchvision_classifier(
        config.backbone,
        alpha=config.alpha,
        num_classes=num_classes,
        reduced_tail=config.reduced_tail,
        normalize=normalize,
    )


def _need(config: ModelConfig) -> Need:
    if config.head != "faster_rcnn":
        return "ssd"
    return "fpn" if config.fpn else "c4"


def _build(config: ModelConfig, need: Need) -> Backbone:
    second_stage = need == "c4"
    if config.backbone == "mobilenet_v1":
        places = {str(number): stride for number, stride in mobilenet_v1.STRIDES.items()}
        default = [str(number) for number in mobilenet_v1.DEFAULT_TAPS[need]]
        numbers = map(int, _taps(config, places, default=default, second_stage=second_stage))
        return _mobilenet_v1(config, taps=tuple(numbers), second_stage=second_stage)
    if config.backbone == "inception_v2":
        taps = _taps(config, inception_v2.STRIDES, default=inception_v2.DEFAULT_TAPS[need], second_stage=second_stage)
        return InceptionV2(config.alpha, taps=taps, second_stage=second_stage, style=_style(config))
    if config.backbone.startswith("timm:"):
        return timm_backbone(config.backbone.removeprefix("timm:"), alpha=config.alpha, need=need, taps=config.taps)
    return torchvision_backbone(
        config.backbone, alpha=config.alpha, need=need, taps=config.taps, reduced_tail=config.reduced_tail
    )


def _taps(
    config: ModelConfig, places: Mapping[str, int], *, default: Sequence[str], second_stage: bool
) -> tuple[str, ...]:
    """See `pick_taps`; a network whose second stage is its own layers must have some left."""
    taps = pick_taps(places, config.taps, default=default, backbone=config.backbone)
    last = list(places)[-1]
    if second_stage and taps[-1] == last:
        raise ConfigError(
            f"model.taps: {last} is the last of {config.backbone}, which leaves none for the second stage; unless set, "
            f"it is {default[-1]}"
        )
    return taps


def _mobilenet_v1(config: ModelConfig, *, taps: tuple[int, ...], second_stage: bool) -> MobileNetV1:
    return MobileNetV1(
        config.alpha,
        taps=taps,
        second_stage=second_stage,
        separable=config.separable,
        shallow=config.shallow,
        style=_style(config),
    )


def _style(config: ModelConfig) -> ConvStyle:
    return ConvStyle(
        padding=config.padding,
        activation=config.activation,
        bn_eps=config.bn_eps,
        bn_momentum=config.bn_momentum,
    )


def _rehearse(backbone: Backbone, config: ModelConfig) -> None:
    """Run a network that we know little of on an input without content; nothing is computed."""
    height, width = config.input_hw
    training = backbone.training
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            backbone.eval()(torch.zeros((1, 3, height, width), device=next(backbone.parameters()).device))
    except RuntimeError as error:
        raise ConfigError(
            f"{config.backbone} cannot take an input of {width}x{height} ({str(error).splitlines()[0]}); some networks "
            "need multiples of 32"
        ) from None
    finally:
        backbone.train(training)
