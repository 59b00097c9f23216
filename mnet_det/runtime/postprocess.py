"""Candidates to detections: threshold, non-maximum suppression, best first. The only one, for every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mnet_det.structures import Candidates, Detections, FloatArray, IntArray


class _ThresholdSettings(Protocol):
    """What `EvalConfig` and `ModelMetadata` share."""

    @property
    def score(self) -> float: ...
    @property
    def nms(self) -> float: ...
    @property
    def pre_nms(self) -> int: ...
    @property
    def max_detections(self) -> int: ...


@dataclass(frozen=True)
class Thresholds:
    """Which candidates become detections.

    Attributes:
        score: the least probability, inclusive.
        nms: of two boxes of one class with a larger IoU than this, the worse goes.
        pre_nms: how many candidates of each class enter suppression, best first.
        max_detections: how many come out for an image, all classes together.
    """

    score: float
    nms: float
    pre_nms: int
    max_detections: int

    @classmethod
    def of(cls, settings: _ThresholdSettings) -> Thresholds:
        """The thresholds in an `EvalConfig` or a `ModelMetadata`."""
        return cls(settings.score, settings.nms, settings.pre_nms, settings.max_detections)


def postprocess(boxes_xyxy: FloatArray, scores: FloatArray, thresholds: Thresholds) -> Detections:
    """Turn the candidates of one image into detections.

    Keeps what `torchvision.ops.batched_nms` keeps. Equal scores rank by candidate, then by class. Boxes or scores that
    are not finite are dropped, and so are scores of 0, which mark the unused slots of two-stage heads.

    Args:
        boxes_xyxy: float32 [N, R, 4], network pixels; R is 1 (shared by the classes) or K.
        scores: float32 [N, K], probabilities.
        thresholds: what to keep.
    """
    candidate, label = np.nonzero(scores >= thresholds.score)  # [P]: one pair of candidate and class each
    pairs = Detections(boxes_xyxy[candidate, 0 if boxes_xyxy.shape[1] == 1 else label], scores[candidate, label], label)
    usable = np.isfinite(pairs.boxes_xyxy).all(axis=1) & np.isfinite(pairs.scores) & (pairs.scores > 0)
    pairs = pairs[usable]
    pairs = pairs[np.argsort(-pairs.scores, kind="stable")]
    return pairs[_suppress(pairs, thresholds)]


def postprocess_batch(candidates: Candidates, thresholds: Thresholds) -> list[Detections]:
    """`postprocess` of each image of a batch."""
    return [postprocess(boxes, scores, thresholds) for boxes, scores in zip(*candidates, strict=True)]


def _suppress(pairs: Detections, thresholds: Thresholds) -> IntArray:
    """Indices of the first `max_detections` pairs that survive suppression within their class; `pairs` best first.

    A pair's fate depends only on better pairs of its class. So one walk down all classes together may stop at the
    last detection wanted: at most `max_detections` steps, however many pairs a low score threshold lets in.
    """
    alive = np.zeros(len(pairs), bool)
    members = {}
    for label in np.unique(pairs.labels):
        members[label] = np.flatnonzero(pairs.labels == label)[: thresholds.pre_nms]
        alive[members[label]] = True
    # IoU is float32, the threshold stays double, as in torchvision: in float32 alone, 0.6 is not above 0.6.
    limit = np.float64(thresholds.nms)
    kept: list[int] = []
    while len(kept) < thresholds.max_detections and alive.any():
        best = int(alive.argmax())
        rivals = members[pairs.labels[best]]
        alive[rivals[_iou(pairs.boxes_xyxy[best], pairs.boxes_xyxy[rivals]) > limit]] = False
        alive[best] = False
        kept.append(best)
    return np.array(kept, np.int64)


def _iou(box_xyxy: FloatArray, boxes_xyxy: FloatArray) -> FloatArray:
    """IoU of one box [4] with boxes [N, 4]; not a number, and so above no threshold, where neither has an area."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        sizes_wh = np.minimum(box_xyxy[2:], boxes_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], boxes_xyxy[:, :2])
        overlap = sizes_wh.clip(0).prod(axis=1)
        iou: FloatArray = overlap / (_area(box_xyxy) + _area(boxes_xyxy) - overlap)
    return iou


def _area(boxes_xyxy: FloatArray) -> FloatArray:
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(axis=-1)
