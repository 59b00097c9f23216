"""Every kind of fault, put into a clean data set one by one and all together, is found at its place and only there."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from mnet_det.data.check import Verdict, check
from mnet_det.data.faults import KINDS
from mnet_det.errors import DataError

HEIGHT, WIDTH = 40, 60
BOXES = ([5, 5, 10, 12], [19, 8, 20, 18], [24, 22, 15, 13])
"""They fit a picture that lies on its side too."""


class Answer(Protocol):
    """What the fixture `cli` gives."""

    status: int
    out: str
    err: str


Found = tuple[str, str]
"""Kind and place of a fault, as the user reads it."""


def jpeg(number: int, *, hw: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    """No two numbers give the same picture."""
    small = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
    return encode(".jpg", cv2.resize(small, hw[::-1]))


def encode(suffix: str, pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


def with_orientation(image: bytes, value: int) -> bytes:
    """A JPEG with an EXIF block of one entry: tag 0x0112, type 3 (short), count 1."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)
    return image[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + image[2:]


def cmyk() -> bytes:
    stream = io.BytesIO()
    PilImage.new("CMYK", (WIDTH, HEIGHT), (9, 99, 40, 0)).save(stream, "JPEG")
    return stream.getvalue()


class DataSet:
    """A clean data set of some images with three boxes each, and a validation set of two images; both to be spoilt."""

    def __init__(self, root: Path, *, images: int) -> None:
        self.root = root
        self.sides = {"train": self._draw("train", range(images)), "val": self._draw("val", range(900, 902))}
        self.content = self.sides["train"]

    def _draw(self, side: str, numbers: range) -> dict[str, Any]:
        (self.root / side).mkdir(parents=True)
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "cat"}, {"id": 42, "name": "dog"}],
        }
        for number in numbers:
            name = f"{number:03}.jpg"
            (self.root / side / name).write_bytes(jpeg(number))
            content["images"].append({"id": 1000 + number, "file_name": name, "height": HEIGHT, "width": WIDTH})
            for index, box in enumerate(BOXES):
                content["annotations"].append(
                    {
                        "id": 10 * number + index + 1,
                        "image_id": 1000 + number,
                        "category_id": (7, 42, 7)[index],
                        "bbox": list(box),
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
        return content

    def image(self, number: int) -> dict[str, Any]:
        return self.content["images"][number]

    def box(self, number: int) -> dict[str, Any]:
        """The second annotation of an image."""
        return self.content["annotations"][3 * number + 1]

    def path(self, number: int) -> Path:
        return self.root / "train" / self.image(number)["file_name"]

    def add_box(self, number: int, **changes: Any) -> dict[str, Any]:
        """One more annotation of an image, last in the list."""
        added = {**self.box(number), "id": 100_000 + number, "bbox": [1, 1, 4, 4], "area": 16, **changes}
        self.content["annotations"].append(added)
        return added

    def check(self, *, val: bool = False, pixels: bool = True) -> Verdict:
        for side, content in self.sides.items():
            (self.root / f"{side}.json").write_text(json.dumps(content))
        return self.check_files(val=val, pixels=pixels)

    def check_files(self, *, val: bool = False, pixels: bool = True) -> Verdict:
        root = self.root
        other = {"val": root / "val.json", "val_images": root / "val"} if val else {}
        return check(root / "train.json", root / "train", **other, pixels=pixels)

    def found(self, verdict: Verdict, *, source: str = "train") -> set[Found]:
        prefix = str(self.root / f"{source}.json")
        return {
            (fault.kind, fault.where.removeprefix(prefix).removeprefix(": "))
            for fault in verdict.faults
            if fault.source == prefix
        }


Inject = Callable[[DataSet, int], Found]
"""Spoil image `number` of a data set, or what belongs to it; says which fault should be found where."""


def of_image(data: DataSet, number: int) -> str:
    return f"image {1000 + number}, {data.image(number)['file_name']}"


def of_box(data: DataSet, number: int) -> str:
    return f"annotation {10 * number + 2}, {of_image(data, number)}"


def box_field(field: str, value: Any = None) -> Inject:
    """An annotation whose field is gone, or of another kind."""

    def inject(data: DataSet, number: int) -> Found:
        box = data.box(number)
        if value is None:
            del box[field]
        else:
            box[field] = value
        owner = "" if field == "image_id" else f", image {1000 + number}"
        return "bad-entry", f"annotations[{3 * number + 1}], annotation {10 * number + 2}{owner}"

    return inject


def image_field(field: str, value: Any = None) -> Inject:
    def inject(data: DataSet, number: int) -> Found:
        image = data.image(number)
        file = "" if field == "file_name" else f", {image['file_name']}"
        if value is None:
            del image[field]
        else:
            image[field] = value
        return "bad-entry", f"images[{number}], image {1000 + number}{file}"

    return inject


def category_without_name(data: DataSet, number: int) -> Found:
    data.content["categories"].append({"id": 500 + number})
    return "bad-entry", f"categories[{len(data.content['categories']) - 1}], category {500 + number}"


def image_size(data: DataSet, number: int) -> Found:
    data.image(number)["height"] = 0
    return "bad-image-size", of_image(data, number)


def same_image_id(data: DataSet, number: int) -> Found:
    again = {**data.image(number), "file_name": f"again{number}.jpg"}
    data.content["images"].append(again)
    return "duplicate-image-id", f"image {1000 + number}, again{number}.jpg"


def same_annotation_id(data: DataSet, number: int) -> Found:
    data.add_box(number, id=10 * number + 2)
    return "duplicate-annotation-id", f"annotation {10 * number + 2}, image {1000 + number}"


def same_category_id(data: DataSet, number: int) -> Found:
    data.content["categories"].append({"id": 42, "name": f"cow {number}"})
    return "duplicate-category-id", "category 42"


def same_class_name(data: DataSet, number: int) -> Found:
    data.content["categories"].append({"id": 600 + number, "name": "dog"})
    return "duplicate-class-name", f"category {600 + number}"


def unknown_image(data: DataSet, number: int) -> Found:
    data.add_box(number, image_id=77_777)
    return "unknown-image", f"annotation {100_000 + number}"


def unknown_category(data: DataSet, number: int) -> Found:
    data.box(number)["category_id"] = 8
    return "unknown-category", of_box(data, number)


def bbox(kind: str, *values: Any) -> Inject:
    """A box of other numbers, its area being that of the box wherever it has one."""

    def inject(data: DataSet, number: int) -> Found:
        box = data.box(number)
        box["bbox"] = list(values)
        del box["area"]
        return kind, of_box(data, number)

    return inject


def area(value: float) -> Inject:
    def inject(data: DataSet, number: int) -> Found:
        data.box(number)["area"] = value
        return "area-contradicts-box", of_box(data, number)

    return inject


def box_marked_twice(data: DataSet, number: int) -> Found:
    box = data.box(number)
    data.add_box(number, bbox=box["bbox"], area=box["area"])
    return "duplicate-box", f"annotation {100_000 + number}, {of_image(data, number)}"


def crowd(data: DataSet, number: int) -> Found:
    data.box(number)["iscrowd"] = 1
    return "crowd", of_box(data, number)


def class_without_boxes(data: DataSet, number: int) -> Found:
    data.content["categories"].append({"id": 700 + number, "name": f"unicorn {number}"})
    return "class-without-boxes", f"category {700 + number}"


def image_without_boxes(data: DataSet, number: int) -> Found:
    name = f"bare{number}.jpg"
    (data.root / "train" / name).write_bytes(jpeg(5000 + number))
    image_id = 50_000 + number
    data.content["images"].append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
    return "image-without-boxes", f"image {image_id}, {name}"


def file_listed_twice(data: DataSet, number: int) -> Found:
    image_id = 60_000 + number
    data.content["images"].append({**data.image(number), "id": image_id})
    data.add_box(number, image_id=image_id)
    return "file-listed-twice", f"image {image_id}, {data.image(number)['file_name']}"


def file_bytes(kind: str, make: Callable[[int], bytes], name: str = "{}.jpg") -> Inject:
    """Another file in the place of an image."""

    def inject(data: DataSet, number: int) -> Found:
        data.path(number).unlink()
        data.image(number)["file_name"] = name.format(f"odd{number}")
        data.path(number).parent.mkdir(exist_ok=True)
        data.path(number).write_bytes(make(number))
        return kind, of_image(data, number)

    return inject


def missing(data: DataSet, number: int) -> Found:
    data.path(number).unlink()
    return "missing-file", of_image(data, number)


def folder_for_file(data: DataSet, number: int) -> Found:
    data.path(number).unlink()
    data.path(number).mkdir()
    return "missing-file", of_image(data, number)


def annotated_size(height: int, width: int) -> Inject:
    def inject(data: DataSet, number: int) -> Found:
        data.image(number).update(height=height, width=width)
        return "size-differs", of_image(data, number)

    return inject


def turned(data: DataSet, number: int) -> Found:
    """Stored 40 wide and 60 high; a viewer turns it to the annotated 60x40."""
    data.path(number).write_bytes(with_orientation(jpeg(number, hw=(WIDTH, HEIGHT)), 6))
    return "exif-rotation", of_image(data, number)


def deep_png(number: int) -> bytes:
    return encode(".png", np.full((HEIGHT, WIDTH, 3), 300 + number, np.uint16))


def grey(suffix: str) -> Callable[[int], bytes]:
    return lambda number: encode(suffix, np.full((HEIGHT, WIDTH), number, np.uint8))


def alpha_png(number: int) -> bytes:
    return encode(".png", np.full((HEIGHT, WIDTH, 4), number, np.uint8))


def png(number: int) -> bytes:
    return encode(".png", np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def without_end(image: bytes, kept: float) -> bytes:
    return image[: int(len(image) * kept)]


INJECTIONS: dict[str, Inject] = {
    "no image_id": box_field("image_id"),
    "no category_id": box_field("category_id"),
    "no bbox": box_field("bbox"),
    "bbox in words": box_field("bbox", "left"),
    "iscrowd in words": box_field("iscrowd", "yes"),
    "area in words": box_field("area", "large"),
    "area NaN": box_field("area", float("nan")),
    "true as category_id": box_field("category_id", True),
    "no file_name": image_field("file_name"),
    "NUL in file_name": image_field("file_name", "a\0b.jpg"),
    "no height": image_field("height"),
    "width in words": image_field("width", "60"),
    "width of 400 digits": image_field("width", 10**400),
    "category without a name": category_without_name,
    "image without height": image_size,
    "image id twice": same_image_id,
    "annotation id twice": same_annotation_id,
    "category id twice": same_category_id,
    "class name twice": same_class_name,
    "unknown image": unknown_image,
    "unknown category": unknown_category,
    "NaN in a box": bbox("bad-box", 5, float("nan"), 10, 10),
    "infinite box": bbox("bad-box", 5, 5, float("inf"), 10),
    "box of three numbers": bbox("bad-box", 5, 5, 10),
    "box with a word": bbox("bad-box", 5, 5, "10", 10),
    "negative width": bbox("negative-box", 30, 5, -10, 10),
    "swapped corners": bbox("negative-box", 50, 30, -30, -20),
    "no height in a box": bbox("empty-box", 5, 5, 10, 0),
    "box right of its image": bbox("box-outside", 61, 5, 10, 10),
    "box above its image": bbox("box-outside", 5, -20, 10, 10),
    "box over the edge": bbox("box-partly-outside", 52, 5, 9, 10),
    "corners as sizes": bbox("box-maybe-xyxy", 30, 20, 58, 38),
    "parts of the image": bbox("box-maybe-normalised", 0.2, 0.3, 0.25, 0.5),
    "area too large": area(6000),
    "area too small": area(1),
    "box marked twice": box_marked_twice,
    "crowd": crowd,
    "class without boxes": class_without_boxes,
    "image without boxes": image_without_boxes,
    "file listed twice": file_listed_twice,
    "missing file": missing,
    "folder for a file": folder_for_file,
    "zero bytes": file_bytes("empty-file", lambda _: b""),
    "a web page": file_bytes("not-an-image", lambda _: b"<html>404 not found</html>"),
    "truncated JPEG": file_bytes("truncated-image", lambda number: without_end(jpeg(number), 0.8)),
    "JPEG without its last byte": file_bytes("truncated-image", lambda number: jpeg(number)[:-1]),
    "truncated PNG": file_bytes("truncated-image", lambda number: without_end(png(number), 0.5), "{}.png"),
    "other size": annotated_size(HEIGHT + 1, WIDTH),
    "swapped size": annotated_size(WIDTH, HEIGHT),
    "EXIF, stored size annotated": file_bytes("exif-rotation", lambda number: with_orientation(jpeg(number), 8)),
    "EXIF, viewed size annotated": turned,
    "EXIF mirrors": file_bytes("exif-rotation", lambda number: with_orientation(jpeg(number), 2)),
    "grey JPEG": file_bytes("grey-image", grey(".jpg")),
    "grey PNG": file_bytes("grey-image", grey(".png"), "{}.png"),
    "alpha": file_bytes("alpha-image", alpha_png, "{}.png"),
    "16 bit": file_bytes("deep-image", deep_png, "{}.png"),
    "CMYK": file_bytes("cmyk-image", lambda _: cmyk()),
    "odd name": file_bytes("grey-image", grey(".jpg"), "ordner ä/[bold] 猫 {}.jpg"),
}
ONLY_BY_DECODING = {"truncated JPEG", "JPEG without its last byte", "truncated PNG"}


@pytest.mark.parametrize("name", INJECTIONS)
def test_a_fault_is_found_at_its_place_and_nothing_else(tmp_path: Path, name: str) -> None:
    data = DataSet(tmp_path, images=4)
    expected = INJECTIONS[name](data, 2)
    verdict = data.check()
    assert data.found(verdict) == {expected}
    assert len(verdict.faults) == 1
    assert (len(verdict.fatal), len(verdict.warnings)) == ((1, 0) if is_fatal(expected) else (0, 1))
    json.dumps(verdict.to_json(), allow_nan=False)


def test_all_faults_together_are_all_found_each_at_its_place(tmp_path: Path) -> None:
    assert len(INJECTIONS) >= 30
    data = DataSet(tmp_path, images=len(INJECTIONS))
    expected = {inject(data, number) for number, inject in enumerate(INJECTIONS.values())}
    assert data.found(data.check()) == expected


def test_without_pixels_all_but_truncation_is_found(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=len(INJECTIONS))
    injected = {name: inject(data, number) for number, (name, inject) in enumerate(INJECTIONS.items())}
    expected = {found for name, found in injected.items() if name not in ONLY_BY_DECODING}
    assert data.found(data.check(pixels=False)) == expected


@pytest.mark.parametrize("pixels", [True, False])
def test_a_clean_set_has_no_faults(tmp_path: Path, pixels: bool) -> None:
    data = DataSet(tmp_path, images=3)
    for number, name in enumerate(["ordner ä/[bold] 猫.jpg", "a b/../a b/c.jpg", "%s {}.jpg"]):
        content = data.path(number).read_bytes()
        data.image(number)["file_name"] = name
        data.path(number).parent.mkdir(parents=True, exist_ok=True)
        data.path(number).write_bytes(content)
    verdict = data.check(val=True, pixels=pixels)
    assert verdict.faults == ()
    assert verdict.to_json()["fatal"] == verdict.to_json()["warnings"] == []


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=3)
    data.path(1).chmod(0)
    assert data.found(data.check()) == {("unreadable-file", of_image(data, 1))}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "not-json"),
        (b"{", "not-json"),
        (b"\xff\xfe\x00", "not-json"),
        (b"[" * 100_000, "not-json"),
        (b"[1, 2]", "not-coco"),
        (b"null", "not-coco"),
        (b'{"images": [], "categories": [], "annotations": {}}', "not-coco"),
    ],
    ids=["empty", "cut off", "not UTF-8", "deep", "a list", "null", "annotations as an object"],
)
def test_a_file_that_is_no_coco_is_one_fatal_fault_and_no_crash(tmp_path: Path, content: bytes, kind: str) -> None:
    data = DataSet(tmp_path, images=1)
    (tmp_path / "train.json").write_bytes(content)
    verdict = data.check_files()
    assert kind in {fault.kind for fault in verdict.fatal}
    json.dumps(verdict.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("key", "kind"), [("images", "no-images"), ("categories", "no-classes")], ids=["images", "categories"]
)
def test_a_file_without_images_or_classes_is_fatal(tmp_path: Path, key: str, kind: str) -> None:
    data = DataSet(tmp_path, images=1)
    data.content[key] = []
    data.content["annotations"] = []
    assert (kind, "") in data.found(data.check())


