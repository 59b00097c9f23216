"""What is measured of a trained run: COCO's numbers and their analysis, cost, file size; and latencies, in turns."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnet_det import __version__
from mnet_det.config import DataConfig
from mnet_det.data import open_data
from mnet_det.engine.analysis import analyse_model
from mnet_det.engine.bench import LIVE_SCORE, MOST_IMAGES
from mnet_det.engine.checkpoint import open_detector, store_class_scores
from mnet_det.engine.claim import turn
from mnet_det.engine.plan import Point
from mnet_det.engine.torch_backend import load_torch_predictor
from mnet_det.errors import CheckpointError, DataError, ImageError
from mnet_det.files import sha256_of, write_json
from mnet_det.models import build_detector
from mnet_det.models.cost import count_cost
from mnet_det.runtime.benchmark import benchmark, machine
from mnet_det.runtime.cache import exported
from mnet_det.runtime.choice import installed_engines
from mnet_det.runtime.predictor import load_predictor
from mnet_det.structures import Image
from mnet_det.sweep_folder import MEASURED_FILE

DETECTIONS_FILE = "detections.json"
LATENCY_FILE = "latency.json"
FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """What a run's `metrics.csv` says of its training.

    Attributes:
        epochs: how many were trained.
        best_epoch: the one whose weights are in `best.pt`; None where no validation is in the file.
    """

    epochs: int
    best_epoch: int | None


def measure_run(
    folder: Path,
    *,
    key: str | None = None,
    minutes: float | None = None,
    threads: int | None = None,
    data_config: DataConfig | None = None,
) -> dict[str, Any]:
    """Score a run's `best.pt` on its own validation images, and write what came out into its folder.

    `measured.json` is there only when all else is. The score thresholds with the best F1 become part of `best.pt`.

    Args:
        folder: of the run.
        key: of a sweep's run.
        minutes: that its training took, where somebody took them.
        threads: how many to compute with; physical cores unless given.
        data_config: where its data are now; unless given, where they were when it was trained.

    Returns:
        The content of `measured.json`.

    Raises:
        CheckpointError: there is no `best.pt`, it cannot be used, or training was seen to write another one meanwhile.
        DataError: the data that it was trained on are not there any more.
        MnetDetError: a file cannot be written.
    """
    model = folder / "best.pt"
    if not model.is_file():
        if not (folder / "last.pt").is_file():
            raise CheckpointError(f"{folder}: neither a sweep nor a run: no sweep.json, best.pt or last.pt in it")
        raise CheckpointError(f"{folder}: no best.pt in it, so it was never scored; train it on with --resume auto")
    scored = sha256_of(model)
    checkpoint = open_detector(model)
    config = checkpoint.config
    where = data_config or config.data
    data = open_data(where, "train")
    val_data = open_data(where, "val", joined_to=data)
    # In torch, which is here already: the export, which is compared with it, is made once, when the thresholds are in.
    predictor = load_torch_predictor(model, threads=threads)
    scores, analysis, results = analyse_model(predictor, val_data, where.annotations("val"))
    if sha256_of(model) != scored:  # else the thresholds and numbers of some weights would be said of others
        raise CheckpointError(f"{model}: changed while it was scored; report again when its training is done")
    store_class_scores(model, {name: None if best is None else best.score for name, best in analysis.best_f1.items()})
    cost = count_cost(
        lambda: build_detector(config.model, num_classes=len(checkpoint.class_names)), input_hw=config.model.input_hw
    )
    trained = read_trained(folder)
    point = Point.of(config.model)
    content = {
        "format": FORMAT,
        "key": key,
        "name": folder.resolve().name,
        "point": asdict(point),
        "seed": config.train.seed,
        "input_hw": list(config.model.input_hw),
        "start": None if config.model.init is None else str(config.model.init),
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "minutes": minutes,
        "mult_adds": cost.mult_adds,
        "params": cost.params,
        "file_bytes": exported(model).stat().st_size,
        "scores": scores.to_json(runtime=predictor.runtime),
        "analysis": analysis.to_json(),
        "training_images": len(data),
        "validation_images": len(val_data),
        "class_names": list(checkpoint.class_names),
        "machine": machine(),
        "mnet_det": __version__,
        "measured_at": _now(),
        "checkpoint_sha256": sha256_of(model),
    }
    write_json(folder / DETECTIONS_FILE, results)
    write_json(folder / MEASURED_FILE, content)
    return content


def read_measured(folder: Path) -> dict[str, Any] | None:
    """What was measured of a run; None where nothing was yet, or by another version, or of other weights.

    Raises:
        DataError: `best.pt` cannot be read.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        content: dict[str, Any] = json.loads((folder / MEASURED_FILE).read_text(encoding="utf-8"))
        if content["format"] == FORMAT and content["checkpoint_sha256"] == sha256_of(folder / "best.pt"):
            return content
    return None


