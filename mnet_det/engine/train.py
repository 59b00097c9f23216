"""Training: the loop on one screen, then what it is made of."""

from __future__ import annotations

import itertools
import math
import random
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from mnet_det.cache import cache_folder
from mnet_det.config import Config
from mnet_det.data import open_data
from mnet_det.data.annotations import nothing_to_learn
from mnet_det.data.coco import CocoData, read_coco_json, refuse_fatal
from mnet_det.data.image_cache import open_cache
from mnet_det.data.loader import Batches, EpochBatches
from mnet_det.data.mix import plan_mix
from mnet_det.data.pixels import Pixels
from mnet_det.engine.anchor_reach import MOST_UNREACHED, measure_reach
from mnet_det.engine.checkpoint import Checkpoint, load_resumable
from mnet_det.engine.device import autocast, autocast_type, pick_device
from mnet_det.engine.distributed import ALONE, World
from mnet_det.engine.evaluate import Scores, restrict
from mnet_det.engine.freeze import train_mode
from mnet_det.engine.guard import Guard
from mnet_det.engine.left_out import LeftOut
from mnet_det.engine.objective import Objective, share_batch_norm, share_gradients, without_sharing
from mnet_det.engine.overfit import OVERFIT_STEPS, overfit_config
from mnet_det.engine.pictures import picture_batch
from mnet_det.engine.run_log import Row, RunLog
from mnet_det.engine.schedule import lr_factor, scaled_lr, set_lr
from mnet_det.engine.start import adopt_needs, open_start, start_from, unfold
from mnet_det.engine.state import State, restore_state, save_best, save_state, start_state, take_over
from mnet_det.engine.teacher import open_teacher
from mnet_det.engine.validate import rehearse_scoring, score, training_loader, validation_loss
from mnet_det.errors import ConfigError
from mnet_det.files import remove_unfinished, write_text
from mnet_det.images import write_image
from mnet_det.interrupt import Stopped, StopWish
from mnet_det.models.ssd import SSD
from mnet_det.structures import Batch

RUN_FILES = (
    "last.pt",
    "previous.pt",
    "best.pt",
    "config.yaml",
    "metrics.csv",
    "left_out.json",
    "train_batch.jpg",
    "val_predictions.jpg",
)
"""What a run writes into its folder again and again."""
UNFOLD_IMAGES = 64
"""Training images on which folded batch norm is measured."""
UNFOLD_TOGETHER = 4
"""Images that go through a network at a time while it is unfolded."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: its folder, its best AP, and all scores of its last epoch."""

    out: Path
    best_ap: float
    scores: Scores


@dataclass
class Run:
    """What stays the same while a run goes on, and when it last saved.

    Attributes:
        truth: the annotations that the validation images are scored by.
        objective: the detector's losses; its gradients are those of all processes.
        loader: gives the parts of one batch after another that go through this process.
        resumed_from: the checkpoint that it goes on from, if any.
    """

    config: Config
    out: Path
    data: CocoData
    val_data: CocoData
    truth: Mapping[str, Any]
    device: torch.device
    world: World
    console: Console
    objective: nn.Module
    loader: Batches
    batches: EpochBatches
    guard: Guard
    left_out: LeftOut
    resumed_from: Path | None
    wish: StopWish = field(default_factory=StopWish)
    saved_at: float = field(default_factory=time.monotonic)

    def save(self, state: State) -> None:
        """Write `last.pt`; the others wait for it, so that no one ends the run meanwhile."""
        if self.world.is_first:
            save_state(state, self.config, self.data, self.out)
        self.saved_at = time.monotonic()
        self.world.wait()

    @property
    def must_save(self) -> bool:
        """Whether so much time has passed that it would be a pity to lose it."""
        return time.monotonic() - self.saved_at >= 60 * self.config.train.save_minutes


