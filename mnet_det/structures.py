"""The nouns that every part of the package speaks: numpy and the standard library only.

`Target`, `Batch` and `Candidates` also carry torch tensors (in training) without importing torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Image = NDArray[np.uint8]
"""RGB pixels, uint8 [H, W, 3]."""


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Detections:
    """What a detector found in one image, best score first.

    Attributes:
        boxes_xyxy: float32 [N, 4], pixels of the image it was asked about.
        scores: float32 [N], probabilities.
        labels: int64 [N], 0…K-1, indexing `class_names`.
    """

    boxes_xyxy: FloatArray
    scores: FloatArray
    labels: IntArray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        """Select with a boolean mask, an index array or a slice."""
        return Detections(self.boxes_xyxy[index], self.scores[index], self.labels[index])

    @classmethod
    def empty(cls) -> Detections:
        """No detections, in arrays of the right shape and type."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Resize:
    """How one image became network pixels, and the way back.

    The image fills the network's `valid_hw` top-left corner: all of it when stretched, part of it when letterboxed
    (the rest is padding).
    """

    source_hw: tuple[int, int]
    valid_hw: tuple[int, int]
    network_hw: tuple[int, int]

    @property
    def scale_xyxy(self) -> FloatArray:
        """Factors float32 [4] from source pixels to network pixels."""
        y, x = (valid / source for valid, source in zip(self.valid_hw, self.source_hw, strict=True))
        return np.array([x, y, x, y], np.float32)

    def apply(self, boxes_xyxy: FloatArray) -> FloatArray:
        """Boxes [N, 4] from source pixels to network pixels."""
        return (boxes_xyxy * self.scale_xyxy).astype(np.float32)

    def undo(self, detections: Detections) -> Detections:
        """Detections from network pixels to source pixels, clipped; those centred in padding are dropped."""
        boxes_xyxy = detections.boxes_xyxy
        centres_xy = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        valid_h, valid_w = self.valid_hw
        if self.valid_hw != self.network_hw:
            inside = (centres_xy[:, 0] < valid_w) & (centres_xy[:, 1] < valid_h)
            detections, boxes_xyxy = detections[inside], boxes_xyxy[inside]
        source_h, source_w = self.source_hw
        limits = np.array([source_w, source_h, source_w, source_h], np.float32)
        boxes_xyxy = np.clip(boxes_xyxy / self.scale_xyxy, 0, limits)
        return Detections(boxes_xyxy.astype(np.float32), detections.scores, detections.labels)


@dataclass(frozen=True)
class Target:
    """The truth for one training image, in network pixels.

    Attributes:
        boxes_xyxy: float32 [M, 4].
        labels: int64 [M], 0…K-1.
        ignored_xyxy: float32 [I, 4], crowd regions: neither object nor background.
        valid_hw: what is image and not padding.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    ignored_xyxy: Tensor
    valid_hw: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Training images, still uint8 (normalising is the detector's first layer), and their truth.

    Attributes:
        images: uint8 [B, 3, H, W].
        targets: one per image.
        image_ids: the data set's own ids.
    """

    images: Tensor
    targets: list[Target]
    image_ids: list[int] = field(default_factory=list)

    def to(self, device: Any) -> Batch:
        """The same batch on another device, in four transfers, however many the images.

        They wait for nothing where the images are pinned, and only there: what MPS copies, or a GPU sends to the CPU,
        could be read too early or too late (pytorch/pytorch#189690). The tensors of the targets are then views of one.
        """
        pinned = self.images.is_pinned()
        boxes_xyxy = _moved([target.boxes_xyxy for target in self.targets], device, pinned=pinned)
        labels = _moved([target.labels for target in self.targets], device, pinned=pinned)
        ignored_xyxy = _moved([target.ignored_xyxy for target in self.targets], device, pinned=pinned)
        valid_hws = [target.valid_hw for target in self.targets]
        return Batch(
            self.images.to(device, non_blocking=pinned),
            [Target(*parts) for parts in zip(boxes_xyxy, labels, ignored_xyxy, valid_hws, strict=True)],
            self.image_ids,
        )


def _moved(tensors: Sequence[Tensor], device: Any, *, pinned: bool) -> Sequence[Tensor]:
    """Tensors [n, …] on another device, in one transfer; `pinned`, where a GPU can fetch them while others work."""
    if not tensors:
        return []
    lengths = [len(tensor) for tensor in tensors]
    joined = tensors[0].new_empty((sum(lengths), *tensors[0].shape[1:]), pin_memory=pinned)
    for place, tensor in zip(joined.split(lengths), tensors, strict=True):
        place.copy_(tensor)
    return joined.to(device, non_blocking=pinned).split(lengths)


class Candidates(NamedTuple):
    """Every scored box, before threshold and NMS, torch or numpy. Shapes are static.

    A NamedTuple because `torch.export` takes no dataclass.

    Attributes:
        boxes_xyxy: float32 [B, N, R, 4], network pixels; R is 1 (shared by the classes) or K.
        scores: float32 [B, N, K], probabilities.
    """

    boxes_xyxy: Any
    scores: Any
