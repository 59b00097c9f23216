"""Read and write image files: RGB uint8 in memory, BGR only inside this file (OpenCV's order).

Grey, alpha, CMYK and 16-bit files become 8-bit RGB. EXIF rotation is applied only where the caller asks.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mnet_det.errors import DataError, ImageError
from mnet_det.files import whole_file
from mnet_det.image_header import HEADER_BYTES, Colour, Stored, begins_like_an_image, is_jpeg, read_header
from mnet_det.structures import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
"""By what the sides of a JPEG can be divided while it is decoded, which saves time; largest first."""

MOST_PIXELS = 1 << 30
"""OpenCV decodes no image of more, unless an environment variable allows it."""


def read_image(
    path: Path, *, size_hw: tuple[int, int] | None = None, at_least_hw: tuple[int, int] | None = None
) -> Image:
    """Read an image file as RGB uint8 [H, W, 3].

    Args:
        path: a file that OpenCV can decode.
        size_hw: the size an annotation file gives. Pixels are used unrotated where that fits it, else rotated as
            EXIF says. Without it EXIF is followed, as viewers do.
        at_least_hw: for training, and only with `size_hw`: a JPEG may come at a half, quarter or eighth of that size
            (rounded up), as long as neither side is smaller than here.

    Raises:
        ImageError: the file is missing, empty or not an image, or has another size than `size_hw`.
    """
    data = _read_bytes(path)
    if size_hw is None:
        if at_least_hw is not None:
            raise ValueError("at_least_hw needs size_hw")
        return _decode_rgb(path, data, cv2.IMREAD_COLOR)
    reduced = None if at_least_hw is None else _decode_reduced(path, data, size_hw, at_least_hw)
    if reduced is not None:
        return reduced
    image = _decode_rgb(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image.shape[:2] != size_hw:
        rotated = _decode_rgb(path, data, cv2.IMREAD_COLOR)
        if rotated.shape[:2] != size_hw:
            raise size_error(path, image.shape[:2], size_hw)
        return rotated
    return image


def look_at_header(path: Path) -> Stored | None:
    """What the first bytes of a file say; None where its header is not read here (those of JPEG and PNG are).

    Raises:
        ImageError: the file is missing, empty, or does not begin like an image.
    """
    data = _read_bytes(path, HEADER_BYTES)
    if not begins_like_an_image(_beginning(data)):
        raise _not_decodable(path, data)
    return read_header(_beginning(data))


def look_at_pixels(path: Path) -> Stored:
    """Decode a file once, whole, and say how it keeps its pixels.

    Raises:
        ImageError: as `read_image`.
    """
    data = _read_bytes(path)
    header = read_header(_beginning(data))
    if header is not None and is_jpeg(_beginning(data)) and math.prod(header.size_hw) <= MOST_PIXELS:
        _decode(path, data, REDUCED[8])  # meets every byte, and so every fault, in half the time
        return header
    pixels = _decode(path, data, cv2.IMREAD_UNCHANGED)
    colours: dict[tuple[int, ...], Colour] = {(): "grey", (3,): "RGB", (4,): "RGBA"}
    if pixels.itemsize > 1 or pixels.shape[2:] not in colours:
        _decode(path, data, cv2.IMREAD_COLOR)  # not all of these, such as floats in a TIFF, become 8-bit RGB
    return Stored(
        size_hw=(pixels.shape[0], pixels.shape[1]),
        colour=colours.get(pixels.shape[2:], "RGB"),
        bits=8 * pixels.itemsize,
        orientation=1 if header is None else header.orientation,
    )


def size_error(path: Path, came_hw: tuple[int, ...], expected_hw: tuple[int, int]) -> ImageError:
    """The fault of an image that has another size than its annotations say."""
    came, expected = ("x".join(map(str, hw[::-1])) for hw in (came_hw, expected_hw))
    swapped = " (width and height swapped)" if came_hw[::-1] == expected_hw else ""
    reason = f"the image is {came} pixels, the annotations say {expected}{swapped}"
    return ImageError(path, reason, "size-differs")


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


def _read_bytes(path: Path, most: int = -1) -> NDArray[np.uint8]:
    """A file, or at most so many bytes of it."""
    try:
        data = np.fromfile(path, np.uint8, count=most)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(path, "no such image", "missing-file") from None
    except OSError as error:  # a folder and a name that is too long are missing files too
        kind = "unreadable-file" if os.path.isfile(path) else "missing-file"
        raise ImageError(path, f"cannot be read ({error.strerror})", kind) from None
    except ValueError:
        raise ImageError(path, "not the name of a file", "missing-file") from None  # a NUL is in it
    if not len(data):
        raise ImageError(path, "the file is empty; expected an image", "empty-file")
    return data


def _beginning(data: NDArray[np.uint8]) -> bytes:
    return data[:HEADER_BYTES].tobytes()


def _decode_rgb(path: Path, data: NDArray[np.uint8], flags: int) -> Image:
    image: Image = cv2.cvtColor(_decode(path, data, flags), cv2.COLOR_BGR2RGB)
    return image


def _decode(path: Path, data: NDArray[np.uint8], flags: int) -> NDArray[np.uint8]:
    """Pixels in OpenCV's order. It refuses files that are cut off, be it by one byte."""
    try:
        pixels: NDArray[np.uint8] | None = cv2.imdecode(data, flags)
    except cv2.error as error:  # more pixels than OpenCV takes, or than memory does
        raise ImageError(path, f"cannot be decoded ({error.err})", "unreadable-file") from None
    if pixels is None:
        raise _not_decodable(path, data)
    return pixels


def _not_decodable(path: Path, data: NDArray[np.uint8]) -> ImageError:
    kind = "truncated-image" if begins_like_an_image(_beginning(data)) else "not-an-image"
    return ImageError(path, "not an image that can be decoded; is the file whole?", kind)


def _decode_reduced(
    path: Path, data: NDArray[np.uint8], size_hw: tuple[int, int], at_least_hw: tuple[int, int]
) -> Image | None:
    """A JPEG at a part of its size; None where nothing can be saved or the file has another size than annotated."""
    header = read_header(_beginning(data)) if is_jpeg(_beginning(data)) else None
    fitting = (
        flags
        for factor, flags in REDUCED.items()
        if all(-(-side // factor) >= least for side, least in zip(size_hw, at_least_hw, strict=True))
    )
    flags = next(fitting, None)
    if header is None or flags is None:
        return None
    # Asked of the header, because sides that differ may be the same once they are reduced.
    if header.size_hw == size_hw:
        return _decode_rgb(path, data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if header.viewed_hw == size_hw:
        return _decode_rgb(path, data, flags)
    return None
