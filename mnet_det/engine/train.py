"""Training: the loop on one screen, then what it is made of."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from mnet_det.cache import cache_folder
from mnet_det.config import Config, ModelConfig, Split
from mnet_det.data import open_data
from mnet_det.data.annotations import nothing_to_learn
from mnet_det.data.augment import Preset
from mnet_det.data.coco import CocoData, read_coco_json, refuse_fatal
from mnet_det.data.faults import Fault
from mnet_det.data.image_cache import open_cache
from mnet_det.data.loader import EpochBatches, ScoringBatches, make_loader
from mnet_det.data.pixels import Pixels
from mnet_det.doctor import usable_cores
from mnet_det.engine.checkpoint import Checkpoint, load_checkpoint
from mnet_det.engine.evaluate import Scores, restrict, score_model
from mnet_det.engine.left_out import LeftOut
from mnet_det.engine.pictures import picture_batch, picture_predictions
from mnet_det.engine.run_log import Row, RunLog
from mnet_det.engine.start import adopt_needs, open_start, start_from, unfold
from mnet_det.engine.state import State, restore_state, save_state, start_state
from mnet_det.engine.torch_backend import TorchBackend, describe, fuse
from mnet_det.errors import ConfigError, MnetDetError
from mnet_det.files import write_text
from mnet_det.images import write_image
from mnet_det.runtime.predictor import Predictor
from mnet_det.structures import Batch

OVERFIT_EPOCHS, OVERFIT_STEPS = 16, 25
"""How many epochs `--overfit` trains, and of how many steps each, however few the images."""
OVERFIT_REGIONS = 24
"""How many regions of each image the paper's Faster R-CNN learns from then, each a run of two blocks on 14×14 cells."""
UNFOLD_IMAGES = 64
"""Training images on which folded batch norm is measured."""
UNFOLD_TOGETHER, SCORE_TOGETHER = 4, 4
"""Images that go through a network at a time while it is unfolded, and while Faster R-CNN is scored."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: its folder, its best AP, and all scores of its last epoch."""

    out: Path
    best_ap: float
    scores: Scores


