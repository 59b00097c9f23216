"""Whether a detector's anchors reach the boxes of a data set, and which settings would."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_det.config import Config, ModelConfig
from mnet_det.data.coco import CocoData
from mnet_det.data.faults import Fault
from mnet_det.engine.start import plain
from mnet_det.errors import ConfigError
from mnet_det.models import build_detector, inception_v2, mobilenet_v1, tap_names
from mnet_det.models.anchors import AnchorGenerator, RegionAnchors
from mnet_det.models.faster_rcnn import FasterRCNN
from mnet_det.models.ssd import SSD
from mnet_det.preprocess import plan_resize
from mnet_det.structures import IntArray

Float64Array = NDArray[np.float64]

REACHED_IOU = 0.5
"""Overlap from which on an anchor reaches a box, as SSD matches them. The first stage of Faster R-CNN matches from 0.7
on and takes less for background only below 0.3; between them, 0.5 is the same measure for every head."""
MOST_UNREACHED = 0.05
"""Share of boxes out of reach that is nothing to report."""
WORTHWHILE = 0.8
"""Settings are proposed that leave at most this part of the boxes that are out of reach without them."""
SIZES_PX = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""COCO's, from an area to the next, in pixels of the original image."""
WORST_CLASSES = 3
SEARCH_BOXES = 2000
"""Boxes, drawn at random, on which settings are compared; what is proposed is then measured on all."""
BLOCK = 2048
"""Boxes that are compared at a time: what is computed of them stays in the processor's cache."""
SMALLEST_SCALES = (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.25, 0.3, 0.4)
LARGEST_SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SMALLEST_SIZE_PX = 4.0
"""Of the anchors of region proposals that are tried; in steps of half an octave up to the input's longer side."""
RHO_FACTORS = (1.5, 2.0)
TAP_STRIDES = {
    "mobilenet_v1": {str(number): stride for number, stride in mobilenet_v1.STRIDES.items()},
    "inception_v2": inception_v2.STRIDES,
}
"""Of the backbones for which a finer tap is tried."""


@dataclass(frozen=True)
class Count:
    """Some boxes, and how many of them no anchor reaches."""

    boxes: int
    unreached: int

    @property
    def share(self) -> float:
        """Part of the boxes that is out of reach, 0 where there are no boxes."""
        return self.unreached / self.boxes if self.boxes else 0.0

    def to_json(self) -> dict[str, Any]:
        """Share out of reach (null where there are no boxes) and number of boxes."""
        return {"unreached": self.share if self.boxes else None, "boxes": self.boxes}


@dataclass(frozen=True)
class Proposal:
    """Other settings of `model`, and what they leave out of reach.

    Attributes:
        settings: those that change.
        left: the boxes, and how many are still out of reach.
        cost: about how many times the multiply-adds a larger input takes; what a finer map takes is not counted.
    """

    settings: Mapping[str, Any]
    left: Count
    cost: float = 1.0

    @property
    def lines(self) -> str:
        """The settings as lines of a config."""
        return "\n".join(["model:", *(f"  {key}: {_as_yaml(value)}" for key, value in self.settings.items())])

    @property
    def words(self) -> str:
        """The settings as words of a command line."""
        return " ".join(f"model.{key}={plain(value)}" for key, value in self.settings.items())

    def to_json(self) -> dict[str, Any]:
        """The lines, the share they leave out of reach, and what they cost."""
        return {"lines": self.lines, "unreached": self.left.share, "times_multiply_adds": self.cost}

    def __str__(self) -> str:
        cost = f" at about {self.cost:.3g} times the multiply-adds" if self.cost > 1 else ""
        return f"{self.words}\nleaves {self.left.share:.1%}{cost}"