def read_trained(folder: Path) -> Trained:
    """How long a run was trained, by its `metrics.csv`; of one that has none, 0 epochs."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return Trained(0, None)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scored = {int(row["epoch"]): float(row["AP"]) for row in rows if row.get("AP")}
    best = max(scored, key=lambda epoch: scored[epoch], default=None)  # of equals the first, as training keeps it
    return Trained(int(rows[-1]["epoch"]) if rows else 0, best)


def measure_latency(
    folder: Path,
    runs: Sequence[Path],
    *,
    threads: int | None = None,
    data_config: DataConfig | None = None,
    again: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure runs in turns, one validation image at a time, and write `latency.json`: each in its quickest engine.

    What is there already is kept if it is of the same weights, on this machine, with as many threads. Of several
    processes that ask at the same time one measures, and the others take what it wrote.

    Args:
        folder: where the file lies.
        runs: folders whose `best.pt` is measured.
        threads: how many to compute with; physical cores unless given.
        data_config: where the images are now; unless given, where they were when the first run was trained.
        again: measure whatever is there, which may be of a busy moment.
        say: told that it takes a while.

    Returns:
        The file's content.

    Raises:
        CheckpointError: a model cannot be used.
        DataError: the validation images are not there any more.
        MnetDetError: the file cannot be written.
    """
    with turn(folder / ".latency.lock"):
        known = _read_latency(folder / LATENCY_FILE)
        wanted = {
            "machine": machine(),
            "weights": {run.resolve().name: sha256_of(run / "best.pt") for run in runs},
            "asked": threads,
        }
        if known is not None and not again and all(known[name] == value for name, value in wanted.items()):
            return known
        say(f"measuring the speed of {len(runs)} model{'' if len(runs) == 1 else 's'} in turns")
        content = _time_runs(runs, threads=threads, data_config=data_config) | wanted
        write_json(folder / LATENCY_FILE, content)
        return content


def _time_runs(runs: Sequence[Path], *, threads: int | None, data_config: DataConfig | None) -> dict[str, Any]:
    """What `latency.json` says besides what it was measured for."""
    where = data_config or open_detector(runs[0] / "best.pt").config.data
    images = validation_images(where)
    # In every engine, and all in turns: one that `auto` chose in a busy moment need not be the quicker one.
    predictors = [
        (run.resolve().name, load_predictor(run / "best.pt", runtime=engine, threads=threads, score=LIVE_SCORE))
        for run in runs
        for engine in installed_engines()
    ]
    timed = benchmark(predictors, images)
    names = dict.fromkeys(name for name, _ in predictors)
    quickest = [min((row for row in timed if row.model == name), key=lambda row: row.total_ms.p50) for name in names]
    return {
        "format": FORMAT,
        "images": f"{len(images)} images of {where.images('val')}",
        "frame_hw": None,
        "score": LIVE_SCORE,
        "measured_at": _now(),
        "rows": [asdict(row) | {"name": row.model, "input_hw": list(row.input_hw), "fps": row.fps} for row in quickest],
    }


def validation_images(config: DataConfig) -> list[Image]:
    """The first validation images that can be read, RGB uint8.

    Raises:
        DataError: there is none.
    """
    data = open_data(config, "val", joined_to=open_data(config, "train"))
    images: list[Image] = []
    for index in range(len(data)):
        if len(images) == MOST_IMAGES:
            break
        with suppress(ImageError):
            images.append(data.image(index))
    if not images:
        raise DataError(f"{data.folder}: none of its {len(data)} images can be read")
    return images


def _read_latency(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] == FORMAT and {"machine", "weights", "asked", "rows"} <= content.keys():
            return content
    return None


def _now() -> str:
    return datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
