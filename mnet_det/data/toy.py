"""Draw a detection data set in COCO form: shapes told apart by outline alone, on textured backgrounds.

Outlines are polygons in continuous pixels (pixel i spans i…i+1, as in COCO), so a box is the polygon's own extent and
not a guess from pixels. Colours and textures are random and say nothing about the class.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mnet_det.errors import DataError, SourceError
from mnet_det.images import write_image
from mnet_det.structures import FloatArray, Image, IntArray

CLASS_NAMES = ("disc", "ring", "square", "triangle", "star", "cross")
CATEGORY_IDS = (3, 7, 11, 18, 24, 40)
"""With gaps, as COCO's own, so that a mix-up of ids and labels cannot go unseen."""

OBJECTS_PER_IMAGE = (3, 6)
SIZE_RANGE = (0.08, 0.6)
USUAL_SIZE = 0.4
"""Longer side of an object's box, as a share of the image's shorter side: the limits, and what is most frequent."""

SMALLEST_PX = 12
"""Below this the shapes look alike; it overrides `SIZE_RANGE` in small images."""

MAX_HIDDEN = 0.4
"""Largest share of an object's pixels that later ones may cover."""

STRETCH_RANGE = (0.8, 1.25)
MAX_SQUARE_TURN = math.radians(15)
GROUND_RANGE = (20, 110)
OBJECT_RANGE = (90, 255)
MIN_BRIGHTEST = 180
"""Grounds are dark and objects bright in at least one channel, of any hue: both brightnesses in every mixture would
take a small network many times as long to learn."""
MIN_CONTRAST = 100
"""Least distance, in RGB space, between an object's colour and the mean of what it is drawn on."""

SUPERSAMPLING = 4
"""Subpixels a side when an outline is filled. OpenCV fills whatever the edge touches, here under 0.2 pixels too far."""

SPLITS = ("train", "val")
CLIP_STREAM = len(SPLITS)
"""The clip's place beside the splits among the random streams of one seed."""


@dataclass(frozen=True)
class Scene:
    """One drawn image and its truth.

    Attributes:
        image: RGB uint8 [H, W, 3].
        boxes_xyxy: float32 [N, 4], pixels, of the full object, hidden parts included.
        labels: int64 [N], indexing `CLASS_NAMES`.
        areas: int64 [N], pixels of the full object.
    """

    image: Image
    boxes_xyxy: FloatArray
    labels: IntArray
    areas: IntArray


