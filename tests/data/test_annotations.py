"""The judgement of an annotation file: guesses are made where the data speak for them, and told as guesses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mnet_det.data import boxes
from mnet_det.data.annotations import compare_classes, examine_annotations
from mnet_det.data.faults import KINDS, Fault, count_kinds

Entry = dict[str, Any]
XYWH = [(10, 10, 30, 40), (50, 20, 20, 20), (5, 60, 80, 30), (70, 5, 25, 90), (40, 40, 50, 50)]
XYWH += [(30, 15, 60, 20), (60, 70, 30, 25), (15, 45, 20, 50), (65, 35, 30, 30), (20, 5, 40, 25)]
"""Ten boxes inside an image of 100×100."""


def examine(folder: Path, *boxes: tuple[float, ...], **more: Any) -> tuple[Fault, ...]:
    """Judge boxes of one image of 100×100, with ids from 1; `more` goes into each annotation."""
    return judge(folder, content([{"bbox": list(box)} | more for box in boxes]))


def content(annotations: list[Entry]) -> Entry:
    numbered = [{"id": n, "image_id": 4, "category_id": 2} | a for n, a in enumerate(annotations, start=1)]
    return {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": numbered,
    }


def judge(folder: Path, what: Entry) -> tuple[Fault, ...]:
    path = folder / "instances.json"
    path.write_text(json.dumps(what))
    return examine_annotations(path).faults


def test_sound_boxes_have_no_fault(tmp_path: Path) -> None:
    assert examine(tmp_path, *XYWH) == ()


def test_boxes_in_corners_are_taken_for_such_where_all_of_them_would_fit(tmp_path: Path) -> None:
    corners = [(x, y, x + w, y + h) for x, y, w, h in XYWH]
    (fault,) = [fault for fault in examine(tmp_path, *corners) if fault.handling == "fatal"]
    assert fault.kind == "boxes-xyxy"
    assert "a guess" in fault.message
    assert fault.where == str(tmp_path / "instances.json")


def test_areas_prove_that_boxes_are_corners(tmp_path: Path) -> None:
    """None of these sticks out when it is read as x, y, w, h; their areas were taken for those of masks."""
    corners = [(5, 5, 30, 40), (10, 12, 45, 45), (3, 20, 40, 60), (20, 1, 60, 40), (15, 15, 40, 50), (1, 30, 50, 60)]
    entries = [{"bbox": list(b), "area": (b[2] - b[0]) * (b[3] - b[1])} for b in corners]
    (fault,) = judge(tmp_path, content(entries))[:1]
    assert (fault.kind, "their areas" in fault.message, "guess" in fault.message) == ("boxes-xyxy", True, False)


def test_many_boxes_that_all_would_fit_as_corners_are_suspect(tmp_path: Path) -> None:
    boxes_in_the_corner = [(n, n, 30 + n, 31 + n) for n in range(20)]
    (fault,) = [f for f in examine(tmp_path, *boxes_in_the_corner) if f.kind != "duplicate-box"]
    assert (fault.kind, fault.image_id) == ("box-maybe-xyxy", None)
    assert "a guess" in fault.message


def test_a_few_boxes_are_not_enough_to_refuse_a_file_on_a_guess(tmp_path: Path) -> None:
    corners = [(x, y, x + w, y + h) for x, y, w, h in XYWH]
    for few in (corners[:4], [(x / 100, y / 100, w / 100, h / 100) for x, y, w, h in XYWH[:4]]):
        faults = examine(tmp_path, *few)
        assert faults
        assert {fault.handling for fault in faults} == {"used"}


def test_one_box_in_corners_among_others_is_a_guess_at_its_place(tmp_path: Path) -> None:
    (fault,) = examine(tmp_path, *XYWH, (60, 60, 90, 95))
    assert (fault.kind, fault.annotation_id, fault.image_id, fault.file) == ("box-maybe-xyxy", 11, 4, "a.jpg")
    assert "a guess" in fault.message


def test_a_box_that_reaches_a_little_over_the_edge_is_not_taken_for_corners(tmp_path: Path) -> None:
    """40 + 65 is 5 px too far; as corners it would fit as well, but then hardly a box would do so by chance."""
    (fault,) = examine(tmp_path, *XYWH, (40, 40, 65, 60))
    assert (fault.kind, fault.annotation_id) == ("box-partly-outside", 11)


@pytest.mark.parametrize("over", [0, 0.4])
def test_half_a_pixel_over_the_edge_is_rounding(tmp_path: Path, over: float) -> None:
    assert examine(tmp_path, (60, 60, 40 + over, 40), (-over, 3, 20, 20)) == ()


def test_boxes_as_parts_of_the_image(tmp_path: Path) -> None:
    parts = [(x / 100, y / 100, w / 100, h / 100) for x, y, w, h in XYWH]
    from_centres = [(x + w / 2, y + h / 2, w, h) for x, y, w, h in parts]  # as YOLO has them
    for written in (parts, from_centres):
        assert [fault.kind for fault in examine(tmp_path, *written)] == ["boxes-normalised"]
    (fault,) = examine(tmp_path, *XYWH, parts[0])
    assert (fault.kind, fault.annotation_id) == ("box-maybe-normalised", 11)


def test_an_area_is_that_of_the_box_or_of_a_mask_in_it(tmp_path: Path) -> None:
    of_mask = {"bbox": [10, 10, 30, 40], "segmentation": [[0, 0, 1, 1, 2, 2]]}
    areas = [("mask", of_mask, 700), ("mask", of_mask, 1300), ("mask", of_mask, 10), ("mask", of_mask, 0)]
    areas += [("box", {"bbox": [50, 20, 20, 20]}, area) for area in (400, 403, 401, 200, 800)]
    faults = judge(tmp_path, content([entry | {"area": area} for _, entry, area in areas]))
    wrong = {fault.annotation_id for fault in faults if fault.kind == "area-contradicts-box"}
    # 700 of 1200 may be a mask's, 403 is within 1 % of 400; 200 is no area of a box that has no mask
    assert wrong == {2, 3, 4, 8, 9}


def test_areas_of_masks_that_were_taken_away_are_no_fault(tmp_path: Path) -> None:
    """Slim copies of COCO drop the masks and keep their areas: each annotation would be reported."""
    shares = [0.4, 0.7, 0.3, 1.5, 0.01]
    entries = [{"bbox": [20 * n, 10, 20, 20], "area": 400 * share} for n, share in enumerate(shares)]
    assert [fault.annotation_id for fault in judge(tmp_path, content(entries))] == [4, 5]


def test_a_box_marked_twice_names_the_first(tmp_path: Path) -> None:
    (fault,) = examine(tmp_path, *XYWH, XYWH[1])
    assert (fault.kind, fault.annotation_id) == ("duplicate-box", 11)
    assert fault.message == "the class and the box of annotation 2 once more (IoU 1.00)"


def test_a_box_pasted_a_little_aside_is_the_same_object(tmp_path: Path) -> None:
    """IoU of 50×50 boxes 1 px and 3 px apart both ways: 49²/(2·50²-49²) = 0.92, 47²/(2·50²-47²) = 0.79."""
    (fault,) = examine(tmp_path, (10, 10, 50, 50), (11, 11, 50, 50), (30, 30, 9, 9), (13, 13, 50, 50))
    assert (fault.annotation_id, fault.message[-10:]) == (2, "(IoU 0.92)")


def test_other_classes_images_and_crowds_are_no_duplicates(tmp_path: Path) -> None:
    what = content(
        [{"bbox": [1, 2, 30, 40]} | more for more in ({}, {"category_id": 3}, {"image_id": 5}, {"iscrowd": 1})]
    )
    what["images"].append({"id": 5, "file_name": "b.jpg", "height": 100, "width": 100})
    what["categories"].append({"id": 3, "name": "dog"})
    assert [fault.kind for fault in judge(tmp_path, what)] == ["crowd"]


def test_duplicates_are_found_in_groups_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of one size are compared together, few at a time."""
    monkeypatch.setattr(boxes, "PAIRS_AT_ONCE", 8)
    annotations, images = [], []
    for image_id in range(9):
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 100, "width": 100})
        for number in range(image_id % 4 + 1):
            annotations.append({"image_id": image_id, "bbox": [20 * number, 5, 9, 9]})
    annotations += [{"image_id": image_id, "bbox": [0, 5, 9, 9]} for image_id in (2, 3, 7)]
    what = content(annotations) | {"images": images}
    assert [(f.kind, f.image_id, f.annotation_id) for f in judge(tmp_path, what)] == [
        ("duplicate-box", image_id, len(annotations) - 2 + number) for number, image_id in enumerate((2, 3, 7))
    ]


