"""YOLO's text files (in the form of Ultralytics) as COCO JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mnet_det.data.convert import (
    Converted,
    annotation_entry,
    category_entries,
    counted,
    first_of,
    image_entry,
    measure_image,
    read_lines,
    read_number,
    read_text,
    refuse,
    require_distinct,
)
from mnet_det.errors import DataError, ImageError
from mnet_det.images import SUFFIXES

_PARTS = ("train", "val", "test")
_SAME_PARTS = ("val", "valid", "validation")
"""Names of one part: Ultralytics writes the first, Roboflow names the folder as the second."""
_OUTSIDE = 0.5
"""How far a value may leave 0…1: so far a box may reach over the edge; what is further out is counted in pixels."""
_NO_LABELS = frozenset({"classes.txt", "labels.txt", "train.txt", "val.txt", "valid.txt", "test.txt"})
"""Text files that lie among labels and are none."""


@dataclass(frozen=True)
class _Part:
    """Some of the images, such as those to train on.

    Attributes:
        folders: where they lie, perhaps in folders below.
        images: absolute paths.
    """

    folders: tuple[Path, ...]
    images: tuple[Path, ...]


@dataclass(frozen=True)
class _Dataset:
    """Where everything is.

    Attributes:
        root: folder of the set.
        parts: by name.
        missing: parts that the data file names and that are not there: why, by name.
        names: of the classes by index, where the data file has them.
    """

    root: Path
    parts: Mapping[str, _Part]
    missing: Mapping[str, str]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Label:
    """A marked object: its class and its box in parts of the image's width and height."""

    index: int
    xywh: tuple[float, float, float, float]


def convert_yolo(
    source: Path, *, split: str | None = None, names: Path | None = None, classes: Sequence[str] | None = None
) -> Converted:
    """Convert a folder of YOLO labels, all of it or one part.

    Lines are `class centre-x centre-y width height` or `class x1 y1 x2 y2 x3 y3 …`, a polygon, of which the extent is
    the box; all in parts of the image as viewers show it, turned as EXIF says. A box over its edge is written as it
    is. An image without a label file is background; a label file without an image is left out. Ids depend on all
    parts: an image's is the place of its path, an annotation's the running number of its line; a category's is the
    class plus 1.

    Args:
        source: a data file (`data.yaml`), or a folder that holds one, or images/ and labels/ (perhaps with a folder
            for each part), or a folder for each part with images/ and labels/ in it, or both side by side.
        split: name of a part; all of them unless given.
        names: a file of class names, one a line; unless given, `names` of the data file, classes.txt or obj.names.
        classes: the names themselves.

    Raises:
        DataError: a file or folder is missing, or something in the files cannot be understood; every such fault is in
            the message or its count.
    """
    dataset = _open(source)
    class_names = _class_names(dataset, names, classes)
    part, notes = _choose(dataset, split, source)
    if not part.images:
        raise DataError(f"{source}: no image in {', '.join(map(str, part.folders))}")
    folder = _common_folder(part.folders)
    images = sorted({path for each in dataset.parts.values() for path in each.images}, key=Path.as_posix)
    labels, faults = _read_all_labels(images, dataset.root, num_classes=len(class_names))
    chosen = set(part.images)
    entries, annotations, turned = [], [], []
    first_id = 1  # of the annotations of each image
    for image_id, (path, found) in enumerate(zip(images, labels, strict=True), start=1):
        if path in chosen:
            try:
                size_hw, shown_turned = measure_image(path)
            except ImageError as error:
                faults.append(str(error))
                continue
            entries.append(image_entry(image_id, path.relative_to(folder).as_posix(), size_hw))
            annotations += _annotation_entries(found, first_id=first_id, image_id=image_id, size_hw=size_hw)
            turned += [path.name] if shown_turned and found else []
        first_id += len(found)
    refuse(source, faults)
    content = {"images": entries, "annotations": annotations, "categories": category_entries(class_names)}
    return Converted(content, folder, (*notes, *_note_of_lost(part.folders, dataset.root), *_note_of_turned(turned)))