def train(
    config: Config,
    *,
    out: Path,
    resume: Path | None = None,
    overfit: int | None = None,
    console: Console | None = None,
    world: World = ALONE,
) -> TrainResult:
    """Train a detector and score it.

    The run folder gets the resolved config, `metrics.csv`, TensorBoard curves, pictures, and the checkpoints
    `last.pt`, `previous.pt` and `best.pt`. A run that goes on from `last.pt` ends as if it had never ended before.

    Args:
        config: all settings.
        out: the run folder, made if missing. One that holds a run is not started over.
        resume: a checkpoint (`last.pt`) to go on from; if it is damaged, the `previous.pt` beside it.
        overfit: train on this many images and score on the same ones, without augmentation and averaging. A detector
            that cannot learn them by heart has a fault in its data or settings.
        console: where progress is shown; nowhere unless given.
        world: the processes that train together, each of which calls this.

    Raises:
        ConfigError: a setting that this machine or these data cannot follow, or `out` holds another run.
        DataError: the data have a fault that `mnet-det check` calls fatal, or the validation has classes of its own.
        CheckpointError: `resume` or `model.init` does not fit.
        MnetDetError: the loss was not finite several times in a row, or nothing can be written.
        Stopped: a signal asked to end; what was done is saved.
    """
    if console is None or not world.is_first:
        console = Console(quiet=True)
    run, state = _prepare(config, out=out, resume=resume, overfit=overfit, console=console, world=world)
    config = run.config
    with run.wish.listening():
        _open_folder(run)
        if run.resumed_from is None:
            run.save(state)  # from here on the run can be gone on with; a disk that cannot hold it says so now
        say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
        with RunLog(out, first_epoch=state.epoch, enabled=world.is_first, say=say) as log, run.wish.deferred():
            while state.epoch < config.train.epochs and not _is_stale(state, config):
                row = _train_epoch(run, state)
                if (state.epoch + 1) % config.train.eval_every == 0 or state.epoch + 1 == config.train.epochs:
                    run.save(state)  # scoring may take long, and a signal ends it
                    scores, numbers = _validate(run, state)
                    row |= numbers
                state.end_epoch()
                run.left_out.exchange()
                log.write(state.epoch, row)  # before the checkpoint: a resumed run drops rows that have no weights
                run.save(state)
                console.print(_epoch_line(state.epoch, config.train.epochs, row), highlight=False)
            if state.epoch < config.train.epochs:
                console.print(f"no better AP in {state.stale} validations (train.patience): stopped", highlight=False)
    return TrainResult(out, state.best_ap, scores)


def _prepare(
    config: Config, *, out: Path, resume: Path | None, overfit: int | None, console: Console, world: World
) -> tuple[Run, State]:
    """A run that stands where it begins, or where it was left."""
    if world.is_first:
        require_own_folder(out, resume)
    device = pick_device(config.train.device, world)
    torch.manual_seed(config.train.seed)
    config = config if overfit is None else overfit_config(config, images=overfit)
    _require_equal_parts(config, device, world)
    origin, source = world.share(_origin(config, resume, console) if world.is_first else None)
    if origin is not None:
        config, notes = adopt_needs(config, origin)
        if notes:
            console.print(f"the weights need {', '.join(notes)}", highlight=False)
    data, val_data, truth = _open_sets(config, overfit)
    batches = EpochBatches(
        len(data),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        # A few images make an epoch of few steps; visited often enough, they make as many as bookkeeping is worth.
        passes=1 if overfit is None else math.ceil(OVERFIT_STEPS * config.train.batch_size / len(data)),
        rank=world.rank,
        processes=world.size,
        accumulate=config.train.accumulate,
    )
    left_out = LeftOut(out, console, resumed=resume is not None, world=world)
    loader = training_loader(
        data,
        batches,
        config,
        device,
        preset=config.data.augment,
        pixels=_cached_pixels(config, data, console) if config.data.cache else None,
        mix=plan_mix(config.data, epochs=config.train.epochs),
        say=lambda fault: left_out.add([fault]),
        say_line=partial(console.print, highlight=False, markup=False, soft_wrap=True),
    )
    state = start_state(
        config,
        num_classes=len(data.class_names),
        steps_per_epoch=batches.steps,
        device=device,
        scale_loss=autocast_type(config.train, device) is torch.float16,
    )
    if origin is not None and resume is not None:
        restore_state(state, origin, config, data, source=source)
        _require_more_to_do(state, config, source=source)
    elif origin is not None:
        parts = itertools.islice(loader, math.ceil(UNFOLD_IMAGES / _part_size(config, world)))
        _start(state, origin, config, data, parts, console)
    console.print(_header(config, data, val_data, device, world), highlight=False)
    objective = _objective(state, config, data, device, world, console)
    guard = Guard(state.detector, out=out, class_names=data.class_names, world=world, console=console)
    run = Run(
        config,
        out,
        data,
        val_data,
        truth,
        device,
        world,
        console,
        objective,
        loader,
        batches,
        guard,
        left_out,
        resumed_from=None if resume is None else source,
    )
    return run, state


