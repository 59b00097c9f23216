"""Latency by stage, p50 and p95, of one or several models measured side by side."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import cv2
import numpy as np

from mnet_det.doctor import cpu_name
from mnet_det.runtime.predictor import Predictor, Times
from mnet_det.structures import Image


@dataclass(frozen=True)
class StageSummary:
    """One stage over all its repeats, milliseconds."""

    p50: float
    p95: float

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> StageSummary:
        """Median and 95th percentile, interpolated between the two nearest values."""
        p50, p95 = np.percentile(values_ms, [50, 95])
        return cls(float(p50), float(p95))


@dataclass(frozen=True)
class BenchmarkRow:
    """One model's latencies; `dataclasses.asdict` gives a row of the `bench` JSON."""

    model: str
    alpha: float
    input_hw: tuple[int, int]
    runtime: str
    threads: int
    preprocess_ms: StageSummary
    network_ms: StageSummary
    postprocess_ms: StageSummary
    total_ms: StageSummary


def benchmark(
    predictors: Sequence[tuple[str, Predictor]], images: Sequence[Image], *, repeats: int = 50, warmup: int = 5
) -> list[BenchmarkRow]:
    """Measure predictors one image at a time, in turn, so that a noisy moment of the machine meets all of them.

    Args:
        predictors: each with the model's name to give in its row.
        images: RGB uint8 [H, W, 3], taken in turn.
        repeats: measured predictions of each model.
        warmup: predictions of each model before those.

    Returns:
        One row a predictor, in their order.

    Raises:
        ValueError: no image, or no repeat.
    """
    if not images or repeats < 1:
        raise ValueError(f"expected at least one image and one repeat, got {len(images)} and {repeats}")
    times: list[list[Times]] = [[] for _ in predictors]
    for turn in range(-warmup, repeats):
        for (_, predictor), taken in zip(predictors, times, strict=True):
            _, took = predictor.timed(images[turn % len(images)])
            if turn >= 0:
                taken.append(took)
    return [_row(name, predictor, taken) for (name, predictor), taken in zip(predictors, times, strict=True)]


def machine() -> dict[str, str | int]:
    """What the numbers were measured on: CPU, system, and the versions that matter."""
    return {
        "cpu": cpu_name(),
        "logical_cores": os.cpu_count() or 1,
        "os": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "openvino": metadata.version("openvino"),
    }


def _row(name: str, predictor: Predictor, times: Sequence[Times]) -> BenchmarkRow:
    return BenchmarkRow(
        model=name,
        alpha=predictor.metadata.alpha,
        input_hw=predictor.metadata.input_hw,
        runtime=predictor.runtime,
        threads=predictor.threads,
        preprocess_ms=StageSummary.of([taken.preprocess_ms for taken in times]),
        network_ms=StageSummary.of([taken.network_ms for taken in times]),
        postprocess_ms=StageSummary.of([taken.postprocess_ms for taken in times]),
        total_ms=StageSummary.of([taken.total_ms for taken in times]),
    )