def _annotation_entries(
    labels: Sequence[_Label], *, first_id: int, image_id: int, size_hw: tuple[int, int]
) -> list[dict[str, Any]]:
    height, width = size_hw
    return [
        annotation_entry(
            annotation_id,
            image_id=image_id,
            label=label.index,
            box_xywh=[side * whole for side, whole in zip(label.xywh, (width, height, width, height), strict=True)],
        )
        for annotation_id, label in enumerate(labels, start=first_id)
    ]


def _note_of_turned(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{len(names)} of the images, such as {names[0]}, are shown upside down or mirrored by what EXIF says, which "
        "their size does not tell: they are used as stored, and boxes drawn on what viewers show do not fit"
    ]


def _choose(dataset: _Dataset, split: str | None, source: Path) -> tuple[_Part, list[str]]:
    """The part of that name or all of them as one, and what is to say of those that are not there."""
    if split is None:
        notes = [f"{why}; left out" for why in dataset.missing.values()]
        filled = [name for name, part in dataset.parts.items() if part.images]
        if len(filled) > 1:
            together = f"{', '.join(filled[:-1])} and {filled[-1]}"
            notes.append(f"{together} together, in one file; to train on one and score on another, use --split")
        return _join(dataset.parts.values()), notes
    same = _SAME_PARTS if split in _SAME_PARTS else (split,)
    for name in same:
        if name in dataset.parts:
            return dataset.parts[name], []
        if name in dataset.missing:
            raise DataError(dataset.missing[name])
    raise DataError(f"--split {split}: {source} has no such part; there: {', '.join(dataset.parts)}")


def _common_folder(folders: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        raise DataError(f"{', '.join(map(str, folders))}: on different drives; convert one --split at a time") from None


# --- Labels ---------------------------------------------------------------------------------------------------------


def _label_folder(folder: Path, root: Path) -> Path:
    """Of images: the last `images` in the path becomes `labels`; where there is none, they lie beside each other."""
    least = len(root.parts) if folder.is_relative_to(root) else 0
    places = [at for at, name in enumerate(folder.parts) if name == "images" and at >= least]
    if not places:
        return folder
    return Path(*folder.parts[: places[-1]], "labels", *folder.parts[places[-1] + 1 :])


def _note_of_lost(folders: Iterable[Path], root: Path) -> list[str]:
    """Of label files without an image."""
    lost: list[str] = []
    for folder in folders:
        labels = _label_folder(folder, root)
        stems = {path.relative_to(folder).with_suffix("") for path in _images_in(folder)}
        lost += [
            str(path)
            for path in sorted(labels.rglob("*.txt"))
            if path.relative_to(labels).with_suffix("") not in stems and _may_be_label(path)
        ]
    lost = list(dict.fromkeys(lost))
    if not lost:
        return []
    count = counted(len(lost), "label file has", "label files have")
    return [f"{count} no image and {'is' if len(lost) == 1 else 'are'} left out: {first_of(lost)}"]


def _may_be_label(path: Path) -> bool:
    return path.name not in _NO_LABELS and not path.name.startswith((".", "README"))


def _read_all_labels(
    images: Sequence[Path], root: Path, *, num_classes: int
) -> tuple[list[Sequence[_Label]], list[str]]:
    """The objects of each image, and what could not be read.

    Raises:
        DataError: no image has a label file.
    """
    labels: list[Sequence[_Label]] = []
    faults: list[str] = []
    num_files = 0
    for image in images:
        path = _label_folder(image.parent, root) / f"{image.stem}.txt"
        is_there = path.is_file()
        found, wrong = _read_labels(path, num_classes=num_classes) if is_there else ([], [])
        labels.append(found)
        faults += wrong
        num_files += is_there
    if not num_files:
        place = _label_folder(images[0].parent, root)
        raise DataError(f"{root}: none of {len(images)} images has a label file; looked in places such as {place}")
    return labels, faults


def _read_labels(path: Path, *, num_classes: int) -> tuple[list[_Label], list[str]]:
    """The objects of a label file, and what could not be read, with its line."""
    try:
        lines = read_lines(path)
    except DataError as error:
        return [], [str(error)]
    labels, faults = [], []
    for number, line in enumerate(lines, start=1):
        try:
            labels += [_read_label(line.split(), num_classes)] if line else []
        except ValueError as error:
            faults.append(f"{path}: line {number}: {error}")
    return labels, faults


def _read_label(words: Sequence[str], num_classes: int) -> _Label:
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(
            f"{counted(len(words), 'column')}; expected 5 (class, centre and size) or a class and at least three points"
            f"{'; the last may be a score, which labels do not have' if len(words) == 6 else ''}"
        )
    index, *values = (_read_column(word) for word in words)
    if not (index.is_integer() and 0 <= index < num_classes):
        raise ValueError(f"class {words[0]}; the names go from 0 to {num_classes - 1}")
    outside = [word for word, value in zip(words[1:], values, strict=True) if not -_OUTSIDE <= value <= 1 + _OUTSIDE]
    if outside:
        raise ValueError(f"{outside[0]} is far outside 0…1; expected parts of the image's width and height, not pixels")
    if len(values) == 4:
        x, y, width, height = values
        return _Label(int(index), (x - width / 2, y - height / 2, width, height))
    xs, ys = values[::2], values[1::2]
    return _Label(int(index), (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)))


