"""Seconds that COCOeval takes on a result set of the size of COCO val2017: pycocotools against faster-coco-eval.

    python tools/score_speed.py --rounds 3

5,000 images with about 7 boxes each in 80 classes, and 100 random detections an image. Both scorers in turns on the
same set, as `mnet-det eval --detections` calls them; reading files is in neither figure. Their numbers are compared
too. A round takes minutes, and pycocotools some gigabytes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mnet_det.engine.evaluate import Scores, score_results
from mnet_det.engine.scorers import Scorer, require
from mnet_det.errors import MnetDetError
from mnet_det.files import write_json
from mnet_det.runtime.benchmark import machine
from mnet_det.runtime.interleave import interleave

IMAGE_WH = (640, 480)
BOXES_AN_IMAGE = 7.4
"""On average, as in val2017: 36,781 in 5,000 images."""
CROWD_SHARE = 0.012
"""Of the boxes, as in val2017."""
SIDES_PX = (8, 400)
FOUND_SHARE = 0.3
"""Of the detections, those that lie near a true box and have its class; the others lie anywhere."""


def random_set(
    *, images: int, classes: int, detections: int, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results with crowds, areas that are not width × height, ids with gaps, and images without boxes.

    Args:
        images: how many.
        classes: how many.
        detections: in each image.
        seed: the same seed gives the same set.

    Returns:
        Annotations as `read_coco_json` gives them, and COCO results.
    """
    random = np.random.default_rng(seed)
    image_ids, category_ids = 3 + 7 * np.arange(images), 1 + 3 * np.arange(classes)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in image_ids.tolist():
        count = int(random.poisson(BOXES_AN_IMAGE))
        boxes_xywh, labels = _boxes(random, count), random.integers(classes, size=count)
        areas = boxes_xywh[:, 2:].prod(1) * random.uniform(0.4, 1, count)
        crowd = random.random(count) < CROWD_SHARE
        annotations += [
            {"id": number, "image_id": image_id, "category_id": c, "bbox": box, "area": area, "iscrowd": int(is_crowd)}
            for number, (c, box, area, is_crowd) in enumerate(
                zip(category_ids[labels].tolist(), boxes_xywh.tolist(), areas.tolist(), crowd, strict=True),
                start=len(annotations) + 1,
            )
        ]
        found_xywh, found_labels = _boxes(random, detections), random.integers(classes, size=detections)
        if count:
            near = np.flatnonzero(random.random(detections) < FOUND_SHARE)
            meant = random.integers(count, size=len(near))
            sizes = np.tile(boxes_xywh[meant, 2:], 2)
            found_xywh[near] = boxes_xywh[meant] + sizes * random.normal(0, 0.08, (len(near), 4))
            found_labels[near] = labels[meant]
        scores = random.beta(1, 4, detections).round(3)  # rounded, so that some are equal
        results += [
            {"image_id": image_id, "category_id": c, "bbox": box, "score": score}
            for c, box, score in zip(
                category_ids[found_labels].tolist(), found_xywh.tolist(), scores.tolist(), strict=True
            )
        ]
    width, height = IMAGE_WH
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": width, "height": height} for i in image_ids.tolist()],
        "categories": [{"id": c, "name": f"class {c}"} for c in category_ids.tolist()],
        "annotations": annotations,
    }
    return truth, results


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Boxes anywhere in an image, xywh [count, 4]; as many small as large ones."""
    least, most = np.log(SIDES_PX)
    sides = np.exp(random.uniform(least, most, (count, 2)))
    return np.hstack([random.random((count, 2)) * (np.array(IMAGE_WH) - sides), sides])


def largest_difference(one: Scores, other: Scores) -> float:
    """Between the numbers of two scorers, and between their AP of a class; none counts as -1, as COCOeval has it."""
    mine, theirs = (list(said.numbers.values()) + list(said.per_class.values()) for said in (one, other))
    return max(abs(_number(a) - _number(b)) for a, b in zip(mine, theirs, strict=True))


def _number(value: float | None) -> float:
    return -1.0 if value is None else value


def measure(truth: dict[str, Any], results: list[dict[str, Any]], *, rounds: int) -> dict[str, Any]:
    """Let both scorers judge in turns: seconds of each round, their medians and ratio, and how far they differ.

    Raises:
        MissingPackageError: faster-coco-eval is not installed.
    """
    said: dict[Scorer, Scores] = {}

    def contestant(scorer: Scorer) -> Callable[[int], float]:
        def seconds(_: int) -> float:
            started = time.perf_counter()
            said[scorer] = score_results(results, truth, scorer=scorer)
            return time.perf_counter() - started

        return seconds

    require("faster")
    contestants = [contestant(scorer) for scorer in get_args(Scorer)]
    slow, fast = interleave(contestants, rounds=rounds, warmup_rounds=0, burst=1, unmeasured=0)
    return {
        "pycocotools_s": float(np.median(slow)),
        "faster_s": float(np.median(fast)),
        "ratio": float(np.median(np.divide(slow, fast))),  # of rounds: what slows one of them slows both scorers
        "largest_difference": largest_difference(said["pycocotools"], said["faster"]),
        "rounds": {"pycocotools_s": slow, "faster_s": fast},
    }


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    chosen = parse(words)
    size = {"images": chosen.images, "classes": chosen.classes, "detections": chosen.detections}
    truth, results = random_set(**size, seed=chosen.seed)
    try:
        row = measure(truth, results, rounds=chosen.rounds)
    except MnetDetError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"python tools/score_speed.py {shlex.join(sys.argv[1:] if words is None else words)}".rstrip())
    print(
        f"{chosen.images} images, {len(truth['annotations'])} boxes, {chosen.classes} classes, {len(results)} "
        f"detections; seconds, median of {chosen.rounds}"
    )
    print(f"pycocotools {row['pycocotools_s']:8.2f}")
    print(f"faster      {row['faster_s']:8.2f}, {row['ratio']:.1f} times as fast")
    print(f"largest difference between their numbers {row['largest_difference']:.1e}")
    if chosen.json is not None:
        write_json(chosen.json, {"machine": machine(), "rows": [{**size, **row}]})


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=_count, default=5000)
    parser.add_argument("--classes", type=_count, default=80)
    parser.add_argument("--detections", type=_count, default=100, help="in each image")
    parser.add_argument("--rounds", type=_count, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    return parser.parse_args(words)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    main()
