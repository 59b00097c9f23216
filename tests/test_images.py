"""Every kind of image file becomes RGB uint8, or an error that names the file."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from mnet_det.errors import DataError, ImageError, MnetDetError
from mnet_det.images import (
    SUFFIXES,
    Stored,
    list_images,
    look_at_header,
    look_at_pixels,
    read_image,
    write_image,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encode(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels in OpenCV's own order (BGR, BGRA or grey) in the format of the path's suffix."""
    done, data = cv2.imencode(path.suffix, pixels)
    assert done
    path.write_bytes(data.tobytes())
    return path


def rotated_jpeg(path: Path, *, scale: int = 1) -> Path:
    """20 wide, 10 high, left half red, right half blue, and an EXIF tag saying: turn it 90° clockwise to view it."""
    pixels = np.zeros((10 * scale, 20 * scale, 3), np.uint8)
    pixels[:, : 10 * scale], pixels[:, 10 * scale :] = RED[::-1], BLUE[::-1]
    jpeg = encode(path, pixels).read_bytes()
    # TIFF header, then a directory of one entry: tag 0x0112 (orientation), type 3 (short), count 1, value 6.
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_written_pixels_read_back_the_same(tmp_path: Path, suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    write_image(tmp_path / f"a{suffix}", image)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), image)


def test_files_hold_blue_first_and_memory_red_first(tmp_path: Path) -> None:
    write_image(tmp_path / "red.png", np.full((2, 2, 3), RED, np.uint8))
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]  # OpenCV's order
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("pixels", "expected_rgb"),
    [
        (np.full((4, 6), 7, np.uint8), (7, 7, 7)),
        (np.full((4, 6, 4), (10, 20, 30, 0), np.uint8), (30, 20, 10)),
        (np.full((4, 6, 3), (0x1010, 0x2020, 0x3030), np.uint16), (0x30, 0x20, 0x10)),
        (np.full((4, 6), 0xFFFF, np.uint16), (255, 255, 255)),
    ],
    ids=["grey", "alpha", "16 bit", "16-bit grey"],
)
def test_every_png_becomes_8_bit_rgb(tmp_path: Path, pixels: np.ndarray, expected_rgb: tuple[int, ...]) -> None:
    image = read_image(encode(tmp_path / "a.png", pixels))
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert (image == expected_rgb).all()


def test_without_a_size_exif_is_followed(tmp_path: Path) -> None:
    image = read_image(rotated_jpeg(tmp_path / "a.jpg"))
    assert image.shape == (20, 10, 3)
    # Clockwise, the left half comes to the top. JPEG moves colours a little.
    np.testing.assert_allclose(image[2, 5], RED, atol=5)
    np.testing.assert_allclose(image[17, 5], BLUE, atol=5)


def test_the_annotated_size_decides_whether_pixels_are_rotated(tmp_path: Path) -> None:
    path = rotated_jpeg(tmp_path / "a.jpg")
    unrotated = read_image(path, size_hw=(10, 20))
    assert unrotated.shape == (10, 20, 3)
    np.testing.assert_allclose(unrotated[5, 2], RED, atol=5)
    np.testing.assert_array_equal(read_image(path, size_hw=(20, 10)), read_image(path))


def test_another_size_than_annotated_is_an_error_with_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg: the image is 20x10 pixels, the annotations say 30x40"):
        read_image(rotated_jpeg(tmp_path / "a.jpg"), size_hw=(40, 30))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, kept: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = encode(tmp_path / f"cut{suffix}", pixels)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=rf"cut\{suffix}: not an image .*is the file whole\?"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.jpg", b"", r"empty\.jpg: the file is empty"),
        ("text.jpg", b"<html>404</html>", r"text\.jpg: not an image"),
        ("absent.jpg", None, r"absent\.jpg: no such image"),
    ],
    ids=["empty", "text", "absent"],
)
def test_what_is_not_an_image_is_an_error_that_names_it(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    for size_hw in (None, (4, 6)):
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / name, size_hw=size_hw)


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read") as caught:
        read_image(tmp_path)
    assert caught.value.kind == "missing-file"  # as `require_files` has it


