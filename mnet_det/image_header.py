"""What the first bytes of an image file say: its kind, and of a JPEG or PNG its size, colours and EXIF rotation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

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


_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM....\0{4}|II\*\0|MM\0\*"
    # GIF, JPEG 2000 in both forms, AVIF, the Netpbm family, Radiance, OpenEXR, Sun raster
    rb"|GIF8|\0\0\0\x0cjP|\xff\x4f\xff\x51|....ftypavi|P[1-7Ff]\s|#\?R|\x76\x2f\x31\x01|\x59\xa6\x6a\x95",
    re.DOTALL,
)
"""JPEG, PNG, WebP, BMP, and TIFF in both orders; then what else OpenCV reads."""


def begins_like_an_image(content: bytes) -> bool:
    """Whether a file that begins so is worth decoding."""
    return _STARTS.match(content) is not None


def is_jpeg(content: bytes) -> bool:
    """Whether a file that begins so is a JPEG."""
    return content.startswith(b"\xff\xd8\xff")


def read_header(content: bytes) -> Stored | None:
    """What a JPEG or PNG says before its pixels; None of other files, and where it ends too early."""
    if is_jpeg(content):
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
