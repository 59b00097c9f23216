"""Everything that changes while a run goes on, and how it is saved and restored."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mnet_det.config import Config
from mnet_det.data.coco import CocoData
from mnet_det.engine.checkpoint import Checkpoint, save_checkpoint
from mnet_det.engine.freeze import freeze
from mnet_det.engine.schedule import build_optimizer
from mnet_det.engine.start import plain
from mnet_det.errors import CheckpointError
from mnet_det.files import whole_file
from mnet_det.models import build_detector, tap_names
from mnet_det.models.detector import Detector

KEPT_SETTINGS = (
    "optimizer",
    "lr",
    "lr_batch_size",
    "backbone_lr_factor",
    "freeze_blocks",
    "frozen_bn",
    "momentum",
    "weight_decay",
    "batch_size",
)
"""Settings of `train` that a run keeps to its end: the optimiser's state brings its own, the schedule counts steps."""


@dataclass
class State:
    """Detector, its running average, optimiser, loss scaler, and how far the run has come.

    What is random in a step, and its learning rate, follow from seed and position alone, so that neither is here.

    Attributes:
        detector: the weights that learn.
        average: their running average, if the run has one.
        optimizer: with its momenta.
        scaler: of the loss, for fp16.
        steps_per_epoch: optimiser steps.
        epoch: whole epochs behind.
        step: steps of the next one that are behind.
        skipped: of these, how many were skipped.
        sums: each loss term, summed over the steps of this epoch that were not skipped.
        best_ap: of all validations, -1 before the first.
        stale: validations since then.
    """

    detector: Detector
    average: AveragedModel | None
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    skipped: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    best_ap: float = -1.0
    stale: int = 0

    @property
    def to_score(self) -> Detector:
        """The weights to detect with: the averaged ones where the run averages."""
        if self.average is None:
            return self.detector
        averaged = self.average.module
        assert isinstance(averaged, Detector)
        return averaged

    @property
    def position(self) -> int:
        """Steps behind, of all epochs."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def losses(self) -> dict[str, float]:
        """Mean of each loss term in this epoch; none where all of its steps were skipped."""
        return {name: float(value) / (self.step - self.skipped) for name, value in self.sums.items()}

    def count(self, losses: dict[str, Tensor] | None) -> None:
        """One step more, of which these were the loss terms; None if it was skipped."""
        self.step += 1
        if losses is None:
            self.skipped += 1
            return
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def end_epoch(self) -> None:
        """Stand at the beginning of the next one."""
        self.epoch, self.step, self.skipped, self.sums = self.epoch + 1, 0, 0, {}


def start_state(
    config: Config, *, num_classes: int, steps_per_epoch: int, device: torch.device, scale_loss: bool
) -> State:
    """Random weights and fresh everything; `scale_loss` for fp16.

    Raises:
        ConfigError: see `build_detector` and `freeze`.
    """
    detector = build_detector(config.model, num_classes=num_classes).to(device)
    detector = detector.to(memory_format=torch.channels_last)
    average = _average(detector, decay=config.train.ema) if config.train.ema else None
    freeze(detector, blocks=config.train.freeze_blocks, batch_norm=config.train.frozen_bn)
    return State(
        detector=detector,
        average=average,
        optimizer=build_optimizer(detector, config.train),
        scaler=torch.amp.GradScaler(device.type, enabled=scale_loss),
        steps_per_epoch=steps_per_epoch,
    )


def save_state(state: State, config: Config, data: CocoData, out: Path) -> None:
    """Write `last.pt`; the one before it becomes `previous.pt`."""
    training = {
        "detector": state.detector.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "steps_per_epoch": state.steps_per_epoch,
        "epoch": state.epoch,
        "step": state.step,
        "skipped": state.skipped,
        "sums": state.sums,
        "best_ap": state.best_ap,
        "stale": state.stale,
    }
    last = out / "last.pt"
    if last.exists():  # linked or copied, not renamed: a run that is killed here still has its last.pt
        with whole_file(out / "previous.pt") as temporary:
            _link(last, temporary)
    save_checkpoint(last, _checkpoint(state, config, data, training))


def save_best(state: State, config: Config, data: CocoData, out: Path) -> None:
    """Write `best.pt`, which has the weights to detect with and nothing else."""
    save_checkpoint(out / "best.pt", _checkpoint(state, config, data, None))


def take_over(source: Path, out: Path) -> None:
    """Let `last.pt` be the checkpoint that is gone on from, where that is an earlier one or another folder's.

    Saving makes `last.pt` the previous one: a damaged one would take the place of the only one that is good. Of another
    folder's run come, too, the weights that had its best AP, and its numbers.
    """
    taken = [(source, out / "last.pt")]
    if source.resolve().parent != out.resolve():
        taken += [(source.with_name(name), out / name) for name in ("best.pt", "metrics.csv", "train_batch.jpg")]
    for theirs, ours in taken:
        if theirs.exists() and not (ours.exists() and ours.samefile(theirs)):
            with whole_file(ours) as temporary:
                _link(theirs, temporary)


def restore_state(state: State, checkpoint: Checkpoint, config: Config, data: CocoData, *, source: Path) -> None:
    """Bring `state` to where a checkpoint left off; `source` names its file in errors.

    Raises:
        CheckpointError: it is no `last.pt`, or its model, optimiser or classes are not this run's.
    """
    saved: dict[str, Any] | None = checkpoint.training
    if saved is None:
        raise CheckpointError(
            f"{source}: holds weights only; resume from last.pt, or start from it with model.init={source}"
        )
    if "step" not in saved:
        raise CheckpointError(
            f"{source}: an earlier version of mnet-det wrote it, which this one cannot go on from; start from its "
            f"weights with model.init={source}"
        )
    if checkpoint.class_names != data.class_names:
        raise CheckpointError(
            f"{source}: was trained on {len(checkpoint.class_names)} classes ({_few(checkpoint.class_names)}), "
            f"the data have {len(data.class_names)} ({_few(data.class_names)}); "
            f"start from it with model.init={source} instead"
        )
    ours, theirs = _kept_settings(config), _kept_settings(checkpoint.config)
    differing = [f"{key}={plain(theirs[key])} (now {plain(ours[key])})" for key in ours if ours[key] != theirs[key]]
    if differing:
        raise CheckpointError(f"{source}: was trained with {', '.join(differing)}; resume with its own settings")
    if saved["steps_per_epoch"] != state.steps_per_epoch:
        raise CheckpointError(
            f"{source}: an epoch had {saved['steps_per_epoch']} steps, now it has {state.steps_per_epoch}; resume with "
            f"the same images and train.batch_size, or start from it with model.init={source}"
        )
    if (saved["average"] is None) != (state.average is None):
        raise CheckpointError(f"{source}: was trained with train.ema={checkpoint.config.train.ema}; resume with that")
    state.detector.load_state_dict(saved["detector"])
    if state.average is not None:
        state.average.load_state_dict(saved["average"])
    state.optimizer.load_state_dict(saved["optimizer"])
    if saved["scaler"]:  # empty from a run that did not scale its loss
        state.scaler.load_state_dict(saved["scaler"])
    device = next(state.detector.parameters()).device
    state.sums = {name: value.to(device) for name, value in saved["sums"].items()}
    state.epoch, state.step, state.skipped = saved["epoch"], saved["step"], saved["skipped"]
    state.best_ap, state.stale = saved["best_ap"], saved["stale"]


def _checkpoint(state: State, config: Config, data: CocoData, training: dict[str, Any] | None) -> Checkpoint:
    return Checkpoint(config, data.class_names, data.known_ids, state.to_score.state_dict(), training)


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy of it where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _kept_settings(config: Config) -> dict[str, Any]:
    """What must be the same on both sides of a resume, by name; where the weights once started from is past."""
    model = {f"model.{key}": value for key, value in config.model.model_dump(exclude={"init"}).items()}
    model["model.taps"] = tap_names(config.model)  # whether they are spelt out or the backbone's own choice
    return model | {f"train.{key}": getattr(config.train, key) for key in KEPT_SETTINGS}


def _average(detector: Detector, *, decay: float) -> AveragedModel:
    """Exponential moving average of weights and batch-norm statistics; its decay rises, to forget the random start."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, updates: Tensor | int) -> None:
        count = int(updates)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        if averaged[0].is_floating_point():  # it comes with all tensors of one type at a time
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(detector, multi_avg_fn=update, use_buffers=True)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
