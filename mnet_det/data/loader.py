"""Batches for training: seeded, shuffled, augmented in worker processes, uint8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mnet_det.data.augment import Augment, Preset, Sample
from mnet_det.data.coco import CocoData
from mnet_det.errors import DataError
from mnet_det.preprocess import ResizeMode
from mnet_det.structures import Batch, Target

Draw = tuple[int, int]
"""Epoch and image index. A sample is a function of these and the seed alone, so workers hold no state to save."""


class TrainingSamples(Dataset[tuple[int, Sample]]):
    """Image id and augmented sample of a `Draw`."""

    def __init__(self, data: CocoData, augment: Augment, *, seed: int) -> None:
        self._data = data
        self._augment = augment
        self._seed = seed

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, draw: Draw) -> tuple[int, Sample]:
        """Read and augment one image.

        Raises:
            DataError: the image cannot be used; the message names the file.
        """
        epoch, index = draw
        seed = int(np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)[0])
        image, truth = self._data.image(index), self._data.truth(index)
        try:
            sample = self._augment(image, truth, seed=seed)
        except (ValueError, cv2.error) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self._data.path(index)}: cannot be augmented ({reason})") from error
        return int(self._data.image_ids[index]), sample


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
    """torch's loader, but a fault in a worker stays the one line it is."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own iterator class
        """Batches, one after another.

        Raises:
            DataError: an image cannot be used; the message names the file.
        """
        try:
            yield from super().__iter__()
        except DataError as error:  # from a worker, its text is a whole traceback
            message = str(error).strip().rpartition(f"{DataError.__module__}.{DataError.__name__}: ")[2]
            raise DataError(message) from error


def make_loader(
    data: CocoData,
    batches: Sampler[list[Draw]],
    *,
    preset: Preset,
    network_hw: tuple[int, int],
    mode: ResizeMode,
    seed: int,
    workers: int,
    pin_memory: bool = False,
) -> Batches:
    """Batches of `data` in the order of `batches`."""
    samples = TrainingSamples(data, Augment(preset, network_hw=network_hw, mode=mode), seed=seed)
    return Batches(
        samples,  # type: ignore[arg-type]  # collate turns the samples into a Batch
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread_each,
    )


def collate(samples: Sequence[tuple[int, Sample]]) -> Batch:
    """Samples of one size into a `Batch`."""
    targets = [
        Target(
            boxes_xyxy=torch.from_numpy(sample.boxes_xyxy),
            labels=torch.from_numpy(sample.labels),
            ignored_xyxy=torch.from_numpy(sample.ignored_xyxy),
            valid_hw=sample.valid_hw,
        )
        for _, sample in samples
    ]
    images = torch.from_numpy(np.stack([sample.image for _, sample in samples]))
    return Batch(images, targets, [image_id for image_id, _ in samples])


def _one_thread_each(worker: int) -> None:
    """Workers are the parallelism; threads inside them would only fight over the cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
