"""Write the BCCD blood-cell set (Pascal VOC XML) as a folder laid out like COCO.

    .venv/bin/python tools/bccd_to_coco.py BCCD_Dataset/BCCD bccd
    mnet-det train configs/finetune_ssd300_mobilenet_v1.yaml data.root=bccd

The set's own train, val and test lists are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mnet_det.errors import DataError, MnetDetError
from mnet_det.files import write_json

CLASSES = ("RBC", "WBC", "Platelets")
SPLITS = ("train", "val", "test")


def main(argv: list[str] | None = None) -> int:
    """Convert all three lists and say what they hold."""
    parser = argparse.ArgumentParser(description="Write the BCCD blood-cell set as a folder laid out like COCO.")
    parser.add_argument("source", type=Path, help="folder with Annotations/, ImageSets/Main/ and JPEGImages/")
    parser.add_argument("out", type=Path, help="the new folder")
    arguments = parser.parse_args(argv)
    try:
        for split in SPLITS:
            content = convert(arguments.source, split)
            path = arguments.out / "annotations" / f"instances_{split}2017.json"
            copy_images(content, arguments.source / "JPEGImages", arguments.out / f"{split}2017")
            write_json(path, content)
            print(f"{path}: {len(content['images'])} images, {len(content['annotations'])} boxes")
    except MnetDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def convert(source: Path, split: str) -> dict[str, Any]:
    """One of the set's lists as the content of a COCO file.

    Raises:
        DataError: a file is missing or is not what the set holds.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, name in enumerate(_read(source / "ImageSets" / "Main" / f"{split}.txt").split(), start=1):
        path = source / "Annotations" / f"{name}.xml"
        try:
            root = ElementTree.fromstring(_read(path))
            height, width = (int(root.findtext(f"size/{side}", "")) for side in ("height", "width"))
            boxes = [_box(element) for element in root.iter("object")]
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError(f"{path}: not an annotation of this set ({error})") from None
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width})
        annotations += [
            {"id": len(annotations) + number, "image_id": image_id, "iscrowd": 0, "area": box[2] * box[3]}
            | {"category_id": category_id, "bbox": box}
            for number, (category_id, box) in enumerate(boxes, start=1)
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def copy_images(content: Mapping[str, Any], source: Path, out: Path) -> None:
    """Copy the images that a COCO file names.

    Raises:
        DataError: one is missing, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            shutil.copy(source / image["file_name"], out)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be copied to {out} ({error.strerror})") from None


def _box(element: ElementTree.Element) -> tuple[int, list[float]]:
    """Category id and xywh of one object. VOC counts pixels from 1 and includes the last one."""
    left, top, right, bottom = (float(element.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax"))
    return CLASSES.index(element.findtext("name", "")) + 1, [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is this the folder of the BCCD set?") from None


if __name__ == "__main__":
    sys.exit(main())
