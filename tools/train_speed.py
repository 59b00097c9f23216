"""Images a second of training against torchvision's SSD with the same backbone and heads of the same size.

    python tools/train_speed.py step --threads 2 --compile
    python tools/train_speed.py loop coco --split train --workers 16

`step` feeds both the same batch from memory on the CPU: losses, backward, clipping, optimiser (SGD with momentum) and
running average. `loop` is for a GPU and measures end to end, from the files: our loader and step, against a loop as
torchvision's detection references have it (their `ssd` augmentation, float32, no running average). Each of the two is
also fed one batch over and over; how much faster that is, is the share of time that the device waits for data.

All in turns, so that a noisy moment of the machine meets all of them; a ratio is the median of the rounds' ratios.
torchvision's own normalising and resizing are in its figures, for its SSD does them in every step.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision.models.detection import ssd as torchvision_ssd
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image

from mnet_det.config import Config, ModelConfig, Split, parse_config
from mnet_det.data import open_data
from mnet_det.data.coco import CocoData
from mnet_det.data.loader import EpochBatches, make_loader
from mnet_det.engine.device import autocast
from mnet_det.engine.distributed import ALONE
from mnet_det.engine.guard import Guard
from mnet_det.engine.schedule import lr_factor, set_lr
from mnet_det.engine.state import start_state
from mnet_det.errors import MnetDetError
from mnet_det.files import write_json
from mnet_det.models import build_detector
from mnet_det.models.ssd import SSD
from mnet_det.runtime.benchmark import machine
from mnet_det.runtime.interleave import interleave
from mnet_det.structures import Batch, Target

CLASSES = 80
BOXES = (4, 11)
"""Least boxes of an image, and one more than the most: COCO's mean is 7."""
EMA = 0.9998

TheirBatch = tuple[list[Tensor], list[dict[str, Tensor]]]
"""What torchvision's detectors take: images float [3, H, W] in 0…1, and boxes and labels (1…K) of each."""
Rate = Callable[[int], float]
"""A contestant of `interleave`: images a second of one turn."""


class Maps(nn.Module):
    """Our backbone and extra maps, in the form of a backbone of torchvision's."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.extras = detector.extras

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] to all maps."""
        maps = self.backbone(images)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return {str(number): features for number, features in enumerate(maps)}


class OurTraining:
    """The step of `engine/train.py`, its guard included."""

    def __init__(self, config: Config, *, num_classes: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.config = config
        self.device = device
        self.state = start_state(config, num_classes=num_classes, steps_per_epoch=1000, device=device, scale_loss=False)
        self.state.detector.train()
        self.guard = Guard(self.state.detector, out=Path(), class_names=(), world=ALONE, console=Console(quiet=True))

    def __call__(self, batch: Batch) -> float:
        """Learn from one batch; returns its loss."""
        state, settings = self.state, self.config.train
        self.guard.keep()
        batch = batch.to(self.device)
        set_lr(state.optimizer, lr_factor(0, settings, steps_per_epoch=state.steps_per_epoch))
        state.optimizer.zero_grad(set_to_none=True)
        with autocast(settings, self.device):
            losses = state.detector.losses(batch.images, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.detector.parameters(), settings.clip_norm)
        loss = float(total.detach())
        state.optimizer.step()
        if state.average is not None:
            state.average.update_parameters(state.detector)
        return loss


class TheirTraining:
    """torchvision's SSD in a step as its detection references have it, with clipping and average if ours has them."""

    def __init__(self, config: Config, *, num_classes: int, device: torch.device) -> None:
        torch.manual_seed(0)
        settings = config.train
        self.device = device
        self.clip_norm = settings.clip_norm
        self.detector = build_theirs(config.model, num_classes=num_classes).to(device).train()
        self.optimizer = torch.optim.SGD(
            self.detector.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        averaging = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.detector, multi_avg_fn=averaging) if settings.ema else None

    def __call__(self, batch: TheirBatch) -> float:
        """Learn from one batch; returns its loss."""
        images = [image.to(self.device) for image in batch[0]]
        targets = [{name: tensor.to(self.device) for name, tensor in target.items()} for target in batch[1]]
        losses = self.detector(images, targets)
        total = torch.stack(list(losses.values())).sum()
        loss = float(total.detach())
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.detector.parameters(), self.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.detector)
        return loss


def build_theirs(config: ModelConfig, *, num_classes: int) -> torchvision_ssd.SSD:
    """The SSD of torchvision on the backbone, extra maps, anchor counts and predictor sizes of ours."""
    ours = build_detector(config, num_classes=num_classes)
    assert isinstance(ours, SSD)
    per_cell = list(ours.anchors.num_per_cell)
    channels = [predictor.in_channels for predictor in ours.class_predictors]
    head = torchvision_ssd.SSDHead(channels, per_cell, num_classes + 1)
    for part in (head.classification_head, head.regression_head):
        for number, predictor in enumerate(part.module_list):
            part.module_list[number] = nn.Conv2d(predictor.in_channels, predictor.out_channels, 1)
    anchors = DefaultBoxGenerator([[2]] + [[2, 3]] * (len(channels) - 1), min_ratio=0.2, max_ratio=0.95)
    anchors._wh_pairs[0] = anchors._wh_pairs[0][: per_cell[0]]  # four a cell, where we have three
    return torchvision_ssd.SSD(
        Maps(ours),
        anchors,
        size=config.input_hw,
        num_classes=num_classes + 1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        head=head,
    )


