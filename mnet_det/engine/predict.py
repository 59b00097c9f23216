"""Detections in image files: pictures with boxes, and a COCO results file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mnet_det.data.coco import to_results
from mnet_det.draw import draw_detections
from mnet_det.errors import DataError
from mnet_det.images import SUFFIXES, list_images, read_image, write_image
from mnet_det.runtime.predictor import Predictor


def predict_files(
    predictor: Predictor,
    sources: Sequence[Path],
    *,
    out: Path,
    score: float | tuple[float, ...] | None = None,
    note: Callable[[Path, int], None] = lambda path, n: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Detect in files and folders of images, and write each picture with its boxes to `out`.

    Args:
        predictor: the model.
        sources: image files, and folders whose images are all taken.
        out: folder for the pictures; each keeps its file name.
        score: the least probability, or one for each class; unless given, the one to show a person the model's
            detections with.
        note: called with each picture's path and the number of detections in it.

    Returns:
        COCO results, with the file's name as `image_id`, and what was wrong with images that could not be read.

    Raises:
        DataError: a source is missing or not an image, or two have the same name.
    """
    results, faults = [], []
    least = predictor.viewing_score if score is None else score
    for path in _distinct(expand(sources)):
        try:
            image = read_image(path)
        except DataError as error:  # one damaged file costs itself, not all that follow
            faults.append(str(error))
            continue
        detections = predictor(image, score=least)
        picture = out / path.name
        if picture.resolve() == path.resolve():
            raise DataError(f"{path}: the picture would replace the image itself; choose another --out folder")
        write_image(picture, draw_detections(image, detections, predictor.class_names))
        results += to_results(detections, image_id=path.name, category_ids=predictor.metadata.category_ids)
        note(picture, len(detections))
    return results, faults


def expand(sources: Iterable[Path]) -> Iterator[Path]:
    """Image files, a folder standing for the images directly in it.

    Raises:
        DataError: a source is missing or not an image.
    """
    for source in sources:
        if source.is_dir():
            yield from list_images(source)
        elif not source.exists():
            raise DataError(f"{source}: no such file or folder")
        elif source.suffix.lower() not in SUFFIXES:
            raise DataError(f"{source}: not an image; known suffixes: {', '.join(sorted(SUFFIXES))} (videos: `demo`)")
        else:
            yield source


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths, all of different names: their pictures would overwrite each other."""
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.name.casefold(), path)  # some file systems do not tell a.jpg from A.jpg
        if other is not path:
            raise DataError(f"{other} and {path} have the same name; give them to two runs of `predict`")
    return list(by_name.values())
