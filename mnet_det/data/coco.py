"""COCO JSON: the only file that knows `category_id` and `iscrowd`. Labels are 0…K-1 everywhere else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_det.errors import DataError
from mnet_det.images import read_image
from mnet_det.structures import Detections, FloatArray, Image, IntArray

PLACES_NAMED = 3
"""How many faults of one kind a message names before it only counts them."""


@dataclass(frozen=True)
class Truth:
    """What is marked in one image, in its own pixels.

    Attributes:
        boxes_xyxy: float32 [M, 4], clipped to the image.
        labels: int64 [M].
        crowd: bool [M], regions of many objects: neither a single object nor background.
    """

    boxes_xyxy: FloatArray
    labels: IntArray
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class CocoData:
    """Images and boxes of one annotation file, packed in arrays.

    Lists of dicts would be copied page by page into every worker as their reference counts change; arrays are not.

    Attributes:
        folder: of the images.
        class_names: K names, by ascending category id.
        category_ids: the file's own ids, in the same order.
        image_ids: int64 [I].
        image_hws: int64 [I, 2].
        skipped_boxes: boxes without area inside their image, left out of training (COCOeval still sees them).
    """

    folder: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: IntArray
    image_hws: IntArray
    skipped_boxes: int
    _file_names: NDArray[np.bytes_]  # UTF-8 [I]
    _starts: IntArray  # [I + 1], where each image's boxes begin
    _boxes_xyxy: FloatArray  # [N, 4]
    _labels: IntArray  # [N]
    _crowd: NDArray[np.bool_]  # [N]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_boxes(self) -> int:
        """Boxes in all, crowd regions included."""
        return len(self._labels)

    def path(self, index: int) -> Path:
        """The image file."""
        return self.folder / self._file_names[index].decode()

    def image(self, index: int) -> Image:
        """RGB uint8 [H, W, 3], of the size the annotations give.

        Raises:
            DataError: the file is missing, unreadable, or of another size.
        """
        height, width = self.image_hws[index]
        return read_image(self.path(index), size_hw=(int(height), int(width)))

    def truth(self, index: int) -> Truth:
        """The boxes of one image."""
        here = slice(self._starts[index], self._starts[index + 1])
        return Truth(self._boxes_xyxy[here], self._labels[here], self._crowd[here])

    def head(self, count: int) -> CocoData:
        """The first `count` images that have boxes of single objects.

        Raises:
            DataError: no image has any.
        """
        objects = np.concatenate([[0], np.cumsum(~self._crowd)])  # before each box
        wanted = np.flatnonzero(np.diff(objects[self._starts]) > 0)[:count]
        if not len(wanted):
            raise DataError(f"{self.folder}: none of its {len(self)} images has an object in it")
        rows = np.concatenate([np.arange(self._starts[i], self._starts[i + 1]) for i in wanted]).astype(np.int64)
        lengths = np.diff(self._starts)[wanted]
        return CocoData(
            self.folder,
            self.class_names,
            self.category_ids,
            self.image_ids[wanted],
            self.image_hws[wanted],
            self.skipped_boxes,
            self._file_names[wanted],
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            self._boxes_xyxy[rows],
            self._labels[rows],
            self._crowd[rows],
        )

    def require_files(self) -> None:
        """Raise DataError if an image file is missing, naming the first ones."""
        missing = [path for path in map(self.path, range(len(self))) if not path.is_file()]
        if missing:
            named = ", ".join(path.name for path in missing[:PLACES_NAMED])
            raise DataError(
                f"{self.folder}: {len(missing)} of {len(self)} images are missing, such as {named}; "
                "is this the folder that belongs to the annotations?"
            )


def read_coco(annotations: Path, images: Path, *, classes: Sequence[str] | None = None) -> CocoData:
    """Read an annotation file.

    Args:
        annotations: COCO JSON.
        images: folder of the image files.
        classes: keep only these classes, by name; images without any of them stay, as background.

    Raises:
        DataError: a file or folder is missing, or the file is not COCO JSON, or an entry contradicts another.
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such folder of images")
    content = read_coco_json(annotations)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    if classes is not None:
        unknown = [name for name in classes if name not in {category["name"] for category in categories}]
        if unknown:
            raise DataError(
                f"data.classes: {', '.join(unknown)} not in {annotations}; it has "
                f"{', '.join(category['name'] for category in categories)}"
            )
        categories = [category for category in categories if category["name"] in set(classes)]
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    image_index = {image["id"]: index for index, image in enumerate(content["images"])}
    image_hws = np.array([(i["height"], i["width"]) for i in content["images"]], np.int64).reshape(-1, 2)
    kept = [a for a in content["annotations"] if a["category_id"] in label_of]
    kept.sort(key=lambda a: image_index[a["image_id"]])
    owners = np.array([image_index[a["image_id"]] for a in kept], np.int64)
    boxes_xyxy = _clip(np.array([a["bbox"] for a in kept], np.float64).reshape(-1, 4), image_hws[owners])
    sound = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    return CocoData(
        folder=images,
        class_names=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        image_ids=np.array([image["id"] for image in content["images"]], np.int64),
        image_hws=image_hws,
        skipped_boxes=int((~sound).sum()),
        _file_names=np.array([image["file_name"].encode() for image in content["images"]]),
        _starts=np.searchsorted(owners[sound], np.arange(len(image_hws) + 1)).astype(np.int64),
        _boxes_xyxy=boxes_xyxy[sound],
        _labels=np.array([label_of[a["category_id"]] for a in kept], np.int64)[sound],
        _crowd=np.array([bool(a["iscrowd"]) for a in kept], bool)[sound],
    )