@dataclass(frozen=True)
class Reach:
    """How many true boxes some anchor overlaps by `REACHED_IOU` or more.

    A box out of reach is not lost: matching gives each box an anchor of its own. But that one fits badly, and it is
    the only one that learns the box.

    Attributes:
        total: every box but crowd regions.
        by_size: by COCO's sizes, of the box in the original image.
        by_class: by class name.
        proposal: anchors of other sizes, as many as before, so that weights still fit; None where too few boxes are out
            of reach to bother, or other sizes would not help.
        alternatives: where sizes alone do not do, a larger input and a finer map, each with the sizes that go with it.
    """

    total: Count
    by_size: dict[str, Count]
    by_class: dict[str, Count]
    proposal: Proposal | None = None
    alternatives: tuple[Proposal, ...] = ()

    def __str__(self) -> str:
        return f"anchors reach {1 - self.total.share:.1%} of {self.total.boxes} boxes at IoU {REACHED_IOU}"

    def fault(self, source: str) -> Fault | None:
        """What `check` says if more than `MOST_UNREACHED` of the boxes of the file `source` are out of reach."""
        if self.total.share <= MOST_UNREACHED:
            return None
        groups = {name: count for name, count in (self.by_size | self._worst()).items() if count.boxes}
        parts = ", ".join(f"{name} {count.share:.0%} of {count.boxes}" for name, count in groups.items())
        ways = "; or\n".join(map(str, self._ways()))
        mend = f"; on the command line,\n{ways}" if ways else ""
        return Fault(
            "boxes-out-of-reach",
            f"{self.total.share:.1%} of {self.total.boxes} boxes overlap no anchor by {REACHED_IOU} "
            f"({parts}), so each has one badly fitting anchor to learn it{mend}",
            source,
        )

    def to_json(self) -> dict[str, Any]:
        """The part of `mnet-det check --json` that is about anchors; shares are 0…1."""
        return {
            **self.total.to_json(),
            "iou": REACHED_IOU,
            "by_size": {name: count.to_json() for name, count in self.by_size.items()},
            "worst_classes": {name: count.to_json() for name, count in self._worst().items()},
            "proposal": self.proposal.to_json() if self.proposal else None,
            "alternatives": [way.to_json() for way in self.alternatives],
        }

    def _ways(self) -> tuple[Proposal, ...]:
        return self.alternatives if self.proposal is None else (self.proposal, *self.alternatives)

    def _worst(self) -> dict[str, Count]:
        """Of the classes with a larger share out of reach than all, those with the most such boxes, most first."""
        worse = [(name, count) for name, count in self.by_class.items() if count.share > self.total.share]
        return dict(sorted(worse, key=lambda pair: -pair[1].unreached)[:WORST_CLASSES])


def measure_reach(config: Config, data: CocoData, *, propose: bool = True) -> Reach:
    """Compare the boxes of a data set with the anchors of the detector that a config describes.

    Boxes are brought to the network's input as in scoring; that augmentation changes some further (crops enlarge them)
    is left out.

    Args:
        config: the detector, and how images are resized.
        data: all its boxes count but crowd regions.
        propose: look for settings that reach more, if too few boxes are reached; this takes seconds.

    Raises:
        ConfigError: there is no such detector, see `build_detector`.
        MissingPackageError: its backbone is timm's, and timm is not installed.
    """
    objects = _objects_of(data)
    model = config.model
    unreached = best_iou(objects.in_network(model), anchor_maps(model)) < REACHED_IOU
    reach = Reach(
        _count(unreached),
        {
            name: _count(unreached[(objects.areas >= least) & (objects.areas < limit)])
            for name, (least, limit) in SIZES_PX.items()
        },
        {name: _count(unreached[objects.labels == label]) for label, name in enumerate(data.class_names)},
    )
    if not propose or reach.total.share <= MOST_UNREACHED:
        return reach
    proposal, alternatives = _propose(model, objects, reach.total.share)
    return Reach(reach.total, reach.by_size, reach.by_class, proposal, alternatives)


@dataclass(frozen=True)
class AnchorMap:
    """The anchors of one map: some shapes, in the middle of each of the cells that tile the input.

    Attributes:
        shapes_wh: [S, 2] network pixels.
        cell_wh: width and height of a cell, in network pixels.
    """

    shapes_wh: Float64Array
    cell_wh: tuple[float, float]


def anchor_maps(model: ModelConfig) -> list[AnchorMap]:
    """The anchors of the detector that a config describes; it is built without memory for its weights.

    Raises:
        ConfigError: there is no such detector.
        MissingPackageError: its backbone is timm's, and timm is not installed.
    """
    return _anchor_maps(model, _map_hws(model))


