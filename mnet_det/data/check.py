"""The linter of data sets: every fault of annotations and images, found before training meets it. It only reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mnet_det.data.annotations import Examined, compare_classes, examine_annotations, marked_classes, nothing_to_learn
from mnet_det.data.boxes import Entry, clip_boxes
from mnet_det.data.faults import KINDS, Fault, count_kinds
from mnet_det.data.missing import hint
from mnet_det.doctor import usable_cores
from mnet_det.errors import DataError, ImageError
from mnet_det.files import sha256_of
from mnet_det.image_header import Stored
from mnet_det.images import look_at_header, look_at_pixels, read_image, size_error

IMAGES_AT_ONCE = 256
"""Images handed to the threads together: many enough to keep them busy, few enough to hold nothing of the others."""

SMALL_PX, LARGE_PX = 32, 96
"""Sides of the squares that part COCO's small, medium and large objects."""

RELATIVE_SIDES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Edges of the histogram of sqrt(box area / image area)."""

PERCENTILES = (5, 50, 95)

Progress = Callable[[int, int], None]
"""Told how many images of how many are done."""


@dataclass(frozen=True)
class Verdict:
    """What was found in one data set, or in a training and a validation set.

    Attributes:
        faults: all of them, in the order of the files.
        summary: numbers for JSON: images, boxes, classes, box sizes, counts of faults; under `val` the same again.
    """

    faults: tuple[Fault, ...]
    summary: dict[str, Any]

    @property
    def fatal(self) -> tuple[Fault, ...]:
        """Those that stop a training before its first step."""
        return tuple(fault for fault in self.faults if fault.handling == "fatal")

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """All others."""
        return tuple(fault for fault in self.faults if fault.handling != "fatal")

    def adding(self, faults: Iterable[Fault], **numbers: Any) -> Verdict:
        """The same verdict with more faults of the training set, and more numbers in the summary."""
        more = tuple(faults)
        counts = Counter(self.summary["counts"]) + Counter(count_kinds(more))
        in_order = {kind: counts[kind] for kind in KINDS if counts[kind]}
        return Verdict((*self.faults, *more), {**self.summary, "counts": in_order, **numbers})

    def to_json(self) -> dict[str, Any]:
        """The keys that `mnet-det check --json` promises."""
        return {
            "fatal": [fault.to_json() for fault in self.fatal],
            "warnings": [fault.to_json() for fault in self.warnings],
            "summary": self.summary,
        }


def check(
    annotations: Path,
    images: Path,
    *,
    val: Path | None = None,
    val_images: Path | None = None,
    classes: Sequence[str] | None = None,
    pixels: bool = True,
    progress: Progress = lambda done, total: None,
) -> Verdict:
    """Examine a data set, alone or with the one it will be scored on.

    Args:
        annotations: COCO JSON.
        images: folder of the image files.
        val: the validation's annotations, judged too and compared with the first.
        val_images: their folder.
        classes: those that a config chooses; all unless given.
        pixels: decode every image; else only what the first bytes of a file say is judged.
        progress: called after every few images.

    Raises:
        DataError: an annotation file or a folder is missing. All else becomes faults.
    """
    sides = [_Side(annotations, images)]
    if val is not None and val_images is not None:
        sides.append(_Side(val, val_images))
    total = sum(len(side.examined.images) for side in sides)
    done = 0
    for side in sides:
        for count in side.look(pixels=pixels):
            done += count
            progress(done, total)
    sides[0].judge_training(classes)
    for later in sides[1:]:
        later.compare(sides[0], classes)
    summary = sides[0].summary()
    if sides[1:]:
        summary["val"] = sides[1].summary()
    return Verdict(tuple(fault for side in sides for fault in side.faults), summary)


class _Side:
    """One annotation file with its images, and the faults found so far."""

    def __init__(self, annotations: Path, images: Path) -> None:
        if not images.is_dir():
            raise DataError(f"{images}: no such folder of images")
        self.folder = images
        self.source = str(annotations)
        self.examined: Examined = examine_annotations(annotations)
        self.faults: list[Fault] = list(self.examined.faults)
        self.unusable = 0

    def look(self, *, pixels: bool) -> Iterator[int]:
        """Judge the image files, telling after each group how many it had."""
        entries = self.examined.images

        def judge(entry: Entry) -> list[Fault]:
            return list(self._judge_file(entry, pixels=pixels))

        lost: Counter[str] = Counter()
        with _one_opencv_thread(), ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(entries), IMAGES_AT_ONCE):
                group = entries[start : start + IMAGES_AT_ONCE]
                for found in pool.map(judge, group):
                    self.faults += found
                    lost.update(fault.kind for fault in found if fault.handling != "used")  # one at most
                yield len(group)
        self.unusable = lost.total()
        if self.unusable * 2 > len(entries):
            self.faults.append(Fault("most-images-unusable", self._why_most_are_lost(lost), self.source))

    def names(self, classes: Sequence[str] | None) -> dict[int, str]:
        """The name of each category id, of those that are chosen."""
        categories = self.examined.categories
        return {c["id"]: c["name"] for c in categories if classes is None or c["name"] in classes}

    def judge_training(self, classes: Sequence[str] | None) -> None:
        """Add the fault of data that nothing can be learned from, unless it follows from another."""
        if not self.examined.fatal:
            names = self.names(classes)
            objects = sum(not a.get("iscrowd") and a["category_id"] in names for a in self.examined.annotations)
            self.faults += nothing_to_learn(objects, self.source)

    def compare(self, training: _Side, classes: Sequence[str] | None) -> None:
        """Add what is wrong between the training's data and these, which will be scored."""
        learned = list(training.names(classes).values())
        listed, marked = list(self.names(None).values()), marked_classes(self.examined)
        if learned and listed:  # else there is a fatal fault already, and every name would be another
            marked &= marked if classes is None else set(classes)
            self.faults += compare_classes(learned, listed, marked=marked, source=self.source)
        for entry, other in _same_files(self, training):
            message = f"the same bytes as {other} of the training data; what was learned by heart is no test"
            self.faults.append(_image_fault("image-in-both", message, entry, self.source))

    def path(self, entry: Entry) -> Path:
        """The file of an entry of `images`."""
        return self.folder / entry["file_name"]

    def summary(self) -> dict[str, Any]:
        """Numbers for JSON. Boxes are those that training or scoring would use."""
        examined = self.examined
        boxes = _Boxes.of(examined)
        names = {category["id"]: category["name"] for category in examined.categories}
        per_class = Counter(annotation["category_id"] for annotation in boxes.annotations)
        return {
            "images": len(examined.images),
            "boxes": len(boxes.annotations),
            "crowd_boxes": int(boxes.crowd.sum()),
            "classes": len(names),
            "images_without_boxes": len(examined.images) - len({a["image_id"] for a in boxes.annotations}),
            "unusable_images": self.unusable,
            "class_histogram": {name: per_class[number] for number, name in names.items()},
            "box_sizes": boxes.sizes(),
            "counts": count_kinds(self.faults),
        }

    def _why_most_are_lost(self, lost: Counter[str]) -> str:
        """Kinds of faults with their images, most first; only missing ones raise doubts about the folder."""
        kinds = ", ".join(f"{KINDS[kind].title} ({count})" for kind, count in lost.most_common())
        message = f"{lost.total()} of {len(self.examined.images)} images in {self.folder} cannot be used: {kinds}"
        doubt = "; is this the folder that belongs to the annotations?"
        return message + doubt if lost["missing-file"] * 2 > lost.total() else message

    def _judge_file(self, entry: Entry, *, pixels: bool) -> Iterator[Fault]:
        path, size_hw = self.path(entry), (entry["height"], entry["width"])
        try:
            stored = _look(path, size_hw) if pixels else _glance(path, size_hw)
        except ImageError as error:
            instead = hint(self.folder, entry["file_name"]) if error.kind == "missing-file" else ""
            message = f"{error.reason}; {instead}" if instead else error.reason
            yield _image_fault(error.kind, message, entry, self.source)
        else:
            for kind, message in _oddities(stored, size_hw):
                yield _image_fault(kind, message, entry, self.source)