def test_a_group_that_is_too_large_for_one_go_is_compared_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory grew with the square of one image's boxes."""
    monkeypatch.setattr(boxes, "PAIRS_AT_ONCE", 5)
    grid = [(9 * x, 9 * y, 8, 8) for x in range(4) for y in range(3)]
    faults = examine(tmp_path, *grid, grid[3], grid[11], grid[3])
    assert [(fault.annotation_id, fault.message.split()[-5]) for fault in faults] == [(13, "4"), (14, "12"), (15, "4")]


def test_a_box_of_hardly_a_pixel_may_be_a_stray_click(tmp_path: Path) -> None:
    (fault,) = examine(tmp_path, (40, 40, 1, 1), (20, 20, 2.5, 1), (50, 50, 20, 20))
    assert (fault.kind, fault.annotation_id) == ("tiny-box", 1)


def test_an_annotation_without_an_id_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    what = content([{"bbox": None}, {"bbox": [1, 1, 5, 5]}, {"bbox": [1, 1, 0, 5]}])
    for annotation in what["annotations"]:
        del annotation["id"]
    faults = judge(tmp_path, what)
    assert [(fault.kind, fault.entry) for fault in faults] == [
        ("bad-entry", "annotations[0]"),
        ("empty-box", "annotations[2]"),
    ]


