"""COCO files: ids to labels, boxes to pixels, and every bad file explained in a line."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet_det.data.coco import CocoData, read_coco, read_coco_json, read_results, to_results
from mnet_det.data.faults import Fault
from mnet_det.errors import DataError
from mnet_det.images import write_image
from mnet_det.structures import Detections

Content = dict[str, Any]


def content(*annotations: Content) -> Content:
    """Three images, and categories with gappy ids in no order."""
    return {
        "images": [
            {"id": 70, "file_name": "c.png", "height": 40, "width": 60},
            {"id": 5, "file_name": "a.png", "height": 30, "width": 50},
            {"id": 12, "file_name": "ü.png", "height": 20, "width": 20},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 44, "name": "bird"}],
        "annotations": list(annotations),
    }


def box(image_id: int = 5, category_id: int = 1, bbox: tuple[float, ...] = (1, 2, 10, 10), **more: object) -> Content:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def write(folder: Path, what: object) -> Path:
    path = folder / "instances.json"
    path.write_text(what if isinstance(what, str) else json.dumps(what), encoding="utf-8")
    return path


def read(folder: Path, what: object, **settings: Any) -> CocoData:
    return read_coco(write(folder, what), folder, **settings)


def test_gappy_ids_become_labels_by_ascending_id(tmp_path: Path) -> None:
    data = read(tmp_path, content(box(category_id=90), box(category_id=1), box(category_id=44)))
    assert data.class_names == ("dog", "bird", "cat")
    assert data.category_ids == (1, 44, 90)
    assert data.truth(1).labels.tolist() == [2, 0, 1]


def test_ids_from_zero_are_ids_like_others(tmp_path: Path) -> None:
    what = content(box(category_id=0), box(category_id=2))
    what["categories"] = [{"id": i, "name": name} for i, name in enumerate(("a", "b", "c"))]
    data = read(tmp_path, what)
    assert (data.class_names, data.category_ids) == (("a", "b", "c"), (0, 1, 2))
    assert data.truth(1).labels.tolist() == [0, 2]


def test_whole_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    """Tables with gaps write 640 as 640.0; nothing else can be meant."""
    what = content(box(5.0, 90.0, id=3.0))  # type: ignore[arg-type]
    what["images"][1].update(width=50.0, id=5.0)
    data = read(tmp_path, what)
    assert (data.truth(1).labels.tolist(), data.annotation_ids(1).tolist(), data.image_hws[1].tolist()) == (
        [2],
        [3],
        [30, 50],
    )
    assert read_coco_json(tmp_path / "instances.json")["images"][1]["width"] == 50


def test_order_of_categories_in_the_file_does_not_matter(tmp_path: Path) -> None:
    what = content(box(category_id=44))
    first = read(tmp_path, what)
    what["categories"].reverse()
    second = read(tmp_path, what)
    assert first.class_names == second.class_names
    assert first.truth(1).labels.tolist() == second.truth(1).labels.tolist() == [1]


def test_boxes_belong_to_their_images_in_the_files_order(tmp_path: Path) -> None:
    data = read(tmp_path, content(box(12, bbox=(0, 0, 1, 1)), box(70, bbox=(0, 0, 2, 2)), box(12, bbox=(0, 0, 3, 3))))
    assert len(data) == 3
    assert data.num_boxes == 3
    assert data.image_ids.tolist() == [70, 5, 12]
    assert [data.truth(i).boxes_xyxy[:, 2].tolist() for i in range(3)] == [[2], [], [1, 3]]
    assert [data.path(i).name for i in range(3)] == ["c.png", "a.png", "ü.png"]


def test_boxes_are_clipped_to_their_own_image(tmp_path: Path) -> None:
    data = read(tmp_path, content(box(70, bbox=(-5, 10, 30, 100)), box(5, bbox=(40, 20, 30, 30))))
    assert data.truth(0).boxes_xyxy.tolist() == [[0, 10, 25, 40]]
    assert data.truth(1).boxes_xyxy.tolist() == [[40, 20, 50, 30]]
    assert data.truth(0).boxes_xyxy.dtype == np.float32


@pytest.mark.parametrize(
    "bbox", [(10, 10, 0, 5), (10, 10, 5, -5), (50, 0, 5, 5), (0, 30, 5, 5), (-9, 0, 9, 5)], ids=str
)
def test_boxes_without_area_in_the_image_are_counted_and_left_out(tmp_path: Path, bbox: tuple[float, ...]) -> None:
    data = read(tmp_path, content(box(bbox=bbox), box(category_id=90)))
    assert ([fault.entry for fault in data.left_out], data.num_boxes) == (["annotations[0]"], 1)
    assert data.truth(1).labels.tolist() == [2]


def test_crowds_are_marked(tmp_path: Path) -> None:
    data = read(tmp_path, content(box(iscrowd=1), box(), box(iscrowd=0), box(iscrowd=None)))
    assert data.truth(1).crowd.tolist() == [True, False, False, False]


def test_an_image_without_boxes_has_empty_arrays_of_the_right_shape(tmp_path: Path) -> None:
    for what in (content(), content(box(70))):
        truth = read(tmp_path, what).truth(1)
        assert truth.boxes_xyxy.shape == (0, 4)
        assert (truth.labels.dtype, truth.crowd.dtype) == (np.int64, bool)


def test_a_subset_of_classes_keeps_all_images(tmp_path: Path) -> None:
    what = content(box(70, 90), box(5, 44), box(12, 1), box(12, 90))
    data = read(tmp_path, what, classes=["cat", "dog"])
    assert data.class_names == ("dog", "cat")
    assert data.category_ids == (1, 90)
    assert [data.truth(i).labels.tolist() for i in range(3)] == [[1], [], [0, 1]]


def test_unknown_class_is_named_beside_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instances\.json: has no class horse; it has dog, bird, cat"):
        read(tmp_path, content(), classes=["cat", "horse"])


def test_head_is_the_first_images_with_boxes(tmp_path: Path) -> None:
    data = read(tmp_path, content(box(12, 90, (1, 1, 5, 5)), box(70, 44), box(12, 1, (2, 2, 6, 6), iscrowd=1)))
    head = data.head(2)
    assert head.image_ids.tolist() == [70, 12]
    assert [head.path(i).name for i in range(2)] == ["c.png", "ü.png"]
    assert head.image_hws.tolist() == [[40, 60], [20, 20]]
    for index, whole in enumerate((0, 2)):
        for name in ("boxes_xyxy", "labels", "crowd"):
            assert np.array_equal(getattr(head.truth(index), name), getattr(data.truth(whole), name))
    assert len(data.head(1)) == 1
    assert len(data.head(99)) == 2


def test_leaving_nothing_out_is_free_and_a_part_of_many_images_is_cheap(tmp_path: Path) -> None:
    """Each image took an array as long as all boxes, and a val set of 20 000 images did not fit into memory."""
    count = 20_000
    what = content() | {
        "annotations": [{"image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in range(count)] * 3
    }
    what["images"] = [{"id": n, "file_name": f"{n}.jpg", "height": 9, "width": 9} for n in range(count)]
    data = read(tmp_path, what)
    assert data.without([]) is data
    tracemalloc.start()
    part = data.without([Fault("empty-file", "", "", image_id=7)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(part), part.num_boxes) == (count - 1, 3 * (count - 1))
    assert part.truth(7).boxes_xyxy.tolist() == [[1, 1, 6, 6]] * 3
    assert peak < 100e6


def test_head_of_data_without_boxes_says_so(tmp_path: Path) -> None:
    """It ended in numpy's "need at least one array to concatenate", a traceback for `train --overfit`."""
    with pytest.raises(DataError, match="none of its 3 images has an object"):
        read(tmp_path, content()).head(8)