def test_boxes_as_corners_in_the_whole_file_are_one_fatal_guess(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=5)
    for annotation in data.content["annotations"]:
        left, top, width, height = annotation["bbox"]
        annotation["bbox"] = [left, top, left + width, top + height]
        del annotation["area"]
    verdict = data.check()
    assert ("boxes-xyxy", "") in data.found(verdict)
    assert "guess" in next(fault.message for fault in verdict.fatal)


def test_boxes_as_parts_of_the_image_in_the_whole_file_are_one_fatal_guess(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=2)
    for annotation in data.content["annotations"]:
        left, top, width, height = annotation["bbox"]
        annotation["bbox"] = [left / WIDTH, top / HEIGHT, width / WIDTH, height / HEIGHT]
        del annotation["area"]
    verdict = data.check()
    assert data.found(verdict) == {("boxes-normalised", "")}
    assert "guess" in verdict.fatal[0].message


def test_data_that_nothing_can_be_learned_from_are_refused(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=2)
    for annotation in data.content["annotations"]:
        annotation["iscrowd"] = 1
    assert [fault.kind for fault in data.check().fatal] == ["no-boxes"]


def test_most_images_unusable_is_fatal_by_itself(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=3)
    for number in (0, 2):
        data.path(number).write_bytes(b"")
    verdict = data.check()
    assert [fault.kind for fault in verdict.fatal] == ["most-images-unusable"]
    message = verdict.fatal[0].message
    assert message == f"2 of 3 images in {tmp_path / 'train'} cannot be used: image files of zero bytes (2)"
    assert verdict.summary["unusable_images"] == 2


