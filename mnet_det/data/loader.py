"""Batches for training: seeded, shuffled, augmented in worker processes, uint8."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from mnet_det.data.augment import Augment, Preset, Sample
from mnet_det.data.coco import CocoData, Truth
from mnet_det.data.faults import Fault
from mnet_det.data.mix import Mix, make_mosaic, mix_up
from mnet_det.data.pixels import DecodedPixels, Pixels, wanted_hw
from mnet_det.errors import DataError, ImageError
from mnet_det.preprocess import ResizeMode
from mnet_det.structures import Batch, Image, Target

Draw = tuple[int, int]
"""Epoch and image index. A sample is a function of these and the seed alone, so workers hold no state to save."""
NO_PIXELS = np.zeros((3, 0, 0), np.uint8)
MOST_DEATHS = 3
"""How often workers may be killed without a batch in between."""
MIXING = 1
"""What is random about mixing has a seed of its own, so that the image alone is what it is without it."""
MOST_TRIES = 100
"""How many random images may be of no use before it is taken for a fault of the whole set."""


@dataclass(frozen=True)
class Picture:
    """An image as it was read, RGB uint8 [H, W, 3], and what is marked in it, in its pixels."""

    index: int
    image: Image
    truth: Truth


@dataclass(frozen=True)
class Drawn:
    """What a draw gave.

    Attributes:
        image_id: of the image that was used; of several that were mixed, the one that was drawn.
        sample: it, augmented.
        left_out: what was wrong with those that could not be used.
    """

    image_id: int
    sample: Sample
    left_out: list[Fault] = field(default_factory=list)

    def without_pixels(self) -> Drawn:
        """All but the image."""
        return replace(self, sample=replace(self.sample, image=NO_PIXELS))


class TrainingSamples(Dataset[Drawn]):
    """The augmented sample of a `Draw`; another image takes the place of one that cannot be used."""

    def __init__(
        self, data: CocoData, augment: Augment, *, seed: int, pixels: Pixels | None = None, mix: Mix | None = None
    ) -> None:
        """Samples of `data`, with the pixels that `pixels` gives, or else those of its files."""
        self._data = data
        self._augment = augment
        self._seed = seed
        self._pixels = pixels or data.image
        self._mix = mix

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, draw: Draw) -> Drawn:
        """Read and augment one image, mixed with others where it is to be.

        Raises:
            DataError: an annotation breaks the augmentation, or many images in a row cannot be used.
        """
        epoch, _ = draw
        left_out: dict[int, Fault] = {}
        picture = self._usable(self._candidates(draw), left_out)
        draw = (epoch, picture.index)
        seed = int(np.random.SeedSequence([self._seed, *draw]).generate_state(1)[0])
        if self._mix is None or epoch >= self._mix.until_epoch:
            sample = self._plain(picture, seed)
        else:
            sample = self._mixed(picture, seed, self._mix, np.random.default_rng([self._seed, *draw, MIXING]), left_out)
        return Drawn(int(self._data.image_ids[picture.index]), sample, list(left_out.values()))

    def _candidates(self, draw: Draw) -> Iterator[int]:
        """The image that was drawn, then others at random; which, follows from seed and draw."""
        yield draw[1]
        yield from np.random.default_rng([self._seed, *draw]).integers(len(self), size=MOST_TRIES).tolist()

    def _usable(self, candidates: Iterable[int], left_out: dict[int, Fault]) -> Picture:
        """The first of them that can be used; what is wrong with those before it goes into `left_out`."""
        tried: dict[int, Fault] = {}
        for index in candidates:
            try:
                image = self._pixels(index)
            except ImageError as error:
                tried[index] = left_out[index] = self._data.fault(index, error)
            else:
                return Picture(index, image, _scaled(self._data.truth(index), self._data.image_hws[index], image))
        first, *others = tried.values()
        raise DataError(f"{first}" + (f"; nor can {len(others)} others that were tried in its place" if others else ""))

    def _mixed(
        self, picture: Picture, seed: int, mix: Mix, rng: np.random.Generator, left_out: dict[int, Fault]
    ) -> Sample:
        """A mosaic or the image alone, and another image shining through it or not."""

        def another() -> Picture:
            return self._usable(rng.integers(len(self), size=MOST_TRIES).tolist(), left_out)

        in_mosaic, in_mixup = rng.random(2) < (mix.mosaic, mix.mixup)
        if in_mosaic:
            sample = self._mosaic([picture, another(), another(), another()], seed, rng)
        else:
            sample = self._plain(picture, seed)
        if in_mixup:
            sample = mix_up(sample, self._plain(another(), int(rng.integers(2**32))), rng=rng)
        return sample

    def _mosaic(self, pictures: list[Picture], seed: int, rng: np.random.Generator) -> Sample:
        """A mosaic as large as the preset wants to see an image, augmented."""
        hw = wanted_hw(self._augment.network_hw, preset=self._augment.preset)
        pictures = [pictures[place] for place in rng.permutation(len(pictures))]
        mosaic = make_mosaic([(p.image, p.truth) for p in pictures], hw=hw, mode=self._augment.mode, rng=rng)
        try:
            return self._augment.mosaic(*mosaic, seed=seed)
        except Exception as error:
            reason = " ".join(str(error).split())
            image_ids = ", ".join(str(self._data.image_ids[p.index]) for p in pictures)
            raise DataError(
                f"{self._data.source}: images {image_ids}: a mosaic of them cannot be augmented ({reason})"
            ) from error

    def _plain(self, picture: Picture, seed: int) -> Sample:
        try:
            return self._augment(picture.image, picture.truth, seed=seed)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self._place(picture, seed)}: cannot be augmented ({reason})") from error

    def _place(self, picture: Picture, seed: int) -> str:
        """The file, and the annotation that is to blame: the first without which it goes well up to there."""
        truth = picture.truth
        place = f"{self._data.path(picture.index)}: image {self._data.image_ids[picture.index]}"
        for count in range(len(truth.labels) + 1):
            first = Truth(truth.boxes_xyxy[:count], truth.labels[:count], truth.crowd[:count])
            try:
                self._augment(picture.image, first, seed=seed)
            except Exception:  # noqa: BLE001  # whatever it is, it is this box's
                annotation_id = self._data.annotation_ids(picture.index)[count - 1] if count else 0
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
    """What one process draws for one epoch after another.

    Each epoch visits the images in its own order, a function of seed and epoch. A batch is what one step of the
    optimiser learns from, the same for any number of processes; cut into `accumulate` parts, and each of them into one
    per process, it gives the micro-batches that are drawn here. Every batch is full, since batch norm cannot work on
    one value: an incomplete last batch is left out, and a set smaller than a batch is repeated.

    Attributes:
        epoch: which epoch is drawn.
        done: how many of its batches are behind, where it is gone on with.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        seed: int,
        passes: int = 1,
        rank: int = 0,
        processes: int = 1,
        accumulate: int = 1,
    ) -> None:
        """Batches over `num_images`; an epoch visits each of them `passes` times.

        Raises:
            ValueError: batches of `batch_size` cannot be cut into equal parts.
        """
        if batch_size % (accumulate * processes):
            raise ValueError(f"a batch of {batch_size} cannot be cut into {accumulate} x {processes} equal parts")
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._passes = passes
        self._rank = rank
        self._processes = processes
        self._accumulate = accumulate
        self.epoch = 0
        self.done = 0

    @property
    def steps(self) -> int:
        """Batches of a whole epoch."""
        return max(1, self._num_images * self._passes // self._batch_size)

    def __len__(self) -> int:
        return (self.steps - self.done) * self._accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = self.epoch
        rng = np.random.default_rng([self._seed, epoch])
        order = np.concatenate([rng.permutation(self._num_images) for _ in range(self._passes)])
        order = np.resize(order, self.steps * self._batch_size)
        part_size = self._batch_size // (self._accumulate * self._processes)
        parts = order.reshape(self.steps, self._accumulate, self._processes, part_size)
        for micro_batch in parts[self.done :, :, self._rank].reshape(-1, part_size):
            yield [(epoch, index) for index in micro_batch.tolist()]


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


class _Rest(Sampler[list[Draw]]):
    """The draws of an epoch that have not become batches yet: all, unless workers had to be started again."""

    def __init__(self, batches: Sampler[list[Draw]]) -> None:
        self._batches = batches
        self._draws: list[list[Draw]] = []
        self.behind = 0

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # ours have a length

    def __iter__(self) -> Iterator[list[Draw]]:
        return itertools.islice(self._draws, self.behind, None)

    def start(self) -> None:
        """Take up what the sampler holds now."""
        self._draws, self.behind = list(self._batches), 0


class Batches(DataLoader[Batch]):
    """torch's loader, but a fault in a worker stays the one line it is, and images of no use are told.

    Workers that are killed, as by a system short of memory, are started again at the batch that is missing; samples
    depend on nothing that died with them.

    Attributes:
        left_out: images that could not be used so far, by id.
        say: called once with each of them.
        say_line: called with a line for the log when workers are started again.
    """

    left_out: dict[int, Fault]
    say: Callable[[Fault], None]
    say_line: Callable[[str], None]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own iterator class
        """Batches, one after another.

        Raises:
            DataError: an annotation breaks the augmentation, hardly any image can be used, or workers are killed again
                and again.
        """
        for images, draws in self._collated():
            for fault in (fault for drawn in draws for fault in drawn.left_out):
                self._leave_out(fault)
            yield make_batch(images, draws)

    def _collated(self) -> Iterator[tuple[torch.Tensor, list[Drawn]]]:
        """What `collate` made, by workers that are started again if they are killed."""
        rest = self.batch_sampler
        assert isinstance(rest, _Rest)
        rest.start()
        deaths = 0
        while True:
            try:
                for collated in self._until_a_death():
                    deaths = 0
                    rest.behind += 1
                    yield collated
                return
            except DataError as error:  # from a worker, its text is a whole traceback
                message = str(error).strip().rpartition(f"{DataError.__module__}.{DataError.__name__}: ")[2]
                raise DataError(message) from error
            except (RuntimeError, OSError, EOFError) as error:
                if not self.num_workers or not _is_death(error):
                    raise
            deaths += 1
            self._start_again(deaths)

    def _until_a_death(self) -> Iterator[tuple[torch.Tensor, list[Drawn]]]:
        """The rest of what `collate` makes, with the signal handler that was there before.

        torch sets one that raises wherever the program happens to be when a worker ends, in the middle of a step, too.
        Without it, the next wait for a batch notices within five seconds.
        """
        ended = getattr(signal, "SIGCHLD", None)  # Windows has none
        handler = ended and signal.getsignal(ended)
        iterator: Iterator[tuple[torch.Tensor, list[Drawn]]] = super().__iter__()
        if ended and handler is not None and signal.getsignal(ended) is not handler:
            signal.signal(ended, handler)
        return iterator

    def _start_again(self, deaths: int) -> None:
        self._iterator = None  # torch would keep to the workers that are left
        if deaths == MOST_DEATHS:
            raise DataError(
                f"the workers that read images were killed {deaths} times without a batch in between, most likely for "
                f"want of memory; lower data.workers (now {self.num_workers}) or train.batch_size, or give the run "
                "more memory (in a container, shared memory, too)"
            )
        self.say_line("a worker that reads images was killed, mostly for want of memory; starting it again")

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
    mix: Mix | None = None,
    say: Callable[[Fault], None] = lambda fault: None,
    say_line: Callable[[str], None] = lambda line: None,
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
        mix: how images are combined before that; not at all unless given.
        say: called once with each image that cannot be used, and so is left out.
        say_line: called with a line for the log when workers were killed and are started again.
        pin_memory: let batches lie where a GPU can fetch them.

    Raises:
        ValueError: the pixels are of other data.
    """
    if pixels is not None and pixels.data is not data:
        raise ValueError("pixels are of other data than those that are to be loaded")
    pixels = pixels or DecodedPixels(data, preset=preset, network_hw=network_hw, mode=mode)
    augment = Augment(preset, network_hw=network_hw, mode=mode)
    loader = Batches(
        TrainingSamples(data, augment, seed=seed, pixels=pixels, mix=mix),  # type: ignore[arg-type]  # collate makes a Batch
        batch_sampler=_Rest(batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_prepare_worker,
    )
    loader.left_out, loader.say, loader.say_line = {}, say, say_line
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


def _prepare_worker(worker: int) -> None:
    """Workers are the parallelism: threads inside them would only fight over the cores.

    Ctrl-C would reach them, too, as would what torchrun and schedulers send to a whole process group; but what becomes
    of the run is for the main process to say.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):  # Windows has no groups
        os.setpgid(0, 0)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _is_death(error: Exception) -> bool:
    """Whether this is how the end of a worker shows: torch's own word, or a line to it that broke."""
    message = str(error)
    if message.startswith("Caught "):  # raised in a worker that lives
        return False
    if isinstance(error, RuntimeError):
        return message.startswith(("DataLoader worker (pid", "Pin memory thread exited"))
    return isinstance(error, ConnectionError | EOFError | FileNotFoundError)
