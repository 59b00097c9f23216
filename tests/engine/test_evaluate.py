"""Scoring: COCOeval's numbers, classes joined by name, and what to say where there is nothing to judge."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnet_det.data.coco import NUMBERS, CocoData, read_coco, read_coco_json, read_results
from mnet_det.data.faults import Fault
from mnet_det.engine.evaluate import READ_AHEAD, detect_all, evaluate, restrict, score_results
from mnet_det.engine.torch_backend import load_torch_predictor
from mnet_det.errors import DataError, MissingPackageError
from mnet_det.images import write_image
from mnet_det.structures import Detections, Image

PUBLISHED = {
    "AP": 0.505,
    "AP50": 0.697,
    "AP75": 0.573,
    "AP_small": 0.586,
    "AP_medium": 0.519,
    "AP_large": 0.501,
    "AR_1": 0.387,
    "AR_10": 0.594,
    "AR_100": 0.595,
    "AR_small": 0.640,
    "AR_medium": 0.566,
    "AR_large": 0.564,
}


def truth(*boxes: tuple[int, int, list[float]], classes: Sequence[str] = ("a", "b"), images: int = 2) -> dict[str, Any]:
    """Annotations of image id, category id and xywh box; categories have the ids 10, 20 …"""
    return {
        "images": [{"id": 1 + index, "file_name": "x.jpg", "height": 200, "width": 200} for index in range(images)],
        "categories": [{"id": 10 * (1 + index), "name": name} for index, name in enumerate(classes)],
        "annotations": [
            {"id": 1 + n, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (i, c, box) in enumerate(boxes)
        ],
    }


def result(image_id: Any, category_id: int, box: list[float], score: float = 0.9) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


BOX = [10.0, 10.0, 120.0, 110.0]  # 13 200 square pixels: large


class Oracle:
    """A "model" with classes of its own order that finds exactly what is marked."""

    backend = SimpleNamespace(batch=1, callers=1)

    def __init__(self, data: CocoData, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._data = data
        self._next = 0

    def batch(self, images: Sequence[Image]) -> list[Detections]:
        found = []
        for image in images:
            marked = self._data.truth(self._next)
            assert image.shape[:2] == tuple(self._data.image_hws[self._next])
            self._next += 1
            labels = [self.class_names.index(self._data.class_names[label]) for label in marked.labels]
            scores = np.full(len(labels), 0.9, np.float32)
            found.append(Detections(marked.boxes_xyxy, scores, np.array(labels, np.int64)))
        return found


@pytest.fixture
def annotations(toy: Path) -> Path:
    return toy / "annotations" / "instances_val2017.json"


@pytest.fixture
def val(toy: Path, annotations: Path) -> CocoData:
    return read_coco(annotations, toy / "val2017")


@pytest.mark.shared
def test_the_official_fake_detections_score_as_published(shared: Path) -> None:
    folder = shared / "data" / "cocoeval_check"
    results = read_results(folder / "instances_val2014_fakebbox100_results.json")
    scores = score_results(results, read_coco_json(folder / "instances_val2014_100.json"))
    assert {name: round(value or 0, 3) for name, value in scores.numbers.items()} == PUBLISHED
    assert scores.images == 100
    assert scores.detections == len(results)
    # AP is the mean over the classes that have something to find.
    per_class = [value for value in scores.per_class.values() if value is not None]
    assert np.mean(per_class) == pytest.approx(scores.ap)


def test_a_model_is_scored_as_pycocotools_alone_scores_its_saved_detections(
    toy_run: Path, val: CocoData, annotations: Path, tmp_path: Path
) -> None:
    scores, results = evaluate(load_torch_predictor(toy_run / "best.pt"), val, annotations)
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCO(str(annotations))
        alone = COCOeval(judge, judge.loadRes(str(path)), "bbox")
        alone.evaluate()
        alone.accumulate()
        alone.summarize()
    assert [-1 if scores.numbers[name] is None else scores.numbers[name] for name in NUMBERS] == alone.stats.tolist()
    assert {r["category_id"] for r in results} <= {3, 7, 11, 18, 24, 40}  # the toy data's own ids
    assert {r["image_id"] for r in results} == set(val.image_ids.tolist())


def test_what_is_marked_scores_1(val: CocoData, annotations: Path) -> None:
    scores, _ = evaluate(Oracle(val, val.class_names), val, annotations)
    assert scores.ap == pytest.approx(1)
    assert scores.numbers["AR_100"] == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_the_batch_size_changes_nothing(batch_size: int, val: CocoData) -> None:
    one_by_one = list(detect_all(Oracle(val, val.class_names), val))
    assert list(detect_all(Oracle(val, val.class_names), val, batch_size=batch_size)) == one_by_one
    assert len(one_by_one) == len(val) == 4


def test_classes_are_joined_by_name(val: CocoData, annotations: Path, toy: Path, tmp_path: Path) -> None:
    """The same data with its category ids dealt out anew: other ids in the results, the same AP."""
    content = json.loads(annotations.read_text())
    new_ids = {3: 40, 7: 3, 11: 90, 18: 7, 24: 1, 40: 24}
    for category in content["categories"]:
        category["id"] = new_ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = new_ids[annotation["category_id"]]
    permuted_file = tmp_path / "permuted.json"
    permuted_file.write_text(json.dumps(content))
    permuted = read_coco(permuted_file, toy / "val2017")
    assert permuted.class_names != val.class_names  # another order by id
    scores, results = evaluate(Oracle(val, val.class_names), val, annotations)
    new_scores, new_results = evaluate(Oracle(permuted, val.class_names), permuted, permuted_file)
    assert new_scores.numbers == scores.numbers
    assert new_scores.per_class == scores.per_class
    assert [r["category_id"] for r in new_results] == [new_ids[r["category_id"]] for r in results]


def test_classes_that_the_data_lack_are_left_out(val: CocoData, annotations: Path, toy: Path) -> None:
    fewer = read_coco(annotations, toy / "val2017", classes=["ring", "cross"])
    scores, results = evaluate(Oracle(val, val.class_names), fewer, annotations)
    assert {r["category_id"] for r in results} <= {7, 40}
    assert scores.per_class.keys() == {"ring", "cross"}
    assert scores.ap == pytest.approx(1)


def test_a_class_without_boxes_that_the_model_lacks_does_no_harm(
    val: CocoData, annotations: Path, toy: Path, tmp_path: Path
) -> None:
    """Training went by such a file, and `eval` refused it with the same model."""
    content = json.loads(annotations.read_text())
    content["categories"].append({"id": 99, "name": "things"})
    path = tmp_path / "more.json"
    path.write_text(json.dumps(content))
    scores, _ = evaluate(Oracle(val, val.class_names), read_coco(path, toy / "val2017"), path)
    assert scores.ap == pytest.approx(1)
    assert "things" not in scores.per_class


def test_a_model_that_lacks_classes_of_the_data_is_refused(val: CocoData) -> None:
    message = (
        r"^the model has 2 classes, the data 6: the model does not know 3 of them \(triangle, star, cross\); "
        r"score it on its own classes \(`mnet-det eval --classes disc,ring`\), or train it on these$"
    )
    with pytest.raises(DataError, match=message):
        next(detect_all(Oracle(val, ["disc", "ring"]), val))


def test_classes_that_the_data_lack_are_left_out_and_counted(val: CocoData, toy: Path) -> None:
    oracle = Oracle(val, ["person", *val.class_names, "car"])
    scores, results = evaluate(oracle, val, toy / "annotations" / "instances_val2017.json")
    assert scores.classes_left_out == 2
    assert {result["category_id"] for result in results} <= set(val.category_ids)


def test_images_are_decoded_while_the_network_works() -> None:
    """They were read sixteen at a time, and the network waited for all sixteen."""
    later_read = threading.Event()

    class Images:
        class_names, marked_names, category_ids, image_ids = ("a",), ("a",), (1,), np.arange(READ_AHEAD + 2)

        def __len__(self) -> int:
            return READ_AHEAD + 2

        def image(self, index: int) -> Image:
            if index == READ_AHEAD:
                later_read.set()
            return np.zeros((4, 4, 3), np.uint8)

    class Network:
        class_names = ("a",)
        backend = SimpleNamespace(batch=1, callers=1)

        def batch(self, images: Sequence[Image]) -> list[Detections]:
            assert later_read.wait(timeout=10)
            return [Detections.empty() for _ in images]

    assert len(list(detect_all(Network(), Images()))) == READ_AHEAD + 2


class Numbered:
    """Images of growing width, one of which may be unreadable."""

    class_names, marked_names, category_ids, image_ids = ("a",), ("a",), (1,), np.arange(50)

    def __init__(self, *, unreadable: int | None = None) -> None:
        self.unreadable, self.read = unreadable, 0

    def __len__(self) -> int:
        return 50

    def image(self, index: int) -> Image:
        self.read += 1
        if index == self.unreadable:
            raise DataError(f"image {index}: cannot be read")
        return np.zeros((4, index + 1, 3), np.uint8)


class Busy:
    """A network of three callers that waits until all three have called; a box as wide as its image."""

    class_names = ("a",)
    backend = SimpleNamespace(batch=2, callers=3)

    def __init__(self) -> None:
        self.together = threading.Barrier(3, timeout=10)
        self.first = 3

    def batch(self, images: Sequence[Image]) -> list[Detections]:
        if self.first:
            self.first -= 1
            self.together.wait()
        assert len(images) == 2
        boxes = [np.array([[0, 0, image.shape[1], 4]], np.float32) for image in images]
        return [Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64)) for box in boxes]


def test_an_engine_is_called_from_as_many_threads_as_it_wants_and_the_order_stays() -> None:
    found = list(detect_all(Busy(), Numbered()))
    assert [results[0]["image_id"] for results in found] == list(range(50))
    assert [results[0]["bbox"][2] for results in found] == list(range(1, 51))


def test_images_are_read_while_a_large_batch_is_in_the_network() -> None:
    """From seventeen images on, the next batch was read only when the one before it was done."""
    data = Numbered()
    read_before: list[int] = []

    class Slow:
        class_names = ("a",)
        backend = SimpleNamespace(batch=20, callers=1)

        def batch(self, images: Sequence[Image]) -> list[Detections]:
            deadline = time.monotonic() + 5
            while not read_before and data.read < 40 and time.monotonic() < deadline:
                time.sleep(0.001)
            read_before.append(data.read)
            return [Detections.empty() for _ in images]

    assert len(list(detect_all(Slow(), data))) == 50
    assert read_before[0] >= 40


def test_a_fault_stops_the_reading() -> None:
    data = Numbered(unreadable=5)
    with pytest.raises(DataError, match="image 5: cannot be read"):
        list(detect_all(Busy(), data))
    assert data.read < 40


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_that_cannot_be_used_is_not_scored(
    val: CocoData, tmp_path: Path, annotations: Path, toy: Path, batch_size: int
) -> None:
    """It ended the scoring; and its boxes must not count as missed."""
    broken = broken_copy(annotations, toy, tmp_path, [2])
    readable = broken.without([Fault("not-an-image", "", "", image_id=int(val.image_ids[2]))])
    scores, results = evaluate(Oracle(readable, val.class_names), broken, annotations, batch_size=batch_size)
    assert scores.ap == pytest.approx(1)
    assert (scores.images, len({r["image_id"] for r in results})) == (3, 3)
    assert [(fault.kind, fault.image_id) for fault in scores.left_out] == [("not-an-image", val.image_ids[2])]
    assert scores.to_json()["left_out"][0]["file"] == val.file_name(2)


def test_a_score_of_half_the_images_is_refused(val: CocoData, tmp_path: Path, annotations: Path, toy: Path) -> None:
    broken = broken_copy(annotations, toy, tmp_path, [0, 1, 3])
    with pytest.raises(DataError, match=r"3 of 4 images cannot be used, such as .*: not an image"):
        evaluate(Oracle(val, val.class_names), broken, annotations)


def broken_copy(annotations: Path, toy: Path, folder: Path, spoilt: list[int]) -> CocoData:
    for index, path in enumerate(sorted((toy / "val2017").iterdir())):
        (folder / path.name).write_bytes(b"no image" if index in spoilt else path.read_bytes())
    return read_coco(annotations, folder)


def test_no_detections_give_0(val: CocoData, annotations: Path) -> None:
    scores = score_results([], read_coco_json(annotations))
    assert scores.numbers["AP"] == scores.ap == 0
    assert scores.detections == 0


def test_where_nothing_is_to_be_found_there_is_no_number() -> None:
    scores = score_results([result(1, 10, BOX)], truth((1, 10, BOX)))
    assert scores.numbers["AP"] == scores.numbers["AP_large"] == pytest.approx(1)
    assert scores.numbers["AP_small"] is None  # COCOeval says -1
    assert scores.numbers["AR_medium"] is None
    assert scores.per_class == {"a": pytest.approx(1), "b": None}


def test_data_without_boxes_have_no_ap() -> None:
    scores = score_results([result(1, 10, BOX)], truth())
    assert set(scores.numbers.values()) == {None}
    assert scores.ap == 0


def test_ap_is_the_mean_over_the_classes() -> None:
    marked = truth((1, 10, BOX), (2, 20, BOX))
    scores = score_results([result(1, 10, BOX)], marked)  # a found, b missed
    assert scores.per_class == {"a": pytest.approx(1), "b": 0}
    assert scores.ap == pytest.approx(0.5)


def test_a_false_alarm_above_the_only_hit_halves_ap() -> None:
    found = [result(2, 10, BOX, score=0.9), result(1, 10, BOX, score=0.8)]
    assert score_results(found, truth((1, 10, BOX))).ap == pytest.approx(0.5)  # precision 1/2 at every recall


@pytest.mark.parametrize(
    ("image_ids", "message"),
    [
        ([7], "^1 image ids of the detections are not in the annotations, such as 7$"),
        (["a.jpg", "b.jpg", "c.jpg", "d.jpg"], "^4 image ids .* such as a.jpg, b.jpg, c.jpg$"),
    ],
    ids=["an id", "file names"],
)
def test_detections_in_unknown_images_are_refused(image_ids: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_results([result(image_id, 10, BOX) for image_id in image_ids], truth((1, 10, BOX)))


def test_scoring_leaves_its_inputs_as_they_were() -> None:
    """COCOeval adds fields of its own to the annotations, and did so to the caller's."""
    found, marked = [result(1, 10, BOX)], truth((1, 10, BOX))
    before = json.dumps([found, marked])
    score_results(found, marked)
    assert json.dumps([found, marked]) == before


