"""The judgement of the boxes in an annotation file: where they lie, what their areas say, which stand there twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_det.data.faults import Fault
from mnet_det.structures import FloatArray, IntArray

Entry = dict[str, Any]
Numbered = dict[int, Entry]
"""Entries by their number in the file."""
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EDGE_PX = 0.5
"""How far a box may stick out by rounding alone."""
NEARLY_1 = 1.001
"""A box that ends here is as well inside 0…1 as a rounded one can be."""
LEAST_SIDE_PX = 8
"""In a smaller image, a box inside 0…1 may well be pixels."""
LEAST_VISIBLE = 0.75
"""A box that keeps less than this share inside its image sticks out by more than carelessness."""
GUESSED_FROM = 5
"""How many boxes a file must have before a guess about all of them is trusted so far as to refuse it."""
SUSPECTED_FROM = 20
"""How many boxes a file must have for it to be odd that all of them would fit as x1, y1, x2, y2 as well."""
AREA_TOLERANCE = 0.01
LEAST_MASK = 0.02
"""A mask covers more of its box than this share; COCO's thinnest objects do."""
TINY_PX = 2
"""A box no larger than this either way is more likely a stray click than an object."""
SAME_IOU = 0.9
"""Overlap from which on two boxes of one class are the same object, marked twice."""
PAIRS_AT_ONCE = 1_000_000


def judge_boxes(numbered: Numbered, images: list[Entry], source: str) -> tuple[Numbered, list[Fault]]:
    """Where boxes lie and what their areas say. [N] below are the annotations.

    Returns:
        Those that training and scoring can use, and what is wrong with any of them.
    """
    annotations = list(numbered.values())
    owner = {image["id"]: image for image in images}
    owners = [owner[annotation["image_id"]] for annotation in annotations]
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float64)  # [N, 4] x, y, w, h
    limits_wh = np.array([(image["width"], image["height"]) for image in owners], np.float64)  # [N, 2]
    areas = np.array([np.nan if a.get("area") is None else a["area"] for a in annotations], np.float64)  # [N]
    crowd: Mask = np.array([bool(annotation.get("iscrowd")) for annotation in annotations])
    geometry = _Geometry(boxes, limits_wh)
    numbers = list(numbered)
    faults: list[Fault] = []

    def place(row: int) -> dict[str, Any]:
        return _place(numbers[row], annotations[row], owners[row])

    def say(kind: str, chosen: Mask, message: str) -> None:
        for row in np.flatnonzero(chosen).tolist():
            size = f"{owners[row]['width']}x{owners[row]['height']}"
            text = message.format(box=_numbers(annotations[row]["bbox"]), size=size)
            faults.append(Fault(kind, text, source, **place(row)))

    say("negative-box", geometry.negative, "[{box}] has a negative width or height")
    say("empty-box", geometry.empty, "[{box}] has no width or no height")
    say("box-outside", geometry.outside, "[{box}] lies outside its image of {size}")
    normalised, xyxy = geometry.maybe_normalised, geometry.maybe_xyxy
    positive = int(geometry.positive.sum())
    if positive >= GUESSED_FROM and int(normalised.sum()) >= positive / 2:
        message = (
            f"{int(normalised.sum())} of {positive} boxes have all four numbers inside 0…1, as if they were parts of "
            "the image (a guess from the numbers); COCO has the pixels of the top left corner, width and height"
        )
        faults.append(Fault("boxes-normalised", message, source))
    else:
        say("box-maybe-normalised", normalised, "[{box}] has numbers inside 0…1 alone: parts of the image? (a guess)")
    whole_file = _xyxy_fault(geometry, areas, source)
    faults += whole_file
    if not any(fault.handling == "fatal" for fault in whole_file):
        text = "[{box}] sticks out of its image of {size}, and would fit as x1, y1, x2, y2 (a guess)"
        say("box-maybe-xyxy", xyxy, text)
    say(
        "box-partly-outside",
        np.logical_and(geometry.partly_outside, ~xyxy),
        "[{box}] reaches over the edge of its image of {size}",
    )
    say("tiny-box", geometry.tiny, f"[{{box}}] is {TINY_PX} px or less either way: a stray click?")
    masked: Mask = np.array([bool(annotation.get("segmentation")) for annotation in annotations])
    for row, message in _wrong_areas(areas, geometry, masked=masked, crowd=crowd):
        faults.append(Fault("area-contradicts-box", message, source, **place(row)))
    for row, first, iou in sorted(_duplicates(annotations, boxes, geometry.positive & ~crowd)):
        other = place(first)["entry"] or f"annotation {annotations[first]['id']}"
        message = f"the class and the box of {other} once more (IoU {iou:.2f})"
        faults.append(Fault("duplicate-box", message, source, **place(row)))
    say("crowd", crowd, "a region of many objects (iscrowd)")
    usable = geometry.positive & ~geometry.outside
    return {number: numbered[number] for number, kept in zip(numbers, usable, strict=True) if kept}, faults


