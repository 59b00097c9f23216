"""The analysis: COCOeval's own curves, best thresholds by arithmetic, and a confusion matrix written out by hand."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnet_det.data.coco import NUMBERS, CocoData, read_coco, read_coco_json, read_results
from mnet_det.data.faults import Fault
from mnet_det.engine.analysis import RECALL, Analysis, BestF1, analyse, analyse_model, best_f1, confuse
from mnet_det.engine.evaluate import Scores, evaluate, score_results
from mnet_det.engine.scorers import ClassMatches
from mnet_det.errors import DataError
from mnet_det.structures import Detections, Image
from tools.score_speed import random_set

APS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def annotations(*boxes: tuple[int, int, list[float]], crowd: Sequence[int] = (), images: int = 3) -> dict[str, Any]:
    """Image id, category id and xywh box of the annotations 1, 2 …; the classes are a (10) and b (20)."""
    return {
        "images": [{"id": 1 + n, "file_name": "x.jpg", "height": 200, "width": 200} for n in range(images)],
        "categories": [{"id": 20, "name": "b"}, {"id": 10, "name": "a"}],  # in no order
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": int(n in crowd)}
            for n, (i, c, b) in enumerate(boxes, start=1)
        ],
    }


def result(image_id: int, category_id: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def judged(results: list[dict[str, Any]], truth: dict[str, Any]) -> COCOeval:
    """By pycocotools alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = {"info": {}, **json.loads(json.dumps({k: v for k, v in truth.items() if k != "left_out"}))}
        true.createIndex()
        evaluation = COCOeval(true, true.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


# --- against pycocotools, on its published example


class Published:
    """The published detections: what the analysis says of them, and what pycocotools does."""

    def __init__(self, folder: Path) -> None:
        self.truth = read_coco_json(folder / "instances_val2014_100.json")
        self.results = read_results(folder / "instances_val2014_fakebbox100_results.json")
        self.scores, self.analysis = analyse(self.results, self.truth)
        self.evaluation = judged(self.results, self.truth)
        names = {category["id"]: category["name"] for category in self.truth["categories"]}
        self.names = [names[category_id] for category_id in self.evaluation.params.catIds]


@pytest.fixture(scope="module")
def published(shared: Path) -> Published:
    return Published(shared / "data" / "cocoeval_check")


@pytest.mark.shared
def test_curves_are_those_of_pycocotools(published: Published) -> None:
    precision = published.evaluation.eval["precision"]
    assert RECALL.tolist() == published.evaluation.params.recThrs.tolist()
    for iou, place in {"0.50": 0, "0.75": 5}.items():
        assert published.evaluation.params.iouThrs[place] == float(iou)
        curves = published.analysis.curves[iou]
        assert list(curves) == published.names
        for index, curve in enumerate(curves.values()):
            expected = precision[place, :, index, 0, 2]
            assert (curve is None) == (expected == -1).all()
            assert curve is None or curve.tolist() == expected.tolist()
    assert 0 < sum(curve is None for curve in published.analysis.curves["0.50"].values()) < 80


@pytest.mark.shared
def test_the_twelve_numbers_are_the_published_ones(published: Published) -> None:
    assert [published.scores.numbers[name] for name in NUMBERS] == published.evaluation.stats.tolist()
    assert published.scores.numbers["AP"] == pytest.approx(0.505, abs=5e-4)
    assert published.scores == score_results(published.results, published.truth)


@pytest.mark.shared
def test_ap_of_all_classes_has_the_published_means(published: Published) -> None:
    """Each number but AR is the mean over the classes that have objects of that size."""
    for part in APS:
        values = [of_class[part] for of_class in published.analysis.ap.values()]
        assert np.mean([value for value in values if value is not None]) == pytest.approx(
            published.scores.numbers[part]
        )
    assert {name: of_class["AP"] for name, of_class in published.analysis.ap.items()} == published.scores.per_class


@pytest.mark.shared
def test_objects_are_counted_without_crowds(published: Published) -> None:
    ids = {category["name"]: category["id"] for category in published.truth["categories"]}
    singles = [a["category_id"] for a in published.truth["annotations"] if not a["iscrowd"]]
    assert published.analysis.objects == {name: singles.count(ids[name]) for name in published.names}
    assert 0 < len(singles) < len(published.truth["annotations"])
    # Each is in the row of its class, found or not
    matrix = published.analysis.confusion.matrix
    assert matrix[:-1].sum(axis=1).tolist() == list(published.analysis.objects.values())
    assert np.trace(matrix) > len(singles) / 2


@pytest.mark.shared
def test_json_is_what_reports_read(published: Published) -> None:
    content = published.analysis.to_json()
    assert list(content) == ["recall", "curves", "per_class", "best_f1", "confusion"]
    assert content["recall"] == [round(step / 100, 2) for step in range(101)]
    assert list(content["curves"]) == ["0.50", "0.75"]
    assert list(content["per_class"]["person"]) == ["objects", *APS]
    assert list(content["best_f1"]["person"]) == ["score", "precision", "recall", "f1"]
    assert list(content["confusion"]) == ["labels", "iou", "scores", "matrix"]
    assert content["confusion"]["labels"] == [*published.names, "background"]
    assert content["confusion"]["iou"] == 0.5
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text) == content
    precision = content["curves"]["0.75"]["person"]
    assert len(precision) == 101
    assert precision == pytest.approx(published.analysis.curves["0.75"]["person"], abs=5e-7)
    assert max(len(str(value)) for value in precision) <= len("0.123456")