def test_only_if_most_are_missing_another_folder_is_suspected(tmp_path: Path) -> None:
    """Images that are all there, but of another size than annotated, were asked for their folder too."""
    data = DataSet(tmp_path, images=5)
    for number in range(5):
        (missing if number < 2 else annotated_size(HEIGHT + 1, WIDTH))(data, number)
    kinds = "images of another size than annotated (3), missing image files (2)"
    assert data.check().fatal[-1].message == f"5 of 5 images in {tmp_path / 'train'} cannot be used: {kinds}"
    missing(data, 2)
    message = data.check().fatal[-1].message
    kinds = "missing image files (3), images of another size than annotated (2)"
    assert message.endswith(f"cannot be used: {kinds}; is this the folder that belongs to the annotations?")


def test_of_a_missing_file_it_is_told_where_it_is(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=4)
    data.image(0)["file_name"] = "train/000.jpg"
    data.path(1).unlink()
    where, nowhere = (fault.message for fault in data.check().fatal)
    assert where == f"no such image; it is there if the folder of images is {tmp_path}"
    assert nowhere == "no such image"


def test_sizes_that_are_swapped_are_called_so(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=3)
    data.image(0).update(height=WIDTH, width=HEIGHT)
    data.image(1).update(height=WIDTH, width=HEIGHT + 1)
    for pixels in (True, False):
        first, second = (fault.message for fault in data.check(pixels=pixels).faults if fault.kind == "size-differs")
        assert first == "the image is 60x40 pixels, the annotations say 40x60 (width and height swapped)"
        assert second == "the image is 60x40 pixels, the annotations say 41x60"