def _read_column(word: str) -> float:
    try:
        return read_number(word)
    except ValueError as error:
        raise ValueError(f"a value {error}") from None


# --- Names and folders ----------------------------------------------------------------------------------------------


def _class_names(dataset: _Dataset, names: Path | None, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is not None:
        found, source = tuple(classes), "--classes"
    elif names is None and dataset.names is not None:
        found, source = dataset.names, f"{dataset.root}: names"
    else:
        path = names or _names_file(dataset)
        found, source = _read_names(path), str(path)
    if not found:
        raise DataError(f"{source}: no class is named")
    require_distinct(found, source=source)
    return found


def _names_file(dataset: _Dataset) -> Path:
    folders = {_label_folder(folder, dataset.root) for part in dataset.parts.values() for folder in part.folders}
    places = [dataset.root, dataset.root / "labels", *sorted(folders)]
    for path in (place / name for place in places for name in ("classes.txt", "obj.names")):
        if path.is_file():
            return path
    raise DataError(
        f"{dataset.root}: no names in a data.yaml, nor classes.txt or obj.names; give --names FILE or --classes A,B"
        f"{_other_data_file(dataset.root)}"
    )


def _read_names(path: Path) -> tuple[str, ...]:
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DataError(f"{path}: line {lines.index('') + 1} is blank; expected a class name on each line")
    return tuple(lines)


def _open(source: Path) -> _Dataset:
    source = Path(os.path.abspath(source))
    if source.is_file():
        described = _open_data_file(source)
        if not described.parts:
            why = "; ".join(described.missing.values()) or f"{source}: names neither train, val nor test"
            raise DataError(f"{why}; the folder itself can be given instead of its data file")
        return described
    if not source.is_dir():
        raise DataError(f"{source}: no such folder or data file")
    names = None
    if (source / "data.yaml").is_file():
        described = _open_data_file(source / "data.yaml")
        if described.parts:
            return described
        names = described.names  # its paths, if any, are those of another machine
    parts = {name: _Part((folder,), _images_in(folder)) for name, folder in _folders_of_parts(source).items()}
    if not any(part.images for part in parts.values()):
        raise DataError(
            f"{source}: no image in it; expected images/ and labels/, or data.yaml{_other_data_file(source)}"
        )
    return _Dataset(source, parts, {}, names)


def _other_data_file(root: Path) -> str:
    """What to give instead of the folder, where a data file has another name than usual."""
    for path in sorted(path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml")):
        try:
            has_names = bool(_read_yaml(path).get("names"))
        except DataError:
            continue
        if has_names:
            return f"; {path.name} has names: give the data file itself, {path}"
    return ""


def _folders_of_parts(root: Path) -> dict[str, Path]:
    """In a folder without a data file."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if (root / "images").is_dir():
        inner = {path.name: path for path in sorted((root / "images").iterdir()) if path.is_dir()}
        is_split = bool(inner) and not any(map(_is_image, (root / "images").iterdir()))
        return inner if is_split else {"images": root / "images"}
    return {path.name: path / "images" for path in folders if (path / "images").is_dir()} or {root.name: root}


def _is_image(path: Path) -> bool:
    # Names that begin with a dot are what macOS leaves on disks of other systems.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _images_in(folder: Path) -> tuple[Path, ...]:
    return tuple(path for path in folder.rglob("*") if _is_image(path))


# --- The data file --------------------------------------------------------------------------------------------------


def _open_data_file(path: Path) -> _Dataset:
    """What it says, be there a part of it or none."""
    content = _read_yaml(path)
    if "kpt_shape" in content:
        raise DataError(f"{path}: has keypoints (kpt_shape), whose lines look like polygons; only boxes are converted")
    roots = [path.parent / str(content.get("path", "")), path.parent]
    parts, missing = {}, {}
    for name in _PARTS:
        words = _words(content.get(name))
        places = [_locate(word, roots) for word in words]
        found = [place for place in places if place is not None]
        if len(found) < len(places):
            missing[name] = f"{path}: {name}: {words[places.index(None)]} is not there"
        elif found:
            parts[name] = _join([_open_part(place, roots) for place in found])
            if not parts[name].images:
                raise DataError(f"{path}: {name}: no image in {', '.join(map(str, found))}")
    return _Dataset(path.parent, parts, missing, _names_in(path, content))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        # All text: else the classes `no` and `1` would be false and a number.
        content = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected train, val and names, as in a data.yaml")
    return content


def _words(value: Any) -> list[str]:
    """A path or a list of them; none where nothing is written."""
    return [str(word) for word in (value if isinstance(value, list) else [value]) if word]


def _locate(word: str, roots: Iterable[Path]) -> Path | None:
    """A file or folder below the first root that has it.

    Roboflow writes `../train/images` for what lies beside the data file, so this is looked for too.
    """
    word = word.replace("\\", "/")
    for found in (root / each for each in (word, word.removeprefix("../")) for root in roots):
        if os.path.exists(found):  # unlike Path.exists, also of names that no system takes
            return Path(os.path.abspath(found))
    return None


def _open_part(place: Path, roots: Sequence[Path]) -> _Part:
    """A folder of images, or a list of them, relative to itself or to the set."""
    if place.is_dir():
        return _Part((place,), _images_in(place))
    listed = {line: _locate(line, [place.parent, *roots]) for line in read_lines(place) if line}
    found = {path for path in listed.values() if path is not None}
    lost = [line for line, path in listed.items() if path is None]
    if lost:
        raise DataError(f"{place}: {len(lost)} of its images are not there, such as {lost[0]}")
    return _Part(tuple({path.parent for path in found}), tuple(found))


def _join(parts: Iterable[_Part]) -> _Part:
    together = list(parts)
    return _Part(
        tuple(sorted({folder for part in together for folder in part.folders})),
        tuple({path for part in together for path in part.images}),
    )


def _names_in(path: Path, content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """A list, or a mapping of the numbers from 0."""
    names = content.get("names")
    if not names:
        return None
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        if set(names) != set(numbers):
            raise DataError(f"{path}: names: the keys are {', '.join(names)}; expected the numbers from 0 on")
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: names: expected a list of class names, or a mapping of numbers to them")
    count = content.get("nc", str(len(names)))
    if count != str(len(names)):
        raise DataError(f"{path}: nc is {count}, but there are {len(names)} names")
    return tuple(names)
