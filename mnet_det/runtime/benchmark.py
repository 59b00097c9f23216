"""Latency by stage, p50 and p95, of one or several models measured side by side."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mnet_det.doctor import cpu_name, installed_version
from mnet_det.runtime.backends import physical_cores
from mnet_det.runtime.interleave import REST_S, ROUNDS, interleave
from mnet_det.runtime.predictor import Predictor, Times
from mnet_det.structures import Image

PACKAGES = ("openvino", "onnxruntime", "torch", "nncf")
"""Packages whose versions matter to a speed, where they are installed."""


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
class Look:
    """What one prediction took, and how many detections it ended in."""

    times: Times
    detections: int


@dataclass(frozen=True)
class BenchmarkRow:
    """One model's latencies; `dataclasses.asdict` gives a row of the `bench` JSON.

    Attributes:
        precision: of the network's arithmetic, "float32" or "int8".
        detections: mean number a frame.
    """

    model: str
    alpha: float
    input_hw: tuple[int, int]
    runtime: str
    threads: int
    preprocess_ms: StageSummary
    network_ms: StageSummary
    postprocess_ms: StageSummary
    total_ms: StageSummary
    precision: str
    detections: float

    @property
    def fps(self) -> float:
        """Frames a second, one after the other."""
        return 1000 / self.total_ms.p50


@dataclass(frozen=True)
class MatrixProduct:
    """The product of two square float32 matrices: what this machine reaches where nothing but arithmetic counts.

    Attributes:
        library: what computed it, with its version.
        size: rows and columns of both matrices.
        threads: how many it was told to compute with; None where the library chose.
        ms: measured beside the models, in turns with them.
    """

    library: str
    size: int
    threads: int | None
    ms: StageSummary

    @property
    def g_mult_adds_per_s(self) -> float:
        """10⁹ multiply-adds a second, at the median."""
        return g_mult_adds_per_s(self.size**3, self.ms)

    def fraction_of(self, row: BenchmarkRow, *, mult_adds: int) -> float | None:
        """What part of the product's rate a network reaches; None for int8, which float32 does not limit."""
        if row.precision != "float32":
            return None
        return g_mult_adds_per_s(mult_adds, row.network_ms) / self.g_mult_adds_per_s


@dataclass(frozen=True)
class Benchmark:
    """What one interleaved run measured, and on what.

    Attributes:
        rows: one a model and runtime.
        product: the machine's own limit.
        images: what was looked at, in words.
        frame_hw: the size of every frame; None where images kept their own.
        score: the least probability of a detection.
    """

    rows: list[BenchmarkRow]
    product: MatrixProduct
    images: str
    frame_hw: tuple[int, int] | None
    score: float

    def __str__(self) -> str:
        """What was measured on, for the title of a table."""
        size = "each in its own size" if self.frame_hw is None else f"{self.frame_hw[1]}x{self.frame_hw[0]}"
        threads = ", ".join(map(str, sorted({row.threads for row in self.rows})))
        return f"{self.images}, {size}, score at least {self.score:g}, threads: {threads}"


def benchmark(
    predictors: Sequence[tuple[str, Predictor]],
    images: Sequence[Image],
    *,
    rounds: int = ROUNDS,
    rest_s: float = REST_S,
) -> list[BenchmarkRow]:
    """Measure predictors one image at a time, in turns.

    Args:
        predictors: each with the model's name to give in its row.
        images: RGB uint8 [H, W, 3], taken in turn.
        rounds: see `interleave`.
        rest_s: see there.

    Returns:
        One row a predictor, in their order.

    Raises:
        ValueError: no image, or no round.
    """
    looks = interleave([looking(predictor, images) for _, predictor in predictors], rounds=rounds, rest_s=rest_s)
    return [row_of(name, predictor, taken) for (name, predictor), taken in zip(predictors, looks, strict=True)]


def looking(predictor: Predictor, images: Sequence[Image]) -> Callable[[int], Look]:
    """A contestant for `interleave` that looks at one image after the other.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("expected at least one image, got none")

    def look(call: int) -> Look:
        detections, times = predictor.timed(images[call % len(images)])
        return Look(times, len(detections))

    return look


def row_of(name: str, predictor: Predictor, looks: Sequence[Look]) -> BenchmarkRow:
    """The row of a predictor from what `looking` returned."""
    times = [look.times for look in looks]
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
        precision=predictor.metadata.precision,
        detections=float(np.mean([look.detections for look in looks])),
    )


def g_mult_adds_per_s(mult_adds: int, stage: StageSummary) -> float:
    """10⁹ multiply-adds a second, at the median."""
    return mult_adds / stage.p50 / 1e6


def machine() -> dict[str, str | int]:
    """What the numbers were measured on: CPU, system, and the versions that matter."""
    return {
        "cpu": cpu_name(),
        "physical_cores": physical_cores(),
        "logical_cores": os.cpu_count() or 1,
        "os": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **{package: version for package in PACKAGES if (version := installed_version(package)) is not None},
    }
