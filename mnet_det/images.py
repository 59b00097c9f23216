"""Read and write image files: RGB uint8 in memory, BGR only inside this file (OpenCV's order).

Grey, alpha and 16-bit files become 8-bit RGB. EXIF rotation is applied only where the caller asks.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mnet_det.errors import DataError
from mnet_det.files import whole_file
from mnet_det.structures import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def read_image(path: Path, *, size_hw: tuple[int, int] | None = None) -> Image:
    """Read an image file as RGB uint8 [H, W, 3].

    Args:
        path: a file that OpenCV can decode.
        size_hw: the size an annotation file gives. Pixels are used unrotated where that fits it, else rotated as
            EXIF says. Without it EXIF is followed, as viewers do.

    Raises:
        DataError: the file is missing, empty or not an image, or has another size than `size_hw`.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not len(data):
        raise DataError(f"{path}: the file is empty; expected an image")
    if size_hw is None:
        return _decode(path, data, cv2.IMREAD_COLOR)
    image = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image.shape[:2] != size_hw:
        rotated = _decode(path, data, cv2.IMREAD_COLOR)
        if rotated.shape[:2] != size_hw:
            came, expected = ("x".join(map(str, hw[::-1])) for hw in (image.shape[:2], size_hw))
            raise DataError(f"{path}: the image is {came} pixels, the annotations say {expected}")
        return rotated
    return image


def write_image(path: Path, image: Image) -> None:
    """Write RGB uint8 [H, W, 3] in the format of the path's suffix.

    Raises:
        DataError: the format is unknown.
        MnetDetError: the file cannot be written.
    """
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"{path}: cannot write this kind of image; known: {', '.join(sorted(SUFFIXES))}")
    with whole_file(path) as temporary:
        temporary.write_bytes(data.tobytes())


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no image in it; known suffixes: {', '.join(sorted(SUFFIXES))}")
    return paths


def _decode(path: Path, data: np.ndarray, flags: int) -> Image:
    try:
        bgr = cv2.imdecode(data, flags)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise DataError(f"{path}: not an image that can be decoded; is the file whole?")
    image: Image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return image