@dataclass(frozen=True)
class _Footprint:
    """What a placed outline covers.

    Attributes:
        box_xyxy: extent of the outline, float64 [4].
        window: rows and columns of the image that hold it.
        inside: covered share of each pixel of the window, float32 [h, w].
        rim: how near the outline each pixel is, 0…1, float32 [h, w].
    """

    box_xyxy: NDArray[np.float64]
    window: tuple[slice, slice]
    inside: FloatArray
    rim: FloatArray

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels of the window that are at least half covered."""
        return self.inside >= 0.5


def draw_toy(
    folder: Path,
    *,
    train_images: int = 1000,
    val_images: int = 200,
    image_hw: tuple[int, int] = (240, 320),
    seed: int = 0,
) -> None:
    """Draw a data set laid out like COCO 2017, and `clip.mp4`, a short film of the same shapes.

    An image depends on `seed`, its split and its index only, so a smaller set is the beginning of a larger one. The
    folder appears when it is complete.

    Args:
        folder: where to draw; absent or empty.
        train_images: number of images in `train2017/`.
        val_images: number of images in `val2017/`.
        image_hw: their size.
        seed: another seed gives another data set of the same kind.

    Raises:
        DataError: the folder holds something already, or cannot be written.
        SourceError: this OpenCV cannot write the film.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: holds something already; expected a new or empty folder, name another one")
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        for split, image_count in zip(SPLITS, (train_images, val_images), strict=True):
            _draw_split(temporary, split, image_count=image_count, image_hw=image_hw, seed=seed)
        draw_clip(temporary / "clip.mp4", seed=seed)
        if folder.exists():  # empty, and perhaps somebody's current folder: it stays
            for child in temporary.iterdir():
                os.replace(child, folder / child.name)
        else:
            os.replace(temporary, folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def draw_scene(rng: np.random.Generator, *, image_hw: tuple[int, int]) -> Scene:
    """Draw one image of three to six objects, each whole inside it and at most `MAX_HIDDEN` covered.

    Raises:
        ValueError: `image_hw` is too small for six objects that can be told apart.
    """
    if min(image_hw) < 64:
        raise ValueError(f"image_hw must be at least 64 a side, got {image_hw}")
    canvas = _draw_background(rng, image_hw)
    owners = np.zeros(image_hw, np.uint8)  # 0 is background, i + 1 the i-th object
    spare = np.zeros(0)  # pixels that each object can still lose, [objects so far]
    boxes_xyxy, labels, areas = [], [], []
    for number in range(1, rng.integers(*OBJECTS_PER_IMAGE, endpoint=True) + 1):
        label = int(rng.integers(len(CLASS_NAMES)))
        footprint = _find_place(rng, label, owners, spare)
        _paint(canvas, footprint, rng, _contrasting_colour(rng, canvas[footprint.window]))
        boxes_xyxy.append(footprint.box_xyxy)
        labels.append(label)
        areas.append(int(footprint.mask.sum()))
        spare = np.append(spare - _covered(footprint, owners, len(spare)), MAX_HIDDEN * areas[-1])
        owners[footprint.window][footprint.mask] = number
    return Scene(
        _add_grain(rng, canvas), np.array(boxes_xyxy, np.float32), np.array(labels, np.int64), np.array(areas, np.int64)
    )


def draw_clip(
    path: Path,
    *,
    seconds: float = 6.0,
    frames_per_second: int = 30,
    image_hw: tuple[int, int] = (360, 480),
    seed: int = 0,
) -> None:
    """Film one shape of each class as it bounces, turns and breathes. Shapes may cover each other here.

    Raises:
        SourceError: this OpenCV cannot write MPEG-4 video, or the file cannot be written.
    """
    rng = np.random.default_rng([seed, CLIP_STREAM])
    background = _draw_background(rng, image_hw)
    actors = [_cast_actor(rng, label, background) for label in range(len(CLASS_NAMES))]
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")  # the suffix chooses the container
    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), frames_per_second, image_hw[::-1])
    if not writer.isOpened():
        raise SourceError(f"{path}: cannot write MPEG-4 video here; is the folder there, and OpenCV's FFmpeg with it?")
    try:
        for index in range(round(seconds * frames_per_second)):
            canvas = background.copy()
            for actor in actors:
                _play(actor, canvas, index / frames_per_second)
            writer.write(canvas)  # random colours have no channel order to keep
        writer.release()
        os.replace(temporary, path)
    finally:
        writer.release()  # Windows removes no open file
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Actor:
    """A shape of the clip; where and how it stands is a function of the time.

    Attributes:
        label: its class.
        colour: float64 [3].
        texture_seed: keeps its texture from frame to frame.
        stretch: its width / height before it turns.
        size: mean of its longer side, as a share of the image's shorter side.
        start_xy: its place at the start, 0…2: there and back.
        speed_xy: image sides a second.
        turn_speed: radians a second.
    """

    label: int
    colour: NDArray[np.float64]
    texture_seed: int
    stretch: float
    size: float
    start_xy: NDArray[np.float64]
    speed_xy: NDArray[np.float64]
    turn_speed: float


def _cast_actor(rng: np.random.Generator, label: int, background: Image) -> _Actor:
    return _Actor(
        label=label,
        colour=_contrasting_colour(rng, background),
        texture_seed=int(rng.integers(2**31)),
        stretch=rng.uniform(*STRETCH_RANGE),
        size=rng.uniform(0.16, 0.28),
        start_xy=rng.uniform(0, 2, 2),
        speed_xy=rng.uniform(0.15, 0.45, 2),
        turn_speed=rng.uniform(0.3, 0.9),
    )


def _play(actor: _Actor, canvas: Image, time_s: float) -> None:
    """Draw an actor as it stands at a time; in place."""
    turn = actor.turn_speed * time_s
    if CLASS_NAMES[actor.label] == "square":
        turn = MAX_SQUARE_TURN * math.sin(turn)
    size_px = actor.size * (1 + 0.25 * math.sin(2 * turn)) * min(canvas.shape[:2])
    place_xy = 1 - abs(1 - (actor.start_xy + actor.speed_xy * time_s) % 2)  # 0…1 and back: it bounces
    outline = _outline(actor.label, size_px=size_px, turn=turn, stretch=actor.stretch)
    footprint = _cover(outline, place_xy, canvas.shape[:2])
    _paint(canvas, footprint, np.random.default_rng(actor.texture_seed), actor.colour)


