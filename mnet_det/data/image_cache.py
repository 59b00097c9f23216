"""Training images resized once and kept as plain pixels, so that an epoch decodes nothing.

A cache is one file: the pixels of each image one after the other, then the faults of those that cannot be used, as
JSON. Sizes and places follow from the annotations. The JSON is written last, so a file that was cut off has none.
"""

from __future__ import annotations

import glob
import hashlib
import json
import mmap
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mnet_det import __version__
from mnet_det.data.augment import Preset
from mnet_det.data.coco import CocoData
from mnet_det.data.pixels import DecodedPixels
from mnet_det.doctor import usable_cores
from mnet_det.download import one_at_a_time
from mnet_det.errors import DataError, ImageError, MnetDetError
from mnet_det.files import sha256_of, whole_file
from mnet_det.preprocess import INTERPOLATION, ResizeMode
from mnet_det.structures import Image, IntArray

FORMAT = 1
"""Raise it with any change of what a cache holds; those of another format are made again."""
SUFFIX = ".pixels"
STEM_CHARACTERS = 40
"""Of the annotation file's name in a cache's own: enough to know it by, and never more than a file system takes."""
SPARE_BYTES = 1 << 30
"""What is left free on the disk: a run's checkpoints are to fit beside its cache."""
AHEAD = 4
"""Images per thread that may wait to be written; on a slow disk a whole data set would pile up in memory."""
CAN_ADVISE = hasattr(mmap.mmap, "madvise")  # Windows does without
ADVICE = "name another folder with data.cache=FOLDER or MNET_DET_CACHE, or train without the cache"

Faults = dict[int, tuple[str, str]]
"""Kind and reason of each image that cannot be used, by index."""


@dataclass(frozen=True)
class Layout:
    """Where each image lies in a cache, and how large it is: what annotations and preset make of it.

    Attributes:
        hws: int64 [I, 2].
        starts: int64 [I + 1], bytes from the beginning of the file.
    """

    hws: IntArray
    starts: IntArray

    @classmethod
    def of(cls, decoded: DecodedPixels) -> Layout:
        """One image after the other, each in the size that is needed."""
        hws = np.array([decoded.needed_hw(index) for index in range(len(decoded.data))], np.int64).reshape(-1, 2)
        return cls(hws, np.concatenate([[0], np.cumsum(3 * hws.prod(axis=1))]).astype(np.int64))

    @property
    def total(self) -> int:
        """Bytes of all images."""
        return int(self.starts[-1])