class _Geometry:
    """Boxes [N, 4] x, y, w, h against the sizes [N, 2] of their images; answers are bool [N] unless they say else."""

    def __init__(self, boxes: Floats, limits_wh: Floats) -> None:
        self._limits_wh = limits_wh
        self._x1y1, self._wh = boxes[:, :2], boxes[:, 2:]
        self._x2y2 = self._x1y1 + self._wh
        self.negative: Mask = np.asarray((self._wh < 0).any(axis=1))
        # As training holds them: in float32, the sides of a very small box can be nothing.
        nothing = self._x2y2.astype(np.float32) <= self._x1y1.astype(np.float32)  # [N, 2]
        self.empty: Mask = np.logical_and(~self.negative, nothing.any(axis=1))
        self.positive: Mask = ~(self.negative | self.empty)
        clipped = clip_boxes(boxes, limits_wh)
        away = (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
        self.outside: Mask = self.positive & away
        over = ((self._x1y1 < -EDGE_PX) | (self._x2y2 > limits_wh + EDGE_PX)).any(axis=1)
        self.partly_outside: Mask = self.positive & ~away & over
        self._fits_as_xyxy = (
            (self._x1y1 >= -EDGE_PX) & (self._wh > self._x1y1) & (self._wh <= limits_wh + EDGE_PX)
        ).all(axis=1)

    @property
    def maybe_normalised(self) -> Mask:
        inside = (self._x1y1 >= 0).all(axis=1) & (self._x1y1 <= NEARLY_1).all(axis=1)
        inside &= (self._wh <= NEARLY_1).all(axis=1)  # not their sum: YOLO's first two numbers are the centre
        return self.positive & inside & (self._limits_wh >= LEAST_SIDE_PX).all(axis=1)

    @property
    def tiny(self) -> Mask:
        small = (self._wh <= TINY_PX).all(axis=1)
        return self.positive & ~self.outside & small & ~self.maybe_normalised

    @property
    def maybe_xyxy(self) -> Mask:
        visible_wh = np.clip(np.minimum(self._x2y2, self._limits_wh) - np.maximum(self._x1y1, 0), 0, None)
        far = visible_wh.prod(axis=1) < LEAST_VISIBLE * self._wh.prod(axis=1)
        return self.partly_outside & far & self._fits_as_xyxy

    @property
    def fits_as_xyxy(self) -> Mask:
        return self.positive & self._fits_as_xyxy

    def areas(self) -> Floats:
        """Areas [N], read as x, y, w, h."""
        area: Floats = self._wh.prod(axis=1)
        return area

    def areas_as_xyxy(self) -> Floats:
        """Areas [N], read as x1, y1, x2, y2."""
        area: Floats = (self._wh - self._x1y1).prod(axis=1)
        return area


def _xyxy_fault(geometry: _Geometry, areas: Floats, source: str) -> list[Fault]:
    """The fault of a file whose boxes are x1, y1, x2, y2, by their areas [N] (NaN: not given) or by how they lie.

    Of true sizes, hardly twenty boxes all fit: most widths are less than their x.
    """
    positive, fitting = int(geometry.positive.sum()), int(geometry.fits_as_xyxy.sum())
    if positive < GUESSED_FROM or fitting < 0.99 * positive:
        return []
    given = geometry.positive & ~np.isnan(areas)
    agreeing, contradicting = (
        int((_same_area(areas, read) & given).sum()) for read in (geometry.areas_as_xyxy(), geometry.areas())
    )
    sticking_out = int(geometry.maybe_xyxy.sum())
    if given.any() and agreeing >= 0.99 * given.sum() and contradicting < 0.5 * given.sum():
        why = "their areas are those of x1, y1, x2, y2"
    elif 4 * sticking_out >= positive:
        why = f"{sticking_out} stick far out of their image as x, y, width, height (so this is a guess)"
    elif positive >= SUSPECTED_FROM:
        message = (
            f"{fitting} of {positive} boxes would fit as x1, y1, x2, y2 as well, which is rare (a guess): look at some"
        )
        return [Fault("box-maybe-xyxy", message, source)]
    else:
        return []
    message = (
        f"{fitting} of {positive} boxes fit as x1, y1, x2, y2, and {why}; COCO has [x, y, width, height]: subtract x1 "
        "and y1 from the last two"
    )
    return [Fault("boxes-xyxy", message, source)]


def _same_area(areas: Floats, expected: Floats) -> Mask:
    return np.asarray(np.abs(areas - expected) <= AREA_TOLERANCE * np.abs(expected) + 1)


def _wrong_areas(areas: Floats, geometry: _Geometry, *, masked: Mask, crowd: Mask) -> Iterator[tuple[int, str]]:
    """Areas [N] (NaN: not given) that no object in the box can have.

    An annotation without a mask should have its box's area. Where most of a file's do not, its masks were taken away
    and the areas are theirs; then only what no mask can have is said.
    """
    whole = geometry.areas()
    given = ~np.isnan(areas) & geometry.positive
    same = _same_area(areas, whole)
    maskless = given & ~masked
    exact = maskless & (2 * (maskless & same).sum() >= maskless.sum())
    thin = ~crowd & (areas < LEAST_MASK * whole)  # a crowd may be few pixels, far apart
    wrong = given & ~same & (exact | (areas <= 0) | thin | (areas > whole))
    for row in np.flatnonzero(wrong).tolist():
        yield row, f"area {areas[row]:g}, while its box has {whole[row]:g}; COCOeval sorts by it into small and large"


def _duplicates(annotations: Sequence[Entry], boxes: Floats, chosen: Mask) -> Iterator[tuple[int, int, float]]:
    """Boxes [N, 4] of one image and class that are nearly the same: their row, that of the first, and their IoU."""
    rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in np.flatnonzero(chosen).tolist():
        rows_of[annotations[row]["image_id"], annotations[row]["category_id"]].append(row)
    by_length: dict[int, list[list[int]]] = defaultdict(list)  # to compare many groups in one go
    for rows in rows_of.values():
        by_length[len(rows)].append(rows)
    by_length.pop(1, None)
    for length, groups in by_length.items():
        step = max(1, PAIRS_AT_ONCE // length**2)
        for start in range(0, len(groups), step):
            yield from _same_in_groups(np.array(groups[start : start + step]), boxes)


def _same_in_groups(rows: IntArray, boxes: Floats) -> Iterator[tuple[int, int, float]]:
    """As `_duplicates`, among the boxes of each of G groups of L rows [G, L], some columns at a time."""
    groups, length = rows.shape
    step = max(1, PAIRS_AT_ONCE // (groups * length))
    for start in range(0, length, step):
        later = np.arange(start, min(start + step, length))
        overlaps = _iou(boxes[rows], boxes[rows[:, later]])  # [G, L, C]
        same = (overlaps >= SAME_IOU) & (np.arange(length)[:, None] < later)
        for group, column in zip(*np.nonzero(same.any(axis=1)), strict=True):
            first = int(same[group, :, column].argmax())
            yield int(rows[group, later[column]]), int(rows[group, first]), float(overlaps[group, first, column])


def _iou(some: Floats, others: Floats) -> Floats:
    """IoU [G, A, B] of boxes [G, A, 4] and [G, B, 4], x, y, w, h."""
    top_left = np.maximum(some[:, :, None, :2], others[:, None, :, :2])
    bottom_right = np.minimum(
        some[:, :, None, :2] + some[:, :, None, 2:], others[:, None, :, :2] + others[:, None, :, 2:]
    )
    overlaps = np.clip(bottom_right - top_left, 0, None).prod(axis=-1)
    areas, other_areas = (boxes[..., 2:].prod(axis=-1) for boxes in (some, others))
    iou: Floats = overlaps / (areas[:, :, None] + other_areas[:, None] - overlaps)
    return iou


def clip_boxes(boxes_xywh: Floats, limits_wh: NDArray[Any]) -> FloatArray:
    """[N, 4] xywh to xyxy inside each box's own image [N, 2]."""
    top_left = np.clip(boxes_xywh[:, :2], 0, limits_wh)
    bottom_right = np.clip(boxes_xywh[:, :2] + boxes_xywh[:, 2:], 0, limits_wh)
    return np.concatenate([top_left, bottom_right], axis=1).astype(np.float32)


def _place(number: int, annotation: Entry, image: Entry) -> dict[str, Any]:
    own = annotation.get("id")
    return {
        "entry": f"annotations[{number}]" if own is None else None,
        "annotation_id": own,
        "image_id": image["id"],
        "file": image["file_name"],
    }


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
