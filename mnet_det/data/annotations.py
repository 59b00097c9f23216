"""The judgement of a COCO annotation file: everything that can be said from the JSON alone, in one pass.

`check` reports it, and reading for training and scoring refuses what is fatal in it. So there is one opinion.
"""

from __future__ import annotations

import difflib
import json
import math
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from mnet_det.data.boxes import Entry, Numbered, judge_boxes
from mnet_det.data.faults import Fault
from mnet_det.errors import DataError

LARGEST_INTEGER = 2**63
LARGEST_SIDE = 1e9
"""Pixels. What is larger is no coordinate, and its square would leave float32."""
Kinds = tuple[type, ...]
REQUIRED: dict[str, dict[str, Kinds]] = {
    "images": {"id": (int,), "file_name": (str,), "height": (int,), "width": (int,)},
    "annotations": {
        "image_id": (int,),
        "category_id": (int,),
        "bbox": (list,),
        "id": (int, NoneType),
        "area": (int, float, NoneType),
        "iscrowd": (int, bool, NoneType),
    },
    "categories": {"id": (int,), "name": (str,)},
}
"""Kinds of the fields that are read; those that may be missing are allowed to be null."""
_KIND_NAMES: dict[type, str] = {
    **{int: "an integer", float: "a number", str: "text", list: "a list"},
    **{bool: "true or false", NoneType: "nothing"},
}


@dataclass(frozen=True)
class Examined:
    """What an annotation file holds, and what is wrong with it.

    Attributes:
        images: entries without fatal faults, as the file has them.
        annotations: those that training and scoring can use: sound, of a listed image and category, with an area.
        categories: entries without fatal faults.
        faults: all that was found, fatal or not.
    """

    images: list[Entry]
    annotations: list[Entry]
    categories: list[Entry]
    faults: tuple[Fault, ...]

    @property
    def fatal(self) -> list[Fault]:
        """The faults that stop a training."""
        return [fault for fault in self.faults if fault.handling == "fatal"]


def examine_annotations(path: Path) -> Examined:
    """Judge an annotation file.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    source = str(path)
    try:
        content = read_json(path)
    except ValueError as error:
        return Examined([], [], [], (Fault("not-json", f"not JSON ({error})", source),))
    if not isinstance(content, dict):
        came = _name_of(content)
        message = f"not COCO JSON; expected an object with images, annotations and categories, found {came}"
        return Examined([], [], [], (Fault("not-coco", message, source),))
    listed: dict[str, Numbered] = {}
    faults: list[Fault] = []
    for key, fields in REQUIRED.items():
        listed[key], found = _sound_entries(content.get(key), fields, key=key, source=source)
        faults += found
    for key, kind in (("images", "no-images"), ("categories", "no-classes")):
        if content.get(key) == []:
            faults.append(Fault(kind, f"lists no {key}", source))
    images, found = _judge_images(listed["images"].values(), source)
    faults += found
    categories, found = _judge_categories(listed["categories"].values(), source)
    faults += found
    known = {key: _ids_in(content.get(key), "id") for key in ("images", "categories")}
    annotations, found = _judge_annotations(listed["annotations"], images, categories, known, source)
    faults += found
    if annotations:
        annotations, found = judge_boxes(annotations, images, source)
        faults += found
    faults += _judge_use(images, categories, content.get("annotations"), source)
    return Examined(images, list(annotations.values()), categories, tuple(faults))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: there is no such file, or it cannot be read.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def entry_faults(entries: Any, fields: Mapping[str, Kinds]) -> Iterator[tuple[int, str]]:
    """What is wrong with the fields of a list of entries: number of the entry, and a message."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            yield number, f"is {_name_of(entry)}, expected an object"
            continue
        wrong = [_explain(field, entry, kinds) for field, kinds in fields.items() if not _fits(entry.get(field), kinds)]
        if wrong:
            yield number, "; ".join(wrong)


def is_box(box: Sequence[Any]) -> bool:
    """Whether it is four finite numbers that can be pixels."""
    for side in box:
        if type(side) not in (int, float) or not -LARGEST_SIDE < side < LARGEST_SIDE:  # which NaN is not
            return False
    return len(box) == 4


