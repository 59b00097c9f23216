"""SSD and SSDLite (Liu et al. 2016; Sandler et al. 2018, section 6.2) on any backbone with two maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mnet_det.models.anchors import AnchorGenerator
from mnet_det.models.backbone import Backbone
from mnet_det.models.box_coder import BoxCoder
from mnet_det.models.detector import Detector
from mnet_det.models.layers import ConvBNAct, ConvStyle, PixelNormalization
from mnet_det.models.losses import (
    SIGMOID_LOSSES,
    ClassLoss,
    focal_loss,
    giou_loss,
    paired_iou,
    quality_focal_loss,
    smooth_l1_loss,
    softmax_multibox_loss,
)
from mnet_det.models.matching import IGNORED, classes_of, match_anchors, true_boxes_of
from mnet_det.models.mobilenet_v1 import scale_channels
from mnet_det.structures import Candidates, Target

EXTRA_CHANNELS = (512, 256, 256, 128)
"""Of the four maps after the backbone, at alpha 1; the 1×1 convolution before each has half as many."""
MIN_EXTRA_CHANNELS = 16
FOCAL_PRIOR = 0.01
"""Score every class starts from under focal loss, else the thousands of easy negatives drown the first steps."""


class RawPredictions(NamedTuple):
    """What the predictors say, before it becomes scores and boxes.

    Attributes:
        logits: float32 [B, A, K + 1], background first.
        deltas: float32 [B, A, 4].
        anchors: float32 [A, 4] xyxy pixels.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor


class ExtraMap(nn.Module):
    """One map more, at half the size: 1×1 convolution to half the channels, then 3×3 with stride 2."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        inner_channels: int,
        lite: bool,
        style: ConvStyle,
    ) -> None:
        super().__init__()
        self.reduce = ConvBNAct(in_channels, inner_channels, kernel=1, style=style)
        self.shrink: nn.Module = (
            nn.Sequential(
                ConvBNAct(inner_channels, inner_channels, kernel=3, stride=2, groups=inner_channels, style=style),
                ConvBNAct(inner_channels, out_channels, kernel=1, style=style),
            )
            if lite
            else ConvBNAct(inner_channels, out_channels, kernel=3, stride=2, style=style)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, out_channels, ceil(H / 2), ceil(W / 2)]."""
        shrunk: Tensor = self.shrink(self.reduce(features))
        return shrunk


