"""Pascal VOC's XML files as COCO JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from mnet_det.data.convert import (
    Converted,
    annotation_entry,
    category_entries,
    command_line,
    counted,
    first_of,
    image_entry,
    measure_image,
    read_lines,
    read_number,
    refuse,
    require_distinct,
)
from mnet_det.errors import DataError, ImageError
from mnet_det.images import SUFFIXES, list_images

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_DIFFICULT = {"": False, "0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True)
class _Object:
    name: str
    edges: tuple[float, ...]  # xmin, ymin, xmax, ymax as they are in the file
    difficult: bool


@dataclass(frozen=True)
class _Annotated:
    """What one XML file says.

    Attributes:
        path: of the XML file.
        file_name: of its image; may be empty, or wrong.
        size_hw: of its image; None where the file does not say it.
        objects: what is marked.
        faults: what could not be read.
    """

    path: Path
    file_name: str = ""
    size_hw: tuple[int, int] | None = None
    objects: tuple[_Object, ...] = ()
    faults: tuple[str, ...] = ()


def convert_voc(
    source: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    zero_based: bool = False,
) -> Converted:
    """Convert a folder of Pascal VOC, all of it or one split.

    Ids depend on all XML files and not on the split: an image's is the place of its XML file by name, an annotation's
    the running number of its object, a category's the place of its name. `difficult` becomes `iscrowd`. The image of an
    XML file is the one of the same name; only where there is none, the one that `<filename>` says.

    Args:
        source: a folder with Annotations/, JPEGImages/ and perhaps ImageSets/Main/, or one of XML files.
        images: folder of the images, if it is not JPEGImages/ or that of the XML files.
        split: name of a list in ImageSets/Main/, or the path of such a file: a name a line. Of a list of one class
            (`name 1`, `name -1`), the images marked -1 are left out, as the class is not in them.
        classes: all names, in the order of their ids; sorted unless given.
        zero_based: coordinates are edges counted from 0 (w = xmax - xmin), as some tools write them; VOC's own are
            pixels counted from 1, the last one included (x = xmin - 1, w = xmax - xmin + 1).

    Raises:
        DataError: a file or folder is missing, or something in the files cannot be understood; every such fault is in
            the message or its count.
    """
    paths = _xml_files(source)
    folder = images or (source / "JPEGImages" if (source / "Annotations").is_dir() else source)
    files = [_read(path) for path in paths]
    stems = {path.stem for path in paths}
    listed, notes = (stems, []) if split is None else _read_split(source, split, stems)
    chosen = {image_id: file for image_id, file in enumerate(files, start=1) if file.path.stem in listed}
    names, unlisted = _order_classes(files, classes)
    entries, lost = _image_entries(chosen, folder)
    refuse(
        source,
        [
            *(fault for file in files for fault in file.faults),
            *unlisted,
            *(f"{split}: {stem}: no {stem}.xml in {paths[0].parent}" for stem in sorted(listed - stems)),
            *lost,
        ],
    )
    if not names:
        raise DataError(f"{source}: no object in any of its {len(files)} XML files; give the names with --classes")
    objects = [(image_id, found) for image_id, file in enumerate(files, start=1) for found in file.objects]
    annotations = [
        annotation_entry(
            annotation_id,
            image_id=image_id,
            label=names.index(found.name),
            box_xywh=_xywh(found.edges, zero_based=zero_based),
            crowd=found.difficult,
        )
        for annotation_id, (image_id, found) in enumerate(objects, start=1)
        if image_id in chosen
    ]
    content = {"images": entries, "annotations": annotations, "categories": category_entries(names)}
    notes += _note_of_unmarked(folder, entries) if split is None else []
    return Converted(content, folder, (*notes, *([] if zero_based else _note_of_edges(files))))


def _xywh(edges: Sequence[float], *, zero_based: bool) -> tuple[float, float, float, float]:
    left, top, right, bottom = edges
    if zero_based:
        return left, top, right - left, bottom - top
    return left - 1, top - 1, right - left + 1, bottom - top + 1


def _note_of_edges(files: Sequence[_Annotated]) -> list[str]:
    below = [file for file in files for found in file.objects if min(found.edges) < 1]
    if not below:
        return []
    return [
        f"{counted(len(below), 'box begins', 'boxes begin')} below 1, VOC's first pixel, such as one in "
        f"{below[0].path.name}; if the tool that wrote them counts from 0, add --zero-based"
    ]


def _note_of_unmarked(folder: Path, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of images that no XML file takes."""
    taken = {entry["file_name"] for entry in entries}
    left = [path.name for path in _images_in(folder) if path.name not in taken]
    if not left:
        return []
    count = counted(len(left), "image has", "images have")
    return [f"{count} no XML file in {folder} and {'is' if len(left) == 1 else 'are'} left out: {first_of(left)}"]


