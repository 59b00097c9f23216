"""Where a detector is right and wrong: curves, AP and the best threshold of each class, and a confusion matrix."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from mnet_det.data.coco import CocoData, read_coco_json
from mnet_det.engine.evaluate import (
    Scores,
    detect_all,
    mean_precision,
    put_together,
    read_verdict,
    require_same_data,
    restrict,
)
from mnet_det.engine.scorers import ClassMatches, Verdict, judge_matches
from mnet_det.runtime.postprocess import VIEWING_SCORE
from mnet_det.runtime.predictor import Predictor
from mnet_det.structures import IntArray

RECALL = np.linspace(0, 1, 101)
"""Where COCOeval reads precision."""
CURVES = {"0.50": 0, "0.75": 5}
"""IoUs whose curves are kept, and their places among COCOeval's ten."""
AP_PARTS: dict[str, tuple[slice, int]] = {
    "AP": (slice(None), 0),
    "AP50": (slice(0, 1), 0),
    "AP75": (slice(5, 6), 0),
    "AP_small": (slice(None), 1),
    "AP_medium": (slice(None), 2),
    "AP_large": (slice(None), 3),
}
"""The IoUs and the area in COCOeval's `precision` over which each is the mean."""
MATCH_IOU = 0.5
"""From here on a detection and a true box are a pair in the confusion matrix."""
DIGITS = 6
"""To which thresholds are kept, and all values written."""
BACKGROUND = "background"
ClassAp = dict[str, float | None]


@dataclass(frozen=True)
class BestF1:
    """The threshold at which a class has the best F1, the harmonic mean of precision and recall, at IoU 0.50.

    Attributes:
        score: detections that score this or more count. It has six digits and lies halfway between the last score that
            is in and the first that is out.
        precision, recall, f1: of these detections.
    """

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Confusion:
    """What was detected where something is, or nothing.

    Attributes:
        class_names: K.
        scores: by class name, the threshold that its detections reached.
        matrix: int64 [K + 1, K + 1], boxes by what is there (rows) and what was detected (columns); the last of each
            is background.
    """

    class_names: tuple[str, ...]
    scores: dict[str, float]
    matrix: IntArray


@dataclass(frozen=True, eq=False)
class Analysis:
    """What COCOeval's twelve numbers are made of, by class name.

    Attributes:
        curves: by IoU ("0.50", "0.75") and class, float64 [101], COCOeval's precision at the recalls of `RECALL`: all
            areas, 100 detections an image. None for a class without objects.
        objects: how many there are, without crowd regions.
        ap: AP, AP50, AP75, AP_small, AP_medium and AP_large; None where COCOeval has nothing to judge.
        best_f1: None for a class without objects or without a detection of any.
        confusion: of the detections that reach the threshold of their class.
    """

    curves: dict[str, dict[str, NDArray[np.float64] | None]]
    objects: dict[str, int]
    ap: dict[str, ClassAp]
    best_f1: dict[str, BestF1 | None]
    confusion: Confusion

    def to_json(self) -> dict[str, Any]:
        """All of it, rounded to six digits; null where there is nothing to say."""
        return {
            "recall": _rounded(RECALL),
            "curves": {
                iou: {name: None if curve is None else _rounded(curve) for name, curve in curves.items()}
                for iou, curves in self.curves.items()
            },
            "per_class": {
                name: {"objects": count, **{key: _round(value) for key, value in self.ap[name].items()}}
                for name, count in self.objects.items()
            },
            "best_f1": {
                name: None if best is None else {key: _round(value) for key, value in vars(best).items()}
                for name, best in self.best_f1.items()
            },
            "confusion": {
                "labels": [*self.confusion.class_names, BACKGROUND],
                "iou": MATCH_IOU,
                "scores": {name: _round(score) for name, score in self.confusion.scores.items()},
                "matrix": self.confusion.matrix.tolist(),
            },
        }