def _open_folder(run: Run) -> None:
    """Make the run folder what this run needs, whatever one that was interrupted has left there."""
    if run.world.is_first:
        write_text(run.out / "config.yaml", run.config.to_yaml())
        for name in RUN_FILES:
            remove_unfinished(run.out / name)
        if run.resumed_from is not None:
            take_over(run.resumed_from, run.out)
    run.left_out.add([*run.data.left_out, *run.val_data.left_out])


def _open_sets(config: Config, overfit: int | None) -> tuple[CocoData, CocoData, dict[str, Any]]:
    """What is trained on, what is scored on, and the annotations that it is scored by."""
    data = open_data(config.data, "train")
    refuse_fatal(nothing_to_learn(data.num_objects, str(data.source)))
    if overfit is None:
        val_data = open_data(config.data, "val", joined_to=data)
    else:
        data = val_data = data.head(overfit)
    return data, val_data, restrict(read_coco_json(val_data.source), val_data)


def _validate(run: Run, state: State) -> tuple[Scores, Row]:
    """Score the weights to detect with, and keep them if none were better."""
    # Else each process would score with what its own images left in batch norm, and the first alone saves its own.
    run.world.align(state.to_score.buffers())
    with run.wish.at_once():
        scores = score(state.to_score, run.data, run.val_data, run.truth, run.config, out=run.out, world=run.world)
        run.val_data = run.val_data.without(scores.left_out)
        val_loss = validation_loss(state.to_score, run.val_data, run.config, run.device, world=run.world)
    run.left_out.add(scores.left_out)
    if scores.ap > state.best_ap:
        state.best_ap, state.stale = scores.ap, 0
        if run.world.is_first:  # before last.pt: once that knows the best AP, nothing would write this
            save_best(state, run.config, run.data, run.out)
    else:
        state.stale += 1
    return scores, {"val_loss": val_loss, "AP": scores.numbers["AP"], "AP50": scores.numbers["AP50"]}


def _is_stale(state: State, config: Config) -> bool:
    return config.train.patience is not None and state.stale >= config.train.patience


def _require_more_to_do(state: State, config: Config, *, source: Path) -> None:
    if state.epoch >= config.train.epochs:
        raise ConfigError(f"{source}: has done {state.epoch} epochs; set train.epochs above that to go on")
    if _is_stale(state, config):
        raise ConfigError(
            f"{source}: stopped early, {state.stale} validations after its best; raise train.patience to go on"
        )


def _part_size(config: Config, world: World) -> int:
    """Images that go through the network at a time, in each process."""
    return config.train.batch_size // (world.size * config.train.accumulate)