def _xml_files(source: Path) -> list[Path]:
    """By name, in the same order on every system."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    found = [path for path in folder.iterdir() if _is_seen(path, {".xml"})]
    if not found:
        raise DataError(
            f"{folder}: no XML file in it; expected a VOC folder with Annotations/, or a folder of XML files"
            f"{_elsewhere(source)}"
        )
    return sorted(found, key=lambda path: path.name)


def _elsewhere(source: Path) -> str:
    """What to run instead, where XML files lie in folders further down."""
    inside = sorted(source.rglob("*"))
    places = [path.parent for path in inside if _is_seen(path, {".xml"})]
    if not places:
        return ""
    images = [path.parent for path in inside if _is_seen(path, SUFFIXES)]
    asked = ["--images", images[0]] if images and places[0] not in images else []
    return f"; there are some in {places[0]}, so try: {command_line('mnet-det', 'convert', 'voc', places[0], *asked)}"


def _is_seen(path: Path, suffixes: Collection[str]) -> bool:
    # Names that begin with a dot are what macOS leaves on disks of other systems.
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _order_classes(files: Sequence[_Annotated], classes: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Names by label, and what is wrong with them."""
    first_files: dict[str, Path] = {}
    for file in files:
        for found in file.objects:
            first_files.setdefault(found.name, file.path)
    if classes is None:
        return sorted(first_files), []
    require_distinct(classes, source="--classes")
    unlisted = sorted(first_files.keys() - set(classes))
    return list(classes), [f"{first_files[name]}: class '{name}' is not among --classes" for name in unlisted]


# --- XML ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> _Annotated:
    try:
        content = path.read_bytes()
        root = _parse(content)
    except OSError as error:
        return _Annotated(path, faults=(f"{path}: cannot be read ({error.strerror})",))
    except (SyntaxError, ValueError, LookupError) as error:  # ParseError is the first; the last: an unknown encoding
        advice = "; save it as UTF-8" if "encoding" in str(error) or not _is_utf8(content) else ""
        return _Annotated(path, faults=(f"{path}: not XML of this kind ({error}){advice}",))
    objects, faults = [], []
    # Of the root alone: the parts of an object (a person's head) have names and boxes too.
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            objects.append(_read_object(element))
        except ValueError as error:
            faults.append(f"{path}: object {number}: {error}")
    size_hw = None
    try:
        size_hw = _read_size(root)
    except ValueError as error:
        faults.append(f"{path}: {error}")
    # Some tools write a whole path, of another machine.
    file_name = PureWindowsPath(root.findtext("filename", "").strip()).name
    return _Annotated(path, file_name, size_hw, tuple(objects), tuple(faults))


def _parse(content: bytes) -> Element:
    # Entities that multiply can fill the memory where the system's XML parser is old; no annotation declares any.
    if b"<!ENTITY" in content.replace(b"\0", b""):  # the zeros are UTF-16's
        raise ValueError("declares entities")
    root = ElementTree.fromstring(content)
    if root.tag != "annotation":
        raise ValueError(f"begins with <{root.tag}>, expected <annotation>")
    return root


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _read_object(element: Element) -> _Object:
    name = element.findtext("name", "").strip()
    if not name:
        raise ValueError("has no name")
    boxes = element.findall("bndbox")
    if len(boxes) != 1:
        raise ValueError(f"{name} has {len(boxes) or 'no'} bndbox, expected one")
    difficult = element.findtext("difficult", "").strip()
    if difficult.lower() not in _DIFFICULT:
        raise ValueError(f"{name}: difficult is '{difficult}', expected 0 or 1")
    return _Object(name, tuple(_read_field(boxes[0], edge) for edge in _EDGES), _DIFFICULT[difficult.lower()])