# --- the best threshold


def matches(hits: str, scores: Sequence[float], *, objects: int) -> ClassMatches:
    """Detections, best first: + found an object, - did not."""
    return ClassMatches(np.array(scores, np.float64), np.array([h == "+" for h in hits], bool), objects, frozenset())


BEST = {
    # 2/5, 2/6, 4/7, 6/8, 6/9: at 0.6, and 0.55 is halfway to the first that is out
    "in the middle": ("+-++-", [0.9, 0.8, 0.7, 0.6, 0.5], 4, BestF1(0.55, precision=3 / 4, recall=3 / 4, f1=0.75)),
    # 2/3, 4/4: nothing is out
    "all of them": ("++", [0.9, 0.7], 2, BestF1(0.7, precision=1, recall=1, f1=1)),
    # 2/3, 2/4, 2/5, 4/6: the first is as good as the last
    "the highest of the best": ("+--+", [0.9, 0.7, 0.6, 0.5], 2, BestF1(0.8, precision=1, recall=1 / 2, f1=2 / 3)),
    # Equal scores are in or out together: 2/4 at 0.9, 2/5, 4/6
    "equal scores": ("-+-+", [0.9, 0.9, 0.6, 0.5], 2, BestF1(0.5, precision=1 / 2, recall=1, f1=2 / 3)),
    # No threshold of six digits lies between the first two: 2/3, not 2/2
    "scores too close": ("+-", [0.6000004, 0.6000001], 1, BestF1(0.6, precision=1 / 2, recall=1, f1=2 / 3)),
    # One does here, 0.600001
    "scores just apart": ("+-", [0.6000011, 0.6000009], 1, BestF1(0.600001, precision=1, recall=1, f1=1)),
    "a score of 0": ("+", [0.0], 1, BestF1(0.0, precision=1, recall=1, f1=1)),
    "nothing found": ("--", [0.9, 0.8], 3, None),
    "no detections": ("", [], 3, None),
    "no objects": ("--", [0.9, 0.8], 0, None),
}


