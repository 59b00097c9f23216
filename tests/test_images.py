"""Every kind of image file becomes RGB uint8, or an error that names the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from mnet_det.errors import DataError, MnetDetError
from mnet_det.images import SUFFIXES, list_images, read_image, write_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encode(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels in OpenCV's own order (BGR, BGRA or grey) in the format of the path's suffix."""
    done, data = cv2.imencode(path.suffix, pixels)
    assert done
    path.write_bytes(data.tobytes())
    return path


def rotated_jpeg(path: Path) -> Path:
    """20 wide, 10 high, left half red, right half blue, and an EXIF tag saying: turn it 90° clockwise to view it."""
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10], pixels[:, 10:] = RED[::-1], BLUE[::-1]
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
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


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