def test_boxes_are_held_in_arrays_alone(tmp_path: Path) -> None:
    data = read(tmp_path, content(*(box() for _ in range(50))))
    held = {name: value for name, value in vars(data).items() if not isinstance(value, np.ndarray)}
    assert held == {
        "source": tmp_path / "instances.json",
        "folder": tmp_path,
        "class_names": ("dog", "bird", "cat"),
        "category_ids": (1, 44, 90),
        "left_out": (),
    }
    assert all(value.dtype != object for value in vars(data).values() if isinstance(value, np.ndarray))


def test_missing_area_crowd_and_id_are_filled_in_for_cocoeval(tmp_path: Path) -> None:
    path = write(tmp_path, content(box(bbox=(1, 2, 10, 20)), box(area=7.5, iscrowd=1), box(area=None, iscrowd=None)))
    first, second, third = read_coco_json(path)["annotations"]
    assert (first["area"], first["iscrowd"]) == (200, 0)
    assert (second["area"], second["iscrowd"]) == (7.5, 1)
    assert (third["area"], third["iscrowd"]) == (100, 0)


@pytest.mark.parametrize(("given", "expected"), [(256, 1), (-1, 1), (True, 1), (False, 0)])
def test_a_crowd_is_a_crowd_however_it_is_written(tmp_path: Path, given: object, expected: int) -> None:
    """pycocotools holds it in a byte, and ended with an OverflowError after the first epoch."""
    path = write(tmp_path, content(box(iscrowd=given)))
    assert read_coco_json(path)["annotations"][0]["iscrowd"] == expected
    assert read_coco(path, tmp_path).truth(1).crowd.tolist() == [bool(expected)]


