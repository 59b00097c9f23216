"""The models that a viewer can switch between: which they are, and what there is to say about each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnet_det.errors import CheckpointError, ConfigError
from mnet_det.sweep_folder import PLAN_FILE, is_measured

if TYPE_CHECKING:
    from mnet_det.runtime.predictor import Predictor

MOST_MODELS = 32
"""All are loaded at the start, and stay in memory."""

"""What makes a folder a sweep's; it names the runs, of which several may train one network with other seeds."""

RUN_OF_SWEEP = re.compile(r"(?P<network>.+)-alpha[\d.]+-rho[\d.]+-seed\d+-[0-9a-f]+")
"""How a sweep calls its runs; alpha and the input's size are told beside the name anyway."""


@dataclass(frozen=True)
class ModelCard:
    """What a viewer wants to know of a model.

    Attributes:
        name: what the model calls itself.
        precision: "float32" or "int8".
        nms: the threshold it was scored with, which holds until the viewer sets another.
        class_names: in the order of its labels.
        class_scores: the least probabilities that hold for them until the viewer sets one; None: `VIEWING_SCORE`.
    """

    name: str
    alpha: float
    input_hw: tuple[int, int]
    precision: str
    runtime: str
    threads: int
    nms: float
    class_names: tuple[str, ...]
    class_scores: tuple[float, ...] | None = None

    @classmethod
    def of(cls, predictor: Predictor) -> ModelCard:
        """The card of a loaded model."""
        metadata = predictor.metadata
        return cls(
            name=metadata.name,
            alpha=metadata.alpha,
            input_hw=metadata.input_hw,
            precision=metadata.precision,
            runtime=predictor.runtime,
            threads=predictor.threads,
            nms=predictor.thresholds.nms,
            class_names=predictor.class_names,
            class_scores=predictor.metadata.class_scores,
        )

    def __str__(self) -> str:
        height, width = self.input_hw
        precision = "" if self.precision == "float32" else f"   {self.precision}"
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.name}   alpha {self.alpha:g}   {width}x{height}{precision}   {self.runtime}, {threads}"


def cards_of(models: Sequence[Predictor]) -> list[ModelCard]:
    """The cards of a line-up; a sweep's runs are called by their network alone where that tells them apart."""
    cards = [ModelCard.of(model) for model in models]
    runs = [RUN_OF_SWEEP.fullmatch(card.name) for card in cards]
    short = [replace(card, name=run["network"]) if run else card for card, run in zip(cards, runs, strict=True)]
    return short if len(set(map(str, short))) == len(short) else cards


def load_lineup(
    words: Sequence[str],
    load: Callable[[str, float | None], Predictor],
    *,
    rhos: Sequence[float] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Predictor]:
    """Load each model once, in the order given; those of a folder with the most work for each image first.

    Args:
        words: MODELs, or folders of runs; of a sweep's, one model for each network that is finished.
        load: how to load one: the MODEL, and rho, or None for the model's own.
        rhos: run the same weights at each of these resolutions.
        say: told in a line of a sweep that is not finished yet.

    Raises:
        CheckpointError: a folder without a model in it; a sweep whose plan is damaged, or that has not finished a run.
        ConfigError: too many models.
    """
    files = {word: _models_in(Path(word), say) if os.path.isdir(word) else [word] for word in words}
    count = sum(map(len, files.values())) * max(1, len(rhos))
    if count > MOST_MODELS:
        raise ConfigError(
            f"model: {count} models, expected at most {MOST_MODELS}, for all are kept in memory; name those to "
            "compare, such as the folders of some runs, each with a --model of its own"
        )
    lineup = []
    for word, models in files.items():
        loaded = [load(model, rho) for model in models for rho in (rhos or (None,))]
        lineup += sorted(loaded, key=_work, reverse=True) if os.path.isdir(word) else loaded
    return lineup


def _work(predictor: Predictor) -> float:
    """What an image costs, to a factor: multiply-adds go with the square of the width."""
    height, width = predictor.metadata.input_hw
    return predictor.metadata.alpha**2 * height * width


def _models_in(folder: Path, say: Callable[[str], None]) -> list[str]:
    """A sweep's networks; the best checkpoint of a run, or of each run in a folder; else the exported files in it."""
    if (folder / PLAN_FILE).is_file():
        return _models_of_sweep(folder, say)
    for pattern in ("best.pt", "*/best.pt", "**/best.pt", "*.onnx", "*.xml"):
        found = sorted(folder.glob(pattern))
        if pattern == "*.xml":  # annotations end so, too
            found = [file for file in found if file.with_suffix(".bin").is_file()]
        if found:
            return list(map(str, found))
    raise CheckpointError(
        f"{folder}: no model in this folder; expected a run's best.pt, folders of runs, or exported .onnx or .xml files"
    )


def _models_of_sweep(folder: Path, say: Callable[[str], None]) -> list[str]:
    """The best checkpoint of each network of a sweep: of its first run in the plan that is finished."""
    plan = _read_json(folder / PLAN_FILE)
    try:
        runs = [
            (json.dumps(run["point"], sort_keys=True), folder / run["name"], run["key"])
            for run in plan["runs"]
            if not run.get("fault")  # which nobody can build, so that nobody waits for it
        ]
    except (AttributeError, KeyError, TypeError):
        runs = None
    if runs is None:
        raise CheckpointError(
            f"{folder / PLAN_FILE}: damaged, or not the plan of a sweep; run its `mnet-det sweep` command again: it "
            "writes that anew and trains nothing twice"
        )
    models: dict[str, str] = {}
    for network, run, key in runs:
        if network not in models and is_measured(run, key=key):
            models[network] = str(run / "best.pt")
    if not models:
        raise CheckpointError(
            f"{folder}: of this sweep's {len(runs)} runs none is finished; run its `mnet-det sweep` command again, "
            "which goes on with them, or give the folder of one run"
        )
    planned = len({network for network, _, _ in runs})
    if len(models) < planned:
        say(f"{folder}: {len(models)} of this sweep's {planned} networks are finished")
    return list(models.values())


def _read_json(path: Path) -> Any:
    """The content of a file; None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
