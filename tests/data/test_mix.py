"""Mosaic and mixup: boxes that fit what is left of their objects, at the scales that are promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnet_det.data.augment import MIN_VISIBLE, Sample
from mnet_det.data.coco import Truth
from mnet_det.data.mix import Mosaic, make_mosaic, mix_up
from mnet_det.preprocess import PADDING_VALUE, ResizeMode, plan_resize
from mnet_det.structures import Image

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
Box = tuple[float, float, float, float]


class LowestDraws:
    """A generator that always draws the least: the images meet at a quarter, and are as small as they may be."""

    def uniform(self, low: float, high: float) -> float:
        return low


def picture(hw: tuple[int, int], box: Box, *, label: int = 0, crowd: bool = False) -> tuple[Image, Truth]:
    """A grey image in which the box is painted in the colour of its label."""
    image = np.full((*hw, 3), 60, np.uint8)
    left, top, right, bottom = map(round, box)
    image[top:bottom, left:right] = COLOURS[label]
    return image, Truth(np.array([box], np.float32), np.array([label]), np.array([crowd]))


def pictures(rng: np.random.Generator, *, crowd: bool = False) -> list[tuple[Image, Truth]]:
    """Four images of random sizes, each with an object of half its sides at a random place."""
    made = []
    for label in range(4):
        height, width = rng.integers(40, 300, 2).tolist()
        top, left = rng.integers(0, height - height // 2), rng.integers(0, width - width // 2)
        made.append(picture((height, width), (left, top, left + width // 2, top + height // 2), label=label))
    if crowd:
        made = [(image, Truth(truth.boxes_xyxy, truth.labels, ~truth.crowd)) for image, truth in made]
    return made


def painted(mosaic: Mosaic, label: int) -> np.ndarray:
    """Where a mosaic shows the colour of a label."""
    return (np.abs(mosaic.image.astype(int) - COLOURS[label]) < 95).all(axis=2)


def test_boxes_are_where_the_arithmetic_puts_them() -> None:
    square = (200, 200)
    four = [
        # They meet at (25, 25). The first has 25 pixels of room, is shrunk to half of its usual 100, so by 4, and shows
        # its last 100 pixels: (100 - 100) / 4 … (180 - 100) / 4 and so on.
        picture(square, (100, 120, 180, 160), label=0),
        # 75 wide and 25 high: shrunk to 75, by 8/3, all columns and the last 200/3 rows, rounded to 67, in 25.
        picture(square, (0, 133, 80, 200), label=1),
        picture(square, (133, 0, 200, 80), label=2),
        # 75 pixels of room both ways: shrunk to 75, by 8/3, and seen whole.
        picture(square, (40, 80, 120, 160), label=3),
    ]
    mosaic = make_mosaic(four, hw=(100, 100), mode="stretch", rng=LowestDraws())  # type: ignore[arg-type]
    expected = [[0, 5, 20, 15], [25, 0, 55, 25], [0, 25, 25, 55], [40, 55, 70, 85]]
    np.testing.assert_allclose(mosaic.truth.boxes_xyxy, expected, atol=1e-4)
    assert mosaic.truth.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(mosaic.whole_areas, [200, 750, 750, 900], atol=1e-3)


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_boxes_fit_what_is_seen_of_their_objects(mode: ResizeMode) -> None:
    rng = np.random.default_rng(0)
    kept = dropped = 0
    for _ in range(60):
        mosaic = make_mosaic(pictures(rng), hw=(160, 200), mode=mode, rng=rng)
        assert mosaic.image.shape == (160, 200, 3)
        for label in range(4):
            seen = painted(mosaic, label)
            boxes_xyxy = mosaic.truth.boxes_xyxy[mosaic.truth.labels == label]
            if not len(boxes_xyxy):
                dropped += bool(seen.any())
                continue
            kept += 1
            rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
            extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(boxes_xyxy[0], extent, atol=3.5)  # a small image is enlarged, and blurred so
    assert kept > 100
    assert dropped > 20


def test_objects_are_half_to_all_of_their_usual_size() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        four = pictures(rng, crowd=True)  # so that none is dropped for being cut
        mosaic = make_mosaic(four, hw=(160, 200), mode="letterbox", rng=rng)
        for label, area in zip(mosaic.truth.labels, mosaic.whole_areas, strict=True):
            image, truth = four[label]
            resize = plan_resize((image.shape[0], image.shape[1]), (160, 200), "letterbox")
            left, top, right, bottom = resize.apply(truth.boxes_xyxy)[0]
            ratios.append(np.sqrt(area / ((right - left) * (bottom - top))))
    assert 0.49 < min(ratios) < 0.55
    assert 0.95 < max(ratios) < 1.02  # whole pixels make up for the rest


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_objects_of_which_little_is_left_are_dropped_and_crowds_are_not(mode: ResizeMode) -> None:
    rng = np.random.default_rng(1)
    for seed in range(60):
        four = pictures(rng)
        crowds = [(image, Truth(truth.boxes_xyxy, truth.labels, ~truth.crowd)) for image, truth in four]
        objects, all_seen = (
            make_mosaic(given, hw=(160, 200), mode=mode, rng=np.random.default_rng(seed)) for given in (four, crowds)
        )
        left, top, right, bottom = all_seen.truth.boxes_xyxy.T
        share = (right - left) * (bottom - top) / all_seen.whole_areas
        assert objects.truth.labels.tolist() == all_seen.truth.labels[share >= MIN_VISIBLE].tolist()
        assert all_seen.truth.crowd.all()
        assert all(painted(objects, label).sum() < 20 for label in set(range(4)) - set(all_seen.truth.labels.tolist()))


def test_stretched_images_leave_no_gap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        four = [(np.zeros((*rng.integers(1, 60, 2), 3), np.uint8), nothing()) for _ in range(4)]
        assert not make_mosaic(four, hw=(96, 64), mode="stretch", rng=rng).image.any()


def test_letterboxed_images_keep_their_aspect_and_fill_one_side_of_their_quarter() -> None:
    four = [(np.zeros((40, 120, 3), np.uint8), nothing())] * 4
    mosaic = make_mosaic(four, hw=(96, 96), mode="letterbox", rng=LowestDraws())  # type: ignore[arg-type]
    # Meeting at (24, 24). The last has 72 × 72 of room: scale 0.75 of its usual 96 × 32, so 72 × 24 are image.
    assert not mosaic.image[24:48, 24:].any()
    assert (mosaic.image[48:, 24:] == PADDING_VALUE).all()


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("hw", [(1, 1), (1, 500), (500, 1)])
def test_the_oddest_images_make_a_mosaic(hw: tuple[int, int], mode: ResizeMode) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        four = [picture(hw, (0, 0, hw[1], hw[0]), crowd=True)] * 4
        mosaic = make_mosaic(four, hw=(32, 48), mode=mode, rng=rng)
        assert len(mosaic.truth.labels) == 4
        assert (mosaic.truth.boxes_xyxy >= 0).all()
        assert (mosaic.truth.boxes_xyxy <= [48, 32, 48, 32]).all()


def test_the_same_draws_give_the_same_mosaic_and_leave_the_images_alone() -> None:
    four = pictures(np.random.default_rng(0))
    before = [(image.copy(), truth.boxes_xyxy.copy()) for image, truth in four]
    one, same, other = (
        make_mosaic(four, hw=(96, 96), mode="stretch", rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.image, same.image)
    assert np.array_equal(one.truth.boxes_xyxy, same.truth.boxes_xyxy)
    assert not np.array_equal(one.image, other.image)
    for (image, truth), (old_image, old_boxes) in zip(four, before, strict=True):
        assert np.array_equal(image, old_image)
        assert np.array_equal(truth.boxes_xyxy, old_boxes)


def nothing() -> Truth:
    return Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))


def sample(brightness: int, **changes: Any) -> Sample:
    values = {
        "image": np.full((3, 8, 8), brightness, np.uint8),
        "boxes_xyxy": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int64),
        "ignored_xyxy": np.zeros((0, 4), np.float32),
        "valid_hw": (8, 8),
    }
    return Sample(**values | changes)


def test_mixup_keeps_the_boxes_of_both() -> None:
    one = sample(
        100,
        boxes_xyxy=np.array([[1, 1, 3, 3]], np.float32),
        labels=np.array([4]),
        ignored_xyxy=np.array([[0, 0, 8, 2]], np.float32),
        valid_hw=(5, 8),
    )
    other = sample(200, boxes_xyxy=np.array([[2, 2, 6, 6], [1, 1, 3, 3]], np.float32), labels=np.array([7, 4]))
    mixed = mix_up(one, other, rng=np.random.default_rng(0))
    assert mixed.boxes_xyxy.tolist() == [[1, 1, 3, 3], [2, 2, 6, 6], [1, 1, 3, 3]]
    assert mixed.labels.tolist() == [4, 7, 4]
    assert mixed.ignored_xyxy.tolist() == [[0, 0, 8, 2]]
    assert mixed.valid_hw == (8, 8)  # there is image wherever one of them has some
    assert (mixed.boxes_xyxy.dtype, mixed.labels.dtype, mixed.image.dtype) == (np.float32, np.int64, np.uint8)


def test_mixup_adds_pixels_by_shares_near_a_half() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        mixed = mix_up(sample(250), sample(0), rng=rng).image
        assert (mixed == mixed[0, 0, 0]).all()
        shares.append(mixed[0, 0, 0] / 250)
    # Beta(a, a) has the standard deviation 1 / (2 √(2a + 1)), here 0.062.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01)
    assert np.std(shares) == pytest.approx(0.062, abs=0.006)