class CachedPixels:
    """The images of a cache, read through a memory map that each process opens for itself.

    Attributes:
        data: whose images they are; an index means the same in both.
        path: the cache's file.
    """

    def __init__(self, data: CocoData, path: Path, layout: Layout, faults: Faults) -> None:
        """What lies at `path`, which must be whole; `open_cache` sees to that."""
        self.data = data
        self.path = path
        self._layout = layout
        self._faults = faults
        self._map: mmap.mmap | None = None

    def __call__(self, index: int) -> Image:
        """RGB uint8 [H, W, 3] in the size that the preset needs: a copy, which nobody can write into the file through.

        Raises:
            ImageError: the image could not be used when the cache was made.
            DataError: the cache is no longer there.
        """
        if index in self._faults:
            kind, reason = self._faults[index]
            raise ImageError(self.data.path(index), reason, kind)
        start, end = self._layout.starts[index : index + 2].tolist()
        return self._bytes(start, end).reshape(*self._layout.hws[index], 3)  # [H, W, 3]

    def __getstate__(self) -> dict[str, Any]:
        """All but the map: pickled, it would be gigabytes of pixels."""
        return self.__dict__ | {"_map": None}

    def _bytes(self, start: int, end: int) -> NDArray[np.uint8]:
        """Copy a piece of the file, whose pages are asked for together and given back at once.

        Page by page a disk takes several times as long, and each worker would seem to grow by all that it has read.
        """
        if self._map is None:
            self._map = self._open()
        first_page = start - start % mmap.PAGESIZE
        if CAN_ADVISE:
            self._map.madvise(mmap.MADV_WILLNEED, first_page, end - first_page)
        piece = np.frombuffer(self._map, np.uint8, end - start, start).copy()
        if CAN_ADVISE:
            self._map.madvise(mmap.MADV_DONTNEED, first_page, end - first_page)
        return piece

    def _open(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # a ValueError where the file is empty
            raise DataError(f"{self.path}: the cached images cannot be read ({error}); start again") from None


def open_cache(
    data: CocoData,
    *,
    preset: Preset,
    network_hw: tuple[int, int],
    mode: ResizeMode,
    folder: Path,
    console: Console,
) -> CachedPixels:
    """The images of `data` in the size that the preset needs, made first unless they are there.

    What is there is used as long as the annotations, the image files (by name, size and time), the size that is needed
    and our version are the same; else it is made again, and what it replaces is removed. Of several processes one makes
    it, and the others wait.

    Args:
        data: the images.
        preset: the augmentation that is to follow.
        network_hw: the network's input.
        mode: how images get there.
        folder: where caches lie; made if missing.
        console: shows the progress where it is a terminal, and says what was made.

    Raises:
        MnetDetError: the disk lacks room, or the folder cannot be written.
    """
    decoded = DecodedPixels(data, preset=preset, network_hw=network_hw, mode=mode)
    layout = Layout.of(decoded)
    name = _name(decoded)
    path = folder / f"{name}-{_key(data, layout)}{SUFFIX}"
    faults = _read_faults(path, layout)
    if faults is None:
        try:
            with one_at_a_time(folder / "images", console=console):
                faults = _read_faults(path, layout)  # made by the process that was waited for?
                if faults is None:
                    _remove_old(folder, name)
                    faults = _build(path, decoded, layout, console)
        except MnetDetError as error:
            raise MnetDetError(f"{error}; {ADVICE}") from None
    else:
        console.print(f"training images from {path}", highlight=False, markup=False, soft_wrap=True)
    return CachedPixels(data, path, layout, faults)


def _name(decoded: DecodedPixels) -> str:
    """What stays the same when the content changes, so that a new cache finds the one it replaces."""
    height, width = (round(decoded.margin * side) for side in decoded.network_hw)
    annotations = decoded.data.source
    places = f"{annotations.resolve()}\n{decoded.data.folder.resolve()}"
    place = hashlib.sha256(os.fsencode(places)).hexdigest()[:8]
    return f"{annotations.stem[:STEM_CHARACTERS]}-{width}x{height}-{decoded.mode}-{place}"


def _key(data: CocoData, layout: Layout) -> str:
    """The content, as far as it can be told without reading the images."""
    stats = [_stat(data.path(index)) for index in range(len(data))]
    names = [data.file_name(index) for index in range(len(data))]
    what = [FORMAT, __version__, INTERPOLATION, sha256_of(data.source), layout.hws.tolist(), names, stats]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _stat(path: Path) -> tuple[int, int]:
    """Bytes and time of an image file."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1  # its fault is found when it is read, and is another one once it is there
    return found.st_size, found.st_mtime_ns


def _read_faults(path: Path, layout: Layout) -> Faults | None:
    """What a cache says of images that cannot be used; None unless it is there and whole."""
    try:
        with path.open("rb") as file:
            file.seek(layout.total)
            return {int(index): (kind, reason) for index, (kind, reason) in json.load(file).items()}
    except (OSError, ValueError):
        return None


def _remove_old(folder: Path, name: str) -> None:
    """Earlier contents of this cache, and what killed builders of any left behind: it is our turn alone."""
    old = [*folder.glob(f"{glob.escape(name)}-*{SUFFIX}"), *folder.glob(f".*.tmp{SUFFIX}")]
    for path in old:
        with suppress(OSError):  # Windows keeps a file that another process reads
            path.unlink()


def _build(path: Path, decoded: DecodedPixels, layout: Layout, console: Console) -> Faults:
    """Write the cache, in order, while threads decode ahead."""
    _require_room(path.parent, layout.total)
    started = time.perf_counter()
    faults: Faults = {}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        for index, made in enumerate(_with_progress(_resized_images(decoded, layout), len(decoded.data), console)):
            if isinstance(made, ImageError):
                faults[index] = (made.kind, made.reason)
                file.seek(layout.starts[index + 1])
            else:
                file.write(made.data)
        file.seek(layout.total)
        file.write(json.dumps(faults).encode())
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave the name of a whole file and not its content
    seconds = time.perf_counter() - started
    unusable = f", {len(faults)} of them cannot be used" if faults else ""
    console.print(
        f"{path}: {len(decoded.data)} images resized{unusable}; {layout.total / 1e6:,.1f} MB in {seconds:.0f} s",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return faults


def _resized_images(decoded: DecodedPixels, layout: Layout) -> Iterator[Image | ImageError]:
    """Each image in the size it needs, or what is wrong with it, in order."""

    def make(index: int) -> Image | ImageError:
        try:
            image = decoded(index)
        except ImageError as error:
            return error
        height, width = layout.hws[index].tolist()
        resized: Image = cv2.resize(image, (width, height), interpolation=INTERPOLATION)
        return resized

    threads = usable_cores()
    waiting: deque[Future[Image | ImageError]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for index in range(len(decoded.data)):
            waiting.append(pool.submit(make, index))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _with_progress(images: Iterator[Image | ImageError], total: int, console: Console) -> Iterator[Image | ImageError]:
    columns = (TextColumn("resizing images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Quiet and not only disabled: rich 14.0 would still end the bar that it did not draw with an empty line.
    shown_on = console if console.is_terminal else Console(quiet=True)
    with Progress(*columns, console=shown_on, transient=True) as progress:
        yield from progress.track(images, total=total)


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise MnetDetError(
            f"{folder}: no room for the resized images: they take {needed / 1e9:,.2f} GB and "
            f"{SPARE_BYTES / 1e9:,.2f} GB are to stay free, but only {free / 1e9:,.2f} GB are"
        )
