"""Everything that changes while a run goes on, and how it is saved and restored."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from mnet_det.config import Config
from mnet_det.data.coco import CocoData
from mnet_det.engine.checkpoint import Checkpoint, save_checkpoint
from mnet_det.engine.schedule import build_optimizer, build_schedule
from mnet_det.engine.start import plain
from mnet_det.errors import CheckpointError
from mnet_det.files import whole_file
from mnet_det.models import build_detector, tap_names
from mnet_det.models.detector import Detector

KEPT_SETTINGS = ("optimizer", "lr", "momentum", "weight_decay", "batch_size")
"""Settings of `train` that a run keeps to its end: the optimiser's state brings its own, the schedule counts steps."""


@dataclass
class State:
    """Detector, its running average, optimiser, schedule, loss scaler, and how far the run has come."""

    detector: Detector
    average: AveragedModel | None
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    steps_per_epoch: int
    epoch: int = 0
    best_ap: float = -1.0

    @property
    def to_score(self) -> Detector:
        """The weights to detect with: the averaged ones where the run averages."""
        if self.average is None:
            return self.detector
        averaged = self.average.module
        assert isinstance(averaged, Detector)
        return averaged


def start_state(
    config: Config, *, num_classes: int, steps_per_epoch: int, device: torch.device, scale_loss: bool
) -> State:
    """Random weights and fresh everything; `scale_loss` for fp16."""
    detector = build_detector(config.model, num_classes=num_classes).to(device)
    detector = detector.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(detector, config.train)
    return State(
        detector=detector,
        average=_average(detector, decay=config.train.ema) if config.train.ema else None,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, config.train, steps_per_epoch=steps_per_epoch),
        scaler=torch.amp.GradScaler(device.type, enabled=scale_loss),
        steps_per_epoch=steps_per_epoch,
    )


def save_state(state: State, config: Config, data: CocoData, out: Path, *, best: bool) -> None:
    """Write `last.pt` (the one before it becomes `previous.pt`) and, where it is the best yet, `best.pt`."""
    weights = state.to_score.state_dict()
    training = {
        "detector": state.detector.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "epoch": state.epoch,
        "best_ap": state.best_ap,
        "steps_per_epoch": state.steps_per_epoch,
    }
    if best:  # first: once last.pt knows the best AP, nothing would write this again
        save_checkpoint(out / "best.pt", Checkpoint(config, data.class_names, data.known_ids, weights))
    last = out / "last.pt"
    if last.exists():  # copied, not renamed: a run that is killed here still has its last.pt
        with whole_file(out / "previous.pt") as temporary:
            shutil.copyfile(last, temporary)
    save_checkpoint(last, Checkpoint(config, data.class_names, data.known_ids, weights, training))


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
    state.schedule.load_state_dict(saved["schedule"])
    if saved["scaler"]:  # empty from a run that did not scale its loss
        state.scaler.load_state_dict(saved["scaler"])
    state.epoch = saved["epoch"]
    state.best_ap = saved["best_ap"]


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
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)

    return AveragedModel(detector, multi_avg_fn=update, use_buffers=True)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
