"""AP: detecting in a whole data set, alone or as one of several processes, and what COCOeval says of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mnet_det.data.coco import NUMBERS, CocoData, read_coco_json, to_results
from mnet_det.data.faults import Fault
from mnet_det.engine import scorers
from mnet_det.engine.distributed import ALONE, World
from mnet_det.engine.scorers import Scorer, Verdict
from mnet_det.errors import DataError, ImageError, MnetDetError
from mnet_det.runtime.predictor import Predictor
from mnet_det.structures import Detections, Image

READERS = 2
READ_AHEAD = 16
"""Images that are under way at a time: some being read, some in the network. More where the engine wants more."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Scores:
    """COCOeval's verdict; None where it has nothing to judge (it says -1).

    Attributes:
        numbers: the twelve, by name, 0…1.
        per_class: AP by class name.
        images: how many were scored.
        detections: how many were judged.
        classes_left_out: classes of the model that the data lack; their detections were not judged.
        left_out: images that could not be used, and so were not scored.
    """

    numbers: dict[str, float | None]
    per_class: dict[str, float | None]
    images: int
    detections: int
    classes_left_out: int = 0
    left_out: tuple[Fault, ...] = ()

    @property
    def ap(self) -> float:
        """AP over IoU 0.50:0.95; 0 where there is nothing to judge."""
        return self.numbers["AP"] or 0.0

    def to_json(self, *, runtime: str | None = None) -> dict[str, Any]:
        """The keys that `mnet-det eval --json` promises."""
        return {
            **self.numbers,
            "per_class": self.per_class,
            "images": self.images,
            "runtime": runtime,
            "classes_left_out": self.classes_left_out,
            "left_out": [fault.to_json() for fault in self.left_out],
        }


@dataclass(frozen=True)
class Detected:
    """What a model found in data, and the truth to judge it by.

    Attributes:
        results: in COCO's form, with the data's own ids.
        judged: the same, with the model's classes numbered from 1, in its order: so AP does not depend on the data's
            ids, not even in the last digit.
        truth: annotations of the images that could be used, with classes numbered alike.
        classes_left_out: classes of the model that the data lack.
        left_out: images that could not be used.
    """

    results: list[dict[str, Any]]
    judged: list[dict[str, Any]]
    truth: dict[str, Any]
    classes_left_out: int
    left_out: tuple[Fault, ...]

    def complete(self, scores: Scores) -> Scores:
        """The scores of `judged`, and what was left out of them."""
        return replace(scores, classes_left_out=self.classes_left_out, left_out=self.left_out)


def detect_all(
    predictor: Predictor, data: CocoData, *, batch_size: int | None = None
) -> Iterator[list[dict[str, Any]] | Fault]:
    """Run a model over a data set.

    Classes are joined by name, so the order of the data's ids does not matter; classes that the data lack are left
    out.

    Args:
        predictor: the model.
        data: the images.
        batch_size: images that go through the network together; what the model takes at a time unless given.

    Yields:
        The COCO results of one image after another, with the data's own image and category ids, or what is wrong
        with one that cannot be used.

    Raises:
        DataError: the data have classes that the model does not know.
    """
    category_ids = join_classes(predictor.class_names, data)
    kept = np.array([category_id is not None for category_id in category_ids])
    found = _detect_overlapped(predictor, data, batch_size=batch_size or predictor.backend.batch)
    for image_id, detections in zip(data.image_ids, found, strict=True):
        if isinstance(detections, Fault):
            yield detections
        else:
            yield to_results(
                detections[kept[detections.labels]],
                image_id=int(image_id),
                category_ids=category_ids,  # type: ignore[arg-type]  # those kept have ids
            )


def score_results(
    results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any], *, scorer: Scorer = "pycocotools"
) -> Scores:
    """Let COCOeval judge results against COCO annotations (as `read_coco_json` gives them).

    No detections give AP 0. The scorers give the same numbers.

    Raises:
        DataError: a result is about an image that the annotations lack, or none has a category of theirs.
        MissingPackageError: the scorer is not installed.
    """
    require_same_data(results, truth)
    return read_verdict(scorers.judge(results, truth, scorer=scorer), results, truth)


