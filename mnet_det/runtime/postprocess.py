"""Candidates to detections: threshold, non-maximum suppression, best first. The only one, for every backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mnet_det.structures import Candidates, Detections, FloatArray, IntArray

VIEWING_SCORE = 0.5
"""Least probability of what is shown to a person, where a model knows none of its own."""
FIRST_LOOK = 1024
"""Pairs of candidate and class that are looked at first."""
BLOCK = 128
"""Pairs whose overlaps are computed together; larger blocks compute more that nobody asks for."""


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
        score: the least probability, inclusive; or K of them, one for each class.
        nms: of two boxes of one class with a larger IoU than this, the worse goes.
        pre_nms: how many candidates of each class enter suppression, best first.
        max_detections: how many come out for an image, all classes together.
    """

    score: float | tuple[float, ...]
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

    Raises:
        ValueError: other than one or K least scores.
    """
    # Whether a pair of candidate and class becomes a detection depends on better pairs alone. So the best are looked at
    # first, and more only while detections are missing: a low threshold lets in a hundred thousand pairs.
    for least in _falling_scores(scores, _least_score(thresholds.score, classes=scores.shape[1])):
        pairs = _ranked_pairs(boxes_xyxy, scores, least, thresholds.pre_nms)
        kept = _suppress(pairs, thresholds)
        if len(kept) == thresholds.max_detections:
            break
    return pairs[kept]


def postprocess_batch(candidates: Candidates, thresholds: Thresholds) -> list[Detections]:
    """`postprocess` of each image of a batch."""
    return [postprocess(boxes, scores, thresholds) for boxes, scores in zip(*candidates, strict=True)]


def _least_score(score: float | tuple[float, ...], *, classes: int) -> float | FloatArray:
    """What scores are compared with: a number, or float32 [K]; above 0, even where denormals are read as 0."""
    tiny = np.finfo(np.float32).tiny
    if not isinstance(score, tuple):
        return max(score, float(tiny))
    if len(score) != classes:
        raise ValueError(f"expected a score for each of {classes} classes, got {len(score)}")
    return np.maximum(np.array(score, np.float32), tiny)  # float32, as numpy makes a plain number beside float32


def _falling_scores(scores: FloatArray, least: float | FloatArray) -> Iterator[float | FloatArray]:
    """Thresholds that let in ever more pairs, the last one those that reach `least`."""
    passing = scores[scores >= least]  # NaN does not
    wanted = FIRST_LOOK
    while wanted < len(passing):
        yield np.maximum(np.partition(passing, -wanted)[-wanted], least)
        wanted *= 8
    yield least


def _ranked_pairs(boxes_xyxy: FloatArray, scores: FloatArray, least: float | FloatArray, pre_nms: int) -> Detections:
    """The usable pairs of candidate and class that reach `least`, best first, at most `pre_nms` of a class."""
    candidate, label = np.divmod(np.flatnonzero(scores >= least), scores.shape[1])  # [P] each
    pairs = Detections(boxes_xyxy[candidate, 0 if boxes_xyxy.shape[1] == 1 else label], scores[candidate, label], label)
    pairs = pairs[np.isfinite(pairs.boxes_xyxy).all(axis=1) & np.isfinite(pairs.scores)]
    pairs = pairs[np.argsort(-pairs.scores, kind="stable")]
    return pairs if len(pairs) <= pre_nms else pairs[_rank_in_class(pairs.labels) < pre_nms]


def _rank_in_class(labels: IntArray) -> IntArray:
    """How many of the same label stand before each; int64 [P]."""
    order = np.argsort(labels, kind="stable")
    grouped = labels[order]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(labels)) - np.searchsorted(grouped, grouped)
    return rank


def _suppress(pairs: Detections, thresholds: Thresholds) -> IntArray:
    """Indices of the first `max_detections` of `pairs` (best first) that no better one of their class suppresses."""
    kept = np.zeros(0, np.int64)
    for start in range(0, len(pairs), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(pairs)))
        block = block[~_rivals(pairs[block], pairs[kept], thresholds.nms).any(axis=1)]
        rivals = _rivals(pairs[block], pairs[block], thresholds.nms)  # [better, worse]
        alive = np.ones(len(block), bool)
        for index in range(len(block)):  # best first: its own fate is settled when its turn comes
            if alive[index]:
                alive[index + 1 :] &= ~rivals[index, index + 1 :]
        kept = np.concatenate([kept, block[alive]])
        if len(kept) >= thresholds.max_detections:
            break
    return kept[: thresholds.max_detections]


def _rivals(some: Detections, others: Detections, nms: float) -> NDArray[np.bool_]:
    """Which overlap too much to stand beside each other; bool [some, others]."""
    # IoU is float32, the threshold stays double, as in torchvision: in float32 alone, 0.6 is not above 0.6.
    too_near: NDArray[np.bool_] = _iou(some.boxes_xyxy, others.boxes_xyxy) > np.float64(nms)
    return too_near & (some.labels[:, None] == others.labels)


def _iou(some_xyxy: FloatArray, others_xyxy: FloatArray) -> FloatArray:
    """IoU [some, others]; not a number, and so above no threshold, where neither box has an area."""
    x1, y1, x2, y2 = (side[:, None] for side in some_xyxy.T)
    other_x1, other_y1, other_x2, other_y2 = others_xyxy.T
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        width = np.maximum(np.minimum(x2, other_x2) - np.maximum(x1, other_x1), 0)
        height = np.maximum(np.minimum(y2, other_y2) - np.maximum(y1, other_y1), 0)
        overlap = width * height
        areas = (x2 - x1) * (y2 - y1) + (other_x2 - other_x1) * (other_y2 - other_y1)
        iou: FloatArray = overlap / (areas - overlap)
    return iou