def _draw_split(folder: Path, split: str, *, image_count: int, image_hw: tuple[int, int], seed: int) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    stream = SPLITS.index(split)
    for index in range(image_count):
        scene = draw_scene(np.random.default_rng([seed, stream, index]), image_hw=image_hw)
        image_id = stream * 1_000_000 + index + 1  # no id in two splits
        file_name = f"{image_id:012d}.jpg"
        write_image(folder / f"{split}2017" / file_name, scene.image)
        images.append({"id": image_id, "file_name": file_name, "width": image_hw[1], "height": image_hw[0]})
        annotations += _annotations(scene, image_id=image_id, first_id=len(annotations) + 1)
    categories = [
        {"id": category_id, "name": name, "supercategory": "shape"}
        for category_id, name in zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
    ]
    path = folder / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    info = {"description": "drawn shapes"}  # some versions of pycocotools fail without
    coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(coco), encoding="utf-8")


def _annotations(scene: Scene, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + index,
            "image_id": image_id,
            "category_id": CATEGORY_IDS[label],
            "bbox": [round(float(side), 2) for side in (left, top, right - left, bottom - top)],
            "area": int(area),
            "iscrowd": 0,
        }
        for index, ((left, top, right, bottom), label, area) in enumerate(
            zip(scene.boxes_xyxy, scene.labels, scene.areas, strict=True)
        )
    ]


def _find_place(
    rng: np.random.Generator, label: int, owners: NDArray[np.uint8], spare: NDArray[np.float64]
) -> _Footprint:
    """Draw sizes and places until one covers no earlier object by more than it has to spare."""
    image_hw = owners.shape
    smallest, largest = (max(SMALLEST_PX, share * min(image_hw)) for share in SIZE_RANGE)
    max_turn = MAX_SQUARE_TURN if CLASS_NAMES[label] == "square" else math.pi
    while True:
        outline = _outline(
            label,
            size_px=rng.triangular(smallest, USUAL_SIZE * min(image_hw), largest),
            turn=rng.uniform(-max_turn, max_turn),
            stretch=rng.uniform(*STRETCH_RANGE),
        )
        footprint = _cover(outline, rng.random(2), image_hw)
        if np.all(_covered(footprint, owners, len(spare)) <= spare):
            return footprint


def _covered(footprint: _Footprint, owners: NDArray[np.uint8], object_count: int) -> IntArray:
    """Visible pixels of each earlier object that a footprint would hide, [object_count]."""
    return np.bincount(owners[footprint.window][footprint.mask], minlength=object_count + 1)[1:]


def _outline(label: int, *, size_px: float, turn: float, stretch: float) -> list[NDArray[np.float64]]:
    """The contours of a shape whose box has its corner at 0 and a longer side of `size_px`.

    Args:
        label: its class.
        size_px: pixels.
        turn: radians, clockwise, after the stretch.
        stretch: width / height before the turn.

    Returns:
        Contours float64 [P, 2], x and y in pixels; a second contour is a hole.
    """
    cosine, sine = math.cos(turn), math.sin(turn)
    transform = np.diag([stretch, 1]) @ np.array([[cosine, sine], [-sine, cosine]])
    contours = [contour @ transform for contour in _CONTOURS[CLASS_NAMES[label]]]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    return [(contour - low) * size_px / (high - low).max() for contour in contours]