def analyse(results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> tuple[Scores, Analysis]:
    """Let pycocotools' COCOeval judge results, and keep what its twelve numbers are made of.

    Args:
        results: in COCO's form.
        truth: annotations as `read_coco_json` or `restrict` give them. Their classes are in the order of their ids.

    Raises:
        DataError: a result is about an image that the annotations lack, or none has a category of theirs.
        ValueError: two categories have one name, which `read_coco_json` refuses.
    """
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    id_of = {category["name"]: category["id"] for category in categories}
    if len(id_of) < len(categories):
        raise ValueError(
            f"{len(categories)} categories have {len(id_of)} different names; expected each to have its own"
        )
    return _analyse(results, truth, id_of)


def analyse_model(
    predictor: Predictor, data: CocoData, annotations: Path, *, batch_size: int | None = None
) -> tuple[Scores, Analysis, list[dict[str, Any]]]:
    """Detect in all images of `data`, as `evaluate` does, and analyse what was found.

    The classes are the model's, in its order, those that the data lack included; a name that it has twice is there
    once.

    Returns:
        The scores that `evaluate` gives, the analysis, and the COCO results they were computed from, with the data's
        own ids.

    Raises:
        DataError: the data have classes that the model does not know, or more than half of the images cannot be used.
    """
    truth = restrict(read_coco_json(annotations), data)
    found = list(detect_all(predictor, data, batch_size=batch_size))
    detected = put_together([found], data, truth, class_names=predictor.class_names)
    # Of classes with one name the last has the detections of all, as in `put_together`
    id_of = {name: number for number, name in enumerate(predictor.class_names, start=1)}
    scores, analysis = _analyse(detected.judged, detected.truth, id_of)
    return detected.complete(scores), analysis, detected.results


def best_f1(matches: ClassMatches) -> BestF1 | None:
    """The threshold with the best F1, and the highest of these where several are as good.

    F1 = 2 · hits / (objects + detections). Scores that no threshold of six digits tells apart are in or out together,
    so that the threshold can be written down and still keeps exactly the detections that were counted.
    """
    if not matches.objects or not matches.hits.any():
        return None
    places = _places(matches.scores)
    last = np.append(np.flatnonzero(np.diff(places)), len(places) - 1)  # of the detections that go together
    detections, hits = last + 1, np.cumsum(matches.hits)[last]
    f1 = 2 * hits / (matches.objects + detections)
    best = int(f1.argmax())
    inside = places[last[best]]
    outside = places[last[best] + 1] if best + 1 < len(last) else inside - 1
    return BestF1(
        # In whole millionths above `outside` and not above `inside`
        score=float((inside + outside + 1) // 2 / 10**DIGITS),
        precision=float(hits[best] / detections[best]),
        recall=float(hits[best] / matches.objects),
        f1=float(f1[best]),
    )


def confuse(
    results: Sequence[Mapping[str, Any]],
    truth: Mapping[str, Any],
    *,
    id_of: Mapping[str, int],
    scores: Mapping[str, float],
    ignored_ids: frozenset[int],
) -> Confusion:
    """Pair detections with true boxes of any class, and count the pairs and what is left over.

    Of all pairs with an IoU of 0.5 or more in an image, the one with the highest is taken first, then the highest of
    what is left; where they are equal, a pair of one class, then the better score. So the diagonal may differ from
    what COCOeval counts, which pairs within a class, the best score first.

    Annotations that COCOeval ignores, such as crowd regions, are not counted, nor is a detection that is left over
    and lies by half in a crowd region of its class, or whose IoU with another ignored box of its class is 0.5 or more.

    Args:
        results: in COCO's form.
        truth: annotations as `read_coco_json` gives them.
        id_of: category ids by class name, in the order of the matrix.
        scores: by class name, the least that a detection must score.
        ignored_ids: of annotations.
    """
    label_of = {category_id: label for label, category_id in enumerate(id_of.values())}
    least = {category_id: scores[name] for name, category_id in id_of.items()}
    true, found = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        true[annotation["image_id"]].append(annotation)
    for result in results:
        if result["score"] >= least.get(result["category_id"], math.inf):
            found[result["image_id"]].append(result)
    matrix = np.zeros((len(id_of) + 1, len(id_of) + 1), np.int64)
    for image_id in true.keys() | found.keys():
        for cell in _cells(true[image_id], found[image_id], label_of=label_of, ignored_ids=ignored_ids):
            matrix[cell] += 1
    return Confusion(tuple(id_of), dict(scores), matrix)


def _analyse(
    results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any], id_of: Mapping[str, int]
) -> tuple[Scores, Analysis]:
    """Judge and analyse; `id_of` has the classes in order, and may have some that the truth lacks."""
    require_same_data(results, truth)
    verdict, matches = judge_matches(results, truth)
    nothing = ClassMatches(np.zeros(0), np.zeros(0, bool), objects=0, ignored_ids=frozenset())
    of_class = {name: matches.get(category_id, nothing) for name, category_id in id_of.items()}
    precision = {name: _precision(verdict, category_id) for name, category_id in id_of.items()}
    best = {name: best_f1(found) for name, found in of_class.items()}
    confusion = confuse(
        results,
        truth,
        id_of=id_of,
        scores={name: VIEWING_SCORE if entry is None else entry.score for name, entry in best.items()},
        ignored_ids=frozenset().union(*(found.ignored_ids for found in matches.values())),
    )
    analysis = Analysis(
        curves={
            iou: {name: part[place, :, 0] if of_class[name].objects else None for name, part in precision.items()}
            for iou, place in CURVES.items()
        },
        objects={name: found.objects for name, found in of_class.items()},
        ap={
            name: {key: mean_precision(part[ious, :, area]) for key, (ious, area) in AP_PARTS.items()}
            for name, part in precision.items()
        },
        best_f1=best,
        confusion=confusion,
    )
    return read_verdict(verdict, results, truth), analysis


def _precision(verdict: Verdict, category_id: int) -> NDArray[np.float64]:
    """COCOeval's precision of one class with 100 detections an image [10, 101, 4]: IoU, recall, area."""
    if category_id not in verdict.category_ids:
        return np.full((10, len(RECALL), 4), -1.0)
    return verdict.precision[:, :, verdict.category_ids.index(category_id), :, -1].astype(np.float64)


def _places(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """The largest whole number of millionths that each score reaches."""
    millionths = np.round(scores * 10.0**DIGITS)
    return millionths - (millionths / 10**DIGITS > scores)


def _cells(
    true: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    *,
    label_of: Mapping[int, int],
    ignored_ids: frozenset[int],
) -> list[tuple[int, int]]:
    """The cells of the confusion matrix, row and column, to which the boxes of one image belong."""
    background = len(label_of)
    rows = np.array([label_of[box["category_id"]] for box in true], np.int64)  # [M]
    columns = np.array([label_of[box["category_id"]] for box in found], np.int64)  # [D]
    scores = np.array([box["score"] for box in found], np.float64)
    ignored = np.array([box["id"] in ignored_ids for box in true], bool)
    near = _ious(found, true)  # [D, M]
    close, same = near >= MATCH_IOU, columns[:, None] == rows
    pairs = _pairs(near, close & ~ignored, same, scores)
    paired_found, paired_true = {d for d, _ in pairs}, {m for _, m in pairs}
    excused = (close & same & ignored).any(axis=1)
    return [
        *((int(rows[m]), int(columns[d])) for d, m in pairs),
        *((int(rows[m]), background) for m in np.flatnonzero(~ignored) if m not in paired_true),
        *((background, int(columns[d])) for d in np.flatnonzero(~excused) if d not in paired_found),
    ]


def _ious(found: Sequence[Mapping[str, Any]], true: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """COCOeval's IoU of each detection with each true box [D, M]: with a crowd region, the share that lies in it."""
    if not found or not true:
        return np.zeros((len(found), len(true)))
    boxes_xywh = [np.array([box["bbox"] for box in boxes], np.float64) for boxes in (found, true)]
    ious: NDArray[np.float64] = mask.iou(*boxes_xywh, [int(box["iscrowd"]) for box in true])
    return ious


def _pairs(
    ious: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    same: NDArray[np.bool_],
    scores: NDArray[np.float64],
) -> list[tuple[int, int]]:
    """Detections and true boxes that belong together, each once, the best pair first."""
    d, m = np.nonzero(allowed)
    order = np.lexsort((-scores[d], ~same[d, m], -ious[d, m]))  # by the last first
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for detection, box in zip(d[order].tolist(), m[order].tolist(), strict=True):
        if detection not in pairs and box not in taken:
            pairs[detection] = box
            taken.add(box)
    return list(pairs.items())


def _round(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), DIGITS)


def _rounded(values: NDArray[np.float64]) -> list[float]:
    """Each rounded by Python, which gives the nearest number of six digits."""
    return [round(value, DIGITS) for value in values.tolist()]
