"""The two scorers: alike to the last digits that matter, on real, random and degenerate sets, and quiet."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet_det.data.coco import read_coco_json, read_results
from mnet_det.engine.evaluate import Scores, score_results
from mnet_det.engine.scorers import require
from mnet_det.errors import MissingPackageError
from tools.score_speed import random_set

pytest.importorskip("faster_coco_eval", reason="pip install faster-coco-eval")


def require_alike(results: list[dict[str, Any]], truth: dict[str, Any]) -> Scores:
    """The verdict on which both agree."""
    reference = score_results(results, truth)
    faster = score_results(results, truth, scorer="faster")
    assert faster.numbers == pytest.approx(reference.numbers, abs=1e-9)
    assert list(faster.per_class) == list(reference.per_class)
    assert faster.per_class == pytest.approx(reference.per_class, abs=1e-9)
    assert (faster.images, faster.detections) == (reference.images, reference.detections)
    return reference


@pytest.mark.shared
def test_the_scorers_agree_on_the_published_example(shared: Path) -> None:
    folder = shared / "data" / "cocoeval_check"
    results = read_results(folder / "instances_val2014_fakebbox100_results.json")
    scores = require_alike(results, read_coco_json(folder / "instances_val2014_100.json"))
    assert scores.ap == pytest.approx(0.505, abs=5e-4)


@pytest.mark.slow
def test_the_scorers_agree_on_a_set_of_the_size_of_val2017() -> None:
    truth, results = random_set(images=5000, classes=80, detections=100)
    assert len(results) == 500_000
    assert 0.01 < require_alike(results, truth).ap < 0.99


def crowded(seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A small set of what is rare in a large one.

    Whole-number boxes and a dozen different scores, so that IoUs and scores are equal; a fifth of the boxes crowds;
    areas that put a box into another size than its sides do; images without boxes, without detections, and with more
    than COCOeval looks at; categories that nobody marked or found, and one that does not exist; large ids with gaps,
    in no order.
    """
    random = np.random.default_rng(seed)
    image_ids = (10**15 + 7 * random.permutation(6)).tolist()
    category_ids = (3 + 11 * random.permutation(4)).tolist()
    annotations: list[dict[str, Any]] = []
    results = []
    for image_id in image_ids[1:]:
        for _ in range(random.integers(1, 9)):
            left, top, width, height = random.integers([0, 0, 1, 1], [200, 200, 150, 150]).tolist()
            annotations.append(
                {
                    "id": 1 + len(annotations),
                    "image_id": image_id,
                    "category_id": category_ids[random.integers(3)],
                    "bbox": [left, top, width, height],
                    "area": width * height * float(random.choice([0.5, 1, 3, 100])),
                    "iscrowd": int(not annotations or random.random() < 0.2),
                }
            )
    for image_id in image_ids[:-1]:
        marked = [a for a in annotations if a["image_id"] == image_id]
        for _ in range(500 if image_id == image_ids[2] else 20):
            box = random.integers([-20, -20, 0, 0], [250, 250, 200, 200])
            if marked and random.random() < 0.6:
                near = marked[random.integers(len(marked))]
                box = np.maximum(near["bbox"] + random.integers(-4, 5, 4), 0)
            category_id = 999 if random.random() < 0.03 else category_ids[random.integers(3)]
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [float(side) for side in box],
                    "score": float(np.float32(random.integers(12) / 11)),
                }
            )
    truth = {
        "images": [{"id": image_id, "file_name": "x.jpg", "height": 300, "width": 300} for image_id in image_ids],
        "categories": [{"id": category_id, "name": f"class {category_id}"} for category_id in category_ids],
        "annotations": annotations,
    }
    return results, truth


@pytest.mark.parametrize("seed", range(6))
def test_the_scorers_agree_where_ties_crowds_and_gaps_abound(seed: int) -> None:
    results, truth = crowded(seed)
    scores = require_alike(results, truth)
    assert scores.numbers["AP"]
    assert None in scores.per_class.values()  # the category that nobody marked


def test_the_scorers_agree_where_there_is_nothing() -> None:
    results, truth = crowded(0)
    assert require_alike([], truth).ap == 0
    assert set(require_alike(results, {**truth, "annotations": []}).numbers.values()) == {None}
    crowds = [{**annotation, "iscrowd": 1} for annotation in truth["annotations"]]
    assert set(require_alike(results, {**truth, "annotations": crowds}).numbers.values()) == {None}
    assert set(require_alike([], {**truth, "annotations": []}).numbers.values()) == {None}


@pytest.mark.parametrize("scorer", ["pycocotools", "faster"])
def test_a_scorer_prints_nothing_and_leaves_its_inputs_as_they_were(
    scorer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    results, truth = crowded(1)
    before = json.dumps([results, truth])
    score_results(results, truth, scorer=scorer)
    score_results([], truth, scorer=scorer)
    assert json.dumps([results, truth]) == before
    assert capfd.readouterr() == ("", "")


def test_a_missing_scorer_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    require("pycocotools")
    message = r"^the scorer 'faster' needs faster-coco-eval: .*install.*faster.*; or score with 'pycocotools'"
    with pytest.raises(MissingPackageError, match=message):
        require("faster")
    with pytest.raises(MissingPackageError, match=message):
        score_results([], crowded(0)[1], scorer="faster")
