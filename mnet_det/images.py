"""Read and write image files: RGB uint8 in memory, BGR only inside this file (OpenCV's order).

Grey, alpha, CMYK and 16-bit files become 8-bit RGB. EXIF rotation is applied only where the caller asks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from mnet_det.errors import DataError, ImageError
from mnet_det.files import whole_file
from mnet_det.structures import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
"""By what the sides of a JPEG can be divided while it is decoded, which saves time; largest first."""

MOST_PIXELS = 1 << 30
"""OpenCV decodes no image of more, unless an environment variable allows it."""

HEADER_BYTES = 1 << 17
"""What is read of a file whose pixels are not: its EXIF block takes 64 KiB at most, a usual colour profile a few."""

Colour = Literal["grey", "RGB", "RGBA", "CMYK"]


@dataclass(frozen=True)
class Stored:
    """How an image file keeps its pixels, before they become RGB uint8.

    Attributes:
        size_hw: height and width as stored, before any rotation.
        colour: what a pixel is made of.
        bits: of each channel; fewer than 8 count as 8.
        orientation: EXIF's, 1 (as stored) to 8; from 5 on, a viewer exchanges height and width.
    """

    size_hw: tuple[int, int]
    colour: Colour
    bits: int = 8
    orientation: int = 1

    @property
    def viewed_hw(self) -> tuple[int, int]:
        """The size once it is rotated as EXIF says."""
        height, width = self.size_hw
        return (width, height) if self.orientation >= 5 else (height, width)


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
    """What the first bytes of a file say; None where its format is not read here (JPEG and PNG are).

    Raises:
        ImageError: the file is missing, empty, or does not begin like an image.
    """
    data = _read_bytes(path, HEADER_BYTES)
    if not _begins_like_an_image(data):
        raise _not_decodable(path, data)
    return _read_header(data)


def look_at_pixels(path: Path) -> Stored:
    """Decode a file once, whole, and say how it keeps its pixels.

    Raises:
        ImageError: as `read_image`.
    """
    data = _read_bytes(path)
    header = _read_header(data)
    if header is not None and _is_jpeg(data) and math.prod(header.size_hw) <= MOST_PIXELS:
        _decode(path, data, REDUCED[8])  # meets every byte, and so every fault, in half the time
        return header
    pixels = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if pixels.itemsize > 1:
        _decode(path, data, cv2.IMREAD_COLOR)  # not all of these, such as floats in a TIFF, become 8-bit RGB
    colours: dict[tuple[int, ...], Colour] = {(): "grey", (3,): "RGB", (4,): "RGBA"}
    return Stored(
        size_hw=(pixels.shape[0], pixels.shape[1]),
        colour=colours[pixels.shape[2:]],
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
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror})", "unreadable-file") from None
    except ValueError:
        raise ImageError(path, "not the name of a file", "unreadable-file") from None  # a NUL is in it
    if not len(data):
        raise ImageError(path, "the file is empty; expected an image", "empty-file")
    return data


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
    kind = "truncated-image" if _begins_like_an_image(data) else "not-an-image"
    return ImageError(path, "not an image that can be decoded; is the file whole?", kind)


_STARTS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM....\0{4}|II\*\0|MM\0\*", re.DOTALL)
"""JPEG, PNG, WebP, BMP, and TIFF in both orders."""


def _begins_like_an_image(data: NDArray[np.uint8]) -> bool:
    return _STARTS.match(data[:16].tobytes()) is not None


def _is_jpeg(data: NDArray[np.uint8]) -> bool:
    return data[:3].tobytes() == b"\xff\xd8\xff"


def _decode_reduced(
    path: Path, data: NDArray[np.uint8], size_hw: tuple[int, int], at_least_hw: tuple[int, int]
) -> Image | None:
    """A JPEG at a part of its size; None where nothing can be saved or the file has another size than annotated."""
    header = _read_header(data) if _is_jpeg(data) else None
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


def _read_header(data: NDArray[np.uint8]) -> Stored | None:
    """What a JPEG or PNG says before its pixels."""
    content = data[:HEADER_BYTES].tobytes()
    if _is_jpeg(data):
        return _read_jpeg_header(content)
    return _read_png_header(content) if content.startswith(b"\x89PNG\r\n\x1a\n") else None


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG's markers of a frame, one for each way to code it; the three between are tables."""


def _read_jpeg_header(content: bytes) -> Stored | None:
    orientation = 1
    for marker, body in _jpeg_segments(content):
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(body[6:])
        if marker in _FRAMES and len(body) >= 6:
            colours: dict[int, Colour] = {1: "grey", 4: "CMYK"}
            size_hw = (int.from_bytes(body[1:3]), int.from_bytes(body[3:5]))
            return Stored(size_hw, colours.get(body[5], "RGB"), body[0], orientation)
    return None


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment before the scan; a thumbnail lies inside a body and is not entered."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        if content[at + 1] == 0xFF:  # a marker may be preceded by any number of these
            at += 1
            continue
        length = int.from_bytes(content[at + 2 : at + 4])
        yield content[at + 1], content[at + 4 : at + 2 + length]
        at += 2 + length


def _read_png_header(content: bytes) -> Stored | None:
    stored = None
    for name, body in _png_chunks(content):
        if name == b"IHDR" and len(body) == 13:
            colours: dict[int, Colour] = {0: "grey", 4: "RGBA", 6: "RGBA"}
            width, height = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
            stored = Stored((height, width), colours.get(body[9], "RGB"), max(8, body[8]))
        elif name == b"tRNS" and stored:
            stored = replace(stored, colour="RGBA")
        elif name == b"eXIf" and stored:
            stored = replace(stored, orientation=_exif_orientation(body))
    return stored


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length  # with the checksum behind the body


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory, 1 where there is none."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[start : start + 2], order)
    for at in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        if int.from_bytes(tiff[at : at + 2], order) == 0x0112:
            value = int.from_bytes(tiff[at + 8 : at + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1