def require_same_data(results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> None:
    """Refuse to judge results by the annotations of other data.

    Raises:
        DataError: a result is about an image that the annotations lack, or none has a category of theirs.
    """
    strangers = {result["image_id"] for result in results} - {image["id"] for image in truth["images"]}
    if strangers:
        named = ", ".join(map(str, sorted(strangers, key=str)[:3]))
        raise DataError(f"{len(strangers)} image ids of the detections are not in the annotations, such as {named}")
    known = {category["id"] for category in truth["categories"]}
    if results and not any(result["category_id"] in known for result in results):
        raise DataError(
            f"none of the detections has a category of the annotations: theirs are such as "
            f"{results[0]['category_id']}, expected one of {', '.join(map(str, sorted(known)[:5]))} …"
        )


def read_verdict(verdict: Verdict, results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> Scores:
    """What COCOeval said of these results and annotations, by name."""
    names = {category["id"]: category["name"] for category in truth["categories"]}
    per_class = {
        names[category_id]: mean_precision(verdict.precision[:, :, index, 0, -1])
        for index, category_id in enumerate(verdict.category_ids)
    }
    numbers = {name: None if value == -1 else float(value) for name, value in zip(NUMBERS, verdict.stats, strict=True)}
    num_images = len({image["id"] for image in truth["images"]})
    return Scores(numbers, per_class, images=num_images, detections=len(results))


def evaluate(
    predictor: Predictor,
    data: CocoData,
    annotations: Path,
    *,
    batch_size: int | None = None,
    scorer: Scorer = "pycocotools",
) -> tuple[Scores, list[dict[str, Any]]]:
    """Detect in all images of `data` and score against its annotation file.

    Returns:
        The scores, and the COCO results they were computed from.
    """
    truth = restrict(read_coco_json(annotations), data)
    return score_model(predictor, data, truth, batch_size=batch_size, scorer=scorer)


def score_model(
    predictor: Predictor,
    data: CocoData,
    truth: Mapping[str, Any],
    *,
    batch_size: int | None = None,
    scorer: Scorer = "pycocotools",
    world: World = ALONE,
) -> tuple[Scores, list[dict[str, Any]]]:
    """As `evaluate`, with the annotations already read: `truth` as `restrict` gives it.

    Each process of `world` detects in its share of the images, the first one scores, and all return, or raise, the
    same; but the results, which may be large, are with the first alone. Images that cannot be used are not scored.

    Raises:
        DataError: as `detect_all`, or more than half of the images cannot be used.
        MissingPackageError: the scorer is not installed.
    """

    def detect() -> list[list[dict[str, Any]] | Fault]:
        scorers.require(scorer)
        join_classes(predictor.class_names, data)  # the part may lack boxes of the classes that the model does not know
        return list(detect_all(predictor, data.part(world.rank, world.size), batch_size=batch_size))

    outcomes = world.collect(_attempt(detect))
    results: list[dict[str, Any]] = []

    def score() -> Scores:
        parts = [_reveal(outcome) for outcome in outcomes]
        detected = put_together(parts, data, truth, class_names=predictor.class_names)
        results.extend(detected.results)
        return detected.complete(score_results(detected.judged, detected.truth, scorer=scorer))

    return _reveal(world.share(_attempt(score) if world.is_first else None)), results


def _attempt(action: Callable[[], Result]) -> Result | MnetDetError:
    """What an action gives, or the fault it ends in: the other processes wait for an answer, and must learn of it.

    Any other error ends the process, and its end ends the waiting.
    """
    try:
        return action()
    except MnetDetError as fault:
        return fault


def _reveal(outcome: Result | MnetDetError) -> Result:
    """What `_attempt` hid."""
    if isinstance(outcome, MnetDetError):
        raise outcome
    return outcome


def put_together(
    parts: Sequence[Sequence[list[dict[str, Any]] | Fault]],
    data: CocoData,
    truth: Mapping[str, Any],
    *,
    class_names: Sequence[str],
) -> Detected:
    """What was found in the parts of `data`, in the order of its images.

    Args:
        parts: what `detect_all` gave for `data.part(0, P)` … `data.part(P - 1, P)`.
        data: the images.
        truth: their annotations, as `restrict` gives them.
        class_names: the model's.

    Raises:
        DataError: more than half of the images cannot be used, or the data have classes that the model does not know.
    """
    found = [parts[index % len(parts)][index // len(parts)] for index in range(len(data))]
    left_out = tuple(entry for entry in found if isinstance(entry, Fault))
    if 2 * len(left_out) > len(data):
        raise DataError(f"{len(left_out)} of {len(data)} images cannot be used, such as {left_out[0]}")
    results = [result for entry in found if not isinstance(entry, Fault) for result in entry]
    category_ids = join_classes(class_names, data)
    number_of = {own: label for label, own in enumerate(category_ids, start=1) if own is not None}
    return Detected(
        results,
        judged=[{**result, "category_id": number_of[result["category_id"]]} for result in results],
        truth=_renumber(restrict(truth, data.without(left_out)), number_of),
        classes_left_out=category_ids.count(None),
        left_out=left_out,
    )


def _renumber(truth: Mapping[str, Any], number_of: Mapping[int, int]) -> dict[str, Any]:
    """The same annotations with other category ids; categories without one, which have no boxes, are left out."""
    known = [category for category in truth["categories"] if category["id"] in number_of]
    return {
        "images": truth["images"],
        "categories": [{**category, "id": number_of[category["id"]]} for category in known],
        "annotations": [
            {**annotation, "category_id": number_of[annotation["category_id"]]} for annotation in truth["annotations"]
        ],
    }


def restrict(truth: Mapping[str, Any], data: CocoData) -> dict[str, Any]:
    """The part of an annotation file that `data` holds: its images and its classes."""
    image_ids, category_ids = set(data.image_ids.tolist()), set(data.category_ids) - {None}
    return {
        "images": [image for image in truth["images"] if image["id"] in image_ids],
        "categories": [category for category in truth["categories"] if category["id"] in category_ids],
        "annotations": [
            annotation
            for annotation in truth["annotations"]
            if annotation["image_id"] in image_ids and annotation["category_id"] in category_ids
        ],
    }


def join_classes(class_names: Sequence[str], data: CocoData) -> list[int | None]:
    """The data's category id of each of the model's classes; None for those that the data lack.

    Raises:
        DataError: the data have classes that the model does not know.
    """
    unknown = [name for name in data.marked_names if name not in class_names]  # others do no harm
    if unknown:
        raise DataError(
            f"the model has {len(class_names)} classes, the data {len(data.class_names)}: the model does not know "
            f"{len(unknown)} of them ({', '.join(unknown)}); score it on its own classes (`mnet-det eval --classes "
            f"{','.join(class_names[:3])}{',…' if len(class_names) > 3 else ''}`), or train it on these"
        )
    id_of = dict(zip(data.class_names, data.category_ids, strict=True))
    return [id_of.get(name) for name in class_names]  # None too where the data only took the name over


def mean_precision(precision: np.ndarray) -> float | None:
    """AP over the part of COCOeval's `precision` that it judged; None where that is nothing."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None


def _detect_overlapped(predictor: Predictor, data: CocoData, *, batch_size: int) -> Iterator[Detections | Fault]:
    """Detections of all images in order; some images are read while others are in the network."""
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(predictor.backend.callers) as detectors:
        pending: deque[Future[list[Detections | Fault]]] = deque()

        def detect(indices: range) -> Future[list[Detections | Fault]]:
            images = [readers.submit(_read, data, index) for index in indices]
            return detectors.submit(lambda: _detect(predictor, [image.result() for image in images]))

        try:
            for start in range(0, len(data), batch_size):
                pending.append(detect(range(start, min(start + batch_size, len(data)))))
                if len(pending) > max(READ_AHEAD // batch_size, predictor.backend.callers):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:  # a fault, or the caller has seen enough: what is not begun is not awaited
            readers.shutdown(cancel_futures=True)
            detectors.shutdown(cancel_futures=True)


def _read(data: CocoData, index: int) -> Image | Fault:
    try:
        return data.image(index)
    except ImageError as error:
        return data.fault(index, error)


def _detect(predictor: Predictor, read: Sequence[Image | Fault]) -> list[Detections | Fault]:
    """Detections of the images; faults stay where they are."""
    images = [entry for entry in read if not isinstance(entry, Fault)]
    detections = iter(predictor.batch(images) if images else [])
    return [entry if isinstance(entry, Fault) else next(detections) for entry in read]
