"""Drawn folders of sweeps and runs: the files that a report reads, with made-up numbers that behave like real ones."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MACHINE = {"cpu": "Example CPU @ 2.00GHz", "physical_cores": 2, "logical_cores": 4, "os": "Linux", "openvino": "2026.4"}
CELLS = ("RBC", "WBC", "Platelets")
NUMBERS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
RECALLS = ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")
AP_OF_ALPHA = {1.0: 0.58, 0.75: 0.565, 0.5: 0.53, 0.25: 0.43}


@dataclass(frozen=True)
class Sweep:
    """What to draw. Runs in `failed` and `open` are named as (alpha, rho, seed)."""

    alphas: Sequence[float] = (1.0, 0.75, 0.5, 0.25)
    rhos: Sequence[float] = (1.0,)
    seeds: Sequence[int] = (0,)
    classes: Sequence[str] = CELLS
    without_objects: Sequence[str] = ()
    failed: Sequence[tuple[float, float, int]] = ()
    open: Sequence[tuple[float, float, int]] = ()
    latency: bool = True
    epochs: int = 16
    start: Mapping[float, str | None] | None = None
    title: str = "finetune_ssd300_mobilenet_v1.yaml"


def draw_sweep(folder: Path, sweep: Sweep) -> Path:
    """Draw the folder of a sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    runs, rows, timed = [], [], set()
    for alpha in sweep.alphas:
        for rho in sweep.rhos:
            for seed in sweep.seeds:
                run = _planned(sweep, alpha, rho, seed)
                runs.append(run)
                if (alpha, rho, seed) in sweep.open:
                    continue
                (folder / run["name"]).mkdir(exist_ok=True)
                _history(folder / run["name"], sweep, alpha, rho, seed)
                if (alpha, rho, seed) in sweep.failed:
                    content: dict[str, Any] = {"reason": "the loss was not finite 5 times in a row", "log": "train.log"}
                    (folder / run["name"] / "failed.json").write_text(json.dumps(content))
                    continue
                measured = draw_measured(sweep, run)
                (folder / run["name"] / "measured.json").write_text(json.dumps(measured))
                (folder / run["name"] / "best.pt").touch()
                if (alpha, rho) not in timed:
                    timed.add((alpha, rho))
                    rows.append(draw_latency_row(run))
    data = {
        "train": "bccd/train.json",
        "val": "bccd/val.json",
        "training_images": 205,
        "validation_images": 87,
        "class_names": list(sweep.classes),
    }
    plan = {
        "format": 1,
        "base_key": "ba5e",
        "title": sweep.title,
        "command": f"mnet-det sweep {sweep.title} --alpha 1,0.75,0.5,0.25 train.epochs={sweep.epochs}",
        "base": {"model": {"head": "ssd"}, "train": {"epochs": sweep.epochs, "batch_size": 16}},
        "words": [f"train.epochs={sweep.epochs}"],
        "data": data,
        "runs": runs,
    }
    (folder / "sweep.json").write_text(json.dumps(plan))
    if sweep.latency:
        (folder / "latency.json").write_text(json.dumps(draw_latency(rows)))
    return folder


def draw_latency(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "machine": MACHINE,
        "images": "64 images of bccd/val.json",
        "frame_hw": None,
        "score": 0.5,
        "measured_at": "2026-11-23T16:00:00+00:00",
        "rows": list(rows),
    }


def draw_latency_row(run: Mapping[str, Any]) -> dict[str, Any]:
    """The network takes 8 ms and 25 ms a thousand million multiply-adds, each 5 % more than the median at p95."""
    network = 8 + run["mult_adds"] / 1e9 * 25
    stages = {"preprocess_ms": 2.1, "network_ms": network, "postprocess_ms": 1.4}
    stages["total_ms"] = sum(stages.values())
    alpha = run["point"]["alpha"]
    row = {"name": run["name"], "model": run["name"], "alpha": alpha, "input_hw": run["input_hw"]}
    row |= {name: {"p50": round(value, 3), "p95": round(1.05 * value, 3)} for name, value in stages.items()}
    row |= {"runtime": "openvino", "threads": 2, "precision": "float32", "detections": 12.4}
    return row | {"fps": 1000 / stages["total_ms"]}