def test_boxes_that_nobody_can_find_are_not_scored_but_told(tmp_path: Path) -> None:
    path = write(tmp_path, content(box(id=1, bbox=(1, 1, 0, 5)), box(id=2)))
    truth = read_coco_json(path)
    assert [annotation["bbox"] for annotation in truth["annotations"]] == [[1, 2, 10, 10]]
    assert [fault.annotation_id for fault in truth["left_out"]] == [1]


def test_annotation_ids_are_unique_and_never_0(tmp_path: Path) -> None:
    """COCOeval reads 0 as "no match", so a box of id 0 could not be found; and a filled-in id met a given one."""
    path = write(tmp_path, content(box(id=0), box(id=2), box()))
    assert [annotation["id"] for annotation in read_coco_json(path)["annotations"]] == [1, 2, 3]


def bad(change: Callable[[Content], object]) -> Content:
    what = content(box(id=1), box(70, 90, id=8))
    change(what)
    return what


BAD_FILES: dict[str, tuple[object, str]] = {
    "empty": ("", "not JSON"),
    "not JSON": ("{'images': []}", "not JSON"),
    "cut short": ('{"images": [', "not JSON"),
    "a list": ([], "not COCO JSON; expected an object with images, annotations and categories"),
    "no images": (bad(lambda c: c.pop("images")), "expected a list of images, found nothing"),
    "no annotations": (bad(lambda c: c.pop("annotations")), "expected a list of annotations, found nothing"),
    "no categories": (bad(lambda c: c.pop("categories")), "expected a list of categories, found nothing"),
    "images an object": (bad(lambda c: c.update(images={})), "expected a list of images, found a dict"),
    "no image at all": (bad(lambda c: c.update(images=[], annotations=[])), "lists no images"),
    "no category at all": (bad(lambda c: c.update(categories=[], annotations=[])), "lists no categories"),
    "image without height": (
        bad(lambda c: c["images"][1].pop("height")),
        r"images\[1\], image 5, a\.png: 'height' is missing",
    ),
    "image id as text": (
        bad(lambda c: c["images"][2].update(id="12")),
        r"images\[2\], ü\.png: 'id' is '12', expected an integer; write ids",
    ),
    "image of no size": (bad(lambda c: c["images"][1].update(height=0)), r"image 5, a\.png: 50x0 pixels is not a size"),
    "image not an object": (bad(lambda c: c["images"].append(7)), r"images\[3\]: is a int, expected an object"),
    "category without name": (
        bad(lambda c: c["categories"][0].pop("name")),
        r"categories\[0\], category 90: 'name' is missing",
    ),
    "category id true": (bad(lambda c: c["categories"][1].update(id=True)), r"categories\[1\]: 'id' is True"),
    "annotation without bbox": (
        bad(lambda c: c["annotations"][1].pop("bbox")),
        r"annotations\[1\], annotation 8, image 70: 'bbox' is missing",
    ),
    "annotation id a list": (
        bad(lambda c: c["annotations"][1].update(id=[1])),
        r"annotations\[1\], image 70: 'id' is \[1\], expected an integer or nothing",
    ),
    "area as text": (
        bad(lambda c: c["annotations"][0].update(area="12")),
        r"annotations\[0\], annotation 1, image 5: 'area' is '12', expected a number or nothing",
    ),
    "iscrowd as text": (
        bad(lambda c: c["annotations"][0].update(iscrowd="0")),
        r"annotations\[0\], .*: 'iscrowd' is '0'",
    ),
    "unknown image": (
        bad(lambda c: c["annotations"][1].update(image_id=6)),
        "annotation 8: image_id 6 is not among the images",
    ),
    "unknown category": (
        bad(lambda c: c["annotations"][1].update(category_id=2)),
        r"annotation 8, image 70, c\.png: category_id 2 is not among the categories",
    ),
    "unknown category, no id": (
        bad(lambda c: c["annotations"].append(box(category_id=2))),
        r"annotations\[2\], image 5, a\.png: category_id 2 is not among the categories",
    ),
    "bbox of 3": (
        bad(lambda c: c["annotations"][0].update(bbox=[1, 2, 3])),
        "annotation 1, image 5, a.png: bbox .* four finite",
    ),
    "bbox NaN": (
        bad(lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 3])),
        "annotation 1, image 5, a.png: bbox",
    ),
    "bbox infinite": (
        bad(lambda c: c["annotations"][0].update(bbox=[1, 2, float("inf"), 3])),
        "annotation 1, image 5, a.png: bbox",
    ),
    "bbox of text": (
        bad(lambda c: c["annotations"][0].update(bbox=["1", 2, 3, 4])),
        "annotation 1, image 5, a.png: bbox",
    ),
    "image twice": (bad(lambda c: c["images"].append(c["images"][0])), "image 70, c.png: the image id 70 occurs twice"),
    "category twice": (
        bad(lambda c: c["categories"].append({"id": 44, "name": "x"})),
        "the category id 44 occurs twice",
    ),
    "name twice": (
        bad(lambda c: c["categories"].append({"id": 45, "name": "cat"})),
        "the class name 'cat' occurs twice",
    ),
    "annotation twice": (bad(lambda c: c["annotations"].append(box(id=8))), "the annotation id 8 occurs twice"),
}


