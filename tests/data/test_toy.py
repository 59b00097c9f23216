from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mnet_det.data import toy
from mnet_det.data.toy import CATEGORY_IDS, CLASS_NAMES, Scene, draw_clip, draw_scene, draw_toy
from mnet_det.errors import DataError, SourceError
from mnet_det.images import read_image

SMALL_HW = (96, 128)


def scene(seed: int, image_hw: tuple[int, int] = SMALL_HW) -> Scene:
    return draw_scene(np.random.default_rng(seed), image_hw=image_hw)


def outline(name: str, *, size_px: float = 40.0, turn: float = 0.0, stretch: float = 1.0) -> list[np.ndarray]:
    return toy._outline(CLASS_NAMES.index(name), size_px=size_px, turn=turn, stretch=stretch)


def polygon_area(corners: np.ndarray) -> float:
    """The shoelace formula."""
    x, y = corners.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


@pytest.fixture
def no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films nothing, so that a test of the images takes no second."""
    monkeypatch.setattr(toy, "draw_clip", lambda path, *, seed: path.touch())


def test_each_class_has_its_own_id_with_gaps_between():
    assert len(CLASS_NAMES) == len(CATEGORY_IDS) == len(set(CATEGORY_IDS)) >= 6
    assert all(np.diff(CATEGORY_IDS) > 1)


def test_a_scene_depends_on_its_seed_alone():
    first, again, other = scene(5), scene(5), scene(6)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes_xyxy, again.boxes_xyxy)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("image_hw", [(64, 64), SMALL_HW, (240, 320)])
def test_three_to_six_whole_objects_of_the_stated_sizes(image_hw: tuple[int, int]):
    labels = []
    for seed in range(25):
        drawn = scene(seed, image_hw)
        assert drawn.image.shape == (*image_hw, 3)
        assert drawn.image.dtype == np.uint8
        assert 3 <= len(drawn.boxes_xyxy) == len(drawn.labels) == len(drawn.areas) <= 6
        assert drawn.boxes_xyxy.min() >= 0
        assert (drawn.boxes_xyxy[:, 2:] <= image_hw[::-1]).all()
        sizes_wh = drawn.boxes_xyxy[:, 2:] - drawn.boxes_xyxy[:, :2]
        longer = sizes_wh.max(axis=1)
        assert (longer >= max(12, 0.08 * min(image_hw)) - 1e-3).all()
        assert (longer <= 0.6 * min(image_hw) + 1e-3).all()
        assert (drawn.areas <= sizes_wh.prod(axis=1) + sizes_wh.sum(axis=1)).all()  # half a pixel on each side
        labels += drawn.labels.tolist()
    assert set(labels) == set(range(len(CLASS_NAMES)))


def test_an_image_too_small_to_tell_shapes_apart_is_refused():
    with pytest.raises(ValueError, match=r"at least 64 a side, got \(63, 200\)"):
        scene(0, (63, 200))


def test_no_object_is_hidden_beyond_the_stated_share(monkeypatch: pytest.MonkeyPatch):
    painted: list[toy._Footprint] = []
    paint = toy._paint

    def record(canvas, footprint, rng, colour):
        painted.append(footprint)
        paint(canvas, footprint, rng, colour)

    monkeypatch.setattr(toy, "_paint", record)
    hidden_shares = []
    for seed in range(40):
        painted.clear()
        scene(seed)
        masks = np.zeros((len(painted), *SMALL_HW), bool)
        for mask, footprint in zip(masks, painted, strict=True):
            mask[footprint.window] = footprint.mask
        for index, mask in enumerate(masks):
            hidden_shares.append((mask & masks[index + 1 :].any(axis=0)).sum() / mask.sum())
    assert max(hidden_shares) <= 0.4
    assert max(hidden_shares) > 0.2  # and some overlap there is


@pytest.mark.parametrize(
    ("name", "size_wh"),
    [
        ("disc", (40, 40)),
        ("ring", (40, 40)),
        ("square", (40, 40)),
        ("triangle", (40, 34.641)),  # √3 wide and 1.5 high in its unit circle
        ("star", (40, 38.042)),  # 2 sin 72° wide and 1 + cos 36° high
        ("cross", (40, 40)),
    ],
)
def test_an_upright_outline_has_the_size_of_its_figure(name: str, size_wh: tuple[float, float]):
    outer = outline(name)[0]
    np.testing.assert_allclose(outer.min(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(outer.max(axis=0), size_wh, atol=1e-3)


def test_an_outline_is_stretched_before_it_turns():
    # A square twice as wide as high, turned by 45°, reaches as far in x as in y: (2 + 1) / √2 each.
    outer = outline("square", size_px=30, turn=math.pi / 4, stretch=2)[0]
    np.testing.assert_allclose(outer.max(axis=0), (30, 30), atol=1e-9)
    sides = np.linalg.norm(outer - np.roll(outer, 1, axis=0), axis=1)
    np.testing.assert_allclose(sorted(sides), np.array([1, 1, 2, 2]) * 30 * math.sqrt(2) / 3)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_boxes_hold_what_is_drawn_to_half_a_pixel(name: str):
    rng = np.random.default_rng(3)
    for _ in range(20):
        contours = outline(name, size_px=rng.uniform(13, 60), turn=rng.uniform(-3, 3), stretch=rng.uniform(0.8, 1.25))
        footprint = toy._cover(contours, rng.random(2), SMALL_HW)
        coverage = np.zeros(SMALL_HW, np.float32)
        coverage[footprint.window] = footprint.inside

        left, top, right, bottom = footprint.box_xyxy
        for low, high, share in ((left, right, coverage.max(axis=0)), (top, bottom, coverage.max(axis=1))):
            touched = np.flatnonzero(share > 0)
            # The outermost touched pixels are those that hold the box's sides, or, where a thin tip ends in
            # them, the next ones inwards.
            assert math.floor(low) <= touched[0] <= low + 0.5
            assert high - 0.5 <= touched[-1] + 1 <= math.ceil(high)

        area = polygon_area(contours[0]) - sum(polygon_area(hole) for hole in contours[1:])
        perimeter = sum(np.linalg.norm(c - np.roll(c, 1, axis=0), axis=1).sum() for c in contours)
        assert coverage.sum() == pytest.approx(area, abs=0.2 * perimeter)
        assert footprint.mask.sum() == pytest.approx(area, abs=0.5 * perimeter)  # whole pixels


def test_a_disc_lies_in_the_middle_of_its_box():
    """Half a pixel between OpenCV's pixel centres and continuous coordinates would show here."""
    footprint = toy._cover(outline("disc", size_px=31.3), np.array([0.37, 0.61]), SMALL_HW)
    rows, columns = (np.arange(part.start, part.stop) + 0.5 for part in footprint.window)
    weights = footprint.inside / footprint.inside.sum()
    centre_xy = ((weights.sum(axis=0) * columns).sum(), (weights.sum(axis=1) * rows).sum())
    left, top, right, bottom = footprint.box_xyxy
    np.testing.assert_allclose(centre_xy, ((left + right) / 2, (top + bottom) / 2), atol=0.05)