def draw_measured(sweep: Sweep, run: Mapping[str, Any]) -> dict[str, Any]:
    """measured.json of a run of the plan."""
    point, seed = run["point"], run["seed"]
    chance = random.Random(f"{point} {seed}")
    ap = AP_OF_ALPHA.get(point["alpha"], 0.5) * point["rho"] ** 0.45 + chance.gauss(0, 0.006)
    classes = _class_aps(sweep, ap)
    scores: dict[str, Any] = dict(zip(NUMBERS, (ap, 1.5 * ap, 1.1 * ap, 0.5 * ap, 0.9 * ap, 1.2 * ap), strict=True))
    scores |= dict(zip(RECALLS, (0.3, 0.5, 1.15 * ap, 0.6 * ap, ap, 1.25 * ap), strict=True))
    scores |= {"per_class": classes, "images": 87, "runtime": "openvino", "classes_left_out": 0, "left_out": []}
    return {
        "format": 1,
        **{name: run[name] for name in ("key", "name", "point", "seed", "input_hw", "start", "mult_adds", "params")},
        "epochs": sweep.epochs,
        "best_epoch": sweep.epochs - seed,
        "minutes": 12.3 * point["alpha"] + 3,
        "file_bytes": 4 * run["params"] + 90_000,
        "scores": scores,
        "analysis": draw_analysis(sweep, classes, chance),
        "training_images": 205,
        "validation_images": 87,
        "class_names": list(sweep.classes),
        "machine": MACHINE,
        "mnet_det": "0.1.0",
        "measured_at": "2026-11-23T15:00:00+00:00",
    }


def draw_analysis(sweep: Sweep, classes: Mapping[str, float | None], chance: random.Random) -> dict[str, Any]:
    recall = [index / 100 for index in range(101)]
    curves = {
        iou: {name: None if ap is None else _curve(recall, min(0.97, factor * ap)) for name, ap in classes.items()}
        for iou, factor in (("0.50", 1.45), ("0.75", 1.1))
    }
    objects = {
        name: 0 if ap is None else max(3, int(968 / (1 + place) ** 1.1))
        for place, (name, ap) in enumerate(classes.items())
    }
    per_class = {
        name: {
            "objects": objects[name],
            **{
                key: None if ap is None else min(0.97, factor * ap)
                for key, factor in zip(NUMBERS, (1, 1.5, 1.1, 0.5, 0.9, 1.2), strict=True)
            },
        }
        for name, ap in classes.items()
    }
    best = {
        name: None if ap is None else {"score": 0.43, "precision": 0.8, "recall": 0.75, "f1": 0.774}
        for name, ap in classes.items()
    }
    count = len(classes) + 1
    matrix = [[0] * count for _ in range(count)]
    for place, name in enumerate(classes):
        hits = int(0.75 * objects[name])
        matrix[place][place] = hits
        other = chance.randrange(count - 1)
        wrong = (objects[name] - hits) // 3 if other != place else 0
        matrix[place][other] += wrong
        matrix[place][-1] = objects[name] - hits - wrong
        matrix[-1][place] = int(0.2 * objects[name])
    confusion = {
        "labels": [*classes, "background"],
        "iou": 0.5,
        "scores": dict.fromkeys(classes, 0.43),
        "matrix": matrix,
    }
    return {"recall": recall, "curves": curves, "per_class": per_class, "best_f1": best, "confusion": confusion}


