"""The state of a run on the validation images: COCOeval's verdict and the mean loss, by all processes together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mnet_det.config import Config
from mnet_det.data.augment import Preset
from mnet_det.data.coco import CocoData
from mnet_det.data.faults import Fault
from mnet_det.data.loader import Batches, EpochBatches, ScoringBatches, make_loader
from mnet_det.data.mix import Mix
from mnet_det.data.pixels import Pixels
from mnet_det.doctor import usable_cores
from mnet_det.engine.device import autocast
from mnet_det.engine.distributed import ALONE, World
from mnet_det.engine.evaluate import Scores, score_model
from mnet_det.engine.pictures import picture_predictions
from mnet_det.engine.torch_backend import TorchBackend, describe, fuse
from mnet_det.errors import ImageError
from mnet_det.images import write_image
from mnet_det.models.detector import Detector
from mnet_det.runtime.predictor import Predictor

SCORE_TOGETHER = 4
"""Images that go through Faster R-CNN at a time; each brings hundreds of regions."""


def score(
    detector: Detector,
    data: CocoData,
    val_data: CocoData,
    truth: Mapping[str, Any],
    config: Config,
    *,
    out: Path,
    world: World = ALONE,
) -> Scores:
    """Score a detector, trained on `data`, on `val_data`, and draw what it finds as `val_predictions.jpg` in `out`.

    Raises:
        DataError: see `score_model`.
    """
    predictor = _predictor(detector, data, config, name=out.name)
    scores, _ = score_model(
        predictor, val_data, truth, batch_size=_together(config), scorer=config.eval.scorer, world=world
    )
    if world.is_first:
        write_image(out / "val_predictions.jpg", picture_predictions(predictor, val_data.without(scores.left_out)))
    return scores


def rehearse_scoring(
    detector: Detector, data: CocoData, val_data: CocoData, truth: Mapping[str, Any], config: Config
) -> None:
    """Detect in a validation image and score it: what fails here would fail after the first epochs.

    Raises:
        DataError: see `score_model`; no image can be used.
    """
    first = next((index for index in range(len(val_data)) if _can_be_used(val_data, index)), 0)
    one = val_data.part(first, len(val_data))
    score_model(_predictor(detector, data, config, name="rehearsal"), one, truth, scorer=config.eval.scorer)


def validation_loss(
    detector: Detector, data: CocoData, config: Config, device: torch.device, *, world: World = ALONE
) -> float:
    """Loss over all images of `data`, unaugmented: the sum of their loss terms by the sum of their normalizers.

    So it is the same for any size of batches and any number of processes, but for the random regions that Faster R-CNN
    looks at: these are the same each time only where both stay as they are.
    """
    detector.eval()
    part = data.part(world.rank, world.size)
    loader = training_loader(
        part, ScoringBatches(len(part), batch_size=config.train.batch_size), config, device, preset="none"
    )
    one = torch.ones((), device=device)
    sums = torch.zeros(2, device=device)
    torch.manual_seed(config.train.seed)
    with torch.no_grad():
        for batch in loader:
            on_device = batch.to(device)
            image_hw = (batch.images.shape[2], batch.images.shape[3])
            with autocast(config.train, device):
                losses = detector.losses(on_device.images, on_device.targets, normalizer=one)
            normalizer = detector.normalizer(on_device.targets, image_hw=image_hw)
            sums += torch.stack([torch.stack(list(losses.values())).sum(), normalizer])
    loss, normalizer = world.mean(sums).tolist()
    return loss / max(normalizer, 1 / world.size)


def training_loader(
    data: CocoData,
    batches: EpochBatches | ScoringBatches,
    config: Config,
    device: torch.device,
    *,
    preset: Preset,
    pixels: Pixels | None = None,
    mix: Mix | None = None,
    say: Callable[[Fault], None] = lambda fault: None,
    say_line: Callable[[str], None] = lambda line: None,
) -> Batches:
    """`make_loader` with a config's settings."""
    return make_loader(
        data,
        batches,
        preset=preset,
        network_hw=config.model.input_hw,
        mode=config.model.resize,
        seed=config.train.seed,
        workers=min(config.data.workers, usable_cores()),  # a recipe's number may be for a larger machine
        pixels=pixels,
        mix=mix,
        say=say,
        say_line=say_line,
        pin_memory=device.type == "cuda",
    )


def _can_be_used(data: CocoData, index: int) -> bool:
    try:
        data.image(index)
    except ImageError:
        return False
    return True


def _predictor(detector: Detector, data: CocoData, config: Config, *, name: str) -> Predictor:
    metadata = describe(config, name=name, class_names=data.class_names, category_ids=data.known_ids)
    return Predictor(TorchBackend(fuse(detector), metadata))


def _together(config: Config) -> int:
    return SCORE_TOGETHER if config.model.head == "faster_rcnn" else min(16, config.train.batch_size)