def test_painting_stays_inside_the_box_and_stands_out():
    rng = np.random.default_rng(0)
    for label in range(len(CLASS_NAMES)):
        canvas = np.full((*SMALL_HW, 3), 128, np.uint8)
        contours = toy._outline(label, size_px=45, turn=0.3, stretch=1.1)
        footprint = toy._cover(contours, rng.random(2), SMALL_HW)
        toy._paint(canvas, footprint, rng, toy._contrasting_colour(rng, canvas))
        changed = (canvas != 128).any(axis=2)
        inside = np.zeros(SMALL_HW, bool)
        inside[footprint.window] = footprint.inside > 0
        assert not changed[~inside].any()
        assert changed[inside].mean() > 0.95


@pytest.mark.usefixtures("no_clip")
def test_files_read_as_coco(tmp_path: Path):
    draw_toy(tmp_path / "toy", train_images=4, val_images=2, image_hw=SMALL_HW, seed=7)
    image_ids = set()
    for stream, (split, count) in enumerate((("train", 4), ("val", 2))):
        coco = COCO(str(tmp_path / "toy" / "annotations" / f"instances_{split}2017.json"))
        assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == dict(
            zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
        )
        assert len(coco.getImgIds()) == count
        assert image_ids.isdisjoint(coco.getImgIds())
        image_ids |= set(coco.getImgIds())
        for index, image in enumerate(coco.loadImgs(coco.getImgIds())):
            expected = draw_scene(np.random.default_rng([7, stream, index]), image_hw=SMALL_HW)
            pixels = read_image(tmp_path / "toy" / f"{split}2017" / image["file_name"])
            assert pixels.shape == (image["height"], image["width"], 3) == (96, 128, 3)
            assert np.abs(pixels.astype(int) - expected.image).mean() < 12  # what JPEG costs; a wrong image costs 50
            truth = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            assert [CATEGORY_IDS.index(t["category_id"]) for t in truth] == expected.labels.tolist()
            boxes_xywh = np.array([t["bbox"] for t in truth])
            np.testing.assert_allclose(boxes_xywh[:, :2], expected.boxes_xyxy[:, :2], atol=0.01)
            np.testing.assert_allclose(boxes_xywh[:, :2] + boxes_xywh[:, 2:], expected.boxes_xyxy[:, 2:], atol=0.02)
            assert [t["area"] for t in truth] == expected.areas.tolist()
            assert {t["iscrowd"] for t in truth} == {0}


