"""The front door of the runtime: RGB pixels in, detections in the same pixels out."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mnet_det.catalogue import find_detector
from mnet_det.errors import ConfigError
from mnet_det.preprocess import Preprocessor
from mnet_det.runtime.backends import Aim, Backend
from mnet_det.runtime.cache import load_exported
from mnet_det.runtime.choice import ENGINES, Choice, choose_runtime
from mnet_det.runtime.metadata import ModelMetadata
from mnet_det.runtime.postprocess import VIEWING_SCORE, Thresholds, postprocess
from mnet_det.structures import Detections, Image

RUNTIMES = ("auto", *ENGINES)
MOST_THREADS = 8
"""For each logical core; ONNX Runtime makes a million if it is told to, until memory is full."""


@dataclass(frozen=True)
class Times:
    """How long each stage of one prediction took."""

    preprocess_ms: float
    network_ms: float
    postprocess_ms: float

    @property
    def total_ms(self) -> float:
        """From original pixels to detections."""
        return self.preprocess_ms + self.network_ms + self.postprocess_ms


class Predictor:
    """A backend between the way into network pixels and the way back."""

    def __init__(self, backend: Backend, *, thresholds: Thresholds | None = None, choice: Choice | None = None) -> None:
        """Wrap a backend.

        Args:
            backend: the model on its engine.
            thresholds: the model's own (those it was scored with) unless given.
            choice: why this engine, if nobody named it.
        """
        self.backend = backend
        self.choice = choice
        self.thresholds = thresholds or Thresholds.of(backend.metadata)
        self._preprocess = Preprocessor(backend.metadata.input_hw, mode=backend.metadata.resize)

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says about itself."""
        return self.backend.metadata

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names that labels index."""
        return self.metadata.class_names

    @property
    def runtime(self) -> str:
        """Name of the engine."""
        return self.backend.name

    @property
    def threads(self) -> int:
        """How many threads the engine computes with."""
        return self.backend.threads

    @property
    def viewing_score(self) -> float | tuple[float, ...]:
        """The least probability to show a person: of each class where that was measured, else `VIEWING_SCORE`."""
        return self.metadata.class_scores or VIEWING_SCORE

    def __call__(
        self, image: Image, *, score: float | tuple[float, ...] | None = None, nms: float | None = None
    ) -> Detections:
        """Detect in one image.

        Args:
            image: RGB uint8 [H, W, 3].
            score: the least probability, or one for each class, for this call alone.
            nms: the IoU above which the lesser of two boxes of a class goes, for this call alone.

        Returns:
            Detections in the image's own pixels.
        """
        return self.timed(image, score=score, nms=nms)[0]

    def timed(
        self, image: Image, *, score: float | tuple[float, ...] | None = None, nms: float | None = None
    ) -> tuple[Detections, Times]:
        """Detect in one image as `predictor(image)` does, and say how long each stage took."""
        started = time.perf_counter()
        pixels, resize = self._preprocess(_checked(image))
        preprocessed = time.perf_counter()
        candidates = self.backend.borrow(pixels[None])
        computed = time.perf_counter()
        thresholds = self.thresholds
        if score is not None or nms is not None:
            thresholds = replace(
                thresholds,
                score=thresholds.score if score is None else score,
                nms=thresholds.nms if nms is None else nms,
            )
        detections = postprocess(candidates.boxes_xyxy[0], candidates.scores[0], thresholds)
        detections = resize.undo(detections)
        finished = time.perf_counter()
        stamps = (started, preprocessed, computed, finished)
        times = Times(*((end - start) * 1000 for start, end in itertools.pairwise(stamps)))
        return detections, times

    def batch(self, images: Sequence[Image]) -> list[Detections]:
        """Detect in several images of any sizes, each in its own pixels."""
        if not images:
            return []
        pixels, resizes = zip(*(self._preprocess(_checked(image)) for image in images), strict=True)
        found = self.backend(np.stack(pixels), self.thresholds)
        return [resize.undo(detections) for resize, detections in zip(resizes, found, strict=True)]


def load_predictor(
    path: str | Path,
    *,
    runtime: str = "auto",
    threads: int | None = None,
    score: float | tuple[float, ...] | None = None,
    aim: Aim = "latency",
    rho: float | None = None,
) -> Predictor:
    """Load a model: `.onnx`, OpenVINO `.xml`, or a `.pt` or published `.tflite` file (exported once, into the cache).

    Args:
        path: the model file, or the name of published weights (fetched once, into the cache).
        runtime: "openvino", "onnxruntime", or "auto": the quicker one on this machine, timed at the first use.
        threads: how many to compute with; physical cores unless given.
        score: the least probability, or one for each class; unless given, the one the model was scored with, which
            suits AP. To show the result to a person, give `predictor.viewing_score` to its calls.
        aim: "throughput" for many images from several threads (`predictor.backend.callers` of them).
        rho: resolution multiplier, if not the model's own: the same weights on another input size. Not for `.onnx` and
            `.xml` files, whose size is fixed.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
        DownloadError: published weights cannot be fetched.
        ConfigError: no such runtime, or less than one thread, or far more than there are cores.
        MissingPackageError: a package that this file or runtime needs is not installed.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime: got {runtime!r}, expected one of {', '.join(RUNTIMES)}")
    check_threads(threads)

    def load(file: Path) -> tuple[Backend, Choice | None]:
        choice = choose_runtime(file, threads=threads) if runtime == "auto" else None
        return ENGINES[choice.runtime if choice else runtime](file, threads=threads, aim=aim), choice

    backend, choice = load_exported(find_detector(path), load, rho=rho)
    thresholds = Thresholds.of(backend.metadata)
    if score is not None:
        thresholds = replace(thresholds, score=score)
    return Predictor(backend, thresholds=thresholds, choice=choice)


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no engine can make use of.

    Raises:
        ConfigError: less than one, or far more than there are cores.
    """
    most = MOST_THREADS * (os.cpu_count() or 1)
    if threads is not None and not 1 <= threads <= most:
        raise ConfigError(f"threads: got {threads}, expected 1 to {most}, at most {MOST_THREADS} for each core")


def _checked(image: Image) -> Image:
    shape, kind = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
    if kind != np.uint8 or shape is None or len(shape) != 3 or shape[2] != 3 or not all(shape):
        raise ValueError(f"expected an RGB image, uint8 [H, W, 3]; got {kind} {shape}")
    return image