def require_own_folder(out: Path, resume: Path | None) -> None:
    """It is a folder or nothing yet, and holds no run but the one that is resumed.

    Raises:
        ConfigError: it is not.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; --out names the run's folder")
    held = [name for name in ("last.pt", "previous.pt", "best.pt") if (out / name).exists()]
    if held and (resume is None or resume.resolve().parent != out.resolve()):
        advice = "" if held == ["best.pt"] else "go on with --resume auto, or "
        raise ConfigError(f"{out}: holds a run already ({', '.join(held)}); {advice}choose another --out")


def _require_equal_parts(config: Config, device: torch.device, world: World) -> None:
    """A batch can be cut into one part per process, and each of those into `train.accumulate`."""
    settings = config.train
    part = _part_size(config, world)
    cut = f"{world.size} processes × train.accumulate={settings.accumulate}"
    if part * world.size * settings.accumulate != settings.batch_size:
        raise ConfigError(
            f"train.batch_size: got {settings.batch_size}, which {cut} cannot share equally; it counts the images of "
            "all of them"
        )
    if part < 2 and not (settings.frozen_bn or (settings.sync_bn and world.size > 1)):
        raise ConfigError(
            f"train.batch_size: {settings.batch_size} over {cut} leaves {part} image in each part, and batch norm "
            "needs two; raise it, or set train.frozen_bn=true"
        )
    if settings.sync_bn and device.type != "cuda":
        raise ConfigError(f"train.sync_bn: needs GPUs, and this run is on {device}; leave it out")


def _origin(config: Config, resume: Path | None, console: Console) -> tuple[Checkpoint | None, Path | None]:
    """The weights that a run goes on from or starts from, if any, and their file."""
    if resume is None:
        return open_start(config, console=console), config.model.init
    checkpoint, source, damage = load_resumable(resume)
    if damage is not None:
        console.print(f"{damage}\ngoing on from the one before it, {source}", markup=False, soft_wrap=True)
    return checkpoint, source


def _start(
    state: State,
    origin: Checkpoint,
    config: Config,
    data: CocoData,
    batches: Iterable[Batch],
    console: Console,
) -> None:
    """Take what fits from `model.init`, and make its batch norm trainable, for which it looks at some `batches`."""
    assert config.model.init is not None
    started = start_from(state.detector, origin, config, class_names=data.class_names, source=config.model.init)
    console.print(f"{config.model.init}: {started}", highlight=False)
    if origin.folded:
        device = next(state.detector.parameters()).device
        # Few at a time: the second stage of Faster R-CNN makes hundreds of regions of each.
        few = (images.to(device) for batch in batches for images in batch.images.split(UNFOLD_TOGETHER))
        seen = unfold(state.detector, started, few)
        console.print(
            f"batch norm was folded in these weights; unfolded on {min(seen, len(data))} training images",
            highlight=False,
        )


def _objective(
    state: State, config: Config, data: CocoData, device: torch.device, world: World, console: Console
) -> nn.Module:
    """The losses of the detector that learns, shared by all processes."""
    teacher = open_teacher(config, data.class_names, device, console=console)
    if config.train.sync_bn and world.size > 1:
        state.detector = share_batch_norm(state.detector)
    if config.train.compile:
        if isinstance(state.detector, SSD):
            state.detector.anchors_for(config.model.input_hw)  # else it would be compiled for that one image too
        state.detector.backbone.compile()  # type: ignore[union-attr]  # every detector has one
    objective = Objective(
        state.detector,
        teacher=teacher,
        class_weight=config.train.distill_class,
        box_weight=config.train.distill_box,
    )
    return share_gradients(objective, world, device)


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


def _train_epoch(run: Run, state: State) -> Row:
    """The rest of one pass over the training images."""
    run.batches.epoch, run.batches.done = state.epoch, state.step
    train_mode(state.detector)
    waited, before = 0.0, state.step
    started = asked = time.perf_counter()
    with _out_of_memory_explained(run):
        for parts in _with_progress(_parts_of_steps(run), run, state):
            waited += time.perf_counter() - asked
            if state.position == 0:
                _rehearse(run, state, parts[0])
            parts = [part.to(run.device) for part in parts]
            _seed(run, state)
            normalizer, must_stop, must_save = _agree(run, state, parts)
            if must_stop:
                run.save(state)
                raise Stopped(run.wish.number or signal.SIGTERM)  # the signal may have come to another process
            state.count(_step(run, state, parts, normalizer))
            if must_save:
                run.save(state)
                run.console.print(_step_line(run, state), highlight=False)
            asked = time.perf_counter()
    seconds = time.perf_counter() - started
    steps, means = state.step - before, {f"loss_{name}": mean for name, mean in state.losses.items()}
    row: Row = {
        "lr": float(state.optimizer.param_groups[-1]["lr"]),
        "loss": sum(means.values()) if means else None,
        **means,
        "images_per_second": steps * run.config.train.batch_size / seconds if steps else None,
        "waiting_for_data": waited / seconds if steps else None,
    }
    return row | ({"skipped_steps": float(state.skipped)} if state.skipped else {})


def _step(run: Run, state: State, parts: Sequence[Batch], normalizer: Tensor | None) -> dict[str, Tensor] | None:
    """Forward, backward, clip, update, average.

    Args:
        run: the run.
        state: changed, unless the step is skipped.
        parts: those of one batch that go through this process, on its device.
        normalizer: of the whole batch, see `_agree`.

    Returns:
        The loss terms of the whole batch; None if they or the gradient are not finite, and the step was skipped.
    """
    settings = run.config.train
    run.guard.keep()
    set_lr(state.optimizer, lr_factor(state.position, settings, steps_per_epoch=state.steps_per_epoch))
    state.optimizer.zero_grad(set_to_none=True)
    terms: list[dict[str, Tensor]] = []
    for number, part in enumerate(parts, start=1):
        with without_sharing(run.objective) if number < len(parts) else nullcontext():
            with autocast(settings, run.device):
                losses = run.objective(part.images, part.targets, normalizer)
            state.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        terms.append({name: value.detach() for name, value in losses.items()})
    state.scaler.unscale_(state.optimizer)
    learning = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(learning, settings.clip_norm or math.inf)
    # Of several processes, each has the share of the whole batch's loss that goes with a mean of gradients.
    values = run.world.mean(torch.stack([torch.stack([part[name] for part in terms]).sum() for name in terms[0]]))
    finite_loss, finite_norm = torch.stack([torch.isfinite(values).all(), torch.isfinite(norm)]).tolist()
    # Where fp16 was too small, the scaler skips the step and scales less from then on, as long as that can help.
    if not finite_loss or not (finite_norm or state.scaler.get_scale() > 1):
        run.guard.refuse(parts, terms)
        state.scaler.update()
        return None
    run.guard.accept()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.detector)
    return dict(zip(terms[0], values, strict=True))


def _seed(run: Run, state: State) -> None:
    """Let what is random in a step follow from seed, position and process alone, so that no generator need be saved."""
    words = np.random.SeedSequence([run.config.train.seed, state.epoch, state.step, run.world.rank]).generate_state(1)
    random.seed(int(words[0]))
    np.random.seed(words)
    torch.manual_seed(int(words[0]))


def _agree(run: Run, state: State, parts: Sequence[Batch]) -> tuple[Tensor | None, bool, bool]:
    """What all processes must know before a step.

    Returns:
        What to divide the loss terms by, so that means over processes and sums over parts give those of the whole
        batch (None where the batch is not cut, and divides by its own); whether to stop; whether to save.
    """
    must_stop, must_save = run.wish.number is not None, run.must_save
    if run.world.size * len(parts) == 1:
        return None, must_stop, must_save
    height, width = run.config.model.input_hw
    targets = [target for part in parts for target in part.targets]
    normalizer = state.detector.normalizer(targets, image_hw=(height, width))
    wishes = torch.tensor([must_stop, must_save and run.world.is_first], dtype=torch.float32, device=run.device)
    mean = run.world.mean(torch.cat([normalizer.reshape(1).float(), wishes]))
    _, stopping, saving = mean.tolist()
    return mean[0].clamp(min=1 / run.world.size), stopping > 0, saving > 0


def _rehearse(run: Run, state: State, batch: Batch) -> None:
    """Send the first batch through everything, so that what is wrong is not found after a night; nothing is kept.

    Each process sends its part, since batch norm may want those of all; the rest is for the first.
    """
    if run.world.is_first:
        write_image(run.out / "train_batch.jpg", picture_batch(batch, run.data.class_names))
    run.guard.keep()
    on_device = batch.to(run.device)
    with autocast(run.config.train, run.device):
        losses = state.detector.losses(on_device.images, on_device.targets)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    state.optimizer.zero_grad(set_to_none=True)
    run.guard.undo()
    if not run.world.is_first:
        return
    rehearse_scoring(state.to_score, run.data, run.val_data, run.truth, run.config)
    terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
    reach = measure_reach(run.config, run.data, propose=False)
    advice = "; `mnet-det check … --config` proposes others" if reach.total.share > MOST_UNREACHED else ""
    run.console.print(
        f"first batch: loss {total.item():.3f} ({terms}); {reach}{advice}", highlight=False, soft_wrap=True
    )


@contextmanager
def _out_of_memory_explained(run: Run) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        height, width = run.config.model.input_hw
        raise ConfigError(
            f"{_part_size(run.config, run.world)} images of {width}x{height} at a time do not fit into the memory of "
            f"{run.device}; train.accumulate={2 * run.config.train.accumulate} takes half as many at a time and "
            "learns the same but for batch norm, or lower train.batch_size, model.rho or model.alpha"
        ) from None


def _parts_of_steps(run: Run) -> Iterator[list[Batch]]:
    """For each step, the parts of its batch that go through this process."""
    parts = iter(run.loader)
    while step := list(itertools.islice(parts, run.config.train.accumulate)):
        yield step


def _with_progress(steps: Iterator[list[Batch]], run: Run, state: State) -> Iterator[list[Batch]]:
    """The same, with a bar while a person watches: time left in the epoch, images a second."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s, left in this epoch"),
        TimeRemainingColumn(),
    )
    config = run.config.train
    started = time.perf_counter()
    shown_on = run.console if run.console.is_terminal else Console(quiet=True)
    with Progress(*columns, console=shown_on, transient=True) as progress:
        task = progress.add_task(
            "", total=state.steps_per_epoch, completed=state.step, epoch=state.epoch + 1, epochs=config.epochs, rate=0.0
        )
        for done, step in enumerate(steps, start=1):
            yield step
            rate = done * config.batch_size / (time.perf_counter() - started)
            progress.update(task, advance=1, rate=rate)


