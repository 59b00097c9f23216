"""COCO JSON as data: here `category_id` becomes a label, 0…K-1, and a label `category_id`."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_det.data.annotations import (
    Examined,
    compare_classes,
    entry_faults,
    examine_annotations,
    is_box,
    marked_classes,
    read_json,
)
from mnet_det.data.boxes import clip_boxes
from mnet_det.data.faults import Fault
from mnet_det.data.missing import hint
from mnet_det.errors import DataError, ImageError
from mnet_det.images import read_image
from mnet_det.structures import Detections, FloatArray, Image, IntArray

NUMBERS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""Names of COCOeval's twelve numbers, in its order."""
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
        source: the annotation file.
        folder: of the images.
        class_names: K names, by ascending category id, or in the order of the data that these were joined to.
        category_ids: the file's own ids, in the same order; None for a class that only the data it was joined to have.
        image_ids: int64 [I].
        image_hws: int64 [I, 2].
        left_out: faults of boxes that are not among these.
    """

    source: Path
    folder: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]
    image_ids: IntArray
    image_hws: IntArray
    left_out: tuple[Fault, ...]
    _file_names: NDArray[np.bytes_]  # UTF-8 [I]
    _starts: IntArray  # [I + 1], where each image's boxes begin
    _boxes_xyxy: FloatArray  # [N, 4]
    _labels: IntArray  # [N]
    _crowd: NDArray[np.bool_]  # [N]
    _annotation_ids: IntArray  # [N], 0 where the file gives none

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_boxes(self) -> int:
        """Boxes in all, crowd regions included."""
        return len(self._labels)

    @property
    def num_objects(self) -> int:
        """Boxes of single objects."""
        return int((~self._crowd).sum())

    @property
    def marked_names(self) -> tuple[str, ...]:
        """The classes that have boxes."""
        return tuple(self.class_names[label] for label in np.unique(self._labels))

    @property
    def known_ids(self) -> tuple[int, ...]:
        """The category ids of data that were joined to no other, which have them all.

        Raises:
            ValueError: a class has none.
        """
        ids = tuple(category_id for category_id in self.category_ids if category_id is not None)
        if len(ids) < len(self.class_names):
            raise ValueError(f"{self.source}: has no ids for {len(self.class_names) - len(ids)} of its classes")
        return ids

    def file_name(self, index: int) -> str:
        """The image file as the annotations name it."""
        return self._file_names[index].decode()

    def path(self, index: int) -> Path:
        """The image file."""
        return self.folder / self.file_name(index)

    def image(self, index: int) -> Image:
        """RGB uint8 [H, W, 3], of the size the annotations give.

        Raises:
            ImageError: the file is missing, unreadable, or of another size.
        """
        height, width = self.image_hws[index]
        return read_image(self.path(index), size_hw=(int(height), int(width)))

    def truth(self, index: int) -> Truth:
        """The boxes of one image."""
        here = self._boxes_of(index)
        return Truth(self._boxes_xyxy[here], self._labels[here], self._crowd[here])

    def annotation_ids(self, index: int) -> IntArray:
        """The file's ids of the boxes of one image [M], in the order of `truth`; 0 where it gives none."""
        return self._annotation_ids[self._boxes_of(index)]

    def fault(self, index: int, error: ImageError) -> Fault:
        """What is wrong with the file of one image, as `mnet-det check` says it."""
        image_id = int(self.image_ids[index])
        return Fault(error.kind, error.reason, str(self.source), image_id=image_id, file=self.file_name(index))

    def head(self, count: int) -> CocoData:
        """The first `count` images that have boxes of single objects.

        Raises:
            DataError: no image has any.
        """
        objects = np.concatenate([[0], np.cumsum(~self._crowd)])  # before each box
        wanted = np.flatnonzero(np.diff(objects[self._starts]) > 0)[:count]
        if not len(wanted):
            raise DataError(f"{self.folder}: none of its {len(self)} images has an object in it")
        return self._select(wanted)

    def part(self, rank: int, size: int) -> CocoData:
        """Every `size`-th image from number `rank` on: the parts of all ranks hold each image once."""
        return self._select(np.arange(rank, len(self), size))

    def without(self, faults: Iterable[Fault]) -> CocoData:
        """All images but those that have one of these faults."""
        image_ids = np.array([fault.image_id for fault in faults if fault.image_id is not None], np.int64)
        if not len(image_ids):
            return self
        return self._select(np.flatnonzero(~np.isin(self.image_ids, image_ids)))

    def _select(self, wanted: IntArray) -> CocoData:
        """The images at these places, with their boxes."""
        rows = np.concatenate([np.arange(0), *(np.arange(self._starts[i], self._starts[i + 1]) for i in wanted)])
        lengths = np.diff(self._starts)[wanted]
        image_ids = set(self.image_ids[wanted].tolist())
        return replace(
            self,
            image_ids=self.image_ids[wanted],
            image_hws=self.image_hws[wanted],
            left_out=tuple(fault for fault in self.left_out if fault.image_id in image_ids),
            _file_names=self._file_names[wanted],
            _starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            _boxes_xyxy=self._boxes_xyxy[rows],
            _labels=self._labels[rows],
            _crowd=self._crowd[rows],
            _annotation_ids=self._annotation_ids[rows],
        )

    def _boxes_of(self, index: int) -> slice:
        return slice(self._starts[index], self._starts[index + 1])

    def require_files(self) -> None:
        """Raise DataError if an image file is missing, naming the first ones."""
        missing = [i for i in range(len(self)) if not os.path.isfile(self.path(i))]
        if missing:
            named = ", ".join(self.file_name(index) for index in missing[:PLACES_NAMED])
            advice = (
                hint(self.folder, self.file_name(missing[0])) or "is this the folder that belongs to the annotations?"
            )
            raise DataError(
                f"{self.folder}: {len(missing)} of {len(self)} images are missing, such as {named}; {advice}"
            )


