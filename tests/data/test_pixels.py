"""How large a training image must be, and images that are decoded no larger than that."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mnet_det.data.augment import Augment, Preset
from mnet_det.data.coco import CocoData, read_coco
from mnet_det.data.pixels import MARGINS, DecodedPixels, needed_hw, wanted_hw
from mnet_det.errors import ImageError
from mnet_det.images import read_image, write_image
from mnet_det.preprocess import ResizeMode, plan_resize, resize_pixels


def one_image(folder: Path, name: str, hw: tuple[int, int]) -> CocoData:
    path = folder / "instances.json"
    image = {"id": 1, "file_name": name, "height": hw[0], "width": hw[1]}
    path.write_text(json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    return read_coco(path, folder)


@pytest.mark.parametrize(
    ("source_hw", "preset", "mode", "expected"),
    [
        ((480, 640), "none", "stretch", (300, 300)),
        ((480, 640), "flip", "stretch", (300, 300)),
        ((480, 640), "flip", "letterbox", (225, 300)),  # 480 × 300/640
        ((100, 80), "flip", "stretch", (300, 300)),  # the last resize would enlarge it too
        ((480, 640), "ssd", "stretch", (400, 400)),  # 300 × 4/3
        ((480, 640), "ssdlite", "letterbox", (300, 400)),  # (225, 300) × 4/3
        ((350, 640), "ssd", "stretch", (350, 400)),  # no more than there is
        ((100, 80), "ssd", "stretch", (100, 80)),
        ((100, 80), "ssd", "letterbox", (100, 80)),
        ((1, 5000), "flip", "letterbox", (1, 300)),
    ],
)
def test_the_needed_size(
    source_hw: tuple[int, int], preset: Preset, mode: ResizeMode, expected: tuple[int, int]
) -> None:
    assert needed_hw(source_hw, preset=preset, network_hw=(300, 300), mode=mode) == expected


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_without_crops_the_last_resize_has_nothing_left_to_do(mode: ResizeMode) -> None:
    shuffle = random.Random(0)
    for _ in range(500):
        source_hw = (shuffle.randint(1, 3000), shuffle.randint(1, 3000))
        network_hw = (shuffle.randint(32, 800), shuffle.randint(32, 800))
        made = needed_hw(source_hw, preset="flip", network_hw=network_hw, mode=mode)
        again = plan_resize(made, network_hw, mode)
        assert again.valid_hw == again.source_hw == made


def test_resizing_to_the_size_an_image_has_changes_no_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (225, 300, 3), np.uint8)
    resized = resize_pixels(image, plan_resize((225, 300), (300, 300), "letterbox"))
    assert np.array_equal(resized[:225], image)


@pytest.mark.shared
@pytest.mark.parametrize("preset", ["ssd", "ssdlite"])
def test_the_median_crop_is_hardly_enlarged(preset: Preset, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the needed size go through the preset; what is left of a side is what the last resize gets."""
    sides: list[int] = []

    def watch(source_hw: tuple[int, int], network_hw: tuple[int, int], mode: ResizeMode) -> object:
        sides.extend(side for side in source_hw if side < 100 * MARGINS[preset])
        return plan_resize(source_hw, network_hw, mode)

    monkeypatch.setattr("mnet_det.data.augment.plan_resize", watch)
    folder = shared / "data" / "coco_tiny"
    data = read_coco(folder / "annotations" / "instances_train2017.json", folder / "train2017")
    augment = Augment(preset, network_hw=(100, 100), mode="stretch")
    for index, (height, width) in enumerate(data.image_hws.tolist()):
        small_hw = needed_hw((height, width), preset=preset, network_hw=(100, 100), mode="stretch")
        assert small_hw == (133, 133)
        truth = data.truth(index)
        scaled = replace(truth, boxes_xyxy=truth.boxes_xyxy * np.float32([133 / width, 133 / height] * 2))
        for seed in range(3):
            augment(np.zeros((133, 133, 3), np.uint8), scaled, seed=seed * len(data) + index)
    assert len(sides) > 100
    assert np.median(sides) >= 95


def test_the_wanted_size_is_the_network_s_with_the_margin() -> None:
    assert wanted_hw((300, 200), preset="ssd") == (400, 267)  # 4/3 of each
    assert wanted_hw((300, 200), preset="flip") == (300, 200)


def test_every_preset_has_a_margin() -> None:
    assert all(Augment(preset, network_hw=(32, 32), mode="stretch") for preset in MARGINS)
    with pytest.raises(KeyError):
        Augment("all", network_hw=(32, 32), mode="stretch")  # type: ignore[arg-type]


def test_a_large_jpeg_is_decoded_at_the_reduced_size_that_is_enough(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (15, 20, 3), np.uint8), (1001, 750))
    write_image(tmp_path / "large.jpg", image)
    data = one_image(tmp_path, "large.jpg", (750, 1001))
    for network, expected in ((300, (375, 501)), (187, (188, 251)), (376, (750, 1001))):
        pixels = DecodedPixels(data, preset="flip", network_hw=(network, network), mode="stretch")
        assert pixels(0).shape == (*expected, 3)
    close = cv2.resize(image, (501, 375), interpolation=cv2.INTER_AREA).astype(int)
    reduced = DecodedPixels(data, preset="flip", network_hw=(300, 300), mode="stretch")(0)
    assert np.abs(reduced - close).mean() < 3


def test_where_all_pixels_are_needed_they_are_those_of_the_file(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    write_image(tmp_path / "small.jpg", image)
    data = one_image(tmp_path, "small.jpg", (60, 80))
    pixels = DecodedPixels(data, preset="ssd", network_hw=(64, 64), mode="stretch")
    assert np.array_equal(pixels(0), read_image(tmp_path / "small.jpg"))


def test_an_image_of_another_size_than_annotated_is_refused_in_the_annotated_size(tmp_path: Path) -> None:
    write_image(tmp_path / "wide.jpg", np.zeros((700, 1000, 3), np.uint8))
    pixels = DecodedPixels(
        one_image(tmp_path, "wide.jpg", (750, 1000)), preset="flip", network_hw=(300, 300), mode="stretch"
    )
    with pytest.raises(ImageError, match=r"1000x700 pixels, the annotations say 1000x750") as caught:
        pixels(0)
    assert caught.value.kind == "size-differs"