def test_a_name_outside_ascii_is_read_and_written(tmp_path: Path) -> None:
    """OpenCV's own imread takes no such name on Windows."""
    path = tmp_path / "ordner ä" / "猫.png"
    write_image(path, np.full((2, 3, 3), 9, np.uint8))
    assert read_image(path).shape == (2, 3, 3)


def test_writing_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for value in (1, 2):
        write_image(tmp_path / "a.png", np.full((2, 2, 3), value, np.uint8))
    assert read_image(tmp_path / "a.png")[0, 0, 0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("absent.jpg", None, "missing-file"),
        ("empty.jpg", b"", "empty-file"),
        ("page.jpg", b"<html>404</html>", "not-an-image"),
        ("short.jpg", b"\xff\xd8\xff\xe0\x00", "truncated-image"),
        ("short.png", b"\x89PNG\r\n\x1a\n", "truncated-image"),
        ("text.bmp", b"BM is how this text begins, but it is no picture", "not-an-image"),
        ("a\0b.jpg", None, "missing-file"),
        ("\ud800.jpg", None, "missing-file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "-" in value else "",
)
def test_an_error_says_which_kind_of_fault_it_is(tmp_path: Path, name: str, data: bytes | None, kind: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    for read in (read_image, look_at_pixels):
        with pytest.raises(ImageError) as caught:
            read(tmp_path / name)
        assert caught.value.kind == kind
        assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"


@pytest.mark.parametrize("suffix", [".ppm", ".jp2", ".pgm", ".pbm", ".hdr"])
def test_what_else_opencv_reads_begins_like_an_image(tmp_path: Path, suffix: str) -> None:
    """`check --no-pixels` called them no images, and a set of them one that cannot be trained on."""
    pixels = np.full((64, 64, 3), 90, np.float32 if suffix == ".hdr" else np.uint8)
    path = encode(tmp_path / f"a{suffix}", pixels[..., 0] if suffix in (".pgm", ".pbm") else pixels)
    assert look_at_header(path) is None
    assert look_at_pixels(path).size_hw == (64, 64)


def test_a_file_in_the_place_of_a_folder_holds_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("not a folder")
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "a" / "b.jpg")
    assert caught.value.kind == "missing-file"


def smooth_pixels() -> np.ndarray:
    return cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8), (96, 64))


def with_thumbnail(jpeg: bytes) -> bytes:
    """Put a small whole JPEG, which ends as any does, into an EXIF block of this one."""
    thumbnail = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    # A directory of two entries, where the thumbnail is (0x0201) and how long (0x0202), both of type 4 (long).
    tiff = b"II*\0" + struct.pack("<IH", 8, 2)
    tiff += struct.pack("<HHIIHHIII", 0x0201, 4, 1, 38, 0x0202, 4, 1, len(thumbnail), 0) + thumbnail
    exif = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize("lost", [0.05, 0.01, 0.001, 1, 2])
@pytest.mark.parametrize("form", ["baseline", "progressive", "thumbnail"])
def test_a_jpeg_that_lost_its_very_end_is_truncated(tmp_path: Path, form: str, lost: float) -> None:
    """Shares of the file, or whole bytes."""
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(form == "progressive"), cv2.IMWRITE_JPEG_QUALITY, 100]
    data = cv2.imencode(".jpg", smooth_pixels(), flags)[1].tobytes()
    if form == "thumbnail":
        data = with_thumbnail(data)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert look_at_pixels(path).size_hw == (64, 96)
    path.write_bytes(data[: -int(lost if lost >= 1 else max(1, lost * len(data)))])
    for read in (read_image, look_at_pixels, lambda path: read_image(path, size_hw=(64, 96), at_least_hw=(8, 8))):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert caught.value.kind == "truncated-image"