def test_scoring_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score_results([result(1, 10, BOX)], truth((1, 10, BOX)))
    assert capfd.readouterr() == ("", "")


def test_a_part_of_the_data_is_judged_by_that_part_alone(val: CocoData, annotations: Path) -> None:
    part = restrict(read_coco_json(annotations), val.head(2))
    assert [image["id"] for image in part["images"]] == val.head(2).image_ids.tolist()
    assert {annotation["image_id"] for annotation in part["annotations"]} == set(val.head(2).image_ids.tolist())
    scores, _ = evaluate(Oracle(val, val.class_names), val.head(2), annotations)
    assert (scores.images, scores.ap) == (2, pytest.approx(1))


def test_json_has_the_promised_keys() -> None:
    content = score_results([result(1, 10, BOX)], truth((1, 10, BOX))).to_json(runtime="openvino")
    assert list(content) == [*NUMBERS, "per_class", "images", "runtime", "classes_left_out", "left_out"]
    assert content["AP_small"] is None
    assert content["runtime"] == "openvino"


def test_detections_with_foreign_categories_alone_are_refused() -> None:
    """Labels 0…K-1 in the place of the data's ids scored AP 0 without a word."""
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 10, "width": 10}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}],
    }
    result = {"image_id": 1, "category_id": 0, "bbox": [0, 0, 5, 5], "score": 1.0}
    with pytest.raises(DataError, match="none of the detections has a category of the annotations"):
        score_results([result], truth)
    assert score_results([result | {"category_id": 7}], truth).ap == pytest.approx(1)