def _cover(
    outline: Sequence[NDArray[np.float64]], place_xy: NDArray[np.float64], image_hw: tuple[int, ...]
) -> _Footprint:
    """Put an outline into an image: `place_xy` in 0…1 goes from touching left (top) to touching right (bottom)."""
    image_wh, size_wh = np.array(image_hw[::-1]), outline[0].max(axis=0)
    low = place_xy * (image_wh - size_wh)
    box_xyxy = np.concatenate([low, np.minimum(low + size_wh, image_wh)])  # the sum may round to just outside
    left, top = np.floor(box_xyxy[:2]).astype(int)
    right, bottom = np.ceil(box_xyxy[2:]).astype(int)
    width, height = right - left, bottom - top
    placed = [contour + low - (left, top) for contour in outline]
    inside = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(inside, _fixed_point(placed, SUPERSAMPLING), 255, shift=4)
    inside = cv2.resize(inside, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    rim = np.zeros_like(inside)
    cv2.polylines(rim, _fixed_point(placed, 1), True, 255, 1 + round(size_wh.max() / 30), cv2.LINE_AA, shift=4)
    window = (slice(top, bottom), slice(left, right))
    return _Footprint(box_xyxy, window, inside / np.float32(255), rim / np.float32(255))


def _fixed_point(contours: Sequence[NDArray[np.float64]], scale: int) -> list[NDArray[np.int32]]:
    """Scaled contours as OpenCV draws them: whole numbers are pixel centres, with 4 bits of fraction."""
    return [np.round((contour * scale - 0.5) * 16).astype(np.int32) for contour in contours]


def _paint(canvas: Image, footprint: _Footprint, rng: np.random.Generator, colour: NDArray[np.float64]) -> None:
    """Fill a footprint with a texture around a colour, and shade its rim; in place."""
    ground = canvas[footprint.window]
    fill = _draw_texture(rng, ground.shape[:2], colour, _near_colour(rng, colour, spread=45))
    shade = np.full_like(fill, 0 if colour.mean() > 127 else 255)
    fill = cv2.blendLinear(shade, fill, 0.5 * footprint.rim, 1 - 0.5 * footprint.rim)
    ground[:] = cv2.blendLinear(fill, ground, footprint.inside, 1 - footprint.inside)


def _draw_background(rng: np.random.Generator, image_hw: tuple[int, int]) -> Image:
    """Two colours mixed by a texture, with a few scratches."""
    colour = rng.uniform(*GROUND_RANGE, 3)
    canvas = _draw_texture(rng, image_hw, colour, _near_colour(rng, colour, spread=40))
    limits_xy = image_hw[::-1]
    for _ in range(rng.integers(0, 7)):
        start_xy, end_xy = (tuple(map(int, rng.integers(0, limits_xy))) for _ in range(2))
        scratch = tuple(map(float, _near_colour(rng, colour, spread=60)))
        cv2.line(canvas, start_xy, end_xy, scratch, int(rng.integers(1, 4)), cv2.LINE_AA)
    return canvas


def _draw_texture(
    rng: np.random.Generator, image_hw: tuple[int, ...], colour: NDArray[np.float64], other: NDArray[np.float64]
) -> Image:
    """Mix two colours by a gradient, stripes or blobs."""
    height, width = image_hw
    kind = rng.choice(["gradient", "stripes", "blobs"])
    if kind == "blobs":
        cells = rng.integers(0, 256, rng.integers(3, 9, 2), np.uint8)
        mix = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        x, y = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in (width, height))
        across = math.cos(angle) * x + math.sin(angle) * y[:, None]  # [H, W], -0.71…0.71
        waves = rng.uniform(2, 12)
        wave = np.sin(2 * math.pi * waves * across) if kind == "stripes" else 1.4 * across  # -1…1
        mix = (127.5 * (1 + wave)).astype(np.uint8)
    palette = np.linspace(colour, other, 256).round().astype(np.uint8)  # [256, 3]
    texture: Image = cv2.applyColorMap(mix, palette[:, None])
    return texture


def _add_grain(rng: np.random.Generator, canvas: Image) -> Image:
    """Noise of a random strength over everything."""
    strength = int(rng.integers(0, 13))
    grain = rng.integers(-strength, strength, canvas.shape[:2], np.int8, endpoint=True)
    image: Image = cv2.add(canvas, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    return image


def _near_colour(rng: np.random.Generator, colour: NDArray[np.float64], *, spread: float) -> NDArray[np.float64]:
    return (colour + rng.uniform(-spread, spread, 3)).clip(0, 255)


def _contrasting_colour(rng: np.random.Generator, ground: Image) -> NDArray[np.float64]:
    """A colour away from the mean of RGB pixels [h, w, 3]."""
    mean = np.array(cv2.mean(ground)[:3])
    while True:
        colour = rng.uniform(*OBJECT_RANGE, 3)
        if colour.max() >= MIN_BRIGHTEST and np.linalg.norm(colour - mean) >= MIN_CONTRAST:
            return colour


def _regular(corners: int, *, radii: Sequence[float] = (1.0,)) -> NDArray[np.float64]:
    """Corners float64 [P, 2] on a circle, going through the radii in turn."""
    angles = np.arange(corners) * (2 * math.pi / corners)
    radius = np.resize(np.array(radii), corners)
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1)


_ROUND = 72
"""Corners of a circle; at 300 pixels across they are 0.14 pixels off it."""

_ARM = 0.32
"""Half the width of a cross's arm, whose half length is 1."""

_CONTOURS: dict[str, tuple[NDArray[np.float64], ...]] = {
    "disc": (_regular(_ROUND),),
    "ring": (_regular(_ROUND), 0.55 * _regular(_ROUND)),
    "square": (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),),
    "triangle": (_regular(3),),
    "star": (_regular(10, radii=(1.0, 0.42)),),
    "cross": (
        np.array(
            [
                *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
                *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
            ]
        ),
    ),
}
