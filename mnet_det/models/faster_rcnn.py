"""Faster R-CNN (Ren et al. 2015), as Howard et al. 2017 put it on MobileNet, and with a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mnet_det.models.anchors import RegionAnchors
from mnet_det.models.backbone import Backbone
from mnet_det.models.detector import Detector
from mnet_det.models.layers import PixelNormalization
from mnet_det.models.roi_head import RoIHead, pool_regions, sample_regions
from mnet_det.models.rpn import RegionProposalNetwork
from mnet_det.structures import Candidates, Target

PYRAMID_CHANNELS = 256  # Lin et al. 2017, as are the two fully connected layers
HIDDEN_CHANNELS = 1024
PYRAMID_ROI_SIDE = 7
CANONICAL_PX = 112.0
"""Side of a box that belongs on the map of stride 16. Lin et al. have 224, for images of 800 pixels; in ours of 300 or
so, no box would ever reach the map of stride 32."""


class FasterRCNN(Detector):
    """Proposals from the backbone's maps, then class and box of each.

    As in the paper there is one map, of stride 16, and the backbone's own last layers are the second stage, run on
    every proposal: most of the cost. With a feature pyramid, all maps take part, and the second stage is two fully
    connected layers.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        fpn: bool = False,
        anchor_sizes: Sequence[float] = (32, 64, 128, 256),
        proposals: int = 300,
        train_proposals: int = 1000,
        roi_samples: int = 64,
        shared_boxes: bool = False,
        box_weight: float = 1.0,
        normalize: PixelNormalization | None = None,
    ) -> None:
        """Build the network with random weights.

        Args:
            backbone: one tap and a second stage, or with `fpn` two taps or more, each coarser than the last.
            num_classes: K.
            fpn: a feature pyramid.
            anchor_sizes: pixels; every map has an anchor of each size in each of three aspect ratios.
            proposals: N, regions an image that the second stage looks at.
            train_proposals: the same in training, from which `roi_samples` are drawn.
            roi_samples: regions an image that the second stage learns from.
            shared_boxes: one box a region for all classes, not one for each.
            box_weight: of both box losses.
            normalize: the first layer; -1…1 unless given.
        """
        super().__init__()
        self.num_classes = num_classes
        self.proposals = proposals
        self.train_proposals = train_proposals
        self.roi_samples = roi_samples
        self.box_weight = box_weight
        self.anchors = RegionAnchors(anchor_sizes)
        self.normalize = normalize or PixelNormalization()
        self.backbone = backbone
        self.fpn = (
            FeaturePyramidNetwork(list(backbone.channels), PYRAMID_CHANNELS, extra_blocks=LastLevelMaxPool())
            if fpn
            else None
        )
        self.rpn = RegionProposalNetwork(
            PYRAMID_CHANNELS if fpn else backbone.channels[-1], anchors_per_cell=self.anchors.num_per_cell
        )
        self.roi_hidden = (
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(PYRAMID_CHANNELS * PYRAMID_ROI_SIDE**2, HIDDEN_CHANNELS),
                nn.ReLU(),
                nn.Linear(HIDDEN_CHANNELS, HIDDEN_CHANNELS),
                nn.ReLU(),
            )
            if fpn
            else None
        )
        channels = HIDDEN_CHANNELS if fpn else backbone.second_stage_channels
        self.roi_head = RoIHead(channels, num_classes=num_classes, shared_boxes=shared_boxes)
        self.class_layers = ("roi_head.class_predictor",)
        self.box_layers = () if shared_boxes else ("roi_head.box_predictor",)

    def forward(self, images: Tensor) -> Candidates:
        """See `Detector.forward`: N candidates, one for each proposal."""
        image_hw = (images.shape[2], images.shape[3])
        maps = self._maps(images)
        proposals = self.rpn.propose(
            self.rpn(maps), self._anchors(maps, image_hw), image_hw=image_hw, count=self.proposals
        )
        slots = proposals.valid.shape[1]
        image_index = torch.arange(len(images), device=images.device)[:, None].expand(-1, slots).flatten()
        features = self._region_features(maps, proposals.boxes_xyxy.flatten(0, 1), image_index, image_hw)
        logits, deltas = self.roi_head(features)
        return self.roi_head.candidates(logits, deltas, proposals, image_hw=image_hw)

    def losses(
        self, images: Tensor, targets: Sequence[Target], *, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See `Detector.losses`: objectness and boxes of the first stage, classes and boxes of the second.

        Each is a mean over the samples of all images; a `normalizer` that is not the number of images scales it. So
        parts of a batch add up to the whole exactly where every image has as many samples as any other, which it has
        unless anchors or regions run out.
        """
        image_hw = (images.shape[2], images.shape[3])
        maps = self._maps(images)
        anchors = self._anchors(maps, image_hw)
        outputs = self.rpn(maps)
        losses = self.rpn.losses(outputs, anchors, targets)
        proposals = self.rpn.propose(outputs, anchors, image_hw=image_hw, count=self.train_proposals)
        regions = sample_regions(proposals, targets, count=self.roi_samples)
        features = self._region_features(maps, regions.boxes_xyxy, regions.image_index, image_hw)
        logits, deltas = self.roi_head(features)
        losses |= self.roi_head.losses(logits, deltas, regions)
        share: Tensor | float = 1.0 if normalizer is None else len(images) / normalizer
        return {name: loss * share * (self.box_weight if "box" in name else 1.0) for name, loss in losses.items()}

    def normalizer(self, targets: Sequence[Target], *, image_hw: tuple[int, int]) -> Tensor:
        """See `Detector.normalizer`: the number of images."""
        device = self.roi_head.class_predictor.weight.device
        return torch.full((), len(targets), dtype=torch.float32, device=device)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Of the backbone; with a pyramid, of that, and one more at half the size of the last."""
        maps: list[Tensor] = self.backbone(self.normalize(images))
        if self.fpn is None:
            return maps
        return list(self.fpn({str(number): features for number, features in enumerate(maps)}).values())

    def _anchors(self, maps: Sequence[Tensor], image_hw: tuple[int, int]) -> Tensor:
        """float32 [A, 4] of all maps."""
        map_hws = [(features.shape[2], features.shape[3]) for features in maps]
        return torch.from_numpy(self.anchors(map_hws, image_hw)).to(maps[0].device)

    def _region_features(
        self, maps: Sequence[Tensor], boxes_xyxy: Tensor, image_index: Tensor, image_hw: tuple[int, int]
    ) -> Tensor:
        """Vectors [N, C] of boxes [N, 4]; the smallest map of a pyramid proposes only."""
        strides = self.backbone.strides
        regions = pool_regions(
            maps[: len(strides)],
            boxes_xyxy,
            image_index,
            image_hw=image_hw,
            side=self.backbone.roi_side if self.roi_hidden is None else PYRAMID_ROI_SIDE,
            strides=strides,
            canonical_px=CANONICAL_PX,
        )
        features: Tensor = self.backbone.second_stage(regions) if self.roi_hidden is None else self.roi_hidden(regions)
        return features
