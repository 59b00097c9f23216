"""Batches for training: seeded, shuffled, augmented in worker processes, uint8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from mnet_det.data.augment import Augment, Preset, Sample
from mnet_det.data.coco import CocoData, Truth
from mnet_det.data.faults import Fault
from mnet_det.data.pixels import DecodedPixels, Pixels
from mnet_det.errors import DataError, ImageError
from mnet_det.preprocess import ResizeMode
from mnet_det.structures import Batch, Image, Target

Draw = tuple[int, int]
"""Epoch and image index. A sample is a function of these and the seed alone, so workers hold no state to save."""
NO_PIXELS = np.zeros((3, 0, 0), np.uint8)
MOST_TRIES = 100
"""How many random images may be of no use before it is taken for a fault of the whole set."""


@dataclass(frozen=True)
class Drawn:
    """What a draw gave.

    Attributes:
        image_id: of the image that was used.
        sample: it, augmented.
        left_out: what was wrong with those before it, which could not be used.
    """

    image_id: int
    sample: Sample
    left_out: list[Fault] = field(default_factory=list)

    def without_pixels(self) -> Drawn:
        """All but the image."""
        return replace(self, sample=replace(self.sample, image=NO_PIXELS))


class TrainingSamples(Dataset[Drawn]):
    """The augmented sample of a `Draw`; another image takes the place of one that cannot be used."""

    def __init__(self, data: CocoData, augment: Augment, *, seed: int, pixels: Pixels | None = None) -> None:
        """Samples of `data`, with the pixels that `pixels` gives, or else those of its files."""
        self._data = data
        self._augment = augment
        self._seed = seed
        self._pixels = pixels or data.image

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, draw: Draw) -> Drawn:
        """Read and augment one image.

        Raises:
            DataError: an annotation breaks the augmentation, or many images in a row cannot be used.
        """
        epoch, _ = draw
        left_out: dict[int, Fault] = {}
        for index in self._candidates(draw):
            try:
                image = self._pixels(index)
            except ImageError as error:
                left_out[index] = self._data.fault(index, error)
            else:
                sample = self._sample(epoch, index, image)
                return Drawn(int(self._data.image_ids[index]), sample, list(left_out.values()))
        first, *others = left_out.values()
        raise DataError(f"{first}" + (f"; nor can {len(others)} others that were tried in its place" if others else ""))

    def _candidates(self, draw: Draw) -> Iterator[int]:
        """The image that was drawn, then others at random; which, follows from seed and draw."""
        yield draw[1]
        yield from np.random.default_rng([self._seed, *draw]).integers(len(self), size=MOST_TRIES).tolist()

    def _sample(self, epoch: int, index: int, image: Image) -> Sample:
        seed = int(np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)[0])
        truth = _scaled(self._data.truth(index), self._data.image_hws[index], image)
        try:
            return self._augment(image, truth, seed=seed)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self._place(index, image, truth, seed)}: cannot be augmented ({reason})") from error

    def _place(self, index: int, image: Image, truth: Truth, seed: int) -> str:
        """The file, and the annotation that is to blame: the first without which it goes well up to there."""
        place = f"{self._data.path(index)}: image {self._data.image_ids[index]}"
        for count in range(len(truth.labels) + 1):
            first = Truth(truth.boxes_xyxy[:count], truth.labels[:count], truth.crowd[:count])
            try:
                self._augment(image, first, seed=seed)
            except Exception:  # noqa: BLE001  # whatever it is, it is this box's
                annotation_id = self._data.annotation_ids(index)[count - 1] if count else 0
                return f"{place}, annotation {annotation_id}" if annotation_id else place
        return place


def _scaled(truth: Truth, annotated_hw: np.ndarray, image: Image) -> Truth:
    """Boxes in the pixels of an image that was made smaller."""
    height, width = annotated_hw
    if image.shape[:2] == (height, width):
        return truth
    y, x = image.shape[0] / height, image.shape[1] / width
    return replace(truth, boxes_xyxy=truth.boxes_xyxy * np.array([x, y, x, y], np.float32))


class EpochBatches(Sampler[list[Draw]]):
    """Batches of draws for one epoch after another.

    Each epoch visits the images in its own order, a function of seed and epoch. Every batch is full, since batch norm
    cannot work on one value: an incomplete last batch is left out, and a set smaller than a batch is repeated.
    """

    def __init__(self, num_images: int, *, batch_size: int, seed: int, passes: int = 1) -> None:
        """Batches over `num_images`; an epoch visits each of them `passes` times."""
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._passes = passes
        self.epoch = 0

    def __len__(self) -> int:
        return max(1, self._num_images * self._passes // self._batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng([self._seed, self.epoch])
        order = np.concatenate([rng.permutation(self._num_images) for _ in range(self._passes)])
        order = np.resize(order, len(self) * self._batch_size)
        for batch in order.reshape(-1, self._batch_size):
            yield [(self.epoch, int(index)) for index in batch]


class ScoringBatches(Sampler[list[Draw]]):
    """Every image once, in order; the last batch may be smaller."""

    def __init__(self, num_images: int, *, batch_size: int) -> None:
        self._num_images = num_images
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-self._num_images // self._batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for start in range(0, self._num_images, self._batch_size):
            yield [(0, index) for index in range(start, min(start + self._batch_size, self._num_images))]


class Batches(DataLoader[Batch]):
    """torch's loader, but a fault in a worker stays the one line it is, and images of no use are told.

    Attributes:
        left_out: images that could not be used so far, by id.
        say: called once with each of them.
    """

    left_out: dict[int, Fault]
    say: Callable[[Fault], None]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own iterator class
        """Batches, one after another.

        Raises:
            DataError: an annotation breaks the augmentation, or hardly any image can be used.
        """
        try:
            for images, draws in super().__iter__():
                for fault in (fault for drawn in draws for fault in drawn.left_out):
                    self._leave_out(fault)
                yield make_batch(images, draws)
        except DataError as error:  # from a worker, its text is a whole traceback
            message = str(error).strip().rpartition(f"{DataError.__module__}.{DataError.__name__}: ")[2]
            raise DataError(message) from error

    def _leave_out(self, fault: Fault) -> None:
        assert fault.image_id is not None
        if fault.image_id in self.left_out:
            return
        self.left_out[fault.image_id] = fault
        self.say(fault)
        images = len(self.dataset)  # type: ignore[arg-type]  # ours has a length
        if 2 * len(self.left_out) > images:
            raise DataError(f"{len(self.left_out)} of {images} images cannot be used, such as {fault}")


def make_loader(
    data: CocoData,
    batches: Sampler[list[Draw]],
    *,
    preset: Preset,
    network_hw: tuple[int, int],
    mode: ResizeMode,
    seed: int,
    workers: int,
    pixels: Pixels | None = None,
    say: Callable[[Fault], None] = lambda fault: None,
    pin_memory: bool = False,
) -> Batches:
    """Batches of `data` in the order of `batches`.

    Args:
        data: images and boxes.
        batches: which of them, epoch after epoch.
        preset: how they are augmented.
        network_hw: size of the images in a batch.
        mode: how they are brought to it.
        seed: of what is random.
        workers: processes that read and augment; 0 to do it in this one.
        pixels: where the images of `data` come from; their files unless given.
        say: called once with each image that cannot be used, and so is left out.
        pin_memory: let batches lie where a GPU can fetch them.

    Raises:
        ValueError: the pixels are of other data.
    """
    if pixels is not None and pixels.data is not data:
        raise ValueError("pixels are of other data than those that are to be loaded")
    pixels = pixels or DecodedPixels(data, preset=preset, network_hw=network_hw, mode=mode)
    augment = Augment(preset, network_hw=network_hw, mode=mode)
    loader = Batches(
        TrainingSamples(data, augment, seed=seed, pixels=pixels),  # type: ignore[arg-type]  # collate makes a Batch
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread_each,
    )
    loader.left_out, loader.say = {}, say
    return loader


def collate(draws: Sequence[Drawn]) -> tuple[torch.Tensor, list[Drawn]]:
    """Images of one size as one tensor uint8 [B, 3, H, W], and all else that was drawn.

    The rest stays numpy on its way out of a worker: each tensor would take a file of shared memory of its own.
    """
    images = default_collate([torch.from_numpy(drawn.sample.image) for drawn in draws])  # into shared memory at once
    return images, [drawn.without_pixels() for drawn in draws]


def make_batch(images: torch.Tensor, draws: Sequence[Drawn]) -> Batch:
    """What `collate` made, as a `Batch`."""
    targets = [
        Target(
            boxes_xyxy=torch.from_numpy(sample.boxes_xyxy),
            labels=torch.from_numpy(sample.labels),
            ignored_xyxy=torch.from_numpy(sample.ignored_xyxy),
            valid_hw=sample.valid_hw,
        )
        for sample in (drawn.sample for drawn in draws)
    ]
    return Batch(images, targets, [drawn.image_id for drawn in draws])


def _one_thread_each(worker: int) -> None:
    """Workers are the parallelism; threads inside them would only fight over the cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