def train(
    config: Config, *, out: Path, resume: Path | None = None, overfit: int | None = None, console: Console | None = None
) -> TrainResult:
    """Train a detector and score it.

    The run folder gets the resolved config, `metrics.csv`, TensorBoard curves, pictures, and the checkpoints
    `last.pt`, `previous.pt` and `best.pt`.

    Args:
        config: all settings.
        out: the run folder, made if missing. One that holds a run is not started over.
        resume: a checkpoint (`last.pt`) to go on from.
        overfit: train on this many images and score on the same ones, without augmentation and averaging. A detector
            that cannot learn them by heart has a fault in its data or settings.
        console: where progress is shown; nowhere unless given.

    Raises:
        ConfigError: a setting that this machine or these data cannot follow, or `out` holds another run.
        DataError: the data have a fault that `mnet-det check` calls fatal, or the validation has classes of its own.
        CheckpointError: `resume` or `model.init` does not fit.
    """
    console = console or Console(quiet=True)
    _require_own_folder(out, resume)
    device = pick_device(config.train.device)
    torch.manual_seed(config.train.seed)
    config = config if overfit is None else overfit_config(config, images=overfit)
    origin = _origin(config, resume, console)
    if origin is not None:
        config, notes = adopt_needs(config, origin)
        if notes:
            console.print(f"the weights need {', '.join(notes)}", highlight=False)
    val_split: Split = "val" if overfit is None else "train"
    data = open_data(config.data, "train")
    refuse_fatal(nothing_to_learn(data.num_objects, str(data.source)))
    if overfit is None:
        val_data = open_data(config.data, "val", joined_to=data)
    else:
        data = val_data = data.head(overfit)
    truth = restrict(read_coco_json(config.data.annotations(val_split)), val_data)
    # A few images make an epoch of few steps; visited often enough, they make as many as bookkeeping is worth.
    passes = 1 if overfit is None else math.ceil(OVERFIT_STEPS * config.train.batch_size / len(data))
    batches = EpochBatches(len(data), batch_size=config.train.batch_size, seed=config.train.seed, passes=passes)
    left_out = LeftOut(out, console, resumed=resume is not None)
    loader = _loader(
        data,
        batches,
        config,
        device,
        preset=config.data.augment,
        pixels=_cached_pixels(config, data, console) if config.data.cache else None,
        say=lambda fault: left_out.add([fault]),
    )
    state = start_state(
        config,
        num_classes=len(data.class_names),
        steps_per_epoch=len(batches),
        device=device,
        scale_loss=_autocast_type(config, device) is torch.float16,
    )
    if origin is not None and resume is not None:
        restore_state(state, origin, config, data, source=resume)
    elif origin is not None:
        _start(state, origin, config, data, loader, console)
    del origin  # as large as the run's own state, and of no more use
    if state.epoch >= config.train.epochs:
        raise ConfigError(f"{resume}: has done {state.epoch} epochs; set train.epochs above that to go on")
    write_text(out / "config.yaml", config.to_yaml())
    console.print(_header(config, data, val_data, device), highlight=False)
    left_out.add([*data.left_out, *val_data.left_out])

    with RunLog(out, first_epoch=state.epoch) as log:
        while state.epoch < config.train.epochs:
            batches.epoch = state.epoch
            row = _train_epoch(state, loader, config, device, console, out, data.class_names)
            state.epoch += 1
            best = False
            if state.epoch % config.train.eval_every == 0 or state.epoch == config.train.epochs:
                scores = _score(state, data, val_data, truth, config, out)
                left_out.add(scores.left_out)
                val_data = val_data.without(scores.left_out)
                row["val_loss"] = _validation_loss(state, val_data, config, device)
                row |= {"AP": scores.numbers["AP"], "AP50": scores.numbers["AP50"]}
                best = scores.ap > state.best_ap
                state.best_ap = max(scores.ap, state.best_ap)
            log.write(state.epoch, row)  # before the checkpoint: a resumed run drops rows that it has no weights for
            save_state(state, config, data, out, best=best)
            console.print(_epoch_line(state.epoch, config.train.epochs, row), highlight=False)
    return TrainResult(out, state.best_ap, scores)


def overfit_config(config: Config, *, images: int) -> Config:
    """The settings for learning a few images by heart: nothing that blurs, and a short warm-up."""
    if images < 1:
        raise ConfigError(f"--overfit {images}: expected at least one image")
    batch_size = max(2, min(images, config.train.batch_size))
    settings = {
        "batch_size": batch_size,
        "lr": config.train.lr * batch_size / config.train.batch_size,
        "epochs": OVERFIT_EPOCHS,
        "ema": 0.0,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "eval_every": OVERFIT_EPOCHS // 4,
    }
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    # Batch norm's running statistics have few steps to settle in, and nothing to be smooth for.
                    "bn_momentum": max(0.1, config.model.bn_momentum),
                    "roi_samples": _overfit_regions(config.model),
                }
            ),
            "data": config.data.model_copy(update={"augment": "none", "cache": False}),
            "train": config.train.model_copy(update=settings),
        }
    )


def _overfit_regions(model: ModelConfig) -> int:
    return model.roi_samples if model.fpn else min(OVERFIT_REGIONS, model.roi_samples)


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, then mps, then cpu.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"train.device: got {name!r}, expected auto, cpu, cuda, cuda:0 … or mps")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"train.device: got {name!r}, which this machine cannot use ({reason}); try 'auto'") from None
    return device