def _look(path: Path, size_hw: tuple[int, int]) -> Stored:
    """Decode an image once; `read_image` has the word wherever it may see more than that.

    Raises:
        ImageError: training and scoring could not use it.
    """
    stored = look_at_pixels(path)
    if stored.size_hw != size_hw:
        read_image(path, size_hw=size_hw)
    return stored


def _glance(path: Path, size_hw: tuple[int, int]) -> Stored | None:
    """What is known of an image without decoding it.

    Raises:
        ImageError: so much is enough to know that it cannot be used.
    """
    stored = look_at_header(path)
    if stored is not None and size_hw not in (stored.size_hw, stored.viewed_hw):
        raise size_error(path, stored.size_hw, size_hw)
    return stored


def _oddities(stored: Stored | None, size_hw: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """Kind and message of what is unusual about an image that can be used."""
    if stored is None:
        return
    if stored.orientation > 1:
        used = "as stored" if stored.size_hw == size_hw else "turned"
        size = f"{size_hw[1]}x{size_hw[0]}"
        yield "exif-rotation", f"EXIF orientation {stored.orientation}; used {used}, to fit the annotated {size}"
    if stored.colour == "grey":
        yield "grey-image", "grey; used as RGB of three equal channels"
    if stored.colour == "RGBA":
        yield "alpha-image", "has transparency, which is dropped"
    if stored.colour == "CMYK":
        yield "cmyk-image", "CMYK; used as RGB, whose colours may be off"
    if stored.bits > 8:
        yield "deep-image", f"{stored.bits} bits a channel; used as 8"


def _image_fault(kind: str, message: str, entry: Entry, source: str) -> Fault:
    return Fault(kind, message, source, image_id=entry["id"], file=entry["file_name"])


def _same_files(scored: _Side, learned: _Side) -> Iterator[tuple[Entry, str]]:
    """Entries of `scored` whose file has the bytes of one of `learned`, and the name of that one.

    Only files whose size occurs on both sides are read.
    """
    sizes = [[_size(side.path(entry)) for entry in side.examined.images] for side in (learned, scored)]
    common = (set(sizes[0]) & set(sizes[1])) - {0}
    name_of: dict[str, str] = {}
    for entry, size in zip(learned.examined.images, sizes[0], strict=True):
        if size in common:
            name_of.setdefault(_digest(learned.path(entry)), entry["file_name"])
    name_of.pop("", None)
    for entry, size in zip(scored.examined.images, sizes[1], strict=True):
        if size in common and (name := name_of.get(_digest(scored.path(entry)))):
            yield entry, name


def _size(path: Path) -> int:
    """Bytes of a file; 0 where it is none or cannot be asked, which is a fault of its own."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):
        return 0


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except DataError:
        return ""


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Our threads decode one image each; OpenCV's own would only be in their way."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@dataclass(frozen=True)
class _Boxes:
    """The boxes that training or scoring would use, clipped to their images.

    Attributes:
        annotations: N entries.
        sides_wh: [N, 2], pixels.
        images_wh: [N, 2], of the image of each box.
        crowd: [N].
    """

    annotations: Sequence[Entry]
    sides_wh: NDArray[np.float64]
    images_wh: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    @classmethod
    def of(cls, examined: Examined) -> _Boxes:
        size_of = {image["id"]: (image["width"], image["height"]) for image in examined.images}
        images_wh = np.array([size_of[a["image_id"]] for a in examined.annotations], np.float64).reshape(-1, 2)
        boxes = np.array([a["bbox"] for a in examined.annotations], np.float64).reshape(-1, 4)
        clipped = clip_boxes(boxes, images_wh).astype(np.float64)
        crowd = np.array([bool(annotation.get("iscrowd")) for annotation in examined.annotations], bool)
        return cls(examined.annotations, clipped[:, 2:] - clipped[:, :2], images_wh, crowd)

    def sizes(self) -> dict[str, Any]:
        """How large single objects are: COCO's three sizes, relative to the image, and percentiles in pixels."""
        sides_wh = self.sides_wh[~self.crowd]
        areas = sides_wh.prod(axis=1)
        relative = np.sqrt(areas / self.images_wh[~self.crowd].prod(axis=1))
        small, large = areas < SMALL_PX**2, areas >= LARGE_PX**2
        counts, _ = np.histogram(relative, RELATIVE_SIDES)
        return {
            "small": int(small.sum()),
            "medium": int((~small & ~large).sum()),
            "large": int(large.sum()),
            "relative_sides": {"edges": list(RELATIVE_SIDES), "boxes": counts.tolist()},
            "width_px": _percentiles(sides_wh[:, 0]),
            "height_px": _percentiles(sides_wh[:, 1]),
            "width_by_height": _percentiles(sides_wh[:, 0] / sides_wh[:, 1]),
        }


def _percentiles(values: NDArray[np.float64]) -> dict[str, float | None]:
    """`p5`, `p50` and `p95`; None where there is nothing to say them of."""
    found = np.percentile(values, PERCENTILES).round(3).tolist() if len(values) else [None] * len(PERCENTILES)
    return dict(zip((f"p{percent}" for percent in PERCENTILES), found, strict=True))