@pytest.mark.usefixtures("no_clip")
def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path):
    for name, count in (("small", 2), ("large", 4)):
        draw_toy(tmp_path / name, train_images=count, val_images=1, image_hw=SMALL_HW)
    small, large = (
        json.loads((tmp_path / name / "annotations/instances_train2017.json").read_text(encoding="utf-8"))
        for name in ("small", "large")
    )
    assert small["images"] == large["images"][:2]
    assert small["annotations"] == large["annotations"][: len(small["annotations"])]
    for image in small["images"]:
        first, second = (tmp_path / name / "train2017" / image["file_name"] for name in ("small", "large"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.usefixtures("no_clip")
def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "toy").mkdir()
    draw_toy(tmp_path / "toy", train_images=1, val_images=1, image_hw=SMALL_HW)
    names = {path.name for path in (tmp_path / "toy").iterdir()}
    assert names == {"annotations", "train2017", "val2017", "clip.mp4"}
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_what_a_folder_holds_is_never_overwritten(tmp_path: Path):
    kept = tmp_path / "notes.txt"
    kept.write_text("mine", encoding="utf-8")
    for occupied in (tmp_path, kept):
        with pytest.raises(DataError, match="holds something already; expected a new or empty folder"):
            draw_toy(occupied, train_images=1, val_images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert kept.read_text(encoding="utf-8") == "mine"


def test_an_interrupted_set_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(path: Path, *, seed: int) -> None:
        assert (path.parent / "annotations" / "instances_val2017.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "draw_clip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw_toy(tmp_path / "toy", train_images=1, val_images=1, image_hw=SMALL_HW)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_plays_and_moves(tmp_path: Path):
    draw_clip(tmp_path / "clip.mp4", seconds=0.5, frames_per_second=10, image_hw=(120, 160))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    video = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == 10
    frames = []
    while True:
        read, frame = video.read()
        if not read:
            break
        frames.append(frame.astype(int))
    video.release()
    assert [frame.shape for frame in frames] == [(120, 160, 3)] * 5
    assert all(np.abs(after - before).mean() > 1 for before, after in pairwise(frames))


def test_a_clip_without_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(SourceError, match="cannot write MPEG-4 video here"):
        draw_clip(tmp_path / "absent" / "clip.mp4")


def test_an_empty_folder_is_filled_and_not_replaced(tmp_path: Path) -> None:
    """`toy .` put another folder in the place of the current one, and left the shell in a deleted one."""
    before = tmp_path.stat().st_ino
    draw_toy(tmp_path, train_images=1, val_images=1)
    assert tmp_path.stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "clip.mp4", "train2017", "val2017"]
