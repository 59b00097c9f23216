"""What converting has in common, whatever the format: the COCO content, and faults that are told before a file is made.

Nothing is repaired: boxes are written as the source has them, and `mnet-det check` judges the result.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnet_det.errors import DataError
from mnet_det.images import look_at_header, read_image

FAULTS_NAMED = 5
"""How many faults a message names before it only counts them."""
DECIMALS = 3
"""Of a pixel; what a format of its own decimals loses in one conversion is more."""
MOST = 1e9
"""No size or place in an image is larger; it keeps infinities and nonsense out."""


@dataclass(frozen=True)
class Converted:
    """A data set in COCO form.

    Attributes:
        content: of the COCO JSON.
        images: the folder to which its file names are relative.
        notes: what a user should know of it, a line each.
    """

    content: dict[str, Any]
    images: Path
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        annotations, classes = self.content["annotations"], self.content["categories"]
        crowds = sum(annotation["iscrowd"] for annotation in annotations)
        return (
            f"{counted(len(self.content['images']), 'image')}, {counted(len(annotations), 'box', 'boxes')} "
            f"({crowds} of them crowd), "
            f"classes: {', '.join(category['name'] for category in classes)}"
        )


def counted(count: int, one: str, several: str = "") -> str:
    """A number with its noun, whose plural is `several` where an s does not make it."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def first_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - FAULTS_NAMED
    return ", ".join([*names[:FAULTS_NAMED], *([f"and {more:,} more"] if more > 0 else [])])


def command_line(*words: object) -> str:
    """A command as this system's usual terminal takes it, also with blanks in the names of its files."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def image_entry(image_id: int, file_name: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    """One of COCO's images."""
    return {"id": image_id, "file_name": file_name, "width": size_hw[1], "height": size_hw[0]}


def annotation_entry(
    annotation_id: int, *, image_id: int, label: int, box_xywh: Sequence[float], crowd: bool = False
) -> dict[str, Any]:
    """One of COCO's annotations, of a label 0…K-1."""
    left, top, width, height = (round(side, DECIMALS) + 0.0 for side in box_xywh)  # + 0.0: there is no -0
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [left, top, width, height],
        "area": round(width * height, DECIMALS),
        "iscrowd": int(crowd),
    }


def category_entries(names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's categories, with ids from 1 in the order of the labels."""
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def require_distinct(names: Sequence[str], *, source: object) -> None:
    """Raise DataError if a class is named twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{source}: {', '.join(twice)}: named twice; each class needs a name of its own")


def refuse(source: Path, faults: Sequence[str]) -> None:
    """Raise DataError with the first faults and their number, if there are any."""
    if faults:
        more = len(faults) - FAULTS_NAMED
        lines = [*faults[:FAULTS_NAMED], *([f"and {more} more"] if more > 0 else [])]
        raise DataError(f"{source}: {counted(len(faults), 'fault')}, so nothing was written:\n  " + "\n  ".join(lines))


def read_number(text: str | None) -> float:
    """A finite number.

    Raises:
        ValueError: the text is none.
    """
    try:
        value = float(text or "")
    except ValueError:
        value = MOST
    if not abs(value) < MOST or "_" in str(text):  # NaN is not below either; Python alone reads 1_0 as 10
        raise ValueError("is missing" if not (text or "").strip() else f"is '{text}', expected a number")
    return value


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a mark at its beginning.

    Raises:
        DataError: there is no such file, or it is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not text in UTF-8; save it as UTF-8") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, whatever the system it was written on; blank ones are kept.

    Raises:
        DataError: as `read_text`.
    """
    return [line.strip() for line in read_text(path).splitlines()]


def measure_image(path: Path) -> tuple[tuple[int, int], bool]:
    """Height and width as viewers show an image, and whether it is shown turned although its size does not tell.

    Raises:
        ImageError: it is no image.
    """
    header = look_at_header(path)
    if header is None or 0 in header.size_hw:  # some JPEGs give their height behind the pixels
        height, width, _ = read_image(path).shape
        return (height, width), False
    return header.viewed_hw, header.orientation > 1 and header.viewed_hw == header.size_hw