def _read_size(root: Element) -> tuple[int, int] | None:
    """None where it is absent or 0, as some tools leave it."""
    sides = [
        _read_field(root, f"size/{side}") if root.findtext(f"size/{side}", "").strip() else 0.0
        for side in ("height", "width")
    ]
    if 0 in sides:
        return None
    if not all(side.is_integer() and side > 0 for side in sides):
        raise ValueError(f"size is {sides[1]:g}x{sides[0]:g}, expected whole pixels")
    return int(sides[0]), int(sides[1])


def _read_field(element: Element, path: str) -> float:
    try:
        return read_number(element.findtext(path))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


# --- Lists and images -----------------------------------------------------------------------------------------------


def _read_split(source: Path, split: str, stems: Collection[str]) -> tuple[set[str], list[str]]:
    """The stems of the XML files that a list takes, be they there or not, and what is to say of it."""
    lists = source / "ImageSets" / "Main"
    path = lists / f"{split}.txt"
    if not path.is_file():
        path = Path(split)
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in lists.glob("*.txt"))) or "none"
        raise DataError(f"--split {split}: no such file, nor a list in {lists}; there: {known}")
    entries = [_read_entry(line, stems) for line in read_lines(path) if line]
    taken = [stem for stem, is_in in entries if is_in]
    if not taken:
        raise DataError(f"{path}: lists no image")
    repeated = len(taken) - len(set(taken))
    return set(taken), [f"{path}: {repeated} names are there again; each image was taken once"] if repeated else []


def _read_entry(line: str, stems: Collection[str]) -> tuple[str, bool]:
    """The stem that a line of a list means, and whether the list takes it: the list of a class marks others with -1."""
    if line in stems:  # it may hold spaces
        return line, True
    *first, last = line.rsplit(maxsplit=1)
    flagged = bool(first) and last in ("-1", "0", "1", "+1")
    name = PurePosixPath((first[0] if flagged else line).replace("\\", "/")).name
    if name not in stems and PurePosixPath(name).suffix.lower() in {".xml", *SUFFIXES}:
        name = PurePosixPath(name).stem
    return name, not (flagged and last == "-1")


def _image_entries(files: Mapping[int, _Annotated], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """COCO's images by id, and which of them are not there, have no size or belong to two XML files."""
    by_stem: dict[str, list[str]] = {}
    for path in _images_in(folder):
        by_stem.setdefault(path.stem, []).append(path.name)
    entries, faults = [], []
    takers: dict[str, Path] = {}
    for image_id, file in files.items():
        try:
            name = _image_name(file, by_stem)
            taker = takers.setdefault(name, file.path)
            if taker != file.path:
                raise ValueError(f"its image would be {name}, which is that of {taker.name}")
            size_hw = file.size_hw or measure_image(folder / name)[0]
            entries.append(image_entry(image_id, name, size_hw))
        except ValueError as error:
            faults.append(f"{file.path}: {error}")
        except ImageError as error:
            faults.append(str(error))
    return entries, faults


def _images_in(folder: Path) -> list[Path]:
    try:
        return [path for path in list_images(folder) if _is_seen(path, SUFFIXES)]
    except DataError as error:
        raise DataError(f"{error}; name the folder of the images with --images") from None


def _image_name(file: _Annotated, by_stem: Mapping[str, Sequence[str]]) -> str:
    """The image that is named like an XML file, else the one that it names: copies of XML files name the old one.

    It is looked up in a list of the folder: a file system that ignores case would find more than other systems do.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = by_stem.get(file.path.stem) or by_stem.get(Path(file.file_name).stem, ())
    if file.file_name in found:
        return file.file_name
    if not found or Path(found[0]).stem != file.path.stem:
        wanted = f", nor '{file.file_name}'" if file.file_name else ""
        raise ValueError(
            f"no image: no {file.path.stem} with a suffix of an image{wanted}; if it lies elsewhere, name the "
            "folder with --images"
        )
    if len(found) > 1:
        raise ValueError(f"which image? {' and '.join(found)} are there, and <filename> is '{file.file_name}'")
    return found[0]