def _planned(sweep: Sweep, alpha: float, rho: float, seed: int) -> dict[str, Any]:
    side = int(300 * rho + 0.5)
    starts = {1.0: "mobilenet_v1_1.0_224", 0.5: "mobilenet_v1_0.5_160_quant"} if sweep.start is None else sweep.start
    key = f"{abs(hash((alpha, rho, seed))) % 16**6:06x}"
    return {
        "name": f"ssd-mobilenet_v1-alpha{alpha:g}-rho{rho:g}-seed{seed}-{key}",
        "key": key,
        "point": {"head": "ssd", "backbone": "mobilenet_v1", "alpha": alpha, "rho": rho},
        "seed": seed,
        "input_hw": [side, side],
        "start": starts.get(alpha),
        "mult_adds": int(1.13e9 * (0.88 * alpha**2 + 0.12 * alpha) * (side / 300) ** 2),
        "params": int(6.0e6 * (0.85 * alpha**2 + 0.15 * alpha)),
        "fault": None,
    }


def _class_aps(sweep: Sweep, ap: float) -> dict[str, float | None]:
    with_objects = [name for name in sweep.classes if name not in sweep.without_objects]
    middle = (len(with_objects) - 1) / 2
    return {
        name: ap * (1 + 0.5 * (middle - with_objects.index(name)) / max(1, middle)) if name in with_objects else None
        for name in sweep.classes
    }


def _curve(recall: Sequence[float], ap: float) -> list[float]:
    """Falls from near 1 and ends in zeros; its mean is about `ap`."""
    end = min(1.0, 1.15 * ap)
    return [0.99 - 0.35 * (value / end) ** 4 if value < end else 0.0 for value in recall]


def _history(folder: Path, sweep: Sweep, alpha: float, rho: float, seed: int) -> None:
    chance = random.Random(f"{alpha} {rho} {seed}")
    over = sweep.epochs // 2 if (alpha, rho, seed) in sweep.failed else sweep.epochs
    with (folder / "metrics.csv").open("w", newline="") as file:
        columns = ("epoch", "lr", "loss", "loss_class", "loss_box", "images_per_second", "val_loss", "AP", "AP50")
        writer = csv.writer(file)
        writer.writerow(columns)
        for epoch in range(1, over + 1):
            loss = 5.5 * math.exp(-epoch / 5) + 2.3 - 0.5 * alpha + chance.gauss(0, 0.05)
            ap = AP_OF_ALPHA.get(alpha, 0.5) * (1 - math.exp(-epoch / 4)) * rho**0.45
            scored = (f"{loss + 0.3:.4f}", f"{ap:.4f}", f"{1.5 * ap:.4f}") if epoch % 2 == 0 else ("", "", "")
            writer.writerow((epoch, 0.01, f"{loss:.4f}", f"{0.7 * loss:.4f}", f"{0.3 * loss:.4f}", 20.5, *scored))
    (folder / "config.yaml").write_text(
        f"model:\n  head: ssd\n  alpha: {alpha}\n  rho: {rho}\ntrain:\n  seed: {seed}\n"
    )


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Path]:
    """`make_sweep(seeds=(0, 1))` draws a sweep with these fields of `Sweep` and returns its folder."""
    return lambda **fields: draw_sweep(tmp_path / "sweep", Sweep(**fields))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Draws one run alone, measured outside a sweep, and returns its folder."""

    def make(**fields: Any) -> Path:
        folder = draw_sweep(tmp_path / "one", Sweep(alphas=(0.5,), **fields))
        plan = json.loads((folder / "sweep.json").read_text())
        run = folder / plan["runs"][0]["name"]
        measured = json.loads((run / "measured.json").read_text())
        (run / "measured.json").write_text(json.dumps(measured | {"key": None}))
        if (folder / "latency.json").is_file():
            (folder / "latency.json").rename(run / "latency.json")
        return run

    return make


HOSTILE = ("</script><script>alert(1)</script>", "a|b*c_d_[e](f)", "<b>`$x^2$`</b>", "&amp; \\ ~~#~~")
"""Names that mean something to HTML, Markdown or mathtext."""


@pytest.fixture
def hostile() -> tuple[str, ...]:
    return HOSTILE