def _require_own_folder(out: Path, resume: Path | None) -> None:
    """It is a folder or nothing yet, and holds no run but the one that is resumed."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; --out names the run's folder")
    if (out / "last.pt").exists() and (resume is None or resume.resolve().parent != out.resolve()):
        raise ConfigError(f"{out}: holds a run already; go on with --resume auto, or choose another --out")


def _origin(config: Config, resume: Path | None, console: Console) -> Checkpoint | None:
    """The weights that a run goes on from or starts from, if any."""
    if resume is not None:
        return load_checkpoint(resume)
    return open_start(config, console=console)


def _start(
    state: State,
    origin: Checkpoint,
    config: Config,
    data: CocoData,
    loader: DataLoader[Batch],
    console: Console,
) -> None:
    """Take what fits from `model.init`, and make its batch norm trainable."""
    assert config.model.init is not None
    started = start_from(state.detector, origin, config, class_names=data.class_names, source=config.model.init)
    console.print(f"{config.model.init}: {started}", highlight=False)
    if origin.folded:
        device = next(state.detector.parameters()).device
        batches = itertools.islice(loader, math.ceil(UNFOLD_IMAGES / config.train.batch_size))
        # Few at a time: the second stage of Faster R-CNN makes hundreds of regions of each.
        few = (images.to(device) for batch in batches for images in batch.images.split(UNFOLD_TOGETHER))
        seen = unfold(state.detector, started, few)
        console.print(
            f"batch norm was folded in these weights; unfolded on {min(seen, len(data))} training images",
            highlight=False,
        )


def _train_epoch(
    state: State,
    loader: DataLoader[Batch],
    config: Config,
    device: torch.device,
    console: Console,
    out: Path,
    class_names: tuple[str, ...],
) -> Row:
    """One pass over the training images. What is random in it follows from seed and epoch, so that a run can go on."""
    torch.manual_seed(int(np.random.SeedSequence([config.train.seed, state.epoch]).generate_state(1)[0]))
    state.detector.train()
    sums: dict[str, Tensor] = {}
    waited = 0.0
    started = asked = time.perf_counter()
    for step, batch in enumerate(_with_progress(loader, state.epoch, config, console)):
        waited += time.perf_counter() - asked
        if state.epoch == 0 and step == 0:
            write_image(out / "train_batch.jpg", picture_batch(batch, class_names))
        try:
            losses = _step(state, batch.to(device), config)
        except torch.OutOfMemoryError:
            height, width = config.model.input_hw
            raise ConfigError(
                f"a batch of {config.train.batch_size} images of {width}x{height} does not fit into the memory of "
                f"{device}; lower train.batch_size (and train.lr with it), model.rho or model.alpha"
            ) from None
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        asked = time.perf_counter()
    seconds = time.perf_counter() - started
    means = {f"loss_{name}": float(value) / len(loader) for name, value in sums.items()}
    return {
        "lr": float(state.schedule.get_last_lr()[0]),
        "loss": sum(means.values()),
        **means,
        "images_per_second": len(loader) * config.train.batch_size / seconds,
        "waiting_for_data": waited / seconds,
    }


def _step(state: State, batch: Batch, config: Config) -> dict[str, Tensor]:
    """Forward, backward, clip, update, average."""
    with _autocast(config, batch.images.device):
        losses = state.detector.losses(batch.images, batch.targets)
    total = torch.stack(list(losses.values())).sum()
    if not torch.isfinite(total):
        terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
        raise MnetDetError(
            f"the loss is not finite ({terms}) on images {batch.image_ids}; where it grew before, a smaller train.lr "
            "or train.clip_norm helps; where it did not, look at the boxes of these images"
        )
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(total).backward()
    if config.train.clip_norm:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.detector.parameters(), config.train.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.schedule.step()
    if state.average is not None:
        state.average.update_parameters(state.detector)
    return losses


def _autocast(config: Config, device: torch.device) -> torch.autocast:
    kind = _autocast_type(config, device)
    return torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)


def _autocast_type(config: Config, device: torch.device) -> torch.dtype | None:
    """`auto` is bf16 on a GPU that has it, else fp16, and nothing on a CPU."""
    if config.train.amp == "off" or (config.train.amp == "auto" and device.type != "cuda"):
        return None
    if config.train.amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if config.train.amp == "bf16" else torch.float16


def _loader(
    data: CocoData,
    batches: EpochBatches | ScoringBatches,
    config: Config,
    device: torch.device,
    *,
    preset: Preset,
    pixels: Pixels | None = None,
    say: Callable[[Fault], None] = lambda fault: None,
) -> DataLoader[Batch]:
    return make_loader(
        data,
        batches,
        preset=preset,
        network_hw=config.model.input_hw,
        mode=config.model.resize,
        seed=config.train.seed,
        workers=min(config.data.workers, usable_cores()),  # a recipe's number may be for a larger machine
        pixels=pixels,
        say=say,
        pin_memory=device.type == "cuda",
    )


def _cached_pixels(config: Config, data: CocoData, console: Console) -> Pixels:
    """The training images resized once and for all, in the user's cache or in the folder that the config names."""
    chosen = config.data.cache
    return open_cache(
        data,
        preset=config.data.augment,
        network_hw=config.model.input_hw,
        mode=config.model.resize,
        folder=chosen if isinstance(chosen, Path) else cache_folder() / "images",
        console=console,
    )