def test_a_fault_has_no_consequences_that_are_reported_too(tmp_path: Path) -> None:
    """The image and the class of a broken annotation are not without boxes, nor is its broken image unknown."""
    assert [fault.kind for fault in examine(tmp_path, (1, 2, 3))] == ["bad-box"]
    what = content([{"bbox": [1, 1, 5, 5]}])
    what["images"][0]["width"] = 0
    assert [fault.kind for fault in judge(tmp_path, what)] == ["bad-image-size"]


def test_all_faults_of_a_file_come_at_once(tmp_path: Path) -> None:
    what = content([{"bbox": [1, 1, 5, 5]}, {"bbox": [1, 1, 5]}, {"bbox": [1, 1, 5, 5], "image_id": 9}])
    what["categories"] += [{"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}, {"name": "bird"}]
    assert count_kinds(judge(tmp_path, what)) == {
        "bad-entry": 1,
        "duplicate-category-id": 1,
        "duplicate-class-name": 1,
        "unknown-image": 1,
        "bad-box": 1,
    }


def test_classes_that_are_spelt_nearly_alike_may_be_one(tmp_path: Path) -> None:
    what = content([{"bbox": [1, 1, 5, 5]}, {"bbox": [9, 9, 5, 5], "category_id": 3}])
    what["categories"].append({"id": 3, "name": "Cat "})
    (fault,) = judge(tmp_path, what)
    assert (fault.kind, fault.category) == ("class-names-alike", 3)
    assert "'Cat ' differs from 'cat'" in fault.message


def test_only_what_can_be_used_is_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(
        json.dumps(content([{"bbox": b} for b in ([1, 1, 0, 5], [1, 1, 5, 5], [200, 1, 5, 5], [9, 9, -1, 5])]))
    )
    assert [annotation["id"] for annotation in examine_annotations(path).annotations] == [2]


def test_places_are_told_in_words_and_in_parts() -> None:
    fault = Fault("empty-box", "no width", "val.json", annotation_id=5, image_id=17, file="dog.jpg")
    assert str(fault) == "val.json: annotation 5, image 17, dog.jpg: no width"
    assert fault.to_json() == {
        "kind": "empty-box",
        "where": "val.json: annotation 5, image 17, dog.jpg",
        "message": "no width",
        "handling": "left out",
        "source": "val.json",
        "image_id": 17,
        "annotation_id": 5,
        "category": None,
        "file": "dog.jpg",
    }


def test_every_kind_has_a_title_and_is_named_in_one_way() -> None:
    assert all(kind == kind.lower() and " " not in kind for kind in KINDS)
    assert len({kind.title for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        (["dog", "cat"], []),
        (["cat"], [("class-missing-in-validation", "dog", "cannot be scored")]),
        (["cat", "dog", "Dog "], [("class-unknown-to-training", "Dog ", "did it mean 'dog'?")]),
        (["cat", "dog", "unused"], []),
        (
            ["unused"],
            [("class-unknown-to-training", None, "lists none of the training data's cat, dog; it has unused")],
        ),
        (["cat", "dog", "tree"], [("class-unknown-to-training", "tree", "training has cat, dog")]),
    ],
    ids=["another order", "fewer", "another case", "unheard of without boxes", "nothing in common", "unheard of"],
)
def test_classes_are_compared_by_name(validation: list[str], expected: list[tuple[str, str, str]]) -> None:
    faults = compare_classes(["cat", "dog"], validation, marked=set(validation) - {"unused"}, source="val.json")
    assert [(fault.kind, fault.category) for fault in faults] == [(kind, name) for kind, name, _ in expected]
    for fault, (_, _, hint) in zip(faults, expected, strict=True):
        assert hint in fault.message