@pytest.mark.parametrize(("what", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_explained_in_a_line_that_names_it(tmp_path: Path, what: object, message: str) -> None:
    path = write(tmp_path, what)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path, tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_annotation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_coco(tmp_path / "none.json", tmp_path)


def test_missing_image_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder of images"):
        read_coco(write(tmp_path, content()), tmp_path / "nowhere")


def test_missing_images_are_counted_and_the_first_named(tmp_path: Path) -> None:
    data = read(tmp_path, content())
    write_image(tmp_path / "a.png", np.zeros((30, 50, 3), np.uint8))
    with pytest.raises(DataError, match=r"2 of 3 images are missing, such as c\.png, ü\.png; is this the folder"):
        data.require_files()


def test_no_complaint_where_all_images_are_there(tmp_path: Path) -> None:
    data = read(tmp_path, content())
    for index, (height, width) in enumerate(data.image_hws):
        write_image(data.path(index), np.full((height, width, 3), index, np.uint8))
    data.require_files()
    assert data.image(2).shape == (20, 20, 3)
    assert data.image(2)[0, 0].tolist() == [2, 2, 2]


def test_an_image_of_another_size_than_annotated_is_an_error(tmp_path: Path) -> None:
    data = read(tmp_path, content())
    write_image(tmp_path / "c.png", np.zeros((41, 60, 3), np.uint8))
    with pytest.raises(DataError, match=r"c\.png: the image is 60x41 pixels, the annotations say 60x40"):
        data.image(0)


def test_results_are_xywh_with_the_datas_own_ids() -> None:
    found = Detections(
        np.array([[10, 20, 30, 60], [0, 0, 5, 5]], np.float32), np.array([0.75, 0.5], np.float32), np.array([2, 0])
    )
    assert to_results(found, image_id=12, category_ids=(1, 44, 90)) == [
        {"image_id": 12, "category_id": 90, "bbox": [10, 20, 20, 40], "score": 0.75},
        {"image_id": 12, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5},
    ]


def test_results_survive_the_way_through_a_file(tmp_path: Path) -> None:
    found = Detections(np.array([[1.5, 2, 3, 4]], np.float32), np.array([0.3], np.float32), np.array([1]))
    results = to_results(found, image_id="a.png", category_ids=(7, 9))
    assert read_results(write(tmp_path, results)) == results


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"images": []}, "not COCO results; expected a list of them, found a dict"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}], r"results\[0\]: 'score' is missing"),
        ([{"image_id": 1, "category_id": "dog", "bbox": [0, 0, 1, 1], "score": 1}], r"results\[0\]: 'category_id'"),
    ],
    ids=["annotations in its place", "no score", "class by name"],
)
def test_bad_results_are_explained(tmp_path: Path, what: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_results(write(tmp_path, what))


@pytest.mark.shared
@pytest.mark.parametrize(("split", "boxes"), [("train", 705), ("val", 815)])
def test_real_coco_has_80_classes_and_all_its_boxes(shared: Path, split: str, boxes: int) -> None:
    folder = shared / "data" / "coco_tiny"
    data = read_coco(folder / "annotations" / f"instances_{split}2017.json", folder / f"{split}2017")
    data.require_files()
    assert len(data.class_names) == 80
    assert (data.category_ids[0], data.category_ids[-1]) == (1, 90)
    assert (data.class_names[0], data.class_names[-1]) == ("person", "toothbrush")
    assert (data.num_boxes, data.left_out) == (boxes, ())
    assert data.image(0).shape[:2] == tuple(data.image_hws[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 2**63}, r"images\[0\], a\.jpg: 'id' is 9223372036854775808, expected one of 64 bits"),
        ({"height": 10**30}, r"images\[0\], image 1, a\.jpg: 'height'"),
    ],
)
def test_integers_that_no_array_holds_are_explained(tmp_path: Path, change: dict[str, int], message: str) -> None:
    """numpy's OverflowError was what the user saw."""
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 4} | change
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(DataError, match=message):
        read_coco(path, tmp_path)