class SSD(Detector):
    """Taps of the backbone and four extra maps, each with a class and a box predictor.

    The predictors are 1×1 convolutions, as TensorFlow's MobileNet-SSD has them, or the 3×3 of the SSD paper; SSDLite
    puts a depthwise 3×3 before each 1×1 and makes the extra maps separable. There are K + 1 outputs an anchor,
    background first, under both losses: softmax over them, or one sigmoid each (as in the published TensorFlow
    weights).
    """

    stored_anchors: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        lite: bool = False,
        style: ConvStyle = ConvStyle(),
        anchor_scales: tuple[float, float] = (0.2, 0.95),
        reduce_boxes_in_lowest_layer: bool = True,
        predictor_kernel: int = 1,
        class_loss: ClassLoss = "softmax",
        box_loss: Literal["smooth_l1", "giou"] = "smooth_l1",
        box_weight: float = 1.0,
        normalize: PixelNormalization | None = None,
        stored_anchors: Tensor | None = None,
    ) -> None:
        """Build the network with random weights.

        Args:
            backbone: at least two taps.
            num_classes: K.
            lite: separable extra maps and predictors.
            style: of all convolutions outside the backbone.
            anchor_scales: of the first and the last map, as parts of the input's shorter side.
            reduce_boxes_in_lowest_layer: see `AnchorGenerator`.
            predictor_kernel: side of the predictors' convolutions: 1 as in TensorFlow, 3 as in the SSD paper. Those of
                SSDLite are 3×3 always, by their depthwise part.
            class_loss: softmax over K + 1 columns, or one sigmoid each, of which focal loss makes a probability and
                quality focal loss an expected IoU.
            box_loss: smooth L1 on deltas, or GIoU on boxes.
            box_weight: of the box loss.
            normalize: the first layer; -1…1 unless given.
            stored_anchors: float32 [A, 4] xyxy as parts of the input, the rounded ones that published weights bring
                along. They stand in for ours wherever the maps have as many; losses use ours.
        """
        super().__init__()
        self.num_classes = num_classes
        self.class_loss = class_loss
        self.box_loss = box_loss
        self.box_weight = box_weight
        self.box_coder = BoxCoder()
        self.anchors = AnchorGenerator(
            num_maps=len(backbone.channels) + len(EXTRA_CHANNELS),
            scales=anchor_scales,
            reduce_boxes_in_lowest_layer=reduce_boxes_in_lowest_layer,
        )
        self._map_hws: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by the input's size
        self.normalize = normalize or PixelNormalization()
        self.register_buffer("stored_anchors", stored_anchors)
        self.backbone = backbone
        self.extras = nn.ModuleList()
        channels = list(backbone.channels)
        for base_channels in EXTRA_CHANNELS:
            inner, outer = (
                scale_channels(base, backbone.alpha, minimum=MIN_EXTRA_CHANNELS)
                for base in (base_channels // 2, base_channels)
            )
            self.extras.append(ExtraMap(channels[-1], outer, inner_channels=inner, lite=lite, style=style))
            channels.append(outer)
        self.class_predictors, self.box_predictors = (
            nn.ModuleList(
                _lite_predictor(width, per_cell * outputs, style=style)
                if lite
                else _predictor(width, per_cell * outputs, kernel=predictor_kernel)
                for width, per_cell in zip(channels, self.anchors.num_per_cell, strict=True)
            )
            for outputs in (num_classes + 1, 4)
        )
        self.class_layers = tuple(
            f"class_predictors.{number}.1" if lite else f"class_predictors.{number}" for number in range(len(channels))
        )
        if class_loss in SIGMOID_LOSSES:
            self._start_low()

    def forward(self, images: Tensor) -> Candidates:
        """uint8 [B, 3, H, W] to boxes [B, A, 1, 4] and scores [B, A, K]."""
        logits, deltas, anchors = self.predict(images)
        if self.stored_anchors is not None and len(self.stored_anchors) == len(anchors):
            height, width = images.shape[-2:]
            anchors = self.stored_anchors * anchors.new_tensor([width, height, width, height])
        probabilities = logits.sigmoid() if self.class_loss in SIGMOID_LOSSES else logits.softmax(dim=-1)
        boxes_xyxy = self.box_coder.decode(anchors, deltas)
        return Candidates(boxes_xyxy.unsqueeze(2), probabilities[..., 1:])

    def predict(self, images: Tensor) -> RawPredictions:
        """uint8 [B, 3, H, W] to what the predictors say, in float32 whatever autocast did."""
        maps = self._maps(images)
        logits = _predict_maps(maps, self.class_predictors, self.num_classes + 1)
        deltas = _predict_maps(maps, self.box_predictors, 4)
        return RawPredictions(logits, deltas, self._anchors_on(_hws(maps), _hw(images), images.device))

    def losses(
        self, images: Tensor, targets: Sequence[Target], *, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`class` and `box` losses, each summed over anchors and divided by the number of matched ones."""
        return self.losses_of(self.predict(images), targets, normalizer=normalizer)

    def losses_of(
        self, raw: RawPredictions, targets: Sequence[Target], *, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As `losses`, of predictions that are there already."""
        matched = match_anchors(raw.anchors, targets)  # [B, A]
        positive = matched >= 0
        image, anchor = positive.nonzero(as_tuple=True)  # [P] each
        anchors, deltas = raw.anchors[anchor], raw.deltas[image, anchor]  # [P, 4]
        true_boxes_xyxy = true_boxes_of(matched, targets)  # [P, 4]
        classes, ignored = classes_of(matched, targets), matched == IGNORED  # [B, A]
        if self.class_loss == "quality_focal":
            iou = paired_iou(self.box_coder.decode(anchors, deltas.detach()), true_boxes_xyxy)  # [P]
            qualities = raw.logits.new_zeros(matched.shape).index_put((image, anchor), iou)  # [B, A]
            class_loss = quality_focal_loss(raw.logits, classes, qualities, ignored)
        elif self.class_loss == "focal":
            class_loss = focal_loss(raw.logits, classes, ignored)
        else:
            class_loss = softmax_multibox_loss(raw.logits, classes, ignored)
        total = positive.sum().clamp(min=1) if normalizer is None else normalizer
        return {
            "class": class_loss / total,
            "box": self.box_weight * self._box_loss(anchors, deltas, true_boxes_xyxy) / total,
        }

    @torch.no_grad()
    def normalizer(self, targets: Sequence[Target], *, image_hw: tuple[int, int]) -> Tensor:
        """The number of matched anchors, which may be 0; `losses` divides by 1 at least where it counts for itself."""
        return (match_anchors(self.anchors_for(image_hw), targets) >= 0).sum().float()

    def anchors_for(self, image_hw: tuple[int, int]) -> Tensor:
        """float32 [A, 4] xyxy pixels, on the detector's device, before any image has been seen.

        The first call for a size runs the network: before `torch.compile`, or it is compiled for that run too.
        """
        if image_hw not in self._map_hws:
            self._map_hws[image_hw] = self._measure_maps(image_hw)
        return self._anchors_on(self._map_hws[image_hw], image_hw, self.normalize.mean.device)

    def _box_loss(self, anchors: Tensor, deltas: Tensor, true_boxes_xyxy: Tensor) -> Tensor:
        if self.box_loss == "giou":
            return giou_loss(self.box_coder.decode(anchors, deltas), true_boxes_xyxy)
        return smooth_l1_loss(deltas, self.box_coder.encode(anchors, true_boxes_xyxy))

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone(self.normalize(images))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps

    def _anchors_on(
        self, map_hws: Sequence[tuple[int, int]], image_hw: tuple[int, int], device: torch.device
    ) -> Tensor:
        return torch.from_numpy(self.anchors(map_hws, image_hw)).to(device, non_blocking=True)

    @torch.no_grad()
    def _measure_maps(self, image_hw: tuple[int, int]) -> list[tuple[int, int]]:
        """Sizes of the maps of one black image, which leaves no trace: not even in modules that were frozen one by one.

        Only running a network tells: those without padding give a little less than the input over the stride.
        """
        training = {module: module.training for module in self.modules()}
        try:
            return _hws(self.eval()._maps(torch.zeros((1, 3, *image_hw), device=self.normalize.mean.device)))
        finally:
            for module, flag in training.items():
                module.training = flag

    def _start_low(self) -> None:
        """Set the class biases so that every score starts at `FOCAL_PRIOR`."""
        logit = math.log(FOCAL_PRIOR / (1 - FOCAL_PRIOR))
        for name in self.class_layers:
            layer = self.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, logit)


def _predictor(in_channels: int, outputs: int, *, kernel: int) -> nn.Conv2d:
    linear = nn.Conv2d(in_channels, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(linear.weight, std=0.03)  # as in TensorFlow's ssd_mobilenet_v1_coco.config
    assert linear.bias is not None
    nn.init.zeros_(linear.bias)
    return linear


def _lite_predictor(in_channels: int, outputs: int, *, style: ConvStyle) -> nn.Module:
    linear = _predictor(in_channels, outputs, kernel=1)
    return nn.Sequential(ConvBNAct(in_channels, in_channels, kernel=3, groups=in_channels, style=style), linear)


def _predict_maps(maps: Sequence[Tensor], predictors: nn.ModuleList, outputs: int) -> Tensor:
    """float32 [B, A, outputs], in the anchors' order: map after map, row-major, anchor fastest."""
    rows = []
    for features, predictor in zip(maps, predictors, strict=True):
        raw = predictor(features)  # [B, S * outputs, h, w]
        rows.append(raw.permute(0, 2, 3, 1).reshape(len(raw), -1, outputs))  # [B, h * w * S, outputs]
    return torch.cat(rows, dim=1).float()


def _hw(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def _hws(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [_hw(features) for features in maps]