def best_iou(boxes_xyxy: Float64Array, maps: Sequence[AnchorMap]) -> Float64Array:
    """The largest overlap [N] of each box [N, 4], centred in the input, with any anchor.

    Of a shape's anchors, the one in the middle of the box's own cell is the nearest in x and in y, so it overlaps
    most: each shape has to be looked at once, however many cells there are.
    """
    if len(boxes_xyxy) > BLOCK:
        starts = range(0, len(boxes_xyxy), BLOCK)
        return np.concatenate([best_iou(boxes_xyxy[start : start + BLOCK], maps) for start in starts])
    best = np.zeros(len(boxes_xyxy))
    top_left, bottom_right = boxes_xyxy.T[:2], boxes_xyxy.T[2:]  # [2, N]
    centres_xy, sides_wh = (top_left + bottom_right) / 2, bottom_right - top_left
    areas = sides_wh[0] * sides_wh[1]
    for anchors in maps:
        cell_wh = np.array(anchors.cell_wh)[:, None]
        offsets_xy = np.abs(centres_xy % cell_wh - cell_wh / 2)
        shapes_wh = anchors.shapes_wh[:, :, None]  # [S, 2, 1]
        shared_wh = np.minimum(np.minimum(sides_wh, shapes_wh), (sides_wh + shapes_wh) / 2 - offsets_xy)  # [S, 2, N]
        np.maximum(shared_wh, 0, out=shared_wh)
        shared = shared_wh[:, 0] * shared_wh[:, 1]  # [S, N]
        overlaps = shared / (areas + shapes_wh.prod(axis=1) - shared)
        np.maximum(best, overlaps.max(axis=0), out=best)
    return best


@dataclass(frozen=True)
class _Objects:
    """All true boxes of a data set but crowd regions.

    Attributes:
        boxes_xyxy: [N, 4], original pixels.
        labels: [N].
        owners: [N], the index of each box's image.
        image_hws: [I, 2].
    """

    boxes_xyxy: Float64Array
    labels: IntArray
    owners: IntArray
    image_hws: IntArray

    @property
    def areas(self) -> Float64Array:
        """Of each box [N], in original pixels."""
        areas: Float64Array = (self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]).prod(axis=1)
        return areas

    def in_network(self, model: ModelConfig) -> Float64Array:
        """The boxes [N, 4] in network pixels."""
        hws, which = np.unique(self.image_hws, axis=0, return_inverse=True)
        scales = [plan_resize((h, w), model.input_hw, model.resize).scale_xyxy for h, w in hws.tolist()]
        return self.boxes_xyxy * np.array(scales, np.float64).reshape(-1, 4)[which.reshape(-1)[self.owners]]

    def sample(self, count: int) -> _Objects:
        """At most `count` of the boxes, always the same ones."""
        if len(self.labels) <= count:
            return self
        drawn = np.random.default_rng(0).choice(len(self.labels), count, replace=False)
        return _Objects(self.boxes_xyxy[drawn], self.labels[drawn], self.owners[drawn], self.image_hws)


def _objects_of(data: CocoData) -> _Objects:
    truths = [data.truth(index) for index in range(len(data))]
    single = [~truth.crowd for truth in truths]
    owners = np.repeat(np.arange(len(data)), [int(kept.sum()) for kept in single])
    boxes_xyxy = [truth.boxes_xyxy[kept] for truth, kept in zip(truths, single, strict=True)]
    labels = [truth.labels[kept] for truth, kept in zip(truths, single, strict=True)]
    return _Objects(np.concatenate(boxes_xyxy).astype(np.float64), np.concatenate(labels), owners, data.image_hws)


def _as_yaml(value: Any) -> str:
    """A number, a name or a list of them, on one line."""
    return f"[{', '.join(map(_as_yaml, value))}]" if isinstance(value, list) else plain(value)


def _count(unreached: NDArray[np.bool_]) -> Count:
    return Count(len(unreached), int(unreached.sum()))


def _map_hws(model: ModelConfig) -> list[tuple[int, int]]:
    """Height and width, in cells, of each map that has anchors."""
    with torch.device("meta"):
        detector = build_detector(model, num_classes=1).eval()
        assert isinstance(detector, SSD | FasterRCNN)
        with torch.no_grad():
            maps = detector.backbone(torch.zeros((1, 3, *model.input_hw)))
            if isinstance(detector, SSD):
                for extra in detector.extras:
                    maps.append(extra(maps[-1]))
            elif detector.fpn is not None:
                maps = list(detector.fpn({str(number): features for number, features in enumerate(maps)}).values())
    return [(features.shape[2], features.shape[3]) for features in maps]