@pytest.mark.parametrize(("hits", "scores", "objects", "expected"), BEST.values(), ids=BEST)
def test_best_f1(hits: str, scores: list[float], objects: int, expected: BestF1 | None) -> None:
    assert best_f1(matches(hits, scores, objects=objects)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_and_rounding_changes_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = np.sort(random.random(60).round(random.integers(1, 9)).astype(np.float32).astype(float))[::-1]
    found = ClassMatches(scores, random.random(60) < scores, 50, frozenset())
    best = best_f1(found)
    assert best is not None
    assert round(best.score, 6) == best.score
    taken = scores >= best.score
    hits = int(found.hits[taken].sum())
    assert (best.precision, best.recall) == (hits / taken.sum(), hits / 50)
    others = [2 * found.hits[scores >= t].sum() / (50 + (scores >= t).sum()) for t in np.unique(scores.round(5))]
    assert best.f1 == pytest.approx(2 * hits / (50 + taken.sum()))
    assert best.f1 >= max(others)


@pytest.mark.parametrize("seed", range(3))
def test_detections_from_the_best_threshold_on_have_its_precision_and_recall(seed: int) -> None:
    """COCOeval judges only those, and so says it itself."""
    truth, results = random_set(images=15, classes=3, detections=40, seed=seed)
    for annotation in truth["annotations"][::5]:
        annotation["iscrowd"] = 1
    _, analysis = analyse(results, truth)
    best = analysis.to_json()["best_f1"]
    least = {category["id"]: best[category["name"]]["score"] for category in truth["categories"]}
    kept = [r for r in results if r["score"] >= least[r["category_id"]]]
    assert 0 < len(kept) < len(results)
    evaluation = judged(kept, truth)
    recall = evaluation.eval["recall"][0, :, 0, 2]
    for index, name in enumerate(analysis.best_f1):
        entry = analysis.best_f1[name]
        assert entry is not None
        assert recall[index] == entry.recall
        # All detections that COCOeval does not ignore, and those of them that found something
        start = index * 4 * 15
        images = [image for image in evaluation.evalImgs[start : start + 15] if image is not None]
        hits = np.concatenate([image["dtMatches"][0][~image["dtIgnore"][0]] > 0 for image in images])
        assert hits.mean() == entry.precision
        assert entry.f1 == pytest.approx(2 * entry.precision * entry.recall / (entry.precision + entry.recall))


# --- the confusion matrix

CORNER, RIGHT, BELOW = [0.0, 0.0, 40.0, 40.0], [100.0, 0.0, 40.0, 40.0], [0.0, 100.0, 40.0, 40.0]
CROWD = [100.0, 100.0, 80.0, 80.0]


def test_confusion_by_hand() -> None:
    truth = annotations(
        (1, 10, CORNER),
        (1, 20, RIGHT),
        (1, 10, BELOW),
        (1, 10, CROWD),
        (2, 10, CORNER),
        (2, 20, RIGHT),
        crowd=[4],
    )
    results = [
        result(1, 10, CORNER, 0.9),  # a as a
        result(1, 10, RIGHT, 0.8),  # b as a
        result(1, 10, BELOW, 0.49),  # scores too little: a is missed
        result(1, 10, [110, 110, 20, 20], 0.7),  # in the crowd of a: not counted
        result(1, 20, [110, 110, 20, 20], 0.7),  # in a crowd of another class: b where nothing is
        result(1, 10, [80, 100, 40, 40], 0.7),  # half of it in the crowd of a: not counted
        result(1, 10, [79, 100, 40, 40], 0.7),  # 19/40 of it in the crowd: a where nothing is
        result(2, 20, CORNER, 0.95),  # IoU 1 as the next, but of another class: b where nothing is
        result(2, 10, CORNER, 0.6),  # a as a
        result(2, 20, [104, 0, 40, 40], 0.9),  # IoU 36/44, less than the next: b where nothing is
        result(2, 10, [102, 0, 40, 40], 0.6),  # IoU 38/42: b as a
        result(3, 10, CORNER, 0.5),  # scores just enough: a where nothing is
        result(3, 99, CORNER, 0.9),  # no class of these
    ]
    confusion = confuse(
        results, truth, id_of={"a": 10, "b": 20}, scores={"a": 0.5, "b": 0.5}, ignored_ids=frozenset([4])
    )
    assert confusion.matrix.tolist() == [
        # a  b  background
        [2, 0, 1],  # a
        [2, 0, 0],  # b
        [2, 3, 0],  # background
    ]


PAIRS = {
    # IoU 20·40 / 40·40 = 0.5, and 19.9/40
    "half": ([CORNER], [[0, 0, 40, 20]], [[1, 0], [0, 0]]),
    "less than half": ([CORNER], [[0, 0, 40, 19.9]], [[0, 1], [1, 0]]),
    "found twice": ([CORNER], [CORNER, CORNER], [[1, 0], [1, 0]]),
    "one for two": ([CORNER, CORNER], [CORNER], [[1, 1], [0, 0]]),
    # The second has IoU 30/50 with the first and 36/44 with the second box, the first 1 with the first
    "each its own": ([CORNER, [14, 0, 40, 40]], [CORNER, [10, 0, 40, 40]], [[2, 0], [0, 0]]),
    "nothing there": ([], [CORNER], [[0, 0], [1, 0]]),
    "nothing found": ([CORNER], [], [[0, 1], [0, 0]]),
    "nothing at all": ([], [], [[0, 0], [0, 0]]),
}


@pytest.mark.parametrize(("true", "found", "expected"), PAIRS.values(), ids=PAIRS)
def test_each_box_is_counted_once(true: list[Any], found: list[Any], expected: list[list[int]]) -> None:
    truth = annotations(*((1, 10, box) for box in true))
    results = [result(1, 10, box, 0.9) for box in found]
    assert confuse(results, truth, id_of={"a": 10}, scores={"a": 0.5}, ignored_ids=frozenset()).matrix.tolist() == (
        expected
    )


def test_the_matrix_is_of_detections_that_reach_the_best_threshold_of_their_class() -> None:
    """Halfway between 0.3, the hit, and 0.1 for a; b is never found, and has 0.5."""
    truth = annotations((1, 10, CORNER), (1, 10, CROWD), (2, 20, RIGHT), crowd=[2])
    results = [
        result(1, 10, CORNER, 0.3),
        result(1, 10, [110, 110, 20, 20], 0.3),  # in the crowd: ignored
        result(2, 10, CORNER, 0.1),
        result(2, 20, CORNER, 0.5),
        result(2, 20, BELOW, 0.4),
    ]
    _, analysis = analyse(results, truth)
    assert analysis.best_f1 == {"a": BestF1(0.2, precision=1, recall=1, f1=1), "b": None}
    content = analysis.to_json()["confusion"]
    assert content["labels"] == ["a", "b", "background"]
    assert content["scores"] == {"a": 0.2, "b": 0.5}
    assert content["matrix"] == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_what_coco_eval_ignores_for_its_size_is_not_counted_either() -> None:
    """It takes boxes of up to 10^10 square pixels: another annotation that is no crowd, and does not count."""
    truth = annotations((1, 10, CORNER), (1, 10, RIGHT))
    truth["annotations"][1]["area"] = 2e10
    _, analysis = analyse([result(1, 10, CORNER, 0.9), result(1, 10, RIGHT, 0.9)], truth)
    assert analysis.objects == {"a": 1, "b": 0}
    assert analysis.best_f1["a"] == BestF1(0.9, precision=1, recall=1, f1=1)
    assert analysis.confusion.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


# --- where there is little to say


def test_no_detections() -> None:
    scores, analysis = analyse([], annotations((1, 10, CORNER)))
    assert scores.ap == 0
    assert analysis.objects == {"a": 1, "b": 0}
    assert analysis.best_f1 == {"a": None, "b": None}
    curve = analysis.curves["0.50"]["a"]
    assert curve is not None
    assert curve.tolist() == [0] * 101
    assert analysis.confusion.matrix.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_a_class_without_objects_has_nulls() -> None:
    _, analysis = analyse([result(1, 10, CORNER, 0.9), result(1, 20, CORNER, 0.9)], annotations((1, 10, CORNER)))
    content = analysis.to_json()
    assert content["per_class"] == {
        # 1600 square pixels are of medium size
        "a": {"objects": 1, "AP": 1, "AP50": 1, "AP75": 1, "AP_small": None, "AP_medium": 1, "AP_large": None},
        "b": {"objects": 0} | dict.fromkeys(APS),
    }
    assert content["curves"] == {iou: {"a": [1] * 101, "b": None} for iou in ("0.50", "0.75")}
    assert content["best_f1"]["b"] is None
    assert content["confusion"]["matrix"] == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_nothing_is_marked_and_nothing_found() -> None:
    scores, analysis = analyse([], annotations())
    assert set(scores.numbers.values()) == {None}
    assert analysis.objects == {"a": 0, "b": 0}
    assert not analysis.confusion.matrix.any()


def test_the_order_of_the_results_does_not_matter() -> None:
    truth, results = random_set(images=10, classes=4, detections=40)
    distinct = [entry | {"score": 0.9 - 0.0005 * number} for number, entry in enumerate(results)]
    once, again = (analyse(found, truth)[1].to_json() for found in (distinct, distinct[::-1]))
    assert once == again


def test_the_results_and_annotations_stay_as_they_were() -> None:
    truth, results = random_set(images=4, classes=2, detections=10)
    before = json.dumps([results, truth])
    analyse(results, truth)
    assert json.dumps([results, truth]) == before


def test_results_of_other_data_are_refused() -> None:
    with pytest.raises(DataError, match="1 image ids of the detections are not in the annotations, such as 9"):
        analyse([result(9, 10, CORNER, 0.9)], annotations((1, 10, CORNER)))
    twice = annotations() | {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}
    with pytest.raises(ValueError, match="2 categories have 1 different names"):
        analyse([], twice)


# --- a model


class Guesser:
    """A "model" with classes of its own order that finds what is marked, a little beside it, and names some wrongly."""

    backend = SimpleNamespace(batch=1, callers=1)

    def __init__(self, data: CocoData, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._data = data
        self._random = np.random.default_rng(0)
        self._next = 0

    def batch(self, images: Sequence[Image]) -> list[Detections]:
        return [self._detect() for _ in images]

    def _detect(self) -> Detections:
        marked = self._data.truth(self._next)
        self._next += 1
        count = 3 * len(marked.labels)
        boxes = np.repeat(marked.boxes_xyxy, 3, axis=0) + self._random.normal(0, 6, (count, 4)).astype(np.float32)
        true = [self.class_names.index(self._data.class_names[label]) for label in np.repeat(marked.labels, 3)]
        wrong = self._random.random(count) < 0.3
        labels = np.where(wrong, self._random.integers(len(self.class_names), size=count), true)
        order = np.argsort(-(scores := self._random.random(count).astype(np.float32)))
        return Detections(boxes, scores, labels.astype(np.int64))[order]


@pytest.fixture
def annotation_file(toy: Path) -> Path:
    return toy / "annotations" / "instances_val2017.json"


@pytest.fixture
def val(toy: Path, annotation_file: Path) -> CocoData:
    return read_coco(annotation_file, toy / "val2017")


def both(data: CocoData, path: Path, names: Sequence[str], seen: CocoData) -> tuple[Scores, Analysis]:
    """What `analyse_model` gives, after a look that `evaluate` gives the same scores and results."""
    expected = evaluate(Guesser(seen, names), data, path)  # type: ignore[arg-type]
    scores, analysis, results = analyse_model(Guesser(seen, names), data, path)  # type: ignore[arg-type]
    assert (scores, results) == expected
    return scores, analysis


def test_a_model_has_the_scores_that_evaluate_gives(val: CocoData, annotation_file: Path) -> None:
    names = list(reversed(val.class_names))
    scores, analysis = both(val, annotation_file, names, val)
    assert 0 < scores.ap < 1
    assert list(analysis.objects) == list(analysis.confusion.class_names) == names
    assert sum(analysis.objects.values()) == val.num_objects
    assert {name: of_class["AP"] for name, of_class in analysis.ap.items()} == scores.per_class
    assert analysis.confusion.matrix[:-1].sum() == val.num_objects


def test_classes_that_the_data_lack_have_nulls(val: CocoData, annotation_file: Path) -> None:
    scores, analysis = both(val, annotation_file, ["person", *val.class_names, "car"], val)
    assert scores.classes_left_out == 2
    assert "person" not in scores.per_class
    content = analysis.to_json()
    assert content["confusion"]["labels"] == ["person", *val.class_names, "car", "background"]
    assert content["per_class"]["person"] == content["per_class"]["car"] == {"objects": 0} | dict.fromkeys(APS)
    assert content["curves"]["0.75"]["person"] is content["best_f1"]["car"] is None
    assert content["confusion"]["scores"]["car"] == 0.5
    matrix = analysis.confusion.matrix
    assert not matrix[[0, -2]].any()
    assert not matrix[:, [0, -2]].any()  # what was taken for a person is not judged
    assert matrix[1:-2].sum() == val.num_objects


def test_a_name_that_the_model_has_twice_is_there_once(val: CocoData, annotation_file: Path) -> None:
    first, *others = val.class_names
    scores, analysis = both(val, annotation_file, ["???", first, *others, "???", first], val)
    assert list(analysis.objects) == ["???", first, *others]
    assert {name: analysis.ap[name]["AP"] for name in val.class_names} == scores.per_class
    assert scores.per_class[first]
    assert analysis.objects["???"] == 0


def test_images_that_cannot_be_used_are_left_out(
    val: CocoData, annotation_file: Path, toy: Path, tmp_path: Path
) -> None:
    for index, path in enumerate(sorted((toy / "val2017").iterdir())):
        (tmp_path / path.name).write_bytes(b"no image" if index == 1 else path.read_bytes())
    readable = val.without([Fault("not-an-image", "", "", image_id=int(val.image_ids[1]))])
    scores, analysis = both(read_coco(annotation_file, tmp_path), annotation_file, val.class_names, readable)
    assert (scores.images, len(scores.left_out)) == (3, 1)
    assert sum(analysis.objects.values()) == analysis.confusion.matrix[:-1].sum() == readable.num_objects
    assert 0 < readable.num_objects < val.num_objects