def read_coco_json(path: Path) -> dict[str, Any]:
    """An annotation file as COCOeval wants it: checked, with missing `area` (w × h) and `iscrowd` (0) filled in.

    Raises:
        DataError: not COCO JSON; the message says what is missing or contradictory, and where.
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not COCO JSON; expected an object with images, annotations and categories")
    for key, fields in _REQUIRED.items():
        _check_entries(path, key, content.get(key), fields)
    if not content["images"] or not content["categories"]:
        raise DataError(f"{path}: has {len(content['images'])} images and {len(content['categories'])} categories")
    for number, image in enumerate(content["images"]):
        if image["height"] < 1 or image["width"] < 1:
            raise DataError(f"{path}: images[{number}]: {image['width']}x{image['height']} pixels is not a size")
    for key in _REQUIRED:
        _check_unique(path, key, [entry["id"] for entry in content[key] if entry.get("id") is not None])
    _check_unique(path, "categories' names", [category["name"] for category in content["categories"]])
    known = {key: {entry["id"] for entry in content[key]} for key in ("images", "categories")}
    for number, annotation in enumerate(content["annotations"]):
        place = f"{path}: annotation {annotation.get('id', f'number {number}')}"
        for key, owner in (("image_id", "images"), ("category_id", "categories")):
            if annotation[key] not in known[owner]:
                raise DataError(f"{place}: {key} {annotation[key]} is not among the {owner}")
        _check_box(place, annotation["bbox"])
        annotation["id"] = number + 1  # COCOeval takes 0 for "no match", and boxes of one id for one box
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotation["iscrowd"] = annotation.get("iscrowd") or 0
    return content


def read_results(path: Path) -> list[dict[str, Any]]:
    """A COCO results file: a list of `image_id`, `category_id`, `bbox` xywh, `score`.

    Raises:
        DataError: the file is missing or is not such a list.
    """
    content = _read_json(path)
    _check_entries(
        path, "results", content, {"image_id": (int, str), "category_id": int, "bbox": list, "score": (int, float)}
    )
    for number, result in enumerate(content):
        _check_box(f"{path}: results[{number}]", result["bbox"])
        if not math.isfinite(result["score"]):
            raise DataError(f"{path}: results[{number}]: score {result['score']} is not a finite number")
    return list(content)


def to_results(detections: Detections, *, image_id: int | str, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections of one image as entries of a COCO results file, with the data's own category ids."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for (left, top, right, bottom), score, label in zip(
            detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]


_REQUIRED: dict[str, dict[str, Any]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {
        "image_id": int,
        "category_id": int,
        "bbox": list,
        "id": (int, NoneType),
        "area": (int, float, NoneType),
        "iscrowd": (int, NoneType),
    },
    "categories": {"id": int, "name": str},
}
"""Kinds of the fields that are read; those that may be missing are allowed to be null."""
_KIND_NAMES = {int: "an integer", float: "a number", str: "text", list: "a list", NoneType: "nothing"}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None


def _check_entries(path: Path, key: str, entries: Any, fields: dict[str, Any]) -> None:
    if not isinstance(entries, list):
        came = "nothing" if entries is None else f"a {type(entries).__name__}"
        raise DataError(f"{path}: not COCO JSON; expected a list of {key}, found {came}")
    for number, entry in enumerate(entries):
        for field, kind in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and abs(value) >= 2**63):
                raise DataError(f"{path}: {key}[{number}]: '{field}' is {value!r}, expected {_kind_name(kind)}")


def _check_box(place: str, box: list[Any]) -> None:
    if len(box) != 4 or not all(isinstance(side, int | float) and abs(side) < 1e9 for side in box):  # false for NaN
        raise DataError(f"{place}: bbox {box} is not four finite numbers x, y, width, height")


def _kind_name(kind: Any) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(_KIND_NAMES[kind] for kind in kinds)


def _check_unique(path: Path, what: str, values: list[Any]) -> None:
    if len(set(values)) != len(values):
        seen: set[Any] = set()
        twice = next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise DataError(f"{path}: {what}: {twice!r} occurs twice")


def _clip(boxes_xywh: NDArray[np.float64], image_hws: IntArray) -> FloatArray:
    """[N, 4] xywh to xyxy inside each box's own image [N, 2]."""
    limits_xy = image_hws[:, ::-1]
    top_left = np.clip(boxes_xywh[:, :2], 0, limits_xy)
    bottom_right = np.clip(boxes_xywh[:, :2] + boxes_xywh[:, 2:], 0, limits_xy)
    return np.concatenate([top_left, bottom_right], axis=1).astype(np.float32)