def read_coco(
    annotations: Path,
    images: Path,
    *,
    classes: Sequence[str] | None = None,
    joined_to: Sequence[str] | None = None,
) -> CocoData:
    """Read an annotation file.

    Args:
        annotations: COCO JSON.
        images: folder of the image files.
        classes: keep only these classes, by name; images without any of them stay, as background.
        joined_to: class names of other data, in the order of their labels, which these data take over. Classes are
            joined by name: ids and order may differ, and some may be missing.

    Raises:
        DataError: a file or folder is missing, the annotations have a fatal fault, or they have classes that the
            data they are joined to lack (and `classes` does not leave out).
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such folder of images")
    examined = examine_annotations(annotations)
    refuse_fatal(examined.faults)
    class_names, category_ids = _classes(examined, annotations, classes=classes, joined_to=joined_to)
    label_of = {category_id: label for label, category_id in enumerate(category_ids) if category_id is not None}
    image_index = {image["id"]: index for index, image in enumerate(examined.images)}
    image_hws = np.array([(i["height"], i["width"]) for i in examined.images], np.int64).reshape(-1, 2)
    kept = [a for a in examined.annotations if a["category_id"] in label_of]
    kept.sort(key=lambda a: image_index[a["image_id"]])
    owners = np.array([image_index[a["image_id"]] for a in kept], np.int64)
    boxes_xywh = np.array([a["bbox"] for a in kept], np.float64).reshape(-1, 4)
    return CocoData(
        source=annotations,
        folder=images,
        class_names=class_names,
        category_ids=category_ids,
        image_ids=np.array([image["id"] for image in examined.images], np.int64),
        image_hws=image_hws,
        left_out=tuple(fault for fault in examined.faults if fault.handling == "left out"),
        _file_names=np.array([image["file_name"].encode() for image in examined.images]),
        _starts=np.searchsorted(owners, np.arange(len(image_hws) + 1)).astype(np.int64),
        _boxes_xyxy=clip_boxes(boxes_xywh, image_hws[owners, ::-1]),
        _labels=np.array([label_of[a["category_id"]] for a in kept], np.int64),
        _crowd=np.array([bool(a.get("iscrowd")) for a in kept], bool),
        _annotation_ids=np.array([a.get("id") or 0 for a in kept], np.int64),
    )


def read_coco_json(path: Path) -> dict[str, Any]:
    """An annotation file as COCOeval wants it, with missing `area` (w × h) and `iscrowd` (0) filled in.

    Boxes that no detector could find, such as those without area, are not in it, but their faults are, under
    `left_out`.

    Raises:
        DataError: it is missing, or has a fatal fault; the message says what, and where.
    """
    examined = examine_annotations(path)
    refuse_fatal(examined.faults)
    for number, annotation in enumerate(examined.annotations, start=1):
        annotation["id"] = number  # COCOeval takes 0 for "no match"
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotation["iscrowd"] = int(bool(annotation.get("iscrowd")))  # pycocotools holds it in a byte
    return {
        "images": examined.images,
        "annotations": examined.annotations,
        "categories": examined.categories,
        "left_out": [fault for fault in examined.faults if fault.handling == "left out"],
    }


def refuse_fatal(faults: Iterable[Fault]) -> None:
    """Stop at what `mnet-det check` calls fatal, in its words.

    Raises:
        DataError: there is such a fault; the first is named, the others are counted.
    """
    fatal = [fault for fault in faults if fault.handling == "fatal"]
    if fatal:
        more = f" (and {len(fatal) - 1} more; `mnet-det check` lists them all)" if len(fatal) > 1 else ""
        raise DataError(f"{fatal[0]}{more}")


def read_results(path: Path) -> list[dict[str, Any]]:
    """A COCO results file: a list of `image_id`, `category_id`, `bbox` xywh, `score`.

    Raises:
        DataError: the file is missing or is not such a list.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, list):
        raise DataError(f"{path}: not COCO results; expected a list of them, found a {type(content).__name__}")
    for number, message in entry_faults(content, _RESULT):
        raise DataError(f"{path}: results[{number}]: {message}")
    for number, result in enumerate(content):
        if not is_box(result["bbox"]):
            message = f"bbox {reprlib.repr(result['bbox'])} is not four finite numbers x, y, width, height"
            raise DataError(f"{path}: results[{number}]: {message}")
    return content


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


_RESULT: dict[str, tuple[type, ...]] = {
    "image_id": (int, str),
    "category_id": (int,),
    "bbox": (list,),
    "score": (int, float),
}


def _classes(
    examined: Examined, source: Path, *, classes: Sequence[str] | None, joined_to: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Class names in the order of their labels, and this file's id of each."""
    ids = {c["name"]: c["id"] for c in sorted(examined.categories, key=lambda category: category["id"])}
    if joined_to is not None:
        marked = marked_classes(examined)
        marked &= marked if classes is None else set(classes)
        refuse_fatal(compare_classes(joined_to, list(ids), marked=marked, source=str(source)))
        return tuple(joined_to), tuple(ids.get(name) for name in joined_to)
    unknown = [name for name in classes or () if name not in ids]
    if unknown:
        raise DataError(f"{source}: has no class {', '.join(unknown)}; it has {', '.join(ids)}")
    names = tuple(name for name in ids if classes is None or name in classes)
    return names, tuple(ids[name] for name in names)