def compare_classes(
    training: Sequence[str], validation: Sequence[str], *, marked: Collection[str], source: str
) -> list[Fault]:
    """What differs between the class names of two data sets; ids and order are their own affair.

    Args:
        training: the names that a detector learns.
        validation: those that it is scored on.
        marked: those of them that have boxes; the others do no harm where training lacks them.
        source: the validation's annotation file.
    """
    faults = []
    for name in sorted(set(marked) - set(training)):
        near = _nearest(name, training)
        hint = f"did it mean {near!r}?" if near else f"training has {_some(training)}"
        message = f"the class {name!r} is not among the {len(training)} of the training data; {hint}"
        faults.append(Fault("class-unknown-to-training", message, source, category=name))
    if not faults and not set(training) & set(validation):
        message = f"lists none of the training data's {_some(training)}; it has {_some(validation)}"
        return [Fault("class-unknown-to-training", message, source)]
    for name in sorted(set(training) - set(validation)):
        near = _nearest(name, validation)
        hint = f"; is it {near!r}?" if near else ""
        message = f"the class {name!r} of the training data is not listed, so it cannot be scored{hint}"
        faults.append(Fault("class-missing-in-validation", message, source, category=name))
    return faults


def marked_classes(examined: Examined) -> set[str]:
    """Names of the classes that have boxes."""
    used = {annotation["category_id"] for annotation in examined.annotations}
    return {category["name"] for category in examined.categories if category["id"] in used}


def nothing_to_learn(objects: int, source: str) -> list[Fault]:
    """The fault of training data without boxes of single objects, crowds being none; `objects` is their number."""
    message = "has no box of a single object, so there is nothing to learn"
    return [] if objects else [Fault("no-boxes", message, source)]


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """The name that differs in case or blanks alone, else one spelt alike."""
    plain = {other.casefold().strip(): other for other in names}
    near = difflib.get_close_matches(name.casefold().strip(), list(plain), n=1, cutoff=0.75)
    return plain[near[0]] if near else None