def drawn_batch(size: int, *, side: int) -> Batch:
    """Noise with boxes at random, about as many as COCO has."""
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, side, side), generator=chance, dtype=torch.uint8)
    targets = []
    for _ in range(size):
        count = int(torch.randint(*BOXES, (1,), generator=chance))
        wh = side * (0.07 + 0.5 * torch.rand(count, 2, generator=chance))
        xy = torch.rand(count, 2, generator=chance) * (side - wh)
        labels = torch.randint(0, CLASSES, (count,), generator=chance)
        targets.append(Target(torch.cat([xy, xy + wh], dim=1), labels, torch.zeros(0, 4), (side, side)))
    return Batch(images, targets)


def as_theirs(batch: Batch) -> TheirBatch:
    """The same batch for torchvision."""
    targets = [{"boxes": target.boxes_xyxy, "labels": target.labels + 1} for target in batch.targets]
    return list(batch.images.float() / 255), targets


class ReferenceData(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images with boxes, augmented as torchvision's references do for SSD."""

    def __init__(self, data: CocoData) -> None:
        self.data = data
        self.indices = [index for index in range(len(data)) if len(data.truth(index).boxes_xyxy)]
        self.augment = v2.Compose(
            [
                v2.RandomPhotometricDistort(),
                v2.RandomZoomOut(fill=[123, 117, 104]),
                v2.RandomIoUCrop(),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.ClampBoundingBoxes(),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Image float [3, H, W] of its own size, its boxes and labels (1…K)."""
        index = self.indices[number]
        truth = self.data.truth(index)
        image = Image(torch.from_numpy(self.data.image(index)).permute(2, 0, 1))
        boxes = BoundingBoxes(torch.from_numpy(truth.boxes_xyxy), format="XYXY", canvas_size=image.shape[-2:])
        pixels, target = self.augment(image, {"boxes": boxes, "labels": torch.from_numpy(truth.labels) + 1})
        return pixels, target


def _together(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> TheirBatch:
    return [image for image, _ in samples], [target for _, target in samples]


def our_batches(data: CocoData, config: Config, *, pin_memory: bool) -> Iterator[Batch]:
    """Augmented batches without end."""
    batches = EpochBatches(len(data), batch_size=config.train.batch_size, seed=0)
    loader = make_loader(
        data,
        batches,
        preset="ssd",
        network_hw=config.model.input_hw,
        mode="stretch",
        seed=0,
        workers=config.data.workers,
        pin_memory=pin_memory,
    )
    for epoch in itertools.count():
        batches.epoch = epoch
        yield from loader


def their_batches(data: CocoData, config: Config) -> Iterator[TheirBatch]:
    """The same from torchvision's side."""
    loader = DataLoader(
        ReferenceData(data),
        batch_size=config.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.data.workers,
        collate_fn=_together,
        persistent_workers=config.data.workers > 0,
    )
    while True:
        yield from loader


def contestant(
    learn: Callable[[Any], float], batches: Iterator[Any], *, batch_size: int, steps: int, device: torch.device
) -> Rate:
    """Images a second over some steps."""

    def measure(_: int) -> float:
        started = time.perf_counter()
        for batch in itertools.islice(batches, steps):
            learn(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return steps * batch_size / (time.perf_counter() - started)

    return measure


def measure_step(chosen: argparse.Namespace) -> tuple[str, dict[str, list[float]]]:
    """What was measured, and images a second of every round by contestant.

    Raises:
        MnetDetError: settings that no detector has.
    """
    device = torch.device("cpu")
    config = _config(chosen)
    batch = drawn_batch(chosen.batch_size, side=config.model.input_hw[0])
    how: dict[str, Any] = {"batch_size": chosen.batch_size, "steps": 1, "device": device}
    kinds: dict[str, Any] = {"num_classes": CLASSES, "device": device}
    ours = OurTraining(config, **kinds)
    contestants = {
        "torchvision": contestant(TheirTraining(config, **kinds), itertools.repeat(as_theirs(batch)), **how),
        "ours": contestant(ours, itertools.repeat(batch), **how),
    }
    if chosen.compile:
        compiled = OurTraining(config, **kinds)
        compiled.state.detector.get_submodule("backbone").compile()
        apart = abs(compiled(batch) / OurTraining(config, **kinds)(batch) - 1)
        contestants["ours, compiled"] = contestant(compiled, itertools.repeat(batch), **how)
    rates = interleave(list(contestants.values()), rounds=chosen.rounds, burst=1, unmeasured=1)
    what = f"training steps on the CPU, {torch.get_num_threads()} threads, {CLASSES} classes"
    if chosen.compile:
        what += f"; the compiled backbone changes the loss by {apart:.1e} of it"
    return what, dict(zip(contestants, rates, strict=True))


def measure_loop(chosen: argparse.Namespace) -> tuple[str, dict[str, list[float]]]:
    """As `measure_step`, loaders included.

    Raises:
        MnetDetError: also without a GPU, or with data that cannot be read.
    """
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise MnetDetError("there is no GPU here, and this is measured on one; `--device cpu` shows that it runs")
    device = torch.device(chosen.device)
    config = _config(chosen, data={"root": chosen.root, "workers": chosen.workers})
    split: Split = chosen.split
    data = open_data(config.data, split)
    kinds: dict[str, Any] = {"num_classes": len(data.class_names), "device": device}
    ours = OurTraining(config, **kinds)
    if chosen.compile:
        ours.state.detector.get_submodule("backbone").compile()
    # As the references have it: no clipping, no average unless asked for.
    plain = config.model_copy(update={"train": config.train.model_copy(update={"ema": 0.0, "clip_norm": 0.0})})
    theirs = TheirTraining(plain, **kinds)
    how: dict[str, Any] = {"batch_size": chosen.batch_size, "steps": chosen.steps, "device": device}
    fed, their_fed = our_batches(data, config, pin_memory=device.type == "cuda"), their_batches(data, config)
    contestants = {
        "torchvision": contestant(theirs, their_fed, **how),
        "ours": contestant(ours, fed, **how),
        "torchvision, one batch": contestant(theirs, itertools.repeat(next(their_fed)), **how),
        "ours, one batch": contestant(ours, itertools.repeat(next(fed)), **how),
    }
    rates = interleave(list(contestants.values()), rounds=chosen.rounds, burst=1, unmeasured=1)
    what = f"training from {len(data)} files on {device}, {chosen.workers} workers, {len(data.class_names)} classes"
    return what, dict(zip(contestants, rates, strict=True))


def _config(chosen: argparse.Namespace, **sections: Mapping[str, Any]) -> Config:
    model = {"head": "ssd", "alpha": chosen.alpha, "base_hw": (chosen.size, chosen.size)}
    train = {"batch_size": chosen.batch_size, "lr": 0.01, "ema": EMA}
    return parse_config({"model": model, "train": train, **sections})


def report(rates: dict[str, list[float]]) -> Iterator[str]:
    """A line for each contestant, and one for what they come to."""
    for name, rounds in rates.items():
        line = f"{name:24} {np.median(rounds):8.2f} images a second"
        if name.startswith("ours") and "one batch" not in name:
            line += f", {ratio(rounds, rates['torchvision']):.2f} times torchvision's"
        if f"{name}, one batch" in rates:
            waits = 1 - ratio(rounds, rates[f"{name}, one batch"])
            line += f", waits for data {max(0.0, waits):.0%} of the time"
        yield line


def ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    """The median of rounds' ratios: what slows a round slows both contestants."""
    return float(np.median(np.divide(rates, others)))


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    chosen = parse(words)
    before = torch.get_num_threads()
    torch.set_num_threads(chosen.threads or before)
    try:
        what, rates = measure_step(chosen) if chosen.verb == "step" else measure_loop(chosen)
        if chosen.json is not None:
            write_json(chosen.json, {"machine": machine(), "what": what, "images_per_second": rates})
    except MnetDetError as error:
        sys.exit(f"error: {error}")
    finally:
        torch.set_num_threads(before)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"python tools/train_speed.py {shlex.join(sys.argv[1:] if words is None else words)}")
    print(
        f"{what}; SSD on MobileNetV1, alpha {chosen.alpha:g}, {chosen.size}x{chosen.size}, batches of "
        f"{chosen.batch_size}; median of {chosen.rounds}"
    )
    print("\n".join(report(rates)))


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    step = verbs.add_parser("step", help="batches from memory, on the CPU")
    loop = verbs.add_parser("loop", help="from the files, on a GPU")
    loop.add_argument("root", type=Path, help="a folder laid out like COCO")
    loop.add_argument("--split", choices=["train", "val"], default="train")
    loop.add_argument("--workers", type=int, default=8, help="of each loader")
    loop.add_argument("--steps", type=_count, default=50, help="of a turn")
    loop.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    for verb, batch_size in ((step, 8), (loop, 64)):
        verb.add_argument("--alpha", type=float, default=1.0)
        verb.add_argument("--size", type=_count, default=300, help="pixels of a side of the network's input")
        verb.add_argument("--batch-size", type=_count, default=batch_size)
        verb.add_argument("--rounds", type=_count, default=10)
        verb.add_argument("--threads", type=_count, help="of torch on the CPU; its own choice unless given")
        verb.add_argument("--compile", action="store_true", help="torch.compile our backbone")
        verb.add_argument("--json", type=Path, metavar="FILE", help="write the rates of every round there too")
    return parser.parse_args(words)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    main()