def test_a_missing_scorer_is_missed_before_anything_is_detected(
    val: CocoData, annotations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    oracle = Oracle(val, val.class_names)
    with pytest.raises(MissingPackageError, match="needs faster-coco-eval"):
        evaluate(oracle, val, annotations, scorer="faster")
    assert oracle._next == 0


def test_eval_takes_either_scorer(cli: Any, toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    annotations = toy / "annotations" / "instances_val2017.json"
    marked = read_coco_json(annotations)["annotations"]
    results = tmp_path / "results.json"
    kept = ("image_id", "category_id", "bbox")
    results.write_text(json.dumps([{key: a[key] for key in kept} | {"score": 0.5} for a in marked[::2]]))
    words = ("eval", "--detections", results, "--annotations", annotations)
    said = []
    for scorer in ("pycocotools", "faster"):
        path = tmp_path / f"{scorer}.json"
        assert cli(*words, "--scorer", scorer, "--json", path).status == 0
        said.append(json.loads(path.read_text()))
    reference, faster = said
    assert {name: faster[name] for name in NUMBERS} == pytest.approx({n: reference[n] for n in NUMBERS}, abs=1e-9)
    assert faster["per_class"] == pytest.approx(reference["per_class"], abs=1e-9)
    assert 0 < reference["AP"] < 1
    assert cli(*words, "--scorer", "detectron").status == 2


def numbered_images(folder: Path, count: int) -> None:
    """Images 10, 11 … of one box each, whose pixels are ten times their number; the last file is no image."""
    content = truth(*[(10 + n, 1 + n % 2, [2.0, 2.0, 12.0, 12.0]) for n in range(count)])
    content["images"] = [{"id": 10 + n, "file_name": f"{n}.png", "height": 32, "width": 32} for n in range(count)]
    content["categories"] = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
    (folder / "truth.json").write_text(json.dumps(content))
    for number in range(count - 1):
        write_image(folder / f"{number}.png", np.full((32, 32, 3), 10 * number, np.uint8))
    (folder / f"{count - 1}.png").write_bytes(b"no image")


def test_two_processes_count_each_image_once_and_fail_together(tmp_path: Path) -> None:
    """Of eight images the last cannot be used; a fault of one process must not leave the other waiting."""
    numbered_images(tmp_path, 8)
    words = [sys.executable, str(Path(__file__).with_name("sharded_scoring.py")), str(tmp_path)]
    with ExitStack() as stack:
        pair = [stack.enter_context(subprocess.Popen([*words, str(rank)], stdout=PIPE, text=True)) for rank in range(2)]
        for process in pair:
            stack.callback(process.kill)
        said = [process.communicate(timeout=120)[0] for process in pair]
    first, second = (json.loads(text.splitlines()[-1]) for text in said)  # torch 2.9's gloo has a word first
    # Both have the same, but the results are with the first alone: they may be large.
    *same, results = first["together"].pop("well")
    assert second["together"].pop("well") == [*same, []]
    assert first["together"] == second["together"]
    assert [*same, results] == first["alone"]
    assert first["together"] == {
        "fails on the second": "DataError: the network cannot take image 3",
        "fails on the first as it scores": (
            "DataError: 1 image ids of the detections are not in the annotations, such as 10"
        ),
    }
    scores, detections = same
    assert scores["images"] == detections == 7
    assert [result["image_id"] for result in results] == list(range(10, 17))
    assert [entry["image_id"] for entry in scores["left_out"]] == [17]
    assert 0 < scores["AP"] < 1