def test_a_turned_image_says_which_way_it_is_used(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=3)
    data.path(0).write_bytes(with_orientation(jpeg(0), 6))
    turned(data, 1)
    as_stored, as_viewed = (fault.message for fault in data.check().faults)
    assert as_stored == "EXIF orientation 6; used as stored, to fit the annotated 60x40"
    assert as_viewed == "EXIF orientation 6; used turned, to fit the annotated 60x40"


@pytest.mark.parametrize("pixels", [True, False])
def test_an_image_in_training_and_validation_is_found_by_its_bytes(tmp_path: Path, pixels: bool) -> None:
    data = DataSet(tmp_path, images=3)
    (tmp_path / "val" / "901.jpg").write_bytes(data.path(1).read_bytes())
    same_size = bytearray((tmp_path / "val" / "900.jpg").read_bytes())
    (tmp_path / "train" / "002.jpg").write_bytes(same_size)
    same_size[same_size.index(b"JFIF") + 7] ^= 1  # the density, which changes no pixel, and so neither image is found
    (tmp_path / "val" / "900.jpg").write_bytes(same_size)
    verdict = data.check(val=True, pixels=pixels)
    assert data.found(verdict) == set()
    assert data.found(verdict, source="val") == {("image-in-both", "image 1901, 901.jpg")}
    assert "001.jpg of the training data" in verdict.warnings[0].message