def _some(names: Sequence[str], *, most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _sound_entries(entries: Any, fields: Mapping[str, Kinds], *, key: str, source: str) -> tuple[Numbered, list[Fault]]:
    """The entries that have all their fields, and faults for the others."""
    if not isinstance(entries, list):
        message = f"not COCO JSON; expected a list of {key}, found {_name_of(entries)}"
        return {}, [Fault("not-coco", message, source)]
    entries = [_with_whole_numbers(entry, fields) for entry in entries]
    wrong = dict(entry_faults(entries, fields))
    faults = [
        Fault("bad-entry", message, source, entry=f"{key}[{number}]", **_ids_of(entries[number], key))
        for number, message in wrong.items()
    ]
    return {number: entry for number, entry in enumerate(entries) if number not in wrong}, faults


def _with_whole_numbers(entry: Any, fields: Mapping[str, Kinds]) -> Any:
    """The entry, with 640.0 as the 640 that it means where an integer is wanted: tables with gaps are written so."""
    if not isinstance(entry, dict) or float not in set(map(type, entry.values())):
        return entry
    whole = {
        field: int(entry[field])
        for field, kinds in fields.items()
        if float not in kinds and int in kinds and type(entry.get(field)) is float and entry[field].is_integer()
    }
    return {**entry, **whole} if whole else entry


def _ids_of(entry: Any, key: str) -> dict[str, Any]:
    """What a broken entry still says about its place."""
    if not isinstance(entry, dict):
        return {}
    of_image = {"image_id": entry.get("id"), "file": entry.get("file_name")}
    of_annotation = {"annotation_id": entry.get("id"), "image_id": entry.get("image_id")}
    found = {"images": of_image, "annotations": of_annotation, "categories": {"category": entry.get("id")}}[key]
    return {name: value for name, value in found.items() if _fits(value, (str,) if name == "file" else (int,))}


def _judge_images(images: Iterable[Entry], source: str) -> tuple[list[Entry], list[Fault]]:
    faults = []
    kept = []
    seen: dict[int, str] = {}
    names: dict[str, int] = {}
    for image in images:
        place: dict[str, Any] = {"image_id": image["id"], "file": image["file_name"]}
        if image["id"] in seen:
            message = f"the image id {image['id']} occurs twice: {seen[image['id']]} has it too; ids must differ"
            faults.append(Fault("duplicate-image-id", message, source, **place))
        elif not (0 < image["height"] < LARGEST_SIDE and 0 < image["width"] < LARGEST_SIDE):
            message = f"{image['width']}x{image['height']} pixels is not a size"
            faults.append(Fault("bad-image-size", message, source, **place))
        else:
            kept.append(image)
            first = names.setdefault(image["file_name"], image["id"])
            if first != image["id"]:
                message = f"the file is listed as image {first} too; its boxes may be split between the two"
                faults.append(Fault("file-listed-twice", message, source, **place))
        seen.setdefault(image["id"], image["file_name"])
    return kept, faults


def _judge_categories(categories: Iterable[Entry], source: str) -> tuple[list[Entry], list[Fault]]:
    faults = []
    kept = []
    ids: dict[int, str] = {}
    names: dict[str, int] = {}
    spelt: dict[str, str] = {}
    for category in categories:
        number, name = category["id"], category["name"]
        if number in ids:
            message = f"the category id {number} occurs twice, as {ids[number]!r} and {name!r}; ids must differ"
            faults.append(Fault("duplicate-category-id", message, source, category=number))
        elif name in names:
            message = (
                f"the class name {name!r} occurs twice, as category {names[name]} and {number}; delete the one without "
                "boxes, or rename one"
            )
            faults.append(Fault("duplicate-class-name", message, source, category=number))
        else:
            kept.append(category)
            alike = spelt.setdefault(name.casefold().strip(), name)
            if alike != name:
                message = f"{name!r} differs from {alike!r} by case or blanks alone; are they one class?"
                faults.append(Fault("class-names-alike", message, source, category=number))
        ids.setdefault(number, name)
        names.setdefault(name, number)
    return kept, faults


def _judge_annotations(
    annotations: Numbered, images: list[Entry], categories: list[Entry], known: Mapping[str, set[int]], source: str
) -> tuple[Numbered, list[Fault]]:
    """Ids, owners and the form of boxes. `known` tells an owner that is not there from one that is faulty itself."""
    files = {image["id"]: image["file_name"] for image in images}
    classes = {category["id"] for category in categories}
    seen: set[int] = set()
    faults: list[Fault] = []
    kept = {}
    for number, annotation in annotations.items():
        own, image_id, category_id = annotation.get("id"), annotation["image_id"], annotation["category_id"]
        entry = f"annotations[{number}]" if own is None else None
        place: dict[str, Any] = {"entry": entry, "annotation_id": own}
        sound = image_id in files and category_id in classes
        if own in seen:
            message = f"the annotation id {own} occurs twice; ids must differ"
            faults.append(Fault("duplicate-annotation-id", message, source, **place, image_id=image_id))
            sound = False
        if own is not None:
            seen.add(own)
        if image_id not in known["images"]:
            faults.append(Fault("unknown-image", f"image_id {image_id} is not among the images", source, **place))
        if category_id not in known["categories"]:
            message = f"category_id {category_id} is not among the categories"
            place_of_image = {"image_id": image_id, "file": files.get(image_id)}
            faults.append(Fault("unknown-category", message, source, **place, **place_of_image))
        if not is_box(annotation["bbox"]):
            message = f"bbox {reprlib.repr(annotation['bbox'])} is not four finite numbers x, y, width, height"
            faults.append(Fault("bad-box", message, source, **place, image_id=image_id, file=files.get(image_id)))
            sound = False
        if sound:
            kept[number] = annotation
    return kept, faults


def _judge_use(images: list[Entry], categories: list[Entry], annotations: Any, source: str) -> list[Fault]:
    """Images and classes that nothing is marked of, not even by an entry with faults of its own."""
    with_boxes, used = (_ids_in(annotations, field) for field in ("image_id", "category_id"))
    faults = [
        Fault("class-without-boxes", f"the class {c['name']!r} has no boxes", source, category=c["id"])
        for c in categories
        if c["id"] not in used
    ]
    faults += [
        Fault("image-without-boxes", "has no boxes", source, image_id=image["id"], file=image["file_name"])
        for image in images
        if image["id"] not in with_boxes
    ]
    return faults


def _ids_in(entries: Any, field: str) -> set[int]:
    """The ids in a field of a list of entries, which may have other faults."""
    objects = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return {entry[field] for entry in objects if type(entry.get(field)) in (int, float)}  # 3.0 is 3


def _fits(value: Any, kinds: Kinds) -> bool:
    """Whether a field's value is of its kind, and can be held: 64-bit integers, finite numbers, text in UTF-8.

    Kinds are compared exactly: true is no integer. It is asked millions of times.
    """
    kind = type(value)
    if kind not in kinds:
        return False
    if kind is int:
        return -LARGEST_INTEGER < value < LARGEST_INTEGER
    if kind is float:
        return math.isfinite(value)
    return kind is not str or _is_text(value)


def _is_text(value: str) -> bool:
    """Half of a surrogate pair is none, and no file or class can be named by nothing or with a NUL."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return bool(value) and "\0" not in value


def _explain(field: str, entry: Entry, kinds: Kinds) -> str:
    """What is wrong with a field that does not fit."""
    if field not in entry:
        return f"'{field}' is missing"
    came = entry[field]
    if type(came) in kinds:  # of the right kind, so it cannot be held
        expected = {int: "one of 64 bits", float: "a finite one", str: "a name in UTF-8"}[type(came)]
    else:
        expected = " or ".join(_KIND_NAMES[kind] for kind in kinds if kind is not int or float not in kinds)
    advice = "; write ids and sizes as numbers, not as text" if type(came) is str and int in kinds else ""
    return f"'{field}' is {reprlib.repr(came)}, expected {expected}{advice}"


def _name_of(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
