"""How long a sweep may take: a few steps of each network are timed on this machine, the rest is multiplied."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from rich.console import Console

from mnet_det.engine.device import autocast, pick_device
from mnet_det.engine.measure import read_trained
from mnet_det.engine.plan import Plan, PlannedRun, Point
from mnet_det.engine.sweep import is_finished, threads_of_a_job
from mnet_det.models import build_detector
from mnet_det.structures import Target

TIMED_IMAGES = 4
"""That go through a network at a time on a CPU; more take as much longer. A GPU gets as many as in training."""
TIMED_STEPS = 2
SCORING = 0.5
"""An image that is scored, and whose loss is taken, against one that is learned from: forward twice, backward never."""
OBJECTS = 10
"""In each image of noise that is learned from."""


def estimate(plan: Plan, folder: Path, *, jobs: int, console: Console) -> dict[str, float | None]:
    """Minutes that are left of each run that is not finished, by its name; None where it cannot be built or timed.

    Of a run that was interrupted, the epochs that are behind are not counted.

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
    seconds: dict[Point, float | None] = {}
    for run in unfinished:
        if run.point not in seconds:
            console.print(f"timing {run.point}", highlight=False)
            try:
                seconds[run.point] = seconds_per_image(run, classes=len(plan.class_names))
            except (RuntimeError, MemoryError) as error:  # memory does not hold it; the others are timed all the same
                reason = str(error).splitlines()[0] if str(error) else "out of memory"
                console.print(f"{run.point}: cannot be timed, {reason}", highlight=False, markup=False, soft_wrap=True)
                seconds[run.point] = None
    minutes: dict[str, float | None] = {run.name: None for run in plan.runs if run.fault is not None}
    for run in unfinished:
        each = seconds[run.point]
        behind = read_trained(folder / run.name).epochs
        minutes[run.name] = None if each is None else each * images_to_see(run, plan, behind=behind) / 60
    return minutes


def images_to_see(run: PlannedRun, plan: Plan, *, behind: int = 0) -> float:
    """How many images a run learns from, those that it is scored on counted at their share; `behind`: whole epochs."""
    settings = run.config.train
    epochs = max(0, settings.epochs - behind)
    validations = math.ceil(settings.epochs / settings.eval_every) - behind // settings.eval_every if epochs else 0
    return epochs * plan.training_images + SCORING * validations * plan.validation_images


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
    at_once = TIMED_IMAGES if device.type == "cpu" else max(1, config.train.batch_size // config.train.accumulate)
    images = torch.randint(256, (at_once, 3, height, width), generator=generator, dtype=torch.uint8).to(device)
    targets = [_target(height, width, classes, generator, device) for _ in range(at_once)]

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
    return (time.perf_counter() - started) / (TIMED_STEPS * at_once)


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
