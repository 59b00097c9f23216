"""What can be wrong with a data set: one list of faults, in one form, for `check`, training and scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Handling = Literal["fatal", "left out", "used"]
"""What training and scoring do: stop before the first step, leave the entry out, or use it as it is."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault: a title for many of them, and what is done about it."""

    title: str
    handling: Handling


KINDS: dict[str, Kind] = {
    # The annotation file: what is no COCO, or contradicts itself
    "not-json": Kind("not JSON", "fatal"),
    "not-coco": Kind("not COCO JSON", "fatal"),
    "bad-entry": Kind("entries with a missing or wrong field", "fatal"),
    "no-images": Kind("no images listed", "fatal"),
    "no-classes": Kind("no categories listed", "fatal"),
    "bad-image-size": Kind("image sizes that are none", "fatal"),
    "duplicate-image-id": Kind("image ids used twice", "fatal"),
    "duplicate-annotation-id": Kind("annotation ids used twice", "fatal"),
    "duplicate-category-id": Kind("category ids used twice", "fatal"),
    "duplicate-class-name": Kind("class names used twice", "fatal"),
    "unknown-image": Kind("annotations of images that are not listed", "fatal"),
    "unknown-category": Kind("annotations of categories that are not listed", "fatal"),
    "bad-box": Kind("boxes that are not four finite numbers", "fatal"),
    "boxes-xyxy": Kind("boxes that look like x1, y1, x2, y2", "fatal"),
    "boxes-normalised": Kind("boxes that look like parts of the image", "fatal"),
    # Boxes of no use
    "negative-box": Kind("boxes of negative size", "left out"),
    "empty-box": Kind("boxes without area", "left out"),
    "box-outside": Kind("boxes wholly outside their image", "left out"),
    # Boxes that are used, but perhaps not as they were meant
    "box-partly-outside": Kind("boxes partly outside their image (clipped)", "used"),
    "box-maybe-xyxy": Kind("boxes that may be x1, y1, x2, y2 (a guess)", "used"),
    "box-maybe-normalised": Kind("boxes that may be parts of the image (a guess)", "used"),
    "area-contradicts-box": Kind("areas that contradict their box", "used"),
    "duplicate-box": Kind("boxes marked twice", "used"),
    "tiny-box": Kind("boxes of hardly a pixel", "used"),
    "crowd": Kind("crowd regions (ignored in the loss)", "used"),
    # Classes and images as the file lists them
    "class-without-boxes": Kind("classes without boxes", "used"),
    "image-without-boxes": Kind("images without boxes (background)", "used"),
    "file-listed-twice": Kind("files listed as two images", "used"),
    "class-names-alike": Kind("class names that differ by case or blanks alone", "used"),
    "no-boxes": Kind("nothing to learn", "fatal"),
    # Image files
    "missing-file": Kind("missing image files", "fatal"),
    "most-images-unusable": Kind("most images cannot be used", "fatal"),
    "empty-file": Kind("image files of zero bytes", "left out"),
    "truncated-image": Kind("image files that were cut off", "left out"),
    "not-an-image": Kind("files that are no images", "left out"),
    "unreadable-file": Kind("image files that cannot be read", "left out"),
    "size-differs": Kind("images of another size than annotated", "left out"),
    "exif-rotation": Kind("images that EXIF wants turned", "used"),
    "grey-image": Kind("grey images", "used"),
    "alpha-image": Kind("images with transparency", "used"),
    "deep-image": Kind("images of more than 8 bits", "used"),
    "cmyk-image": Kind("CMYK images", "used"),
    # Two data sets beside each other
    "image-in-both": Kind("the same image in training and validation", "used"),
    "class-unknown-to-training": Kind("validation classes that training lacks", "fatal"),
    "class-missing-in-validation": Kind("training classes that validation lacks", "used"),
    # A detector's anchors
    "boxes-out-of-reach": Kind("boxes that no anchor reaches", "used"),
}
"""Every kind that is reported; their names are what the JSON says."""


@dataclass(frozen=True)
class Fault:
    """One fault and its place.

    Attributes:
        kind: one of `KINDS`.
        message: what came, and what was expected or follows from it.
        source: the annotation file, as it was named.
        entry: which entry it is, where no usable id says so, such as `images[3]`.
        image_id: of the image concerned, where known.
        annotation_id: of the annotation concerned, where known.
        category: id or name of the class concerned, where one is.
        file: the image file concerned, as the annotations name it.
    """

    kind: str
    message: str
    source: str
    entry: str | None = None
    image_id: int | None = None
    annotation_id: int | None = None
    category: int | str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    @property
    def handling(self) -> Handling:
        """What training and scoring do about it."""
        return KINDS[self.kind].handling

    @property
    def where(self) -> str:
        """The place in words: `val.json: annotation 5, image 17, dog.jpg`."""
        parts = [
            self.entry,
            None if self.annotation_id is None else f"annotation {self.annotation_id}",
            None if self.image_id is None else f"image {self.image_id}",
            None if self.category is None else f"category {self.category}",
            self.file,
        ]
        place = ", ".join(part for part in parts if part)
        return f"{self.source}: {place}" if place else self.source

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        """The keys that `mnet-det check --json` promises, and the parts of the place."""
        return {
            "kind": self.kind,
            "where": self.where,
            "message": self.message,
            "handling": self.handling,
            "source": self.source,
            "image_id": self.image_id,
            "annotation_id": self.annotation_id,
            "category": self.category,
            "file": self.file,
        }


def count_kinds(faults: Iterable[Fault]) -> dict[str, int]:
    """How many faults there are of each kind, in the order of `KINDS`."""
    counts = Counter(fault.kind for fault in faults)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}
