"""The models that a viewer can switch between: which they are, and what there is to say about each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mnet_det.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from mnet_det.runtime.predictor import Predictor

MOST_MODELS = 32
"""All are loaded at the start, and stay in memory."""


@dataclass(frozen=True)
class ModelCard:
    """What a viewer wants to know of a model.

    Attributes:
        name: what the model calls itself.
        precision: "float32" or "int8".
        nms: the threshold it was scored with, which holds until the viewer sets another.
        class_names: in the order of its labels.
    """

    name: str
    alpha: float
    input_hw: tuple[int, int]
    precision: str
    runtime: str
    threads: int
    nms: float
    class_names: tuple[str, ...]

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
        )

    def __str__(self) -> str:
        height, width = self.input_hw
        precision = "" if self.precision == "float32" else f"   {self.precision}"
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.name}   alpha {self.alpha:g}   {width}x{height}{precision}   {self.runtime}, {threads}"


def load_lineup(
    words: Sequence[str],
    load: Callable[[str, float | None], Predictor],
    *,
    rhos: Sequence[float] = (),
) -> list[Predictor]:
    """Load each model once, in the order given; those of a folder with the most work for each image first.

    Args:
        words: MODELs, or folders of runs, such as a sweep's.
        load: how to load one: the MODEL, and rho, or None for the model's own.
        rhos: run the same weights at each of these resolutions.

    Raises:
        CheckpointError: a folder without a model in it.
        ConfigError: too many models.
    """
    files = {word: _models_in(Path(word)) if os.path.isdir(word) else [word] for word in words}
    count = sum(map(len, files.values())) * max(1, len(rhos))
    if count > MOST_MODELS:
        raise ConfigError(f"model: {count} models, expected at most {MOST_MODELS}, for all are kept in memory")
    lineup = []
    for word, models in files.items():
        loaded = [load(model, rho) for model in models for rho in (rhos or (None,))]
        lineup += sorted(loaded, key=_work, reverse=True) if os.path.isdir(word) else loaded
    return lineup


def _work(predictor: Predictor) -> float:
    """What an image costs, to a factor: multiply-adds go with the square of the width."""
    height, width = predictor.metadata.input_hw
    return predictor.metadata.alpha**2 * height * width


def _models_in(folder: Path) -> list[str]:
    """The best checkpoint of a run, or of each run in a folder; else what exported files lie in it."""
    for pattern in ("best.pt", "*/best.pt", "**/best.pt", "*.onnx", "*.xml"):
        found = sorted(folder.glob(pattern))
        if pattern == "*.xml":  # annotations end so, too
            found = [file for file in found if file.with_suffix(".bin").is_file()]
        if found:
            return list(map(str, found))
    raise CheckpointError(
        f"{folder}: no model in this folder; expected a run's best.pt, folders of runs, or exported .onnx or .xml files"
    )
