"""Who computes AP: pycocotools, the reference, or faster-coco-eval, which gives the same numbers in less time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnet_det.doctor import install_line
from mnet_det.errors import MissingPackageError
from mnet_det.structures import FloatArray

Scorer = Literal["pycocotools", "faster"]


@dataclass(frozen=True)
class Verdict:
    """What COCOeval found, in its own form: -1 where it has nothing to judge.

    Attributes:
        stats: float64 [12], what it prints.
        precision: float64 [10, 101, K, 4, 3]: IoU, recall, class, area, most detections an image.
        category_ids: K ids, in the order of `precision`.
    """

    stats: FloatArray
    precision: FloatArray
    category_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class ClassMatches:
    """How COCOeval matched the detections of one class at IoU 0.50: objects of all areas, 100 detections an image.

    Detections that it ignores, such as those in crowd regions, are not among these.

    Attributes:
        scores: float64 [N], best first.
        hits: bool [N], whether each detection found an object.
        objects: how many there are to be found.
        ignored_ids: of the annotations that do not count, such as crowd regions.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    objects: int
    ignored_ids: frozenset[int]


def require(scorer: Scorer) -> None:
    """Say that a scorer is missing before the hours of work that it is to score.

    Raises:
        MissingPackageError: it is not installed.
    """
    _classes(scorer)


def judge(results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any], *, scorer: Scorer) -> Verdict:
    """Let COCOeval judge boxes.

    Both index the truth anew: they write into the annotations, and all of that is a fiftieth of the time of the
    quicker one.

    Args:
        results: in COCO's form; their images must be among those of the truth.
        truth: annotations as `read_coco_json` gives them.
        scorer: whose COCOeval.

    Raises:
        MissingPackageError: the scorer is not installed.
    """
    return _verdict(_evaluated(results, truth, scorer=scorer))


def judge_matches(
    results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]
) -> tuple[Verdict, dict[int, ClassMatches]]:
    """As `judge`, with what was matched, by category id: by pycocotools, since the other does not tell.

    Args:
        results: as in `judge`.
        truth: as in `judge`; the annotations have ids of their own from 1 on.
    """
    evaluation = _evaluated(results, truth, scorer="pycocotools")
    num_images = len(evaluation.params.imgIds)
    stride = len(evaluation.params.areaRng) * num_images  # all areas come first, then the small, medium and large
    matches = {
        int(category_id): _class_matches(evaluation.evalImgs[index * stride : index * stride + num_images])
        for index, category_id in enumerate(evaluation.params.catIds)
    }
    return _verdict(evaluation), matches


def _class_matches(images: Sequence[Mapping[str, Any] | None]) -> ClassMatches:
    """Put together what COCOeval says of one class in each image; None where it has neither boxes nor detections."""
    seen = [image for image in images if image is not None]
    # The first row of what it holds for each IoU is that of 0.50
    counted = np.concatenate([np.zeros(0, bool), *(~image["dtIgnore"][0] for image in seen)])
    scores = np.concatenate([np.zeros(0), *(image["dtScores"] for image in seen)])[counted]
    hits = np.concatenate([np.zeros(0, bool), *(image["dtMatches"][0] > 0 for image in seen)])[counted]
    order = np.argsort(-scores, kind="stable")
    true = [pair for image in seen for pair in zip(image["gtIds"], image["gtIgnore"], strict=True)]
    ignored_ids = frozenset(number for number, ignored in true if ignored)
    return ClassMatches(scores[order], hits[order], objects=len(true) - len(ignored_ids), ignored_ids=ignored_ids)


def _evaluated(results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any], *, scorer: Scorer) -> Any:
    """A COCOeval that has done its work."""
    coco, coco_eval = _classes(scorer)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells what it does
        true = _index(coco, truth, truth["annotations"])
        # loadRes of pycocotools fails on an empty list
        found = true.loadRes([dict(result) for result in results]) if results else _index(coco, truth, ())
        evaluation = coco_eval(true, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _verdict(evaluation: Any) -> Verdict:
    return Verdict(
        stats=np.asarray(evaluation.stats),
        precision=evaluation.eval["precision"],
        category_ids=tuple(map(int, evaluation.params.catIds)),
    )


def _index(coco: type[Any], content: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> Any:
    indexed = coco()
    # A copy of each, since COCOeval writes into the annotations it judges by
    indexed.dataset = {"info": {}, **content, "annotations": [dict(annotation) for annotation in annotations]}
    indexed.createIndex()
    return indexed


def _classes(scorer: Scorer) -> tuple[type[Any], type[Any]]:
    """A scorer's COCO and COCOeval, which are used alike."""
    if scorer == "pycocotools":
        return COCO, COCOeval
    try:
        import faster_coco_eval
    except ImportError:
        raise MissingPackageError(
            f"the scorer 'faster' needs faster-coco-eval: {install_line('faster')}; or score with 'pycocotools', "
            "which gives the same numbers"
        ) from None
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