def _validation_loss(state: State, data: CocoData, config: Config, device: torch.device) -> float:
    """Mean loss over all images of `data`, unaugmented."""
    loader = _loader(data, ScoringBatches(len(data), batch_size=config.train.batch_size), config, device, preset="none")
    detector = state.to_score.eval()
    total = 0.0
    torch.manual_seed(config.train.seed)  # Faster R-CNN's losses look at random regions: at the same ones each time
    with torch.inference_mode():
        for batch in loader:
            on_device = batch.to(device)
            with _autocast(config, device):
                losses = detector.losses(on_device.images, on_device.targets)
            total += float(torch.stack(list(losses.values())).sum()) * len(batch.images)
    return total / len(data)


def _score(
    state: State, data: CocoData, val_data: CocoData, truth: Mapping[str, Any], config: Config, out: Path
) -> Scores:
    metadata = describe(config, name=out.name, class_names=data.class_names, category_ids=data.known_ids)
    predictor = Predictor(TorchBackend(fuse(state.to_score), metadata))
    together = SCORE_TOGETHER if config.model.head == "faster_rcnn" else min(16, config.train.batch_size)
    scores, _ = score_model(predictor, val_data, truth, batch_size=together)
    write_image(out / "val_predictions.jpg", picture_predictions(predictor, val_data.without(scores.left_out)))
    return scores


def _with_progress(loader: DataLoader[Batch], epoch: int, config: Config, console: Console) -> Iterator[Batch]:
    """The batches, with a bar while a person watches: time left in the epoch, images a second."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s, left in this epoch"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(loader), epoch=epoch + 1, epochs=config.train.epochs, rate=0.0)
        for done, batch in enumerate(loader, start=1):
            yield batch
            rate = done * config.train.batch_size / (time.perf_counter() - started)
            progress.update(task, advance=1, rate=rate)


def _header(config: Config, data: CocoData, val_data: CocoData, device: torch.device) -> str:
    height, width = config.model.input_hw
    # torchvision's and timm's networks bring their own
    eps = f"eps {config.model.bn_eps:g} and " if config.model.backbone in ("mobilenet_v1", "inception_v2") else ""
    lacking = [name for name, own in zip(val_data.class_names, val_data.category_ids, strict=True) if own is None]
    unscored = f", none of them of {', '.join(lacking)}" if lacking else ""
    return (
        f"{config.model.head} on {config.model.backbone}, alpha {config.model.alpha}, input {width}x{height}, "
        f"{len(data.class_names)} classes, on {device}\n"
        f"{len(data)} training images with {data.num_boxes} boxes; {len(val_data)} validation images{unscored}\n"
        f"{config.train.optimizer}, lr {config.train.lr:.4g}, batch {config.train.batch_size}, "
        f"{config.train.epochs} epochs, weight decay {config.train.weight_decay:g}, ema {config.train.ema:g}, "
        f"batch norm {eps}momentum {config.model.bn_momentum:g}, seed {config.train.seed}"
    )


def _epoch_line(epoch: int, epochs: int, row: Row) -> str:
    line = (
        f"epoch {epoch}/{epochs}: loss {row['loss']:.3f}, {row['images_per_second']:.0f} images/s, "
        f"{row['waiting_for_data']:.0%} of the time waiting for data"
    )
    if "val_loss" in row:
        ap, ap50 = ("n/a" if row[key] is None else f"{row[key]:.3f}" for key in ("AP", "AP50"))
        line += f"; validation loss {row['val_loss']:.3f}, AP {ap}, AP50 {ap50}"
    return line