def test_a_size_that_no_memory_holds_is_an_error(tmp_path: Path) -> None:
    """OpenCV raises where it otherwise returns nothing."""
    png = bytearray(encode(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8)).read_bytes())
    png[16:24] = struct.pack(">II", 100_000, 100_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    (tmp_path / "a.png").write_bytes(png)
    for read in (read_image, look_at_pixels):
        with pytest.raises(ImageError, match=r"a\.png: cannot be decoded \(") as caught:
            read(tmp_path / "a.png")
        assert caught.value.kind == "unreadable-file"


@pytest.mark.parametrize(
    ("at_least_hw", "expected_hw"),
    [((50, 75), (50, 75)), ((50, 76), (99, 150)), ((25, 38), (25, 38)), ((13, 1), (13, 19)), ((1, 20), (25, 38))],
    ids=str,
)
def test_a_jpeg_is_reduced_as_far_as_both_sides_allow(
    tmp_path: Path, at_least_hw: tuple[int, int], expected_hw: tuple[int, int]
) -> None:
    """Of 99x150: 99/2, 99/4 and 99/8 round up to 50, 25 and 13; 150 gives 75, 38 and 19."""
    path = encode(tmp_path / "a.jpg", cv2.resize(smooth_pixels(), (150, 99)))
    image = read_image(path, size_hw=(99, 150), at_least_hw=at_least_hw)
    assert image.shape == (*expected_hw, 3)
    expected = cv2.resize(read_image(path), expected_hw[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(image.astype(int) - expected).mean() < 6  # of 0…255; the edges are rounded up


def test_only_jpegs_are_reduced(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.png", smooth_pixels())
    assert read_image(path, size_hw=(64, 96), at_least_hw=(8, 8)).shape == (64, 96, 3)


def test_a_reduced_image_is_turned_as_a_whole_one_is(tmp_path: Path) -> None:
    path = rotated_jpeg(tmp_path / "a.jpg", scale=8)
    for size_hw, reduced_hw in (((80, 160), (10, 20)), ((160, 80), (20, 10))):
        reduced = read_image(path, size_hw=size_hw, at_least_hw=(10, 10))
        assert reduced.shape == (*reduced_hw, 3)
        np.testing.assert_allclose(reduced, read_image(path, size_hw=size_hw)[4::8, 4::8], atol=5)


def test_a_size_that_differs_by_less_than_reducing_rounds_off_is_still_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.jpg", cv2.resize(smooth_pixels(), (100, 99)))
    for size_hw in ((99, 99), (100, 99), (100, 100)):
        with pytest.raises(ImageError, match="the image is 100x99 pixels") as caught:
            read_image(path, size_hw=size_hw, at_least_hw=(10, 10))
        assert caught.value.kind == "size-differs"


def test_a_reduced_size_needs_the_whole_one(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.jpg", smooth_pixels())
    with pytest.raises(ValueError, match="at_least_hw needs size_hw"):
        read_image(path, at_least_hw=(8, 8))


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "bits"),
    [
        ("RGB", ".jpg", "RGB", 8),
        ("L", ".jpg", "grey", 8),
        ("CMYK", ".jpg", "CMYK", 8),
        ("RGB", ".png", "RGB", 8),
        ("L", ".png", "grey", 8),
        ("LA", ".png", "RGBA", 8),
        ("RGBA", ".png", "RGBA", 8),
        ("P", ".png", "RGB", 8),
        ("I;16", ".png", "grey", 16),
    ],
)
def test_the_form_of_a_file_is_seen_with_and_without_decoding(
    tmp_path: Path, mode: str, suffix: str, colour: str, bits: int
) -> None:
    path = tmp_path / f"a{suffix}"
    PilImage.new(mode, (20, 10)).save(path)
    expected = Stored((10, 20), colour, bits)  # type: ignore[arg-type]
    assert look_at_pixels(path) == look_at_header(path) == expected


def test_a_palette_may_hold_transparency(tmp_path: Path) -> None:
    PilImage.new("P", (20, 10)).save(tmp_path / "a.png", transparency=0)
    assert look_at_pixels(tmp_path / "a.png") == look_at_header(tmp_path / "a.png") == Stored((10, 20), "RGBA")


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp"])
def test_other_formats_are_seen_by_decoding_alone(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"a{suffix}", np.full((10, 20, 4), 9, np.uint8) if suffix == ".tif" else smooth_pixels())
    assert look_at_header(path) is None
    assert look_at_pixels(path) == (Stored((10, 20), "RGBA") if suffix == ".tif" else Stored((64, 96), "RGB"))


def test_pixels_that_cannot_become_8_bits_are_an_error_of_the_look_too(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.tif", np.zeros((4, 6, 3), np.float32))
    try:
        read_image(path)
    except ImageError:
        with pytest.raises(ImageError):
            look_at_pixels(path)
    else:
        assert look_at_pixels(path).bits == 32


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_orientation_is_what_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Pillow writes the tag, among others and in its own order."""
    path = tmp_path / f"a{suffix}"
    exif = PilImage.Exif()
    exif[0x010F], exif[0x0112], exif[0x0131] = "maker", orientation, "software"
    PilImage.new("RGB", (20, 10)).save(path, exif=exif)
    viewed_hw = (20, 10) if orientation >= 5 else (10, 20)
    for look in (look_at_header, look_at_pixels):
        stored = look(path)
        assert stored is not None
        assert (stored.orientation, stored.size_hw, stored.viewed_hw) == (orientation, (10, 20), viewed_hw)
    assert read_image(path).shape[:2] == viewed_hw  # OpenCV says the same


def test_an_exif_block_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    jpeg = encode(tmp_path / "a.jpg", smooth_pixels()).read_bytes()
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 3, 0, 0)
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    stored = look_at_header(tmp_path / "a.jpg")
    assert stored is not None
    assert stored.orientation == 3


def test_a_damaged_header_is_an_error_or_unknown_and_never_a_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    exif = PilImage.Exif()
    exif[0x0112] = 6
    PilImage.new("RGB", (20, 10)).save(stream, "PNG", exif=exif)
    whole = [rotated_jpeg(tmp_path / "a.jpg").read_bytes(), stream.getvalue()]
    for number in range(400):
        data = bytearray(whole[number % 2])
        for at in rng.integers(3, len(data), rng.integers(1, 8)):
            data[at] = rng.integers(256)
        path = tmp_path / "damaged"
        path.write_bytes(data[: rng.integers(8, len(data) + 1)])
        for look in (look_at_header, look_at_pixels):
            try:
                stored = look(path)
            except ImageError:
                continue
            assert stored is None or 1 <= stored.orientation <= 8


@pytest.mark.parametrize("name", ["a.xyz", "a"])
def test_an_unknown_format_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot write this kind of image; known: \.bmp, \.jpeg"):
        write_image(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_writing_where_a_file_stands_for_the_folder_is_an_error(tmp_path: Path) -> None:
    """Removing the temporary file failed in its turn and its NotADirectoryError was what the user saw."""
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(MnetDetError, match=r"a\.png: cannot be written"):
        write_image(tmp_path / "out" / "a.png", np.zeros((2, 2, 3), np.uint8))


def test_images_of_a_folder_come_by_name_and_without_other_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]


def test_a_folder_without_images_or_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image in it; known suffixes"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="no such folder of images"):
        list_images(tmp_path / "absent")


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_listed_suffix_can_be_written_and_read(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", np.full((8, 8, 3), 128, np.uint8))
    np.testing.assert_allclose(read_image(tmp_path / f"a{suffix}"), 128, atol=2)


@pytest.mark.shared
def test_every_real_coco_picture_reads_at_its_annotated_size(shared: Path) -> None:
    folder = shared / "data" / "coco_tiny"
    entries = json.loads((folder / "annotations" / "instances_val2017.json").read_text())["images"]
    for entry in entries[:20]:
        size_hw = (entry["height"], entry["width"])
        assert read_image(folder / "val2017" / entry["file_name"], size_hw=size_hw).shape == (*size_hw, 3)