def _header(config: Config, data: CocoData, val_data: CocoData, device: torch.device, world: World) -> str:
    height, width = config.model.input_hw
    # torchvision's and timm's networks bring their own
    eps = f"eps {config.model.bn_eps:g} and " if config.model.backbone in ("mobilenet_v1", "inception_v2") else ""
    lacking = [name for name, own in zip(val_data.class_names, val_data.category_ids, strict=True) if own is None]
    unscored = f", none of them of {', '.join(lacking)}" if lacking else ""
    settings = config.train
    lr = scaled_lr(settings)
    scaled = f" ({settings.lr:.4g} for batches of {settings.lr_batch_size})" if lr != settings.lr else ""
    processes = f" in {world.size} processes" if world.size > 1 else ""
    return (
        f"{config.model.head} on {config.model.backbone}, alpha {config.model.alpha}, input {width}x{height}, "
        f"{len(data.class_names)} classes, on {device}{processes}\n"
        f"{len(data)} training images with {data.num_boxes} boxes; {len(val_data)} validation images{unscored}\n"
        f"{settings.optimizer}, lr {lr:.4g}{scaled}, batch {settings.batch_size}, "
        f"{settings.epochs} epochs, weight decay {settings.weight_decay:g}, ema {settings.ema:g}, "
        f"batch norm {eps}momentum {config.model.bn_momentum:g}, seed {settings.seed}"
    )


def _step_line(run: Run, state: State) -> str:
    loss = _shown(sum(state.losses.values()) if state.losses else None)
    return (
        f"epoch {state.epoch + 1}/{run.config.train.epochs}, step {state.step}/{state.steps_per_epoch}: "
        f"loss {loss}, saved"
    )


def _epoch_line(epoch: int, epochs: int, row: Row) -> str:
    line = f"epoch {epoch}/{epochs}: loss {_shown(row['loss'])}"
    if row["images_per_second"] is not None:
        waiting = row["waiting_for_data"]
        line += f", {row['images_per_second']:.0f} images/s, {waiting:.0%} of the time waiting for data"
    if "skipped_steps" in row:
        line += f", {row['skipped_steps']:.0f} steps skipped"
    if "val_loss" in row:
        line += f"; validation loss {_shown(row['val_loss'])}, AP {_shown(row['AP'])}, AP50 {_shown(row['AP50'])}"
    return line


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