def _anchor_maps(model: ModelConfig, map_hws: Sequence[tuple[int, int]]) -> list[AnchorMap]:
    generator: AnchorGenerator | RegionAnchors
    if model.head == "faster_rcnn":
        generator = RegionAnchors(model.anchor_sizes)
        per_cell = (generator.num_per_cell,) * len(map_hws)
    else:
        generator = AnchorGenerator(
            num_maps=len(map_hws),
            scales=model.anchor_scales,
            reduce_boxes_in_lowest_layer=model.reduce_boxes_in_lowest_layer,
        )
        per_cell = generator.num_per_cell
    one_cell_each = generator([(1, 1)] * len(map_hws), model.input_hw).astype(np.float64)
    shapes_wh = np.split(one_cell_each[:, 2:] - one_cell_each[:, :2], np.cumsum(per_cell)[:-1])
    height, width = model.input_hw
    return [
        AnchorMap(shapes, (width / columns, height / rows))
        for shapes, (rows, columns) in zip(shapes_wh, map_hws, strict=True)
    ]


def _propose(model: ModelConfig, objects: _Objects, unreached: float) -> tuple[Proposal | None, tuple[Proposal, ...]]:
    """Other sizes if they are worthwhile; where too many boxes would still be out of reach, what else is.

    Args:
        model: as it is now.
        objects: all boxes.
        unreached: the share of them that is out of reach now.
    """
    sizes = _improve(model, model, objects)
    proposal = sizes if sizes.left.share <= WORTHWHILE * unreached else None
    left = unreached if proposal is None else sizes.left.share
    if left <= MOST_UNREACHED:
        return proposal, ()
    larger = _variants(model, objects, [{"rho": round(model.rho * factor, 3)} for factor in RHO_FACTORS])
    enough = [way for way in larger if way.left.share <= MOST_UNREACHED]
    taps = _finer_taps(model)
    finer = [] if taps is None else _variants(model, objects, [{"taps": taps}])
    ways = [*(enough or larger[::-1])[:1], *finer]  # the smallest input that is enough, or the largest there is
    return proposal, tuple(way for way in ways if way.left.share <= WORTHWHILE * left)


def _variants(model: ModelConfig, objects: _Objects, changes: Sequence[Mapping[str, Any]]) -> list[Proposal]:
    """The best anchors with each of some changes of other settings, but for those that the backbone cannot do."""
    found = []
    for change in changes:
        with suppress(ConfigError):
            found.append(_improve(model.model_copy(update=change), model, objects))
    return found


def _improve(model: ModelConfig, before: ModelConfig, objects: _Objects) -> Proposal:
    """The sizes of anchors with which the fewest boxes are out of reach, then those that overlap them most."""
    map_hws = _map_hws(model)
    sampled = objects.sample(SEARCH_BOXES).in_network(model)

    def rank(candidate: ModelConfig) -> tuple[int, float]:
        overlaps = best_iou(sampled, _anchor_maps(candidate, map_hws))
        return int((overlaps < REACHED_IOU).sum()), -float(overlaps.mean())

    best = min(_other_sizes(model), key=rank)
    unreached = best_iou(objects.in_network(best), _anchor_maps(best, map_hws)) < REACHED_IOU
    ours, theirs = best.model_dump(mode="json"), before.model_dump(mode="json")
    changed = {key: value for key, value in ours.items() if value != theirs[key]}
    return Proposal(changed, _count(unreached), (best.rho / before.rho) ** 2)


def _other_sizes(model: ModelConfig) -> Iterator[ModelConfig]:
    """The same detector with anchors of its own and of other sizes, as many of them."""
    yield model
    if model.head != "faster_rcnn":
        for smallest, largest in itertools.product(SMALLEST_SCALES, LARGEST_SCALES):
            if smallest < largest:
                yield model.model_copy(update={"anchor_scales": (smallest, largest)})
        return
    octaves = np.log2(max(model.input_hw) / SMALLEST_SIZE_PX)
    ends = SMALLEST_SIZE_PX * 2 ** np.arange(0, octaves, 0.5)
    steps = [np.geomspace(*pair, len(model.anchor_sizes)).round() for pair in itertools.combinations(ends, 2)]
    for sizes in sorted({tuple(row.tolist()) for row in steps if (np.diff(row) > 0).all()}):
        yield model.model_copy(update={"anchor_sizes": tuple(map(int, sizes))})


def _finer_taps(model: ModelConfig) -> tuple[int | str, ...] | None:
    """The taps with one more in front, at half the stride; None where the head or we know of none."""
    strides = TAP_STRIDES.get(model.backbone)
    if strides is None or (model.head == "faster_rcnn" and not model.fpn):
        return None
    taps = tap_names(model)
    finer = [name for name, stride in strides.items() if 2 * stride == strides[taps[0]]]
    return tuple(int(name) if name.isdigit() else name for name in (finer[-1], *taps)) if finer else None