def test_classes_are_compared_by_name_whatever_their_ids_and_order(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=2)
    val = data.sides["val"]
    val["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    for annotation in val["annotations"]:
        annotation["category_id"] = {7: 2, 42: 1}[annotation["category_id"]]
    assert data.check(val=True).faults == ()


def test_classes_that_differ_are_named_with_the_nearest_one(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=2)
    data.sides["val"]["categories"][1]["name"] = "Dog "
    verdict = data.check(val=True)
    assert data.found(verdict, source="val") == {
        ("class-unknown-to-training", "category Dog "),
        ("class-missing-in-validation", "category dog"),
    }
    assert len(verdict.fatal) == 1
    assert "'dog'" in verdict.fatal[0].message


def test_faults_of_the_validation_set_have_its_name(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=2)
    data.sides["val"]["annotations"][0]["iscrowd"] = 1
    (tmp_path / "val" / "900.jpg").write_bytes(b"")
    verdict = data.check(val=True)
    assert data.found(verdict) == set()
    assert data.found(verdict, source="val") == {
        ("crowd", "annotation 9001, image 1900, 900.jpg"),
        ("empty-file", "image 1900, 900.jpg"),
    }
    assert verdict.summary["counts"] == {}
    assert verdict.summary["val"]["counts"] == {"crowd": 1, "empty-file": 1}
    assert verdict.summary["val"]["unusable_images"] == 1


def test_the_summary_counts_what_training_would_use(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=2)
    data.content["images"].append({"id": 5, "file_name": "001.jpg", "height": 200, "width": 200})
    for image_id, values in ((5, [0, 0, 32, 32]), (5, [0, 0, 150, 96]), (5, [50, 50, 400, 30]), (1000, [5, 5, 0, 9])):
        data.content["annotations"].append({"image_id": image_id, "category_id": 42, "bbox": values})
    data.box(0)["iscrowd"] = 1
    summary = data.check().summary
    # 2 x 3 and the four here, less the one without width
    assert (summary["images"], summary["boxes"], summary["crowd_boxes"]) == (3, 9, 1)
    assert summary["class_histogram"] == {"cat": 4, "dog": 5}
    assert (summary["classes"], summary["images_without_boxes"]) == (2, 0)
    sizes = summary["box_sizes"]
    # Of the other eight, five are of BOXES; 32x32 and 150x30 (clipped) are medium, 150x96 is large.
    assert (sizes["small"], sizes["medium"], sizes["large"]) == (5, 2, 1)
    assert sum(sizes["relative_sides"]["boxes"]) == 8
    assert sizes["width_px"]["p50"] == pytest.approx(17.5)  # 10, 10, 15, 15 | 20, 32, 150, 150


def test_a_set_without_boxes_has_no_sizes_and_no_nan(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=1)
    data.content["annotations"] = []
    summary = data.check().summary
    assert summary["box_sizes"]["width_px"] == {"p5": None, "p50": None, "p95": None}
    json.dumps(summary, allow_nan=False)


def test_check_changes_nothing(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=len(INJECTIONS))
    for number, inject in enumerate(INJECTIONS.values()):
        inject(data, number)
    data.check(val=True)
    before = snapshot(tmp_path)
    threads = cv2.getNumThreads()
    data.check_files(val=True)
    assert snapshot(tmp_path) == before
    assert cv2.getNumThreads() == threads


def test_progress_ends_with_all_images_of_both_sets(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=3)
    data.check()
    told: list[tuple[int, int]] = []
    root = tmp_path
    check(
        root / "train.json",
        root / "train",
        val=root / "val.json",
        val_images=root / "val",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(3, 5), (5, 5)]


def test_a_verdict_takes_more_faults_and_numbers(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=3)
    crowd(data, 0)
    verdict = data.check()
    more = verdict.adding(verdict.faults, anchors={"boxes": 9})
    assert more.summary["counts"] == {"crowd": 2}
    assert more.summary["anchors"] == {"boxes": 9}
    assert verdict.summary["counts"] == {"crowd": 1}


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    data = DataSet(tmp_path, images=1)
    with pytest.raises(DataError, match=r"train\.json: no such file"):
        data.check_files()
    data.check()
    with pytest.raises(DataError, match="absent: no such folder of images"):
        check(tmp_path / "train.json", tmp_path / "absent")


@pytest.mark.shared
def test_real_coco_passes_with_its_crowds_counted(shared: Path) -> None:
    root = shared / "data" / "coco_tiny"
    verdict = check(
        root / "annotations" / "instances_train2017.json",
        root / "train2017",
        val=root / "annotations" / "instances_val2017.json",
        val_images=root / "val2017",
    )
    assert verdict.fatal == ()
    assert verdict.summary["counts"] == {"crowd": 6}
    assert verdict.summary["val"]["counts"] == {"crowd": 11}
    assert (verdict.summary["crowd_boxes"], verdict.summary["val"]["crowd_boxes"]) == (6, 11)


def test_the_command_prints_writes_json_and_fails_only_if_anything_is_fatal(
    tmp_path: Path, cli: Callable[..., Answer]
) -> None:
    data = DataSet(tmp_path, images=3)
    data.box(0)["bbox"] = [5, 5, 0, 10]
    data.check()
    words = ["check", tmp_path / "train.json", "--images", tmp_path / "train", "--json", tmp_path / "out.json"]
    answer = cli(*words)
    assert answer.status == 0, answer.err
    assert answer.out.splitlines()[-1] == "training can start; 1 box is left out"
    assert "looking at images: 3 in " in answer.err
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["fatal"] == []
    assert [(fault["kind"], fault["where"]) for fault in written["warnings"]] == [
        ("empty-box", f"{tmp_path / 'train.json'}: annotation 2, image 1000, 000.jpg")
    ]
    (tmp_path / "train.json").write_text("{")
    answer = cli(*words)
    assert answer.status == 1
    assert answer.out.splitlines()[-1] == "training cannot start: not JSON (1)"
    assert [fault["kind"] for fault in json.loads((tmp_path / "out.json").read_text())["fatal"]] == ["not-json"]


def test_the_command_compares_with_validation_data_which_need_their_images(
    tmp_path: Path, cli: Callable[..., Answer]
) -> None:
    data = DataSet(tmp_path, images=3)
    data.sides["val"]["categories"][0]["name"] = "cow"
    data.check()
    words = ["check", tmp_path / "train.json", "--images", tmp_path / "train", "--val", tmp_path / "val.json"]
    assert cli(*words).status == 2
    answer = cli(*words, "--val-images", tmp_path / "val", "--no-pixels")
    assert answer.status == 1
    assert answer.out.splitlines()[-1] == "training cannot start: validation classes that training lacks (1)"


def test_the_command_measures_the_anchors_of_a_config(toy: Path, tmp_path: Path, cli: Callable[..., Answer]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  base_hw: [64, 64]\n")
    annotations, images = toy / "annotations" / "instances_train2017.json", toy / "train2017"
    answer = cli("check", annotations, "--images", images, "--config", config, "--json", tmp_path / "out.json")
    assert answer.status == 0, answer.err
    summary = json.loads((tmp_path / "out.json").read_text())["summary"]
    assert summary["anchors"]["boxes"] == summary["boxes"] - summary["crowd_boxes"]
    assert "anchors of the config reach" in answer.out


def test_the_command_says_in_one_line_what_is_not_there(tmp_path: Path, cli: Callable[..., Answer]) -> None:
    answer = cli("check", tmp_path / "absent.json", "--images", tmp_path)
    assert (answer.status, answer.err) == (1, f"error: {tmp_path / 'absent.json'}: no such file\n")


def is_fatal(found: Found) -> bool:
    return KINDS[found[0]].handling == "fatal"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Names, sizes and times of all files and folders."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}
