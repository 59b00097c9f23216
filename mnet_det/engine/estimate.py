"""How long a sweep may take: a few steps of each network are timed on this machine, the rest is multiplied."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from rich.console import Console

from mnet_det.engine.device import autocast, pick_device
from mnet_det.engine.plan import Plan, PlannedRun, Point
from mnet_det.engine.sweep import is_finished, threads_of_a_job
from mnet_det.models import build_detector
from mnet_det.structures import Target

TIMED_IMAGES = 4
"""That go through a network at a time; more take as much longer."""
TIMED_STEPS = 2
SCORING = 0.5
"""An image that is scored, and whose loss is taken, against one that is learned from: forward twice, backward never."""
OBJECTS = 10
"""In each image of noise that is learned from."""


def estimate(plan: Plan, folder: Path, *, jobs: int, console: Console) -> dict[str, float | None]:
    """Minutes that are left of each run, by its name: 0 where it is finished, None where it cannot be built.

    A few steps of each network are timed, with as many threads as a job has, on images of noise. Left out are reading
    and augmenting images, which other processes do meanwhile, and measuring. torch computes with as many threads from
    then on.

    Args:
        plan: the sweep.
        folder: where its finished runs are.
        jobs: runs at a time, which share the cores.
        console: where it is said what takes a while.

    Raises:
        ConfigError: a device that this machine lacks.
    """
    torch.set_num_threads(threads_of_a_job(jobs))
    unfinished = [run for run in plan.runs if run.fault is None and not is_finished(folder, run)]
    seconds: dict[Point, float] = {}
    for run in unfinished:
        if run.point not in seconds:
            console.print(f"timing {run.point}", highlight=False)
            seconds[run.point] = seconds_per_image(run, classes=len(plan.class_names))
    minutes: dict[str, float | None] = {run.name: None if run.fault else 0.0 for run in plan.runs}
    for run in unfinished:
        minutes[run.name] = seconds[run.point] * images_to_see(run, plan) / 60
    return minutes


def images_to_see(run: PlannedRun, plan: Plan) -> float:
    """How many images a run learns from, those that it is scored on counted at their share."""
    settings = run.config.train
    validations = math.ceil(settings.epochs / settings.eval_every)
    return settings.epochs * plan.training_images + SCORING * validations * plan.validation_images


def seconds_per_image(run: PlannedRun, *, classes: int) -> float:
    """Of a training step, forward and backward.

    Raises:
        ConfigError: a device that this machine lacks.
    """
    config = run.config
    device = pick_device(config.train.device)
    generator = torch.Generator().manual_seed(0)
    detector = build_detector(config.model, num_classes=classes).to(device).train()
    height, width = config.model.input_hw
    images = torch.randint(256, (TIMED_IMAGES, 3, height, width), generator=generator, dtype=torch.uint8).to(device)
    targets = [_target(height, width, classes, generator, device) for _ in range(TIMED_IMAGES)]

    def step() -> None:
        with autocast(config.train, device):
            losses = detector.losses(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()  # memory is taken and kernels are chosen
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step()
    return (time.perf_counter() - started) / (TIMED_STEPS * TIMED_IMAGES)


def _target(height: int, width: int, classes: int, generator: torch.Generator, device: torch.device) -> Target:
    """Boxes from a tenth to a half of the image, anywhere."""
    sides = 0.1 + 0.4 * torch.rand((OBJECTS, 2), generator=generator)
    corners = torch.rand((OBJECTS, 2), generator=generator) * (1 - sides)
    boxes = torch.cat([corners, corners + sides], dim=1) * torch.tensor([width, height, width, height])
    return Target(
        boxes_xyxy=boxes.to(device),
        labels=torch.randint(classes, (OBJECTS,), generator=generator).to(device),
        ignored_xyxy=torch.zeros((0, 4), device=device),
        valid_hw=(height, width),
    )
