"""The resized cache: the pixels that training would see anyway, made once, and never another data set's."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from rich.console import Console

import mnet_det.data.image_cache as image_cache
from mnet_det.data.augment import Augment
from mnet_det.data.coco import CocoData, read_coco
from mnet_det.data.image_cache import CachedPixels, open_cache
from mnet_det.data.loader import EpochBatches, make_loader
from mnet_det.data.pixels import DecodedPixels
from mnet_det.errors import DataError, ImageError, MnetDetError
from mnet_det.images import read_image, write_image

HW = (40, 48)
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Images:
    """Five images beside their annotations: JPEG, PNG, large, small, and one that is none."""

    annotations: Path
    folder: Path

    @property
    def data(self) -> CocoData:
        return read_coco(self.annotations, self.folder)

    def open(self, cache: Path, *, console: Console = QUIET, **settings: Any) -> CachedPixels:
        chosen: dict[str, Any] = {"preset": "flip", "network_hw": HW, "mode": "stretch", **settings}
        return open_cache(self.data, folder=cache, console=console, **chosen)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    names = {"a.jpg": (60, 80), "b.png": (90, 50), "large.jpg": (300, 400), "small.png": (20, 10), "bad.jpg": (60, 80)}
    entries, boxes = [], []
    for index, (name, (height, width)) in enumerate(names.items()):
        smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (width, height))
        write_image(folder / name, smooth)
        entries.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        boxes.append({"id": index + 1, "image_id": index + 1, "category_id": 1, "bbox": [2, 3, width / 2, height / 3]})
    (folder / "bad.jpg").write_bytes(b"no image")
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}))
    return Images(path, folder)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The caches that were built, one after the other."""
    paths: list[Path] = []
    build = image_cache._build

    def count(path: Path, *others: Any) -> Any:
        paths.append(path)
        return build(path, *others)

    monkeypatch.setattr(image_cache, "_build", count)
    return paths


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".pixels")


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("preset", ["none", "flip", "ssd", "ssdlite"])
def test_the_pixels_are_those_of_the_decoded_and_resized_file(
    images: Images, cache: Path, preset: Any, mode: Any
) -> None:
    cached = images.open(cache, preset=preset, mode=mode)
    decoded = DecodedPixels(images.data, preset=preset, network_hw=HW, mode=mode)
    for index in range(4):
        height, width = decoded.needed_hw(index)
        expected = cv2.resize(decoded(index), (width, height), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(cached(index), expected)


def test_a_sample_is_the_one_of_the_files(images: Images, cache: Path) -> None:
    """Flipping and resizing commute but for rounding, and boxes are scaled once instead of twice."""
    cached = images.open(cache)
    augment = Augment("flip", network_hw=HW, mode="stretch")
    for index in (0, 1, 3):  # the large one is decoded at reduced size for the cache
        truth = images.data.truth(index)
        for seed in range(4):
            plain = augment(images.data.image(index), truth, seed=seed)
            pixels = cached(index)
            height, width = images.data.image_hws[index]
            scale = np.array([pixels.shape[1] / width, pixels.shape[0] / height] * 2, np.float32)
            small = augment(pixels, replace(truth, boxes_xyxy=truth.boxes_xyxy * scale), seed=seed)
            assert np.abs(plain.image.astype(int) - small.image).max() <= 2
            assert np.allclose(plain.boxes_xyxy, small.boxes_xyxy, atol=1e-3)


def test_an_image_that_cannot_be_used_keeps_its_fault(images: Images, cache: Path) -> None:
    with pytest.raises(ImageError) as plain:
        read_image(images.folder / "bad.jpg", size_hw=(60, 80))
    for cached in (images.open(cache), images.open(cache)):  # just made, then found
        with pytest.raises(ImageError) as caught:
            cached(4)
        assert (str(caught.value), caught.value.kind) == (str(plain.value), plain.value.kind)
        assert caught.value.reason == plain.value.reason


def test_a_set_of_which_no_image_can_be_used_is_cached_too(images: Images, cache: Path) -> None:
    for path in images.folder.iterdir():
        path.write_bytes(b"no image")
    images.open(cache)
    cached = images.open(cache)
    for index in range(5):
        with pytest.raises(ImageError):
            cached(index)


def test_what_is_read_can_be_written_to_without_changing_the_file(images: Images, cache: Path) -> None:
    cached = images.open(cache)
    first = cached(0)
    before = first.copy()
    assert first.flags["C_CONTIGUOUS"]
    assert type(first) is np.ndarray
    first[:] = 7
    assert np.array_equal(cached(0), before)


def test_a_second_opening_builds_nothing(images: Images, cache: Path, built: list[Path]) -> None:
    first, second = images.open(cache), images.open(cache)
    assert len(built) == 1
    assert np.array_equal(first(1), second(1))
    images.open(cache, preset="none")  # needs the same pixels
    assert len(built) == 1


def change_annotations(images: Images) -> None:
    images.annotations.write_text(images.annotations.read_text() + " ")


def change_pixels(images: Images) -> None:
    write_image(images.folder / "b.png", np.full((90, 50, 3), 9, np.uint8))


def touch(images: Images) -> None:
    os.utime(images.folder / "b.png", ns=(1, 1))


def put_in_another_order(images: Images) -> None:
    content = json.loads(images.annotations.read_text())
    content["images"].reverse()
    images.annotations.write_text(json.dumps(content))


@pytest.mark.parametrize("change", [change_annotations, change_pixels, touch, put_in_another_order])
def test_changed_data_are_resized_anew_and_the_old_are_removed(
    images: Images, cache: Path, built: list[Path], change: Callable[[Images], None]
) -> None:
    images.open(cache)
    old = files(cache)
    change(images)
    cached = images.open(cache)
    assert len(built) == 2
    assert files(cache) == [cached.path.name] != old
    index = images.data.image_ids.tolist().index(2)
    assert np.array_equal(cached(index), cv2.resize(read_image(images.folder / "b.png"), HW[::-1]))


@pytest.mark.parametrize("settings", [{"preset": "ssd"}, {"network_hw": (41, 48)}, {"mode": "letterbox"}])
def test_caches_of_several_sizes_lie_beside_each_other(
    images: Images, cache: Path, built: list[Path], settings: dict[str, Any]
) -> None:
    images.open(cache)
    images.open(cache, **settings)
    images.open(cache)
    assert len(built) == len(files(cache)) == 2


@pytest.mark.parametrize(("name", "value"), [("__version__", "9.9"), ("FORMAT", 99), ("INTERPOLATION", 3)])
def test_another_version_of_the_code_makes_its_own(
    images: Images, cache: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    images.open(cache)
    monkeypatch.setattr(image_cache, name, value)
    images.open(cache)
    assert len(built) == 2


def test_two_data_sets_of_one_name_do_not_replace_each_other(
    images: Images, cache: Path, built: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(images.folder, tmp_path / "other" / "images")
    shutil.copy(images.annotations, tmp_path / "other")
    other = Images(tmp_path / "other" / "instances.json", tmp_path / "other" / "images")
    for each in (images, other, images):
        each.open(cache)
    assert len(built) == len(files(cache)) == 2


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_off_in_the_last_bytes(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut_off, cut_off_in_the_last_bytes, make_empty, fill_with_zeros])
def test_a_damaged_file_is_made_again(
    images: Images, cache: Path, built: list[Path], damage: Callable[[Path], None]
) -> None:
    damage(images.open(cache).path)
    cached = images.open(cache)
    assert len(built) == 2
    assert np.array_equal(cached(0), cv2.resize(read_image(images.folder / "a.jpg"), HW[::-1]))


def test_a_system_that_takes_no_advice_on_memory_reads_the_same(
    images: Images, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_advice = images.open(cache)
    expected = [with_advice(index) for index in range(4)]
    monkeypatch.setattr(image_cache, "CAN_ADVISE", False)
    without = images.open(cache)
    assert all(np.array_equal(without(index), pixels) for index, pixels in enumerate(expected))


def test_a_pickled_copy_reads_the_same_and_carries_no_pixels(images: Images, cache: Path) -> None:
    """So a spawned worker gets it, on Windows and macOS."""
    cached = images.open(cache, network_hw=(400, 400))
    expected = cached(0)  # the map is open
    message = pickle.dumps(cached)
    assert len(message) < 20_000 < expected.size
    assert np.array_equal(pickle.loads(message)(0), expected)


def test_a_cache_that_was_removed_is_missed_in_one_line(images: Images, cache: Path) -> None:
    cached = pickle.loads(pickle.dumps(images.open(cache)))
    cached.path.unlink()
    with pytest.raises(DataError, match=r"\.pixels: the cached images cannot be read \(.*\); start again"):
        cached(0)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_without_room_is_refused_before_anything_is_written(
    images: Images, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**10, 9 * 10**9, 10**9))
    expected = (
        r"cache: no room .*: they take 1\.92 GB and 1\.07 GB are to stay free, but only 1\.00 GB are; .*data\.cache="
    )
    with pytest.raises(MnetDetError, match=expected):
        images.open(cache, network_hw=(8000, 16000))  # 4 × 3 × 8000 × 16000 B are 1.54 GB, with the bad one's 1.92 GB
    assert files(cache) == []


def test_a_folder_that_is_a_file_is_refused_with_a_way_out(images: Images, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MnetDetError, match=r"cannot be written .*; name another folder with data\.cache=FOLDER"):
        images.open(tmp_path / "file")


class StopError(BaseException):
    """As Ctrl-C: no `Exception`."""


def test_an_interrupted_build_leaves_nothing(images: Images, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(made: Iterator[Any], *_: object) -> Iterator[Any]:
        yield next(made)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "_with_progress", interrupt)
        with pytest.raises(StopError):
            images.open(cache)
    assert files(cache) == []
    assert images.open(cache)(0).shape == (*HW, 3)


def test_the_next_build_removes_what_killed_ones_left(images: Images, cache: Path) -> None:
    """Whichever data set's they were: gigabytes that nobody would look for."""
    cache.mkdir()
    for name in (".instances_train2017-300x300-stretch-01234567-89ab.4711.tmp.pixels", ".instances-1.1.tmp.pixels"):
        (cache / name).write_bytes(b"half")
    (cache / "other-300x300-stretch-01234567-89ab.pixels").write_bytes(b"another data set's")
    cached = images.open(cache)
    assert files(cache) == sorted([cached.path.name, "other-300x300-stretch-01234567-89ab.pixels"])


def test_of_two_that_ask_at_once_one_builds(
    images: Images, cache: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads here; the lock is one between processes."""
    both_asked = threading.Barrier(2)
    read = image_cache._read_faults
    first_time = threading.local()

    def read_together(*whole: Any) -> Any:
        found = read(*whole)
        if not hasattr(first_time, "over"):
            first_time.over = True
            both_asked.wait(timeout=30)  # neither has found a cache
        return found

    monkeypatch.setattr(image_cache, "_read_faults", read_together)
    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(images.open, cache) for _ in range(2))
    assert len(built) == 1
    assert np.array_equal(one.result()(0), other.result()(0))


def test_the_progress_is_one_line_where_nobody_watches(
    images: Images, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = images.open(cache, console=Console(width=20))
    images.open(cache, console=Console(width=20))
    assert capsys.readouterr().out.splitlines() == [
        f"{cached.path}: 5 images resized, 1 of them cannot be used; 0.0 MB in 0 s",
        f"training images from {cached.path}",
    ]


def test_the_progress_is_a_bar_on_a_terminal(images: Images, cache: Path) -> None:
    screen = io.StringIO()
    images.open(cache, console=Console(file=screen, force_terminal=True, width=200))
    assert "resizing images" in screen.getvalue()
    assert "5/5" in screen.getvalue()


def test_training_reads_it_and_puts_another_image_in_the_place_of_a_bad_one(images: Images, cache: Path) -> None:
    data = images.data
    batches = EpochBatches(len(data), batch_size=5, seed=0)
    pixels = open_cache(data, preset="flip", network_hw=HW, mode="stretch", folder=cache, console=QUIET)
    loader = make_loader(data, batches, preset="flip", network_hw=HW, mode="stretch", seed=0, workers=1, pixels=pixels)
    (batch,) = loader
    assert batch.images.shape == (5, 3, *HW)
    assert set(batch.image_ids) == {1, 2, 3, 4}
    assert [(image_id, fault.kind) for image_id, fault in loader.left_out.items()] == [(5, "not-an-image")]


NUM_IMAGES, BOXES_EACH = 250, 800


@pytest.fixture
def many_boxes(tmp_path: Path) -> CocoData:
    """200,000 boxes on 250 entries of one small image."""
    write_image(tmp_path / "image.png", np.zeros((64, 64, 3), np.uint8))
    entries = [{"id": 1, "file_name": "image.png", "height": 64, "width": 64}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": entries, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    one = read_coco(path, tmp_path)
    corners = np.random.default_rng(0).uniform(0, 30, (NUM_IMAGES * BOXES_EACH, 2)).astype(np.float32)
    return replace(
        one,
        image_ids=np.arange(NUM_IMAGES),
        image_hws=np.repeat(one.image_hws, NUM_IMAGES, axis=0),
        _file_names=np.repeat(one._file_names, NUM_IMAGES),
        _starts=np.arange(NUM_IMAGES + 1) * BOXES_EACH,
        _boxes_xyxy=np.concatenate([corners, corners + 20], axis=1),
        _labels=np.zeros(len(corners), np.int64),
        _crowd=np.zeros(len(corners), bool),
        _annotation_ids=np.arange(len(corners)),
    )


class Listed:
    """Pixels of which each reading looks at the boxes of its image in a list of dicts, as pycocotools keeps them."""

    def __init__(self, pixels: CachedPixels) -> None:
        self.data = pixels.data
        self.pixels = pixels
        boxes = self.data._boxes_xyxy.tolist()
        self.annotations = [{"id": number, "bbox": box, "category_id": 1} for number, box in enumerate(boxes)]

    def __call__(self, index: int) -> Any:
        here = self.annotations[index * BOXES_EACH : (index + 1) * BOXES_EACH]
        assert all(side >= 0 for annotation in here for side in annotation["bbox"])
        return self.pixels(index)


def growth_mib(data: CocoData, pixels: Any) -> dict[str, float]:
    """By how much the memory of a worker grows over an epoch, once it is warm.

    `Private_Dirty` is what it has for itself, page by page: `RssAnon` counts a page from the fork on, and so does not
    see that it was copied. `Rss` is what people see.
    """
    loader = make_loader(
        data,
        EpochBatches(len(data), batch_size=10, seed=0),
        preset="none",
        network_hw=(256, 256),
        mode="stretch",
        seed=0,
        workers=1,
        pixels=pixels,
    )
    seen = []
    for _ in loader:
        (worker,) = loader._iterator._workers  # type: ignore[union-attr]
        lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
        seen.append({name.rstrip(":"): int(kib) / 1024 for name, kib, _ in map(str.split, lines)})
    return {name: seen[-1][name] - seen[4][name] for name in ("Private_Dirty", "Rss")}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="the system does not tell")
def test_the_memory_of_a_worker_stays_steady_over_an_epoch(many_boxes: CocoData, tmp_path: Path) -> None:
    """A worker copies each page that it writes to, and reading a Python object writes its reference count.

    Nor does it hold on to what it has read of the cache, which has 49 MB here.
    """
    pixels = open_cache(
        many_boxes,
        preset="none",
        network_hw=(256, 256),
        mode="stretch",
        folder=tmp_path / "cache",
        console=QUIET,
    )
    assert growth_mib(many_boxes, Listed(pixels))["Private_Dirty"] > 20  # so it can be seen on a set of this size
    growth = growth_mib(many_boxes, pixels)
    assert max(growth.values()) < 10
